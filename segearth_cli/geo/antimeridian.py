"""Polygons in degrees as RFC 7946 has them: cut where they cross the antimeridian."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

TOLERANCE = 1.5e-7  # degrees: places so near to it lie on it

Ring = NDArray[np.float64]  # places x 2


def may_cross(shapes: NDArray[Any]) -> NDArray[np.bool_]:
    """Which shapes in degrees may cross it: they count on beyond it, or lie on both sides."""
    west, _, east, _ = shapely.bounds(shapes).T
    beyond = (west < -180 - TOLERANCE) | (east > 180 + TOLERANCE)
    return np.asarray(beyond | (east - west > 180))


def snapped(places: NDArray[np.float64]) -> NDArray[np.float64]:
    """Places, those on the antimeridian exactly there."""
    longitudes, latitudes = places.T
    is_on_it = abs(abs(longitudes) - 180) <= TOLERANCE
    return np.stack(
        [np.where(is_on_it, np.copysign(180, longitudes), longitudes), latitudes], axis=1
    )


def unrolled(longitudes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Longitudes in one piece, where neighbours lie less than half the Earth apart."""
    return np.unwrap(longitudes, period=360)


def in_one_piece(rings: Sequence[Ring]) -> Any | None:
    """A polygon in degrees that begins between -180 and 180, wherever it goes from there.

    Args:
        rings: the outer one and the holes, each `unrolled`, the first place also the last.

    Returns:
        The polygon; ``None`` of one that lies around a pole, or more than once around the Earth.
    """
    shell, *holes = (ring.copy() for ring in rings)
    if any(abs(ring[-1, 0] - ring[0, 0]) > 180 for ring in (shell, *holes)):
        return None
    if np.ptp(shell[:, 0]) > 360 + TOLERANCE:
        return None
    shell[:, 0] -= _turns(shell[:, 0].min())
    west = shell[:, 0].min()
    for hole in holes:  # on the turn on which it lies inside
        hole[:, 0] -= _turns(hole[:, 0].min() - west - 180)
    return shapely.Polygon(snapped(shell), [snapped(hole) for hole in holes])


def cut(polygon: Any) -> Any:
    """A polygon `in_one_piece`, its part beyond the antimeridian on the other side."""
    if polygon.bounds[2] <= 180:
        return polygon
    whole = polygon if polygon.is_valid else shapely.make_valid(polygon)
    parts = [
        shapely.transform(
            shapely.intersection(whole, shapely.box(west, -90, west + 360, 90)),
            lambda places, west=west: places - [west + 180, 0],
        )
        for west in (-180, 180)
    ]
    found = [part for part in shapely.get_parts(shapely.get_parts(parts)) if _is_wide(part)]
    return found[0] if len(found) == 1 else shapely.MultiPolygon(found)


def _is_wide(part: Any) -> bool:
    west, _, east, _ = part.bounds
    return bool(part.geom_type == "Polygon" and east - west > TOLERANCE)


def _turns(longitude: float) -> float:
    """Degrees of the whole turns that a longitude is away from those that are usual."""
    return float(360 * ((longitude + 180 + TOLERANCE) // 360))

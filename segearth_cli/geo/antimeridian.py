"""Polygons in degrees as RFC 7946 has them: cut where they cross the antimeridian."""

from __future__ import annotations

from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

_PIECES = 16  # of what lies wide: its edges are then less than half the Earth long


def may_cross(shapes: NDArray[Any]) -> NDArray[np.bool_]:
    """Which shapes in degrees may cross it: they count on beyond it, or lie on both sides."""
    west, _, east, _ = shapely.bounds(shapes).T
    return np.asarray((west < -180) | (east > 180) | (east - west > 180))


def short_edged(shape: Any) -> Any:
    """A shape with edges so short that none of them goes half around the Earth."""
    west, south, east, north = shape.bounds
    return shapely.segmentize(shape, max(east - west, north - south) / _PIECES)


def in_one_piece(polygon: Any) -> Any | None:
    """A polygon in degrees that begins between -180 and 180, wherever it goes from there.

    Neighbouring vertices lie less than half the Earth apart. None of one that lies around a pole,
    or around the Earth.
    """
    shell, *holes = (_unrolled(ring) for ring in (polygon.exterior, *polygon.interiors))
    if any(abs(ring[-1, 0] - ring[0, 0]) > 180 for ring in (shell, *holes)):
        return None
    if np.ptp(shell[:, 0]) >= 360:
        return None
    west = shell[:, 0].min()
    shell[:, 0] -= _turns(west)
    west = shell[:, 0].min()
    for hole in holes:  # on the turn on which it lies inside
        hole[:, 0] -= _turns(hole[:, 0].min() - west - 180)
    return shapely.Polygon(shell, holes)


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
    found = [part for part in shapely.get_parts(shapely.get_parts(parts)) if part.area > 0]
    return found[0] if len(found) == 1 else shapely.MultiPolygon(found)


def _unrolled(ring: Any) -> NDArray[np.float64]:
    places = np.array(ring.coords)[:, :2]
    places[:, 0] = np.unwrap(places[:, 0], period=360)
    return places


def _turns(longitude: float) -> float:
    """Degrees of the whole turns that a longitude is away from those that are usual."""
    return float(360 * ((longitude + 180) // 360))

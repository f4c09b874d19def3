"""Regions of a class raster as rings in pixel coordinates: tracing, confidence, simplification."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.features import shapes
from shapely import GeometryType

_POINTS = 1 << 18  # held as Python's numbers


@dataclass(frozen=True)
class Rings:
    """Polygons as flat arrays in pixel coordinates (x right, y down, corners are whole numbers).

    ``xy`` [points, 2] int64, or float64 once they are simplified or placed; polygon i owns rings
    ``polygon_offsets[i]:polygon_offsets[i + 1]``, its shell first; ring j owns points
    ``ring_offsets[j]:ring_offsets[j + 1]``, the first repeated at the end. As traced, the polygon
    lies on one side of all its rings: `signed_areas` of shells are negative, of holes positive.
    """

    values: NDArray[np.int32]
    xy: NDArray[Any]
    ring_offsets: NDArray[np.int64]
    polygon_offsets: NDArray[np.int64]

    def geometry(self) -> NDArray[Any]:
        """Return shapely polygons [polygons]."""
        offsets = (self.ring_offsets, self.polygon_offsets)
        xy = self.xy.astype(np.float64)
        return np.asarray(shapely.from_ragged_array(GeometryType.POLYGON, xy, offsets))

    def shells_minus_holes(self, per_ring: NDArray[Any]) -> NDArray[Any]:
        """Return what shells have less what their holes have [polygons], of every ring's [rings].

        Signs, which tell only the way that a ring runs, are left out.
        """
        signed = -np.abs(per_ring)
        signed[self.polygon_offsets[:-1]] *= -1
        return _sums(signed, self.polygon_offsets)

    def take(self, polygons: NDArray[np.int64]) -> "Rings":
        """Return some of the polygons."""
        rings, polygon_offsets = runs(self.polygon_offsets, polygons)
        points, ring_offsets = runs(self.ring_offsets, rings)
        return Rings(self.values[polygons], self.xy[points], ring_offsets, polygon_offsets)

    def edges(self) -> NDArray[np.bool_]:
        """Return which points [points - 1] an edge leads from: all but the last one of a ring."""
        leads = np.ones(max(len(self.xy) - 1, 0), bool)
        leads[self.ring_offsets[1:-1] - 1] = False
        return leads


@dataclass(frozen=True)
class Regions:
    """Regions of a class raster, and what the confidence raster says of their pixels.

    ``sums`` [2, polygons] int64: of the percents, and how many pixels have one.
    """

    rings: Rings
    sums: NDArray[np.int64]

    def take(self, polygons: NDArray[np.int64]) -> "Regions":
        """Return some of them."""
        return Regions(self.rings.take(polygons), self.sums[:, polygons])

    @property
    def confidence(self) -> NDArray[np.float64]:
        """Mean of the percents inside every polygon, 0 to 1, 3 decimals; NaN where none is."""
        percents, pixels = self.sums
        mean = np.divide(percents, pixels, out=np.full(len(pixels), np.nan), where=pixels > 0)
        return np.asarray(np.round(mean / 100, 3))


def together(parts: Sequence[Regions]) -> Regions:
    """Return the regions of all parts, of which there is at least one."""
    rings = [part.rings for part in parts]
    return Regions(
        Rings(
            np.concatenate([part.values for part in rings]),
            np.concatenate([part.xy for part in rings]),
            offsets_of(np.concatenate([np.diff(part.ring_offsets) for part in rings])),
            offsets_of(np.concatenate([np.diff(part.polygon_offsets) for part in rings])),
        ),
        np.concatenate([part.sums for part in parts], axis=1),
    )


def runs(
    offsets: NDArray[np.int64], chosen: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the places in the chosen runs ``offsets[i]:offsets[i + 1]``, and their own offsets."""
    counts = np.diff(offsets)[chosen]
    return ranges(offsets[chosen], counts), offsets_of(counts)


def ranges(starts: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return so many whole numbers from each start on, one range after the other."""
    offsets = offsets_of(counts)
    return np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], counts)


def regions_of(
    classes: NDArray[Any],
    nodata: int,
    percents: NDArray[np.uint8],
    valid: NDArray[np.bool_],
    top: int = 0,
) -> Regions:
    """Return the 4-connected regions of values other than 0 and nodata in rows from ``top`` on.

    ``percents`` are the confidence of the same pixels, where they are ``valid``.
    """
    rings = trace(classes, nodata)
    sums = confidence_sums(rings, percents, valid)
    return Regions(replace(rings, xy=rings.xy + np.array([0, top])), sums)


def trace(classes: NDArray[Any], nodata: int) -> Rings:
    """Return the 4-connected regions of values other than 0 and nodata."""
    values: list[int] = []
    ring_counts: list[int] = []
    point_counts: list[int] = []
    blocks: list[NDArray[np.int64]] = []
    points: list[tuple[float, float]] = []
    for geometry, value in shapes(classes, (classes != 0) & (classes != nodata), connectivity=4):
        values.append(int(value))
        ring_counts.append(len(geometry["coordinates"]))
        for ring in geometry["coordinates"]:
            point_counts.append(len(ring))
            points.extend(ring)
        if len(points) > _POINTS:
            blocks.append(np.array(points, np.int64))
            points = []
    blocks.append(np.array(points, np.int64).reshape(-1, 2))
    rings = Rings(
        np.array(values, np.int32),
        np.concatenate(blocks),
        offsets_of(point_counts),
        offsets_of(ring_counts),
    )
    return _directed(rings)


def _directed(rings: Rings) -> Rings:
    """Turn round the rings that run the other way than `Rings` promises: GDAL promises nothing."""
    is_shell = np.zeros(len(rings.ring_offsets) - 1, bool)
    is_shell[rings.polygon_offsets[:-1]] = True
    wrong = (signed_areas(rings.xy, rings.ring_offsets) < 0) != is_shell
    if not wrong.any():
        return rings
    counts = np.diff(rings.ring_offsets)
    first, last = (np.repeat(rings.ring_offsets[:-1] + own, counts) for own in (0, counts - 1))
    place = np.arange(len(rings.xy))
    place = np.where(np.repeat(wrong, counts), first + last - place, place)
    return replace(rings, xy=rings.xy[place])


def signed_areas(xy: NDArray[Any], ring_offsets: NDArray[np.int64]) -> NDArray[Any]:
    """Return twice the area of each closed ring, positive where it runs from x to y."""
    x, y = xy.T
    crosses = np.append(x[:-1] * y[1:] - x[1:] * y[:-1], 0)
    crosses[ring_offsets[1:] - 1] = 0  # from one ring's end to the next one's start
    return _sums(crosses, ring_offsets)


def offsets_of(counts: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where runs of so many begin, and where the last one ends."""
    return np.concatenate([[0], np.cumsum(np.asarray(counts, np.int64))])


def _sums(values: NDArray[Any], offsets: NDArray[np.int64]) -> NDArray[Any]:
    """Return the sum of each run ``offsets[i]:offsets[i + 1]``; no run is empty."""
    return np.asarray(np.add.reduceat(values, offsets[:-1]))


def confidence_sums(
    rings: Rings, percents: NDArray[np.uint8], valid: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Return `Regions.sums` of regions traced in an image as large as this one of percents.

    By Green's theorem a region's sum needs the integral image at its vertices only: each vertical
    edge adds what lies left of it.
    """
    columns, rows = rings.xy.T
    vertical = rings.edges() & (columns[:-1] == columns[1:])
    height, width = percents.shape
    integral = np.zeros((height + 1, width + 1), np.int32 if percents.size < 1 << 23 else np.int64)
    sums = []
    for layer in (np.where(valid, percents, 0), valid):
        np.cumsum(layer, axis=1, out=integral[1:, 1:])
        np.cumsum(integral, axis=0, out=integral)
        steps = np.where(vertical, np.diff(integral[rows, columns].astype(np.int64)), 0)
        sums.append(rings.shells_minus_holes(_sums(np.append(steps, 0), rings.ring_offsets)))
    return np.array(sums)


def simplified(rings: Rings, tolerance: float) -> Rings:
    """Return the rings simplified together; ``tolerance`` in pixels.

    The background takes no part: a border towards it belongs to one polygon alone.
    """
    # GEOS hashes all unit edges of a pixel column alike, which makes it quadratic in the scene's
    # height; turned by the exact 3-4-5 rotation they differ, and whole numbers stay whole.
    whole = noded(rings)
    x, y = whole.xy.T
    turned = replace(whole, xy=np.column_stack([3 * x - 4 * y, 4 * x + 3 * y]))
    simple = shapely.coverage_simplify(turned.geometry(), 5 * tolerance)
    _, xy, (ring_offsets, polygon_offsets) = shapely.to_ragged_array(simple)
    x, y = xy.T
    xy = np.column_stack([3 * x + 4 * y, 3 * y - 4 * x]) / 25
    return Rings(rings.values, xy, ring_offsets, polygon_offsets)


def noded(rings: Rings) -> Rings:
    """Add to every edge the vertices of other polygons that lie on it.

    GDAL leaves a vertex out where a straight border merely passes the meeting of two others.
    """
    xy = rings.xy
    span = int(xy.max(initial=0)) + 1
    found_at, found = [], []
    for along, across in ((0, 1), (1, 0)):  # horizontal edges, then vertical ones
        keys = xy[:, across] * span + xy[:, along]
        nodes = np.sort(keys)
        nodes = nodes[np.diff(nodes, prepend=-1) > 0]
        start, stop = keys[:-1], keys[1:]
        edge = (xy[:-1, across] == xy[1:, across]) & (np.abs(stop - start) > 1)
        edges = np.flatnonzero(edge & rings.edges())
        start, stop = start[edges], stop[edges]
        first = np.searchsorted(nodes, np.minimum(start, stop), "right")
        last = np.searchsorted(nodes, np.maximum(start, stop), "left")
        count = last - first
        within = np.arange(count.sum()) - np.repeat(offsets_of(count)[:-1], count)
        forward = np.repeat(stop > start, count)
        hits = np.where(
            forward, np.repeat(first, count) + within, np.repeat(last, count) - 1 - within
        )
        points = np.empty((len(hits), 2), np.int64)
        points[:, across], points[:, along] = np.divmod(nodes[hits], span)
        found.append(points)
        found_at.append(np.repeat(edges + 1, count))
    at = np.concatenate(found_at)
    added = np.searchsorted(np.sort(at), rings.ring_offsets)
    return replace(
        rings,
        xy=np.insert(rings.xy, at, np.concatenate(found), axis=0),
        ring_offsets=rings.ring_offsets + added,
    )

"""Regions of a class raster as rings in pixel coordinates: tracing, confidence, simplification."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import shapely
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning
from rasterio.features import shapes
from shapely import GeometryType

_BLOCK = 1 << 22  # pixels held at a time


@dataclass(frozen=True)
class Rings:
    """Polygons as flat arrays in pixel coordinates (x right, y down, corners are whole numbers).

    ``xy`` [points, 2] float64; polygon i owns rings ``polygon_offsets[i]:polygon_offsets[i + 1]``,
    its shell first; ring j owns points ``ring_offsets[j]:ring_offsets[j + 1]``, the first repeated
    at the end.
    """

    values: NDArray[np.int32]
    xy: NDArray[np.float64]
    ring_offsets: NDArray[np.int64]
    polygon_offsets: NDArray[np.int64]

    def geometry(self) -> NDArray[Any]:
        """Return shapely polygons [polygons]."""
        offsets = (self.ring_offsets, self.polygon_offsets)
        return np.asarray(shapely.from_ragged_array(GeometryType.POLYGON, self.xy, offsets))

    def per_polygon(self, per_ring: NDArray[Any]) -> NDArray[Any]:
        """Return shell minus holes [polygons] of a quantity of every ring [rings]."""
        signed = -np.abs(per_ring)
        signed[self.polygon_offsets[:-1]] *= -1
        return _sums(signed, self.polygon_offsets)


def trace(path: str | Path, nodata: int) -> Rings:
    """Return the 4-connected regions of a class raster's values other than 0 and nodata."""
    values: list[int] = []
    ring_counts: list[int] = []
    point_counts: list[int] = []
    blocks: list[NDArray[np.float64]] = []
    points: list[tuple[float, float]] = []
    with _open(path) as dataset:
        to_pixels = ~dataset.transform
        band = rasterio.band(dataset, 1)
        mask = band if band.dtype == "uint8" else None  # the classes mask themselves: 0 is left out
        for geometry, value in shapes(band, mask=mask, connectivity=4):
            if value in (0, nodata):
                continue
            values.append(int(value))
            ring_counts.append(len(geometry["coordinates"]))
            for ring in geometry["coordinates"]:
                point_counts.append(len(ring))
                points.extend(ring)
            if len(points) > _BLOCK // 16:
                blocks.append(np.array(points, np.float64))
                points = []
    blocks.append(np.array(points, np.float64).reshape(-1, 2))
    xs, ys = np.concatenate(blocks).T  # GDAL applies the raster's own transform: undo it
    columns = to_pixels.a * xs + to_pixels.b * ys + to_pixels.c
    rows = to_pixels.d * xs + to_pixels.e * ys + to_pixels.f
    return Rings(
        np.array(values, np.int32),
        np.rint(np.column_stack([columns, rows])),
        _offsets(point_counts),
        _offsets(ring_counts),
    )


def _open(path: str | Path) -> Any:
    with warnings.catch_warnings():  # scenes without georeferencing were warned of already
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        return rasterio.open(path)


def _offsets(counts: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(np.asarray(counts, np.int64))])


def _sums(values: NDArray[Any], offsets: NDArray[np.int64]) -> NDArray[Any]:
    """Return the sum of each run ``offsets[i]:offsets[i + 1]``; no run is empty."""
    return np.asarray(np.add.reduceat(values, offsets[:-1]))


def mean_confidence(rings: Rings, path: str | Path) -> NDArray[np.float64]:
    """Return the mean of the percents inside every polygon, 0 to 1, 3 decimals.

    By Green's theorem a region's sum needs the raster's integral image at its vertices only: each
    vertical edge adds what lies left of it. Pixels that are the raster's nodata do not count.
    """
    columns, rows = rings.xy.astype(np.int64).T
    vertical = columns[:-1] == columns[1:]
    vertical[rings.ring_offsets[1:-1] - 1] = False  # from one ring's end to the next one's start
    totals = []
    for integral in _integrals(columns, rows, path):  # of the percents, of the valid pixels
        steps = np.where(vertical, np.diff(integral), 0)
        totals.append(rings.per_polygon(_sums(np.append(steps, 0), rings.ring_offsets)))
    percents, pixels = totals
    mean = np.divide(percents, pixels, out=np.full(len(pixels), np.nan), where=pixels > 0)
    return np.asarray(np.round(mean / 100, 3))


def _integrals(
    columns: NDArray[np.int64], rows: NDArray[np.int64], path: str | Path
) -> NDArray[np.int64]:
    """Return percents and valid pixels [2, points] summed above and left of every point."""
    result = np.zeros((2, len(rows)), np.int64)
    by_row = np.argsort(rows, kind="stable")
    sorted_rows = rows[by_row]
    with _open(path) as dataset:
        width, height = dataset.width, dataset.height
        step = max(1, _BLOCK // (width + 1))
        above = np.zeros((2, width + 1), np.int64)
        for row_off in range(0, height, step):
            count = min(step, height - row_off)
            values = dataset.read(1, window=((row_off, row_off + count), (0, width)))
            valid = np.ones(values.shape, bool)
            if dataset.nodata is not None:
                valid = values != dataset.nodata
            start, stop = np.searchsorted(sorted_rows, [row_off + 1, row_off + count + 1])
            here = by_row[start:stop]
            for k, layer in enumerate((np.where(valid, values, 0), valid)):
                sums = np.zeros((count + 1, width + 1), np.int64)
                np.cumsum(layer, axis=1, out=sums[1:, 1:])
                sums[0] = above[k]
                np.cumsum(sums, axis=0, out=sums)
                result[k, here] = sums[rows[here] - row_off, columns[here]]
                above[k] = sums[-1]
    return result


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
    xy = rings.xy.astype(np.int64)
    span = int(xy.max(initial=0)) + 1
    found_at, found = [], []
    for along, across in ((0, 1), (1, 0)):  # horizontal edges, then vertical ones
        keys = xy[:, across] * span + xy[:, along]
        nodes = np.sort(keys)
        nodes = nodes[np.diff(nodes, prepend=-1) > 0]
        start, stop = keys[:-1], keys[1:]
        edge = (xy[:-1, across] == xy[1:, across]) & (np.abs(stop - start) > 1)
        edge[rings.ring_offsets[1:-1] - 1] = False
        edges = np.flatnonzero(edge)
        start, stop = start[edges], stop[edges]
        first = np.searchsorted(nodes, np.minimum(start, stop), "right")
        last = np.searchsorted(nodes, np.maximum(start, stop), "left")
        count = last - first
        within = np.arange(count.sum()) - np.repeat(_offsets(count)[:-1], count)
        forward = np.repeat(stop > start, count)
        hits = np.where(
            forward, np.repeat(first, count) + within, np.repeat(last, count) - 1 - within
        )
        points = np.empty((len(hits), 2), np.float64)
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

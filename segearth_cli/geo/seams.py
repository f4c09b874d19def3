"""Regions of a class raster that go on from strip to strip: their pieces joined to one polygon.

A raster is traced strip by strip: memory holds a strip and the regions that go on below it,
whatever the raster's height.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray

from segearth_cli.geo.outlines import (
    Regions,
    Rings,
    offsets_of,
    ranges,
    regions_of,
    runs,
    signed_areas,
    together,
)
from segearth_cli.geo.writer import writing

STRIP = 1 << 22  # pixels
FEWEST_ROWS = 64  # of a strip: seams cost time


def whole_regions(
    classes_path: str | Path, confidence_path: str | Path, nodata: int
) -> Iterator[Regions]:
    """Yield the 4-connected regions of a class raster's values but 0 and nodata, some at a time.

    They come as they end, from the top; each time those that end in a strip.
    """
    with ExitStack() as stack:
        rasters = []
        for path in (classes_path, confidence_path):
            with writing(Path(path)):
                rasters.append(stack.enter_context(rasterio.open(path)))
        width, height = rasters[0].width, rasters[0].height
        step = max(FEWEST_ROWS, STRIP // width)
        seams = _Seams(width, step)
        for top in range(0, height, step):
            window = ((top, min(height, top + step)), (0, width))
            with writing(Path(classes_path)):
                classes, percents = (raster.read(1, window=window) for raster in rasters)
            valid = percents != rasters[1].nodata
            pieces = regions_of(classes, nodata, percents, valid, top)
            yield seams.push(pieces, top, is_last=top + step >= height)


class _Seams:
    """Pieces of regions above a seam, each joined to what it meets below.

    Args:
        width: of the raster, in pixels.
        step: rows of a strip.
    """

    def __init__(self, width: int, step: int) -> None:
        self._width = width
        self._step = step
        self._unfinished: list[list[Regions]] = []  # pieces of each region that goes on below
        self._above = np.full(width, -1)  # which of them is above each column of the seam

    def push(self, pieces: Regions, top: int, is_last: bool) -> Regions:
        """Take what was traced in the strip from row ``top`` on; return the regions that end."""
        region = self._numbers(pieces.rings, top)
        own = region[len(self._unfinished) :]  # of each piece
        bottom = np.full(self._width, -1)
        if not is_last:
            bottom = _along(pieces.rings, top + self._step, self._width)
        reaches = np.flatnonzero(bottom >= 0)
        goes_on, place = np.unique(own[bottom[reaches]], return_inverse=True)

        is_alone = (np.bincount(region)[own] == 1) & ~np.isin(own, goes_on)
        parts = self._parts(region, pieces, np.flatnonzero(~is_alone))
        self._unfinished = [parts.pop(number) for number in goes_on.tolist()]
        self._above = np.full(self._width, -1)
        self._above[reaches] = place
        ended = [_joined(joint, self._step) for joint in parts.values()]
        return together([pieces.take(np.flatnonzero(is_alone)), *ended])

    def _numbers(self, rings: Rings, top: int) -> NDArray[np.int64]:
        """The region of each open one and then of each new piece, now that they have met."""
        below = _along(rings, top, self._width)
        values = np.array([parts[0].rings.values[0] for parts in self._unfinished], np.int32)
        met = np.flatnonzero((self._above >= 0) & (below >= 0))
        met = met[values[self._above[met]] == rings.values[below[met]]]
        pairs = np.unique([self._above[met], len(values) + below[met]], axis=1)
        return _connected(len(values) + len(rings.values), pairs.T.tolist())

    def _parts(
        self, region: NDArray[np.int64], pieces: Regions, joint: NDArray[np.int64]
    ) -> dict[int, list[Regions]]:
        """The pieces of each region: the open ones' and the new ones that are ``joint``."""
        parts: dict[int, list[Regions]] = {}
        for number, known in zip(region.tolist(), self._unfinished, strict=False):
            fewer, more = sorted((parts.get(number, []), known), key=len)
            more.extend(fewer)  # a region of many strips is not copied whenever it grows
            parts[number] = more
        own = region[len(self._unfinished) + joint]
        order = np.argsort(own, kind="stable")
        numbers, first = np.unique(own[order], return_index=True)
        for number, some in zip(numbers.tolist(), np.split(joint[order], first)[1:], strict=True):
            parts.setdefault(number, []).append(pieces.take(some))
        return parts


def _along(rings: Rings, row: int, width: int) -> NDArray[np.int64]:
    """Return which polygon has an edge along a row of corners, at each column; else -1."""
    x, y = rings.xy.T
    edges = np.flatnonzero(rings.edges() & (y[:-1] == row) & (y[1:] == row))
    ring = np.searchsorted(rings.ring_offsets, edges, "right") - 1
    polygon = np.searchsorted(rings.polygon_offsets, ring, "right") - 1
    ends = np.sort(np.stack([x[edges], x[edges + 1]]), axis=0)
    found = np.full(width, -1)
    found[ranges(ends[0], ends[1] - ends[0])] = np.repeat(polygon, ends[1] - ends[0])
    return found


def _connected(count: int, pairs: list[list[int]]) -> NDArray[np.int64]:
    """Return for each of so many things the least of those it is connected to by pairs."""
    least = list(range(count))

    def root(thing: int) -> int:
        while least[thing] != thing:
            least[thing] = thing = least[least[thing]]
        return thing

    for one, other in pairs:
        low, high = sorted((root(one), root(other)))
        least[high] = low
    return np.array([root(thing) for thing in range(count)], np.int64)


def _joined(parts: list[Regions], step: int) -> Regions:
    """Return the pieces of one region as one polygon.

    Where pieces meet at a seam their edges run in opposite directions, and cancel. What is left is
    linked to rings again.
    """
    if len(parts) == len(parts[0].rings.values) == 1:
        return parts[0]
    pieces = together(parts)
    rings = pieces.rings
    x, y = rings.xy.T
    span = int(x.max()) + 1
    corners = y * span + x
    leads = rings.edges()
    at_seam = leads & (y[:-1] == y[1:]) & (y[:-1] % step == 0)
    others = leads & ~at_seam
    left = _uncancelled(corners[:-1][at_seam], corners[1:][at_seam])
    start = np.concatenate([corners[:-1][others], left[0]])
    end = np.concatenate([corners[1:][others], left[1]])

    delta = end - start
    direction = np.where(np.abs(delta) < span, 1, 2) * np.sign(delta)  # of x, or of y
    order, rings_at = _in_ring_order(start, end, direction)
    before = np.arange(-1, len(order) - 1)
    before[rings_at[:-1]] = rings_at[1:] - 1
    turns = direction[order] != direction[order][before]
    counts = np.add.reduceat(turns, rings_at[:-1], dtype=np.int64)
    corners, firsts = start[order][turns], offsets_of(counts)
    corners = np.insert(corners, firsts[1:], corners[firsts[:-1]])  # each ring's first one, again
    xy, ring_offsets = np.stack([corners % span, corners // span], axis=1), offsets_of(counts + 1)

    is_hole = signed_areas(xy, ring_offsets) > 0
    points, ring_offsets = runs(ring_offsets, np.argsort(is_hole, kind="stable"))
    joined = Rings(rings.values[:1], xy[points], ring_offsets, np.array([0, len(is_hole)]))
    return Regions(joined, pieces.sums.sum(axis=1, keepdims=True))


def _uncancelled(start: NDArray[np.int64], end: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return what edges along rows, by their corners' numbers, leave of opposite ones [2, edges].

    Corners are numbered row by row.
    """
    corners, place = np.unique(np.concatenate([start, end]), return_inverse=True)
    begin, stop = (
        np.bincount(part, minlength=len(corners)) for part in np.split(place, [len(start)])
    )
    net = np.cumsum(begin - stop)[:-1]
    low, high = corners[:-1], corners[1:]
    return np.where(net > 0, [low, high], [high, low])[:, net != 0]


def _in_ring_order(
    start: NDArray[np.int64], end: NDArray[np.int64], direction: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return edges in the order of the rings that they make, and where each ring begins.

    Where four edges meet, two parts of the region touch at a corner. There a ring turns to the side
    that is not the region's, so that holes touch each other or the shell, and no ring itself.

    Args:
        start, end: corners of each edge.
        direction: of each: 1 and -1 along x, 2 and -2 along y.
    """
    by_start = np.argsort(start, kind="stable")
    low = np.searchsorted(start[by_start], end)
    follower, other = by_start[low], by_start[np.minimum(low + 1, len(start) - 1)]
    is_fork = (other != follower) & (start[other] == end)
    to_the_left = np.array([0, -2, 1, -1, 2])[direction]  # the last two are of -2 and -1
    is_wrong = is_fork & (direction[follower] == to_the_left)
    following = np.where(is_wrong, other, follower).data
    order = np.empty(len(start), np.int64)
    out, place, rings_at = order.data, 0, []
    free = bytearray(b"\1") * len(start)
    for first in range(len(start)):
        if free[first]:
            rings_at.append(place)
        edge = first
        while free[edge]:
            free[edge] = 0
            out[place] = edge
            place += 1
            edge = following[edge]
    return order, np.array([*rings_at, place])

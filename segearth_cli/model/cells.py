"""Cells: parts of a scene that several overlapping windows see, doubled with the same kernels.

A cell is half a window wide and high; up to four windows see it, each of which has it in another
of its quarters. Its kernels are computed once, with the pixels around it. Along a window's border,
where the window sees its own reflection instead, they differ: there they are computed again, for
the two windows that have that border (or the one that has both). The results are those of each
window alone, but for borders that windows fade out towards: what little they count there has the
kernels of the inside.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import compress, groupby, product
from typing import Generic, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from segearth_cli.geo.tiling import WindowGrid
from segearth_cli.model.fast_upsampler import FastUpsampler
from segearth_cli.model.runs import TILE, Block, Chunk, Run, inner_maps, reach, runs
from segearth_cli.model.sums import RollingSums
from segearth_cli.model.tiles import TileKernels, repeat_borders
from segearth_cli.model.windows import MARGIN, WindowRow
from segearth_cli.stages import stage

SHARED = 2  # doublings, the last ones
# share of a map that a window may have along its border, where it goes by the inside's kernels
FADED = {torch.float32: 0.01, torch.float16: 0.01, torch.bfloat16: 0.03}
CELLS = 16  # at once
WINDOWS = 16  # at once, in the doublings before

Quarter = tuple[int, int]  # of a window: 0 or 1 down, 0 or 1 across


@dataclass(frozen=True)
class Side:
    """How a part of a cell lies along one direction: inside, or along the border of windows.

    Attributes:
        run: its tiles.
        pixels: the cell's pixels under it and ``radius`` around it, reflected at the border.
        halves: of windows, those that the part is like this for.
    """

    run: Run
    pixels: tuple[int, ...]
    halves: tuple[int, ...]


Sides = tuple[Side, ...]  # the inside first


@lru_cache(maxsize=8)
def sides(size: int, radius: int) -> Sides:
    """Inside, a window's first border and its last, along a cell of ``size`` pixels."""
    tiles = size // TILE
    along = runs(8 * TILE, radius)
    low, high = along[0].maps[:radius], along[-1].maps[TILE - radius :]
    first = tuple(abs(pixel) for pixel in range(-radius, 2 * radius))
    last = tuple(size - 1 - pixel for pixel in reversed(first))
    inner = Run(0, tiles, 0, TILE, inner_maps(radius))
    return (
        Side(inner, tuple(range(-radius, size + radius)), (0, 1)),
        Side(Run(0, 1, 0, radius, low), first, (0,)),
        Side(Run(tiles - 1, tiles, TILE - radius, radius, high), last, (1,)),
    )


def cell_sums(
    kernels: TileKernels, image: Tensor, along: tuple[Sides, Sides], quarters: dict[Quarter, Tensor]
) -> Iterator[tuple[Chunk, tuple[Quarter, ...], Tensor]]:
    """The features of cells' pixels after a doubling, for each window that sees them.

    Args:
        kernels: of the module that doubles.
        image: cells with ``radius`` pixels around them, B x H x W x 3.
        along: what lies along the cells, down and across; see `sides`.
        quarters: the windows' coarse features of the cells, with a margin of ``reach``, by the
            quarter of the window that the cell is: B x h x w x C.

    Yields:
        Chunks of pixels, the quarters that they are for, and pixels x quarters x C. What comes
        later replaces what came before (`final_weights` counts nothing twice).
    """
    radius = kernels.radius
    parts = sorted(product(*along), key=lambda pair: len(pair[0].halves) + len(pair[1].halves))
    for rows, columns in reversed(parts):  # the inside, then borders, then corners
        own = tuple(q for q in product(rows.halves, columns.halves) if q in quarters)
        if not own:
            continue
        part = image
        for dim, side in ((1, rows), (2, columns)):
            if not side.run.is_inner:
                index = torch.tensor(side.pixels, device=image.device) + radius
                part = part.index_select(dim, index)
        block = Block(rows.run, columns.run)
        for chunk, sums in kernels.sums(part, [quarters[q] for q in own], block):
            yield chunk, own, sums


def final_weights(
    block: Block,
    along: tuple[Sides, Sides],
    quarters: Sequence[Quarter],
    weights: Sequence[Tensor],
) -> Tensor:
    """What windows count in the pixels of a block, nothing where a later block replaces them.

    Args:
        block: one of those of ``cell_sums``.
        along: what lies along the cell, down and across.
        quarters: the windows, by the quarter of each that the cell is.
        weights: of a window's rows and of its columns.

    Returns:
        Tiles down x across x pixels of a tile down x across x quarters.
    """

    def along_side(run: Run, others: Sides, half: int, line: Tensor) -> Tensor:
        own = line.chunk(2)[half].clone()
        for side in others:
            if run.is_inner and not side.run.is_inner and half in side.halves:
                side.run.by_tile(own).zero_()
        return run.by_tile(own)

    runs = (block.rows, block.columns)
    parts = []
    for quarter in quarters:
        down, across = map(along_side, runs, along, quarter, weights)
        parts.append(down[:, None, :, None] * across[None, :, None, :])
    return torch.stack(parts, dim=-1)


def border_shares(
    weights: NDArray[np.float32], sums: NDArray[np.float32], first: int, depth: int
) -> tuple[float, float]:
    """What share windows have of a map beside their borders, at most.

    Args:
        weights: of a window along a side.
        sums: of all windows along the scene's side.
        first: the first pixel of a cell, where one window begins; another one ends with the cell.
        depth: pixels that lie beside a border.
    """
    end = first + len(weights) // 2
    low = weights[:depth] / sums[first : first + depth]
    high = weights[-depth:] / sums[end - depth : end]
    return float(low.max()), float(high.max())


def shares_cells(grid: WindowGrid, fast: FastUpsampler) -> bool:
    """Whether windows fall into cells that they share: whole, half overlapping, on whole tiles."""
    window = grid.window
    doublings = len(fast.kernels)
    coarsest = TILE << (SHARED - 1)  # a cell's tiles before the last doubling
    return (
        doublings >= SHARED
        and fast.patch == 1 << doublings
        and window == 2 * grid.stride
        and grid.stride % coarsest == 0
        and window % fast.patch == 0
        and window >= fast.patch * fast.smallest_grid
        and (grid.window_height, grid.window_width) == (window, window)
        and all(2 < kernels.radius <= TILE for kernels in fast.kernels[-SHARED:])
    )


def even_columns(grid: WindowGrid) -> list[range]:
    """Indices of the windows of a row that lie a stride apart: all, or all but the last one."""
    columns = grid.columns
    if len(columns) > 1 and columns[-1] - columns[-2] != grid.stride:
        return [range(len(columns) - 1), range(len(columns) - 1, len(columns))]
    return [range(len(columns))]


@dataclass
class CellRow:
    """A row of windows between the shared doublings.

    The windows stand between two empty ones, so that every cell has a window on either side.

    Attributes:
        row: the windows' first row in the scene.
        there: which windows have data.
        coarse: coordinates before the first shared doubling, windows x h x w x C.
        fine: before the second, likewise; filled cell by cell.
        bias: windows x Q.
        guides: the image under the windows and ``MARGIN`` pixels around them, normalised, and
            the same at half its resolution: H x W x 3.
    """

    row: int
    there: list[bool]
    coarse: Tensor
    fine: Tensor
    bias: Tensor
    guides: list[Tensor]


AnyRow = TypeVar("AnyRow", bound=CellRow)


class CellRows(ABC, Generic[AnyRow]):
    """The shared doublings of windows that lie a stride apart, row by row.

    Args:
        fast: the upsampler.
        grid: where the windows lie.
        sums: what the logits are added to.
        own: the windows of a row that are looked at.
    """

    def __init__(
        self, fast: FastUpsampler, grid: WindowGrid, sums: RollingSums, own: range
    ) -> None:
        self._fast = fast
        self._grid = grid
        self._sums = sums
        self._own = own
        self._left = grid.columns[own[0]]  # column of pixels, in the scene
        self._above: AnyRow | None = None
        self._before: AnyRow | None = None

    def push(self, row: WindowRow) -> None:
        """Take a row, and add what is final: what the row before it gives in its own cells.

        A cell needs the windows above and below it, and its last doubling the cells around it.
        """
        if self._before is not None and row.row - self._before.row != self._grid.stride:
            self.flush()
        with stage("upsampler"):
            current = self._start(row)
            self._double(self._before, current)
            if self._before is not None:
                self._add(self._above, self._before)
        self._above, self._before = self._before, current

    def flush(self) -> None:
        """Add all that is left of the rows that were taken."""
        if self._before is not None:
            with stage("upsampler"):
                self._double(self._before, None)
                self._add(self._above, self._before)
                self._add(self._before, None)
        self._above = self._before = None

    @abstractmethod
    def _start(self, row: WindowRow) -> AnyRow:
        """A row's windows after the doublings that they do alone, side by side."""

    @abstractmethod
    def _double(self, upper: AnyRow | None, lower: AnyRow | None) -> None:
        """The first shared doubling of the cells between two rows of windows."""

    @abstractmethod
    def _add(self, upper: AnyRow | None, lower: AnyRow | None) -> None:
        """The last doubling of the cells between two rows of windows; their logits are summed."""

    def _image_of(self, row: WindowRow) -> Tensor:
        """The image under a row's windows and ``MARGIN`` pixels around them: 3 x H x W."""
        left = self._left - self._grid.columns[0]
        width = (len(self._own) + 1) * self._grid.stride + 2 * MARGIN
        return row.image[:, :, left : left + width]

    def _top(self, upper: AnyRow | None, lower: AnyRow | None) -> int:
        """First row of pixels of the cells between two rows of windows."""
        if lower is not None:
            return lower.row
        assert upper is not None
        return upper.row + self._grid.stride

    def _guide_of(
        self, halvings: int, radius: int, upper: AnyRow | None, lower: AnyRow | None, cells: slice
    ) -> Tensor:
        """The image under cells between two rows of windows, and ``radius`` around: h x w x 3."""
        row = lower or upper
        assert row is not None
        size = self._grid.stride >> halvings
        top = (MARGIN + self._top(upper, lower) - row.row >> halvings) - radius
        left = (MARGIN >> halvings) + cells.start * size - radius
        width = (cells.stop - cells.start) * size + 2 * radius
        return row.guides[halvings][top : top + size + 2 * radius, left : left + width]

    def _wanted(
        self, upper: AnyRow | None, lower: AnyRow | None, most: int, more: int = 0
    ) -> Iterator[slice]:
        """Neighbouring cells that a window sees, within ``more`` pixels of those asked for.

        At most ``most`` of them at once.
        """
        first, end = self._grid.columns_wanted
        size = self._grid.stride
        rows = [row for row in (upper, lower) if row is not None]
        cells = [
            cell
            for cell in range(len(self._own) + 1)
            if any(any(row.there[cell : cell + 2]) for row in rows)
            and first - more < self._left + (cell + 1) * size
            and self._left + cell * size < end + more
        ]
        start = 0
        for place in range(1, len(cells) + 1):
            ends = place == len(cells) or cells[place] > cells[place - 1] + 1
            if ends or place - start == most:
                yield slice(cells[start], cells[place - 1] + 1)
                start = place


class SharedRow(CellRow):
    """The same for products of matrices; its coordinates have a margin."""

    def quarters(
        self, features: Tensor, down: int, cells: slice, part: int, more: int
    ) -> dict[Quarter, Tensor]:
        """The halves of windows that the cells between them are, ``more`` pixels larger."""
        return {
            (down, across): features[
                cells.start + 1 - across : cells.stop + 1 - across,
                down * part : (down + 1) * part + more,
                across * part : (across + 1) * part + more,
            ]
            for across in (0, 1)
        }


class Cells(CellRows[SharedRow]):
    """The shared doublings as products of matrices (see `tiles`)."""

    def __init__(
        self, fast: FastUpsampler, grid: WindowGrid, sums: RollingSums, own: range
    ) -> None:
        super().__init__(fast, grid, sums, own)
        self._weights: dict[tuple[Block, tuple[Sides, Sides], tuple[Quarter, ...]], Tensor] = {}

    def _start(self, row: WindowRow) -> SharedRow:
        results = {i - self._own[0] + 1: row.results.pop(i) for i in self._own if i in row.results}
        there = [place in results for place in range(len(self._own) + 2)]
        channels = max([one.shape[-1] for one, _ in results.values()], default=1)
        first, last = self._fast.kernels[-SHARED:]
        window = self._grid.window
        coarse, fine = (
            row.image.new_empty(
                len(there), *[side + 2 * reach(kernels.radius)] * 2, channels, dtype=kernels.dtype
            )
            for side, kernels in ((window >> 2, first), (window >> 1, last))
        )
        image = self._image_of(row)
        own_guide = F.avg_pool2d(image, 1 << SHARED)  # of the doublings that they do alone
        guides = guides_of(image)
        bias = row.image.new_zeros(len(there), self._fast.coordinates.queries)
        for place, is_there in enumerate(there):
            if not is_there:
                coarse[place], fine[place] = 0, 0
        inside = slice(reach(first.radius), -reach(first.radius))
        places = list(results)
        for start in range(0, len(places), WINDOWS):
            some = places[start : start + WINDOWS]
            patches = [
                F.pad(c, (0, channels - c.shape[-1])) for c, _ in (results[place] for place in some)
            ]
            images = torch.stack([self._window(own_guide, place) for place in some])
            halfway = self._fast.coarse(torch.stack(patches), images, SHARED)
            for place, one in zip(some, halfway, strict=True):
                coarse[place, inside, inside], bias[place] = one, results[place][1]
        repeat_borders(coarse, reach(first.radius))
        return SharedRow(row.row, there, coarse, fine, bias, guides)

    def _window(self, guide: Tensor, place: int) -> Tensor:
        """What lies under a window, of pixels as large as 4: 3 x h x w."""
        left = (MARGIN + (place - 1) * self._grid.stride) >> SHARED
        top, size = MARGIN >> SHARED, self._grid.window >> SHARED
        return guide[:, top : top + size, left : left + size]

    def _double(self, upper: SharedRow | None, lower: SharedRow | None) -> None:
        kernels, after = self._fast.kernels[-SHARED:]
        size, margin = self._grid.stride // 2, reach(after.radius)
        same_channels(upper, lower)
        # the last doubling looks at the cells around those that are asked for
        for cells, along in self._batches(kernels, 1, upper, lower, more=self._grid.stride):
            sources: dict[Quarter, Tensor] = {}
            targets: dict[Quarter, Tensor] = {}
            for down, row in ((0, lower), (1, upper)):
                if row is not None:
                    around = 2 * reach(kernels.radius)
                    sources |= row.quarters(row.coarse, down, cells, size // 2, around)
                    inside = row.fine[:, margin:, margin:]
                    targets |= row.quarters(inside, down, cells, size, 0)
            image = self._image(kernels, 1, upper, lower, cells)
            for chunk, own, sums in cell_sums(kernels, image, along, sources):
                for index, quarter in enumerate(own):
                    chunk.write(targets[quarter], sums[:, index])
        if upper is not None:
            repeat_borders(upper.fine, margin)

    def _add(self, upper: SharedRow | None, lower: SharedRow | None) -> None:
        kernels, size = self._fast.kernels[-1], self._grid.stride
        same_channels(upper, lower)
        for cells, along in self._batches(kernels, 0, upper, lower):
            sources: dict[Quarter, Tensor] = {}
            there: dict[Quarter, Tensor] = {}  # cells
            bias: dict[Quarter, Tensor] = {}  # cells x Q
            for down, row in ((0, lower), (1, upper)):
                if row is not None:
                    around = 2 * reach(kernels.radius)
                    sources |= row.quarters(row.fine, down, cells, size // 2, around)
                    for across in (0, 1):
                        windows = slice(cells.start + 1 - across, cells.stop + 1 - across)
                        bias[down, across] = row.bias[windows]
                        there[down, across] = row.bias.new_tensor(row.there[windows])
            image = self._image(kernels, 0, upper, lower, cells)
            column = self._left + cells.start * size
            total = self._sums.part(self._top(upper, lower), column, size, len(image) * size)
            by_cell = total.unflatten(2, (len(image), size)).permute(2, 1, 3, 0)  # n h w Q
            for chunk, own, sums in cell_sums(kernels, image, along, sources):
                some = chunk.images
                weights = self._final_weights(chunk.block, along, own)[chunk.rows].flatten(0, 3)
                weights = weights * torch.stack([there[q][some] for q in own], dim=-1)[:, None]
                coordinates = sums.unflatten(0, weights.shape[:2])
                logits = self._fast.coordinates.blended(coordinates, weights)  # n Q pixels
                own_bias = torch.stack([bias[q][some] for q in own], dim=-1)
                logits.baddbmm_(own_bias, weights.mT, alpha=-1)
                chunk.add(by_cell, logits.mT)

    def _batches(
        self,
        kernels: TileKernels,
        halvings: int,
        upper: SharedRow | None,
        lower: SharedRow | None,
        more: int = 0,
    ) -> Iterator[tuple[slice, tuple[Sides, Sides]]]:
        """Cells as of `_wanted` that are alike, with what lies along them, down and across.

        That is the inside, and such borders of windows as count there.
        """
        stride, grid = self._grid.stride, self._grid
        inside, *borders = sides(stride >> halvings, kernels.radius)

        def along(side: int, first: int) -> Sides:
            weights, sums = grid.window_weights[side], grid.weight_per_pixel[side]
            shares = border_shares(weights, sums, first, kernels.radius << halvings)
            return (inside, *compress(borders, (s > FADED[kernels.dtype] for s in shares)))

        down = along(0, self._top(upper, lower))
        for cells in self._wanted(upper, lower, CELLS, more):
            every = range(cells.start, cells.stop)
            for across, alike in groupby(every, lambda c: along(1, self._left + c * stride)):
                first, *others = alike
                yield slice(first, first + len(others) + 1), (down, across)

    def _final_weights(
        self, block: Block, along: tuple[Sides, Sides], quarters: tuple[Quarter, ...]
    ) -> Tensor:
        """`final_weights` of the last doubling, kept."""
        key = (block, along, quarters)
        if key not in self._weights:
            lines = [torch.from_numpy(c).to(self._sums.device) for c in self._grid.window_weights]
            self._weights[key] = final_weights(*key, lines)
        return self._weights[key]

    def _image(
        self,
        kernels: TileKernels,
        halvings: int,
        upper: SharedRow | None,
        lower: SharedRow | None,
        cells: slice,
    ) -> Tensor:
        """Cells between two rows of windows, and what lies around them: cells x h x w x 3."""
        radius, size = kernels.radius, self._grid.stride >> halvings
        part = self._guide_of(halvings, radius, upper, lower, cells)
        return part.unfold(1, size + 2 * radius, size).permute(1, 0, 3, 2).contiguous()


def guides_of(image: Tensor) -> list[Tensor]:
    """An image, and the same at half its resolution, for `CellRow`: 3 x H x W -> H x W x 3."""
    return [part.movedim(0, -1).contiguous() for part in (image, F.avg_pool2d(image, 2))]


def same_channels(upper: CellRow | None, lower: CellRow | None) -> None:
    """Fill up the row whose windows needed fewer coordinates with zeros."""
    rows = [row for row in (upper, lower) if row is not None]
    channels = max(row.coarse.shape[-1] for row in rows)
    for row in rows:
        more = channels - row.coarse.shape[-1]
        if more:
            row.coarse, row.fine = (F.pad(part, (0, more)) for part in (row.coarse, row.fine))

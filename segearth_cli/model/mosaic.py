"""Overlapping windows over a scene, their logits summed where they lie.

The kernels of the upsampler's last two doublings take most of its time and depend on the image
alone: windows that overlap by half share them, cell by cell (see `cells`). All others are added
one by one.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from segearth_cli.geo.tiling import WindowGrid
from segearth_cli.model.cells import Quarter, cell_sums
from segearth_cli.model.fast_upsampler import FastUpsampler
from segearth_cli.model.segmenter import Segmenter
from segearth_cli.model.tiles import (
    TILE,
    TileKernels,
    reach,
    repeat_borders,
)
from segearth_cli.stages import stage

SHARED = 2  # doublings, the last ones
MARGIN = 16  # pixels of the scene around a cell that its kernels look at, and to spare
CELLS = 8  # at once
WINDOWS = 16  # at once, in the doublings before
MOST_WAITING = 2  # rows of windows that wait for a pass to fill up


@dataclass(frozen=True)
class Strip:
    """A row of windows as it is read.

    Attributes:
        row: the windows' first row in the scene.
        image: 3 x rows x columns in [0, 1], ``MARGIN`` pixels more than the windows on each side.
        has_data: of each window.
    """

    row: int
    image: NDArray[np.float32]
    has_data: tuple[bool, ...]


@dataclass
class WindowRow:
    """A row of windows on its way through the network.

    Attributes:
        row: the windows' first row in the scene.
        image: the strip's, normalised, on the device.
        results: what the network gave for each window that has data: its logits, Q x h x w, or
            where kernels are shared its coordinates, h x w x C, and bias, Q.
        missing: windows that have not been through the network yet.
    """

    row: int
    image: Tensor
    results: dict[int, tuple[Tensor, ...]] = field(default_factory=dict)
    missing: int = 0

    def window(self, grid: WindowGrid, index: int) -> Tensor:
        """The image under a window, 3 x h x w."""
        column = MARGIN + grid.columns[index] - grid.columns[0]
        rows = slice(MARGIN, MARGIN + grid.window_height)
        return self.image[:, rows, column : column + grid.window_width]


def mean_logits(
    strips: Iterator[Strip],
    segmenter: Segmenter,
    grid: WindowGrid,
    size: int,
    progress: Callable[[int], object] = lambda windows: None,
) -> Iterator[Tensor]:
    """The scene's logits from top to bottom, Q x rows x W, as soon as rows are final.

    Args:
        strips: one for each row of windows, from the top.
        segmenter: the network.
        grid: where the windows lie.
        size: windows in a pass.
        progress: is told of every row's windows.
    """
    sums = RollingSums(grid, len(segmenter.text), segmenter.device)
    fast = segmenter.fast_upsampler
    adders: list[Cells | Windows] = [Windows(grid, sums)]
    shares = fast is not None and shares_cells(grid, len(fast.kernels))
    if fast is not None and shares:
        adders = [Cells(fast, grid, sums, own) for own in even_columns(grid)]
    ends = iter([*grid.rows[1:], grid.height])
    is_first = True
    for row in encoded_rows(strips, segmenter, grid, size, shares):
        for adder in adders:
            adder.push(row)
        progress(len(grid.columns))
        if not is_first:
            yield sums.finish(next(ends))
        is_first = False
    for adder in adders:
        adder.flush()
    yield sums.finish(next(ends))


def image_logits(
    segmenter: Segmenter, image: NDArray[np.float32], window: int, stride: int, size: int = 1
) -> Tensor:
    """The mean logits of an image in memory: 3 x H x W in [0, 1] -> Q x H x W.

    Args:
        segmenter: the network.
        image: all of the scene.
        window, stride: in pixels; window 0 is the whole image at once.
        size: windows in a pass.
    """
    grid = WindowGrid(image.shape[1], image.shape[2], window, stride)
    padded = np.pad(image, ((0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN)), mode="edge")
    has_data = (True,) * len(grid.columns)
    height = grid.window_height + 2 * MARGIN
    strips = (Strip(row, padded[:, row : row + height], has_data) for row in grid.rows)
    with torch.inference_mode():
        return torch.cat(list(mean_logits(strips, segmenter, grid, size)), dim=1)


def even_columns(grid: WindowGrid) -> list[range]:
    """Indices of the windows of a row that lie a stride apart: all, or all but the last one."""
    columns = grid.columns
    if len(columns) > 1 and columns[-1] - columns[-2] != grid.stride:
        return [range(len(columns) - 1), range(len(columns) - 1, len(columns))]
    return [range(len(columns))]


def shares_cells(grid: WindowGrid, doublings: int) -> bool:
    """Whether windows fall into cells that they share: whole, half overlapping, on whole tiles."""
    window = grid.window
    coarsest = TILE << (SHARED - 1)  # a cell's tiles before the last doubling
    return (
        doublings >= SHARED
        and window == 2 * grid.stride
        and grid.stride % coarsest == 0
        and window % (1 << doublings) == 0
        and (grid.window_height, grid.window_width) == (window, window)
    )


def encoded_rows(
    strips: Iterator[Strip], segmenter: Segmenter, grid: WindowGrid, size: int, shares: bool
) -> Iterator[WindowRow]:
    """Rows of windows that have been through the network, in passes of ``size`` windows.

    Passes run on from row to row; the last one is filled up. With ``shares`` the upsampler's
    doublings are left to do.
    """
    rows: deque[WindowRow] = deque()
    waiting: list[tuple[WindowRow, int]] = []
    for strip in strips:
        image = torch.from_numpy(strip.image).to(segmenter.device)
        row = WindowRow(strip.row, segmenter.normalised(image))
        rows.append(row)
        for index, has_data in enumerate(strip.has_data):
            if has_data:
                row.missing += 1
                waiting.append((row, index))
            if len(waiting) == size:
                run_pass(waiting, segmenter, grid, size, shares)
        # A row that waits keeps its strip in memory: not too many, even without data.
        if len(rows) > MOST_WAITING and waiting:
            run_pass(waiting, segmenter, grid, size, shares)
        while rows and not rows[0].missing:
            yield rows.popleft()
    if waiting:
        run_pass(waiting, segmenter, grid, size, shares)
    yield from rows


def run_pass(
    waiting: list[tuple[WindowRow, int]],
    segmenter: Segmenter,
    grid: WindowGrid,
    size: int,
    shares: bool,
) -> None:
    """Take the waiting windows through the network as a batch of ``size``."""
    batch = waiting[0][0].image.new_zeros(size, 3, grid.window_height, grid.window_width)
    for place, (row, index) in enumerate(waiting):
        batch[place] = row.window(grid, index)
    results: Sequence[Tensor]
    if shares and segmenter.fast_upsampler is not None:
        features, bias = segmenter.encode(batch)
        with stage("upsampler"):
            results = (segmenter.fast_upsampler.coordinates.of(features[: len(waiting)]), bias)
    else:
        results = (segmenter.window_logits(batch),)
    for place, (row, index) in enumerate(waiting):
        row.results[index] = tuple(result[place] for result in results)
        row.missing -= 1
    waiting.clear()


class RollingSums:
    """Sums of overlapping windows' logits, held only for the rows that can still change.

    Every pixel sums the same numbers in the same order, however the scene is read.
    """

    def __init__(self, grid: WindowGrid, queries: int, device: torch.device) -> None:
        self._grid = grid
        self._first_row = 0  # of the strip, in the scene
        self._left, right = grid.columns_seen
        size = (queries, grid.window_height, right - self._left)
        self._sums = torch.zeros(size, device=device)
        self.device = device
        self._down, self._across = (torch.from_numpy(c).to(device) for c in grid.windows_per_pixel)

    def add(self, row: int, column: int, logits: Tensor) -> None:
        """Add logits, Q x h x w, whose first pixel is at that row and column of the scene."""
        top, left = row - self._first_row, column - self._left
        height, width = logits.shape[1:]
        self._sums[:, top : top + height, left : left + width] += logits

    def finish(self, next_row: int) -> Tensor:
        """Rows before ``next_row`` as mean logits, Q x rows x W; they are forgotten."""
        done = next_row - self._first_row
        first, end = self._grid.columns_wanted
        count = self._down[self._first_row : next_row, None] * self._across[None, first:end]
        finished = self._sums[:, :done, first - self._left : end - self._left] / count
        keep = self._sums.shape[1] - done
        self._sums[:, :keep] = self._sums[:, done:].clone()
        self._sums[:, keep:] = 0
        self._first_row = next_row
        return finished


class Windows:
    """Windows whose logits are added one by one.

    Args:
        grid: where they lie.
        sums: what the logits are added to.
    """

    def __init__(self, grid: WindowGrid, sums: RollingSums) -> None:
        self._grid = grid
        self._sums = sums
        self._before: WindowRow | None = None

    def push(self, row: WindowRow) -> None:
        """Take a row, and add the one before it."""
        self.flush()
        self._before = row

    def flush(self) -> None:
        """Add the row that was taken."""
        if self._before is not None:
            with stage("sum"):
                for index, (logits,) in sorted(self._before.results.items()):
                    self._sums.add(self._before.row, self._grid.columns[index], logits)
        self._before = None


@dataclass
class SharedRow:
    """A row of windows between the shared doublings.

    The windows stand between two empty ones, so that every cell has a window on either side.

    Attributes:
        row: the windows' first row in the scene.
        image: the strip's, normalised.
        there: which windows have data.
        coarse: coordinates before the first shared doubling, windows x h x w x C, with a margin.
        fine: before the second, likewise; filled cell by cell.
        bias: windows x Q.
    """

    row: int
    image: Tensor
    there: list[bool]
    coarse: Tensor
    fine: Tensor
    bias: Tensor

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


class Cells:
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
        self._above: SharedRow | None = None
        self._before: SharedRow | None = None

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

    def _start(self, row: WindowRow) -> SharedRow:
        """A row's windows after the doublings that they do alone, side by side."""
        results = {i - self._own[0] + 1: row.results.pop(i) for i in self._own if i in row.results}
        there = [place in results for place in range(len(self._own) + 2)]
        channels = max([one.shape[-1] for one, _ in results.values()], default=1)
        first, last = self._fast.kernels[-SHARED:]
        window = self._grid.window
        coarse, fine = (
            row.image.new_empty(len(there), *[side + 2 * reach(kernels.radius)] * 2, channels)
            for side, kernels in ((window >> 2, first), (window >> 1, last))
        )
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
            images = [row.window(self._grid, place - 1 + self._own[0]) for place in some]
            halfway = self._fast.coarse(torch.stack(patches), torch.stack(images), SHARED)
            for place, one in zip(some, halfway, strict=True):
                coarse[place, inside, inside], bias[place] = one, results[place][1]
        repeat_borders(coarse, reach(first.radius))
        return SharedRow(row.row, row.image, there, coarse, fine, bias)

    def _double(self, upper: SharedRow | None, lower: SharedRow | None) -> None:
        """The first shared doubling of the cells between two rows of windows."""
        kernels, after = self._fast.kernels[-SHARED:]
        size, margin = self._grid.stride // 2, reach(after.radius)
        same_channels(upper, lower)
        # the last doubling looks at the cells around those that are asked for
        for cells in self._wanted(upper, lower, more=self._grid.stride):
            sources: dict[Quarter, Tensor] = {}
            targets: dict[Quarter, Tensor] = {}
            for down, row in ((0, lower), (1, upper)):
                if row is not None:
                    around = 2 * reach(kernels.radius)
                    sources |= row.quarters(row.coarse, down, cells, size // 2, around)
                    inside = row.fine[:, margin:, margin:]
                    targets |= row.quarters(inside, down, cells, size, 0)
            image = self._image(kernels, 2, upper, lower, cells)
            for chunk, own, sums in cell_sums(kernels, image, sources):
                for index, quarter in enumerate(own):
                    chunk.write(targets[quarter], sums[:, index])
        if upper is not None:
            repeat_borders(upper.fine, margin)

    def _add(self, upper: SharedRow | None, lower: SharedRow | None) -> None:
        """The last doubling of the cells between two rows of windows; their logits are summed."""
        kernels, size = self._fast.kernels[-1], self._grid.stride
        queries = self._fast.coordinates.queries
        same_channels(upper, lower)
        for cells in self._wanted(upper, lower):
            sources: dict[Quarter, Tensor] = {}
            seen: list[tuple[Quarter, list[bool]]] = []
            bias = torch.zeros((), device=self._sums.device)
            for down, row in ((0, lower), (1, upper)):
                if row is not None:
                    around = 2 * reach(kernels.radius)
                    sources |= row.quarters(row.fine, down, cells, size // 2, around)
                    for across in (0, 1):
                        windows = slice(cells.start + 1 - across, cells.stop + 1 - across)
                        bias = bias + row.bias[windows]
                        seen.append(((down, across), row.there[windows]))
            image = self._image(kernels, 1, upper, lower, cells)
            logits = {q: image.new_empty(len(image), size, size, queries) for q in sources}
            for chunk, own, sums in cell_sums(kernels, image, sources):
                values = self._fast.coordinates.logits(sums)
                for index, quarter in enumerate(own):
                    chunk.write(logits[quarter], values[:, index])
            total = -bias[:, None, None]  # no window, no bias
            for quarter, there in seen:
                if not all(there):
                    logits[quarter] *= torch.tensor(there, device=image.device)[:, None, None, None]
                total = total + logits[quarter]
            column = self._left + cells.start * size
            self._sums.add(self._top(upper, lower), column, total.permute(3, 1, 0, 2).flatten(2))

    def _top(self, upper: SharedRow | None, lower: SharedRow | None) -> int:
        """First row of pixels of the cells between two rows of windows."""
        if lower is not None:
            return lower.row
        assert upper is not None
        return upper.row + self._grid.stride

    def _image(
        self,
        kernels: TileKernels,
        scale: int,
        upper: SharedRow | None,
        lower: SharedRow | None,
        cells: slice,
    ) -> Tensor:
        """Cells between two rows of windows, and what lies around them: cells x h x w x 3."""
        radius, size = kernels.radius, self._grid.stride // scale
        row = lower or upper
        assert row is not None
        around = scale * radius
        top = MARGIN + self._top(upper, lower) - row.row - around
        left = (
            MARGIN + self._left - self._grid.columns[0] + cells.start * self._grid.stride - around
        )
        width = (cells.stop - cells.start) * self._grid.stride + 2 * around
        part = row.image[:, top : top + self._grid.stride + 2 * around, left : left + width]
        part = F.avg_pool2d(part, scale)
        return part.unfold(2, size + 2 * radius, size).permute(2, 1, 3, 0)

    def _wanted(
        self, upper: SharedRow | None, lower: SharedRow | None, more: int = 0
    ) -> Iterator[slice]:
        """Neighbouring cells that a window sees, and within ``more`` pixels of those asked for."""
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
            if ends or place - start == CELLS:
                yield slice(cells[start], cells[place - 1] + 1)
                start = place


def same_channels(upper: SharedRow | None, lower: SharedRow | None) -> None:
    """Fill up the row whose windows needed fewer coordinates with zeros."""
    rows = [row for row in (upper, lower) if row is not None]
    channels = max(row.coarse.shape[-1] for row in rows)
    for row in rows:
        more = channels - row.coarse.shape[-1]
        if more:
            row.coarse, row.fine = (F.pad(part, (0, more)) for part in (row.coarse, row.fine))

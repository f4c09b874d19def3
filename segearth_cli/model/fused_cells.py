"""Cells that windows share, by the kernels for GPUs: a few launches for a row of windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from segearth_cli.geo.tiling import WindowGrid
from segearth_cli.model.cells import SHARED, CellRow, CellRows, guides_of, same_channels
from segearth_cli.model.fast_upsampler import FastUpsampler
from segearth_cli.model.fused import (
    FusedKernels,
    Guide,
    Scoring,
    Seen,
    resized,
    whole_channels,
)
from segearth_cli.model.sums import RollingSums
from segearth_cli.model.windows import MARGIN, WindowRow

CELLS_PIXELS = 32 * 112**2  # at once, about 600 MB with what is computed on the way


@dataclass
class FusedRow(CellRow):
    """A row of windows between the shared doublings, on a GPU.

    Attributes:
        flags: ``there``, one byte each.
    """

    flags: Tensor


class FusedCells(CellRows[FusedRow]):
    """The shared doublings by ``kernels``, one for each doubling of the upsampler."""

    def __init__(
        self,
        fast: FastUpsampler,
        grid: WindowGrid,
        sums: RollingSums,
        own: range,
        kernels: Sequence[FusedKernels],
    ) -> None:
        super().__init__(fast, grid, sums, own)
        self._kernels = kernels
        self._cells = max(1, CELLS_PIXELS // grid.stride**2)  # at once
        self._down, self._across = (
            torch.from_numpy(c).to(sums.device) for c in grid.window_weights
        )

    def _start(self, row: WindowRow) -> FusedRow:
        results = {i - self._own[0]: row.results.pop(i) for i in self._own if i in row.results}
        count, device = len(self._own), row.image.device
        is_there = [place in results for place in range(count)]
        flags = torch.tensor(is_there, dtype=torch.uint8).to(device)
        channels = whole_channels(max([one.shape[-1] for one, _ in results.values()], default=1))
        own = [F.pad(one, (0, channels - one.shape[-1])) for one, _ in results.values()]
        side = self._grid.window // self._fast.patch
        features = row.image.new_zeros(count, side, side, channels, dtype=self._kernels[0].dtype)
        bias = row.image.new_zeros(count + 2, self._fast.coordinates.queries)
        if results:
            places = torch.tensor(list(results)).to(device)
            features[places] = torch.stack(own).to(features.dtype)
            bias[places + 1] = torch.stack([one for _, one in results.values()])

        image = self._image_of(row)
        inside = image[:, MARGIN:-MARGIN, MARGIN:-MARGIN]
        alone = self._kernels[:-SHARED]
        for step, kernels in enumerate(alone):
            halvings = len(self._kernels) - 1 - step
            part = F.avg_pool2d(inside, 1 << halvings).movedim(0, -1).contiguous()
            side *= 2
            guide = kernels.guide(part, count, (side, side), 0, self._grid.stride >> halvings)
            windows = Seen(resized(features), flags, flags, 1)
            features = torch.empty_like(windows.features)
            kernels.double(guide, windows, features, features)
        coarse = F.pad(features, (0, 0, 0, 0, 0, 0, 1, 1))
        # all of it: what is not asked for stays 0, not a number that resizing would spread
        fine = features.new_zeros(count + 2, 2 * side, 2 * side, channels)
        there = [False, *is_there, False]
        guides = guides_of(image)
        return FusedRow(row.row, there, coarse, fine, bias, guides, F.pad(flags, (1, 1)))

    def _double(self, upper: FusedRow | None, lower: FusedRow | None) -> None:
        below, above = rows_of(upper, lower)
        for cells in self._wanted(upper, lower, self._cells, more=self._grid.stride):
            own = slice(cells.start, cells.stop + 1)
            guide = self._guide(1, upper, lower, cells)
            features = resized(below.coarse[own], above.coarse[own])
            windows = self._windows(features, upper, lower, own)
            self._kernels[-SHARED].double(guide, windows, below.fine[own], above.fine[own])

    def _add(self, upper: FusedRow | None, lower: FusedRow | None) -> None:
        below, above = rows_of(upper, lower)
        size = self._grid.stride
        for cells in self._wanted(upper, lower, self._cells):
            own = slice(cells.start, cells.stop + 1)
            features = resized(below.fine[own], above.fine[own])
            column = self._left + cells.start * size
            count = cells.stop - cells.start
            total = self._sums.part(self._top(upper, lower), column, size, count * size)
            shift, text = self._fast.coordinates.filled(features.shape[-1])
            scoring = Scoring(
                total,
                (size, total.stride(1), total.stride(0)),
                self._down,
                self._across,
                shift,
                text,
                torch.cat([below.bias[own], above.bias[own]]),
            )
            windows = self._windows(features, upper, lower, own)
            self._kernels[-1].score(self._guide(0, upper, lower, cells), windows, scoring)

    def _guide(
        self, halvings: int, upper: FusedRow | None, lower: FusedRow | None, cells: slice
    ) -> Guide:
        """What cells between two rows of windows are doubled along with."""
        kernels, size = self._kernels[-1 - halvings], self._grid.stride >> halvings
        radius, count = kernels.radius, cells.stop - cells.start
        part = self._guide_of(halvings, radius, upper, lower, cells)
        start = radius * part.shape[1] + radius
        return kernels.guide(part.contiguous(), count, (size, size), start, size)

    def _windows(
        self, features: Tensor, upper: FusedRow | None, lower: FusedRow | None, own: slice
    ) -> Seen:
        """The windows around cells, resized; a row that is none has none that are there."""
        below, above = rows_of(upper, lower)
        there = torch.cat(
            [
                row.flags[own] if is_row else torch.zeros_like(row.flags[own])
                for row, is_row in ((below, lower is not None), (above, upper is not None))
            ]
        )
        wanted = torch.ones_like(there[: own.stop - own.start - 1])
        return Seen(features, there, wanted, 2)


def rows_of(upper: FusedRow | None, lower: FusedRow | None) -> tuple[FusedRow, FusedRow]:
    """Lower and upper row, with as many channels; one that is none is the other one."""
    same_channels(upper, lower)
    below, above = lower or upper, upper or lower
    assert below is not None
    assert above is not None
    return below, above

"""Overlapping windows over a scene, their weighed logits summed where they lie.

The kernels of the upsampler's last two doublings take most of its time and depend on the image
alone: windows that overlap by half share them, cell by cell (see `cells`). All others are added
one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segearth_cli.device import float32_products
from segearth_cli.geo.tiling import WindowGrid
from segearth_cli.model.cells import CellRows, Cells, even_columns, shares_cells
from segearth_cli.model.fast_upsampler import FastUpsampler
from segearth_cli.model.fused_cells import FusedCells
from segearth_cli.model.segmenter import Segmenter
from segearth_cli.model.sums import RollingSums
from segearth_cli.model.windows import MARGIN, Strip, WindowRow, encoded_rows
from segearth_cli.stages import stage


@torch.inference_mode()
def blended_logits(
    strips: Iterator[Strip],
    segmenter: Segmenter,
    grid: WindowGrid,
    size: int,
    progress: Callable[[int], object] = lambda windows: None,
) -> Iterator[Tensor]:
    """The scene's blended logits from top to bottom, Q x rows x W, as soon as rows are final.

    Args:
        strips: one for each row of windows, from the top.
        segmenter: the network.
        grid: where the windows lie.
        size: windows in a pass.
        progress: is told of every row's windows.
    """
    sums = RollingSums(grid, len(segmenter.text), segmenter.device)
    fast = segmenter.fast_upsampler
    adders: list[CellRows[Any] | Windows] = [Windows(grid, sums)]
    shares = fast is not None and shares_cells(grid, fast)
    if fast is not None and shares:
        adders = [cells_of(fast, grid, sums, own) for own in even_columns(grid)]
    ends = iter([*grid.rows[1:], grid.height])
    is_first = True
    for row in encoded_rows(strips, segmenter, grid, size, shares):
        with float32_products(segmenter.device):
            for adder in adders:
                adder.push(row)
        progress(len(grid.columns))
        if not is_first:
            yield sums.finish(next(ends))
        is_first = False
    with float32_products(segmenter.device):
        for adder in adders:
            adder.flush()
    yield sums.finish(next(ends))


def cells_of(fast: FastUpsampler, grid: WindowGrid, sums: RollingSums, own: range) -> CellRows[Any]:
    """The cells of some of a row's windows, by what runs fastest here."""
    fused = fast.fused_for(fast.coordinates.most((grid.window // fast.patch) ** 2))
    if fused is None:
        return Cells(fast, grid, sums, own)
    return FusedCells(fast, grid, sums, own, fused)


def image_logits(
    segmenter: Segmenter, image: NDArray[np.float32], grid: WindowGrid, size: int = 1
) -> Tensor:
    """The blended logits of an image in memory: 3 x H x W in [0, 1] -> Q x H x W.

    Args:
        segmenter: the network.
        image: all of the scene.
        grid: where the windows lie.
        size: windows in a pass.
    """
    padded = np.pad(image, ((0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN)), mode="edge")
    whole = torch.from_numpy(padded)
    has_data = (True,) * len(grid.columns)
    height = grid.window_height + 2 * MARGIN
    strips = (Strip(row, whole[:, row : row + height], has_data) for row in grid.rows)
    return torch.cat(list(blended_logits(strips, segmenter, grid, size)), dim=1)


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

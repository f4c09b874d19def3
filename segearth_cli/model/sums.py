"""Sums of overlapping windows' weighed logits, as far as they can still change."""

import torch
from torch import Tensor

from segearth_cli.geo.tiling import WindowGrid


class RollingSums:
    """Sums of overlapping windows' logits, held only for the rows that can still change.

    Every pixel sums the same windows in the same order, however the scene is read.
    """

    def __init__(self, grid: WindowGrid, queries: int, device: torch.device) -> None:
        self._grid = grid
        self._first_row = 0  # of the strip, in the scene
        self._left, right = grid.columns_seen
        size = (queries, grid.window_height, right - self._left)
        self._sums = torch.zeros(size, device=device)
        self.device = device
        self._down, self._across = (torch.from_numpy(c).to(device) for c in grid.weight_per_pixel)
        down, across = (torch.from_numpy(c).to(device) for c in grid.window_weights)
        self._window_weight = down[:, None] * across

    def part(self, row: int, column: int, height: int, width: int) -> Tensor:
        """The sums of weighed logits of some pixels, to be added to: Q x h x w."""
        top, left = row - self._first_row, column - self._left
        return self._sums[:, top : top + height, left : left + width]

    def add(self, row: int, column: int, logits: Tensor) -> None:
        """Add the logits of a window, Q x h x w, weighed."""
        self.part(row, column, *logits.shape[1:]).addcmul_(logits, self._window_weight)

    def finish(self, next_row: int) -> Tensor:
        """Rows before ``next_row`` as blended logits, Q x rows x W; they are forgotten."""
        done = next_row - self._first_row
        first, end = self._grid.columns_wanted
        weight = self._down[self._first_row : next_row, None] * self._across[None, first:end]
        finished = self._sums[:, :done, first - self._left : end - self._left] / weight
        keep = self._sums.shape[1] - done
        self._sums[:, :keep] = self._sums[:, done:].clone()
        self._sums[:, keep:] = 0
        self._first_row = next_row
        return finished

"""The window grid over a scene, and the rolling blend of overlapping windows' logits."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]


def window_offsets(size: int, window: int, stride: int) -> list[int]:
    """First pixels of the windows along one side; the last one is shifted inwards to fit.

    A side shorter than a window has one window as long as the side.
    """
    if size <= window:
        return [0]
    offsets = list(range(0, size - window, stride))
    return [*offsets, size - window]


@dataclass(frozen=True)
class WindowGrid:
    """Windows over a scene of ``height`` x ``width`` pixels; ``window`` 0 is the whole scene."""

    height: int
    width: int
    window: int
    stride: int

    @property
    def rows(self) -> list[int]:
        """First row of each row of windows."""
        return window_offsets(self.height, self.window or self.height, self.stride)

    @property
    def columns(self) -> list[int]:
        """First column of each column of windows."""
        return window_offsets(self.width, self.window or self.width, self.stride)

    @property
    def window_height(self) -> int:
        """Rows of a window: fewer than ``window`` in a lower scene."""
        return min(self.window or self.height, self.height)

    @property
    def window_width(self) -> int:
        """Columns of a window: fewer than ``window`` in a narrower scene."""
        return min(self.window or self.width, self.width)

    def __len__(self) -> int:
        """Number of windows."""
        return len(self.rows) * len(self.columns)


class RollingBlend:
    """Mean of overlapping windows' logits, held only for the rows that can still change.

    Windows are added row of windows by row of windows, from left to right, so that every pixel
    sums the same numbers in the same order however the scene is read.
    """

    def __init__(self, grid: WindowGrid, queries: int) -> None:
        self.grid = grid
        self.first_row = 0  # of the strip, in the scene
        self.sums: Logits = np.zeros((queries, grid.window_height, grid.width), np.float32)
        self.windows_across = _cover(grid.columns, grid.window_width, grid.width)
        self.windows_down = _cover(grid.rows, grid.window_height, grid.height)

    def add(self, column: int, logits: Logits) -> None:
        """Add one window (Q x h x w) of the current row of windows."""
        self.sums[:, :, column : column + logits.shape[-1]] += logits

    def finish_row(self, next_row: int) -> Logits:
        """Rows that no later window touches, as mean logits, and forget them.

        Args:
            next_row: first row of the next row of windows, or the scene's height after the last.

        Returns:
            Q x rows x W.
        """
        done = next_row - self.first_row
        rows = slice(self.first_row, next_row)
        count = self.windows_down[rows, None] * self.windows_across[None, :]
        finished = self.sums[:, :done] / count
        keep = self.sums.shape[1] - done
        self.sums[:, :keep] = self.sums[:, done:].copy()
        self.sums[:, keep:] = 0
        self.first_row = next_row
        return finished

    def row_ends(self) -> Iterator[tuple[int, int]]:
        """Each row of windows' first row, and where the next one starts."""
        rows = self.grid.rows
        return zip(rows, [*rows[1:], self.grid.height], strict=True)


def _cover(offsets: list[int], length: int, size: int) -> NDArray[np.float32]:
    """How many windows cover each pixel of a side."""
    count = np.zeros(size, np.float32)
    for offset in offsets:
        count[offset : offset + length] += 1
    return count

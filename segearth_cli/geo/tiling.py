"""The window grid over a scene, and its panels."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray


def window_offsets(size: int, window: int, stride: int) -> tuple[int, ...]:
    """First pixels of the windows along one side; the last one is shifted inwards to fit.

    A side shorter than a window has one window as long as the side.
    """
    if size <= window:
        return (0,)
    return (*range(0, size - window, stride), size - window)


@dataclass(frozen=True)
class WindowGrid:
    """Windows over a scene of ``height`` x ``width`` pixels; ``window`` 0 is the whole scene.

    ``wanted`` are the columns of pixels, first and end, whose map is asked for: a panel has the
    windows that touch them. ``None`` is the whole width. ``blend`` says how much a window counts
    where several overlap: all the same (``mean``), or less towards its borders (``smooth``).
    """

    height: int
    width: int
    window: int
    stride: int
    wanted: tuple[int, int] | None = None
    blend: str = "mean"

    @cached_property
    def rows(self) -> tuple[int, ...]:
        """First row of each row of windows."""
        return window_offsets(self.height, self.window or self.height, self.stride)

    @cached_property
    def columns(self) -> tuple[int, ...]:
        """First column of each column of windows."""
        offsets = window_offsets(self.width, self.window or self.width, self.stride)
        first, end = self.columns_wanted
        return tuple(offset for offset in offsets if first - self.window_width < offset < end)

    @property
    def columns_wanted(self) -> tuple[int, int]:
        """First column of pixels whose map is asked for, and the end of them."""
        return self.wanted or (0, self.width)

    @property
    def columns_seen(self) -> tuple[int, int]:
        """First column of pixels that a window sees, and the end of them."""
        columns = self.columns
        return columns[0], columns[-1] + self.window_width

    @property
    def window_height(self) -> int:
        """Rows of a window: fewer than ``window`` in a lower scene."""
        return min(self.window or self.height, self.height)

    @property
    def window_width(self) -> int:
        """Columns of a window: fewer than ``window`` in a narrower scene."""
        return min(self.window or self.width, self.width)

    @property
    def window_pixels(self) -> int:
        """Pixels of a window."""
        return self.window_height * self.window_width

    @cached_property
    def window_weights(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """How much a window counts in each of its rows, and in each of its columns."""
        return _weights(self.window_height, self.blend), _weights(self.window_width, self.blend)

    @cached_property
    def weight_per_pixel(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """What the windows over each row of pixels count together, and over each column."""
        down, across = self.window_weights
        return _sums(self.rows, down, self.height), _sums(self.columns, across, self.width)

    def __len__(self) -> int:
        """Number of windows."""
        return len(self.rows) * len(self.columns)


def _weights(size: int, blend: str) -> NDArray[np.float32]:
    """Along a window's side; Hann's window, whose halves add up to 1, but for no pixel 0."""
    if blend == "mean":
        return np.ones(size, np.float32)
    return (np.sin(np.pi * (np.arange(size) + 0.5) / size) ** 2).astype(np.float32)


def _sums(offsets: tuple[int, ...], weights: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """Of the weights of windows, for each pixel of a side."""
    total = np.zeros(size, np.float32)
    for offset in offsets:
        total[offset : offset + len(weights)] += weights
    return total

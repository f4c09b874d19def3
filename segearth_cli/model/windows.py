"""Windows on their way through the network: rows of them in, features or logits out."""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from segearth_cli.device import is_out_of_memory, release_memory
from segearth_cli.geo.tiling import WindowGrid
from segearth_cli.model.segmenter import Segmenter
from segearth_cli.stages import stage

logger = logging.getLogger(__name__)

T = TypeVar("T")
MARGIN = 16  # pixels of the scene around windows that shared kernels look at, and to spare
MOST_WAITING = 2  # rows of windows that wait for a pass to fill up


@dataclass(frozen=True)
class Strip:
    """A row of windows as it is read.

    Attributes:
        row: the windows' first row in the scene.
        image: 3 x rows x columns in [0, 1], ``MARGIN`` pixels more than the windows on each side;
            in the memory of the machine.
        has_data: of each window.
    """

    row: int
    image: Tensor
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


def encoded_rows(
    strips: Iterator[Strip], segmenter: Segmenter, grid: WindowGrid, size: int, shares: bool
) -> Iterator[WindowRow]:
    """Rows of windows that have been through the network, in passes of ``size`` windows.

    Passes run on from row to row; the last one is filled up. With ``shares`` the upsampler's
    doublings are left to do.
    """
    rows: deque[WindowRow] = deque()
    waiting: list[tuple[WindowRow, int]] = []
    device = segmenter.device
    # of rows whose windows all have data a pass takes fewer
    most_rows = max(MOST_WAITING, -(-size // len(grid.columns)) + 1)
    for strip in strips:
        image = strip.image.to(device, non_blocking=strip.image.is_pinned())
        row = WindowRow(strip.row, segmenter.normalised(image))
        rows.append(row)
        for index, has_data in enumerate(strip.has_data):
            if has_data:
                row.missing += 1
                waiting.append((row, index))
            if len(waiting) >= min(size, segmenter.most_windows or size):
                run_pass(waiting, segmenter, grid, size, shares)
        # A row that waits keeps its strip in memory: not too many, even without data.
        if len(rows) > most_rows and waiting:
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
    """Take the waiting windows through the network in passes of ``size``, the last one filled up.

    Raises:
        RuntimeError: there is not even memory for one.
    """

    def run(at_once: int) -> int:
        windows = waiting[:at_once]
        batch = torch.stack([row.window(grid, index) for row, index in windows])
        batch = F.pad(batch, (0, 0, 0, 0, 0, 0, 0, at_once - len(windows)))
        results: Sequence[Tensor]
        if shares and segmenter.fast_upsampler is not None:
            features, bias = segmenter.encode(batch)
            with stage("upsampler"):
                results = (segmenter.fast_upsampler.coordinates.of(features[: len(windows)]), bias)
        else:
            results = (segmenter.window_logits(batch),)
        for place, (row, index) in enumerate(windows):
            row.results[index] = tuple(result[place] for result in results)
            row.missing -= 1
        return len(windows)

    while waiting:
        del waiting[: fitting(segmenter, size, run)]


def fitting(segmenter: Segmenter, size: int, run: Callable[[int], T]) -> T:
    """What ``run`` gives, which takes so many windows through the network at once.

    Those are ``size``, or as many as the device was found to have memory for: where it has too
    little, half of them, from then on.

    Raises:
        RuntimeError: there is not even memory for one.
    """
    while True:
        at_once = min(size, segmenter.most_windows or size)
        try:
            return run(at_once)
        except RuntimeError as error:
            if at_once == 1 or not is_out_of_memory(error):
                raise
        # not inside `except`, where the error keeps the failed pass's tensors
        segmenter.most_windows = at_once // 2
        release_memory(segmenter.device)
        logger.warning(
            "the device has too little memory for %d windows at once: going on with %d",
            at_once,
            at_once // 2,
        )

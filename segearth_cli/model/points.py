"""What the network says of a few of a scene's pixels: a walk through the windows that see them.

Cosines and the class token's similarities are kept apart, so that any lambda of Global Bias
Alleviation and any choice of the words can be computed from one walk.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segearth_cli.geo.tiling import WindowGrid
from segearth_cli.model.segmenter import Segmenter
from segearth_cli.model.variants import key_of, windows_of
from segearth_cli.model.windows import fitting

Read = Callable[[int, int, int, int], tuple[NDArray[np.float32], NDArray[np.bool_]]]


@dataclass(frozen=True)
class PointCosines:
    """Of N pixels and Q queries; the logits are ``cosines`` less lambda times ``similarities``.

    Attributes:
        cosines: of feature and query, the mean over the windows that see the pixel: Q x N.
        similarities: of class token and query, likewise.
        valid: whether the scene has data there: N. What has none is not looked at.
    """

    cosines: NDArray[np.float32]
    similarities: NDArray[np.float32]
    valid: NDArray[np.bool_]


@dataclass(frozen=True)
class _Seen:
    """A window with pixels in it that are asked for."""

    image: NDArray[np.float32]  # 3 x h x w
    points: NDArray[np.int64]  # their numbers
    rows: NDArray[np.int64]  # of the window
    columns: NDArray[np.int64]


def point_cosines(
    segmenter: Segmenter,
    grid: WindowGrid,
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
    read: Read,
    size: int,
    progress: Callable[[int], object] = lambda windows: None,
) -> PointCosines:
    """Take every window that sees one of the pixels through the network, once.

    Args:
        segmenter: the network.
        grid: all windows of the scene.
        rows, columns: of the pixels, from the top.
        read: gives image and validity of some rows and columns: first row, number of rows, first
            column, number of columns.
        size: windows in a pass.
        progress: is told of every pass's windows.
    """
    shape = (len(segmenter.text), len(rows))
    cosines, similarities = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    valid = np.zeros(len(rows), bool)
    alone = {key_of(segmenter): segmenter}
    own_down, own_across = grid.window_weights
    windows = _windows_seen(grid, rows, columns, read, valid)
    waiting: list[_Seen] = []

    def run(at_once: int) -> tuple[Tensor, Tensor]:
        # filled up: in half precision, products of another size round differently
        images = np.zeros((at_once, *waiting[0].image.shape), np.float32)
        for place, window in enumerate(waiting[:at_once]):
            images[place] = window.image
        pixels = segmenter.normalised(torch.from_numpy(images).to(segmenter.device))
        ((_, of_pixels, of_token),) = windows_of(alone, pixels)
        return of_pixels, of_token

    while waiting := waiting + list(islice(windows, size - len(waiting))):
        of_pixels, of_token = fitting(segmenter, size, run)
        done = waiting[: len(of_token)]
        for place, window in enumerate(done):
            weight = own_down[window.rows] * own_across[window.columns]
            cosines[:, window.points] += _at(of_pixels[place], window) * weight
            similarities[:, window.points] += of_token[place].cpu().numpy()[:, None] * weight
        waiting = waiting[len(done) :]
        progress(len(done))
    down, across = grid.weight_per_pixel
    weight = down[rows] * across[columns]
    return PointCosines(cosines / weight, similarities / weight, valid)


def _at(of_pixels: Tensor, window: _Seen) -> NDArray[np.float32]:
    """Values at the window's points: Q x h x w -> Q x n."""
    device = of_pixels.device
    rows, columns = (torch.from_numpy(x).to(device) for x in (window.rows, window.columns))
    values: NDArray[np.float32] = of_pixels[:, rows, columns].cpu().numpy()
    return values


def _windows_seen(
    grid: WindowGrid,
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
    read: Read,
    valid: NDArray[np.bool_],
) -> Iterator[_Seen]:
    """Every window with pixels that hold data, in the order in which a scene is segmented."""
    height, width = grid.window_height, grid.window_width
    offsets = np.array(grid.columns)
    for row in grid.rows:
        near = np.arange(*np.searchsorted(rows, [row, row + height]))
        if not len(near):
            continue
        own = columns[near]
        is_seen = [bool(((own >= first) & (own < first + width)).any()) for first in offsets]
        first, end = int(offsets[is_seen][0]), int(offsets[is_seen][-1]) + width
        image, mask = read(row, height, first, end - first)
        valid[near] = mask[rows[near] - row, own - first]
        near = near[valid[near]]
        for column in offsets[is_seen].tolist():
            points = near[(columns[near] >= column) & (columns[near] < column + width)]
            if len(points):
                yield _Seen(
                    image[:, :, column - first : column - first + width],
                    points,
                    rows[points] - row,
                    columns[points] - column,
                )

"""One walk through the encoder for many settings: what ``evaluate`` and ``tune`` compare.

Attentions share all blocks but the last ones, upsamplers share an attention's features, and Global
Bias Alleviation only takes off a multiple of what the class token says.
"""

from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segearth_cli.device import autocast
from segearth_cli.geo.tiling import WindowGrid
from segearth_cli.model.segmenter import Segmenter

Attention = tuple[str, int]  # its name, and how many blocks have it
Key = tuple[Attention, int]  # and which upsampler


def variant_logits(
    segmenters: Sequence[Segmenter],
    image: NDArray[np.float32],
    window: int,
    stride: int,
    size: int,
) -> list[Tensor]:
    """The mean logits of an image by each segmenter.

    Args:
        segmenters: of one vision tower, at one precision; they may differ in all else.
        image: 3 x H x W in [0, 1].
        window, stride: in pixels; window 0 is the whole image at once.
        size: windows in a pass.

    Returns:
        Q x H x W each, in float32.
    """
    cosines, similarities, count = summed(segmenters, image, window, stride, size)
    return [
        (cosines[key] - segmenter.global_bias * similarities[key[0]]) / count
        for segmenter, key in zip(segmenters, map(keys_of, segmenters), strict=True)
    ]


def keys_of(segmenter: Segmenter) -> Key:
    """What tells features apart, and what tells their cosines apart."""
    encoder = segmenter.encoder
    attention = (encoder.attention, encoder.modulated_blocks)
    return attention, 0 if segmenter.upsampler is None else id(segmenter.upsampler)


def summed(
    segmenters: Sequence[Segmenter], image: NDArray[np.float32], window: int, stride: int, size: int
) -> tuple[dict[Key, Tensor], dict[Attention, Tensor], Tensor]:
    """Sums over the windows: cosines by upsampler, similarities by attention; windows per pixel.

    Q x H x W each, and H x W.
    """
    first = segmenters[0]
    grid = WindowGrid(image.shape[1], image.shape[2], window, stride)
    pixels = first.normalised(torch.from_numpy(image).to(first.device))
    shape = (len(first.text), *image.shape[1:])
    down, across = (torch.from_numpy(c).to(first.device) for c in grid.windows_per_pixel)
    by_key = {keys_of(segmenter): segmenter for segmenter in segmenters}
    cosines = {key: pixels.new_zeros(shape) for key in by_key}
    similarities = {attention: pixels.new_zeros(shape) for attention, _ in by_key}
    for places in passes(grid, size):
        areas = [
            (slice(row, row + grid.window_height), slice(column, column + grid.window_width))
            for row, column in places
        ]
        batch = torch.stack([pixels[:, rows, columns] for rows, columns in areas])
        for key, (similarity, windows) in windows_of(by_key, batch).items():
            for (rows, columns), of_window in zip(areas, windows, strict=True):
                cosines[key][:, rows, columns] += of_window
            if similarity is not None:
                for (rows, columns), of_token in zip(areas, similarity, strict=True):
                    similarities[key[0]][:, rows, columns] += of_token[:, None, None]
    return cosines, similarities, down[:, None] * across[None]


def passes(grid: WindowGrid, size: int) -> Iterator[list[tuple[int, int]]]:
    """First row and column of every window, ``size`` windows at a time."""
    places = list(product(grid.rows, grid.columns))
    for first in range(0, len(places), size):
        yield places[first : first + size]


def windows_of(
    by_key: dict[Key, Segmenter], batch: Tensor
) -> dict[Key, tuple[Tensor | None, Tensor]]:
    """Cosines of a batch of windows by each segmenter, B x Q x h x w.

    The class token's similarities, B x Q, come with the first segmenter of each attention.
    """
    height, width = batch.shape[-2:]
    inputs: dict[torch.Size, list[Tensor]] = {}  # by padded size: upsamplers need some pixels
    dense: dict[tuple[Attention, torch.Size], Tensor] = {}
    told: set[Attention] = set()
    found: dict[Key, tuple[Tensor | None, Tensor]] = {}
    for key, segmenter in by_key.items():
        padded, (top, left) = segmenter.padded(batch)
        attention, size = key[0], padded.shape
        similarity = None
        if (attention, size) not in dense:
            with autocast(segmenter.device, segmenter.precision):
                if size not in inputs:
                    inputs[size] = segmenter.encoder.block_inputs(padded)
                features, token = segmenter.encoder.dense(inputs[size], padded)
            dense[attention, size] = features.float()
            if attention not in told:
                similarity = segmenter.class_similarity(token)
                told.add(attention)
        of_pixels = segmenter.cosines(dense[attention, size], padded)
        found[key] = similarity, of_pixels[..., top : top + height, left : left + width]
    return found

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
from segearth_cli.model.windows import fitting

Attention = tuple[str, int]  # its name, and how many blocks have it
Key = tuple[Attention, int]  # and which upsampler


def variant_logits(
    segmenters: Sequence[Segmenter],
    image: NDArray[np.float32],
    grid: WindowGrid,
    size: int,
) -> list[Tensor]:
    """The blended logits of an image by each segmenter.

    Args:
        segmenters: of one vision tower, at one precision; they may differ in all else.
        image: 3 x H x W in [0, 1].
        grid: where the windows lie.
        size: windows in a pass.

    Returns:
        Q x H x W each, in float32.
    """
    cosines, similarities, weight = summed(segmenters, image, grid, size)
    return [
        (cosines[key] - segmenter.global_bias * similarities[key]) / weight
        for segmenter, key in zip(segmenters, map(key_of, segmenters), strict=True)
    ]


def key_of(segmenter: Segmenter) -> Key:
    """What tells a segmenter's cosines from those of others of the same tower."""
    encoder = segmenter.encoder
    upsampler = 0 if segmenter.upsampler is None else id(segmenter.upsampler)
    return (encoder.attention, encoder.modulated_blocks), upsampler


def summed(
    segmenters: Sequence[Segmenter], image: NDArray[np.float32], grid: WindowGrid, size: int
) -> tuple[dict[Key, Tensor], dict[Key, Tensor], Tensor]:
    """Sums over the windows that Global Bias Alleviation is a difference of.

    Returns:
        The pixels' cosines and the class tokens' similarities with each query, weighed, Q x H x W,
        and the sum of the weights of each pixel, H x W.
    """
    first = segmenters[0]
    pixels = first.normalised(torch.from_numpy(image).to(first.device))
    shape = (len(first.text), *image.shape[1:])
    weight, per_pixel = (
        torch.from_numpy(down[:, None] * across).to(first.device)
        for down, across in (grid.window_weights, grid.weight_per_pixel)
    )
    by_key = {key_of(segmenter): segmenter for segmenter in segmenters}
    cosines, similarities = ({key: pixels.new_zeros(shape) for key in by_key} for _ in range(2))
    waiting = [
        np.s_[:, row : row + grid.window_height, column : column + grid.window_width]
        for row, column in product(grid.rows, grid.columns)
    ]

    def run(at_once: int) -> list[tuple[Key, Tensor, Tensor]]:
        batch = torch.stack([pixels[area] for area in waiting[:at_once]])
        return list(windows_of(by_key, batch))

    while waiting:
        found = fitting(first, size, run)
        done, waiting = waiting[: len(found[0][1])], waiting[len(found[0][1]) :]
        for key, of_pixels, of_token in found:
            for place, area in enumerate(done):
                cosines[key][area] += of_pixels[place] * weight
                similarities[key][area] += of_token[place, :, None, None] * weight
        del found, of_pixels, of_token  # not beside those of the next pass
    return cosines, similarities, per_pixel


def windows_of(by_key: dict[Key, Segmenter], batch: Tensor) -> Iterator[tuple[Key, Tensor, Tensor]]:
    """Cosines of a batch of windows, B x Q x h x w, and similarities, B x Q, of each segmenter."""
    height, width = batch.shape[-2:]
    inputs: dict[torch.Size, list[Tensor]] = {}  # by padded size: upsamplers need some pixels
    dense: dict[tuple[Attention, torch.Size], tuple[Tensor, Tensor]] = {}
    for key, segmenter in by_key.items():
        padded, (top, left) = segmenter.padded(batch)
        place = key[0], padded.shape
        if place not in dense:
            with autocast(segmenter.device, segmenter.precision):
                if padded.shape not in inputs:
                    inputs[padded.shape] = segmenter.encoder.block_inputs(padded)
                features, token = segmenter.encoder.dense(inputs[padded.shape], padded)
            dense[place] = features.float(), segmenter.class_similarity(token)
        features, similarity = dense[place]
        cosines = segmenter.cosines(features, padded)
        yield key, cosines[..., top : top + height, left : left + width], similarity

"""Sums over every pixel's square neighbourhood, and their gradients, as matrix products.

Weighting neighbours, comparing with them and the gradients of both are derivatives of one form,
sum over pixels p, neighbours k and channels c of w[k, p] f[c, p + k] a[c, p]. The pixels of a tile
of 8 x 8 share their surroundings: each derivative is one product of matrices per tile, and nothing
that is K times as large as an image of features is ever kept.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

TILE = 8  # pixels a side
CPU_NUMBERS = 1 << 22  # of tiles' surroundings, at once
ACCELERATOR_NUMBERS = 1 << 27


def weighted_sum(features: Tensor, kernel: Tensor, radius: int) -> Tensor:
    """Each pixel's kernel-weighted sum of its neighbourhood: B C H W, B K H W -> B C H W.

    Borders are reflected. K counts the neighbourhood row by row.
    """
    result: Tensor = _WeightedSum.apply(reflected(features, radius), kernel, radius)
    return result


def similarities(keys: Tensor, radius: int) -> Tensor:
    """Each pixel's products with its neighbours: B C H W -> B K H W. Borders are reflected."""
    result: Tensor = _Products.apply(keys, reflected(keys, radius), radius)
    return result


def reflected(x: Tensor, radius: int) -> Tensor:
    """The image with its reflection around it."""
    return F.pad(x, [radius] * 4, mode="reflect")


class _WeightedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, padded: Tensor, kernel: Tensor, radius: int) -> Tensor:
        ctx.save_for_backward(padded, kernel)
        ctx.radius = radius
        return _sums(padded, kernel, radius)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        padded, kernel = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        return (
            _spread(gradient, kernel, ctx.radius) if wanted[0] else None,
            _products(gradient, padded, ctx.radius) if wanted[1] else None,
            None,
        )


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, padded: Tensor, radius: int) -> Tensor:
        ctx.save_for_backward(own, padded)
        ctx.radius = radius
        return _products(own, padded, radius)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        own, padded = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        return (
            _sums(padded, gradient, ctx.radius) if wanted[0] else None,
            _spread(own, gradient, ctx.radius) if wanted[1] else None,
            None,
        )


def _sums(padded: Tensor, kernel: Tensor, radius: int) -> Tensor:
    """Derivative by a: sum over k of w f."""
    size = kernel.shape[-2:]
    out = kernel.new_empty(_tiled(len(kernel), size, padded.shape[1]))
    kernel, padded = _whole_tiles(kernel, size), _whole_tiles(padded, size, 2 * radius)
    for image, rows in _parts(padded, size, radius):
        places = out[image, rows]  # tiles down, tiles across, 64, C
        around = _surroundings(padded[image], rows, radius)
        band = _band(_own(kernel[image], rows), radius)
        places.copy_(torch.bmm(band, around).view_as(places))
    return _untiled(out, size)


def _products(own: Tensor, padded: Tensor, radius: int) -> Tensor:
    """Derivative by w: sum over c of f a."""
    size = own.shape[-2:]
    out = own.new_empty(_tiled(len(own), size, (2 * radius + 1) ** 2))
    own, padded = _whole_tiles(own, size), _whole_tiles(padded, size, 2 * radius)
    for image, rows in _parts(padded, size, radius):
        places = out[image, rows]
        around = _surroundings(padded[image], rows, radius)
        whole = torch.bmm(_own(own[image], rows), around.mT)
        places.copy_(_seen(whole, radius).reshape(places.shape))
    return _untiled(out, size)


def _spread(own: Tensor, kernel: Tensor, radius: int) -> Tensor:
    """Derivative by f: sum over pixels of w a, with the margin that f has."""
    size, side = own.shape[-2:], TILE + 2 * radius
    own, kernel = _whole_tiles(own, size), _whole_tiles(kernel, size)
    images, channels, height, width = own.shape
    out = own.new_zeros(images, height + 2 * radius, width + 2 * radius, channels)
    for image, rows in _parts(out.movedim(-1, 1), size, radius):
        band = _band(_own(kernel[image], rows), radius)
        part = torch.bmm(band.mT, _own(own[image], rows))  # tiles, side * side, C
        part = part.view(rows.stop - rows.start, -1, side, side, channels)
        for top in range(0, side, TILE):
            for left in range(0, side, TILE):  # tiles' surroundings overlap: a tile's share each
                share = part[:, :, top : top + TILE, left : left + TILE]
                down, across = share.shape[2:4]
                target = out[image, rows.start * TILE + top :, left:]
                target = target.unfold(0, down, TILE).unfold(1, across, TILE)
                target = target[: share.shape[0], : share.shape[1]]  # tiles, C, down, across
                target += share.permute(0, 1, 4, 2, 3)
    return out.movedim(-1, 1)[..., : size[0] + 2 * radius, : size[1] + 2 * radius]


def _tiled(images: int, size: torch.Size, channels: int) -> tuple[int, ...]:
    down, across = (-(-side // TILE) for side in size)
    return images, down, across, TILE * TILE, channels


def _untiled(tiles: Tensor, size: torch.Size) -> Tensor:
    """B down across 64 C -> B C H W."""
    images, down, across, _, channels = tiles.shape
    image = tiles.view(images, down, across, TILE, TILE, channels).permute(0, 5, 1, 3, 2, 4)
    return image.reshape(images, channels, down * TILE, across * TILE)[..., : size[0], : size[1]]


def _whole_tiles(x: Tensor, size: torch.Size, margin: int = 0) -> Tensor:
    """Zeros below and to the right, up to whole tiles."""
    below, right = (-side % TILE for side in size)
    assert x.shape[-2:] == (size[0] + margin, size[1] + margin)
    return F.pad(x, (0, right, 0, below)) if right or below else x


def _parts(padded: Tensor, size: torch.Size, radius: int) -> Iterator[tuple[int, slice]]:
    """Images, and rows of their tiles whose surroundings may be in memory at once."""
    down, across = (-(-side // TILE) for side in size)
    row = across * (TILE + 2 * radius) ** 2 * padded.shape[1]
    most = CPU_NUMBERS if padded.is_cpu else ACCELERATOR_NUMBERS
    step = max(1, most // row)
    for image in range(len(padded)):
        for first in range(0, down, step):
            yield image, slice(first, min(down, first + step))


def _surroundings(padded: Tensor, rows: slice, radius: int) -> Tensor:
    """What lies around each tile: C H W -> tiles x side * side x C."""
    side = TILE + 2 * radius
    part = padded[:, rows.start * TILE : rows.stop * TILE + 2 * radius]
    view = part.unfold(1, side, TILE).unfold(2, side, TILE)  # C down across side side
    return view.permute(1, 2, 3, 4, 0).reshape(-1, side * side, len(padded))


def _own(x: Tensor, rows: slice) -> Tensor:
    """Each tile's own pixels: C H W -> tiles x 64 x C."""
    part = x[:, rows.start * TILE : rows.stop * TILE]
    view = part.unfold(1, TILE, TILE).unfold(2, TILE, TILE)
    return view.permute(1, 2, 3, 4, 0).reshape(-1, TILE * TILE, len(x))


def _band(kernel: Tensor, radius: int) -> Tensor:
    """Weights at the places of the surroundings: tiles x 64 x K -> tiles x 64 x side * side."""
    side = TILE + 2 * radius
    band = kernel.new_zeros(len(kernel), TILE * TILE, side * side)
    places = _seen(band, radius)
    places.copy_(kernel.view_as(places))
    return band


def _seen(matrix: Tensor, radius: int) -> Tensor:
    """Of the surroundings what each pixel of a tile sees: tiles x 8 x 8 x rows x columns."""
    side, places = TILE + 2 * radius, (TILE + 2 * radius) ** 2
    size = (len(matrix), TILE, TILE, 2 * radius + 1, 2 * radius + 1)
    stride = (TILE * TILE * places, TILE * places + side, places + 1, side, 1)
    return matrix.as_strided(size, stride)

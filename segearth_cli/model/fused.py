"""Joint bilateral upsampling by the kernels of `triton_kernels`: what `tiles` computes, on GPUs.

Features are N x h x w x C here too. The images that are doubled lie in one guide, evenly apart:
alone, or as the cells that up to four windows share (see `cells`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from segearth_cli.device import has_triton, tried
from segearth_cli.model.coordinates import Coordinates
from segearth_cli.model.tiles import TileKernels
from segearth_cli.model.upsampler import KEY_DIM

DOWN, ACROSS = 4, 16  # pixels of a tile
PIXELS = DOWN * ACROSS
WIDTH = 128  # neighbours and guidance, filled up
LARGEST_RADIUS = 5  # whose neighbours fit
SPAN = 32  # columns of pixels that a tile sees, filled up
LAYER_COLUMNS = 32  # of the hidden layer at once
MOST_PIXELS = 1 << 19  # whose weights are in memory at once
MOST_CHANNELS = 512  # whose sums fit a program
GROUP_CHANNELS = 128  # of several windows, summed at once


@dataclass(frozen=True)
class Guide:
    """What images are doubled along with, and where they lie in it.

    Attributes:
        image: at the resolution after the doubling, normalised, ... x H x W x 3.
        keys: of its pixels, by the same kernels, in half precision, and what that leaves out:
            pixels x 64.
        count: images.
        size: rows and columns of an image.
        start: number of the first image's first pixel.
        move: pixels from one image's first to the next one's.
    """

    image: Tensor
    keys: Tensor
    count: int
    size: tuple[int, int]
    start: int
    move: int


@dataclass(frozen=True)
class Seen:
    """The windows that see the images.

    Attributes:
        features: before the doubling: of ``halves`` rows of windows, the lower row first, each
            ``halves`` times as high and wide as an image.
        there: which of them have data, one byte each.
        wanted: which images are asked for, one byte each.
        halves: 1 where every image is a window, 2 where it is a cell between two of each row.
    """

    features: Tensor
    there: Tensor
    wanted: Tensor
    halves: int


@dataclass(frozen=True)
class Scoring:
    """How sums become logits, and what these are added to.

    Attributes:
        logits: one per query and pixel, from the first image's first one on.
        moves: numbers from image to image, row to row and query to query.
        down, across: how much a window counts in each of its rows and columns.
        shift, text: see `Coordinates`: C, and Q x C.
        bias: of each window and query, weighed nowhere: ... x Q.
    """

    logits: Tensor
    moves: tuple[int, int, int]
    down: Tensor
    across: Tensor
    shift: Tensor
    text: Tensor
    bias: Tensor


@dataclass(frozen=True)
class _Tables:
    """The tiles of an image: row, column, first item, kinds of rows and of columns of windows.

    An item is a tile as some windows see it: row, column, which sides are reflected.
    """

    tiles: Tensor
    items: Tensor
    first_items: tuple[int, ...]

    def item(self, tile: int) -> int:
        """The first item of a tile, counted over all images."""
        image, own = divmod(tile, len(self.tiles))
        return image * len(self.items) + self.first_items[own]


@lru_cache(maxsize=32)
def _tables(size: tuple[int, int], radius: int, halves: int, device: torch.device) -> _Tables:
    tiles: list[tuple[int, ...]] = []
    items: list[tuple[int, ...]] = []
    for row in range(-(-size[0] // DOWN)):
        for column in range(-(-size[1] // ACROSS)):
            kinds: list[tuple[int, ...]] = []
            for first, step, side in (
                (row * DOWN, DOWN, size[0]),
                (column * ACROSS, ACROSS, size[1]),
            ):
                if halves == 1:
                    kinds.append((3,))
                elif first < radius or first + step > side - radius:
                    kinds.append((0, 1))
                else:
                    kinds.append((2,))
            tiles.append((row, column, len(items), *map(len, kinds)))
            items += [(row, column, down, across) for down in kinds[0] for across in kinds[1]]
    first_items = tuple(tile[2] for tile in tiles)
    on_device = [torch.tensor(x, dtype=torch.int32, device=device) for x in (tiles, items)]
    return _Tables(on_device[0], on_device[1], first_items)


@lru_cache(maxsize=32)
def _resizer(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Bicubic doubling of a line, as ``F.interpolate`` does it: 2 size x size.

    Its numbers are multiples of 1/256: bf16 holds all but those of borders.
    """
    eye = torch.eye(size, dtype=torch.float64)[None, None]
    line = F.interpolate(eye, (2 * size, size), mode="bicubic", align_corners=False)
    return line[0, 0].to(device, dtype)


def resized(*rows: Tensor) -> Tensor:
    """Twice as many features each way, bicubically: rows of N h w C -> rows * N 2h 2w C."""
    count, height, width, channels = rows[0].shape
    down, across = (_resizer(side, rows[0].dtype, rows[0].device) for side in (height, width))
    shape = (len(rows), count, 2 * height, 2 * width, channels)
    # `sums` looks a radius beyond windows that it takes no sum of
    margin = (LARGEST_RADIUS + 1) * 2 * width * channels
    fine = rows[0].new_empty(math.prod(shape) + 2 * margin)[margin:-margin].view(shape)
    for row, out in zip(rows, fine, strict=True):
        higher = torch.bmm(down.expand(count, -1, -1), row.reshape(count, height, -1))
        higher = higher.view(-1, width, channels)
        torch.bmm(across.expand(len(higher), -1, -1), higher, out=out.flatten(0, 1))
    return fine.flatten(0, 1)


def whole_channels(channels: int) -> int:
    """As many channels as the kernels take: a power of two."""
    return max(16, 1 << (channels - 1).bit_length())


class FusedKernels:
    """The kernels of one JBU module, ready to be launched.

    Args:
        kernels: of the same module, for `tiles`.

    Raises:
        ValueError: its neighbourhood is too large.
    """

    def __init__(self, kernels: TileKernels) -> None:
        self.radius = kernels.radius
        self.dtype = kernels.dtype
        if self.radius > LARGEST_RADIUS:
            side = kernels.side
            raise ValueError(f"a neighbourhood of {side} x {side} pixels is too large")
        self._kernels = kernels
        self._log_spatial = kernels.log_spatial.flatten()
        self._hidden = _padded(kernels.hidden, WIDTH)
        self._last = _padded(0.1 * kernels.last_weight.T, WIDTH).to(self.dtype)
        self._last_bias = _padded(0.1 * kernels.last_bias[None], 1)[0]

    def doubled(self, features: Tensor, image: Tensor) -> Tensor:
        """One doubling of images alone: B h w C and B 3 2h 2w -> B 2h 2w C, of ``dtype``."""
        guide, windows = self._alone(features, image)
        out = torch.empty_like(windows.features)
        self.double(guide, windows, out, out)
        return out[..., : features.shape[-1]]

    def logits(self, features: Tensor, image: Tensor, coordinates: Coordinates) -> Tensor:
        """The same as logits: B x Q x 2h x 2w, float32."""
        guide, windows = self._alone(features, image)
        shape = (guide.count, coordinates.queries, *guide.size)
        logits = guide.image.new_zeros(shape)
        down, across = (logits.new_ones(side) for side in guide.size)
        shift, text = coordinates.filled(windows.features.shape[-1])
        moves = (logits.stride(0), logits.stride(2), logits.stride(1))
        bias = logits.new_zeros(shape[:2])
        self.score(guide, windows, Scoring(logits, moves, down, across, shift, text, bias))
        return logits

    def guide(
        self, image: Tensor, count: int, size: tuple[int, int], start: int, move: int
    ) -> Guide:
        """A guide with this module's keys."""
        (first, first_bias), (last, last_bias) = self._kernels.key_layers
        hidden = torch.addmm(first_bias, image.flatten(0, -2), first)
        keys = torch.addmm(last_bias, torch.ops.aten.gelu_(hidden), last)
        high = keys.half()
        return Guide(image, torch.cat([high, (keys - high).half()], 1), count, size, start, move)

    def double(self, guide: Guide, windows: Seen, out: Tensor, out_above: Tensor) -> None:
        """The windows' features after the doubling, where images are wanted.

        Args:
            guide, windows: see there.
            out: of the (lower) row of windows, as large as its resized features.
            out_above: of the row above it.
        """
        self._launch(guide, windows, (out, out_above), None)

    def score(self, guide: Guide, windows: Seen, scoring: Scoring) -> None:
        """Add the windows' logits after the doubling to what is there, where images are wanted."""
        self._launch(guide, windows, (scoring.logits, scoring.logits), scoring)

    def _alone(self, features: Tensor, image: Tensor) -> tuple[Guide, Seen]:
        """Images that no other window sees: B h w C and B 3 2h 2w."""
        count, _, *size = image.shape
        channels = features.shape[-1]
        filled = F.pad(features, (0, whole_channels(channels) - channels)).to(self.dtype)
        every = torch.ones(count, dtype=torch.uint8, device=image.device)
        guide = self.guide(
            image.movedim(1, -1).contiguous(), count, (size[0], size[1]), 0, size[0] * size[1]
        )
        return guide, Seen(resized(filled.contiguous()), every, every, 1)

    def _launch(
        self,
        guide: Guide,
        windows: Seen,
        out: tuple[Tensor, Tensor],
        scoring: Scoring | None,
    ) -> None:
        from segearth_cli.model import triton_kernels

        tables = _tables(guide.size, self.radius, windows.halves, guide.image.device)
        image_items, image_tiles = len(tables.items), len(tables.tiles)
        place = (guide.start, guide.move, guide.image.shape[-2], *guide.size)
        narrow = self._kernels.narrow
        numbers = (0, 0, 0, 0)
        factors = (windows.features,) * 5  # which nobody looks at
        if scoring is not None:
            numbers = (*scoring.moves, len(scoring.text))
            factors = (
                scoring.down,
                scoring.across,
                scoring.shift,
                scoring.text,
                scoring.bias,
            )
        channels = windows.features.shape[-1]
        for tiles in self._chunks(guide.count * image_tiles, tables):
            items = slice(tables.item(tiles.start), tables.item(tiles.stop))
            count = items.stop - items.start
            size = (count * PIXELS, WIDTH)
            scores = guide.image.new_empty(size)
            triton_kernels.scores[(count * DOWN,)](
                guide.keys,
                tables.items,
                windows.wanted,
                scores,
                items.start,
                image_items,
                *place,
                **self._how("scores", channels, windows.halves),
            )
            weights = torch.empty(size, dtype=self.dtype, device=scores.device)
            triton_kernels.weights[(count,)](
                scores,
                guide.image,
                tables.items,
                windows.wanted,
                self._log_spatial,
                self._log_spatial if narrow is None else narrow,
                self._hidden,
                self._last,
                self._last_bias,
                weights,
                items.start,
                image_items,
                *place,
                **self._how("weights", channels, windows.halves),
            )
            triton_kernels.sums[(tiles.stop - tiles.start,)](
                weights,
                windows.features,
                tables.tiles,
                windows.wanted,
                windows.there,
                *out,
                *factors,
                tiles.start,
                image_tiles,
                items.start,
                image_items,
                len(windows.features) // windows.halves,
                *guide.size,
                *numbers,
                HAS_LOGITS=scoring is not None,
                **self._how("sums", channels, windows.halves),
            )

    def _how(self, name: str, channels: int, halves: int) -> dict[str, Any]:
        constants, how = compiled_for(
            name, self.radius, self.dtype, channels, halves, self._kernels.narrow is not None
        )
        return {**constants, **how}

    def _chunks(self, tiles: int, tables: _Tables) -> Iterator[slice]:
        """Tiles whose weights may be in memory at once."""
        step = max(1, MOST_PIXELS * len(tables.tiles) // (PIXELS * len(tables.items)))
        for first in range(0, tiles, step):
            yield slice(first, min(tiles, first + step))


def fused_kernels(kernels: Sequence[TileKernels]) -> list[FusedKernels] | None:
    """The same modules' kernels for GPUs; ``None`` where they do not run."""
    device = kernels[0].log_spatial.device

    def first_use() -> list[FusedKernels]:
        own = {one: FusedKernels(one) for one in set(kernels)}
        fused = [own[one] for one in kernels]
        side = 2 * fused[-1].radius + 2
        features, image = torch.zeros(1, side, side, 32), torch.zeros(1, 3, 2 * side, 2 * side)
        fused[-1].doubled(features.to(device), image.to(device))
        return fused

    return tried(first_use, "upsampler") if has_triton(device) else None


@cache
def compiled_for(
    name: str, radius: int, dtype: torch.dtype, channels: int, halves: int, is_narrow: bool
) -> tuple[dict[str, Any], dict[str, int]]:
    """What a kernel is compiled for, and how: so that it fits into 99 KiB of shared memory.

    Args:
        name: of the kernel.
        radius: of the neighbourhood.
        dtype: of the products.
        channels: of the features.
        halves: see `Seen`.
        is_narrow: whether the Gaussian is multiplied in.
    """
    is_half = dtype != torch.float32
    constants: dict[str, Any] = {
        "RADIUS": radius,
        "DOWN": DOWN,
        "ACROSS": ACROSS,
        "WIDTH": WIDTH,
    }
    if name == "scores":
        return constants | {"KEYS": KEY_DIM, "SPAN": SPAN}, {"num_warps": 1}
    # float32 as three products of what tensor cores take
    constants["PRECISION"] = "ieee" if is_half else "tf32x3"
    if name == "weights":
        constants |= {"IS_NARROW": is_narrow, "COLUMNS": LAYER_COLUMNS}
        return constants, {"num_warps": 4 if is_half else 8, "num_stages": 3 if is_half else 1}
    # as many threads as keep what a program holds in their registers
    places, warps = {32: (32, 8), 64: (64, 16), 128: (32, 8)}.get(max(32, channels), (16, 16))
    constants |= {
        "HALVES": halves,
        "CHANNELS": channels,
        "GROUP": min(halves**2, max(1, GROUP_CHANNELS // channels)),
        "PLACES": places if is_half else 16,
    }
    return constants, {"num_warps": warps, "num_stages": 2}


def _padded(matrix: Tensor, rows: int) -> Tensor:
    """Zeros below a matrix, and behind it up to ``WIDTH`` columns."""
    return F.pad(matrix, (0, WIDTH - matrix.shape[1], 0, rows - matrix.shape[0])).contiguous()

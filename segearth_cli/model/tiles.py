"""Joint bilateral upsampling as matrix products over tiles: the same numbers, far faster.

A doubling resizes the features bicubically and then sums each pixel's neighbourhood with weights
that come from the image. Both are linear in the features, so the two become one sum over the
coarse features around a pixel (9 x 9 of them for an 11 x 11 neighbourhood), and the last layer of
the weights goes into the same matrix. The pixels of a tile of 8 x 8 share their coarse neighbours:
their similarities are one product of keys with keys, their sums one product of a banded matrix
with features. All but a softmax and a GELU is matrix multiplication.

Features are B x h x w x C here. Gradients do not pass: training goes through `upsampler`.
"""

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from segearth_cli.model.runs import (
    COARSE,
    TILE,
    Block,
    Chunk,
    Run,
    blocks,
    chunks,
    reach,
)
from segearth_cli.model.scratch import Scratch
from segearth_cli.model.upsampler import JBU, KEY_DIM, pointwise_weights

LEAST_SUM = 1e-7  # that a kernel is divided by
ALIGNED = 32  # matrices are as wide as a multiple of this: others are slower
CPU_PIXELS = 3584  # at once: their matrices stay in the processor's cache
ACCELERATOR_PIXELS = 1 << 18


def with_margin(features: Tensor, radius: int) -> Tensor:
    """Coarse features with those at the borders repeated ``reach`` times: B h w C, larger."""
    margin = reach(radius)
    count, height, width, channels = features.shape
    larger = features.new_empty(count, height + 2 * margin, width + 2 * margin, channels)
    larger[:, margin:-margin, margin:-margin] = features
    repeat_borders(larger, margin)
    return larger


def repeat_borders(features: Tensor, margin: int) -> None:
    """Fill a margin of B h w C with copies of what lies inside it."""
    for image in (features, features.transpose(1, 2)):
        image[:, :margin] = image[:, margin : margin + 1]
        image[:, -margin:] = image[:, -margin - 1 : -margin]


class TileKernels:
    """The kernels of one JBU module, ready for matrix products.

    Args:
        jbu: the module; its weights are copied.
        dtype: of the two layers that make weights of kernels, and of the products of weights with
            features, which take most of the arithmetic; what a softmax would magnify is float32.
    """

    def __init__(self, jbu: JBU, dtype: torch.dtype) -> None:
        self.radius = jbu.radius
        self.dtype = dtype
        self._scratch = Scratch()
        self._maps: dict[tuple[bytes, bytes], Tensor] = {}
        first, first_bias = pointwise_weights(jbu.range_proj[0])
        last, last_bias = pointwise_weights(jbu.range_proj[3])
        # Both keys of a similarity carry the square root of its factor.
        factor = jbu.range_temp.exp().clamp(1e-4, 1e4).sqrt()
        layers = [(first, first_bias), (factor * last, factor * last_bias)]
        self.key_layers = [(weight.T.contiguous(), bias) for weight, bias in layers]
        # softmax(s) g / sum(softmax(s) g) = softmax(s + log g), unless that sum is too small: a
        # Gaussian so narrow is multiplied in.
        spatial = jbu.spatial_kernel()
        self.narrow = spatial if spatial.min() < LEAST_SUM else None
        self.log_spatial = spatial.log() if self.narrow is None else torch.zeros_like(spatial)
        self.log_spatial = self.log_spatial.unflatten(0, (self.side, self.side))
        hidden, hidden_bias = pointwise_weights(jbu.fixup_proj[0])
        self.last_weight, self.last_bias = pointwise_weights(jbu.fixup_proj[3])
        count = self.side**2
        self.width = -(-(count + 4) // ALIGNED) * ALIGNED  # kernel, guidance, 1, nothing
        weights = self.log_spatial.new_zeros(self.width, self.width)
        weights[: count + 3, :count] = hidden.T
        weights[count + 3, :count] = hidden_bias
        self.hidden = weights.to(dtype)

    @property
    def side(self) -> int:
        """Pixels a side of the neighbourhood."""
        return 2 * self.radius + 1

    def maps(self, block: Block) -> Tensor:
        """From kernel and hidden layer to the weights of coarse neighbours.

        Returns:
            2 x ways x width x coarse neighbours, filled up.
        """
        key = (block.rows.maps.numpy().tobytes(), block.columns.maps.numpy().tobytes())
        if key not in self._maps:
            self._maps[key] = self._build_maps(block)
        return self._maps[key]

    def _build_maps(self, block: Block) -> Tensor:
        ways = torch.einsum("yim,xjn->yxijmn", block.rows.maps, block.columns.maps)
        ways = ways.flatten(0, 1).flatten(1, 2).flatten(2).to(self.hidden.device)
        kinds, count, targets = ways.shape
        filled = -(-targets // ALIGNED) * ALIGNED
        maps = ways.new_zeros(2, kinds, self.width, filled)
        maps[0, :, :count, :targets] = ways
        maps[0, :, count + 3, :targets] = 0.1 * self.last_bias.double() @ ways
        maps[1, :, :count, :targets] = 0.1 * self.last_weight.T.double() @ ways
        return maps.to(self.dtype)

    def sums(
        self, guidance: Tensor, coarse: Sequence[Tensor], block: Block
    ) -> Iterator[tuple[Chunk, Tensor]]:
        """The features of a block's pixels after the doubling, chunk by chunk.

        Args:
            guidance: the image under the block and ``radius`` around it, B x H x W x 3.
            coarse: features of windows that see this image, each B x h x w x C, with the margin
                of ``with_margin``; the block's tiles are counted from their first ones.
            block: of tiles.

        Yields:
            Chunks, and pixels x windows x C; valid until the next.
        """
        coarse = [one[:, block.rows.coarse(self.radius)] for one in coarse]
        coarse = [one[:, :, block.columns.coarse(self.radius)] for one in coarse]
        maps = self.maps(block)
        most = CPU_PIXELS if guidance.is_cpu else ACCELERATOR_PIXELS
        for images, rows in chunks(len(guidance), block, most):
            image = guidance[images].contiguous()
            keys = self._keys(image)
            windows = [one[images] for one in coarse]
            for part in rows:
                chunk = Chunk(block, images, part)
                first, end = part.start * TILE, (part.stop - 1) * TILE
                pixels = slice(first, end + block.rows.count + 2 * self.radius)
                band = self._band(keys[:, pixels], image[:, pixels], chunk, maps)
                yield chunk, self._banded_sums(band, windows, chunk)

    def _keys(self, image: Tensor) -> Tensor:
        """Keys of an image's pixels: B H W 3 -> B H W 32; valid until the next."""
        (first, first_bias), (last, last_bias) = self.key_layers
        pixels = image.flatten(0, 2)
        size = (len(pixels), KEY_DIM)
        hidden = self._scratch.take("key hidden", size, image)
        torch.addmm(first_bias, pixels, first, out=hidden)
        torch.ops.aten.gelu_(hidden)
        keys = self._scratch.take("keys", size, image)
        return torch.addmm(last_bias, hidden, last, out=keys).view(*image.shape[:3], -1)

    def _band(self, keys: Tensor, guidance: Tensor, chunk: Chunk, maps: Tensor) -> Tensor:
        """Weights of the coarse features around each tile: tiles x pixels x coarse features."""
        *grid, height, width = chunk.grid
        tiles, pixels = math.prod(grid), height * width
        radius, side = self.radius, self.side
        around = (height + 2 * radius, width + 2 * radius)
        rows, columns = chunk.block.rows, chunk.block.columns
        inside = (slice(None), slice(radius, -radius), slice(radius, -radius))

        take = self._scratch.take
        neighbours = take("neighbours", (tiles, math.prod(around), KEY_DIM), keys)
        copy_tiles(neighbours, keys, around, TILE)
        own = take("own", (tiles, pixels, KEY_DIM), keys)
        copy_tiles(own, keys[inside], (height, width), TILE)
        similarity = take("similarity", (tiles, pixels, math.prod(around)), keys)
        torch.bmm(own, neighbours.mT, out=similarity)

        scores = take("scores", (tiles * pixels, self.width), keys, fill=-math.inf)
        ways = (rows.ways[0], columns.ways[0], tiles, rows.ways[1], columns.ways[1])
        by_way = scores.view(*ways, self.width)
        count = side * side
        seen = seen_by_pixels(similarity, rows, columns, around[1], (side, side), 1)
        torch.add(seen, self.log_spatial, out=by_way[..., :count].unflatten(-1, (side, side)))
        kernel = take("kernel", scores.shape, keys)
        torch.softmax(scores, dim=-1, out=kernel)
        if self.narrow is not None:
            weights = kernel[:, :count].mul_(self.narrow)
            weights /= weights.sum(dim=-1, keepdim=True).clamp(min=LEAST_SUM)
        by_way = kernel.view(*ways, self.width)
        colours = take("colours", (tiles, pixels, 3), keys)
        copy_tiles(colours, guidance[inside], (height, width), TILE)
        colours = colours.view(tiles, *rows.ways[::-1], *columns.ways[::-1], 3)
        by_way[..., count : count + 3].copy_(colours.permute(2, 4, 0, 1, 3, 5))
        kernel[:, count + 3] = 1
        if self.dtype != kernel.dtype:
            kernel = take("rounded", kernel.shape, self.hidden).copy_(kernel)
        hidden = take("hidden", scores.shape, kernel)
        torch.mm(kernel, self.hidden, out=hidden)
        torch.ops.aten.gelu_(hidden)

        kinds = maps.shape[1]
        weights = take("weights", (kinds, len(scores) // kinds, maps.shape[-1]), kernel)
        torch.bmm(kernel.view(kinds, -1, self.width), maps[0], out=weights)
        weights.baddbmm_(hidden.view(kinds, -1, self.width), maps[1])
        coarse_side = COARSE + 2 * reach(radius)
        span = (rows.maps.shape[-1], columns.maps.shape[-1])
        # Only the band is written: what lies beside it has been zero from the beginning.
        size = (tiles, pixels, coarse_side**2)
        band = take(("band", rows.ways, columns.ways), size, weights, fill=0.0)
        seen = seen_by_pixels(band, rows, columns, coarse_side, span, 0)
        weights = weights.view(*ways, -1)[..., : math.prod(span)]
        seen.copy_(weights.unflatten(-1, span))
        return band

    def _banded_sums(self, band: Tensor, coarse: Sequence[Tensor], chunk: Chunk) -> Tensor:
        """The band's sums of coarse features: pixels x windows x C."""
        tiles, pixels, places = band.shape
        side, channels = math.isqrt(places), coarse[0].shape[-1]
        take = self._scratch.take
        around = take("around", (tiles, places, len(coarse), channels), band)
        rows = slice(chunk.rows.start * COARSE, chunk.rows.stop * COARSE + side - COARSE)
        for index, window in enumerate(coarse):
            copy_tiles(around[:, :, index], window[:, rows], (side, side), COARSE)
        sums = take("sums", (tiles, pixels, len(coarse) * channels), band)
        torch.bmm(band, around.flatten(2), out=sums)
        return sums.view(tiles * pixels, len(coarse), channels)


def copy_tiles(out: Tensor, image: Tensor, size: tuple[int, int], step: int) -> None:
    """Tiles of an image in a row, every ``step`` pixels: B h w C -> tiles (height width) C."""
    view = image.unfold(1, size[0], step).unfold(2, size[1], step)  # B down across C height width
    view = view.permute(0, 1, 2, 4, 5, 3)
    places = out.unflatten(1, view.shape[3:5]).unflatten(0, view.shape[:3])
    places.copy_(view)


def seen_by_pixels(
    matrix: Tensor, rows: Run, columns: Run, side: int, span: tuple[int, int], fine: int
) -> Tensor:
    """What each pixel of a tile sees of its surroundings, as a view.

    Args:
        matrix: tiles x pixels x places around the tile, which are ``side`` across.
        rows, columns: the runs of the tiles.
        side: places around a tile, across.
        span: places that a pixel sees, down and across.
        fine: 1 where places are as far apart as pixels, 0 where twice as far.

    Returns:
        Kinds down x kinds across x tiles x pixels of a kind down x across x places seen.
    """
    tiles, pixels, places = matrix.shape
    moves = []  # by kind and within a kind: numbers from one pixel's first place to the next's
    for run, pixel, place in ((rows, columns.count * places, side), (columns, places, 1)):
        kinds = run.ways[0]
        further = place if run.is_inner else 0  # a border's coarse places are the tile's
        moves.append((pixel + fine * place, kinds * pixel + (fine * kinds * place or further)))
    size = (rows.ways[0], columns.ways[0], tiles, rows.ways[1], columns.ways[1], *span)
    stride = (moves[0][0], moves[1][0], pixels * places, moves[0][1], moves[1][1], side, 1)
    return matrix.as_strided(size, stride)


def doubled(kernels: TileKernels, features: Tensor, guidance: Tensor) -> Tensor:
    """One doubling, as `JBU.forward`: B h w C and B 3 2h 2w -> B 2h 2w C."""
    height, width = guidance.shape[-2:]
    down, across = (-(-side // TILE) * TILE for side in (height, width))
    fine = features.new_empty(len(features), down, across, features.shape[-1])
    for chunk, sums in window_sums(kernels, features, guidance):
        chunk.write(fine, sums)
    return fine[:, :height, :width]


def window_sums(
    kernels: TileKernels, features: Tensor, guidance: Tensor
) -> Iterator[tuple[Chunk, Tensor]]:
    """The same, chunk by chunk: pixels x 1 x C."""
    radius = kernels.radius
    height, width = guidance.shape[-2:]
    right, below = (-side % TILE for side in (width, height))
    image = F.pad(guidance, [radius] * 4, mode="reflect")
    image = F.pad(image, (0, right, 0, below)).movedim(1, -1)
    coarse = F.pad(with_margin(features, radius), (0, 0, 0, right // 2, 0, below // 2))
    for block in blocks(height, width, radius):
        rows, columns = block.rows, block.columns
        top, left = rows.first * TILE, columns.first * TILE
        part = image[:, top : top + rows.span(radius), left : left + columns.span(radius)]
        yield from kernels.sums(part, [coarse], block)

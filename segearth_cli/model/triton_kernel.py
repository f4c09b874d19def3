"""One kernel for GPUs: JBU's weights of a pixel's neighbours, and their sum of features, at once.

What `tiles` computes as a row of matrix products, without writing the weights to memory. Imported
where triton is at hand (it comes with torch's CUDA builds); `tiles` stays the reference.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

# With these all that a program computes stays in registers: `test_it_compiles_for_gpus`.
PIXELS = 16  # of a program
WARPS = 8
WIDEST = 128  # neighbours and guidance that fit a program


def weighted_sums(
    keys: Tensor,
    image: Tensor,
    features: Tensor,
    grid: tuple[int, int, int, int, int],
    tile: int,
    side: int,
    log_spatial: Tensor,
    narrow: Tensor | None,
    hidden: Tensor,
    last: Tensor,
    last_bias: Tensor,
) -> Tensor:
    """Every pixel's features after a doubling, pixels in the order of their tiles.

    Args:
        keys: of the pixels under the tiles and around them, B x 32 x H x W, float32.
        image: the same of the guidance, B x 3 x H x W, float32.
        features: the same of the resized features, B x C x H x W, float32.
        grid: images, tiles down, tiles across, pixels of a tile down, across.
        tile: pixels from one tile to the next.
        side: of the neighbourhood, in pixels.
        log_spatial: side * side logarithms of the Gaussian.
        narrow: the Gaussian itself, where it is multiplied in instead.
        hidden: first layer, W x W: kernel, guidance and 1 in, the rest zero. Its type is that of
            the products.
        last: second layer, W x W, of the factor that it counts with.
        last_bias: W, likewise.

    Returns:
        Pixels x C, float32.
    """
    images, down, across, height, width = grid
    pixels = images * down * across * height * width
    channels = features.shape[1]
    out = features.new_empty(pixels, channels)
    _weighted_sums[(triton.cdiv(pixels, PIXELS),)](
        keys.contiguous(),
        image.contiguous(),
        features.contiguous(),
        log_spatial,
        log_spatial if narrow is None else narrow,
        hidden,
        last,
        last_bias,
        out,
        pixels,
        down,
        across,
        height,
        width,
        tile,
        keys.shape[2],
        keys.shape[3],
        channels,
        KEYS=keys.shape[1],
        SIDE=side,
        WIDTH=hidden.shape[0],
        BLOCK=PIXELS,
        IS_NARROW=narrow is not None,
        PRECISION=precision_of_products(hidden.dtype),
        num_warps=WARPS,
    )
    return out


def precision_of_products(dtype: torch.dtype) -> str:
    """How matrices are multiplied: float32 as three products of what tensor cores take.

    Without those cores a product of float32 needs more registers than there are.
    """
    return "tf32x3" if dtype == torch.float32 else "ieee"


def padded(matrix: Tensor, width: int) -> Tensor:
    """Zeros behind every side of a tensor, up to ``width``."""
    larger = matrix.new_zeros((width,) * matrix.dim())
    larger[tuple(slice(size) for size in matrix.shape)] = matrix
    return larger


@triton.jit  # type: ignore[untyped-decorator]
def _weighted_sums(  # type: ignore[no-untyped-def]
    keys,
    image,
    features,
    log_spatial,
    narrow,
    hidden,
    last,
    last_bias,
    out,
    pixels,
    down,
    across,
    height,
    width,
    tile,
    rows,
    columns,
    channels,
    KEYS: tl.constexpr,
    SIDE: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    IS_NARROW: tl.constexpr,
    PRECISION: tl.constexpr,
):
    COUNT: tl.constexpr = SIDE * SIDE
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_pixel = pixel < pixels
    x = pixel % width
    rest = pixel // width
    y = rest % height
    rest = rest // height
    x += rest % across * tile
    rest = rest // across
    y += rest % down * tile
    shown = (rest // down).to(tl.int64)
    place = rows.to(tl.int64) * columns  # numbers of a channel
    first = y * columns + x  # the neighbourhood's first pixel

    neighbour = tl.arange(0, WIDTH)
    is_neighbour = neighbour < COUNT
    offset = neighbour // SIDE * columns + neighbour % SIDE
    around = first[:, None] + offset[None, :]
    seen = is_pixel[:, None] & is_neighbour[None, :]
    centre = first + SIDE // 2 * columns + SIDE // 2

    scores = tl.zeros((BLOCK, WIDTH), tl.float32)
    for channel in range(KEYS):
        start = (shown * KEYS + channel) * place
        own = tl.load(keys + start + centre, mask=is_pixel, other=0.0)
        others = tl.load(keys + start[:, None] + around, mask=seen, other=0.0)
        scores += own[:, None] * others
    scores += tl.load(log_spatial + neighbour, mask=is_neighbour, other=0.0)[None, :]
    scores = tl.where(is_neighbour[None, :], scores, -float("inf"))
    kernel = tl.exp(scores - tl.max(scores, axis=1)[:, None])
    kernel /= tl.sum(kernel, axis=1)[:, None]
    if IS_NARROW:
        kernel *= tl.load(narrow + neighbour, mask=is_neighbour, other=0.0)[None, :]
        kernel /= tl.maximum(tl.sum(kernel, axis=1), 1e-7)[:, None]

    seen_too = kernel
    for channel in range(3):
        start = (shown * 3 + channel) * place
        colour = tl.load(image + start + centre, mask=is_pixel, other=0.0)
        seen_too = tl.where(neighbour[None, :] == COUNT + channel, colour[:, None], seen_too)
    seen_too = tl.where(neighbour[None, :] == COUNT + 3, 1.0, seen_too)
    matrix = neighbour[:, None] * WIDTH + neighbour[None, :]
    weights = tl.load(hidden + matrix)
    inner = tl.dot(seen_too.to(weights.dtype), weights, input_precision=PRECISION)
    inner = 0.5 * inner * (1.0 + tl.erf(inner * 0.7071067811865476))
    weights = tl.load(last + matrix)
    kernel += tl.dot(inner.to(weights.dtype), weights, input_precision=PRECISION)
    kernel += tl.load(last_bias + neighbour)[None, :]

    for channel in range(channels):
        start = (shown * channels + channel) * place
        others = tl.load(features + start[:, None] + around, mask=seen, other=0.0)
        total = tl.sum(kernel * others, axis=1)
        tl.store(out + pixel.to(tl.int64) * channels + channel, total, mask=is_pixel)

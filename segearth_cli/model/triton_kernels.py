"""Kernels for GPUs: a doubling of many images, or of the cells that windows share, in three steps.

1. `scores`: each pixel's similarity with its neighbours, as products of tensor cores.
2. `weights`: softmax, Gaussian and the two layers of JBU make weights of them.
3. `sums`: the weighted sums of the features; of the last doubling at once the logits.

Imported where triton is at hand (it comes with torch's CUDA builds). `tiles` computes the same with
torch alone and stays the reference; `fused` prepares what is launched here.

The pixels of an image go by tiles of ``DOWN`` x ``ACROSS``. Where windows see different pixels
around a tile, it is computed once for each kind of window: these are a tile's items. Modes say
which sides of an image are reflected: 0 the low one, 1 the high one, 2 none, 3 both.
"""

import triton
import triton.language as tl

# Numbers that differ from launch to launch: the kernels aren't compiled for each.
NUMBERS = (
    "first",
    "image_items",
    "image_tiles",
    "first_item",
    "windows",
    "start",
    "move",
    "row",
    "height",
    "width",
    "out_move",
    "out_row",
    "out_query",
    "queries",
)


@triton.jit  # type: ignore[untyped-decorator]
def _placed(line, size, mode, RADIUS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Rows or columns of an image where reflection puts them; those beyond are never looked at."""
    line = tl.minimum(line, size - 1 + RADIUS)
    line = tl.where((line < 0) & ((mode == 0) | (mode == 3)), -line, line)
    is_high = (line >= size) & ((mode == 1) | (mode == 3))
    return tl.where(is_high, 2 * (size - 1) - line, line)


@triton.jit(do_not_specialize=NUMBERS)  # type: ignore[untyped-decorator]
def scores(  # type: ignore[no-untyped-def]
    keys,
    items,
    wanted,
    out,
    first,
    image_items,
    start,
    move,
    row,
    height,
    width,
    RADIUS: tl.constexpr,
    KEYS: tl.constexpr,
    DOWN: tl.constexpr,
    ACROSS: tl.constexpr,
    SPAN: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """A row of a tile's pixels: their keys times those of all neighbours, row by row of these.

    A key is the sum of two numbers of half precision; the products of both small ones are left out.
    """
    SIDE: tl.constexpr = 2 * RADIUS + 1
    unit = tl.program_id(0) // DOWN
    line = tl.program_id(0) % DOWN
    image = (unit + first) // image_items
    if tl.load(wanted + image) == 0:
        return
    item = items + (unit + first) % image_items * 4
    mode_y, mode_x = tl.load(item + 2), tl.load(item + 3)
    y = tl.minimum(tl.load(item) * DOWN + line, height - 1)
    left = tl.load(item + 1) * ACROSS
    pixel = tl.arange(0, ACROSS)
    channel = tl.arange(0, KEYS)
    base = start + image.to(tl.int64) * move
    centre = base + y * row + tl.minimum(left + pixel, width - 1)
    own = keys + centre[:, None] * (2 * KEYS) + channel[None, :]
    own_high, own_low = tl.load(own), tl.load(own + KEYS)
    column = _placed(left - RADIUS + tl.arange(0, SPAN), width, mode_x, RADIUS)
    across = tl.arange(0, 16)
    seen = pixel[:, None] + across[None, :]
    target = out + ((unit * DOWN + line) * ACROSS + pixel[:, None]) * WIDTH + across[None, :]
    for down in range(SIDE):
        place = base + _placed(y + down - RADIUS, height, mode_y, RADIUS) * row + column
        others = keys + place[None, :] * (2 * KEYS) + channel[:, None]
        high = tl.load(others)
        products = tl.dot(own_high, high)
        products = tl.dot(own_low, high, products)
        products = tl.dot(own_high, tl.load(others + KEYS), products)
        near = tl.gather(products, seen, axis=1)
        tl.store(target + down * SIDE, near, mask=across[None, :] < SIDE)


@triton.jit(do_not_specialize=NUMBERS)  # type: ignore[untyped-decorator]
def weights(  # type: ignore[no-untyped-def]
    scores,
    guide,
    items,
    wanted,
    log_spatial,
    narrow,
    hidden,
    last,
    last_bias,
    out,
    first,
    image_items,
    start,
    move,
    row,
    height,
    width,
    RADIUS: tl.constexpr,
    IS_NARROW: tl.constexpr,
    PRECISION: tl.constexpr,
    DOWN: tl.constexpr,
    ACROSS: tl.constexpr,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """A tile's weights of all neighbours: a row of ``WIDTH`` per pixel, zeros behind them."""
    COUNT: tl.constexpr = (2 * RADIUS + 1) * (2 * RADIUS + 1)
    unit = tl.program_id(0)
    image = (unit + first) // image_items
    if tl.load(wanted + image) == 0:
        return
    item = items + (unit + first) % image_items * 4
    pixel = tl.arange(0, DOWN * ACROSS)
    y = tl.minimum(tl.load(item) * DOWN + pixel // ACROSS, height - 1)
    x = tl.minimum(tl.load(item + 1) * ACROSS + pixel % ACROSS, width - 1)
    centre = start + image.to(tl.int64) * move + y * row + x
    neighbour = tl.arange(0, WIDTH)
    is_neighbour = neighbour < COUNT
    own = (unit * DOWN * ACROSS + pixel[:, None]) * WIDTH + neighbour[None, :]

    score = tl.load(scores + own, mask=is_neighbour[None, :], other=0.0)
    score += tl.load(log_spatial + neighbour, mask=is_neighbour, other=0.0)[None, :]
    score = tl.where(is_neighbour[None, :], score, -float("inf"))
    kernel = tl.exp(score - tl.max(score, axis=1)[:, None])
    kernel /= tl.sum(kernel, axis=1)[:, None]
    if IS_NARROW:
        kernel *= tl.load(narrow + neighbour, mask=is_neighbour, other=0.0)[None, :]
        kernel /= tl.maximum(tl.sum(kernel, axis=1), 1e-7)[:, None]

    seen = kernel
    for channel in range(3):
        colour = tl.load(guide + centre * 3 + channel)
        seen = tl.where(neighbour[None, :] == COUNT + channel, colour[:, None], seen)
    seen = tl.where(neighbour[None, :] == COUNT + 3, 1.0, seen)
    seen = seen.to(hidden.dtype.element_ty)
    kernel += tl.load(last_bias + neighbour)[None, :]
    for left in range(0, WIDTH, COLUMNS):
        column = left + tl.arange(0, COLUMNS)
        layer = tl.load(hidden + neighbour[:, None] * WIDTH + column[None, :])
        inner = tl.dot(seen, layer, input_precision=PRECISION)
        inner = 0.5 * inner * (1.0 + tl.erf(inner * 0.7071067811865476))
        layer = tl.load(last + column[:, None] * WIDTH + neighbour[None, :])
        kernel += tl.dot(inner.to(layer.dtype), layer, input_precision=PRECISION)
    tl.store(out + own, kernel.to(out.dtype.element_ty))


@triton.jit(do_not_specialize=NUMBERS)  # type: ignore[untyped-decorator]
def sums(  # type: ignore[no-untyped-def]
    weights,
    features,
    tiles,
    wanted,
    there,
    out,
    out_above,
    down_weight,
    across_weight,
    shift,
    text,
    bias,
    first,
    image_tiles,
    first_item,
    image_items,
    windows,
    height,
    width,
    out_move,
    out_row,
    out_query,
    queries,
    RADIUS: tl.constexpr,
    HALVES: tl.constexpr,
    CHANNELS: tl.constexpr,
    GROUP: tl.constexpr,
    HAS_LOGITS: tl.constexpr,
    PRECISION: tl.constexpr,
    DOWN: tl.constexpr,
    ACROSS: tl.constexpr,
    WIDTH: tl.constexpr,
    PLACES: tl.constexpr,
):
    """What the windows that see a tile, HALVES x HALVES of them, have there after the doubling.

    Their features are HALVES rows of ``windows`` windows, HALVES * height x HALVES * width x C
    each. Without logits a window's features go to ``out``, those of the row above to
    ``out_above``.
    """
    SIDE: tl.constexpr = 2 * RADIUS + 1
    AROUND: tl.constexpr = ACROSS + 2 * RADIUS
    ALL: tl.constexpr = (DOWN + 2 * RADIUS) * AROUND
    unit = tl.program_id(0) + first
    image = unit // image_tiles
    if tl.load(wanted + image) == 0:
        return
    tile = tiles + unit % image_tiles * 5
    top, left = tl.load(tile) * DOWN, tl.load(tile + 1) * ACROSS
    own_items = image * image_items - first_item + tl.load(tile + 2)
    kinds_down, kinds_across = tl.load(tile + 3), tl.load(tile + 4)
    pixel = tl.arange(0, DOWN * ACROSS)
    down, across = pixel // ACROSS, pixel % ACROSS
    y, x = top + down, left + across
    is_pixel = (y < height) & (x < width)
    window_row = HALVES * width  # numbers of a row of a window's pixels
    window_size = window_row.to(tl.int64) * height * HALVES
    column = tl.arange(0, GROUP * CHANNELS)
    channel = column % CHANNELS
    total = tl.zeros((DOWN * ACROSS, CHANNELS), tl.float32)
    own_first = pixel * WIDTH - down * SIDE - across  # of a pixel's weights, by place

    for begin in tl.static_range(0, HALVES * HALVES, GROUP):
        half = begin + column // CHANNELS
        half_y, half_x = half // HALVES, half % HALVES
        window = half_y * windows + image + (HALVES - 1) - half_x
        is_there = tl.load(there + window) != 0
        corner = window * window_size + half_y * height * window_row + half_x * width
        corners = features + corner * CHANNELS + channel
        total_here = tl.zeros((DOWN * ACROSS, GROUP * CHANNELS), tl.float32)
        for kind in range(kinds_down * kinds_across):
            kind_y, kind_x = kind // kinds_across, kind % kinds_across
            if HALVES == 1:
                mode_y, mode_x = 3, 3
            else:
                mode_y = tl.where(kinds_down == 1, 2, kind_y)
                mode_x = tl.where(kinds_across == 1, 2, kind_x)
            own_weights = weights + (own_items + kind).to(tl.int64) * (DOWN * ACROSS * WIDTH)
            part = tl.zeros((DOWN * ACROSS, GROUP * CHANNELS), tl.float32)
            for some in range(0, ALL, PLACES):
                place = some + tl.arange(0, PLACES)
                place_y, place_x = place // AROUND, place % AROUND
                step_y = (place_y[None, :] - down[:, None]).to(tl.uint32)
                step_x = (place_x[None, :] - across[:, None]).to(tl.uint32)
                is_near = (step_y < SIDE) & (step_x < SIDE)
                number = (place_y * SIDE + place_x)[None, :] + own_first[:, None]
                band = tl.load(own_weights + number, mask=is_near, other=0.0)
                at_y = _placed(top - RADIUS + place_y, height, mode_y, RADIUS).to(tl.int64)
                at_x = _placed(left - RADIUS + place_x, width, mode_x, RADIUS)
                at = tl.where(place < ALL, at_y * window_row + at_x, 0)
                seen = tl.load(corners[None, :] + (at * CHANNELS)[:, None])
                part = tl.dot(band, seen, part, input_precision=PRECISION)
            # windows that have no data may hold anything
            is_own = is_there & ((kinds_down == 1) | (kind_y == half_y))
            is_own &= (kinds_across == 1) | (kind_x == half_x)
            total_here += tl.where(is_own[None, :], part, 0.0)
        if HAS_LOGITS:
            moved = total_here + tl.load(shift + channel)[None, :]
            by_window = tl.reshape(moved, (DOWN * ACROSS, GROUP, CHANNELS))
            lengths = tl.sqrt(tl.sum(by_window * by_window, axis=2))
            one = begin + tl.arange(0, GROUP)
            one_y, one_x = one // HALVES, one % HALVES
            line_y = one_y[None, :] * height + tl.minimum(y, height - 1)[:, None]
            line_x = one_x[None, :] * width + tl.minimum(x, width - 1)[:, None]
            counts = tl.load(down_weight + line_y) * tl.load(across_weight + line_x)
            own = tl.load(there + one_y * windows + image + (HALVES - 1) - one_x) != 0
            counts = tl.where(own[None, :], counts, 0.0)
            factor = counts / tl.maximum(lengths, 1e-12)
            total += tl.sum(by_window * factor[:, :, None], axis=1)
        else:
            target = (corner[None, :] + (y * window_row + x)[:, None]) * CHANNELS
            target += channel[None, :]
            value = total_here.to(out.dtype.element_ty)
            is_written = is_pixel[:, None] & is_there[None, :]
            is_above = (half_y == 1)[None, :]
            tl.store(out + target, value, mask=is_written & ~is_above)
            if HALVES == 2:
                target -= windows * window_size * CHANNELS
                tl.store(out_above + target, value, mask=is_written & is_above)

    if HAS_LOGITS:
        dimension = tl.arange(0, CHANNELS)
        places = out + image.to(tl.int64) * out_move + y * out_row + x
        for query in range(queries):
            words = tl.load(text + query * CHANNELS + dimension)
            logit = tl.sum(total * words[None, :], axis=1)
            for number in tl.static_range(HALVES * HALVES):
                low = number // HALVES
                side = number % HALVES
                by_y = tl.load(down_weight + low * height + tl.minimum(y, height - 1))
                by_x = tl.load(across_weight + side * width + tl.minimum(x, width - 1))
                seer = low * windows + image + (HALVES - 1) - side
                less = tl.load(bias + seer * queries + query)
                less = tl.where(tl.load(there + seer) != 0, less, 0.0)
                logit -= by_y * by_x * less
            before = tl.load(places, mask=is_pixel, other=0.0)
            tl.store(places, before + logit, mask=is_pixel)
            places += out_query

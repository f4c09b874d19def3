from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
from open_clip.transformer import QuickGELU, VisionTransformer

from segearth_cli.device import DTYPES
from segearth_cli.geo.tiling import WindowGrid
from segearth_cli.model import cells
from segearth_cli.model.cells import shares_cells
from segearth_cli.model.clip import DenseEncoder
from segearth_cli.model.mosaic import blended_logits, image_logits
from segearth_cli.model.segmenter import Segmenter
from segearth_cli.model.sums import RollingSums
from segearth_cli.model.upsampler import JBUOne, JBUStack
from segearth_cli.model.windows import MARGIN, Strip

WINDOW, STRIDE = 64, 32


def segmenter(upsampler=JBUOne, exact=False, precision="fp32", patch=16):
    torch.manual_seed(0)
    visual = VisionTransformer(64, patch, 48, 2, 3, 4.0, output_dim=96, act_layer=QuickGELU)
    upsampler = upsampler(96)
    for name, value in upsampler.named_parameters():
        if name.endswith("range_temp"):
            value.data.fill_(2.0)
    text = torch.nn.functional.normalize(torch.randn(5, 96), dim=-1)
    return (
        Segmenter(
            DenseEncoder(visual),
            upsampler,
            text,
            mean=(0.5,) * 3,
            std=(0.25,) * 3,
            global_bias=0.3,
            logit_scale=50.0,
            query_class=range(5),
            precision=precision,
            exact=exact,
        )
        .eval()
        .requires_grad_(False)
    )


def picture(height, width):
    rng = np.random.default_rng(0)
    coarse = rng.random((3, height // 8 + 1, width // 8 + 1))
    image = np.kron(coarse, np.ones((8, 8)))[:, :height, :width]
    return (0.8 * image + 0.2 * rng.random(image.shape)).astype(np.float32)


@torch.inference_mode()
def window_by_window(model, image, grid):
    """Blended logits, each window in a pass of its own."""
    sums = torch.zeros(len(model.text), *image.shape[1:])
    weight, per_pixel = (
        torch.from_numpy(down[:, None] * across)
        for down, across in (grid.window_weights, grid.weight_per_pixel)
    )
    for row, column in product(grid.rows, grid.columns):
        place = np.s_[:, row : row + grid.window_height, column : column + grid.window_width]
        sums[place] += model(torch.from_numpy(image[place])[None])[0] * weight
    return sums / per_pixel


SLOW = pytest.mark.slow
SIZES = [
    (150, 187),
    (64, 150),
    *(
        pytest.param(size, marks=SLOW)
        for size in ((160, 192), (150, 64), (96, 65), (64, 64), (40, 150))
    ),
]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("upsampler", "blend"),
    [(JBUOne, "smooth"), *(pytest.param(JBUStack, b, marks=SLOW) for b in ("smooth", "mean"))],
)
def test_shared_kernels_give_what_each_window_gives_alone(size, upsampler, blend):
    image = picture(*size)
    grid = WindowGrid(*size, WINDOW, STRIDE, blend=blend)

    actual = image_logits(segmenter(upsampler), image, grid, size=4)

    expected = window_by_window(segmenter(upsampler, exact=True), image, grid)
    torch.testing.assert_close(actual, expected, atol=3e-4, rtol=0)
    assert (actual.argmax(0) != expected.argmax(0)).float().mean() < 3e-4


def test_any_number_format_may_share_cells():
    assert cells.FADED.keys() == {torch.float32, *DTYPES.values()}


@pytest.mark.parametrize(
    ("precision", "size", "most", "flips"),
    [("fp32", (340, 411), 1e-3, 5), ("fp32", (224, 448), 1e-3, 5), ("bf16", (340, 411), 4e-3, 15)],
)
def test_borders_that_windows_fade_out_towards_hardly_count(
    monkeypatch, precision, size, most, flips
):
    image, model = picture(*size), segmenter(precision=precision)
    grid = WindowGrid(*size, 224, 112, blend="smooth")

    actual = image_logits(model, image, grid, size=4)

    none = dict.fromkeys(cells.FADED, 0.0)  # windows as they are alone
    monkeypatch.setattr(cells, "FADED", none)
    expected = image_logits(model, image, grid, size=4)
    assert 0 < (actual - expected).abs().max() < most
    assert (actual - expected).abs().mean() < most / 100
    assert (actual.argmax(0) != expected.argmax(0)).sum() <= flips


@pytest.mark.slow
@pytest.mark.parametrize(("window", "stride"), [(64, 16), (64, 64), (64, 40), (0, 32), (48, 24)])
def test_windows_that_share_nothing_are_added_one_by_one(window, stride):
    image = picture(100, 130)

    grid = WindowGrid(100, 130, window, stride)

    actual = image_logits(segmenter(), image, grid, size=4)

    expected = window_by_window(segmenter(exact=True), image, grid)
    torch.testing.assert_close(actual, expected, atol=3e-4, rtol=0)


def test_only_half_overlapping_windows_of_whole_tiles_share_cells():
    fast, of_14 = segmenter().fast_upsampler, segmenter(patch=14).fast_upsampler
    assert shares_cells(WindowGrid(300, 300, 224, 112), fast)
    assert shares_cells(WindowGrid(300, 300, 64, 32), fast)
    assert not shares_cells(WindowGrid(300, 300, 224, 112), of_14)
    assert not shares_cells(WindowGrid(300, 300, 32, 16), fast)
    assert not shares_cells(WindowGrid(300, 300, 224, 56), fast)
    assert not shares_cells(WindowGrid(300, 300, 48, 24), fast)
    assert not shares_cells(WindowGrid(300, 200, 224, 112), fast)
    assert not shares_cells(WindowGrid(300, 300, 0, 112), fast)


def test_a_wide_kernel_needs_more_patches_than_a_window_may_have():
    image, grid = picture(64, 96), WindowGrid(64, 96, 64, 32)
    wide = partial(JBUOne, radius=8)

    actual = image_logits(segmenter(wide), image, grid, size=4)

    expected = window_by_window(segmenter(wide, exact=True), image, grid)
    torch.testing.assert_close(actual, expected, atol=3e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("window", [56, 64, 224])
def test_patch_14_ends_a_little_finer_than_pixels_and_is_resized(window):
    model, exact = segmenter(patch=14), segmenter(patch=14, exact=True)
    image = picture(window + 44, window + 70)

    grid = WindowGrid(*image.shape[1:], window, window // 2)

    actual = image_logits(model, image, grid, size=4)

    expected = window_by_window(exact, image, grid)
    torch.testing.assert_close(actual, expected, atol=3e-4, rtol=0)


@pytest.mark.slow
def test_bf16_kernels_change_few_classes():
    image = picture(160, 192)
    logits = {}
    for precision in ("fp32", "bf16"):
        model = segmenter(precision=precision)
        plain = model.encode
        model.precision = "fp32"  # of the encoder: what is looked at is the upsampler
        assert model.fast_upsampler is not None
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        model.fast_upsampler = type(model.fast_upsampler)(model.upsampler, model.text, 16, dtype)
        model.encode = plain
        logits[precision] = image_logits(
            model, image, WindowGrid(*image.shape[1:], WINDOW, STRIDE), size=4
        )
    differ = logits["fp32"].argmax(0) != logits["bf16"].argmax(0)
    assert 0 < (logits["fp32"] - logits["bf16"]).abs().max() < 3e-3
    assert differ.float().mean() < 2e-3


def test_windows_without_data_are_skipped_and_change_no_others():
    model, image = segmenter(), picture(160, 256)
    grid = WindowGrid(160, 256, WINDOW, STRIDE)
    padded = np.pad(image, ((0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN)), mode="edge")
    lacking = {(0, 0), (32, 96), (64, 96), (96, 96)}  # row, column

    def strips(lacking):
        for row in grid.rows:
            has_data = tuple((row, column) not in lacking for column in grid.columns)
            image = torch.from_numpy(padded[:, row : row + WINDOW + 2 * MARGIN])
            yield Strip(row, image, has_data)

    with torch.inference_mode():
        whole = torch.cat(list(blended_logits(strips(set()), model, grid, 4)), dim=1)
        part = torch.cat(list(blended_logits(strips(lacking), model, grid, 4)), dim=1)

    touched = torch.zeros(160, 256, dtype=torch.bool)
    for row, column in lacking:
        touched[row : row + WINDOW, column : column + WINDOW] = True
    torch.testing.assert_close(part[:, ~touched], whole[:, ~touched], atol=1e-6, rtol=0)
    assert part.isfinite().all()


@pytest.mark.parametrize(("blend", "least", "most"), [("smooth", 0.0, 0.1), ("mean", 0.3, 2.0)])
def test_no_step_shows_where_smooth_windows_end(blend, least, most):
    grid = WindowGrid(160, 160, 64, 32, blend=blend)
    sums, rng, rows = RollingSums(grid, 1, torch.device("cpu")), np.random.default_rng(0), []
    for row, end in zip(grid.rows, [*grid.rows[1:], 160], strict=True):
        for column in grid.columns:
            window = torch.full((1, 64, 64), rng.uniform(-1, 1))  # windows do not agree
            sums.add(row, column, window)
        rows.append(sums.finish(end))
    logits = torch.cat(rows, dim=1)
    assert least < max(logits.diff(dim=dim).abs().max() for dim in (1, 2)) < most


@pytest.mark.parametrize("size", [3, pytest.param(1, marks=SLOW), pytest.param(16, marks=SLOW)])
def test_the_logits_do_not_depend_on_the_pass_or_the_cells_at_once(size, monkeypatch):
    image, grid = picture(130, 187), WindowGrid(130, 187, WINDOW, STRIDE, blend="smooth")
    expected = image_logits(segmenter(), image, grid, size=4)
    monkeypatch.setattr(cells, "CELLS", 2)
    monkeypatch.setattr(cells, "WINDOWS", 3)

    actual = image_logits(segmenter(), image, grid, size=size)

    torch.testing.assert_close(actual, expected, atol=2e-6, rtol=0)

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from segearth_cli.geo.tiling import WindowGrid, window_offsets


@pytest.mark.parametrize(
    ("size", "offsets"),
    [
        (1, [0]),
        (224, [0]),
        (225, [0, 1]),
        (336, [0, 112]),
        (337, [0, 112, 113]),
        (500, [0, 112, 224, 276]),
    ],
)
def test_the_last_window_is_shifted_inwards(size, offsets):
    assert window_offsets(size, 224, 112) == tuple(offsets)


def test_every_pixel_is_covered_and_no_window_leaves_the_scene():
    for size in range(1, 90):
        for window, stride in [(20, 7), (20, 20), (16, 8), (5, 1)]:
            offsets = window_offsets(size, window, stride)
            covered = np.zeros(size, bool)
            for offset in offsets:
                covered[offset : offset + window] = True
            assert covered.all()
            assert len(offsets) == 1 or offsets[-1] + window == size
            assert tuple(sorted(set(offsets))) == offsets


@pytest.mark.parametrize(("height", "width"), [(50, 41), (20, 20), (7, 60), (60, 7), (1, 1)])
@pytest.mark.parametrize(("window", "stride"), [(20, 10), (20, 7), (20, 20), (0, 5)])
def test_by_the_mean_a_pixel_weighs_as_many_windows_as_cover_it(height, width, window, stride):
    grid = WindowGrid(height, width, window, stride)
    counts = np.zeros((height, width))
    for row, column in product(grid.rows, grid.columns):
        counts[row : row + grid.window_height, column : column + grid.window_width] += 1

    down, across = grid.weight_per_pixel

    assert (down[:, None] * across == counts).all()
    assert len(grid) == len(grid.rows) * len(grid.columns)


def test_a_panel_has_the_windows_that_touch_its_columns():
    whole = WindowGrid(100, 1000, 64, 32)

    panel = replace(whole, wanted=(256, 512))

    assert panel.columns == tuple(c for c in whole.columns if c + 64 > 256 and c < 512)
    assert panel.columns_seen == (224, 544)
    assert (panel.weight_per_pixel[1][256:512] == whole.weight_per_pixel[1][256:512]).all()


@pytest.mark.parametrize(("window", "stride"), [(20, 10), (20, 7), (20, 20), (0, 5)])
def test_smooth_windows_fade_towards_their_borders(window, stride):
    grid = WindowGrid(50, 41, window, stride, blend="smooth")

    down, across = grid.window_weights

    assert (len(down), len(across)) == (grid.window_height, grid.window_width)
    assert 0 < down[0] < 0.01 < 0.98 < down[len(down) // 2] <= 1
    np.testing.assert_allclose(down, down[::-1], atol=1e-6)
    if stride == 10:  # two halves are a whole
        np.testing.assert_allclose(grid.weight_per_pixel[0][10:40], 1, atol=1e-6)
    assert min(weight.min() for weight in grid.weight_per_pixel) > 0

import numpy as np
import pytest

from segearth_cli.geo.tiling import RollingBlend, WindowGrid, window_offsets


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
    assert window_offsets(size, 224, 112) == offsets


def test_every_pixel_is_covered_and_no_window_leaves_the_scene():
    for size in range(1, 90):
        for window, stride in [(20, 7), (20, 20), (16, 8), (5, 1)]:
            offsets = window_offsets(size, window, stride)
            covered = np.zeros(size, bool)
            for offset in offsets:
                covered[offset : offset + window] = True
            assert covered.all()
            assert len(offsets) == 1 or offsets[-1] + window == size
            assert sorted(set(offsets)) == offsets


@pytest.mark.parametrize(("height", "width"), [(50, 41), (20, 20), (7, 60), (60, 7), (1, 1)])
@pytest.mark.parametrize(("window", "stride"), [(20, 10), (20, 7), (20, 20), (0, 5)])
def test_the_rolling_blend_is_the_mean_over_the_whole_scene(height, width, window, stride):
    random = np.random.default_rng(0)
    grid = WindowGrid(height, width, window, stride)
    blend = RollingBlend(grid, 3)
    sums, counts = np.zeros((3, height, width)), np.zeros((height, width))
    strips = []
    for row, row_end in blend.row_ends():
        for column in grid.columns:
            logits = random.normal(size=(3, grid.window_height, grid.window_width))
            rows = slice(row, row + grid.window_height)
            columns = slice(column, column + grid.window_width)
            sums[:, rows, columns] += logits
            counts[rows, columns] += 1
            blend.add(column, logits.astype(np.float32))
        strips.append(blend.finish_row(row_end))

    np.testing.assert_allclose(np.concatenate(strips, axis=1), sums / counts, atol=1e-6)
    assert len(grid) == len(grid.rows) * len(grid.columns)

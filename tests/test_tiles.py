import pytest
import torch
import torch.nn.functional as F

from segearth_cli.model.runs import inner_maps, runs, tile_maps
from segearth_cli.model.tiles import TileKernels, doubled
from segearth_cli.model.upsampler import JBU


def sharp_jbu(radius, sigma=1.0):
    torch.manual_seed(radius)
    jbu = JBU(radius).eval().requires_grad_(False)
    jbu.range_temp.fill_(2.0)
    jbu.sigma_spatial.fill_(sigma)
    return jbu


def doubled_by_tiles(jbu, features, guidance, dtype=torch.float32):
    fine = doubled(TileKernels(jbu, dtype), features.movedim(1, -1).contiguous(), guidance)
    return fine.movedim(-1, 1)


@pytest.mark.parametrize("radius", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [(14, 14), (3, 7), (12, 17), (9, 10), (56, 5)])
def test_tiles_give_what_the_module_gives(radius, size):
    jbu = sharp_jbu(radius)
    features = torch.randn(2, 5, *size)
    guidance = torch.randn(2, 3, 2 * size[0], 2 * size[1])

    expected = jbu(features, guidance)

    actual = doubled_by_tiles(jbu, features, guidance)
    torch.testing.assert_close(actual, expected, atol=3e-5, rtol=0)


def test_a_narrow_gaussian_is_no_trouble():
    jbu = sharp_jbu(5, sigma=0.05)
    features, guidance = torch.randn(1, 4, 8, 8), torch.randn(1, 3, 16, 16)

    actual = doubled_by_tiles(jbu, features, guidance)

    torch.testing.assert_close(actual, jbu(features, guidance), atol=3e-5, rtol=0)


def test_bf16_kernels_leave_the_features_in_float32():
    jbu = sharp_jbu(5)
    features = F.interpolate(torch.randn(1, 4, 4, 4), (14, 14), mode="bicubic")
    guidance = F.interpolate(torch.randn(1, 3, 7, 7), (28, 28), mode="bicubic")

    actual = doubled_by_tiles(jbu, features, guidance, torch.bfloat16)

    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, jbu(features, guidance), atol=2e-2, rtol=0)


def test_inner_maps_are_those_of_tiles_away_from_borders():
    along = runs(64, 5)
    assert [(run.first, run.end, run.is_inner) for run in along] == [
        (0, 1, False),
        (1, 7, True),
        (7, 8, False),
    ]
    maps = tile_maps(inner_maps(5))
    assert maps.shape == (8, 11, 12)
    torch.testing.assert_close(maps.sum(-1), torch.ones(8, 11, dtype=torch.float64))


def test_kernels_can_be_used_again_for_other_sizes():
    jbu = sharp_jbu(3)
    kernels = TileKernels(jbu, torch.float32)
    for size in ((20, 20), (5, 6), (20, 20), (3, 40)):
        features = torch.randn(1, 3, *size)
        guidance = torch.randn(1, 3, 2 * size[0], 2 * size[1])
        fine = doubled(kernels, features.movedim(1, -1).contiguous(), guidance).movedim(-1, 1)
        torch.testing.assert_close(fine, jbu(features, guidance), atol=3e-5, rtol=0)

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from segearth_cli.model.coordinates import TOLERANCE, Coordinates, low_rank


def decaying(batch, count, size, power):
    """Vectors whose k-th direction has strength k^-power."""
    torch.manual_seed(0)
    strength = torch.arange(1.0, size + 1) ** -power
    return torch.randn(batch, count, size) * strength


def cosines(features, text, mixing):
    mixed = features + 0.1 * mixing(features)
    return torch.einsum("bdhw,qd->bqhw", mixed, text) / mixed.norm(dim=1, keepdim=True)


@pytest.fixture
def text_and_mixing():
    torch.manual_seed(0)
    text = F.normalize(torch.randn(9, 256), dim=-1)
    return text, nn.Conv2d(256, 256, 1).requires_grad_(False)


def test_coordinates_give_the_cosines_of_the_features(text_and_mixing):
    text, mixing = text_and_mixing
    features = decaying(3, 196, 256, 2.0).mT.unflatten(2, (14, 14)).contiguous()

    found = Coordinates(text, mixing)
    few = found.of(features)

    assert few.shape[-1] <= 64
    expected = cosines(features, text, mixing).movedim(1, -1)
    torch.testing.assert_close(found.logits(few), expected, atol=1e-3, rtol=0)


def test_they_do_so_after_anything_linear(text_and_mixing):
    text, mixing = text_and_mixing
    features = decaying(1, 64, 256, 2.0).mT.unflatten(2, (8, 8)).contiguous()
    found = Coordinates(text, mixing)

    def smooth(x):
        return F.avg_pool2d(F.interpolate(x, scale_factor=2, mode="bilinear"), 3, stride=1)

    fine = smooth(found.of(features).movedim(-1, 1)).movedim(1, -1)

    expected = cosines(smooth(features), text, mixing).movedim(1, -1)
    torch.testing.assert_close(found.logits(fine), expected, atol=1e-3, rtol=0)


def test_few_channels_are_taken_as_they_are():
    torch.manual_seed(0)
    text = F.normalize(torch.randn(20, 32), dim=-1)
    mixing = nn.Conv2d(32, 32, 1).requires_grad_(False)
    features = torch.randn(1, 32, 5, 5)

    found = Coordinates(text, mixing)
    few = found.of(features)

    assert few.shape == (1, 5, 5, 32)
    expected = cosines(features, text, mixing).movedim(1, -1)
    torch.testing.assert_close(found.logits(few), expected, atol=1e-6, rtol=0)


def test_windows_that_need_more_directions_get_them_and_change_no_other():
    easy, hard = decaying(1, 100, 200, 3.0), decaying(1, 100, 200, 0.1)

    alone, both = low_rank(easy, 20, 100), low_rank(torch.cat([easy, hard]), 20, 100)

    assert alone.shape[-1] == 20
    assert both.shape[-1] > 20
    torch.testing.assert_close(both[:1, :, :20], alone, atol=1e-6, rtol=0)
    assert not both[0, :, 20:].any()
    kept = both[1].square().sum() / hard.square().sum()
    assert 1 - TOLERANCE <= kept <= 1 + 1e-5


def test_constant_and_empty_windows_are_no_trouble():
    vectors = torch.stack([torch.ones(30, 50), torch.zeros(30, 50)])

    factors = low_rank(vectors, 8, 30)

    assert factors.isfinite().all()
    torch.testing.assert_close(factors.square().sum(-1), vectors.square().sum(-1))

import pytest
import torch
import torch.nn.functional as F

from segearth_cli.model import neighbourhood
from segearth_cli.model.neighbourhood import similarities, weighted_sum


def unfolded(x, radius):
    """Every pixel's neighbourhood: B C H W -> B C K H W."""
    padded = F.pad(x, [radius] * 4, mode="reflect")
    places = F.unfold(padded, 2 * radius + 1)
    return places.view(*x.shape[:2], -1, *x.shape[-2:])


@pytest.mark.parametrize(("size", "radius"), [((9, 11), 2), ((16, 8), 5), ((28, 30), 3)])
def test_sums_and_products_are_those_over_unfolded_neighbourhoods(size, radius):
    features = torch.rand(2, 5, *size)
    kernel = torch.rand(2, (2 * radius + 1) ** 2, *size)
    around = unfolded(features, radius)

    torch.testing.assert_close(
        weighted_sum(features, kernel, radius), (around * kernel[:, None]).sum(2)
    )
    torch.testing.assert_close(
        similarities(features, radius), (around * features[:, :, None]).sum(1)
    )


def test_they_do_not_depend_on_how_many_tiles_are_looked_at_at_once(monkeypatch):
    features, kernel = torch.rand(2, 5, 40, 24), torch.rand(2, 49, 40, 24)
    whole = weighted_sum(features, kernel, 3), similarities(features, 3)

    monkeypatch.setattr(neighbourhood, "CPU_NUMBERS", 1)

    torch.testing.assert_close(
        (weighted_sum(features, kernel, 3), similarities(features, 3)), whole
    )


def test_their_gradients_are_right():
    torch.manual_seed(0)
    features = torch.rand(1, 2, 9, 10, dtype=torch.float64, requires_grad=True)
    kernel = torch.rand(1, 9, 9, 10, dtype=torch.float64, requires_grad=True)

    assert torch.autograd.gradcheck(lambda f, k: weighted_sum(f, k, 1), (features, kernel))
    assert torch.autograd.gradcheck(lambda f: similarities(f, 1), (features,))

"""The training losses against the paper's equations, written out in float64."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from segearth_cli.training.losses import (
    content_loss,
    contrastive_loss,
    random_directions,
    reconstruction_error,
    region_distance,
    token_distance,
    uncertain_reconstruction,
)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def cosines(a, b):
    lengths = np.linalg.norm(a, axis=-1)[:, None] * np.linalg.norm(b, axis=-1)
    return a @ b.T / lengths


def test_equations_3_and_4_are_mean_squares():
    a, b = torch.rand(2, 5, 4, 3), torch.rand(2, 5, 4, 3)
    expected = np.mean((a.double().numpy() - b.double().numpy()) ** 2)

    assert float(reconstruction_error(a, b)) == pytest.approx(expected, rel=1e-6)
    assert float(content_loss(a, b)) == pytest.approx(expected, rel=1e-6)


def test_the_uncertain_error_is_that_of_its_formula():
    a, b = torch.rand(2, 5, 4, 3), torch.rand(2, 5, 4, 3)
    s = torch.rand(2, 1, 4, 3) + 0.5
    directions = random_directions(5, 7, torch.Generator().manual_seed(0))

    projected = np.einsum("bdhw,dr->brhw", (a - b).double().numpy(), directions.double().numpy())
    sure = s.double().numpy()
    expected = np.mean(projected**2 / (2 * sure**2) + np.log(sure))

    torch.testing.assert_close(directions.norm(dim=0), torch.ones(7))
    found = float(uncertain_reconstruction(a, b, s, directions))
    assert found == pytest.approx(expected, rel=1e-6)


def test_equation_10():
    optical, sar, temperature = torch.randn(6, 9), torch.randn(6, 9), 0.07

    similar = np.exp(cosines(optical.double().numpy(), sar.double().numpy()) / temperature)
    right = np.diag(similar)
    both = np.log(right / similar.sum(1)) + np.log(right / similar.sum(0))

    found = float(contrastive_loss(optical, sar, torch.tensor(1 / temperature)))
    assert found == pytest.approx(-both.mean(), rel=1e-5)


def test_equation_11():
    optical, sar = torch.randn(6, 9), torch.randn(6, 9)

    similar = np.diag(cosines(optical.double().numpy(), sar.double().numpy()))

    assert float(token_distance(optical, sar)) == pytest.approx(np.mean(1 - similar), rel=1e-5)


@pytest.mark.parametrize(("side", "regions"), [(14, 7), (4, 2), (6, 1), (16, 7), (5, 5)])
def test_equation_12(side, regions):
    optical, sar = torch.randn(3, 9, side, side), torch.randn(3, 9, side, side)

    def means(x):  # of parts that cover all, once
        parts, ends = [x.double().numpy()], [-(-side * i // regions) for i in range(1, regions)]
        for axis in (2, 3):
            parts = [p for whole in parts for p in np.split(whole, ends, axis)]
        assert sum(part[0, 0].size for part in parts) == side**2
        return np.concatenate([part.mean((2, 3)) for part in parts])

    similar = np.diag(cosines(means(optical), means(sar)))

    found = float(region_distance(optical, sar, regions))
    assert found == pytest.approx(np.mean(1 - similar), rel=1e-5)


def test_gradients_of_all_losses_are_right():
    a, b = (torch.rand(2, 4, 4, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    s = torch.rand(2, 1, 4, 4, dtype=torch.float64).add(0.5).requires_grad_()
    directions = F.normalize(torch.randn(4, 3, dtype=torch.float64), dim=0)
    x, y = (torch.randn(3, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    inverse = torch.tensor(5.0, dtype=torch.float64, requires_grad=True)

    for loss, inputs in (
        (reconstruction_error, (a, b)),
        (content_loss, (a, b)),
        (lambda a, b, s: uncertain_reconstruction(a, b, s, directions), (a, b, s)),
        (contrastive_loss, (x, y, inverse)),
        (token_distance, (x, y)),
        (lambda a, b: region_distance(a, b, 2), (a, b)),
    ):
        assert torch.autograd.gradcheck(loss, inputs)

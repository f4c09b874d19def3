"""The losses of SimFeatUp (paper 3.2, eq. 3 to 5) and AlignEarth (4.2, eq. 10 to 12).

Pure functions of features; what a loss learns beside them, a temperature or an uncertainty,
arrives as an argument. All of them are means: of samples, and of places within a sample.
"""

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor


def reconstruction_error(features: Tensor, rebuilt: Tensor) -> Tensor:
    """Squared difference of features and what was rebuilt of them (eq. 3): B D h w both -> ()."""
    return (features - rebuilt).square().mean()


def uncertain_reconstruction(
    features: Tensor, rebuilt: Tensor, uncertainty: Tensor, directions: Tensor
) -> Tensor:
    """The same along some directions, where it can be foretold: e / (2 s^2) + log s.

    Args:
        features, rebuilt: B x D x h x w.
        uncertainty: s, positive, B x 1 x h x w.
        directions: of unit length, D x R.
    """
    difference = torch.einsum("bdhw,dr->brhw", features - rebuilt, directions)
    return (difference.square() / (2 * uncertainty.square()) + uncertainty.log()).mean()


def random_directions(dimensions: int, count: int, generator: torch.Generator) -> Tensor:
    """Directions of unit length: D x R, on the CPU."""
    return F.normalize(torch.randn(dimensions, count, generator=generator), dim=0)


def content_loss(image: Tensor, rebuilt: Tensor) -> Tensor:
    """Squared difference of an image in [-1, 1] and what CRN makes of features (eq. 4)."""
    return (image - rebuilt).square().mean()


def contrastive_loss(
    optical: Tensor, sar: Tensor, inverse_temperature: Tensor, process: int = 0, processes: int = 1
) -> Tensor:
    """Symmetric contrast of class tokens over the pairs of all processes (eq. 10).

    The sum of both directions, as the equation has it: open_clip's ``ClipLoss`` is half of it.

    Args:
        optical, sar: this process's, N x D, of any length.
        inverse_temperature: 1 / tau.
        process: this one's number, of ``processes``.
    """
    from open_clip.loss import ClipLoss

    loss = ClipLoss(gather_with_grad=True, rank=process, world_size=processes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of how open_clip gathers
        return 2 * loss(F.normalize(optical, dim=-1), F.normalize(sar, dim=-1), inverse_temperature)


def token_distance(optical: Tensor, sar: Tensor) -> Tensor:
    """1 - cosine of class tokens, N x D both (eq. 11)."""
    return 1 - F.cosine_similarity(optical, sar, dim=-1).mean()


def region_distance(optical: Tensor, sar: Tensor, regions: int) -> Tensor:
    """1 - cosine of the mean features of regions x regions parts (eq. 12): N x D x h x w both.

    The parts do not overlap: where they cannot all be alike some are a patch larger.
    """

    def means(features: Tensor) -> Tensor:
        down, across = (_parts(side, regions, features) for side in features.shape[-2:])
        return down @ features @ across.mT

    return 1 - F.cosine_similarity(means(optical), means(sar), dim=1).mean()


def _parts(side: int, count: int, like: Tensor) -> Tensor:
    """What takes the mean of each of ``count`` parts, at most ``side``, of a side: count x side."""
    part = torch.arange(side, device=like.device) * count // side
    is_own = (part == torch.arange(count, device=like.device)[:, None]).to(like.dtype)
    return is_own / is_own.sum(dim=1, keepdim=True)

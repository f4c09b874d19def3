"""Features as pictures, for a person who watches a run."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from segearth_cli.training.data import Crop

SHOWN = 3  # crops


def shown(crops: Sequence[Crop]) -> Sequence[Crop]:
    """Those that a picture is made of."""
    return crops[:: max(1, len(crops) // SHOWN)][:SHOWN]


def coloured(*features: Tensor) -> list[Tensor]:
    """Maps of features in the colours of their three leading directions, common to all.

    Args:
        features: C x h x w each, of any size.

    Returns:
        3 x h x w in [0, 1] each.
    """
    tokens = [x.float().flatten(1).T for x in features]  # N C
    every = torch.cat([x[:: max(1, len(x) // 4096)] for x in tokens])
    middle = every.mean(0)
    _, _, directions = torch.linalg.svd(every - middle, full_matrices=False)
    projected = [(x - middle) @ directions[:3].T for x in tokens]
    low, high = torch.quantile(torch.cat(projected), torch.tensor([0.01, 0.99]).to(middle), dim=0)
    scaled = [((x - low) / (high - low).clamp(min=1e-12)).clamp(0, 1) for x in projected]
    return [
        F.pad(x.T, (0, 0, 0, 3 - x.shape[1])).unflatten(1, feature.shape[1:])
        for x, feature in zip(scaled, features, strict=True)
    ]


def side_by_side(first: Tensor, *others: Tensor) -> Tensor:
    """Pictures 3 x h x w of any size beside the first, as high as it: 3 x H x W, on the CPU."""
    size = first.shape[-2:]
    same = [F.interpolate(picture[None].float(), size)[0] for picture in (first, *others)]
    return torch.cat(same, dim=2).cpu()

"""Features as pictures, for a person who watches a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from segearth_cli.training.data import Crop

SHOWN = 3  # crops


def shown(crops: Sequence[Crop]) -> Sequence[Crop]:
    """Those that a picture is made of."""
    return crops[:: max(1, len(crops) // SHOWN)][:SHOWN]


@dataclass(frozen=True)
class Colours:
    """Features' three leading directions as red, green and blue.

    Attributes:
        middle: C.
        directions: C x 3, or as many as there are.
        low, high: along each direction, what is shown as dark and as bright.
    """

    middle: Tensor
    directions: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, features: Sequence[Tensor]) -> Colours:
        """Those of some maps, C x h x w each: take features that no step changes."""
        tokens = torch.cat([x.float().flatten(1).T for x in features])  # N C
        middle = tokens.mean(0)
        _, _, directions = torch.linalg.svd(tokens - middle, full_matrices=False)
        directions = directions[:3].T
        shares = torch.tensor([0.01, 0.99]).to(tokens)
        low, high = torch.quantile((tokens - middle) @ directions, shares, dim=0)
        return cls(middle, directions, low, high)

    def __call__(self, features: Tensor) -> Tensor:
        """A map in colours: C x h x w -> 3 x h x w in [0, 1]."""
        projected = (features.float().flatten(1).T - self.middle) @ self.directions  # N 3
        scaled = (projected - self.low) / (self.high - self.low).clamp(min=1e-12)
        rgb = F.pad(scaled.clamp(0, 1).T, (0, 0, 0, 3 - scaled.shape[1]))
        return rgb.unflatten(1, features.shape[1:])


def side_by_side(first: Tensor, *others: Tensor) -> Tensor:
    """Pictures 3 x h x w of any size beside the first, as high as it: 3 x H x W, on the CPU."""
    size = first.shape[-2:]
    same = [F.interpolate(picture[None].float(), size)[0] for picture in (first, *others)]
    return torch.cat(same, dim=2).cpu()

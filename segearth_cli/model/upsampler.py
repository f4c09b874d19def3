"""Feature upsamplers guided by the image: SimFeatUp's JBU_One and FeatUp's JBU_Stack.

Joint bilateral upsampling (paper 3.2): every pixel of the doubled grid takes a weighted sum of
the features around it, the weights coming from the image alone. ``None`` in place of an upsampler
means bilinear interpolation of the logits, which is all that patch features allow.
"""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segearth_cli.errors import ModelError
from segearth_cli.model.files import read_checkpoint
from segearth_cli.model.neighbourhood import similarities, weighted_sum

KEY_DIM = 32
CHECKPOINT_PREFIX = "upsampler."


class JBU(nn.Module):
    """One doubling of the features' resolution.

    Args:
        radius: of the square neighbourhood whose features a pixel sums; 5 means 11 x 11.
    """

    def __init__(self, radius: int) -> None:
        super().__init__()
        self.radius = radius
        neighbourhood = (2 * radius + 1) ** 2
        self.range_temp = nn.Parameter(torch.tensor(0.0))
        self.sigma_spatial = nn.Parameter(torch.tensor(1.0))
        self.range_proj = nn.Sequential(
            nn.Conv2d(3, KEY_DIM, 1), nn.GELU(), nn.Dropout2d(0.1), nn.Conv2d(KEY_DIM, KEY_DIM, 1)
        )
        self.fixup_proj = nn.Sequential(
            nn.Conv2d(neighbourhood + 3, neighbourhood, 1),
            nn.GELU(),
            nn.Dropout2d(0.1),
            nn.Conv2d(neighbourhood, neighbourhood, 1),
        )

    def forward(self, features: Tensor, guidance: Tensor) -> Tensor:
        """Features at the guidance's size: B C h w, B 3 H W -> B C H W."""
        resized = F.interpolate(features, guidance.shape[-2:], mode="bicubic", align_corners=False)
        return weighted_sum(resized, self.kernel(guidance), self.radius)

    def kernel(self, guidance: Tensor) -> Tensor:
        """Weight of each neighbour, row by row of the neighbourhood: B 3 H W -> B K H W."""
        kernel = self.range_kernel(guidance) * self.spatial_kernel()[None, :, None, None]
        kernel = kernel / kernel.sum(1, keepdim=True).clamp(min=1e-7)
        return kernel + 0.1 * self.fixup_proj(torch.cat([kernel, guidance], dim=1))

    def range_kernel(self, guidance: Tensor) -> Tensor:
        """Softmax over the neighbourhood of the keys' similarity to the centre's: B K H W."""
        similarity = similarities(self.range_proj(guidance), self.radius)
        return torch.softmax(similarity * self.range_temp.exp().clamp(1e-4, 1e4), dim=1)

    def spatial_kernel(self) -> Tensor:
        """Gaussian of the distance to the centre, on a grid from -1 to 1: K."""
        axis = torch.linspace(-1, 1, 2 * self.radius + 1, device=self.sigma_spatial.device)
        squared = axis[:, None] ** 2 + axis[None, :] ** 2
        return torch.exp(-squared / (2 * self.sigma_spatial**2)).flatten()


def least_patches(radius: int) -> int:
    """Patches a side that a neighbourhood needs.

    They are doubled before the first one is looked at, and its reflection at the border needs more
    pixels than the radius.
    """
    return max(2, radius // 2 + 1)


def pointwise_weights(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Weights (out x in) and biases of a convolution with a kernel of one pixel."""
    assert isinstance(layer, nn.Conv2d)
    assert layer.bias is not None
    return layer.weight.flatten(1), layer.bias


class Upsampler(nn.Module):
    """What JBU_One and JBU_Stack share: repeated doubling, then a small residual mixing.

    Args:
        channels: of the features, kept.
        radius: of its doublings.
    """

    smallest_grid = 3  # patches a side

    def __init__(self, channels: int, radius: int) -> None:
        super().__init__()
        self.smallest_grid = max(self.smallest_grid, least_patches(radius))
        self.fixup_proj = nn.Sequential(nn.Dropout2d(0.2), nn.Conv2d(channels, channels, 1))

    def steps(self, ratio: int) -> list[JBU]:
        """The module of each doubling on the way from a patch of ``ratio`` pixels to a pixel."""
        raise NotImplementedError

    def forward(self, features: Tensor, image: Tensor) -> Tensor:
        """Features at pixel resolution.

        Args:
            features: B x C x h x w, one per patch.
            image: B x 3 x H x W, normalised as for the encoder.

        Returns:
            B x C x h * 2^n x w * 2^n, n the number of doublings.
        """
        for jbu in self.steps(image.shape[-2] // features.shape[-2]):
            size = (2 * features.shape[-2], 2 * features.shape[-1])
            features = jbu(features, F.adaptive_avg_pool2d(image, size))
        return features + 0.1 * self.fixup_proj(features)


class JBUOne(Upsampler):
    """SimFeatUp: one module, repeated until a feature per pixel is reached (paper 3.2.3)."""

    def __init__(self, channels: int, radius: int = 5) -> None:
        super().__init__(channels, radius)
        self.up = JBU(radius)

    def steps(self, ratio: int) -> list[JBU]:
        """The one module, as often as it doubles into ``ratio`` (rounded up for patch 14)."""
        return [self.up] * math.ceil(math.log2(ratio))


class JBUStack(Upsampler):
    """FeatUp: four modules, a module for each doubling."""

    def __init__(self, channels: int, radius: int = 3) -> None:
        super().__init__(channels, radius)
        self.up1, self.up2, self.up3, self.up4 = (JBU(radius) for _ in range(4))

    def steps(self, ratio: int) -> list[JBU]:
        """All four modules: the stack is made for patches of 14 and 16 pixels."""
        if math.ceil(math.log2(ratio)) != 4:
            raise ModelError(
                f"a JBU stack has four doublings and cannot serve patches of {ratio} pixels; "
                "use a JBU_One upsampler or --upsampler bilinear"
            )
        return [self.up1, self.up2, self.up3, self.up4]


def build_upsampler(state: dict[str, Tensor], channels: int, origin: str) -> Upsampler:
    """The upsampler whose weights ``state`` holds, in evaluation mode.

    Args:
        state: parameters named as in ``JBUOne`` or ``JBUStack``.
        channels: of the encoder's features.
        origin: where the weights come from, for messages.

    Raises:
        ModelError: the weights are of neither kind, or for features of another width.
    """
    kind, first = (JBUOne, "up") if "up.range_temp" in state else (JBUStack, "up1")
    try:
        # An 11 x 11 neighbourhood has 121 weights: the radius is read off the last layer's bias.
        neighbourhood = len(state[f"{first}.fixup_proj.3.bias"])
        upsampler = kind(channels, radius=(math.isqrt(neighbourhood) - 1) // 2)
        upsampler.load_state_dict(state)
    except (KeyError, RuntimeError) as error:
        width = len(state.get("fixup_proj.1.bias", []))
        raise ModelError(
            f"{origin} does not hold an upsampler for features of {channels} channels"
            + (f" (it has {width})" if width not in (0, channels) else "")
            + "; use the one trained for this model, or --upsampler bilinear"
        ) from error
    return upsampler.eval()


def read_upsampler_state(path: Path) -> dict[str, Tensor]:
    """Upsampler weights of our ``.safetensors`` or of the authors' Lightning ``.ckpt``.

    Raises:
        ModelError: the file is damaged, or holds no upsampler.
    """
    state = read_checkpoint(path)
    if path.suffix == ".safetensors":
        return state
    weights = {
        name.removeprefix(CHECKPOINT_PREFIX): value.float()
        for name, value in state.items()
        if name.startswith(CHECKPOINT_PREFIX)
    }
    if not weights:
        raise ModelError(f"{path} holds no weights named {CHECKPOINT_PREFIX}*; give SimFeatUp's")
    return weights

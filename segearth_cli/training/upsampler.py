"""``segearth train-upsampler``: SimFeatUp learns to upsample a frozen encoder's features (3.2).

Each crop's features are upsampled, jittered like its image, and downsampled again: they must come
out as the encoder sees the jittered image. A second loss asks that the upsampled features still
hold the image.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from segearth_cli.errors import ModelError, UsageError
from segearth_cli.geo.sensors import parse_stretch
from segearth_cli.model.card import ModelCard
from segearth_cli.model.clip import DenseEncoder
from segearth_cli.model.folder import save_model_folder
from segearth_cli.model.upsampler import JBU, JBUOne, JBUStack, Upsampler, least_patches
from segearth_cli.options import SceneOptions, UpsamplerOptions
from segearth_cli.training.data import Batch, Opener, RandomCrops, fixed_crops
from segearth_cli.training.loop import train
from segearth_cli.training.losses import (
    content_loss,
    random_directions,
    reconstruction_error,
    uncertain_reconstruction,
)
from segearth_cli.training.pictures import Colours, shown, side_by_side
from segearth_cli.training.pretrained import Pretrained
from segearth_cli.training.report import TrainResult
from segearth_cli.training.sources import ask_about_radar, image_sources
from segearth_cli.training.trainee import Scalars, Step

PAD = 20  # pixels of reflection that a jitter may show
MOST_ZOOM = 2.0
START_SIGMA = 0.3  # of the Gaussian over a neighbourhood from -1 to 1: the best of 0.1 to 1
CAREFUL_STEPS = 10  # with very short gradients, in the beginning
CAREFUL_NORM = 1e-4
HELD_OUT_CROPS = 32

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Jitter:
    """A view of a crop: zoomed, shifted, mirrored; the same for image and features.

    Attributes:
        zoom: from 1 on.
        x, y: the view's middle, in halves of the crop's side from its middle.
        mirrored: left and right swapped.
    """

    zoom: float = 1.0
    x: float = 0.0
    y: float = 0.0
    mirrored: bool = False

    @classmethod
    def random(cls, side: int, generator: torch.Generator) -> Jitter:
        """A view that shows at most ``PAD`` pixels of the reflection around the crop."""
        zooms, mirrored, zoom, x, y = torch.rand(5, generator=generator).tolist()
        zoom = 1 + zoom * (MOST_ZOOM - 1) if zooms > 0.5 else 1.0
        room = 1 + 2 * PAD / side - 1 / zoom
        return cls(zoom, (2 * x - 1) * room, (2 * y - 1) * room, mirrored > 0.5)

    def __call__(self, x: Tensor) -> Tensor:
        """The view of an image or of features: B C H W, kept."""
        across = -1 / self.zoom if self.mirrored else 1 / self.zoom
        theta = torch.tensor([[across, 0, self.x], [0, 1 / self.zoom, self.y]])
        theta = theta.to(x).expand(len(x), 2, 3)
        grid = F.affine_grid(theta, list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)


class AttentionDownsampler(nn.Module):
    """FeatUp's: each feature is a weighted mean of a patch of upsampled ones.

    Args:
        channels: of the features.
        kernel: pixels a side of a patch; patches lie side by side.
    """

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.attention = nn.Conv2d(channels, 1, 1)
        self.dropout = nn.Dropout(0.2)
        self.weight = nn.Parameter(1 + 0.01 * torch.randn(kernel, kernel))
        self.bias = nn.Parameter(0.01 * torch.randn(kernel, kernel))

    def forward(self, features: Tensor) -> Tensor:
        """B C H W -> B C H/kernel W/kernel."""
        blurred = gaussian_blur(features, 5, 1.0)
        scores = self._patches(self.attention(blurred))[:, 0]  # B h w k k
        keep = self.dropout(torch.ones_like(scores[..., :1, :1])) > 0  # of whole patches
        scores = scores * keep * self.weight + self.bias
        weights = scores.flatten(-2).softmax(-1).view_as(scores)
        return torch.einsum("bchwij,bhwij->bchw", self._patches(blurred), weights)

    def _patches(self, x: Tensor) -> Tensor:
        """The patches, as a view: B C H W -> B C h w k k."""
        return x.unfold(2, self.kernel, self.kernel).unfold(3, self.kernel, self.kernel)


class ContentRetention(nn.Module):
    """CRN: an image from upsampled features (paper 3.2.1).

    Args:
        channels: of the features.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(channels, channels, 1)
        self.norm = nn.LayerNorm(channels)
        self.colour = nn.Conv2d(channels, 3, 1)

    def forward(self, features: Tensor) -> Tensor:
        """B C H W -> B 3 H W in [-1, 1]."""
        mixed = self.norm(self.mix(features).movedim(1, -1)).movedim(-1, 1)
        return torch.tanh(self.colour(F.gelu(mixed)))


class Uncertainty(nn.Module):
    """How badly each feature can be rebuilt: s = exp(0.1 net + 0.1).

    Args:
        channels: of the features.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.net = nn.Conv2d(channels, 1, 1)

    def forward(self, features: Tensor) -> Tensor:
        """B C h w -> B 1 h w."""
        return torch.exp(0.1 * self.net(features) + 0.1)


class SimFeatUp(nn.Module):
    """All that learns.

    Args:
        upsampler: what is kept in the end.
        channels: of the features.
        kernel: of the downsampler.
        retains_content: whether there is a content retention network.
    """

    def __init__(
        self, upsampler: Upsampler, channels: int, kernel: int, retains_content: bool
    ) -> None:
        super().__init__()
        self.upsampler = upsampler
        self.downsampler = AttentionDownsampler(channels, kernel)
        self.uncertainty = Uncertainty(channels)
        self.retention = ContentRetention(channels) if retains_content else None


@torch.no_grad()
def start_plainly(upsampler: Upsampler) -> None:
    """Begin as a narrow blur, without corrections.

    From the usual random weights the corrections to the kernels change what these sum up to, in
    every doubling, and hundreds of steps pass before features are as long again as they were.
    """
    corrections = [upsampler.fixup_proj[1]]
    for step in upsampler.children():
        if isinstance(step, JBU):
            step.sigma_spatial.fill_(START_SIGMA)
            corrections.append(step.fixup_proj[3])
    for layer in corrections:
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)


ENCODERS: dict[str, Callable[[nn.Module], Callable[[Tensor], Tensor]]] = {
    "last-input": lambda visual: DenseEncoder(visual).last_input,
    "output": lambda visual: _patches_of(DenseEncoder(visual, "vanilla", residual=True)),
    "maskclip": lambda visual: _patches_of(DenseEncoder(visual, "maskclip")),
}


def _patches_of(encoder: DenseEncoder) -> Callable[[Tensor], Tensor]:
    return lambda images: encoder(images)[0]


def scene_of(options: SceneOptions, card: ModelCard) -> SceneOptions:
    """How images are read for a model: as its own sensor's and by its filter, unless said.

    Raises:
        UsageError: a filter for radar is asked for, and the images are not.
    """
    sensor = card.sensor if options.sensor == "auto" else options.sensor
    if sensor == "sar":
        return card.radar_read(replace(options, sensor=sensor))
    for option, value, usual in (
        ("--speckle", options.speckle or 0, 0),
        ("--sar-unit", options.sar_unit, "auto"),
    ):
        if value != usual:
            raise UsageError(
                f"{option} {value} is for radar, and these images are read as optical ones; say "
                "--sensor sar, or leave it out"
            )
    return replace(options, sensor=sensor)


class UpsamplerTraining:
    """The trainee of ``train-upsampler``.

    Raises:
        SegEarthError: the model or the images cannot be used.
    """

    record = "upsampler_training"

    def __init__(self, options: UpsamplerOptions, device: torch.device) -> None:
        self.options = options
        parse_stretch(options.scene.stretch)
        said = options.scene.sensor
        self.model = model = Pretrained(options, device, "sar" if said == "sar" else "optical")
        scene = scene_of(options.scene, model.folder.card)
        self.encode = ENCODERS[options.features](model.visual)
        self.grid = options.crop // model.patch
        self.ratio = options.ratio or 2 ** math.ceil(math.log2(model.patch))
        least = least_patches(options.kernel // 2)
        if self.grid < least:
            raise UsageError(
                f"--crop {options.crop} is {self.grid} of the model's patches a side, too few for "
                f"--kernel {options.kernel}; give {least * model.patch} or more"
            )
        upsampler = (JBUStack if options.stack else JBUOne)(model.channels, options.kernel // 2)
        try:
            upsampler.steps(self.ratio)
        except ModelError as error:  # a stack is not made for all patches
            raise UsageError(
                f"--stack has four doublings, too many or too few for {model.folder.card.name}'s "
                f"patches of {model.patch} pixels; leave --stack out"
            ) from error
        start_plainly(upsampler)
        self.module = SimFeatUp(
            upsampler, model.channels, self.ratio, options.content_weight > 0
        ).to(device)
        self.sources = image_sources(options.images, options.held_out, scene)
        if scene.sensor == "optical" and said == "auto":
            ask_about_radar(self.sources)
        self.crops = RandomCrops(self.sources.train, Opener(scene), options.crop, options.seed)
        self.fixed, unusable = fixed_crops(
            self.sources.held_out, Opener(scene), options.crop, HELD_OUT_CROPS
        )
        self.sources = self.sources.without(unusable)

    def optimizer(self, learning_rate: float) -> torch.optim.Optimizer:
        """NAdam."""
        return torch.optim.NAdam(self.module.parameters(), lr=learning_rate)

    def longest_gradient(self, step: int) -> float | None:
        """Tiny in the first steps."""
        return CAREFUL_NORM if step < CAREFUL_STEPS else None

    def accumulate(self, parts: Sequence[Batch], step: Step) -> Scalars:
        """Every part in every jittered view, each with its own backward."""
        options, channels = self.options, self.model.channels
        views = [
            (
                Jitter.random(options.crop, step.generator),
                random_directions(channels, options.directions, step.generator).to(
                    self.model.device
                ),
            )
            for _ in range(options.jitters)
        ]
        share = 1 / (len(parts) * len(views))
        total: Scalars = {}
        for part in parts:
            image = self.model.normalised(part.images[0])
            features = self._features(image)
            for jitter, directions in views:
                losses = self._losses(image, features, jitter, directions)
                step.backward(share * losses["loss"])
                for name, value in losses.items():
                    total[name] = total.get(name, torch.zeros(())) + share * value.detach()
        return total

    def _losses(
        self, image: Tensor, features: Tensor, jitter: Jitter, directions: Tensor
    ) -> Scalars:
        """The loss in one view (eq. 5), and its parts."""
        view = jitter(image)
        target = self._features(view)
        upsampled = jitter(self.module.upsampler(features, self._guidance(image)))
        rebuilt = self.module.downsampler(upsampled)
        uncertainty = self.module.uncertainty(target)
        loss = uncertain_reconstruction(target, rebuilt, uncertainty, directions)
        parts = {"uncertain": loss, "reconstruction": reconstruction_error(target, rebuilt)}
        if self.module.retention is not None:
            content = content_loss(
                2 * self._guidance(self.model.unnormalised(view)) - 1,
                self.module.retention(upsampled),
            )
            loss = loss + self.options.content_weight * content
            parts["content"] = content
        return {"loss": loss, **parts}

    @torch.no_grad()
    def _features(self, image: Tensor) -> Tensor:
        with self.model.autocast():
            return self.encode(image).float()

    def _guidance(self, image: Tensor) -> Tensor:
        """The image as large as upsampled features: itself, unless the ratio asks for another."""
        side = self.grid * self.ratio
        return image if side == image.shape[-1] else F.adaptive_avg_pool2d(image, side)

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Plain error of the rebuilt features in jittered views of held-out crops (eq. 3).

        With the learned downsampler, and with the mean over patches in its place, beside the same
        for bilinear upsampling.
        """
        generator = torch.Generator().manual_seed(0)
        sums = {"reconstruction": 0.0, "by_mean": 0.0, "bilinear_by_mean": 0.0}
        for crop in self.fixed:
            image = self.model.normalised(crop.images[0][None].to(self.model.device))
            features = self._features(image)
            jitter = Jitter.random(self.options.crop, generator)
            target = self._features(jitter(image))
            guidance = self._guidance(image)
            upsampled = jitter(self.module.upsampler(features, guidance))
            bilinear = jitter(F.interpolate(features, guidance.shape[-2:], mode="bilinear"))
            for name, rebuilt in (
                ("reconstruction", self.module.downsampler(upsampled)),
                ("by_mean", F.avg_pool2d(upsampled, self.ratio)),
                ("bilinear_by_mean", F.avg_pool2d(bilinear, self.ratio)),
            ):
                sums[name] += float(reconstruction_error(target, rebuilt))
        return {name: value / len(self.fixed) for name, value in sums.items()}

    @cached_property
    def colours(self) -> Colours:
        """Of the frozen features: the same in every step."""
        images = (crop.images[0][None].to(self.model.device) for crop in shown(self.fixed))
        return Colours.of([self._features(self.model.normalised(image))[0] for image in images])

    @torch.no_grad()
    def pictures(self) -> dict[str, Tensor]:
        """An image, its features and its upsampled features, side by side."""
        panels = []
        for crop in shown(self.fixed):
            image = crop.images[0][None].to(self.model.device)
            normalised = self.model.normalised(image)
            features = self._features(normalised)
            upsampled = self.module.upsampler(features, self._guidance(normalised))
            maps = (self.colours(x[0]) for x in (features, upsampled))
            panels.append(side_by_side(image[0], *maps))
        return {"image, features, upsampled": torch.cat(panels, dim=1)}

    def export(self, folder: Path, facts: dict[str, Any]) -> None:
        """The model folder: the encoder as it was, with the upsampler."""
        card = replace(
            self.model.folder.card,
            name=folder.resolve().name,
            description=f"{self.model.folder.card.name} with an upsampler trained by segearth",
            made_by=facts["command"],
            extra={**self.model.folder.card.extra, self.record: facts},
        )
        save_model_folder(
            folder,
            self.model.clip.state_dict(),
            self.model.folder.read_config(),
            card,
            self.module.upsampler.state_dict(),
            into=True,
        )


def train_upsampler(options: UpsamplerOptions) -> TrainResult | None:
    """Train SimFeatUp for a model.

    Raises:
        Stopped: by the user; everything is saved.
        SegEarthError: what was expected to go wrong.
    """
    return train(options, lambda device: UpsamplerTraining(options, device), "train-upsampler")

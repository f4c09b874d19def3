"""``segearth distill-sar``: AlignEarth teaches an optical encoder to read radar images (4.2).

Teacher and student begin as the same image encoder. The teacher sees the optical image and never
changes; the student sees the radar image of the same place and must come to the same features: of
the whole (eq. 10 and 11) and of regions, which forgive small shifts (eq. 12).
"""

from __future__ import annotations

import contextlib
import copy
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segearth_cli.errors import SceneError, UsageError
from segearth_cli.geo.bands import named_bands, polarisation_of
from segearth_cli.geo.raster import open_scene
from segearth_cli.geo.sensors import parse_stretch
from segearth_cli.geo.source import band_facts, open_raster
from segearth_cli.model.card import ModelCard
from segearth_cli.model.clip import DenseEncoder
from segearth_cli.model.folder import save_model_folder
from segearth_cli.model.upsampler import read_upsampler_state
from segearth_cli.options import DistillOptions, SceneOptions
from segearth_cli.training.data import Batch, Opener, RandomCrops, fixed_crops
from segearth_cli.training.loop import train
from segearth_cli.training.losses import contrastive_loss, region_distance, token_distance
from segearth_cli.training.pictures import Colours, shown, side_by_side
from segearth_cli.training.pretrained import Pretrained
from segearth_cli.training.report import TrainResult
from segearth_cli.training.sources import Place, pair_sources
from segearth_cli.training.trainee import Scalars, Step

logger = logging.getLogger(__name__)

HIGHEST_INVERSE_TEMPERATURE = 100.0  # as CLIP's own training has it
HELD_OUT_CROPS = 256
HELD_OUT_BATCH = 16
_LOOKED_AT = 16  # pairs, for what their radar images are


@dataclass(frozen=True)
class Features:
    """What an encoder makes of images: class tokens N x D and patches N x D x h x w, float32."""

    tokens: Tensor
    patches: Tensor


class Student(nn.Module):
    """All that learns: the radar image encoder, and the temperature of the contrast.

    Args:
        visual: an open_clip vision tower.
        temperature: in the beginning.
        checkpointing: see `DenseEncoder`.
    """

    def __init__(self, visual: nn.Module, temperature: float, checkpointing: bool) -> None:
        super().__init__()
        self.encoder = plain_encoder(visual)
        self.encoder.checkpointing = checkpointing
        self.log_inverse_temperature = nn.Parameter(torch.tensor(-math.log(temperature)))
        self.limit_temperature()

    @torch.no_grad()
    def limit_temperature(self) -> None:
        """Bring the temperature back where a step left it too low.

        In place: a limit in the forward pass would have no gradient, and keep it there.
        """
        self.log_inverse_temperature.clamp_(max=math.log(HIGHEST_INVERSE_TEMPERATURE))


def plain_encoder(visual: nn.Module) -> DenseEncoder:
    """The encoder's plain forward, whose features are distilled."""
    return DenseEncoder(visual, "vanilla", residual=True)


def _as_all_are_shown(scene: SceneOptions, places: Sequence[Place]) -> SceneOptions:
    """The same by the first radar image that can be read so: others are left out."""
    for place in places[:_LOOKED_AT]:
        with contextlib.suppress(SceneError, UsageError):
            return _as_shown(scene, place.sources[1])
    return scene


def _as_shown(scene: SceneOptions, source: str) -> SceneOptions:
    """The options of radar images, of which ``source`` is one, with what others are to be like: the
    polarisation of the bands that they name, and the decibels of the values.

    Amplitudes have no decibels that another product's could be compared with.
    """
    stretch = parse_stretch(scene.stretch, "sar-")
    if scene.bands:
        with open_raster(source) as src:
            facts = band_facts(src)
        names = tuple(facts.descriptions[b - 1] for b in named_bands(facts, scene.bands, "sar-"))
        polarisation = polarisation_of(names) or polarisation_of(scene.bands)
        scene = replace(scene, polarisation=polarisation)
    if stretch.kind != "auto":
        span = (stretch.low, stretch.high) if stretch.kind == "values" else None
        with open_scene(source, scene, prefix="sar-") as opened_scene:
            is_calibrated = opened_scene.is_calibrated
        scene = replace(scene, radar_db=span if is_calibrated else None)
    return scene


class Distillation:
    """The trainee of ``distill-sar``.

    Raises:
        SegEarthError: the model or the pairs cannot be used.
    """

    record = "distillation"

    def __init__(self, options: DistillOptions, device: torch.device) -> None:
        self.options = options
        parse_stretch(options.optical_scene.stretch)
        parse_stretch(options.sar_scene.stretch, "sar-")
        self.model = Pretrained(options, device)
        self.sar_scene = self.model.folder.card.radar_read(options.sar_scene)
        scenes = (options.optical_scene, self.sar_scene)
        visual = copy.deepcopy(self.model.visual).requires_grad_(True)
        self.module = Student(visual, options.temperature, options.checkpointing).to(device)
        self.teacher = plain_encoder(self.model.visual).eval()
        patch = self.teacher.patch_size
        if options.crop // patch < options.regions:
            raise UsageError(
                f"--crop {options.crop} is {options.crop // patch} patches a side, too few for "
                f"--regions {options.regions}; give a --crop of {options.regions * patch} or more, "
                "or fewer regions"
            )
        bands = {options.optical_scene.bands, options.sar_scene.bands}
        self.sources = pair_sources(
            options.optical,
            options.sar,
            options.pairs,
            options.held_out,
            options.optical_scene,
            one_file=all(bands) and len(bands) == 2,
        )
        self.sar_scene = _as_all_are_shown(self.sar_scene, self.sources.train)
        if options.batch_size == 1:
            logger.warning(
                "--batch-size 1 leaves nothing to tell a pair from: contrast is 0, and only token "
                "and region teach; give 2 or more"
            )
        places = self.sources.train + self.sources.held_out
        turned = [place.sources[0] for place in places if place.looks_like_radar]
        if turned:
            logger.warning(
                "of %d optical images %d look like radar, %s first: are --optical and --sar the "
                "right way round?",
                len(places),
                len(turned),
                turned[0],
            )
        self.crops = RandomCrops(
            self.sources.train,
            Opener(*scenes),
            options.crop,
            options.seed,
            turns=True,
        )
        self.fixed, unusable = fixed_crops(
            self.sources.held_out,
            Opener(*scenes),
            options.crop,
            HELD_OUT_CROPS,
        )
        self.sources = self.sources.without(unusable)

    def optimizer(self, learning_rate: float) -> torch.optim.Optimizer:
        """AdamW, which keeps to the limit of the temperature."""
        adam = torch.optim.AdamW(self.module.parameters(), lr=learning_rate)
        adam.register_step_post_hook(lambda *_: self.module.limit_temperature())
        return adam

    def longest_gradient(self, step: int) -> float | None:
        """Of any length."""
        return None

    def accumulate(self, parts: Sequence[Batch], step: Step) -> Scalars:
        """The gradients of the whole batch, whatever the parts it comes in.

        The contrast compares every pair with all others. So the class tokens of all parts come
        first, without what going backward needs; then each part again, pulled where the contrast
        wants its tokens. A batch in one part is encoded once.
        """
        teacher = [self._teacher(part.images[0]) for part in parts]
        with torch.set_grad_enabled(len(parts) == 1):
            student = [self._student(part.images[1]) for part in parts]
        contrast, pulls, pull_of_temperature = self._contrast(teacher, student, step)
        distances = torch.zeros(2, device=self.model.device)  # of tokens, of regions
        for number, (part, wanted, pull) in enumerate(zip(parts, teacher, pulls, strict=True)):
            own = student[0] if len(parts) == 1 else self._student(part.images[1])
            token = token_distance(wanted.tokens, own.tokens) / len(parts)
            region = region_distance(wanted.patches, own.patches, self.options.regions) / len(parts)
            loss = token + region + (own.tokens * pull).sum()
            if number == 0:
                loss = loss + self.module.log_inverse_temperature * pull_of_temperature
            step.backward(loss)
            distances += torch.stack([token, region]).detach()
        return {
            "loss": contrast + distances.sum(),
            "contrast": contrast,
            "token": distances[0],
            "region": distances[1],
            "temperature": (-self.module.log_inverse_temperature.detach()).exp(),
        }

    def _contrast(
        self, teacher: Sequence[Features], student: Sequence[Features], step: Step
    ) -> tuple[Tensor, Sequence[Tensor], Tensor]:
        """The contrastive loss, and its gradients by each part's tokens and the temperature."""
        tokens = torch.cat([part.tokens.detach() for part in student]).requires_grad_()
        log_inverse = self.module.log_inverse_temperature.detach().requires_grad_()
        accelerator = step.accelerator
        loss = contrastive_loss(
            torch.cat([part.tokens for part in teacher]),
            tokens,
            log_inverse.exp(),
            accelerator.process_index,
            accelerator.num_processes,
        )
        pull, pull_of_temperature = torch.autograd.grad(loss, [tokens, log_inverse])
        return (
            loss.detach(),
            pull.split([len(part.tokens) for part in student]),
            pull_of_temperature,
        )

    @torch.no_grad()
    def _teacher(self, optical: Tensor) -> Features:
        return self._encoded(self.teacher, optical)

    def _student(self, sar: Tensor) -> Features:
        return self._encoded(self.module.encoder, sar)

    def _encoded(self, encoder: DenseEncoder, images: Tensor) -> Features:
        with self.model.autocast():
            patches, tokens = encoder(self.model.normalised(images))
        return Features(tokens.float(), patches.float())

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Retrieval and likeness on held-out pairs.

        Recall@1: the share of images whose pair is the most similar of all, both ways; mean
        cosine of class tokens, and of regions.
        """
        optical, sar, token, region = [], [], 0.0, 0.0
        for start in range(0, len(self.fixed), HELD_OUT_BATCH):
            some = self.fixed[start : start + HELD_OUT_BATCH]
            images = [
                torch.stack([crop.images[k] for crop in some]).to(self.model.device) for k in (0, 1)
            ]
            wanted, own = self._teacher(images[0]), self._student(images[1])
            share = len(some) / len(self.fixed)
            token += share * (1 - float(token_distance(wanted.tokens, own.tokens)))
            region += share * (
                1 - float(region_distance(wanted.patches, own.patches, self.options.regions))
            )
            optical.append(F.normalize(wanted.tokens, dim=-1))
            sar.append(F.normalize(own.tokens, dim=-1))
        similarity = torch.cat(optical) @ torch.cat(sar).T  # N N
        pair = torch.arange(len(similarity), device=similarity.device)
        return {
            "recall_optical_to_sar": float((similarity.argmax(1) == pair).float().mean()),
            "recall_sar_to_optical": float((similarity.argmax(0) == pair).float().mean()),
            "token_cosine": token,
            "region_cosine": region,
            "pairs": float(len(self.fixed)),
        }

    @cached_property
    def colours(self) -> Colours:
        """Of the teacher's features: the same in every step."""
        images = (crop.images[0][None].to(self.model.device) for crop in shown(self.fixed))
        return Colours.of([self._teacher(image).patches[0] for image in images])

    @torch.no_grad()
    def pictures(self) -> dict[str, Tensor]:
        """Radar and optical image, and the maps of their features, side by side."""
        panels = []
        for crop in shown(self.fixed):
            optical, sar = (image.to(self.model.device) for image in crop.images)
            features = (self._student(sar[None]), self._teacher(optical[None]))
            maps = (self.colours(own.patches[0]) for own in features)
            panels.append(side_by_side(sar, optical, *maps))
        return {"radar, optical, and their features": torch.cat(panels, dim=1)}

    def export(self, folder: Path, facts: dict[str, Any]) -> None:
        """The model folder: the student in the teacher's place, its upsampler as it was."""
        own = self.model.folder
        visual = self.module.encoder.visual.state_dict()
        state = self.model.clip.state_dict() | {f"visual.{name}": w for name, w in visual.items()}
        card = ModelCard.for_sensor(
            folder.resolve().name,
            "sar",
            global_bias=own.card.global_bias,
            logit_scale=own.card.logit_scale,
            window=own.card.window,
            stride=own.card.stride,
            words=own.card.words,
            description=f"{own.card.name} distilled for radar images by segearth",
            licence=own.card.licence,
            made_by=facts["command"],
            speckle=self.sar_scene.speckle,
            radar_db=self.sar_scene.radar_db,
            polarisation=self.sar_scene.polarisation,
            extra={**own.card.extra, self.record: facts},
        )
        upsampler = read_upsampler_state(own.upsampler) if own.upsampler else None
        save_model_folder(folder, state, own.read_config(), card, upsampler, into=True)


def distill_sar(options: DistillOptions) -> TrainResult | None:
    """Distil an optical model for radar images.

    Raises:
        Stopped: by the user; everything is saved.
        SegEarthError: what was expected to go wrong.
    """
    return train(options, lambda device: Distillation(options, device), "distill-sar")

"""The model that a training starts from: frozen, on the run's device, with its own mean and std."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from segearth_cli.device import autocast, pick_precision
from segearth_cli.errors import UsageError
from segearth_cli.model.clip import checked_tower
from segearth_cli.model.folder import load_clip
from segearth_cli.model.weights import resolve_model
from segearth_cli.options import TrainOptions


class Pretrained:
    """A model folder's model.

    Args:
        options: of the training.
        device: that it runs on.
        sensor: of the images; ``auto`` is the model for it.

    Raises:
        UsageError: no such model, the output is its folder, or its patches do not divide crops.
        ModelError: it is not on this machine, damaged, or no plain vision transformer.
    """

    def __init__(
        self, options: TrainOptions, device: torch.device, sensor: str = "optical"
    ) -> None:
        self.folder = resolve_model(options.model, sensor)
        if options.output.resolve() == self.folder.path.resolve():
            raise UsageError(f"-o {options.output} is the model's own folder; name another one")
        self.device = device
        self.precision = pick_precision(options.precision, device)
        self.clip, _ = load_clip(self.folder)
        tower: Any = checked_tower(self.clip.visual, 1)
        self.visual = tower.requires_grad_(False).to(device)
        self.patch = int(self.visual.patch_size[0])
        self.channels = int(self.visual.output_dim)
        if options.crop % self.patch:
            raise UsageError(
                f"--crop {options.crop} is no multiple of the model's patch, {self.patch} pixels; "
                f"give for instance {-(-options.crop // self.patch) * self.patch}"
            )
        self._mean, self._std = (
            torch.tensor(self.visual.preprocess_cfg[name], device=device)[:, None, None]
            for name in ("mean", "std")
        )

    def normalised(self, images: Tensor) -> Tensor:
        """Images in [0, 1] as the encoder takes them."""
        return (images - self._mean) / self._std

    def unnormalised(self, images: Tensor) -> Tensor:
        """And back."""
        return images * self._std + self._mean

    def autocast(self) -> AbstractContextManager[object]:
        """Context in which encoders run, at the run's precision."""
        return autocast(self.device, self.precision)

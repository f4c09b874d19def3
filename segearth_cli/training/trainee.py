"""What the loop asks of a training, and what it gives it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from segearth_cli.training.data import Batch, RandomCrops
from segearth_cli.training.pretrained import Pretrained
from segearth_cli.training.sources import Sources

Scalars = dict[str, Tensor]


@dataclass(frozen=True)
class Step:
    """What a step may use: its number, its luck, and how to go backward."""

    number: int
    generator: torch.Generator  # on the CPU; the same in all processes
    accelerator: Accelerator

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradients."""
        self.accelerator.backward(loss)


class Trainee(Protocol):
    """What is trained, and how: all that differs between the two trainings."""

    record: str  # the key of the model's card that tells how it was trained
    model: Pretrained
    sources: Sources
    crops: RandomCrops

    @property
    def module(self) -> nn.Module:
        """What learns: its weights are in the checkpoints."""

    def optimizer(self, learning_rate: float) -> torch.optim.Optimizer:
        """A fresh optimizer of the module's weights."""

    def accumulate(self, parts: Sequence[Batch], step: Step) -> Scalars:
        """Add the gradients of a batch that comes in parts; return what to log, ``loss`` too."""

    def longest_gradient(self, step: int) -> float | None:
        """Longest gradient allowed in this step; ``None`` for any."""

    def measure(self) -> dict[str, float]:
        """How good it is on what was held out."""

    def pictures(self) -> dict[str, Tensor]:
        """What it sees, 3 x H x W in [0, 1], by title."""

    def export(self, folder: Path, facts: dict[str, Any]) -> None:
        """Write the model as it is into a folder."""

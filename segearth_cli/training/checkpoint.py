"""Where a run stands, saved and found again."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from segearth_cli.errors import OutputError, TrainingError
from segearth_cli.options import TrainOptions
from segearth_cli.training.trainee import Trainee

CHECKPOINT = "checkpoint.pt"
FREE_SETTINGS = {  # may differ between the parts of a run
    "output", "resume", "overwrite", "stop_at", "progress", "workers", "threads", "save_every",
    "log_every", "device",
}  # fmt: skip

logger = logging.getLogger(__name__)


@dataclass
class Run:
    """A run's state beside the weights."""

    step: int = 0
    seconds: float = 0.0
    measured: list[dict[str, float]] = field(default_factory=list)
    skipped: dict[str, None] = field(default_factory=dict)


def save_checkpoint(
    options: TrainOptions, run: Run, trainee: Trainee, optimizer: Any, accelerator: Accelerator
) -> None:
    """All that a resumed run needs, whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    if not accelerator.is_main_process:
        return
    scaler = accelerator.scaler
    content = {
        "step": run.step,
        "seconds": run.seconds,
        "measured": run.measured,
        "skipped": list(run.skipped),
        "module": trainee.module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict() if scaler is not None else None,
        "settings": fixed_settings(options),
    }
    write_whole(options.output / CHECKPOINT, lambda part: torch.save(content, part))


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Have a file written beside its place, and put it there.

    Raises:
        OutputError: it cannot be written; what was there before still is.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        write(part)
        os.replace(part, path)
    except (OSError, RuntimeError) as error:  # torch's own writer raises the latter
        part.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or "the disk may be full"
        raise OutputError(f"cannot write {path}: {reason}") from error


def load_checkpoint(
    options: TrainOptions, run: Run, trainee: Trainee, optimizer: Any, accelerator: Accelerator
) -> None:
    """Put a run back to where it was saved.

    Raises:
        TrainingError: the checkpoint is damaged, or of a run with other settings.
    """
    path = options.output / CHECKPOINT
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        settings, now = saved["settings"], fixed_settings(options)
        other = [name for name in now if settings.get(name) != now[name]]
        if other:
            raise TrainingError(
                f"{path} was made with other settings: "
                + ", ".join(f"{name} {settings.get(name)!r}, not {now[name]!r}" for name in other)
            )
        trainee.module.load_state_dict(saved["module"])
        optimizer.load_state_dict(saved["optimizer"])
        if saved["scaler"] is not None and accelerator.scaler is not None:
            accelerator.scaler.load_state_dict(saved["scaler"])
    except (OSError, RuntimeError, KeyError, ValueError, EOFError) as error:
        raise TrainingError(f"{path} cannot be resumed from: {error}") from error
    run.step, run.seconds = saved["step"], saved["seconds"]
    run.measured, run.skipped = saved["measured"], dict.fromkeys(saved["skipped"])
    logger.info("going on at step %d", run.step)


def fixed_settings(options: TrainOptions) -> dict[str, Any]:
    """The settings that decide what a run computes, as JSON has them."""
    everything = {name: value for name, value in vars(options).items() if name not in FREE_SETTINGS}
    plain: dict[str, Any] = json.loads(json.dumps(everything, default=_plain))
    return plain


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else vars(value)

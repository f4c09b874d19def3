"""Where a run stands, saved and found again."""

from __future__ import annotations

import logging
import os
import reprlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from segearth_cli.errors import OutputError, TrainingError
from segearth_cli.model.files import UNLOADABLE, first_line
from segearth_cli.model.folder import CHECKPOINT
from segearth_cli.options import TrainOptions
from segearth_cli.plain import plain
from segearth_cli.training.trainee import Trainee

FREE_SETTINGS = {  # may differ between the parts of a run
    "output", "resume", "overwrite", "stop_at", "progress", "workers", "threads", "save_every",
    "log_every", "validate_every", "device",
    "precision", "model", "images", "optical", "sar", "pairs",  # the identity tells their contents
}  # fmt: skip

REMEDIES = {  # where a run's identity is another
    "images": "the images are others, or have changed since; bring back those it began with",
    "model": "the model's files have changed since; bring back those it began with",
    "precision": "it ran in {before}, not in {now}; say --precision {before}",
    "processes": "it ran in {before} processes, not in {now}; start as many",
}

logger = logging.getLogger(__name__)


@dataclass
class Run:
    """A run's state beside the weights.

    Attributes:
        identity: what makes it this run.
        steps: in all.
        step: how many are done.
        seconds: that they took.
        sums, summed: of the values to be logged, over the steps since they last were.
        measured: on what was held out, in the order of steps.
        skipped: what could not be used, each reason once.
    """

    identity: dict[str, Any]
    steps: int
    step: int = 0
    seconds: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)
    summed: int = 0
    measured: list[dict[str, float]] = field(default_factory=list)
    skipped: dict[str, None] = field(default_factory=dict)

    @property
    def is_measured(self) -> bool:
        """Whether it was measured after its last step."""
        return bool(self.measured) and self.measured[-1]["step"] == self.step


def identity_of(trainee: Trainee, accelerator: Accelerator) -> dict[str, Any]:
    """What makes a run this one beside its settings; computed once, for all processes."""
    found = None
    if accelerator.is_main_process:
        found = {
            "images": trainee.sources.digest,
            "model": trainee.model.folder.digest(),
            "precision": trainee.model.precision,
            "processes": accelerator.num_processes,
        }
    everywhere: list[Any] = broadcast_object_list([found])
    return dict(everywhere[0])


def save_checkpoint(
    options: TrainOptions, run: Run, trainee: Trainee, optimizer: Any, accelerator: Accelerator
) -> None:
    """All that a resumed run needs, whole or not at all; what all processes skipped is gathered.

    Raises:
        OutputError: it cannot be written.
    """
    run.skipped = dict.fromkeys(gather_object(list(run.skipped)))
    if not accelerator.is_main_process:
        return
    scaler = accelerator.scaler
    content = {
        "step": run.step,
        "seconds": run.seconds,
        "sums": run.sums,
        "summed": run.summed,
        "measured": run.measured,
        "skipped": list(run.skipped),
        "module": trainee.module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict() if scaler is not None else None,
        "settings": fixed_settings(options),
        "identity": run.identity,
    }
    write_whole(options.output / CHECKPOINT, lambda part: torch.save(content, part))


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Have a file written beside its place, onto the disk, and put it there.

    Raises:
        OutputError: it cannot be written; what was there before still is.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        write(part)
        with part.open("rb+") as stream:
            os.fsync(stream.fileno())
        os.replace(part, path)
    except (OSError, RuntimeError) as error:  # torch's own writer raises the latter
        with suppress(OSError):
            part.unlink()
        reason = getattr(error, "strerror", None) or "the disk may be full"
        raise OutputError(f"cannot write {path}: {reason}") from error


def load_checkpoint(
    options: TrainOptions, run: Run, trainee: Trainee, optimizer: Any, accelerator: Accelerator
) -> None:
    """Put a run back to where it was saved.

    Raises:
        TrainingError: the checkpoint is damaged, or another run's.
    """
    path = options.output / CHECKPOINT
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        refuse_another_run(path, saved, fixed_settings(options), run.identity)
        trainee.module.load_state_dict(saved["module"])
        optimizer.load_state_dict(saved["optimizer"])
        if saved["scaler"] is not None and accelerator.scaler is not None:
            accelerator.scaler.load_state_dict(saved["scaler"])
        run.step, run.seconds = saved["step"], saved["seconds"]
        run.sums, run.summed = saved["sums"], saved["summed"]
        run.measured, run.skipped = saved["measured"], dict.fromkeys(saved["skipped"])
    except (*UNLOADABLE, BadZipFile) as error:
        raise TrainingError(
            f"{path} cannot be resumed from: {first_line(error)}; begin anew with --overwrite"
        ) from error
    logger.info("going on at step %d", run.step)


def refuse_another_run(
    path: Path, saved: dict[str, Any], settings: dict[str, Any], identity: dict[str, Any]
) -> None:
    """Refuse to go on with what would end in other weights.

    Raises:
        TrainingError: it would; the message names what differs.
    """
    before, now = dict(_flat(plain(saved["settings"]))), dict(_flat(settings))
    other = [
        f"{name} {reprlib.repr(before.get(name))}, not {reprlib.repr(value)}"
        for name, value in now.items()
        if before.get(name) != value
    ]
    if other:
        raise TrainingError(
            f"{path} was made with other settings: {', '.join(other)}; give the same ones, or "
            "begin anew with --overwrite"
        )
    before = saved["identity"]
    for name, remedy in REMEDIES.items():
        if before[name] != identity[name]:
            remedy = remedy.format(before=before[name], now=identity[name])
            raise TrainingError(
                f"{path} is another run's: {remedy}, or begin anew with --overwrite"
            )


def all_settings(options: TrainOptions) -> dict[str, Any]:
    """Every setting, as JSON has it."""
    settings = dict(plain({**asdict(options), "output": str(options.output)}))
    if options.steps is not None:
        del settings["epochs"]
    return settings


def fixed_settings(options: TrainOptions) -> dict[str, Any]:
    """The settings that decide what a run computes, but for files: the identity has those."""
    settings = all_settings(options)
    return {name: value for name, value in settings.items() if name not in FREE_SETTINGS}


def _flat(settings: dict[str, Any], within: str = "") -> Iterator[tuple[str, Any]]:
    """Settings by name, those of a scene as ``scene.bands``."""
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{within}{name}.")
        else:
            yield within + name, value

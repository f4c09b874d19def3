"""What a run leaves beside its weights: ``training.json``, TensorBoard's logs, the log."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.tensorboard.writer import SummaryWriter

from segearth_cli import __version__
from segearth_cli.errors import OutputError
from segearth_cli.options import TrainOptions
from segearth_cli.training.checkpoint import Run, fixed_settings, write_whole
from segearth_cli.training.trainee import Trainee

REPORT = "training.json"
LOGS = "logs"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """What a run came to."""

    output: str
    steps: int
    seconds: float
    skipped: tuple[str, ...]
    measured: tuple[dict[str, float], ...]  # in the order of steps


class Report:
    """``training.json``, TensorBoard and the log: what a run leaves beside its weights."""

    def __init__(
        self,
        options: TrainOptions,
        trainee: Trainee,
        steps: int,
        command: str,
        accelerator: Accelerator,
        run: Run,
    ) -> None:
        self._options = options
        self._trainee = trainee
        self._steps = steps
        self._recent: list[dict[str, float]] = []
        self._logs = options.output / LOGS
        self._is_main = accelerator.is_main_process
        if not self._is_main:
            return
        sources = trainee.sources
        self._facts: dict[str, Any] = {
            "command": f"segearth {command}",
            "version": __version__,
            "torch": torch.__version__,
            "settings": fixed_settings(options),
            "steps": steps,
            "processes": run.identity["processes"],
            "device": str(accelerator.device),
            "precision": run.identity["precision"],
            "model": run.identity["model"],
            "data": {
                "train": len(sources.train),
                "held_out": [Path(place.sources[0]).name for place in sources.held_out],
                "digest": run.identity["images"],
            },
        }
        with self._writing():
            # what an interrupted run logged after its last checkpoint is logged again
            self._writer = SummaryWriter(str(self._logs), purge_step=run.step + 1)

    def log(self, run: Run, scalars: dict[str, float]) -> None:
        """Means over some steps."""
        if not self._is_main:
            return
        self._recent.append(scalars)
        if run.step % self._options.log_every and run.step < self._steps:
            return
        means = {
            name: sum(one[name] for one in self._recent) / len(self._recent) for name in scalars
        }
        self._recent = []
        with self._writing():
            for name, value in means.items():
                self._writer.add_scalar(f"train/{name}", value, run.step)
        logger.info("step %d of %d: %s", run.step, self._steps, _listed(means))

    def measured(self, run: Run) -> None:
        """The last measurement, pictures, the weights as they are."""
        if not self._is_main:
            return
        values = {name: value for name, value in run.measured[-1].items() if name != "step"}
        pictures = self._trainee.pictures()
        with self._writing():
            for name, value in values.items():
                self._writer.add_scalar(f"held_out/{name}", value, run.step)
            for title, picture in pictures.items():
                self._writer.add_image(title, picture, run.step)
            self._writer.flush()
        logger.info("step %d of %d, held out: %s", run.step, self._steps, _listed(values))
        self._write(run)
        if run.step:
            self._trainee.export(self._options.output, self._facts_of(run))

    def finish(self, run: Run) -> TrainResult:
        """The last words."""
        self._write(run)
        with self._writing():
            self._writer.close()
        output = str(self._options.output)
        return TrainResult(
            output, self._steps, run.seconds, self._skipped(run), tuple(run.measured)
        )

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Raises OutputError where TensorBoard cannot write."""
        try:
            yield
        except OSError as error:
            raise OutputError(f"cannot write into {self._logs}: {error.strerror}") from error

    def _skipped(self, run: Run) -> tuple[str, ...]:
        return (*self._trainee.sources.skipped, *run.skipped)

    def _facts_of(self, run: Run) -> dict[str, Any]:
        return {
            **self._facts,
            "steps_done": run.step,
            "seconds": round(run.seconds, 1),
            "skipped": self._skipped(run),
            "measured": run.measured,
        }

    def _write(self, run: Run) -> None:
        text = json.dumps(self._facts_of(run), indent=2) + "\n"
        path = self._options.output / REPORT
        write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))


def _listed(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())

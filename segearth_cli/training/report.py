"""What a run leaves beside its weights: ``training.json``, TensorBoard's logs, the log."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.tensorboard.writer import SummaryWriter

from segearth_cli import __version__
from segearth_cli.errors import ModelError, OutputError
from segearth_cli.model.folder import REPORT, open_model_folder
from segearth_cli.options import TrainOptions
from segearth_cli.training.checkpoint import Run, all_settings, fixed_settings, write_whole
from segearth_cli.training.trainee import Trainee

LOGS = "logs"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """What a run came to."""

    output: str
    step: int  # the last one
    steps: int  # in all
    seconds: float
    skipped: tuple[str, ...]
    measured: tuple[dict[str, float], ...]  # in the order of steps

    @property
    def status(self) -> str:
        """Whether it is done, or stopped before as it was told to."""
        return "done" if self.step == self.steps else "stopped"


class Report:
    """``training.json``, TensorBoard and the log: what a run leaves beside its weights.

    Made, and used, in the main process only.

    Raises:
        OutputError: the folder takes no logs.
    """

    def __init__(
        self, options: TrainOptions, trainee: Trainee, command: str, device: torch.device, run: Run
    ) -> None:
        self._options = options
        self._trainee = trainee
        self._logs = options.output / LOGS
        self._facts: dict[str, Any] = {
            "command": f"segearth {command}",
            "version": __version__,
            "torch": torch.__version__,
            "steps": run.steps,
            "processes": run.identity["processes"],
            "device": str(device),
            "precision": run.identity["precision"],
            "threads": torch.get_num_threads(),
            "model": run.identity["model"],
        }
        with self._writing():
            self._logs.mkdir(parents=True, exist_ok=True)  # TensorFlow, where it is, errs otherwise
            # what an interrupted run logged after its last checkpoint is logged again
            self._writer = SummaryWriter(str(self._logs), purge_step=run.step + 1)

    def log(self, run: Run, scalars: dict[str, float]) -> None:
        """Means over some steps."""
        run.sums = {name: run.sums.get(name, 0.0) + value for name, value in scalars.items()}
        run.summed += 1
        if run.step % self._options.log_every and run.step < run.steps:
            return
        means = {name: total / run.summed for name, total in run.sums.items()}
        run.sums, run.summed = {}, 0
        with self._writing():
            for name, value in means.items():
                self._writer.add_scalar(f"train/{name}", value, run.step)
        logger.info("step %d of %d: %s", run.step, run.steps, _listed(means))

    def update(self, run: Run) -> None:
        """Write ``training.json``; where the run was just measured, the measures and the model."""
        self._write(run)
        if not run.is_measured:
            return
        self._trainee.module.eval()
        values = {name: value for name, value in run.measured[-1].items() if name != "step"}
        pictures = self._trainee.pictures()
        with self._writing():
            for name, value in values.items():
                self._writer.add_scalar(f"held_out/{name}", value, run.step)
            for title, picture in pictures.items():
                self._writer.add_image(title, picture, run.step)
            self._writer.flush()
        logger.info("step %d of %d, held out: %s", run.step, run.steps, _listed(values))
        if run.step:
            self._trainee.export(self._options.output, self._facts_for_the_model(run))

    def lacks_model(self, run: Run) -> bool:
        """Whether the run was measured after its last step, but its model not written to the end.

        Its card is, last of all its files.
        """
        if not run.is_measured:
            return False
        try:
            card = open_model_folder(self._options.output).card
        except ModelError:
            return True
        facts = card.extra.get(self._trainee.record)
        return not isinstance(facts, dict) or facts.get("steps_done") != run.step

    def finish(self, run: Run) -> TrainResult:
        """The last words."""
        self._write(run)
        return TrainResult(
            str(self._options.output),
            run.step,
            run.steps,
            run.seconds,
            self._skipped(run),
            tuple(run.measured),
        )

    def close(self) -> None:
        """Write what TensorBoard has yet to get."""
        with self._writing():
            self._writer.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Raises OutputError where TensorBoard cannot write."""
        try:
            yield
        except OSError as error:
            raise OutputError(f"cannot write into {self._logs}: {error.strerror}") from error

    def _skipped(self, run: Run) -> tuple[str, ...]:
        return (*self._trainee.sources.skipped, *run.skipped)

    def _facts_for_the_model(self, run: Run) -> dict[str, Any]:
        """Of what ``training.json`` says that which names no file."""
        sources = self._trainee.sources
        return {
            **self._facts,
            "settings": fixed_settings(self._options),
            "data": {
                "train": len(sources.train),
                "held_out": len(sources.held_out),
                "digest": run.identity["images"],
            },
            "steps_done": run.step,
            "seconds": round(run.seconds, 1),
            "skipped": len(self._skipped(run)),
            "measured": run.measured,
        }

    def _write(self, run: Run) -> None:
        facts = self._facts_for_the_model(run)
        facts["settings"] = all_settings(self._options)
        facts["data"]["held_out"] = self._trainee.sources.names_held_out
        facts["skipped"] = self._skipped(run)
        text = json.dumps(facts, indent=2) + "\n"
        path = self._options.output / REPORT
        write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))


def _listed(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())

"""The only training loop: set up, step, measure, save; stop and go on exactly.

What happens in a step depends on the seed and the step's number alone, never on what ran before:
a run that is resumed from a checkpoint ends in the same weights as one that never stopped.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler
from torch.utils.tensorboard.writer import SummaryWriter
from tqdm import tqdm

from segearth_cli import __version__
from segearth_cli.device import pick_device, pick_precision, use_threads
from segearth_cli.errors import OutputError, Stopped, TrainingError, UsageError
from segearth_cli.options import TrainOptions
from segearth_cli.training.data import Batch, RandomCrops, Sources, collate

CHECKPOINT = "checkpoint.pt"
REPORT = "training.json"
LOGS = "logs"
MIXED = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
LONGEST_WAIT = timedelta(hours=12)
FREE_SETTINGS = {  # may differ between the parts of a run
    "output", "resume", "overwrite", "stop_at", "progress", "workers", "threads", "save_every",
    "log_every", "device",
}  # fmt: skip

logger = logging.getLogger(__name__)

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


@dataclass
class Run:
    """A run's state beside the weights."""

    step: int = 0
    seconds: float = 0.0
    measured: list[dict[str, float]] = field(default_factory=list)
    skipped: dict[str, None] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainResult:
    """What a run came to."""

    output: str
    steps: int
    seconds: float
    skipped: tuple[str, ...]
    measured: tuple[dict[str, float], ...]  # in the order of steps


class StepBatches(Sampler[list[int]]):
    """Indices of this process's parts of the batches of some steps."""

    def __init__(self, steps: range, batch: int, parts: int, process: int, processes: int) -> None:
        self._steps = steps
        self._batch = batch
        self._size = batch // parts // processes
        self._parts = parts
        self._process = process
        self._processes = processes

    def __iter__(self) -> Iterator[list[int]]:
        """Part by part, step by step."""
        for step in self._steps:
            for part in range(self._parts):
                share = part * self._processes + self._process
                first = step * self._batch + share * self._size
                yield list(range(first, first + self._size))


def train(
    options: TrainOptions, build: Callable[[torch.device], Trainee], command: str
) -> TrainResult | None:
    """Train until the last step, or until somebody stops it.

    Args:
        options: how long and how fast.
        build: makes the trainee; called when the output is known to be free, and before it is made.
        command: the subcommand's name, for messages.

    Returns:
        What the run came to; nothing where another process says it.

    Raises:
        Stopped: by Ctrl-C, SIGTERM or ``stop_at``; everything is saved.
        TrainingError: the loss is no number, or the checkpoint is another run's.
        SegEarthError: data, model or output cannot be used.
    """
    use_threads(options.threads)
    check_output(options)
    accelerator = start(options)
    try:
        torch.manual_seed(options.seed)  # of the first weights
        trainee = build(accelerator.device)
        accelerator.wait_for_everyone()  # all have looked before one writes
        if accelerator.is_main_process:
            make_output(options)
        steps = options.steps or math.ceil(options.epochs * len(trainee.crops) / options.batch_size)
        optimizer = accelerator.prepare(trainee.optimizer(options.learning_rate))
        run = Run()
        if options.resume:
            load_checkpoint(options, run, trainee, optimizer, accelerator)
        if options.stop_at is not None and options.stop_at <= run.step:
            raise UsageError(
                f"--stop-at {options.stop_at}: the run is at step {run.step} already; give a later "
                "one"
            )
        report = Report(options, trainee, steps, command, accelerator, run.step)
        fit(run, trainee, optimizer, accelerator, options, steps, report)
        if not accelerator.is_main_process:
            return None
        return report.finish(run)
    finally:
        accelerator.end_training()
        AcceleratorState._reset_state()


def check_output(options: TrainOptions) -> None:
    """Refuse a folder that holds something else.

    Raises:
        OutputError: it does.
        UsageError: there is nothing to resume.
    """
    checkpoint = options.output / CHECKPOINT
    if options.resume and not checkpoint.is_file():
        raise UsageError(f"there is no {checkpoint} to go on from; leave --resume out")
    if options.output.exists() and not options.output.is_dir():
        raise OutputError(f"{options.output} is a file; name a folder")
    if options.output.is_dir() and not (options.resume or options.overwrite):
        if any(options.output.iterdir()):
            raise OutputError(
                f"{options.output} exists; use --resume to go on with it or --overwrite to begin "
                "anew in it"
            )


def make_output(options: TrainOptions) -> None:
    """Make the folder; of an older run in it, all but the model goes.

    Raises:
        OutputError: it cannot be made.
    """
    checkpoint = options.output / CHECKPOINT
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        if options.overwrite:
            for old in (checkpoint, options.output / REPORT, *(options.output / LOGS).glob("*")):
                old.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write into {options.output}: {error.strerror}") from error


def start(options: TrainOptions) -> Accelerator:
    """This process's part of the run: its device, its number format, the other processes.

    Raises:
        UsageError: the device is not there, or the batch cannot be shared out.
    """
    device = pick_device(options.device)
    if device.index is not None:
        raise UsageError(
            f"--device {options.device}: say cuda, and choose with CUDA_VISIBLE_DEVICES or torchrun"
        )
    precision = pick_precision(options.precision, device)
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision=MIXED[precision],
        # the others wait while the main process measures
        kwargs_handlers=[InitProcessGroupKwargs(timeout=LONGEST_WAIT)],
    )
    shares = options.accumulate * accelerator.num_processes
    if options.batch_size % shares:
        raise UsageError(
            f"--batch-size {options.batch_size} cannot be shared out evenly to "
            f"{accelerator.num_processes} processes in {options.accumulate} parts"
        )
    return accelerator


def fit(
    run: Run,
    trainee: Trainee,
    optimizer: Any,
    accelerator: Accelerator,
    options: TrainOptions,
    steps: int,
    report: Report,
) -> None:
    """Step after step, with all that happens between them."""
    every = options.validate_every or max(1, len(trainee.crops) // options.batch_size)
    batches = iter(loader(range(run.step, steps), trainee, options, accelerator))
    began = time.monotonic() - run.seconds
    progress = tqdm(
        total=steps, initial=run.step, unit="step", leave=False,
        disable=None if options.progress and accelerator.is_main_process else True,
    )  # fmt: skip
    with stop_requests() as stopping, contextlib.closing(progress):
        if run.step == 0:
            measure(run, trainee, accelerator)
            report.measured(run)
        while run.step < steps:
            parts = [next(batches).to(accelerator.device) for _ in range(options.accumulate)]
            run.skipped |= dict.fromkeys(reason for part in parts for reason in part.skipped)
            scalars = take_step(run.step, parts, trainee, optimizer, accelerator, options, steps)
            run.step += 1
            run.seconds = time.monotonic() - began
            progress.update()
            report.log(run, scalars)
            is_measured = run.step % every == 0 or run.step == steps
            if is_measured:
                measure(run, trainee, accelerator)
            stop = run.step < steps and agreed(
                stopping.is_set() or run.step == options.stop_at, accelerator
            )
            if stop or is_measured or run.step % options.save_every == 0:
                save_checkpoint(options, run, trainee, optimizer, accelerator)
            if is_measured:  # whatever happens when the model is written, the steps are safe
                report.measured(run)
            accelerator.wait_for_everyone()
            if stop:
                raise Stopped(
                    f"stopped at step {run.step} of {steps}, and saved; go on with the same "
                    f"command and --resume"
                )


def loader(
    steps: range, trainee: Trainee, options: TrainOptions, accelerator: Accelerator
) -> DataLoader[Any]:
    """Batches in parts, read ahead by other processes if so asked."""
    sampler = StepBatches(
        steps,
        options.batch_size,
        options.accumulate,
        accelerator.process_index,
        accelerator.num_processes,
    )
    return DataLoader(
        trainee.crops,
        batch_sampler=sampler,
        collate_fn=collate,
        num_workers=options.workers,
        worker_init_fn=leave_interrupts_to_the_main_process,
        pin_memory=accelerator.device.type != "cpu",
    )


def leave_interrupts_to_the_main_process(worker: int) -> None:
    """Ctrl-C reaches all processes of a terminal: readers must go on until the step is done."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def take_step(
    number: int,
    parts: Sequence[Batch],
    trainee: Trainee,
    optimizer: Any,
    accelerator: Accelerator,
    options: TrainOptions,
    steps: int,
) -> dict[str, float]:
    """One update of the weights; what to log of it.

    Raises:
        TrainingError: the loss is no number; the weights are as they were.
    """
    trainee.module.train()
    torch.manual_seed(mixed(options.seed, number, accelerator.process_index))
    generator = torch.Generator().manual_seed(mixed(options.seed, number))
    rate = learning_rate(number, steps, options)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    scalars = trainee.accumulate(parts, Step(number, generator, accelerator))
    own = torch.stack([value.detach().float() for value in scalars.values()])
    means = accelerator.reduce(own, reduction="mean").tolist()
    values = dict(zip(scalars, means, strict=True))
    if not math.isfinite(values["loss"]):
        raise unusable("loss", values["loss"], number, parts)
    share_gradients(trainee.module, accelerator)
    limit = trainee.longest_gradient(number)
    if limit is not None or accelerator.scaler is None:
        longest = math.inf if limit is None else limit
        norm = accelerator.clip_grad_norm_(trainee.module.parameters(), longest)
        if accelerator.scaler is None and not math.isfinite(float(norm)):
            raise unusable("gradient", float(norm), number, parts)
    optimizer.step()
    return {**values, "learning_rate": rate}


def unusable(what: str, value: float, number: int, parts: Sequence[Batch]) -> TrainingError:
    """The error of a step that would spoil the weights; an fp16 scaler leaves such steps out."""
    sources = ", ".join(dict.fromkeys(source for part in parts for source in part.sources))
    return TrainingError(
        f"the {what} is {value} at step {number + 1}, over {sources}; look at these images, or "
        "begin anew with a lower --learning-rate"
    )


def learning_rate(step: int, steps: int, options: TrainOptions) -> float:
    """Linear warm-up, then half a cosine down to nothing."""
    if step < options.warmup_steps:
        return options.learning_rate * (step + 1) / options.warmup_steps
    spent = (step - options.warmup_steps) / max(1, steps - options.warmup_steps)
    return options.learning_rate * 0.5 * (1 + math.cos(math.pi * spent))


def mixed(*numbers: int) -> int:
    """A seed made of several numbers, the same in every process and run."""
    return hash(numbers) & (2**63 - 1)


def agreed(wish: bool, accelerator: Accelerator) -> bool:
    """Whether any process wishes it."""
    if accelerator.num_processes == 1:
        return wish
    return bool(accelerator.reduce(torch.tensor(float(wish), device=accelerator.device)) > 0)


def share_gradients(module: nn.Module, accelerator: Accelerator) -> None:
    """Mean of all processes' gradients, in one message."""
    if accelerator.num_processes == 1:
        return
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    flat = accelerator.reduce(flat, reduction="mean")
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def measure(run: Run, trainee: Trainee, accelerator: Accelerator) -> None:
    """Measure on what was held out, in the main process."""
    if accelerator.is_main_process:
        trainee.module.eval()
        run.measured.append({"step": run.step, **trainee.measure()})


@contextlib.contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set; a second Ctrl-C does not wait."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def ask(number: int, frame: Any) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        logger.warning("stopping after this step; once more stops at once, without saving")
        event.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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


class Report:
    """``training.json``, TensorBoard and the log: what a run leaves beside its weights."""

    def __init__(
        self,
        options: TrainOptions,
        trainee: Trainee,
        steps: int,
        command: str,
        accelerator: Accelerator,
        first_step: int,
    ) -> None:
        self._options = options
        self._trainee = trainee
        self._steps = steps
        self._recent: list[dict[str, float]] = []
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
            "processes": accelerator.num_processes,
            "device": str(accelerator.device),
            "precision": pick_precision(options.precision, accelerator.device),
            "data": {
                "train": len(sources.train),
                "held_out": [Path(place.sources[0]).name for place in sources.held_out],
                "digest": sources.digest,
            },
        }
        # what an interrupted run logged after its last checkpoint is logged again
        self._writer = SummaryWriter(str(options.output / LOGS), purge_step=first_step + 1)

    def log(self, run: Run, scalars: dict[str, float]) -> None:
        """Means over some steps."""
        if not self._is_main:
            return
        self._recent.append(scalars)
        if run.step % self._options.log_every:
            return
        means = {
            name: sum(one[name] for one in self._recent) / len(self._recent) for name in scalars
        }
        self._recent = []
        for name, value in means.items():
            self._writer.add_scalar(f"train/{name}", value, run.step)
        logger.info("step %d of %d: %s", run.step, self._steps, _listed(means))

    def measured(self, run: Run) -> None:
        """The last measurement, pictures, the weights as they are."""
        if not self._is_main:
            return
        values = {name: value for name, value in run.measured[-1].items() if name != "step"}
        for name, value in values.items():
            self._writer.add_scalar(f"held_out/{name}", value, run.step)
        for title, picture in self._trainee.pictures().items():
            self._writer.add_image(title, picture, run.step)
        self._writer.flush()
        logger.info("step %d of %d, held out: %s", run.step, self._steps, _listed(values))
        self._write(run)
        if run.step:
            self._trainee.export(self._options.output, self._facts_of(run))

    def finish(self, run: Run) -> TrainResult:
        """The last words."""
        self._write(run)
        self._writer.close()
        output = str(self._options.output)
        return TrainResult(
            output, self._steps, run.seconds, self._skipped(run), tuple(run.measured)
        )

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

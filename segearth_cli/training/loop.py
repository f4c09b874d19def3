"""The only training loop: set up, step, measure, save; stop and go on exactly.

What happens in a step depends on the seed and the step's number alone, never on what ran before:
a run that is resumed from a checkpoint ends in the same weights as one that never stopped.
"""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset, Sampler

from segearth_cli.device import has_own_memory, memory_guard, use_threads
from segearth_cli.errors import OutputError, SegEarthError, Stopped, TrainingError, UsageError
from segearth_cli.model.card import CARD
from segearth_cli.model.files import first_line
from segearth_cli.model.folder import CHECKPOINT, REPORT
from segearth_cli.names import listed
from segearth_cli.options import TrainOptions
from segearth_cli.progress import progress_bar
from segearth_cli.signals import STOPPING, handled_by
from segearth_cli.training.checkpoint import Run, identity_of, load_checkpoint, save_checkpoint
from segearth_cli.training.data import Batch, RandomCrops, collate
from segearth_cli.training.processes import agreed, share_gradients, started
from segearth_cli.training.report import LOGS, Report, TrainResult
from segearth_cli.training.sources import Sources
from segearth_cli.training.trainee import Step, Trainee

OUT_OF_MEMORY = (
    "use more --accumulate, a smaller --batch-size or --crop, or --checkpointing (distill-sar)"
)
MOST_NAMED = 4  # images, in a message

logger = logging.getLogger(__name__)


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


class Parts(Dataset["Batch | SegEarthError"]):
    """Crops by lists of indices, as batches.

    What was expected to go wrong is returned: raised, it would arrive from another process with
    that one's traceback in its message.
    """

    def __init__(self, crops: RandomCrops) -> None:
        self._crops = crops

    def __getitem__(self, indices: list[int]) -> Batch | SegEarthError:
        """The batch, or why there is none."""
        try:
            return collate([self._crops[index] for index in indices])
        except SegEarthError as error:
            return error


def train(
    options: TrainOptions, build: Callable[[torch.device], Trainee], command: str
) -> TrainResult | None:
    """Train until the last step or ``stop_at``, or until somebody stops it.

    Args:
        options: how long and how fast.
        build: makes the trainee; called when the output is known to be free, and before it is made.
        command: the subcommand's name, for messages.

    Returns:
        What the run came to; nothing where another process says it.

    Raises:
        Stopped: by Ctrl-C, SIGTERM or a lost terminal; everything is saved.
        TrainingError: the loss is no number, or the checkpoint is another run's.
        SegEarthError: data, model or output cannot be used.
    """
    use_threads(options.threads)
    check_output(options)
    with started(options) as accelerator, memory_guard(OUT_OF_MEMORY), reader_guard():
        torch.manual_seed(options.seed)  # of the first weights
        trainee = build(accelerator.device)
        check_not_among(options.output, trainee.sources)
        steps = options.steps or math.ceil(options.epochs * len(trainee.crops) / options.batch_size)
        options.check_warmup(steps)
        accelerator.wait_for_everyone()  # all have looked before one writes
        if accelerator.is_main_process:
            make_output(options)
        optimizer = accelerator.prepare(trainee.optimizer(options.learning_rate))
        run = Run(identity_of(trainee, accelerator), steps)
        if options.resume:
            load_checkpoint(options, run, trainee, optimizer, accelerator)
        if not accelerator.is_main_process:
            fit(run, trainee, optimizer, accelerator, options)
            return None
        report = Report(options, trainee, command, accelerator.device, run)
        with contextlib.closing(report):
            try:
                fit(run, trainee, optimizer, accelerator, options, report)
            except Stopped as stop:
                stop.result = report.finish(run)
                raise
            return report.finish(run)


def check_output(options: TrainOptions) -> None:
    """Refuse a folder that holds something else.

    Raises:
        OutputError: it does.
        UsageError: there is nothing to resume.
    """
    output, checkpoint = options.output, options.output / CHECKPOINT
    if output.exists() and not output.is_dir():
        raise OutputError(f"{output} is a file; name a folder")
    # a run that ended before its first checkpoint left these
    begun = {LOGS, REPORT} if not checkpoint.exists() else set()
    is_taken = output.is_dir() and any(file.name not in begun for file in output.iterdir())
    if options.resume and not checkpoint.is_file():
        way = "begin anew with --overwrite" if is_taken else "leave --resume out"
        raise UsageError(f"there is no {checkpoint} to go on from; {way}")
    if is_taken and not (options.resume or options.overwrite):
        resume = "--resume to go on with it or " if checkpoint.is_file() else ""
        raise OutputError(f"{output} exists; use {resume}--overwrite to begin anew in it")


def check_not_among(output: Path, sources: Sources) -> None:
    """Refuse a folder that images lie in.

    Raises:
        OutputError: they do.
    """
    for place in sources.train + sources.held_out:
        for source in place.sources:
            if Path(source).parent.resolve() == output.resolve():
                raise OutputError(f"{source} lies in {output}; name another folder for the model")


def make_output(options: TrainOptions) -> None:
    """Make the folder; of an older run in it, all but its weights goes.

    First the card, without which they are no model: nobody shall take them for the new one's.

    Raises:
        OutputError: it cannot be made.
    """
    output = options.output
    try:
        output.mkdir(parents=True, exist_ok=True)
        if options.overwrite:
            logs = (output / LOGS).glob("events.out.tfevents.*")  # TensorBoard's
            for old in (*(output / name for name in (CARD, CHECKPOINT, REPORT)), *logs):
                old.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write into {options.output}: {error.strerror}") from error


@contextlib.contextmanager
def reader_guard() -> Iterator[None]:
    """Turn the end of a process that reads images into one line.

    Raises:
        TrainingError: it was killed, most likely for its memory.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise TrainingError(
            f"a process that reads images has ended: {first_line(error)}; memory may have run out: "
            "use fewer --workers"
        ) from error


def fit(
    run: Run,
    trainee: Trainee,
    optimizer: Any,
    accelerator: Accelerator,
    options: TrainOptions,
    report: Report | None = None,
) -> None:
    """Step after step, with all that happens between them; the main process has the report."""
    every = options.validate_every or math.ceil(len(trainee.crops) / options.batch_size)
    last = min(run.steps, options.stop_at or run.steps)
    batches = or_raised(loader(range(run.step, last), trainee, options, accelerator))
    began = time.monotonic() - run.seconds
    progress = progress_bar(
        options.progress and report is not None, total=run.steps, initial=run.step, unit="step"
    )
    with stop_requests() as stopping, contextlib.closing(progress):
        if report is not None:
            if run.step == 0:
                measure(run, trainee)
            if run.step == 0 or report.lacks_model(run):
                report.update(run)
        while run.step < last:
            parts = [next(batches).to(accelerator.device) for _ in range(options.accumulate)]
            say_skipped(run, [reason for part in parts for reason in part.skipped])
            scalars = take_step(run, parts, trainee, optimizer, accelerator, options)
            run.step += 1
            run.seconds = time.monotonic() - began
            progress.update()
            is_measured = run.step % every == 0 or run.step == run.steps
            if report is not None:
                report.log(run, scalars)
                if is_measured:
                    measure(run, trainee)
            stop = run.step < last and agreed(bool(stopping), accelerator)
            if stop or is_measured or run.step == last or run.step % options.save_every == 0:
                save_checkpoint(options, run, trainee, optimizer, accelerator)
                if report is not None:  # whatever happens in there, the steps are safe
                    report.update(run)
            accelerator.wait_for_everyone()
            if stop:
                raise Stopped(
                    f"stopped at step {run.step} of {run.steps}, and saved; go on with the same "
                    "command and --resume"
                    if report is not None
                    else "",
                    *stopping[:1],
                )


def say_skipped(run: Run, reasons: Sequence[str]) -> None:
    """Remember what a step left out; the first of all are named."""
    for reason in reasons:
        if reason not in run.skipped and len(run.skipped) < MOST_NAMED:
            logger.warning("skipped: %s", reason)
        run.skipped[reason] = None


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
    # torch thinks more readers than processors slow; the user says
    warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
    return DataLoader(
        Parts(trainee.crops),
        sampler=sampler,
        batch_size=None,  # the sampler's items are batches already
        num_workers=options.workers,
        worker_init_fn=leave_interrupts_to_the_main_process,
        pin_memory=has_own_memory(accelerator.device),
    )


def or_raised(parts: Iterable[Batch | SegEarthError]) -> Iterator[Batch]:
    """Part after part.

    Raises:
        SegEarthError: one could not be read, by this process or another one.
    """
    for part in parts:
        if isinstance(part, SegEarthError):
            raise part
        yield part


def leave_interrupts_to_the_main_process(worker: int) -> None:
    """Ctrl-C and its end reach all processes of a terminal: readers must go on until the step is
    done.
    """
    for number in STOPPING:
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)


def take_step(
    run: Run,
    parts: Sequence[Batch],
    trainee: Trainee,
    optimizer: Any,
    accelerator: Accelerator,
    options: TrainOptions,
) -> dict[str, float]:
    """One update of the weights; what to log of it.

    Raises:
        TrainingError: the loss is no number; the weights are as they were.
    """
    number = run.step
    trainee.module.train()
    torch.manual_seed(mixed(options.seed, number, accelerator.process_index))
    generator = torch.Generator().manual_seed(mixed(options.seed, number))
    rate = learning_rate(number, run.steps, options)
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
    sources = list(dict.fromkeys(source for part in parts for source in part.sources))
    return TrainingError(
        f"the {what} is {value} at step {number + 1}, over {listed(sources, MOST_NAMED)}; look at "
        "these images, or begin anew with a lower --learning-rate"
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


def measure(run: Run, trainee: Trainee) -> None:
    """Measure on what was held out."""
    trainee.module.eval()
    run.measured.append({"step": run.step, **trainee.measure()})


@contextlib.contextmanager
def stop_requests() -> Iterator[list[int]]:
    """A list that signals add their numbers to; a second one does not wait.

    But that a terminal is gone comes twice, from its shell and from the system.
    """
    came: list[int] = []
    lost = getattr(signal, "SIGHUP", None)

    def ask(number: int, frame: Any) -> None:
        if came:
            if number == lost:
                return
            raise KeyboardInterrupt
        logger.warning("stopping after this step; once more stops at once, without saving")
        came.append(number)

    with handled_by(ask, *STOPPING):
        yield came

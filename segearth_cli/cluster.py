"""Many scenes, or the panels of one, on the workers of a Ray cluster.

A worker is a process with a model of its own. It makes a scene's map as the local engine does; the
panels of one big scene are classified by the workers and put together here.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import os
import socket
import sys
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from segearth_cli import __version__
from segearth_cli.batch import Job, SceneRunner, outcome_of, remove_left
from segearth_cli.device import pick_device, pick_precision, use_threads
from segearth_cli.errors import ModelError, OutputError, SegEarthError, UsageError
from segearth_cli.geo.legend import Legend
from segearth_cli.geo.raster import Scene
from segearth_cli.geo.tiling import WindowGrid
from segearth_cli.model.prompts import Vocabulary, build_vocabulary
from segearth_cli.model.segmenter import ModelSettings, model_settings
from segearth_cli.model.weights import found_model, resolve_model
from segearth_cli.options import SENSORS, BatchOptions, SegmentOptions
from segearth_cli.outputs import output_paths
from segearth_cli.pool import Answer, Pool, Process, Task, cluster_room, connected
from segearth_cli.reading import open_for_model
from segearth_cli.results import Failure, Outcome, SegmentResult
from segearth_cli.resume import is_complete
from segearth_cli.segment import segment
from segearth_cli.staging import Staging
from segearth_cli.stdout import writing_to
from segearth_cli.stream import (
    Panels,
    Rows,
    class_legend,
    classify_rows,
    panels_across,
    scene_panels,
    window_grid,
)

WORTH_SHARING = 2  # windows that a panel is wide: those at its edges are computed twice
# variables that go with the work: of maps, and of scenes that servers give
OURS = ("SEGEARTH_", "SOURCE_DATE_EPOCH", "GDAL_", "CPL_", "VSI_", "AWS_", "GS_", "AZURE_")
# not these: each machine has its own
PLACES = ("GDAL_DATA", "GDAL_DRIVER_PATH", "GDAL_CONFIG_FILE", "CPL_TMPDIR")
LOGGERS = ("", "segearth_cli", "rasterio")


def segment_on_cluster(jobs: Sequence[Job], how: BatchOptions) -> Generator[Outcome, None, None]:
    """The outcome of every scene as it is done.

    Raises:
        UsageError: no cluster answers, or it has no room for a worker.
        SegEarthError: its machines cannot do the work, or not all in the same way.
    """
    options = jobs[0].options
    with connected(how.address), contextlib.ExitStack() as stack:
        room = cluster_room(options.model.device, options.threads)
        staging = Staging(stack)
        beside: list[Path] = []
        for path in {path.parent: path for path in output_paths(options)}.values():
            with contextlib.suppress(OutputError):  # which the scene will say, if it is made at all
                beside.append(staging.beside(path))
        orders = Orders.here(options, how.resume, len(jobs) == 1, room.cpus, beside)
        in_panels = len(jobs) == 1 and output_paths(options)
        if not in_panels:
            room = replace(room, workers=min(room.workers, len(jobs)))
        pool = Pool(Worker, [orders], room)
        try:
            if in_panels:
                make = functools.partial(segment_in_panels, jobs[0], pool)
                yield outcome_of(jobs[0], make, alone=True)
            else:
                yield from segment_scenes(jobs, pool)
        finally:
            pool.close()
            # of workers that were lost, or ended before they could
            remove_left(jobs, [(process.host, process.pid) for process in pool.lost])


def segment_scenes(jobs: Sequence[Job], pool: Pool) -> Generator[Outcome, None, None]:
    """Each scene made by a worker.

    The outputs have been looked for already: what is there now a lost worker finished.
    """
    again = [replace(job, options=replace(job.options, replace_maps=True)) for job in jobs]
    tasks: dict[Task, Job] = {functools.partial(Worker.segment, job=job): job for job in again}
    with contextlib.closing(pool.results(tasks)) as results:
        for done in results:
            if isinstance(done.value, SegEarthError):
                yield Failure(tasks[done.task].source, done.value, done.seconds)
                continue
            outcome, features = done.value
            try:
                with writing_to(sys.stdout):
                    sys.stdout.write(features)
            except OutputError as error:
                outcome = Failure(tasks[done.task].source, error, done.seconds)
            yield outcome


def segment_in_panels(job: Job, pool: Pool) -> SegmentResult | None:
    """One scene made here of the panels that workers classify; nothing where it is complete."""
    (done,) = pool.results([functools.partial(Worker.is_complete, job=job)])
    if value_of(done.value):
        return None
    return segment(job.source, job.options, functools.partial(RemoteModel.of, job, pool))


def value_of(value: Any) -> Any:
    """What a task came to.

    Raises:
        SegEarthError: it came to nothing.
    """
    if isinstance(value, SegEarthError):
        raise value
    return value


@dataclass(frozen=True)
class RemoteModel:
    """A model that the workers of a pool hold, with the words it is loaded for."""

    job: Job
    pool: Pool
    settings: ModelSettings
    vocabulary: Vocabulary
    legend: Legend

    @classmethod
    def of(cls, job: Job, pool: Pool, sensor: str) -> RemoteModel:
        """The model for scenes of that sensor.

        Raises:
            ModelError: on this machine it is another one.
        """
        vocabulary = build_vocabulary(job.options)
        folder = resolve_model(job.options.model.model, sensor)
        if folder.digest() != pool.traits[f"{sensor} model"]:
            raise ModelError(f"the model {folder.card.name} is another one on the cluster")
        settings = model_settings(folder, job.options.model, pool.traits["precision"])
        return cls(job, pool, settings, vocabulary, class_legend(vocabulary))

    def check(self, options: SegmentOptions) -> None:
        """Nothing to refuse: it was made of the job's own options."""

    def panels(self, scene: Scene, options: SegmentOptions, folder: Path) -> Panels:
        """Some for every worker, computed at the same time."""
        grid = window_grid(scene, self.settings)
        device = torch.device(self.pool.traits["device"])
        queries = len(self.vocabulary.queries)
        fewest, _ = scene_panels(grid, self.settings, queries, device, options)
        panels = shared_panels(grid, len(fewest), self.pool.size)
        places = [folder / f"panel-{number}" for number in range(len(panels))]
        tasks = [
            functools.partial(Worker.classify, job=self.job, panel=panel, place=place)
            for panel, place in zip(panels, places, strict=True)
        ]
        finished: set[Path] = set()
        with contextlib.closing(self.pool.results(tasks)) as results:
            for panel, place in zip(panels, places, strict=True):
                while place not in finished:
                    finished.add(value_of(next(results).value))
                yield panel, read_rows(place)
                place.unlink()


def shared_panels(grid: WindowGrid, fewest: int, workers: int) -> list[WindowGrid]:
    """The grid in panels that workers share evenly; ``fewest`` are what memory asks for."""
    wanted = -(-fewest // workers) * workers
    sensible = grid.width // (WORTH_SHARING * grid.window_width)
    return panels_across(grid, max(fewest, min(wanted, sensible)))


def write_rows(rows: Rows, stream: BinaryIO) -> None:
    """Append a panel's next rows to its working file."""
    for array in (rows.classes, rows.confidence, rows.probabilities):
        np.save(stream, np.empty(0) if array is None else array)


def read_rows(place: Path) -> Generator[Rows, None, None]:
    """A panel's rows from its working file."""
    with place.open("rb") as stream:
        while stream.peek(1):
            classes, confidence, probabilities = (np.load(stream) for _ in range(3))
            yield Rows(classes, confidence, probabilities if probabilities.size else None)


@dataclass(frozen=True)
class Orders:
    """What every worker is told when it begins.

    Attributes:
        options: of the first scene; the model's are every scene's.
        resume, alone: see `SceneRunner`.
        threads: of the network on a CPU.
        folder: where the command was given.
        beside: folders that the command has made beside the first scene's outputs, for all
            machines to see.
        host: the command's machine.
        environment: variables that maps, and reading scenes, depend on.
        version: of segearth.
        levels: of the loggers, by name.
    """

    options: SegmentOptions
    resume: bool
    alone: bool
    threads: int
    folder: str
    beside: Sequence[Path]
    host: str
    environment: Mapping[str, str]
    levels: Mapping[str, int]
    version: str = __version__

    @classmethod
    def here(
        cls,
        options: SegmentOptions,
        resume: bool,
        alone: bool,
        threads: int,
        beside: Sequence[Path],
    ) -> Orders:
        """With folder, name of the machine, environment and levels of this process."""
        return cls(
            options,
            resume,
            alone,
            threads,
            os.getcwd(),
            beside,
            socket.gethostname(),
            our_environment(),
            {name: logging.getLogger(name).level for name in LOGGERS},
        )


def our_environment() -> dict[str, str]:
    """Variables of this process that maps, and reading scenes, depend on."""
    return {n: v for n, v in os.environ.items() if n.startswith(OURS) and n not in PLACES}


class Worker:
    """A process of the cluster with a model of its own; Ray runs it, a call at a time."""

    def __init__(self, orders: Orders) -> None:
        self._orders = orders
        self._scenes = SceneRunner(orders.resume, orders.alone)

    def start(self) -> Answer:
        """Go to the folder where the command was given; tell what maps made here depend on."""
        return self.do(Worker.begin)

    def do(self, task: Any) -> Answer:
        """What a task comes to, its expected errors too."""
        with remarks_kept() as remarks:
            try:
                value = task(self)
            except SegEarthError as error:
                value = error
        return Answer(value, remarks)

    def begin(self) -> Process:
        """Give this process the folder, levels and variables of where the command was given."""
        orders = self._orders
        if orders.version != __version__:
            raise UsageError(
                f"{socket.gethostname()} has segearth {__version__}, and this command is of "
                f"{orders.version}; install the same on all machines of the cluster"
            )
        for name, level in orders.levels.items():
            logging.getLogger(name).setLevel(level)
        os.environ.update(orders.environment)
        use_threads(orders.threads)
        try:
            os.chdir(orders.folder)
        except OSError as error:
            raise SegEarthError(
                f"{socket.gethostname()} has no folder {orders.folder}; run segearth in a folder "
                "that all machines of the cluster share"
            ) from error
        for folder in orders.beside:
            if not folder.is_dir():
                raise SegEarthError(
                    f"{socket.gethostname()} does not see what {orders.host} writes into "
                    f"{folder.parent}; all machines of the cluster must share the folder of the "
                    "outputs"
                )
        try:
            return Process.of(traits(orders.options))
        except SegEarthError as error:
            raise type(error)(f"on {socket.gethostname()}: {error}") from error

    def segment(self, job: Job) -> tuple[Outcome, str]:
        """What becomes of a scene, and what it writes to stdout."""
        features = io.StringIO()
        take = functools.partial(self._scenes.opened, job)
        return self._scenes.outcome(job, take, features), features.getvalue()

    def is_complete(self, job: Job) -> bool:
        """Whether there is nothing to do."""
        return self._orders.resume and is_complete(job.source, job.options)

    def classify(self, job: Job, panel: WindowGrid, place: Path) -> Path:
        """Write the rows of a panel to its working file, in a folder that all machines see."""
        options = job.options
        with open_for_model(job.source, options) as scene:
            model = self._scenes.model(options, scene.sensor)
            rows_of_panel = classify_rows(scene, model, options, panel)
            with contextlib.closing(rows_of_panel), working_file(place) as stream:
                for rows in rows_of_panel:
                    write_rows(rows, stream)
        return place


def traits(options: SegmentOptions) -> dict[str, str]:
    """What maps made by this machine depend on beside scene and options."""
    device = pick_device(options.model.device)
    return {
        "device": device.type,
        "precision": pick_precision(options.model.precision_wanted, device),
        **{
            f"{sensor} model": found_model(options.model.model, sensor).digest()
            for sensor in SENSORS
        },
    }


@contextlib.contextmanager
def working_file(place: Path) -> Iterator[BinaryIO]:
    """A working file, which gets its name when it is whole.

    A worker that was given up, as nobody reached its machine, may still be at the same one.

    Raises:
        OutputError: it cannot be written, as on a machine that does not see the folder.
    """
    own = place.with_name(f"{place.name}-{socket.gethostname()}-{os.getpid()}")
    try:
        with own.open("wb") as stream:
            yield stream
        own.replace(place)
    except OSError as error:
        raise OutputError(
            f"{socket.gethostname()} cannot write {place}: {error.strerror}; all machines of the "
            "cluster must see the folder of the outputs"
        ) from error


@contextlib.contextmanager
def remarks_kept() -> Iterator[list[logging.LogRecord]]:
    """The records that are logged in the block, fit for sending."""
    kept: list[logging.LogRecord] = []
    handler = Keeper(kept)
    logging.root.addHandler(handler)
    try:
        yield kept
    finally:
        logging.root.removeHandler(handler)


class Keeper(logging.Handler):
    """Appends records to a list, as texts."""

    def __init__(self, kept: list[logging.LogRecord]) -> None:
        super().__init__()
        self._kept = kept

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one record."""
        if record.exc_info:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        record.msg, record.args, record.exc_info = record.getMessage(), None, None
        self._kept.append(record)

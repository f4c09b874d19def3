"""Many scenes: what their outputs are called, who segments them, and what became of each."""

from __future__ import annotations

import functools
import logging
import os
import re
import time
import traceback
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, TextIO, TypeAlias, TypeVar

from segearth_cli.errors import NO_MEMORY, SegEarthError, UsageError, why_not_usable
from segearth_cli.inputs import PLACEHOLDER, Input
from segearth_cli.options import BatchOptions, SegmentOptions
from segearth_cli.results import Failure, Outcome, Plan, SegmentResult, Skipped

if TYPE_CHECKING:
    from segearth_cli.reading import OpenScene
    from segearth_cli.stream import Model

STEM = "{stem}"
AnySource: TypeAlias = "str | os.PathLike[str] | Input"
Made = TypeVar("Made")

DEFAULTS = BatchOptions()

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """A scene to segment, and its own options."""

    source: str
    options: SegmentOptions


def options_per_scene(
    sources: Sequence[AnySource], options: SegmentOptions
) -> list[SegmentOptions]:
    """The options of each scene; in its outputs ``{stem}`` and ``{parent}`` are the file's.

    Raises:
        UsageError: several scenes would write the same output, or it has other placeholders.
    """
    for name in options.written:
        if strange := set(PLACEHOLDER.findall(name)) - {"stem", "parent"}:
            raise UsageError(
                f"{name!r} holds {{{min(strange)}}}; only {STEM}, a scene's name, and {{parent}}, "
                "its folder's, are known"
            )
    fixed = [n for n in options.written if not PLACEHOLDER.search(n) and n != "-"]
    inputs = [Input.of(source) for source in sources]
    if len(inputs) > 1 and fixed:
        absent = (own.source for own in inputs if not os.path.exists(own.source))
        if word := next((source for source in absent if re.fullmatch(r"[\w ]+", source)), None):
            raise UsageError(
                f"there is no scene {word!r}; part words of --classes, and numbers of --bands, by "
                "commas"
            )
        raise UsageError(
            f"{len(inputs)} scenes cannot all be written to {fixed[0]!r}; put {STEM} into the "
            f"name, as -o 'maps/{STEM}.gpkg', or make one scene of them with gdalbuildvrt"
        )
    every = [
        replace(
            options,
            outputs=tuple(own.named(name) for name in options.outputs),
            probabilities=options.probabilities and own.named(options.probabilities),
            acquired=options.acquired or own.acquired,
            source_item=own.item,
        )
        for own in inputs
    ]
    _refuse_shared(inputs, every)
    return every


def _refuse_shared(inputs: Sequence[Input], every: Sequence[SegmentOptions]) -> None:
    """Refuse a file that two scenes would write, be it an output or a part of one."""
    from segearth_cli.geo.companions import companions
    from segearth_cli.outputs import output_paths

    owners: dict[str, int] = {}
    for number, options in enumerate(every):
        for path in output_paths(options):
            for file in (path, *companions(path)):
                # some file systems take names that differ in case alone for one
                owner = owners.setdefault(os.path.abspath(file).casefold(), number)
                if owner != number:
                    first, second = (
                        f"{i.source} (stem {i.stem!r})" for i in (inputs[owner], inputs[number])
                    )
                    apart = any("{parent}" in name for name in options.written)
                    raise UsageError(
                        f"{first} and {second} would both write {file}; "
                        + ("" if apart else "put {parent}, the folder's name, into that name, or ")
                        + "rename one"
                    )


def jobs_of(
    sources: Sequence[AnySource], options: SegmentOptions, how: BatchOptions = DEFAULTS
) -> list[Job]:
    """This part's scenes with their options, when nothing is wrong that can be known beforehand.

    Raises:
        SegEarthError: what no scene can be segmented with, or an output that cannot be.
    """
    from segearth_cli.geo.source import is_raster
    from segearth_cli.outputs import STDOUT, check_outputs, files_read
    from segearth_cli.reading import check_options

    check_options(options)
    if how.resume and STDOUT in options.outputs:
        raise UsageError("--resume finds nothing on stdout; give the polygons a file")
    if how.resume and options.overwrite:
        raise UsageError("--resume and --overwrite exclude each other: one keeps what is complete")
    if isinstance(sources, str):
        raise UsageError(f"sources is {sources!r}; it must be a list of names, or Path's")
    inputs = [Input.of(source) for source in sources]
    options = replace(options, replace_maps=how.resume)
    every = options_per_scene(inputs, options)
    part, parts = how.shard
    jobs = [Job(own.source, own_options) for own, own_options in zip(inputs, every, strict=True)][
        part - 1 :: parts
    ]
    read = files_read((own.source for own in inputs), options)
    for job in jobs:
        check_outputs(read, job.options)
    # a lone scene that is none will be said without waiting for torch
    if how.engine == "local" and (len(jobs) != 1 or is_raster(jobs[0].source)):
        from segearth_cli.device import precision_here

        precision_here(options.model)
    return jobs


def segment_all(
    sources: Sequence[AnySource], options: SegmentOptions, how: BatchOptions = DEFAULTS
) -> Generator[Outcome, None, None]:
    """Segment the scenes, see `jobs_of` and `segment_jobs`.

    Raises:
        SegEarthError: what is wrong with all of them; nothing has been computed then.
    """
    yield from segment_jobs(jobs_of(sources, options, how), how)


def segment_jobs(
    jobs: Sequence[Job], how: BatchOptions = DEFAULTS
) -> Generator[Outcome, None, None]:
    """Segment the scenes; one that fails does not stop the others, unless it shall."""
    if how.resume:
        remove_left(jobs)
    with closing(_ENGINES[how.engine](jobs, how)) as outcomes:
        for outcome in outcomes:
            yield outcome
            if isinstance(outcome, Failure) and how.on_error == "stop":
                return


def remove_left(jobs: Sequence[Job], lost: Collection[tuple[str, int]] = ()) -> None:
    """Remove the temporary folders that killed processes left (see `remove_abandoned`)."""
    from segearth_cli.outputs import output_paths
    from segearth_cli.staging import remove_abandoned

    for folder in sorted({path.parent for job in jobs for path in output_paths(job.options)}):
        remove_abandoned(folder, lost)


def _here(jobs: Sequence[Job], how: BatchOptions) -> Generator[Outcome, None, None]:
    """One scene after the other; the next one is opened while one is segmented."""
    from segearth_cli.prefetch import prefetched

    scenes = SceneRunner(how.resume, alone=len(jobs) == 1)
    with closing(prefetched(jobs, scenes.opened, close_source)) as coming:
        for job, take in coming:
            yield scenes.outcome(job, take)


def _on_cluster(jobs: Sequence[Job], how: BatchOptions) -> Generator[Outcome, None, None]:
    """As many scenes at a time as a Ray cluster has workers, in the order they are done."""
    if find_spec("ray") is None:
        raise UsageError("--engine ray needs Ray: pip install 'segearth-cli[ray]'")
    from segearth_cli.cluster import segment_on_cluster

    if jobs:
        yield from segment_on_cluster(jobs, how)


_ENGINES = {"local": _here, "ray": _on_cluster}


class SceneRunner:
    """Segments scenes of the same options; a model is loaded once per kind of sensor.

    Args:
        resume: leave out what is complete.
        alone: there is one scene only, whose bugs are nobody else's.
    """

    def __init__(self, resume: bool, alone: bool) -> None:
        self._resume = resume
        self._alone = alone
        self._models: dict[str, Model] = {}

    def model(self, options: SegmentOptions, sensor: str) -> Model:
        """The model for scenes of that sensor."""
        from segearth_cli.stream import load_model

        if sensor not in self._models:
            self._models[sensor] = load_model(options, sensor)
        return self._models[sensor]

    def opened(self, job: Job) -> OpenScene | None:
        """The open scene; nothing where there is nothing to do."""
        from segearth_cli.reading import open_source
        from segearth_cli.resume import is_complete

        if self._resume and is_complete(job.source, job.options):
            return None
        return open_source(job.source, job.options)

    def outcome(
        self, job: Job, take: Callable[[], OpenScene | None], stdout: TextIO | None = None
    ) -> Outcome:
        """What becomes of a scene, which ``take`` opens."""
        load = functools.partial(self.model, job.options)

        def make() -> SegmentResult | None:
            found = take()
            if found is None:
                return None
            from segearth_cli.segment import segment  # imports torch

            return segment(job.source, job.options, load, stdout, found)

        return outcome_of(job, make, self._alone)


def close_source(found: OpenScene | None) -> None:
    """Let go of a scene that nobody took."""
    if found is not None:
        found.scene.close()


def outcome_of(job: Job, make: Callable[[], Made | None], alone: bool) -> Made | Skipped | Failure:
    """What ``make`` makes of a scene, its map or a plan, or nothing where that is complete."""
    started = time.perf_counter()
    try:
        result = make()
        return result or Skipped(job.source, job.options.written, time.perf_counter() - started)
    except SegEarthError as error:
        return Failure(job.source, error, time.perf_counter() - started)
    except MemoryError:
        return Failure(job.source, SegEarthError(NO_MEMORY), time.perf_counter() - started)
    except BrokenPipeError:  # the reader of stdout has gone: nobody wants the others
        raise
    except Exception as error:
        if isinstance(error, OSError) and (why := why_not_usable(error)):
            return Failure(job.source, SegEarthError(why), time.perf_counter() - started)
        if alone:
            raise
        return _bug(job, error, time.perf_counter() - started)


def _bug(job: Job, error: Exception, seconds: float) -> Failure:
    """What nobody foresaw, in one scene of many: said in full, and the others go on."""
    logger.error("%s: a bug of segearth; please report what follows", job.source, exc_info=error)
    what = traceback.format_exception_only(error)[-1].strip()
    return Failure(job.source, SegEarthError(f"a bug of segearth: {what}"), seconds)


def plan_jobs(
    jobs: Sequence[Job], how: BatchOptions = DEFAULTS
) -> Generator[Plan | Skipped | Failure, None, None]:
    """What each scene would take; one that would fail does not stop the others, unless it shall."""
    from segearth_cli.reading import open_for_model
    from segearth_cli.resume import is_complete

    for job in jobs:

        def make(job: Job = job) -> Plan | None:
            if how.resume and is_complete(job.source, job.options):
                return None
            with open_for_model(job.source, job.options) as scene:
                from segearth_cli.segment import plan  # imports torch

                return plan(job.source, job.options, how.engine == "local", scene)

        outcome = outcome_of(job, make, alone=len(jobs) == 1)
        yield outcome
        if isinstance(outcome, Failure) and how.on_error == "stop":
            return

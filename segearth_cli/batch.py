"""Many scenes: what their outputs are called, one after the other, and what became of each."""

from __future__ import annotations

import functools
import logging
import time
import traceback
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from segearth_cli.errors import SegEarthError, UsageError
from segearth_cli.inputs import Input
from segearth_cli.options import BatchOptions, SegmentOptions

if TYPE_CHECKING:
    from segearth_cli.segment import Plan, SegmentResult, Source

STEM = "{stem}"
EVERY = BatchOptions()

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """A scene to segment, and its own options."""

    source: str
    options: SegmentOptions


@dataclass(frozen=True)
class Failure:
    """A scene that came to nothing, and why."""

    source: str
    error: SegEarthError
    seconds: float = 0.0


@dataclass(frozen=True)
class Skipped:
    """A scene whose outputs were there already."""

    source: str
    outputs: tuple[str, ...]
    seconds: float


def options_per_scene(
    sources: Sequence[str | Input], options: SegmentOptions
) -> list[SegmentOptions]:
    """The options of each scene, ``{stem}`` in its outputs replaced by its file's stem.

    Raises:
        UsageError: several scenes would write the same output.
    """
    fixed = [name for name in options.written if STEM not in name and name != "-"]
    if len(sources) > 1 and fixed:
        raise UsageError(
            f"{len(sources)} scenes cannot all be written to {fixed[0]!r}; put {STEM} into the "
            f"name, for instance -o 'maps/{STEM}.gpkg'"
        )
    inputs = [Input.of(source) for source in sources]
    stems = [own.stem for own in inputs]
    # some file systems take names that differ in case alone for one
    counts = Counter(stem.casefold() for stem in stems)
    clash = next((stem for stem in stems if counts[stem.casefold()] > 1), None)
    if clash is not None and any(STEM in name for name in options.written):
        raise UsageError(f"two scenes have the stem {clash!r}; their outputs would be the same")
    return [
        replace(
            options,
            outputs=tuple(name.replace(STEM, stem) for name in options.outputs),
            probabilities=options.probabilities and options.probabilities.replace(STEM, stem),
            acquired=options.acquired or own.acquired,
        )
        for own, stem in zip(inputs, stems, strict=True)
    ]


def jobs_of(
    sources: Sequence[str | Input], options: SegmentOptions, how: BatchOptions = EVERY
) -> list[Job]:
    """This part's scenes with their options, when nothing is wrong that can be known beforehand.

    Raises:
        SegEarthError: what no scene can be segmented with, or an output that cannot be.
    """
    from segearth_cli.outputs import STDOUT, check_outputs, file_ids, output_paths
    from segearth_cli.resume import is_ours
    from segearth_cli.segment import check_options
    from segearth_cli.staging import remove_abandoned

    check_options(options)
    if how.resume and STDOUT in options.outputs:
        raise UsageError("--resume finds nothing on stdout; give the polygons a file")
    inputs = [Input.of(source) for source in sources]
    every = options_per_scene(inputs, options)
    part, parts = how.shard
    jobs = [Job(own.source, own_options) for own, own_options in zip(inputs, every, strict=True)][
        part - 1 :: parts
    ]
    read = file_ids(own.source for own in inputs)
    for job in jobs:
        if how.resume:
            check_outputs(read, job.options, may_replace=is_ours)
        else:
            check_outputs(read, job.options)
    if how.resume:
        for folder in sorted({path.parent for job in jobs for path in output_paths(job.options)}):
            remove_abandoned(folder)
        jobs = [replace(job, options=replace(job.options, overwrite=True)) for job in jobs]
    return jobs


def segment_all(
    sources: Sequence[str | Input], options: SegmentOptions, how: BatchOptions = EVERY
) -> Generator[SegmentResult | Skipped | Failure, None, None]:
    """Segment scene after scene, see `jobs_of` and `segment_jobs`.

    Raises:
        SegEarthError: what is wrong with all of them; nothing has been computed then.
    """
    yield from segment_jobs(jobs_of(sources, options, how), how)


def segment_jobs(
    jobs: Sequence[Job], how: BatchOptions = EVERY
) -> Generator[SegmentResult | Skipped | Failure, None, None]:
    """Segment scene after scene; one that fails does not stop the others, unless it shall.

    A model is loaded once per kind of sensor. The next scene is opened while one is segmented.
    """
    from segearth_cli.prefetch import prefetched
    from segearth_cli.resume import is_complete
    from segearth_cli.segment import open_source, segment
    from segearth_cli.stream import Model, load_model

    @functools.cache
    def load(sensor: str) -> Model:
        return load_model(jobs[0].options, sensor)

    def ready(job: Job) -> Source | None:
        """The open scene; nothing where there is nothing to do."""
        if how.resume and is_complete(job.source, job.options):
            return None
        return open_source(job.source, job.options)

    def let_go(found: Source | None) -> None:
        if found is not None:
            found.scene.close()

    with closing(prefetched(jobs, ready, let_go)) as coming:
        for job, take in coming:
            started = time.perf_counter()
            outcome: SegmentResult | Skipped | Failure
            try:
                found = take()
                if found is None:
                    seconds = time.perf_counter() - started
                    outcome = Skipped(job.source, job.options.written, seconds)
                else:
                    outcome = segment(job.source, job.options, load, opened=found)
            except SegEarthError as error:
                outcome = Failure(job.source, error, time.perf_counter() - started)
            except BrokenPipeError:  # the reader of stdout has gone: nobody wants the others
                raise
            except Exception as error:
                if len(jobs) == 1:
                    raise
                outcome = _bug(job, error, time.perf_counter() - started)
            yield outcome
            if isinstance(outcome, Failure) and how.on_error == "stop":
                return


def _bug(job: Job, error: Exception, seconds: float) -> Failure:
    """What nobody foresaw, in one scene of many: said in full, and the others go on."""
    logger.error("%s: a bug of segearth; please report what follows", job.source, exc_info=error)
    what = traceback.format_exception_only(error)[-1].strip()
    return Failure(job.source, SegEarthError(f"a bug of segearth: {what}"), seconds)


def plan_all(
    sources: Sequence[str | Input], options: SegmentOptions, how: BatchOptions = EVERY
) -> Generator[Plan | Skipped | Failure, None, None]:
    """What each scene would take; nothing is computed or written.

    Raises:
        SegEarthError: as `segment_all`.
    """
    yield from plan_jobs(jobs_of(sources, options, how), how)


def plan_jobs(
    jobs: Sequence[Job], how: BatchOptions = EVERY
) -> Generator[Plan | Skipped | Failure, None, None]:
    """What each scene would take; one that would fail does not stop the others."""
    from segearth_cli.resume import is_complete
    from segearth_cli.segment import plan

    for job in jobs:
        started = time.perf_counter()
        try:
            if how.resume and is_complete(job.source, job.options):
                yield Skipped(job.source, job.options.written, time.perf_counter() - started)
                continue
            yield plan(job.source, job.options)
        except SegEarthError as error:
            yield Failure(job.source, error, time.perf_counter() - started)

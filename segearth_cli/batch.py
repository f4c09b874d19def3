"""Many scenes: where the inputs come from, what their outputs are called, one after the other."""

from __future__ import annotations

import functools
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from segearth_cli.errors import SegEarthError, UsageError
from segearth_cli.options import SegmentOptions

if TYPE_CHECKING:
    from segearth_cli.segment import Plan, SegmentResult

STEM = "{stem}"


@dataclass(frozen=True)
class Failure:
    """A scene that came to nothing, and why."""

    source: str
    error: SegEarthError


def expand_inputs(inputs: Iterable[str], lines: Iterable[str] | None = None) -> list[str]:
    """The scenes that the arguments name; ``-`` stands for one a line of ``lines`` (or stdin).

    Raises:
        UsageError: nothing is named, or a scene is named twice.
    """
    sources: list[str] = []
    for name in inputs:
        sources += _lines(sys.stdin if lines is None else lines) if name == "-" else [name]
    if not sources:
        raise UsageError("no scene: standard input was empty; name one a line")
    if "" in sources:
        raise UsageError("the name of a scene is empty; check the variable that it comes from")
    twice = [source for source, count in Counter(sources).items() if count > 1]
    if twice:
        raise UsageError(f"{twice[0]} is named twice; name each scene once")
    return sources


def _lines(stream: Iterable[str]) -> list[str]:
    try:
        return [line.strip() for line in stream if line.strip()]
    except UnicodeDecodeError as error:
        raise UsageError(f"the list of scenes is not {error.encoding} text") from error


def options_per_scene(sources: Sequence[str], options: SegmentOptions) -> list[SegmentOptions]:
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
    stems = [stem_of(source) for source in sources]
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
        )
        for stem in stems
    ]


def stem_of(source: str) -> str:
    """The name of a scene without folder and suffix, fit for a file's name.

    Of a URL it is its path's; of GDAL's ``FORMAT:"file":part`` all that a name may hold.
    """
    place = urlsplit(source).path if "://" in source else source.replace("\\", "/")
    return re.sub(r'[:"*?<>|]+', "_", PurePosixPath(place).stem).strip("_") or "scene"


def segment_all(
    sources: Sequence[str], options: SegmentOptions
) -> Iterator[SegmentResult | Failure]:
    """Segment scene after scene; a scene that fails does not stop the others.

    A model is loaded once per kind of sensor.

    Raises:
        SegEarthError: what no scene can be segmented with, or an output that cannot be; nothing
            has been computed then.
    """
    from segearth_cli.segment import segment
    from segearth_cli.stream import Model, load_model

    @functools.cache
    def load(sensor: str) -> Model:
        return load_model(options, sensor)

    for source, own in checked(sources, options):
        try:
            yield segment(source, own, load)
        except SegEarthError as error:
            yield Failure(source, error)


def plan_all(sources: Sequence[str], options: SegmentOptions) -> Iterator[Plan | Failure]:
    """What each scene would take; nothing is computed or written.

    Raises:
        SegEarthError: as `segment_all`.
    """
    from segearth_cli.segment import plan

    for source, own in checked(sources, options):
        try:
            yield plan(source, own)
        except SegEarthError as error:
            yield Failure(source, error)


def checked(sources: Sequence[str], options: SegmentOptions) -> list[tuple[str, SegmentOptions]]:
    """Each scene with its options, when nothing that can be known beforehand is wrong.

    Raises:
        SegEarthError: what is wrong.
    """
    from segearth_cli.outputs import check_outputs
    from segearth_cli.segment import check_options

    check_options(options)
    scenes = list(zip(sources, options_per_scene(sources, options), strict=True))
    for _, own in scenes:
        check_outputs(sources, own)
    return scenes

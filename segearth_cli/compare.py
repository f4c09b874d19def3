"""Class rasters measured against labels, row by row: rasters on any grid, points or polygons."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from segearth_cli import __version__
from segearth_cli.compare_classes import classes_of
from segearth_cli.compare_labels import Coverage, beside_labels
from segearth_cli.errors import SceneError, UsageError
from segearth_cli.geo.labels import is_vector
from segearth_cli.names import counted, listed
from segearth_cli.options import VECTOR_SUFFIXES, CompareOptions
from segearth_cli.progress import progress_bar
from segearth_cli.scores import Confusion, FileScores, Scores

logger = logging.getLogger(__name__)

RASTERS = (".tif", ".tiff", ".png", ".jp2", ".img", ".vrt")


@dataclass(frozen=True)
class CompareResult:
    """Maps, and how they score against labels."""

    version: str
    pairs: tuple[tuple[str, str], ...]  # a map and its labels
    scores: Scores
    seconds: float
    files: tuple[FileScores, ...]  # each map's, where they were asked for


def compare(options: CompareOptions) -> CompareResult:
    """Score maps against labels, over all pixels that both of them know.

    Raises:
        SegEarthError: nothing fits together, or a raster cannot be read.
    """
    started = time.perf_counter()
    pairs = file_pairs(options.maps, options.labels)
    if options.column is not None and not any(is_vector(label) for _, label in pairs):
        raise UsageError(
            f"--column {options.column} is of a vector file, and {options.labels} is none"
        )
    coverage = Coverage()
    confusion: Confusion | None = None
    names: tuple[str, ...] = ()
    files: list[FileScores] = []
    for made, label in progress_bar(options.progress, pairs, unit="map"):
        own = classes_of(made, options)
        if confusion is None:
            confusion, names = Confusion(len(own.names)), own.names
        elif own.names != names:
            raise UsageError(
                f"{made} has other classes than {pairs[0][0]}; measure maps of one kind at a time"
            )
        counts = Confusion(len(names))
        for truth, predicted in beside_labels(made, label, own, options, coverage):
            counts.add(truth, predicted)
        confusion.merge(counts)
        if options.per_image:
            files.append(FileScores(made, counts.scores(names, own.unscored)))
    assert confusion is not None
    scores = confusion.scores(names, own.unscored)
    if scores.pixels == 0:
        raise SceneError("map and label have no pixel in common that both of them know")
    coverage.warn()
    seconds = time.perf_counter() - started
    return CompareResult(__version__, tuple(pairs), scores, seconds, tuple(files))


def file_pairs(maps: str, labels: str) -> list[tuple[str, str]]:
    """Two files, or the files of equal stem in two folders, with a warning for those left over.

    Raises:
        UsageError: there are none.
    """
    if not os.path.isdir(maps):
        if os.path.isdir(labels):
            raise UsageError(f"{maps} is a file and {labels} a folder; name two of a kind")
        return [(maps, labels)]
    if not os.path.isdir(labels):
        raise UsageError(f"{maps} is a folder and {labels} is none; name two of a kind")
    by_stem, made = _files(labels, (*RASTERS, *VECTOR_SUFFIXES, ".csv")), _files(maps, RASTERS)
    if not made:
        raise UsageError(f"no raster lies in {maps}; its maps end with {' '.join(RASTERS)}")
    both = sorted(made.keys() & by_stem.keys())
    if not both:
        raise UsageError(f"no map in {maps} has the stem of a label in {labels}")
    for kind, other, alone in (
        ("map", "label", made.keys() - by_stem.keys()),
        ("label", "map", by_stem.keys() - made.keys()),
    ):
        if alone:
            logger.warning(
                "%s without a %s of the same stem %s not count: %s",
                counted(len(alone), kind),
                other,
                "does" if len(alone) == 1 else "do",
                listed(sorted(alone)),
            )
    return [(made[stem], by_stem[stem]) for stem in both]


def _files(folder: str, kinds: Sequence[str]) -> dict[str, str]:
    """By stem; of a map and its preview, which has the same, the map."""
    found = [path for path in Path(folder).iterdir() if path.suffix.lower() in kinds]
    found.sort(key=lambda path: kinds.index(path.suffix.lower()), reverse=True)
    return {path.stem: str(path) for path in found}

"""A map beside its labels, some rows at a time, and what to say where they do not fit."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from segearth_cli.compare_classes import MapClasses, check_map, read_map
from segearth_cli.errors import SceneError, UsageError
from segearth_cli.geo.class_raster import BYTES, check_kind, on_grid
from segearth_cli.geo.failures import GDAL_ERRORS, damage
from segearth_cli.geo.grid import Grid
from segearth_cli.geo.label_meaning import LabelMeaning
from segearth_cli.geo.labels import (
    Labels,
    RasterLabels,
    ShapeLabels,
    blocks_of,
    is_vector,
    raster_labels,
    shape_labels,
    warn_of_disputed,
)
from segearth_cli.geo.source import file_grid, open_raster
from segearth_cli.names import listed, plain_label, plain_name
from segearth_cli.options import BACKGROUND_NAMES, UNCLASSIFIED, CompareOptions
from segearth_cli.scores import IGNORED

_FEW = 0.5  # of the labels or of the map, that scores speak for: less is said
_ALIKE = 0.75  # of names, at least, that may be the same
_SAMPLED = 1000  # rows and columns

logger = logging.getLogger(__name__)


@dataclass
class Coverage:
    """How far maps and labels lie on one another, in pixels, summed over pairs of files.

    Attributes:
        labelled: with a label.
        labelled_on_map: of these, where the map has a value.
        mapped: of maps beside rasters, with a value, in pixels of the labels' size.
        mapped_labelled: of these, with a label.
    """

    labelled: float = 0.0
    labelled_on_map: float = 0.0
    mapped: float = 0.0
    mapped_labelled: float = 0.0

    def add(
        self, labelled: NDArray[np.bool_], mapped: NDArray[np.bool_], beside_raster: bool
    ) -> None:
        """Count pixels that have a label, and pixels where the map has a value."""
        both = np.count_nonzero(labelled & mapped)
        self.labelled += np.count_nonzero(labelled)
        self.labelled_on_map += both
        if beside_raster:
            self.mapped += np.count_nonzero(mapped)
            self.mapped_labelled += both

    def warn(self) -> None:
        """Say what share the scores speak for, where it is small."""
        shares = {
            "of the labelled pixels lie on the map": (self.labelled_on_map, self.labelled),
            "of the map's pixels have a label": (self.mapped_labelled, self.mapped),
        }
        few = [
            f"{100 * part / whole:.2g} % {what}"
            for what, (part, whole) in shares.items()
            if part < _FEW * whole
        ]
        if few:
            logger.warning("only %s; the scores are of no others", " and ".join(few))


def beside_labels(
    made: str, label: str, classes: MapClasses, options: CompareOptions, coverage: Coverage
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """Classes by labels and by the map, some rows at a time of a label raster, else of the map.

    Raises:
        SceneError: they do not lie on one another, or cannot be read.
        UsageError: a value is none of a class, and not to be ignored.
    """
    meaning = classes.of_labels
    with ExitStack() as stack:
        source = stack.enter_context(open_raster(made))
        check_kind(source, made, BYTES)
        labels: Labels
        if is_vector(label):
            labels = shape_labels(label, file_grid(source, made), meaning, options.column)
            aligned = source
            check_shapes(labels, meaning)
            coverage.labelled += labels.pixels_beyond()
        else:
            labels = stack.enter_context(raster_labels(label, meaning))
            aligned = on_grid(source, made, labels.grid, label, stack)
            warn_of_raster(labels, meaning, options)
        yield from _classes_by_rows(labels, aligned, made, classes, coverage)
        if aligned is not source:
            coverage.mapped += pixels_beyond(source, made, aligned, labels.grid)


def _classes_by_rows(
    labels: Labels, aligned: Any, made: str, classes: MapClasses, coverage: Coverage
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """Classes by labels and by a map on their grid; says which labels do not count."""
    beside_raster = isinstance(labels, RasterLabels)
    is_labelled = False
    disputed = 0
    for first, rows in blocks_of(labels):
        try:
            predicted = read_map(aligned, Window(0, first, *rows.classes.shape[::-1]))
        except GDAL_ERRORS as error:
            raise SceneError(f"cannot read {made}: {damage(error)}") from error
        truth = np.where(rows.classes < 0, IGNORED, rows.classes).astype(np.uint8)
        check_map(predicted[truth != IGNORED], classes, made)
        found = classes.class_of[predicted]
        says = rows.is_labelled & (truth != IGNORED)
        coverage.add(says, found != IGNORED, beside_raster)
        is_labelled |= bool(rows.is_labelled.any())
        disputed += rows.disputed
        yield truth, found
    if not is_labelled and not beside_raster:
        logger.warning("%s labels no pixel of %s", labels.path, made)
    warn_of_disputed(disputed, labels.path)


def pixels_beyond(source: Any, made: str, aligned: Any, grid: Grid) -> float:
    """How many pixels a map has beyond a label raster, about, in pixels of the label's size.

    Args:
        source: the map.
        made: its name.
        aligned: the map on the label's grid.
        grid: the label's.

    Raises:
        SceneError: the map cannot be read.
    """
    own = Grid(source.width, source.height, source.transform, source.crs)
    size = (own.pixel_area_m2 or 1.0) / (grid.pixel_area_m2 or 1.0)
    try:
        every, here = (_pixels_known(src) for src in (source, aligned))
    except GDAL_ERRORS as error:
        raise SceneError(f"cannot read {made}: {damage(error)}") from error
    return max(0.0, every * size - here)


def _pixels_known(src: Any) -> float:
    """Pixels of a raster that have a value, by a thousand of its rows and columns."""
    shape = (min(src.height, _SAMPLED), min(src.width, _SAMPLED))
    known: NDArray[np.bool_] = src.dataset_mask(out_shape=shape) > 0
    return float(known.mean() * src.width * src.height)


def warn_of_raster(labels: RasterLabels, meaning: LabelMeaning, options: CompareOptions) -> None:
    """Say what the options leave open: which classes one side has not, or what numbers are."""
    if options.label_values:
        return
    if labels.named:
        names = [n for v, n in sorted(labels.named.items()) if str(v) not in meaning.said]
        warn_of_names(meaning.called(names, meaning.by_tag), meaning)
    elif not options.classes:
        warn_of_values(meaning)


def check_shapes(labels: ShapeLabels, meaning: LabelMeaning) -> None:
    """Say which classes one of both does not have, and what numbers are taken for.

    Raises:
        UsageError: no feature has a class of the map.
    """
    called = meaning.called(labels.texts, meaning.by_text)
    if called and not {*called} & {*meaning.names.values()}:
        raise UsageError(
            f"{labels.path} is of {listed(sorted(called))}, and none of them is a class of the map "
            f"({', '.join(meaning.names.values())}); say which column with --column, or "
            "--label-values"
        )
    if {*map(plain_label, labels.texts)} & (meaning.numbers.keys() - meaning.said.keys()):
        warn_of_values(meaning)
    called += [] if meaning.rest is None else [meaning.names[meaning.rest]]
    warn_of_names(called, meaning)
    if called and meaning.has_background and meaning.names[0] not in called:
        logger.warning(
            "%s shows no %s, which can only be wrong; if all that it leaves out is, say "
            "--label-values '*=0'",
            labels.path,
            meaning.names[0],
        )


def warn_of_names(labelled: Sequence[str], meaning: LabelMeaning) -> None:
    """Say which classes one of the two files does not have."""
    names = [*meaning.names.values()]
    of_map, of_label = ({plain_name(name) for name in each} for each in (names, labelled))
    lost = [name for name in labelled if plain_name(name) not in of_map]
    if lost:
        as_background = meaning.others == 0 and meaning.has_background
        others = "its background" if as_background else meaning.names.get(meaning.others or 0)
        logger.warning(
            "the map has no class %s: such pixels %s",
            ", ".join(name + _like(name, names) for name in lost),
            "are left out" if meaning.others is None else f"count as {others}",
        )
    no_class = BACKGROUND_NAMES | {UNCLASSIFIED}
    idle = [name for name in names if plain_name(name) not in of_label | no_class]
    if idle:
        logger.warning("the label has no class %s: they can only be wrong", ", ".join(idle))


def _like(name: str, names: Sequence[str]) -> str:
    """Which of the names may be meant."""
    known = {plain_name(own): own for own in names if plain_name(own) not in BACKGROUND_NAMES}
    close = get_close_matches(plain_name(name), known, 1, _ALIKE)
    return f" (is it {known[close[0]]}?)" if close else ""


def warn_of_values(meaning: LabelMeaning) -> None:
    """Say that labels are numbers, and what they are taken for."""
    logger.warning(
        "labels do not name their classes: their values are taken as the map's (%s); "
        "--label-values says otherwise",
        meaning.shown,
    )

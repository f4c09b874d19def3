"""A map beside a label raster, row by row, whatever their grids."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from segearth_cli.compare_classes import (
    ROWS,
    Coverage,
    MapClasses,
    check_map,
    read_map,
    said_values,
    warn_of_names,
    warn_of_values,
)
from segearth_cli.errors import SceneError, UsageError
from segearth_cli.geo.class_raster import BYTES, check_kind, class_names, on_grid, translated
from segearth_cli.geo.failures import GDAL_ERRORS, damage, reason
from segearth_cli.geo.grid import Grid
from segearth_cli.geo.source import environment, file_grid, gdal_settings, opened
from segearth_cli.names import plain_name
from segearth_cli.options import CompareOptions
from segearth_cli.scores import IGNORED

_SAMPLED = 1000  # rows and columns

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Meaning:
    """What the values of a label raster stand for.

    Attributes:
        label: the raster.
        values: the map's, or ``IGNORED``, for those of the label.
        rest: for all others, if the options say it.
    """

    label: str
    values: Mapping[int, int]
    rest: int | None

    def of(self, value: int) -> int:
        """The map's value, or ``IGNORED``, for one of the label.

        Raises:
            UsageError: nobody has given it a meaning, and it would go unnoticed.
        """
        known = self.values.get(value, self.rest)
        if known is None:
            raise UsageError(
                f"{self.label} holds {value}, which is no class of the map; say --label-values "
                f"{value}=CLASS or --ignore {value}"
            )
        return known


def meaning_of(label: str, made: str, classes: MapClasses, options: CompareOptions) -> Meaning:
    """What the values of a label raster stand for.

    They are the options', else those of the same name where both files name theirs; where neither
    says more, the map's.

    Raises:
        UsageError: the options name a class that there is not.
    """
    labelled, nodata = class_names(label)
    said, rest = said_values(options, classes, made)
    values = {IGNORED: IGNORED} if rest is None else {}
    if labelled:
        unknown = classes.rest if rest is None else rest
        known = {value: plain_name(name) for value, name in labelled.items()}
        values |= {value: classes.values.get(name, unknown) for value, name in known.items()}
    elif not options.label_values:
        values |= zip(range(len(classes.names)), range(len(classes.names)), strict=True)
        values |= dict.fromkeys(classes.unscored, IGNORED)
    by_name = {plain_name(name): value for value, name in labelled.items()}
    pairs = [*said.items(), *((old, IGNORED) for old in options.ignore)]
    explained: dict[int, int] = {}
    for old, new in pairs:  # one label may be named by its value and by its name
        value = label_value(old, by_name, label)
        if explained.setdefault(value, new) != new:
            raise UsageError(
                f"--label-values and --ignore give {value} of {label} two meanings, once as "
                f"{old}; give one"
            )
    values |= explained
    if nodata is not None and float(nodata).is_integer():
        values[int(nodata)] = IGNORED
    if labelled and not options.label_values:
        warn_of_names([classes.called(labelled[value]) for value in sorted(labelled)], classes)
    elif not options.label_values and not options.classes:
        warn_of_values(classes)
    return Meaning(label, values, rest)


def label_value(said: int | str, by_name: Mapping[str, int], label: str) -> int:
    """A value of a label raster, by number or name.

    Raises:
        UsageError: it names no such class.
    """
    if isinstance(said, int):
        return said
    if plain_name(said) not in by_name:
        shown = ", ".join(by_name) or "no names of its values"
        raise UsageError(f"{label} has no class {said}; it has {shown}")
    return by_name[plain_name(said)]


def beside_raster(
    made: str, label: str, classes: MapClasses, options: CompareOptions, coverage: Coverage
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """Classes by a label raster and by the map, some rows of the label at a time.

    Raises:
        SceneError: they do not lie on one another, or cannot be read.
        UsageError: a value is none of a class, and not to be ignored.
    """
    meaning = meaning_of(label, made, classes, options)
    settings = gdal_settings(label) | gdal_settings(made)
    with ExitStack() as stack:
        stack.enter_context(environment(settings))
        own = stack.enter_context(opened(label))
        source = stack.enter_context(opened(made))
        check_kind(own, label)
        check_kind(source, made, BYTES)
        grid = file_grid(own, label)
        aligned = on_grid(source, made, grid, label, stack)
        for first in range(0, own.height, ROWS):
            window = Window(0, first, own.width, min(ROWS, own.height - first))
            try:
                labels, known = own.read(1, window=window), own.dataset_mask(window=window) > 0
                predicted = read_map(aligned, window)
            except GDAL_ERRORS as error:
                raise SceneError(f"cannot read {made} beside {label}: {reason(error)}") from error
            truth = translated(labels, known, meaning.of, IGNORED, label).astype(np.uint8)
            check_map(predicted[truth != IGNORED], classes, made)
            found = classes.class_of[predicted]
            coverage.add(truth != IGNORED, found != IGNORED)
            yield truth, found
        if aligned is not source:
            coverage.mapped += pixels_beyond(source, made, aligned, grid)


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

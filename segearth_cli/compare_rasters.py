"""A map beside a label raster, row by row, whatever their grids."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from segearth_cli.compare_classes import (
    ROWS,
    MapClasses,
    check_kind,
    check_map,
    read_map,
    said_values,
    warn_of_names,
    warn_of_values,
)
from segearth_cli.errors import SceneError, UsageError
from segearth_cli.geo.failures import GDAL_ERRORS, reason
from segearth_cli.geo.labels import class_names, on_grid
from segearth_cli.geo.source import environment, file_grid, gdal_settings, opened
from segearth_cli.options import UNCLASSIFIED, CompareOptions
from segearth_cli.scores import IGNORED

logger = logging.getLogger(__name__)

BEYOND = 256  # stands for no value, and for a label's values that no class has and say nothing


@dataclass(frozen=True)
class Meaning:
    """What the values of a label raster stand for.

    Attributes:
        class_of: the map's value for each of the label's 256, for ``BEYOND``, and then for each of
            ``far`` and for all others.
        known: which of them have a meaning, if only to be ignored.
        ignored: values, of any size, that mean nothing by the options.
        far: values beyond 255 (or below 0) that have a meaning, as national land cover codes.
        has_rest: whether the options say what all others are.
    """

    class_of: NDArray[np.uint8]
    known: NDArray[np.bool_]
    ignored: tuple[int, ...]
    far: tuple[int, ...]
    has_rest: bool


def beside_raster(
    made: Path, label: Path, classes: MapClasses, options: CompareOptions
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """Classes by a label raster and by the map, some rows of the label at a time.

    Raises:
        SceneError: they do not lie on one another, or cannot be read.
        UsageError: a value is none of a class, and not to be ignored.
    """
    meaning = meaning_of(label, made, classes, options)
    for truth, predicted in aligned_rows(made, label, meaning):
        check_values(truth, predicted, meaning, classes, made, label)
        yield meaning.class_of[truth], classes.class_of[predicted]


def meaning_of(label: Path, made: Path, classes: MapClasses, options: CompareOptions) -> Meaning:
    """What the values of a label raster stand for.

    They are the options', else those of the same name where both files name theirs; where neither
    says more, the map's.

    Raises:
        UsageError: the options name a class that there is not.
    """
    names = classes.names
    labelled, nodata = class_names(str(label))
    by_name = {name.casefold(): value for value, name in labelled.items()}
    ignored = tuple(label_value(value, by_name, label) for value in options.ignore)
    said, rest = said_values(options, classes, made)
    explained = {label_value(old, by_name, label): new for old, new in said.items()}
    far = tuple(sorted({*labelled, *explained} - {*range(256)}))
    place = dict(zip(far, range(BEYOND + 1, BEYOND + 1 + len(far)), strict=True))
    place |= zip(range(256), range(256), strict=True)
    class_of = np.full(BEYOND + len(far) + 2, IGNORED, np.uint8)
    if rest is not None:
        class_of[:BEYOND] = class_of[-1] = rest
    unknown = classes.rest if rest is None else rest
    for value, name in labelled.items():
        class_of[place[value]] = classes.values.get(name.casefold(), unknown)
    for value, new in explained.items():
        class_of[place[value]] = new
    empty = [value for value in ignored if 0 <= value < 256]
    empty += [int(nodata)] if nodata is not None and 0 <= nodata < 256 else []
    if labelled and not options.label_values:
        warn_of_names([classes.called(labelled[value]) for value in sorted(labelled)], classes)
    elif not options.label_values:
        class_of[: len(names)] = range(len(names))
        if names[0] == UNCLASSIFIED:  # of a map without a background
            empty.append(0)
        if not options.classes:
            warn_of_values(classes)
    class_of[empty] = IGNORED
    known = class_of != IGNORED
    known[[IGNORED, BEYOND, *empty, *(place[value] for value in labelled)]] = True
    return Meaning(class_of, known, ignored, far, rest is not None)


def label_value(said: int | str, by_name: Mapping[str, int], label: Path) -> int:
    """A value of a label raster, by number or name.

    Raises:
        UsageError: it names no such class.
    """
    if isinstance(said, int):
        return said
    if said.casefold() not in by_name:
        shown = ", ".join(by_name) or "no names of its values"
        raise UsageError(f"{label} has no class {said}; it has {shown}")
    return by_name[said.casefold()]


def check_values(
    truth: NDArray[np.integer],
    predicted: NDArray[np.uint8],
    meaning: Meaning,
    classes: MapClasses,
    made: Path,
    label: Path,
) -> None:
    """Refuse values that nobody has given a meaning: they would go unnoticed.

    Raises:
        UsageError: there is one.
    """
    strange = truth[~meaning.known[truth]]
    if strange.size:
        raise UsageError(
            f"{label} holds {strange[0]}, which is no class of the map; say --label-values "
            f"{strange[0]}=CLASS or --ignore {strange[0]}"
        )
    check_map(predicted[meaning.class_of[truth] != IGNORED], classes, made)


def aligned_rows(
    made: Path, label: Path, meaning: Meaning
) -> Iterator[tuple[NDArray[np.integer], NDArray[np.uint8]]]:
    """Values of label and map on the label's pixels, some rows at a time.

    Raises:
        SceneError: they do not lie on one another, or cannot be read.
        UsageError: a value of the label is none of a class, and not to be ignored.
    """
    settings = gdal_settings(str(label)) | gdal_settings(str(made))
    with ExitStack() as stack:
        stack.enter_context(environment(settings))
        truth = stack.enter_context(opened(str(label)))
        source = stack.enter_context(opened(str(made)))
        check_kind(truth, label, np.integer)
        check_kind(source, made, np.uint8)
        unknown = {*meaning.ignored, *filter(None, (truth.nodata,))}
        grid = file_grid(truth, str(label))
        predicted = on_grid(source, str(made), grid, str(label), stack)
        try:
            for first in range(0, truth.height, ROWS):
                window = Window(0, first, truth.width, min(ROWS, truth.height - first))
                known = truth.dataset_mask(window=window) > 0
                values = as_classes(truth.read(1, window=window), known, label, unknown, meaning)
                yield values, read_map(predicted, window)
        except GDAL_ERRORS as error:
            raise SceneError(f"cannot read {made} beside {label}: {reason(error)}") from error


def as_classes(
    values: NDArray[np.integer],
    known: NDArray[np.bool_],
    label: Path,
    unknown: Collection[float],
    meaning: Meaning,
) -> NDArray[np.uint16]:
    """A label's values as places in the ``meaning``'s table.

    Raises:
        UsageError: one that no class can have has no meaning, and is not ``unknown``.
    """
    beyond = (values < 0) | (values > 255)
    places = np.where(beyond | ~known, BEYOND, values.astype(np.uint16))
    strange = known & beyond & ~np.isin(values, list(unknown))
    for number, value in enumerate(meaning.far):
        places[strange & (values == value)] = BEYOND + 1 + number
    strange &= ~np.isin(values, meaning.far)
    if meaning.has_rest:
        places[strange] = BEYOND + 1 + len(meaning.far)
    elif strange.any():
        value = values[strange][0]
        raise UsageError(
            f"{label} holds {value}, and classes are 0 to 255; say --ignore {value} if it means "
            f"nothing, or --label-values {value}=CLASS"
        )
    return places

"""Class rasters measured against label rasters, row by row, whatever their grids."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window
from tqdm import tqdm

from segearth_cli.errors import SceneError, UsageError
from segearth_cli.geo.failures import GDAL_ERRORS, reason
from segearth_cli.geo.labels import class_names, on_grid
from segearth_cli.geo.source import environment, file_grid, gdal_settings, opened
from segearth_cli.names import listed
from segearth_cli.options import BACKGROUND_NAMES, CompareOptions
from segearth_cli.scores import IGNORED, Confusion, Scores

logger = logging.getLogger(__name__)

ROWS = 512  # read at once
BEYOND = 256  # stands for a label's values that no class has and that say nothing
RASTERS = (".tif", ".tiff", ".png", ".jp2", ".img", ".vrt")


@dataclass(frozen=True)
class CompareResult:
    """Maps, and how they score against labels."""

    maps: int
    scores: Scores
    seconds: float


@dataclass(frozen=True)
class Meaning:
    """What the values of a map and of its label stand for.

    Attributes:
        names: of the map's values 0, 1, ...
        class_of_label: the map's value for each of the label's 256, and for what lies beyond.
        class_of_map: the map's own values, with nodata ignored.
        known: which of the label's have a meaning, if only to be ignored.
        known_of_map: which of the map's.
    """

    names: tuple[str, ...]
    class_of_label: NDArray[np.uint8]
    class_of_map: NDArray[np.uint8]
    known: NDArray[np.bool_]
    known_of_map: NDArray[np.bool_]


def compare(options: CompareOptions) -> CompareResult:
    """Score maps against labels, over all pixels that both of them know.

    Raises:
        SegEarthError: nothing fits together, or a raster cannot be read.
    """
    started = time.perf_counter()
    pairs = raster_pairs(options.maps, options.labels)
    confusion: Confusion | None = None
    names: tuple[str, ...] = ()
    disable = None if options.progress else True
    for made, label in tqdm(pairs, unit="map", disable=disable, leave=False):
        meaning = meaning_of(made, label, options)
        if confusion is None:
            confusion, names = Confusion(len(meaning.names)), meaning.names
        elif meaning.names != names:
            raise UsageError(
                f"{made} has other classes than {pairs[0][0]}; measure maps of one kind at a time"
            )
        for truth, predicted in aligned_rows(made, label, options.ignore):
            check_values(truth, predicted, meaning, made, label)
            confusion.add(meaning.class_of_label[truth], meaning.class_of_map[predicted])
    assert confusion is not None
    scores = confusion.scores(names)
    if scores.pixels == 0:
        raise SceneError("map and label have no pixel in common that both of them know")
    return CompareResult(len(pairs), scores, time.perf_counter() - started)


def raster_pairs(maps: Path, labels: Path) -> list[tuple[Path, Path]]:
    """Two files, or the files of equal stem in two folders, with a warning for those left over.

    Raises:
        UsageError: there are none.
    """
    if not maps.is_dir():
        if labels.is_dir():
            raise UsageError(f"{maps} is a file and {labels} a folder; name two of a kind")
        return [(maps, labels)]
    if not labels.is_dir():
        raise UsageError(f"{maps} is a folder and {labels} is none; name two of a kind")
    by_stem, made = _rasters(labels), _rasters(maps)
    if not made:
        raise UsageError(f"no raster lies in {maps}; its maps end with {' '.join(RASTERS)}")
    both = sorted(made.keys() & by_stem.keys())
    if not both:
        raise UsageError(f"no map in {maps} has the stem of a label in {labels}")
    for kind, other, alone in (
        ("maps", "label", made.keys() - by_stem.keys()),
        ("labels", "map", by_stem.keys() - made.keys()),
    ):
        if alone:
            logger.warning(
                "%d %s without a %s of the same stem do not count: %s",
                len(alone),
                kind,
                other,
                listed(sorted(alone)),
            )
    return [(made[stem], by_stem[stem]) for stem in both]


def _rasters(folder: Path) -> dict[str, Path]:
    """By stem; of a map and its preview, which has the same, the map."""
    found = [path for path in folder.iterdir() if path.suffix.lower() in RASTERS]
    found.sort(key=lambda path: RASTERS.index(path.suffix.lower()), reverse=True)
    return {path.stem: path for path in found}


def meaning_of(made: Path, label: Path, options: CompareOptions) -> Meaning:
    """What the values of two files stand for.

    Names come from the options, else from the map. The label's values are the options', else those
    of the same name where both files name theirs, else the map's own.

    Raises:
        UsageError: the map names no classes, and nobody else does.
    """
    own, nodata = class_names(str(made))
    if own and options.classes:
        raise UsageError(
            f"{made} names its own classes ({', '.join(own.values())}); leave --classes out"
        )
    own = own or dict(enumerate(options.classes))
    if own and max(own) >= IGNORED:
        raise UsageError(
            f"{made} has classes beyond 255; evaluate takes maps of 8 bits, of 255 classes at most"
        )
    if not own:
        raise UsageError(
            f"{made} does not name its classes; name those of its values 0, 1, ... with --classes"
        )
    names = tuple(own.get(value, str(value)) for value in range(max(own) + 1))
    labelled, label_nodata = class_names(str(label))
    class_of_label = np.full(BEYOND + 1, IGNORED, np.uint8)
    if options.label_values:
        values = [(old, _said(new, own, made)) for old, new in options.label_values]
        for old, new in sorted(values, key=lambda pair: pair[0] is not None):
            class_of_label[slice(BEYOND) if old is None else old] = new
    elif labelled:
        for value in labelled.keys() & range(256):
            class_of_label[value] = _value_of(labelled[value], names)
        _warn_of_names([labelled[value] for value in sorted(labelled)], names)
    else:
        class_of_label[: len(names)] = range(len(names))
        if not options.classes:
            shown = ", ".join(f"{value} {name}" for value, name in enumerate(names))
            logger.warning(
                "labels do not name their classes: their values are taken as the map's (%s); "
                "--label-values says otherwise",
                shown,
            )
    class_of_map = np.full(256, IGNORED, np.uint8)
    class_of_map[[*own.keys() & range(256)]] = [*own.keys() & range(256)]
    for table, empty in ((class_of_label, label_nodata), (class_of_map, nodata)):
        if empty is not None and 0 <= empty < 256:
            table[int(empty)] = IGNORED
    class_of_label[[value for value in options.ignore if 0 <= value < 256]] = IGNORED
    known = class_of_label != IGNORED
    known[BEYOND] = True
    for said in (IGNORED, label_nodata, *options.ignore, *labelled):
        if said is not None and 0 <= said < 256:
            known[int(said)] = True
    known_of_map = class_of_map != IGNORED
    known_of_map[IGNORED] = True
    if nodata is not None and 0 <= nodata < 256:
        known_of_map[int(nodata)] = True
    return Meaning(names, class_of_label, class_of_map, known, known_of_map)


def _said(new: int | str, own: Mapping[int, str], made: Path) -> int:
    """A value of the map's, by its number or name.

    Raises:
        UsageError: the map has no such class.
    """
    by_name = {name.casefold(): value for value, name in own.items()}
    value = by_name.get(new.casefold(), -1) if isinstance(new, str) else new
    if value not in own:
        shown = ", ".join(f"{number} {name}" for number, name in sorted(own.items()))
        raise UsageError(f"--label-values: {made} has no class {new}; it has {shown}")
    return value


def _warn_of_names(labelled: Sequence[str], names: Sequence[str]) -> None:
    """Say which classes one of the two files does not have."""
    of_map, of_label = ({name.casefold() for name in each} for each in (names, labelled))
    lost = [name for name in labelled if name.casefold() not in of_map | BACKGROUND_NAMES]
    if lost:
        fate = (
            "count as its background" if names[0].casefold() in BACKGROUND_NAMES else "are left out"
        )
        logger.warning("the map has no class %s: such pixels %s", ", ".join(lost), fate)
    idle = [name for name in names if name.casefold() not in of_label | BACKGROUND_NAMES]
    if idle:
        logger.warning("the label has no class %s: they can only be wrong", ", ".join(idle))


def check_values(
    truth: NDArray[np.integer],
    predicted: NDArray[np.uint8],
    meaning: Meaning,
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
    counted = meaning.class_of_label[truth] != IGNORED
    strange_of_map = predicted[counted & ~meaning.known_of_map[predicted]]
    if strange_of_map.size:
        raise UsageError(
            f"{made} holds {strange_of_map[0]}, and its classes are {', '.join(meaning.names)}; "
            "name all of its values with --classes"
        )


def _value_of(name: str, names: tuple[str, ...]) -> int:
    """The map's value for a name of the label's; what the map does not know is its background."""
    plain = [own.casefold() for own in names]
    if name.casefold() in plain:
        return plain.index(name.casefold())
    return 0 if plain[0] in BACKGROUND_NAMES else IGNORED


def aligned_rows(
    made: Path, label: Path, ignore: Collection[int]
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
        for path, src in ((label, truth), (made, source)):
            wanted = np.integer if src is truth else np.uint8
            if src.count != 1 or not np.issubdtype(np.dtype(src.dtypes[0]), wanted):
                raise SceneError(
                    f"{path} has {src.count} bands of {src.dtypes[0]}; give one band of class "
                    "values, whole numbers from 0 to 255"
                )
        unknown = {*ignore, *filter(None, (truth.nodata,))}
        grid = file_grid(truth, str(label))
        predicted = on_grid(source, str(made), grid, str(label), stack)
        try:
            for first in range(0, truth.height, ROWS):
                window = Window(0, first, truth.width, min(ROWS, truth.height - first))
                known = predicted.dataset_mask(window=window) > 0
                values = predicted.read(1, window=window)
                labelled = as_classes(truth.read(1, window=window), label, unknown)
                yield labelled, np.where(known, values, np.uint8(IGNORED))
        except GDAL_ERRORS as error:
            raise SceneError(f"cannot read {made} beside {label}: {reason(error)}") from error


def as_classes(
    values: NDArray[np.integer], label: Path, unknown: Collection[float]
) -> NDArray[np.integer]:
    """A label's values, the ``unknown`` ones that no class can have as ``BEYOND``.

    Raises:
        UsageError: another one lies there.
    """
    if values.dtype == np.uint8:  # nothing lies beyond
        return values
    beyond = (values < 0) | (values > 255)
    strange = values[beyond & ~np.isin(values, list(unknown))]
    if strange.size:
        raise UsageError(
            f"{label} holds {strange[0]}, and classes are 0 to 255; say --ignore {strange[0]} if "
            "it means nothing"
        )
    return np.where(beyond, BEYOND, values).astype(np.uint16)

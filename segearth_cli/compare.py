"""Class rasters measured against labels, row by row: rasters on any grid, points or polygons."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window
from tqdm import tqdm

from segearth_cli.errors import SceneError, UsageError
from segearth_cli.geo.failures import GDAL_ERRORS, reason
from segearth_cli.geo.labels import (
    DISPUTED,
    UNKNOWN,
    ClassNames,
    class_names,
    is_vector,
    on_grid,
    open_labels,
)
from segearth_cli.geo.recorded import read_record
from segearth_cli.geo.source import environment, file_grid, gdal_settings, opened
from segearth_cli.names import listed
from segearth_cli.options import BACKGROUND_NAMES, VECTOR_SUFFIXES, CompareOptions
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
class MapClasses:
    """What the values of a map stand for.

    Attributes:
        own: names by value.
        names: of the values 0, 1, ...
        values: by every name and synonym, in lower case.
        class_of: the map's own values, with nodata ignored.
        known: which of the map's 256 values have a meaning, if only to be ignored.
    """

    own: Mapping[int, str]
    names: tuple[str, ...]
    values: Mapping[str, int]
    class_of: NDArray[np.uint8]
    known: NDArray[np.bool_]

    @property
    def rest(self) -> int:
        """The value for what the map does not know: its background, if it has one."""
        return 0 if self.names[0].casefold() in BACKGROUND_NAMES else IGNORED

    def value_of(self, name: str) -> int:
        """The value for a name of the label's; what the map does not know is its background."""
        return self.values.get(name.casefold(), self.rest)

    def called(self, name: str) -> str:
        """What the map calls that, if it knows it."""
        value = self.values.get(name.casefold())
        return name if value is None else self.names[value]


@dataclass(frozen=True)
class Meaning:
    """What the values of a label raster stand for.

    Attributes:
        class_of: the map's value for each of the label's 256, and for what lies beyond.
        known: which of them have a meaning, if only to be ignored.
    """

    class_of: NDArray[np.uint8]
    known: NDArray[np.bool_]


@dataclass(frozen=True)
class ShapeNames(ClassNames):
    """The map's values for what points and polygons are called.

    Attributes:
        classes: the map's.
        found: what they are called, in lower case.
    """

    classes: MapClasses
    found: list[str] = field(default_factory=list)

    def value_of(self, name: str, origin: str) -> int:
        """The map's value; what the map does not know is its background, or left out."""
        plain = " ".join(name.casefold().split()).removesuffix(".0")  # numbers beside gaps
        self.found.append(plain)
        if plain in self.values:
            return self.values[plain]
        if plain.isdecimal() and int(plain) in self.classes.own:
            return int(plain)
        return self.classes.value_of(plain)

    def called(self) -> list[str]:
        """What they are called, as the map calls it if it does, without those left out."""
        by_value = {str(value): name for value, name in self.classes.own.items()}
        return [
            self.classes.names[self.values[name]]
            if name in self.values
            else by_value.get(name) or self.classes.called(name)
            for name in self.found
            if self.values.get(name) != IGNORED
        ]


def compare(options: CompareOptions) -> CompareResult:
    """Score maps against labels, over all pixels that both of them know.

    Raises:
        SegEarthError: nothing fits together, or a raster cannot be read.
    """
    started = time.perf_counter()
    pairs = file_pairs(options.maps, options.labels)
    if options.column is not None and not any(is_vector(str(label)) for _, label in pairs):
        raise UsageError(
            f"--column {options.column} is of a vector file, and {options.labels} is none"
        )
    confusion: Confusion | None = None
    names: tuple[str, ...] = ()
    disable = None if options.progress else True
    for made, label in tqdm(pairs, unit="map", disable=disable, leave=False):
        own = classes_of(made, options)
        if confusion is None:
            confusion, names = Confusion(len(own.names)), own.names
        elif own.names != names:
            raise UsageError(
                f"{made} has other classes than {pairs[0][0]}; measure maps of one kind at a time"
            )
        beside = beside_shapes if is_vector(str(label)) else beside_raster
        for truth, predicted in beside(made, label, own, options):
            confusion.add(truth, predicted)
    assert confusion is not None
    scores = confusion.scores(names)
    if scores.pixels == 0:
        raise SceneError("map and label have no pixel in common that both of them know")
    return CompareResult(len(pairs), scores, time.perf_counter() - started)


def file_pairs(maps: Path, labels: Path) -> list[tuple[Path, Path]]:
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
    by_stem, made = _files(labels, (*RASTERS, *VECTOR_SUFFIXES)), _files(maps, RASTERS)
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


def _files(folder: Path, kinds: Sequence[str]) -> dict[str, Path]:
    """By stem; of a map and its preview, which has the same, the map."""
    found = [path for path in folder.iterdir() if path.suffix.lower() in kinds]
    found.sort(key=lambda path: kinds.index(path.suffix.lower()), reverse=True)
    return {path.stem: path for path in found}


def classes_of(made: Path, options: CompareOptions) -> MapClasses:
    """What the values of a map stand for, as the options say, else the map itself.

    Raises:
        UsageError: both say it, or neither.
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
    class_of = np.full(256, IGNORED, np.uint8)
    class_of[[*own.keys() & range(256)]] = [*own.keys() & range(256)]
    known = class_of != IGNORED
    known[IGNORED] = True
    if nodata is not None and 0 <= nodata < 256:
        class_of[int(nodata)] = IGNORED
        known[int(nodata)] = True
    names = tuple(own.get(value, str(value)) for value in range(max(own) + 1))
    values = {name.casefold(): value for value, name in reversed([*enumerate(names)])}
    if names[0].casefold() in BACKGROUND_NAMES:
        values = dict.fromkeys(BACKGROUND_NAMES, 0) | values
    for first, *synonyms in (read_record(made) or {}).get("classes", []):
        if first.casefold() in values:
            values |= {word.casefold(): values[first.casefold()] for word in synonyms}
    return MapClasses(own, names, values, class_of, known)


def meaning_of(
    label: Path,
    made: Path,
    classes: MapClasses,
    options: CompareOptions,
    ignore: tuple[int, ...],
) -> Meaning:
    """What the values of a label raster stand for.

    They are the options', else those of the same name where both files name theirs; where neither
    says more, the map's.

    Raises:
        UsageError: the options name a class that there is not.
    """
    names = classes.names
    labelled, nodata = class_names(str(label))
    class_of = np.full(BEYOND + 1, IGNORED, np.uint8)
    for value in labelled.keys() & range(256):
        class_of[value] = classes.value_of(labelled[value])
    by_name = {name.casefold(): value for value, name in labelled.items()}
    said = said_values(options, classes, made)
    for old, new in said:
        if old is None:  # all that is called as no class of the map
            called = [v for v, n in labelled.items() if n.casefold() in classes.values and v < 256]
            kept = class_of[called]
            class_of[:BEYOND] = new
            class_of[called] = kept
        else:
            class_of[label_value(old, by_name, label)] = new
    if labelled and not said:
        _warn_of_names([classes.called(labelled[value]) for value in sorted(labelled)], classes)
    elif not said:
        class_of[: len(names)] = range(len(names))
        if not options.classes:
            shown = ", ".join(f"{value} {name}" for value, name in enumerate(names))
            logger.warning(
                "labels do not name their classes: their values are taken as the map's (%s); "
                "--label-values says otherwise",
                shown,
            )
    if nodata is not None and 0 <= nodata < 256:
        class_of[int(nodata)] = IGNORED
    class_of[[value for value in ignore if 0 <= value < 256]] = IGNORED
    known = class_of != IGNORED
    known[BEYOND] = True
    known[[value for value in (IGNORED, *ignore, *labelled) if 0 <= value < 256]] = True
    if nodata is not None and 0 <= nodata < 256:
        known[int(nodata)] = True
    return Meaning(class_of, known)


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


def said_values(
    options: CompareOptions, classes: MapClasses, made: Path
) -> list[tuple[int | str | None, int]]:
    """What the options say that labels are in the map, the rest first.

    Raises:
        UsageError: the map has no such class.
    """
    values = [(old, _said(new, classes.own, made)) for old, new in options.label_values]
    return sorted(values, key=lambda pair: pair[0] is not None)


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


def _warn_of_names(labelled: Sequence[str], classes: MapClasses) -> None:
    """Say which classes one of the two files does not have."""
    of_map, of_label = ({name.casefold() for name in each} for each in (classes.names, labelled))
    lost = [name for name in labelled if name.casefold() not in of_map]
    if lost:
        fate = "are left out" if classes.rest == IGNORED else "count as its background"
        logger.warning("the map has no class %s: such pixels %s", ", ".join(lost), fate)
    idle = [name for name in classes.names if name.casefold() not in of_label | BACKGROUND_NAMES]
    if idle:
        logger.warning("the label has no class %s: they can only be wrong", ", ".join(idle))


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


def check_map(predicted: NDArray[np.uint8], classes: MapClasses, made: Path) -> None:
    """Refuse values of a map, where a label counts, that nobody has given a meaning.

    Raises:
        UsageError: there is one.
    """
    strange = predicted[~classes.known[predicted]]
    if strange.size:
        raise UsageError(
            f"{made} holds {strange[0]}, and its classes are {', '.join(classes.names)}; "
            "name all of its values with --classes"
        )


def beside_raster(
    made: Path, label: Path, classes: MapClasses, options: CompareOptions
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """Classes by a label raster and by the map, some rows of the label at a time.

    Raises:
        SceneError: they do not lie on one another, or cannot be read.
        UsageError: a value is none of a class, and not to be ignored.
    """
    by_name = {name.casefold(): value for value, name in class_names(str(label))[0].items()}
    ignore = tuple(label_value(value, by_name, label) for value in options.ignore)
    meaning = meaning_of(label, made, classes, options, ignore)
    for truth, predicted in aligned_rows(made, label, ignore):
        check_values(truth, predicted, meaning, classes, made, label)
        yield meaning.class_of[truth], classes.class_of[predicted]


def beside_shapes(
    made: Path, label: Path, classes: MapClasses, options: CompareOptions
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """Classes by points or polygons and by the map, some rows of the map at a time.

    Raises:
        SceneError: they do not lie on one another, or cannot be read.
        UsageError: a value of the map is none of a class.
    """
    said = {
        None if o is None else str(o).casefold(): n for o, n in said_values(options, classes, made)
    }
    said |= {str(value).casefold(): IGNORED for value in options.ignore}
    rest = said.pop(None, IGNORED)
    names = ShapeNames(classes.names, {str(name): value for name, value in said.items()}, classes)
    with ExitStack() as stack:
        stack.enter_context(environment(gdal_settings(str(made))))
        source = stack.enter_context(opened(str(made)))
        check_kind(source, made, np.uint8)
        grid = file_grid(source, str(made))
        read = stack.enter_context(open_labels(str(label), grid, names, options.column))
        check_shapes(label, names, rest)
        labelled = disputed = 0
        for first in range(0, grid.height, ROWS):
            count = min(ROWS, grid.height - first)
            labels = read(first, count)
            labelled += int(np.count_nonzero(labels != UNKNOWN))
            disputed += int(np.count_nonzero(labels == DISPUTED))
            labels = np.select([labels == UNKNOWN, labels == DISPUTED], [rest, IGNORED], labels)
            truth = labels.astype(np.uint8)
            try:
                window = Window(0, first, grid.width, count)
                known = source.dataset_mask(window=window) > 0
                predicted = np.where(known, source.read(1, window=window), np.uint8(IGNORED))
            except GDAL_ERRORS as error:
                raise SceneError(f"cannot read {made}: {reason(error)}") from error
            check_map(predicted[truth != IGNORED], classes, made)
            yield truth, classes.class_of[predicted]
    if not labelled:
        logger.warning("%s labels no pixel of %s", label, made)
    if disputed:
        logger.warning("%s: %d pixels have labels of several classes; left out", label, disputed)


def check_shapes(label: Path, names: ShapeNames, rest: int) -> None:
    """Say which classes, and which names that the options give, one of both does not have.

    Args:
        label: a vector file.
        names: what its features are called.
        rest: the class of what lies in none of them.

    Raises:
        UsageError: no feature has a class of the map.
    """
    classes, called = names.classes, names.called()
    unused = sorted(names.values.keys() - set(names.found))
    if unused:
        logger.warning("%s has nothing called %s", label, ", ".join(unused))
    if called and not {*called} & {*classes.names}:
        raise UsageError(
            f"{label} is of {listed(sorted(called))}, and none of them is a class of the map "
            f"({', '.join(classes.names)}); say which column with --column, or --label-values"
        )
    called += [] if rest == IGNORED else [classes.names[rest]]
    _warn_of_names(called, classes)
    if called and classes.rest != IGNORED and classes.names[0] not in called:
        logger.warning(
            "%s shows no %s, which can only be wrong; if all that it leaves out is, say "
            "--label-values '*=0'",
            label,
            classes.names[0],
        )


def check_kind(src: Any, path: Path, wanted: Any) -> None:
    """Refuse a raster that holds no classes.

    Raises:
        SceneError: it has several bands, or other numbers.
    """
    if src.count != 1 or not np.issubdtype(np.dtype(src.dtypes[0]), wanted):
        raise SceneError(
            f"{path} has {src.count} bands of {src.dtypes[0]}; give one band of class "
            "values, whole numbers from 0 to 255"
        )


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
        check_kind(truth, label, np.integer)
        check_kind(source, made, np.uint8)
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

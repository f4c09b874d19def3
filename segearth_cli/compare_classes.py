"""What the values of a map stand for, where it is measured against labels."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from segearth_cli.errors import UsageError
from segearth_cli.geo.class_raster import class_names
from segearth_cli.geo.labels import is_vector
from segearth_cli.geo.recorded import from_tags
from segearth_cli.geo.source import environment, gdal_settings, opened
from segearth_cli.names import plain_name
from segearth_cli.options import BACKGROUND_NAMES, UNCLASSIFIED, CompareOptions
from segearth_cli.scores import IGNORED

logger = logging.getLogger(__name__)

ROWS = 512  # read at once
_FEW = 0.5  # of the labels or of the map, that scores speak for: less is said
_ALIKE = 0.75  # of names, at least, that may be the same


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
    def unscored(self) -> frozenset[int]:
        """Values that are no class: 0 of a map without a background, whose pixels have none."""
        return frozenset({0} if plain_name(self.names[0]) == UNCLASSIFIED else ())

    @property
    def rest(self) -> int:
        """The value for what the map does not know: its background, if it has one."""
        return 0 if plain_name(self.names[0]) in BACKGROUND_NAMES else IGNORED

    def called(self, name: str) -> str:
        """What the map calls that, if it knows it."""
        value = self.values.get(plain_name(name))
        return name if value in (None, IGNORED) else self.names[value]


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

    def add(self, labelled: NDArray[np.bool_], mapped: NDArray[np.bool_]) -> None:
        """Count pixels of a label raster that lies on its map."""
        both = np.count_nonzero(labelled & mapped)
        self.labelled += np.count_nonzero(labelled)
        self.mapped += np.count_nonzero(mapped)
        self.labelled_on_map += both
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


def classes_of(made: str, options: CompareOptions) -> MapClasses:
    """What the values of a map stand for, as the options say, else the map itself.

    Raises:
        UsageError: both say it, or neither.
    """
    if is_vector(made):
        raise UsageError(
            f"{made} holds polygons; measure the class raster, as written by -o MAP.tif"
        )
    own, nodata = class_names(made)
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
    values = {plain_name(name): value for value, name in reversed([*enumerate(names)])}
    if plain_name(names[0]) in BACKGROUND_NAMES:
        values = dict.fromkeys(BACKGROUND_NAMES, 0) | values
    elif plain_name(names[0]) == UNCLASSIFIED:
        values[UNCLASSIFIED] = IGNORED  # as a label it says nothing
    with environment(gdal_settings(made)), opened(made) as src:
        record = from_tags(src.tags()) or {}
    for first, *synonyms in record.get("classes", []):
        if plain_name(first) in values:
            values |= {plain_name(word): values[plain_name(first)] for word in synonyms}
    return MapClasses(own, names, values, class_of, known)


def said_values(
    options: CompareOptions, classes: MapClasses, made: str
) -> tuple[dict[int | str, int], int | None]:
    """What the options say that labels are in the map, and that all others are.

    Raises:
        UsageError: the map has no such class.
    """
    values = {old: _said(new, classes.own, made) for old, new in options.label_values}
    rest = values.pop(None, None)
    return {old: new for old, new in values.items() if old is not None}, rest


def _said(new: int | str, own: Mapping[int, str], made: str) -> int:
    """A value of the map's, by its number or name.

    Raises:
        UsageError: the map has no such class.
    """
    by_name = {plain_name(name): value for value, name in own.items()}
    value = by_name.get(plain_name(new), -1) if isinstance(new, str) else new
    if value not in own:
        shown = ", ".join(f"{number} {name}" for number, name in sorted(own.items()))
        raise UsageError(f"--label-values: {made} has no class {new}; it has {shown}")
    return value


def warn_of_names(labelled: Sequence[str], classes: MapClasses) -> None:
    """Say which classes one of the two files does not have."""
    of_map, of_label = ({plain_name(name) for name in each} for each in (classes.names, labelled))
    lost = [name for name in labelled if plain_name(name) not in of_map]
    if lost:
        fate = "are left out" if classes.rest == IGNORED else "count as its background"
        logger.warning(
            "the map has no class %s: such pixels %s",
            ", ".join(name + _like(name, classes.names) for name in lost),
            fate,
        )
    no_class = BACKGROUND_NAMES | {UNCLASSIFIED}
    idle = [name for name in classes.names if plain_name(name) not in of_label | no_class]
    if idle:
        logger.warning("the label has no class %s: they can only be wrong", ", ".join(idle))


def _like(name: str, names: Sequence[str]) -> str:
    """Which of the names may be meant."""
    known = {plain_name(own): own for own in names if plain_name(own) not in BACKGROUND_NAMES}
    close = get_close_matches(plain_name(name), known, 1, _ALIKE)
    return f" (is it {known[close[0]]}?)" if close else ""


def warn_of_values(classes: MapClasses) -> None:
    """Say that labels are numbers, and what they are taken for."""
    logger.warning(
        "labels do not name their classes: their values are taken as the map's (%s); "
        "--label-values says otherwise",
        ", ".join(f"{value} {name}" for value, name in enumerate(classes.names)),
    )


def check_map(predicted: NDArray[np.uint8], classes: MapClasses, made: str) -> None:
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


def read_map(src: Any, window: Window) -> NDArray[np.uint8]:
    """Values of a map, ignored where it has none."""
    known = src.dataset_mask(window=window) > 0
    return np.where(known, src.read(1, window=window), np.uint8(IGNORED))

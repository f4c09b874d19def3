"""What the values of a map stand for, where it is measured against labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from segearth_cli.errors import UsageError
from segearth_cli.geo.class_raster import class_names
from segearth_cli.geo.label_meaning import LabelMeaning
from segearth_cli.geo.labels import is_vector
from segearth_cli.geo.recorded import from_tags
from segearth_cli.geo.source import open_raster
from segearth_cli.names import plain_label, plain_name
from segearth_cli.options import BACKGROUND_NAMES, UNCLASSIFIED, CompareOptions
from segearth_cli.scores import IGNORED


@dataclass(frozen=True)
class MapClasses:
    """What the values of a map stand for.

    Attributes:
        names: of the values 0, 1, ...
        of_labels: what labels stand for beside the map.
        class_of: the map's own values, with nodata ignored.
        known: which of the map's 256 values have a meaning, if only to be ignored.
    """

    names: tuple[str, ...]
    of_labels: LabelMeaning
    class_of: NDArray[np.uint8]
    known: NDArray[np.bool_]

    @property
    def unscored(self) -> frozenset[int]:
        """Values that are no class: 0 of a map without a background, whose pixels have none."""
        return frozenset({0} if plain_name(self.names[0]) == UNCLASSIFIED else ())


def classes_of(made: str, options: CompareOptions) -> MapClasses:
    """What the values of a map stand for, as the options say, else the map itself.

    Raises:
        UsageError: both say it, or neither, or the options name a class that the map has not.
    """
    if is_vector(made):
        raise UsageError(
            f"{made} holds polygons; measure the class raster, as written by -o MAP.tif"
        )
    named, nodata = class_names(made)
    own = _named(made, named, options)
    class_of = np.full(256, IGNORED, np.uint8)
    class_of[[*own]] = [*own]
    known = class_of != IGNORED
    known[IGNORED] = True
    if nodata is not None and 0 <= nodata < 256:
        class_of[int(nodata)] = IGNORED
        known[int(nodata)] = True
    names = tuple(own.get(value, str(value)) for value in range(max(own) + 1))
    return MapClasses(names, _label_meaning(made, own).explained(options), class_of, known)


def _named(made: str, own: Mapping[int, str], options: CompareOptions) -> Mapping[int, str]:
    """Names of a map's values, by itself or by the options."""
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
    return own


def _label_meaning(made: str, own: Mapping[int, str]) -> LabelMeaning:
    """What labels beside a map stand for, by the names of its values and their synonyms."""
    values: dict[str, int | None] = {
        plain_label(name): value for value, name in sorted(own.items(), reverse=True)
    }
    first = plain_name(own.get(0, ""))
    if first in BACKGROUND_NAMES:
        values = {**dict.fromkeys(BACKGROUND_NAMES, 0), **values}
    elif first == UNCLASSIFIED:
        values[UNCLASSIFIED] = None  # as a label it says nothing
    with open_raster(made) as src:
        record = from_tags(src.tags()) or {}
    for name, *synonyms in record.get("classes", []):
        if plain_label(name) in values:
            values |= {plain_label(word): values[plain_label(name)] for word in synonyms}
    return LabelMeaning(own, values, of_map=True)


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

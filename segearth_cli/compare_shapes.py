"""A map beside points or polygons, row by row."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property

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
from segearth_cli.geo.class_raster import BYTES, check_kind
from segearth_cli.geo.failures import GDAL_ERRORS, reason
from segearth_cli.geo.labels import (
    DISPUTED,
    UNKNOWN,
    plain_label,
    vector_labels,
    warn_of_disputed,
)
from segearth_cli.geo.source import environment, file_grid, gdal_settings, opened
from segearth_cli.names import listed
from segearth_cli.options import CompareOptions
from segearth_cli.scores import IGNORED

logger = logging.getLogger(__name__)


@dataclass
class ShapeNames:
    """The map's values for what points and polygons are called; remembers what was asked for.

    Attributes:
        classes: the map's.
        said: the values that the options give, by what features are called.
        found: what they are called, by that as names are compared.
    """

    classes: MapClasses
    said: Mapping[str, int]
    found: dict[str, str] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """The map's, of the values 0, 1, ..."""
        return self.classes.names

    def value_of(self, name: str) -> int:
        """The map's value; what the map does not know is its background, or left out."""
        plain = plain_label(name)
        self.found.setdefault(plain, " ".join(name.split()))
        value = self._known(plain)
        return self.classes.rest if value is None else value

    def called(self) -> list[str]:
        """What they are called, as the map calls it if it does, without those left out."""
        values = {name: self._known(name) for name in self.found}
        return [
            self.found[name] if value is None else self.classes.names[value]
            for name, value in values.items()
            if value != IGNORED
        ]

    def _known(self, plain: str) -> int | None:
        """The value that the options give, or the map by number or name."""
        if plain in self.said:
            return self.said[plain]
        if plain.isdecimal() and int(plain) in self.classes.own:
            return IGNORED if int(plain) in self.classes.unscored else int(plain)
        return self.by_name.get(plain)

    @cached_property
    def by_name(self) -> dict[str, int]:
        """The map's values by what it calls them."""
        return {plain_label(name): value for name, value in self.classes.values.items()}

    @property
    def has_numbers(self) -> bool:
        """Whether numbers that the options do not explain stand for the map's values."""
        unexplained = (name for name in self.found if name not in self.said)
        return any(name.isdecimal() and int(name) in self.classes.own for name in unexplained)


def beside_shapes(
    made: str, label: str, classes: MapClasses, options: CompareOptions, coverage: Coverage
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """Classes by points or polygons and by the map, some rows of the map at a time.

    Raises:
        SceneError: they do not lie on one another, or cannot be read.
        UsageError: a value of the map is none of a class.
    """
    said, said_rest = said_values(options, classes, made)
    rest = IGNORED if said_rest is None else said_rest
    values = {plain_label(str(old)): new for old, new in said.items()}
    values |= {plain_label(str(value)): IGNORED for value in options.ignore}
    names = ShapeNames(classes, values)
    with ExitStack() as stack:
        stack.enter_context(environment(gdal_settings(made)))
        source = stack.enter_context(opened(made))
        check_kind(source, made, BYTES)
        grid = file_grid(source, made)
        shapes = vector_labels(label, grid, names, options.column)
        check_shapes(label, names, rest)
        coverage.labelled += shapes.pixels_beyond(silent=IGNORED)
        labelled = disputed = 0
        for first in range(0, grid.height, ROWS):
            count = min(ROWS, grid.height - first)
            labels = shapes.read(first, count)
            labelled += int(np.count_nonzero(labels != UNKNOWN))
            disputed += int(np.count_nonzero(labels == DISPUTED))
            cases = [labels == UNKNOWN, labels == DISPUTED]
            truth = np.select(cases, [rest, IGNORED], labels).astype(np.uint8)
            try:
                window = Window(0, first, grid.width, count)
                predicted = read_map(source, window)
            except GDAL_ERRORS as error:
                raise SceneError(f"cannot read {made}: {reason(error)}") from error
            check_map(predicted[truth != IGNORED], classes, made)
            found = classes.class_of[predicted]
            says = ~np.isin(labels, (UNKNOWN, DISPUTED, IGNORED))
            coverage.labelled += np.count_nonzero(says)
            coverage.labelled_on_map += np.count_nonzero(says & (found != IGNORED))
            yield truth, found
    if not labelled:
        logger.warning("%s labels no pixel of %s", label, made)
    if disputed:
        warn_of_disputed(disputed, label)


def check_shapes(label: str, names: ShapeNames, rest: int) -> None:
    """Say which classes, and which names that the options give, one of both does not have.

    Args:
        label: a vector file.
        names: what its features are called.
        rest: the class of what lies in none of them.

    Raises:
        UsageError: no feature has a class of the map.
    """
    classes, called = names.classes, names.called()
    if called and not {*called} & {*classes.names}:
        raise UsageError(
            f"{label} is of {listed(sorted(called))}, and none of them is a class of the map "
            f"({', '.join(classes.names)}); say which column with --column, or --label-values"
        )
    if names.has_numbers:
        warn_of_values(classes)
    called += [] if rest == IGNORED else [classes.names[rest]]
    warn_of_names(called, classes)
    if called and classes.rest != IGNORED and classes.names[0] not in called:
        logger.warning(
            "%s shows no %s, which can only be wrong; if all that it leaves out is, say "
            "--label-values '*=0'",
            label,
            classes.names[0],
        )

"""What is known of a scene's pixels: labels of a class raster, points or polygons, on its grid.

Labels are read some rows at a time, so that memory does not grow with the scene.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import geopandas
import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.features import rasterize
from rasterio.windows import Window

from segearth_cli.errors import SceneError, UsageError
from segearth_cli.geo.class_raster import check_kind, class_names, on_grid, translated
from segearth_cli.geo.failures import GDAL_ERRORS, reason
from segearth_cli.geo.grid import Grid
from segearth_cli.geo.shapes import (
    PLACING_ERRORS,
    are_placed,
    in_crs_of,
    is_table,
    layer_names,
    read_shapes,
)
from segearth_cli.geo.source import environment, gdal_settings, opened
from segearth_cli.names import file_and_layer, listed, plain_name
from segearth_cli.scores import IGNORED

UNKNOWN = -1  # a pixel without a label
DISPUTED = -2  # a pixel with labels of several classes
SILENT = -3  # a label that says nothing
COLUMNS = ("class_name", "class", "label", "name")  # that may hold the classes, the likeliest first
ROWS = 256  # read at once

Reader = Callable[[int, int], NDArray[np.int16]]  # first row and number of rows -> rows x W

logger = logging.getLogger(__name__)


class Names(Protocol):
    """What labels may be called: by value, and the value by each name."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of the values 0, 1, ..."""

    @property
    def said(self) -> Collection[str]:
        """Names of labels that the user gave, as they are compared."""

    def value_of(self, name: str) -> int | None:
        """The value for what labels call so; ``None`` where that is nothing known."""


@dataclass(frozen=True)
class ClassNames:
    """The classes that labels may name.

    Attributes:
        names: of the values 0, 1, ...
        values: of every name and synonym (see `plain_label`); ``SILENT`` of those to be ignored.
        codes: values for those of a raster, where they are not the same; ``SILENT`` likewise.
        rest: for all others, and for pixels that lie under no point or polygon.
        said: names of labels that the user gave, which some label should have.
    """

    names: tuple[str, ...]
    values: Mapping[str, int]
    codes: Mapping[int, int] = field(default_factory=dict)
    rest: int | None = None
    said: Collection[str] = ()

    @property
    def explains(self) -> bool:
        """Whether it says itself what a raster's values are."""
        return self.rest is not None or any(v != SILENT for v in self.codes.values())

    def value_of(self, name: str) -> int | None:
        """The value of a class by any of its names."""
        return self.values.get(plain_label(name), self.rest)


def plain_label(name: str) -> str:
    """What labels are called as names are compared; numbers without ``.0``."""
    plain = plain_name(name)
    number = plain.removesuffix(".0")  # of a column of whole numbers that has gaps
    return number if number.removeprefix("-").isdecimal() else plain


def _warn_of_unused(said: Collection[str], called: Iterable[str], path: str) -> None:
    unused = sorted({*said} - {*map(plain_label, called)})
    if unused:
        logger.warning("%s has nothing called %s", path, ", ".join(unused))


def _no_classes(unknown: Sequence[str], names: Names, path: str) -> UsageError:
    called = listed([repr(name) for name in unknown])
    return UsageError(
        f"{path} has labels of {called}, which are none of the classes {', '.join(names.names)}; "
        "add them to --classes or to the words of --background, or say --label-values or --ignore"
    )


@dataclass(frozen=True)
class Places:
    """Pixels whose class is known, from the top, row by row.

    Attributes:
        rows, columns: in the scene.
        values: of their classes.
        weights: labelled pixels that each of them stands for.
        labelled: pixels of each value that have a label.
    """

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    values: NDArray[np.int16]
    weights: NDArray[np.float64]
    labelled: dict[int, int]


def spread_places(read: Reader, grid: Grid, most: int, origin: str) -> Places:
    """At most ``most`` labelled pixels of each class, spread evenly from top to bottom.

    One comes from each of as many equal runs of the class's pixels, at a place in it that is drawn
    the same way each time: every n-th pixel would follow stripes in the scene.

    Raises:
        SceneError: no pixel has a label.
    """
    counts: dict[int, int] = {}
    for _, labels in _blocks(read, grid):
        values, pixels = np.unique(labels, return_counts=True)
        for value, number in zip(values.tolist(), pixels.tolist(), strict=True):
            counts[value] = counts.get(value, 0) + number
    disputed = counts.pop(DISPUTED, 0)
    counts.pop(UNKNOWN, None)
    if disputed:
        warn_of_disputed(disputed, origin)
    if not counts:
        raise SceneError(f"{origin} labels no pixel of the scene; do the two lie on one another?")
    wanted = {value: _one_of_each_run(number, most, value) for value, number in counts.items()}
    seen = dict.fromkeys(counts, 0)
    found: list[tuple[NDArray[Any], NDArray[Any]]] = []  # positions in the scene, values
    for first, labels in _blocks(read, grid):
        flat = labels.ravel()
        for value, ranks in wanted.items():
            own = np.flatnonzero(flat == value)
            start = seen[value]
            seen[value] += len(own)
            here = ranks[np.searchsorted(ranks, start) : np.searchsorted(ranks, seen[value])]
            places = first * grid.width + own[here - start]
            found.append((places, np.full(len(places), value, np.int16)))
    positions = np.concatenate([places for places, _ in found])
    of_values = np.concatenate([values for _, values in found])
    order = np.argsort(positions, kind="stable")
    weights = {value: number / len(wanted[value]) for value, number in counts.items()}
    rows, columns = np.divmod(positions[order], grid.width)
    values = of_values[order]
    return Places(
        rows=rows,
        columns=columns,
        values=values,
        weights=np.array([weights[value] for value in values.tolist()]),
        labelled=dict(sorted(counts.items())),
    )


def warn_of_disputed(pixels: int, origin: str) -> None:
    """Say how many pixels have labels of several classes."""
    has = "pixel has" if pixels == 1 else "pixels have"
    logger.warning("%s: %d %s labels of several classes; left out", origin, pixels, has)


def _one_of_each_run(count: int, most: int, seed: int) -> NDArray[np.int64]:
    """Numbers from 0 to ``count`` - 1, rising: one of each of at most ``most`` equal runs."""
    runs = min(count, most)
    ends = np.arange(runs + 1, dtype=np.int64) * count // runs
    inside = np.random.default_rng(seed).random(runs) * np.diff(ends)
    return ends[:-1] + inside.astype(np.int64)


def _blocks(read: Reader, grid: Grid) -> Iterator[tuple[int, NDArray[np.int16]]]:
    for first in range(0, grid.height, ROWS):
        yield first, read(first, min(ROWS, grid.height - first))


@contextmanager
def open_labels(
    path: str, grid: Grid, names: ClassNames, column: str | None = None
) -> Iterator[Reader]:
    """Labels on a scene's grid, as a function of the first row and the number of rows.

    Args:
        path: a class raster, or points or polygons in any vector format.
        grid: the scene's; a raster on another one is aligned to the nearest pixel.
        names: the classes.
        column: see `vector_labels`.

    Raises:
        SceneError: the labels cannot be read or placed on the scene.
        UsageError: they name a class that is not known, or no column holds classes.
    """
    if is_vector(path):
        shapes = vector_labels(path, grid, names, column)

        def with_rest(first: int, rows: int) -> NDArray[np.int16]:
            labels = shapes.read(first, rows)
            if names.rest is not None:
                labels[labels == UNKNOWN] = names.rest
            labels[labels == SILENT] = UNKNOWN
            return labels

        yield with_rest
        return
    if column is not None:
        raise UsageError(f"--column {column} is of a vector file, and {path} is none")
    with ExitStack() as stack:
        stack.enter_context(environment(gdal_settings(path)))
        yield _raster_reader(path, grid, names, stack)


def is_vector(path: str) -> bool:
    """Whether a file holds a layer of geometries: a GeoPackage may hold either kind."""
    file, layer = file_and_layer(path)
    if layer is not None or file.lower().endswith(".parquet") or is_table(file):
        return True
    return bool(layer_names(file))


def _raster_reader(path: str, grid: Grid, names: ClassNames, stack: ExitStack) -> Reader:
    """Rows of a class raster."""
    named, nodata = class_names(path)
    src = stack.enter_context(opened(path))
    check_kind(src, path)
    aligned = on_grid(src, path, grid, "the scene", stack)
    of_names = {code: names.value_of(name) for code, name in named.items()}
    usual: dict[int, int | None] = {}
    if not named and not names.explains:  # values are those of the classes
        usual |= {value: value for value in range(len(names.names))}
    usual |= {**of_names, **names.codes}
    if nodata is None and names.rest is None:
        usual.setdefault(IGNORED, SILENT)
    _warn_of_unused({name for name in names.said if not name.isdecimal()}, named.values(), path)

    def value_of(own: int) -> int:
        value = SILENT if own == nodata else usual.get(own, names.rest)
        if value is not None:
            return UNKNOWN if value == SILENT else value
        if own in named:
            lost = [named[code] for code, known in of_names.items() if known is None]
            raise _no_classes(lost, names, path)
        known = named or dict(enumerate(names.names))
        shown = ", ".join(f"{code} {name}" for code, name in known.items())
        raise UsageError(
            f"{path} holds {own}, which is none of its classes {shown}; say --label-values "
            f"{own}=CLASS or --ignore {own}"
        )

    def read(first: int, rows: int) -> NDArray[np.int16]:
        window = Window(0, first, grid.width, rows)
        try:
            values = aligned.read(1, window=window)
            known = aligned.dataset_mask(window=window) > 0
        except GDAL_ERRORS as error:
            raise SceneError(f"cannot read {path}: {reason(error)}") from error
        return translated(values, known, value_of, UNKNOWN, path)

    return read


def _warn_of_features(number: int, lack: str, path: str) -> None:
    has = "feature has" if number == 1 else "features have"
    logger.warning("%s: %d %s %s; left out", path, number, has, lack)


@dataclass(frozen=True)
class ShapeLabels:
    """Points and polygons on a scene's grid.

    Attributes:
        shapes: in columns and rows of the scene.
        values: of each.
        grid: the scene's.
    """

    shapes: NDArray[Any]
    values: NDArray[np.int16]
    grid: Grid

    @cached_property
    def bounds(self) -> NDArray[np.float64]:
        """First column and row, last column and row of each shape."""
        return np.asarray(shapely.bounds(self.shapes))

    def read(self, first: int, rows: int) -> NDArray[np.int16]:
        """Values of pixels whose centre lies in a polygon, or that a point lies in, rows x W."""
        labels = np.full((rows, self.grid.width), UNKNOWN, np.int16)
        tops, bottoms = self.bounds[:, [1, 3]].T
        near = (tops < first + rows) & (bottoms >= first)
        for value in np.unique(self.values[near]).tolist():
            own = rasterize(
                self.shapes[near & (self.values == value)].tolist(),
                out_shape=labels.shape,
                transform=Affine.translation(0, first),
                dtype=np.uint8,
            ).astype(bool)
            labels[own] = np.where(labels[own] == UNKNOWN, np.int16(value), np.int16(DISPUTED))
        return labels

    def pixels_beyond(self, silent: int) -> float:
        """How many pixels outside the scene they would label, about; ``silent`` is no label."""
        width, height = self.grid.width, self.grid.height
        inside = (self.bounds >= 0) & (self.bounds <= [width, height, width, height])
        placed = np.isfinite(self.bounds).all(axis=1)
        beyond = self.shapes[placed & ~inside.all(axis=1) & (self.values != silent)]
        is_point = shapely.get_type_id(beyond) == shapely.GeometryType.POINT
        within = shapely.area(shapely.clip_by_rect(beyond, 0, 0, width, height))
        return float((np.where(is_point, 1, shapely.area(beyond)) - within).sum())


def vector_labels(path: str, grid: Grid, names: Names, column: str | None) -> ShapeLabels:
    """Points and polygons of a file on a scene's grid.

    Args:
        path: of any vector format.
        grid: the scene's.
        names: the classes.
        column: that holds the classes; ``None`` takes the first of ``COLUMNS``.

    Raises:
        SceneError: the labels cannot be read or placed on the scene.
        UsageError: they name a class that is not known, or no column holds classes.
    """
    frame = read_shapes(path, path)
    column = _class_column(frame, path, column)
    frame = frame[~frame.geometry.isna() & ~frame.geometry.is_empty]
    unnamed = frame[column].isna() | (frame[column].astype(str).str.strip() == "")
    if unnamed.any():
        _warn_of_features(int(unnamed.sum()), f"no {column}", path)
        frame = frame[~unnamed]
    texts = [str(text) for text in frame[column].tolist()]
    by_text = {text: names.value_of(text) for text in dict.fromkeys(texts)}
    unknown = [text for text, value in by_text.items() if value is None]
    if unknown:
        raise _no_classes(unknown, names, path)
    _warn_of_unused(names.said, by_text, path)
    values = np.array([by_text[text] for text in texts], np.int16)
    shapes, feature = _points_and_polygons(_in_pixels(frame, path, grid))
    lost = np.setdiff1d(np.arange(len(texts)), feature)
    if len(lost):
        raise SceneError(
            f"{path} holds a feature ({texts[lost[0]]}) that is neither a point nor a polygon; "
            "only those label pixels"
        )
    shapes, part = _points_and_polygons(shapely.make_valid(shapes))
    flat = len(values) - len(np.unique(feature[part]))
    if flat:
        _warn_of_features(flat, "no area", path)
    values = values[feature[part]]
    return ShapeLabels(shapes, values, grid)


def _points_and_polygons(shapes: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Those among shapes and in their collections, and of which each is a part."""
    parts, of_shape = shapely.get_parts(shapes, return_index=True)
    parts, of_part = shapely.get_parts(parts, return_index=True)  # of collections
    kinds = shapely.get_type_id(parts)
    is_usable = np.isin(kinds, (shapely.GeometryType.POINT, shapely.GeometryType.POLYGON))
    return parts[is_usable], of_shape[of_part][is_usable]


def _class_column(frame: geopandas.GeoDataFrame, path: str, wanted: str | None) -> str:
    columns = [str(name) for name in frame.columns if name != frame.geometry.name]
    shown = ", ".join(columns) or "none"
    by_name = {name.casefold(): name for name in reversed(columns)}
    if wanted is not None:
        found = wanted if wanted in columns else by_name.get(wanted.casefold())
        if found is None:
            raise UsageError(f"--column {wanted}: {path} has no such column; it has {shown}")
        return found
    found = next((by_name[name] for name in COLUMNS if name in by_name), None)
    if found is None:
        raise UsageError(f"{path} does not say which column holds the classes: --column ({shown})")
    return found


def _in_pixels(frame: geopandas.GeoDataFrame, path: str, grid: Grid) -> NDArray[Any]:
    """Geometries in columns and rows of the scene."""
    placed = are_placed(frame, grid, path)
    up = -1 if frame.total_bounds[3] <= 0 else 1  # GIS show rows below zero, as maps have them

    def to_pixels(places: NDArray[np.float64]) -> NDArray[np.float64]:
        xs, ys = places.T
        return np.column_stack([xs, up * ys] if grid.is_in_pixels else grid.pixels(xs, ys))

    try:
        own = in_crs_of(frame.geometry, grid) if placed else frame.geometry
        shapes = shapely.transform(shapely.force_2d(own.to_numpy()), to_pixels)
    except PLACING_ERRORS as error:
        raise SceneError(f"{path} cannot be placed on the scene: {reason(error)}") from error
    return np.asarray(shapes)

"""What is known of a scene's pixels: labels of a class raster, points or polygons, on its grid.

Labels are read some rows at a time, so that memory does not grow with the scene.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import geopandas
import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.features import rasterize
from rasterio.windows import Window

from segearth_cli.errors import SceneError, UsageError
from segearth_cli.geo.class_raster import check_kind, class_names, on_grid, translated
from segearth_cli.geo.failures import GDAL_ERRORS, damage, reason
from segearth_cli.geo.grid import Grid
from segearth_cli.geo.label_meaning import LabelMeaning
from segearth_cli.geo.shapes import (
    PLACING_ERRORS,
    are_placed,
    in_crs_of,
    is_table,
    layer_names,
    read_shapes,
)
from segearth_cli.geo.source import file_grid, open_raster
from segearth_cli.names import file_and_layer, plain_label

UNKNOWN = -1  # a pixel without a label
DISPUTED = -2  # a pixel with labels of several classes
SILENT = -3  # a label that says nothing
COLUMNS = ("class_name", "class", "label", "name")  # that may hold the classes, the likeliest first
ROWS = 512  # read at once

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabelRows:
    """Labels of some rows of a scene.

    Attributes:
        classes: rows x W, values of their classes; negative where none is known.
        is_labelled: rows x W, where there is a label, if only one that says nothing.
        disputed: pixels with labels of several classes, of which none is known then.
    """

    classes: NDArray[np.int16]
    is_labelled: NDArray[np.bool_]
    disputed: int = 0


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


def spread_places(labels: Labels, most: int) -> Places:
    """At most ``most`` labelled pixels of each class, spread evenly from top to bottom.

    One comes from each of as many equal runs of the class's pixels, at a place in it that is drawn
    the same way each time: every n-th pixel would follow stripes in the scene.

    Raises:
        SceneError: no pixel has a label.
    """
    counts: Counter[int] = Counter()
    disputed = 0
    for _, rows in blocks_of(labels):
        values, pixels = np.unique(rows.classes, return_counts=True)
        counts.update(dict(zip(values.tolist(), pixels.tolist(), strict=True)))
        disputed += rows.disputed
    counts.pop(UNKNOWN, None)
    warn_of_disputed(disputed, labels.path)
    if not counts:
        raise SceneError(
            f"{labels.path} labels no pixel of the scene; do the two lie on one another?"
        )
    wanted = {value: _one_of_each_run(number, most, value) for value, number in counts.items()}
    seen = dict.fromkeys(counts, 0)
    found: list[tuple[NDArray[Any], NDArray[Any]]] = []  # positions in the scene, values
    for first, rows in blocks_of(labels):
        flat = rows.classes.ravel()
        for value, ranks in wanted.items():
            own = np.flatnonzero(flat == value)
            start = seen[value]
            seen[value] += len(own)
            here = ranks[np.searchsorted(ranks, start) : np.searchsorted(ranks, seen[value])]
            places = first * labels.grid.width + own[here - start]
            found.append((places, np.full(len(places), value, np.int16)))
    positions = np.concatenate([places for places, _ in found])
    of_values = np.concatenate([values for _, values in found])
    order = np.argsort(positions, kind="stable")
    weights = {value: number / len(wanted[value]) for value, number in counts.items()}
    row, column = np.divmod(positions[order], labels.grid.width)
    values = of_values[order]
    return Places(
        rows=row,
        columns=column,
        values=values,
        weights=np.array([weights[value] for value in values.tolist()]),
        labelled=dict(sorted(counts.items())),
    )


def warn_of_disputed(pixels: int, origin: str) -> None:
    """Say how many pixels have labels of several classes, if any."""
    if not pixels:
        return
    has = "pixel has" if pixels == 1 else "pixels have"
    logger.warning("%s: %d %s labels of several classes; left out", origin, pixels, has)


def _one_of_each_run(count: int, most: int, seed: int) -> NDArray[np.int64]:
    """Numbers from 0 to ``count`` - 1, rising: one of each of at most ``most`` equal runs."""
    runs = min(count, most)
    ends = np.arange(runs + 1, dtype=np.int64) * count // runs
    inside = np.random.default_rng(seed).random(runs) * np.diff(ends)
    return ends[:-1] + inside.astype(np.int64)


def blocks_of(labels: Labels) -> Iterator[tuple[int, LabelRows]]:
    """All labels, some rows at a time, and the first row of each."""
    for first in range(0, labels.grid.height, ROWS):
        yield first, labels.read(first, min(ROWS, labels.grid.height - first))


@contextmanager
def open_labels(
    path: str, grid: Grid, meaning: LabelMeaning, column: str | None = None
) -> Iterator[Labels]:
    """Labels on a scene's grid.

    Args:
        path: a class raster, or points or polygons in any vector format.
        grid: the scene's; a raster on another one is aligned to the nearest pixel.
        meaning: what labels stand for.
        column: see `shape_labels`.

    Raises:
        SceneError: the labels cannot be read or placed on the scene.
        UsageError: they name a class that is not known, or no column holds classes.
    """
    if is_vector(path):
        yield shape_labels(path, grid, meaning, column)
        return
    if column is not None:
        raise UsageError(f"--column {column} is of a vector file, and {path} is none")
    with raster_labels(path, meaning, grid) as labels:
        yield labels


def is_vector(path: str) -> bool:
    """Whether a file holds a layer of geometries: a GeoPackage may hold either kind."""
    file, layer = file_and_layer(path)
    if layer is not None or file.lower().endswith(".parquet") or is_table(file):
        return True
    return bool(layer_names(file))


@dataclass(frozen=True)
class RasterLabels:
    """A class raster on a scene's grid.

    Attributes:
        path: of the raster.
        named: what it calls its values.
        aligned: the open raster on the grid.
        classes_of: of its values; see `LabelMeaning.of_raster`.
        grid: the scene's.
    """

    path: str
    named: Mapping[int, str]
    aligned: Any
    classes_of: Callable[[list[int]], list[int | None]]
    grid: Grid

    def read(self, first: int, rows: int) -> LabelRows:
        """Labels from the first row on."""
        window = Window(0, first, self.grid.width, rows)
        try:
            values = self.aligned.read(1, window=window)
            known = self.aligned.dataset_mask(window=window) > 0
        except GDAL_ERRORS as error:
            raise SceneError(f"cannot read {self.path}: {damage(error)}") from error
        classes = translated(values, known, self.classes_of, UNKNOWN, self.path)
        return LabelRows(classes, classes != UNKNOWN)


@contextmanager
def raster_labels(
    path: str, meaning: LabelMeaning, grid: Grid | None = None
) -> Iterator[RasterLabels]:
    """Labels of a class raster, on its own grid or on a scene's.

    Raises:
        SceneError: it holds no classes, or cannot be placed on the scene.
        UsageError: see `LabelMeaning.of_raster`.
    """
    named, nodata = class_names(path)
    classes_of = meaning.of_raster(named, nodata, path)
    _warn_of_unused(meaning.unused(named.values()), path)
    with ExitStack() as stack:
        src = stack.enter_context(open_raster(path))
        check_kind(src, path)
        own = file_grid(src, path) if grid is None else grid
        aligned = src if grid is None else on_grid(src, path, grid, "the scene", stack)
        yield RasterLabels(path, named, aligned, classes_of, own)


def _warn_of_unused(said: Collection[str], path: str) -> None:
    if said:
        logger.warning("%s has nothing called %s", path, ", ".join(sorted(said)))


def _warn_of_features(number: int, lack: str, path: str) -> None:
    has = "feature has" if number == 1 else "features have"
    logger.warning("%s: %d %s %s; left out", path, number, has, lack)


@dataclass(frozen=True)
class ShapeLabels:
    """Points and polygons on a scene's grid.

    Attributes:
        path: of the file.
        texts: what they are called, each once.
        shapes: in columns and rows of the scene.
        values: of each; ``SILENT`` of those that say nothing.
        rest: the value where none lies, if there is one.
        grid: the scene's.
    """

    path: str
    texts: Sequence[str]
    shapes: NDArray[Any]
    values: NDArray[np.int16]
    rest: int | None
    grid: Grid

    @cached_property
    def bounds(self) -> NDArray[np.float64]:
        """First column and row, last column and row of each shape."""
        return np.asarray(shapely.bounds(self.shapes))

    def read(self, first: int, rows: int) -> LabelRows:
        """Labels from the first row on."""
        labels = self._burnt(first, rows)
        rest = UNKNOWN if self.rest is None else self.rest
        cases = [labels >= 0, labels == UNKNOWN]
        classes = np.select(cases, [labels, rest], UNKNOWN).astype(np.int16)
        return LabelRows(classes, labels != UNKNOWN, int(np.count_nonzero(labels == DISPUTED)))

    def _burnt(self, first: int, rows: int) -> NDArray[np.int16]:
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
            before = labels[own]
            cases = [before == UNKNOWN, before == SILENT]  # which comes first
            labels[own] = np.select(cases, [value, SILENT], DISPUTED)
        return labels

    def pixels_beyond(self) -> float:
        """How many pixels outside the scene they would label, about."""
        width, height = self.grid.width, self.grid.height
        inside = (self.bounds >= 0) & (self.bounds <= [width, height, width, height])
        placed = np.isfinite(self.bounds).all(axis=1)
        beyond = self.shapes[placed & ~inside.all(axis=1) & (self.values != SILENT)]
        is_point = shapely.get_type_id(beyond) == shapely.GeometryType.POINT
        within = shapely.area(shapely.clip_by_rect(beyond, 0, 0, width, height))
        return float((np.where(is_point, 1, shapely.area(beyond)) - within).sum())


Labels = RasterLabels | ShapeLabels


def shape_labels(path: str, grid: Grid, meaning: LabelMeaning, column: str | None) -> ShapeLabels:
    """Points and polygons of a file on a scene's grid.

    Args:
        path: of any vector format.
        grid: the scene's.
        meaning: what labels stand for.
        column: that holds the classes; ``None`` takes the first of ``COLUMNS``.

    Raises:
        SceneError: the labels cannot be read or placed on the scene.
        UsageError: they name a class that is not known, or no column holds classes.
    """
    frame, texts = _labelled_frame(path, column)
    by_text = meaning.of_texts(list(dict.fromkeys(texts)), path)
    _warn_of_unused(meaning.said.keys() - {*map(plain_label, by_text)}, path)
    of_features = [SILENT if (value := by_text[text]) is None else value for text in texts]
    shapes, feature = _points_and_polygons(_in_pixels(frame, path, grid))
    lost = np.setdiff1d(np.arange(len(texts)), feature)
    if len(lost):
        raise SceneError(
            f"{path} holds a feature ({texts[lost[0]]}) that is neither a point nor a polygon; "
            "only those label pixels"
        )
    shapes, part = _points_and_polygons(shapely.make_valid(shapes))
    flat = len(texts) - len(np.unique(feature[part]))
    if flat:
        _warn_of_features(flat, "no area", path)
    values = np.array(of_features, np.int16)[feature[part]]
    return ShapeLabels(path, list(by_text), shapes, values, meaning.rest, grid)


def _labelled_frame(path: str, column: str | None) -> tuple[geopandas.GeoDataFrame, list[str]]:
    """Features that have a place and a label, and what they are called."""
    frame = read_shapes(path, path)
    column = _class_column(frame, path, column)
    frame = frame[~frame.geometry.isna() & ~frame.geometry.is_empty]
    unnamed = frame[column].isna() | (frame[column].astype(str).str.strip() == "")
    if unnamed.any():
        _warn_of_features(int(unnamed.sum()), f"no {column}", path)
        frame = frame[~unnamed]
    return frame, [str(text) for text in frame[column].tolist()]


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

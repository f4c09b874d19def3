"""Rasters whose values are classes: what these are called, on whose grid, what they stand for."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pandas import factorize
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT

from segearth_cli.errors import SceneError
from segearth_cli.geo.failures import GDAL_ERRORS, reason
from segearth_cli.geo.grid import Grid, check_same_place
from segearth_cli.geo.source import file_grid, open_raster
from segearth_cli.names import counted

HIGHEST_VALUE = 65535
INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
BYTES = ("uint8",)
LABELS = (*INTEGERS, "float32", "float64")  # of floats whole numbers; NaN says nothing


def class_names(path: str) -> tuple[dict[int, str], float | None]:
    """Names of a raster's values by its own tags, and its nodata value.

    Raises:
        SceneError: the file cannot be opened, or its tag names no classes.
    """
    with open_raster(path) as src:
        text, nodata = src.tags().get("CLASSES", ""), src.nodata
    try:
        content = json.loads(text)
    except ValueError:
        names = [name.strip() for name in text.split(",")]
        return dict(enumerate(names)) if text else {}, nodata
    if not isinstance(content, dict):
        return {}, nodata
    if not all(value.isdecimal() and int(value) <= HIGHEST_VALUE for value in content):
        raise SceneError(
            f"{path} has a tag CLASSES that names no classes of its values; correct or remove it"
        )
    return {int(value): str(name) for value, name in content.items()}, nodata


def check_kind(src: Any, path: str, wanted: tuple[str, ...] = LABELS) -> None:
    """Refuse a raster that holds no classes.

    Raises:
        SceneError: it has several bands, or other numbers.
    """
    if src.count != 1 or src.dtypes[0] not in wanted:
        most = " from 0 to 255" if wanted == BYTES else ""
        raise SceneError(
            f"{path} has {counted(src.count, 'band')} of {src.dtypes[0]}; give one band of class "
            f"values, whole numbers{most}"
        )


def on_grid(src: Any, path: str, grid: Grid, owner: str, stack: ExitStack) -> Any:
    """A class raster on the grid of ``owner``, each pixel with the nearest one's value.

    Raises:
        SceneError: they do not lie on one another.
    """
    own = file_grid(src, path)
    if grid.is_same(own):
        return src
    if grid.crs is None or own.crs is None:
        check_same_place(own, path, grid, owner)
        return src
    if grid.gcps or own.gcps:
        raise SceneError(
            f"{path} lies on another grid than {owner}, and one of them is placed by ground "
            "control points; warp them first, for instance with gdalwarp"
        )
    try:
        return stack.enter_context(
            WarpedVRT(
                src,
                src_crs=own.wrapped_crs,
                crs=grid.wrapped_crs,
                transform=grid.transform,
                width=grid.width,
                height=grid.height,
                resampling=Resampling.nearest,
                add_alpha=src.nodata is None,
            )
        )
    except GDAL_ERRORS as error:
        raise SceneError(f"{path} cannot be placed on {owner}: {reason(error)}") from error


def translated(
    values: NDArray[Any],
    known: NDArray[np.bool_],
    meanings: Callable[[list[int]], list[int | None]],
    unknown: int,
    path: str,
) -> NDArray[np.int16]:
    """What each value stands for; ``unknown`` where that is nothing, or the value none or NaN.

    Args:
        values: of any shape.
        known: of the same, where there is a value.
        meanings: is asked once, for all values that occur.
        unknown: for the others.
        path: of the values, for messages.

    Raises:
        SceneError: a value is no whole number.
    """
    known = known & ~np.isnan(values)
    codes, found = factorize(values[known])
    strange = next((value for value in found.tolist() if value != value // 1), None)
    if strange is not None:
        raise SceneError(f"{path} holds {strange:.10g}, and classes are whole numbers")
    out = np.full(values.shape, unknown, np.int16)
    classes = meanings([int(value) for value in found.tolist()])
    out[known] = np.array([unknown if c is None else c for c in classes], np.int16)[codes]
    return out

"""Files of geometries: read, and brought into a scene's coordinate system."""

from __future__ import annotations

import logging
import os
from typing import Any

import geopandas
import numpy as np
import pandas
import pyogrio
import shapely
from numpy.typing import NDArray
from pyogrio.errors import DataSourceError
from pyproj.exceptions import CRSError, ProjError
from rasterio.crs import CRS

from segearth_cli.errors import SceneError
from segearth_cli.geo.failures import reason
from segearth_cli.geo.grid import TURN, Box, Grid, counts_degrees, is_on_earth
from segearth_cli.names import file_and_layer, is_path

PLACING_ERRORS = (CRSError, ProjError, shapely.errors.ShapelyError)

_COORDINATES = {  # columns of a table, and the coordinate system that their names tell
    ("lon", "lat"): "EPSG:4326",
    ("longitude", "latitude"): "EPSG:4326",
    ("lng", "lat"): "EPSG:4326",
    ("easting", "northing"): None,
    ("x", "y"): None,
}
_MOST_DEGREES = 400.0  # east or west: some count on across the antimeridian, and some in grads

_STEPS = np.array([[0.0, 0.0], [TURN, 0.0], [-TURN, 0.0]])  # to the turns of the Earth

logger = logging.getLogger(__name__)


def layer_names(path: str) -> list[str]:
    """Layers of geometries in a file: none where it is no vector file."""
    file, _ = file_and_layer(path)
    try:
        return [str(name) for name, kind in pyogrio.list_layers(file) if kind is not None]
    except DataSourceError:
        return []


def read_shapes(path: str, shown: str) -> geopandas.GeoDataFrame:
    """The features of a file's one layer, or of the one that is named; GeoParquet included.

    Args:
        path: of any vector format, see `file_and_layer`.
        shown: how messages name the file.

    Raises:
        SceneError: it cannot be read, or has several layers or none.
    """
    layers = layer_names(path)
    file, layer = file_and_layer(path)
    if is_path(file) and not os.path.exists(file):
        raise SceneError(f"cannot read {shown}: there is no such file")
    if is_table(file) and not layers:
        return _points_of_table(file, shown)
    if layer is None and len(layers) > 1:
        raise SceneError(
            f"{shown} holds several layers ({', '.join(layers)}); say which one is meant, as in "
            f"'{file}|layername={layers[0]}'"
        )
    if layer is not None and "|" in layer and layer not in layers:
        raise SceneError(f"{shown}: only |layername=LAYER is understood, and no filter after it")
    if layer is not None and layers and layer not in layers:
        raise SceneError(f"{shown}: the file has no such layer, but {', '.join(layers)}")
    try:
        if file.lower().endswith(".parquet"):
            return geopandas.read_parquet(file)
        frame = geopandas.read_file(file, layer=layer or (layers[0] if layers else None))
    except Exception as error:  # any of three libraries', and of the formats' own
        raise SceneError(f"cannot read {shown}: {reason(error)}") from error
    if not isinstance(frame, geopandas.GeoDataFrame):  # a table
        raise SceneError(f"{shown} holds no geometries")
    return frame


def is_table(path: str) -> bool:
    """Whether a file is a CSV: its points, if it has any, are in columns of coordinates."""
    return file_and_layer(path)[0].lower().endswith(".csv")


def _points_of_table(file: str, shown: str) -> geopandas.GeoDataFrame:
    """Points by two columns of coordinates, in degrees by what they are called.

    Raises:
        SceneError: there are no such columns.
    """
    try:
        table = pandas.read_csv(file)
    except (OSError, ValueError) as error:
        raise SceneError(f"cannot read {shown}: {reason(error)}") from error
    by_name = {str(name).strip().casefold(): name for name in table.columns}
    for (across, up), crs in _COORDINATES.items():
        if across in by_name and up in by_name:
            xs, ys = (pandas.to_numeric(table[by_name[c]], "coerce") for c in (across, up))
            placed = np.isfinite(xs) & np.isfinite(ys)
            if not placed.all():
                lost = int((~placed).sum())
                rows = "row has" if lost == 1 else "rows have"
                logger.warning("%s: %d %s no coordinates; left out", shown, lost, rows)
            points = geopandas.points_from_xy(xs[placed], ys[placed])
            return geopandas.GeoDataFrame(table[placed], geometry=points, crs=crs)
    pairs = ", ".join("/".join(pair) for pair in _COORDINATES)
    raise SceneError(
        f"{shown} has no coordinates: name two columns {pairs}, or one of geometries WKT; it has "
        f"{', '.join(map(str, table.columns))}"
    )


def are_placed(frame: geopandas.GeoDataFrame, grid: Grid, shown: str) -> bool:
    """Whether features and scene both have a place on the ground; warns where one has none.

    Raises:
        SceneError: one of the two is in a local or geocentric system, or the features have
            coordinates that theirs cannot have.
    """
    placed = [crs is not None and is_on_earth(crs) for crs in (frame.crs, grid.crs)]
    if frame.crs is None and grid.crs is not None:
        logger.warning("%s has no coordinate system: taking the scene's", shown)
    elif grid.crs is None and frame.crs is not None:
        logger.warning("the scene has no coordinate system: taking %s as it is", shown)
    elif any(placed) and not all(placed):
        raise SceneError(
            f"{shown} cannot be placed on the scene: one of the two is in a local or geocentric "
            "coordinate system"
        )
    if all(placed) and frame.crs.is_geographic:
        west, south, east, north = frame.total_bounds
        if max(-west, east) > _MOST_DEGREES or max(-south, north) > _MOST_DEGREES / 4:
            raise SceneError(
                f"{shown} has coordinates such as {west:.10g},{south:.10g}, which are no degrees: "
                "its coordinate system is missing or wrong (GeoJSON that names none is in WGS 84)"
            )
    return all(placed)


def in_crs_of(shapes: geopandas.GeoSeries, grid: Grid) -> geopandas.GeoSeries:
    """Geometries that have a place, in the coordinate system of a scene that has one.

    In degrees on each turn of the Earth on which they touch the scene, or as they are.
    """
    crs = CRS.from_user_input(grid.crs)
    placed = shapes.to_crs(crs.to_wkt())
    if not counts_degrees(crs):
        return placed
    return geopandas.GeoSeries(
        _on_turns(placed.to_numpy(), grid.bounds), index=placed.index, crs=placed.crs
    )


def _on_turns(shapes: NDArray[Any], bounds: Box) -> NDArray[Any]:
    found = np.asarray(shapes).copy()
    for place in np.flatnonzero(_touches(found, bounds)[1:].any(axis=0)):
        parts = shapely.get_parts(found[place])
        touches = _touches(parts, bounds)
        touches[0] |= ~touches.any(axis=0)  # what lies elsewhere stays there
        own = [
            shapely.transform(part, step.__add__)
            for part, here in zip(parts, touches.T, strict=True)
            for step in _STEPS[here]
        ]
        found[place] = own[0] if len(own) == 1 else shapely.geometrycollections(own)
    return found


def _touches(shapes: NDArray[Any], bounds: Box) -> NDArray[np.bool_]:
    """Whether shapes' own bounds touch a box, where they are and on the other turns: 3 x n."""
    steps = np.tile(_STEPS, 2).T[:, :, None]
    left, bottom, right, top = shapely.bounds(shapes).T[:, None] + steps
    touches: NDArray[np.bool_] = (left <= bounds[2]) & (right >= bounds[0])
    overlaps = (left < bounds[2]) & (right > bounds[0])
    # an edge alone counts once, and only for what overlaps nowhere
    touches &= overlaps | ~overlaps.any(axis=0) & (touches.cumsum(axis=0) == 1)
    touches &= (bottom <= bounds[3]) & (top >= bounds[1])
    return touches

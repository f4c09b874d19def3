"""The part of a scene that ``--bbox`` or ``--aoi`` asks for."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.warp import transform_bounds
from rasterio.windows import Window

from segearth_cli.errors import SceneError
from segearth_cli.geo.failures import GDAL_ERRORS, reason
from segearth_cli.geo.grid import Box, Grid, apart, parse_crs, turns, window_of_box
from segearth_cli.geo.source import is_raster
from segearth_cli.names import is_path
from segearth_cli.options import SceneOptions

_MARGIN = 0.05  # of the scene's size: what of polygons around it is kept
_EDGES = 50  # pieces of an edge as long as the scene: straight there, curved in pixels


def region_asked(grid: Grid, options: SceneOptions) -> tuple[Window, tuple[Any, ...] | None]:
    """Return the window of ``--bbox`` or ``--aoi``, and the latter's polygons in its pixels."""
    if options.aoi is not None:
        return _area_of_interest(grid, options.aoi)
    if options.bbox is None:
        return Window(0, 0, grid.width, grid.height), None
    crs = parse_crs(options.bbox_crs, "--bbox-crs") if options.bbox_crs else None
    return window_of_box(grid, options.bbox, crs), None


def _area_of_interest(grid: Grid, path: str) -> tuple[Window, tuple[Any, ...]]:
    import shapely

    outline = _outline(grid, path)
    left, bottom, right, top = (float(value) for value in outline.bounds)
    window = window_of_box(grid, (left, bottom, right, top), None)

    def to_pixels(places: NDArray[np.float64]) -> NDArray[np.float64]:
        cols, rows = grid.pixels(places[:, 0], places[:, 1])
        return np.stack([cols - window.col_off, rows - window.row_off], axis=1)

    pixels = shapely.transform(outline, to_pixels)
    return window, (json.loads(shapely.to_geojson(pixels)),)


def _outline(grid: Grid, path: str) -> Any:
    """Return the union of a file's polygons near the scene, in its CRS, as a shapely geometry.

    What lies far outside is cut off before it is projected: projections and GCP polynomials mean
    nothing there, and a continent's outline would be divided as finely as the scene needs.
    """
    import geopandas
    import shapely

    from segearth_cli.geo.shapes import PLACING_ERRORS, are_placed, in_crs_of, read_shapes

    shown = f"--aoi {path}"
    try:
        frame = read_shapes(path, shown)
    except SceneError as error:
        if is_path(path) and is_raster(path):
            raise SceneError(
                f"{shown} is a raster and holds no polygons; name a vector file, which "
                "gdal_polygonize makes of one"
            ) from error
        raise
    placed = are_placed(frame, grid, shown)
    try:
        outline = _polygons(shapely.force_2d(frame.geometry.dropna().to_numpy()))
        if outline.is_empty:
            raise SceneError(f"{shown} holds no polygons")
        if placed:
            parts = [_near(outline, bounds) for bounds in _bounds_in(grid, frame.crs)]
            outline = _polygons(np.array(parts))
            own = in_crs_of(geopandas.GeoSeries([outline], crs=frame.crs), grid)
            outline = _polygons(own.to_numpy())
        if grid.is_in_pixels and outline.bounds[3] <= 0:  # as GIS show it, and maps of it have it
            outline = shapely.transform(outline, lambda places: places * (1, -1))
        outline = _near(outline, grid.bounds)
    except PLACING_ERRORS as error:
        raise SceneError(f"{shown} cannot be placed on the scene: {reason(error)}") from error
    if not outline.intersects(shapely.box(*grid.bounds)):
        raise SceneError(apart(shown, grid.bounds))
    return outline


def _polygons(shapes: NDArray[Any]) -> Any:
    """Return the union of all polygons among geometries, in collections too."""
    import shapely

    parts = shapely.get_parts(shapely.get_parts(shapely.make_valid(shapes)))
    return shapely.union_all(parts[shapely.get_type_id(parts) == shapely.GeometryType.POLYGON])


def _bounds_in(grid: Grid, crs: Any) -> list[Box | None]:
    """Return the grid's bounds in another CRS, in degrees on all turns; None where it has none."""
    wanted = CRS.from_user_input(crs)
    try:
        box = transform_bounds(grid.crs, wanted, *grid.bounds, densify_pts=21)
    except GDAL_ERRORS:
        return [None]
    if not np.isfinite(box).all():
        return [None]
    return [*turns(box)] if wanted.is_geographic else [box]


def _near(outline: Any, bounds: Box | None) -> Any:
    """Return what of an outline lies in or near a box, in edges that are short for it."""
    import shapely

    if bounds is None:
        return outline
    left, bottom, right, top = bounds
    side = max(right - left, top - bottom)
    near = shapely.box(*bounds).buffer(_MARGIN * side, join_style="mitre")
    return shapely.segmentize(_polygons(shapely.intersection(outline, near)), side / _EDGES)

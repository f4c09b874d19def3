"""Small rasters of many kinds, and how the tests read them."""

import numpy as np
import rasterio
from rasterio.control import GroundControlPoint
from scenes import UTM

from segearth_cli.geo.grid import Grid
from segearth_cli.geo.legend import Legend
from segearth_cli.geo.raster import open_scene
from segearth_cli.geo.sensors import NEUTRAL_GREY
from segearth_cli.geo.writer import RowWriter
from segearth_cli.options import SegmentOptions

GREY = np.float32(NEUTRAL_GREY)
LEGEND = Legend(
    (0, 1, 2), ("background", "building & roof", "road"), ((9, 9, 9), (255, 0, 0), (0, 0, 255))
)


def options(**more) -> SegmentOptions:
    return SegmentOptions(classes=(("building",),), **more)


def pattern(bands=3, height=60, width=50, dtype="uint8") -> np.ndarray:
    values = np.random.default_rng(1).integers(1, 120, (bands, height, width))
    return values.astype(dtype)


def make(path, array, *, descriptions=(), colours=(), tags=None, mask=None, **profile):
    profile = {"driver": "GTiff"} | (UTM if "crs" not in profile else {}) | profile
    count, height, width = array.shape
    with rasterio.open(
        path, "w", count=count, height=height, width=width, dtype=array.dtype, **profile
    ) as dst:
        dst.write(array)
        if descriptions:
            dst.descriptions = descriptions
        if colours:
            dst.colorinterp = colours
        if tags:
            dst.update_tags(**tags)
        if mask is not None:
            dst.write_mask(mask)
    return str(path)


def read_all(source, **more):
    with open_scene(source, options(**more)) as scene:
        return scene.read(0, scene.grid.height)


def scene_of(tmp_path, array, **more):
    return make(tmp_path / "scene.tif", array, **more)


def gcp_scene(tmp_path, crs="EPSG:4326", array=None):
    """A scene placed by GCPs only, turned by 90 degrees: columns run south, rows run east."""
    step = 1e-4
    points = [
        GroundControlPoint(row, col, 10 + row * step, 50 - col * step)
        for row in (0, 30, 60)
        for col in (0, 25, 50)
    ]
    array = pattern() if array is None else array
    return make(tmp_path / "gcps.tif", array, gcps=points, crs=crs), array


def classes(height=700, width=600, dtype="uint8", nodata=255):
    rows, cols = np.indices((height, width))
    array = (((rows // 50) + (cols // 50)) % 3).astype(dtype)
    array[:10] = nodata
    return array


def write_rows(path, array, grid=None, step=77, **more):
    grid = grid or Grid(
        array.shape[-1], array.shape[-2], UTM["transform"], rasterio.CRS.from_epsg(32633)
    )
    with RowWriter(path, grid, array.dtype.name, **more) as writer:
        for row in range(0, grid.height, step):
            writer.write(array[..., row : row + step, :])
    return path

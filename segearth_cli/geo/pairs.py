"""Optical and radar images of one place, as two scenes on one grid."""

from contextlib import ExitStack

from rasterio.warp import transform_bounds

from segearth_cli.errors import SceneError
from segearth_cli.geo.bands import sensor_by_facts
from segearth_cli.geo.failures import GDAL_ERRORS
from segearth_cli.geo.grid import Grid, check_same_place, nearest_turn
from segearth_cli.geo.raster import Scene, open_scene
from segearth_cli.geo.source import band_facts, file_grid, open_raster
from segearth_cli.geo.values import Reading
from segearth_cli.options import SceneOptions


def open_pair(
    optical: str,
    sar: str,
    optical_options: SceneOptions,
    sar_options: SceneOptions,
    readings: tuple[Reading, ...] = (),
) -> tuple[Scene, Scene]:
    """Open both images, the radar one on the optical one's grid.

    ``readings`` are those of the same pair, opened before. Raises SceneError for images that are
    not of one place, or that cannot be read, UsageError for options that they cannot follow.
    """
    grid, is_shared, _ = shared_grid(optical, sar)
    one, other = readings or (None, None)
    with ExitStack() as stack:
        first = stack.enter_context(open_scene(optical, optical_options, reading=one))
        onto = None if is_shared else grid
        second = stack.enter_context(open_scene(sar, sar_options, onto, other, prefix="sar-"))
        stack.pop_all()
    return first, second


def read_head(source: str) -> tuple[Grid, bool]:
    """Return a file's grid, and whether it says that it is a radar image, or looks like one.

    One or two bands of floats do. Only the head is read. Raises SceneError for what is no raster.
    """
    with open_raster(source) as src:
        grid, facts = file_grid(src, source), band_facts(src)
    found = sensor_by_facts(facts)
    return grid, found == "sar" or (found is None and "float" in facts.dtypes[0])


def shared_grid(optical: str, sar: str) -> tuple[Grid, bool, bool]:
    """Return the optical image's grid, whether the radar image has it already, and whether the
    optical one looks like radar.

    Only the files' heads are read. Raises SceneError for images that are not of one place: that
    do not touch on the ground or, when nothing places them there, differ in size or transform.
    """
    (first, is_radar), (second, _) = read_head(optical), read_head(sar)
    if first.crs is None or second.crs is None:
        check_same_place(first, optical, second, sar)
        return first, True, is_radar
    if first.gcps:
        raise SceneError(f"{optical} is placed by control points only; rectify it with gdalwarp")
    if first.is_same(second):
        return first, True, is_radar
    if not _touch(first, second):
        raise SceneError(f"{optical} and {sar} do not touch on the ground")
    return first, False, is_radar


def _touch(first: Grid, second: Grid) -> bool:
    own = first.bounds
    try:
        box = transform_bounds(second.crs, first.crs, *second.bounds)
    except GDAL_ERRORS:
        return False
    left, bottom, right, top = nearest_turn(box, first.crs, own)
    return bool(left < own[2] and own[0] < right and bottom < own[3] and own[1] < top)

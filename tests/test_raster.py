import json
import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from rasterio import Affine
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp

from segearth_cli.errors import OutputError, SceneError, UsageError
from segearth_cli.geo.grid import Grid
from segearth_cli.geo.raster import open_scene
from segearth_cli.geo.sensors import NEUTRAL_GREY
from segearth_cli.geo.source import gdal_settings
from segearth_cli.geo.virtual import VirtualRaster
from segearth_cli.geo.writer import (
    Legend,
    RowWriter,
    _Silent,
    check_creation_options,
    grid_of,
    sieve,
    write_class_raster,
    write_probabilities,
)
from segearth_cli.options import SegmentOptions

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

GREY = np.float32(NEUTRAL_GREY)
UTM = {"crs": "EPSG:32633", "transform": Affine(2, 0, 500_000, 0, -2, 5_400_000)}


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


# --- reading ---------------------------------------------------------------------------------


def test_rows_equal_the_whole_and_values_are_the_files(tmp_path):
    array = pattern()
    path = scene_of(tmp_path, array)
    with open_scene(path, options()) as scene:
        assert (scene.sensor, scene.bands, scene.source) == ("optical", (1, 2, 3), path)
        assert scene.grid == Grid(50, 60, UTM["transform"], rasterio.CRS.from_epsg(32633))
        assert scene.grid.gsd_m == pytest.approx(2)
        assert scene.grid.pixel_area_m2 == pytest.approx(4)
        parts = [scene.read(row, 20) for row in (0, 20, 40)]
        image, valid = scene.read(0, 60)
        overview, _ = scene.overview(30)
    np.testing.assert_allclose(image, array / 255, rtol=1e-6)
    assert valid.all()
    assert (np.concatenate([part for part, _ in parts], axis=1) == image).all()
    assert overview.shape == (3, 30, 25)


def test_bands_by_option_description_and_palette(tmp_path):
    array = pattern(4)
    named = scene_of(tmp_path, array, descriptions=("B02", "B03", "B04", "B08"))
    np.testing.assert_allclose(read_all(named)[0], array[[2, 1, 0]] / 255, rtol=1e-6)
    image, _ = read_all(named, bands=("B08",))
    np.testing.assert_allclose(image, np.repeat(array[3:], 3, axis=0) / 255, rtol=1e-6)
    with pytest.raises(UsageError, match="has no band 'B11'"):
        open_scene(named, options(bands=("B11",)))


@pytest.mark.parametrize("nodata", [None, 7])
def test_palette_is_expanded(tmp_path, nodata):
    path = tmp_path / "palette.tif"
    index = np.array([[1, 2], [7, 2]], np.uint8)
    with rasterio.open(
        path, "w", driver="GTiff", count=1, height=2, width=2, dtype="uint8", nodata=nodata, **UTM
    ) as dst:
        dst.write(index, 1)
        dst.write_colormap(1, {1: (255, 0, 0), 2: (0, 51, 102), 7: (9, 9, 9)})
    image, valid = read_all(str(path))
    np.testing.assert_allclose(image[:, 0], [[1, 0], [0, 0.2], [0, 0.4]], atol=1e-6)
    assert valid.tolist() == [[True, True], [nodata is None, True]]
    assert read_all(str(path), nodata=2.0)[1].tolist() == [[True, False], [True, False]]


def test_nodata_needs_every_band_and_the_option_overrides_the_file(tmp_path):
    array = pattern()
    array[:, 0, 0] = 0
    array[0, 1, 1] = 0
    array[:, 2, 2] = 9
    path = scene_of(tmp_path, array, nodata=0)
    image, valid = read_all(path)
    assert np.argwhere(~valid).tolist() == [[0, 0]]
    assert (image[:, 0, 0] == GREY).all()
    assert image[0, 1, 1] == 0
    assert np.argwhere(~read_all(path, nodata=9.0)[1]).tolist() == [[2, 2]]
    assert read_all(path, nodata=-9999.0)[1].all()


def test_alpha_mask_and_nan_mark_invalid_pixels(tmp_path):
    rgba = pattern(4)
    rgba[3] = 200
    rgba[3, 5, 6] = 0
    colours = (ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha)
    _, valid = read_all(make(tmp_path / "alpha.tif", rgba, colours=colours))
    assert np.argwhere(~valid).tolist() == [[5, 6]]

    mask = np.full((60, 50), 255, np.uint8)
    mask[7, 8] = 0
    _, valid = read_all(make(tmp_path / "mask.tif", pattern(), mask=mask))
    assert np.argwhere(~valid).tolist() == [[7, 8]]

    floats = pattern(dtype="float32")
    floats[1, 9, 9] = np.nan
    image, valid = read_all(make(tmp_path / "nan.tif", floats))
    assert np.argwhere(~valid).tolist() == [[9, 9]]
    assert np.isfinite(image).all()


def test_scaling_is_one_for_the_scene_whatever_is_read(tmp_path):
    array = pattern(height=300, width=40, dtype="uint16")
    array[:, 200:] += 3000
    with open_scene(scene_of(tmp_path, array), options()) as scene:
        assert scene.scaling.high[0] > 3000
        top, _ = scene.read(0, 100)
    assert top.max() < 0.1  # a stretch per tile would make it 1


def test_all_nodata_is_read_with_a_warning(tmp_path, caplog):
    image, valid = read_all(scene_of(tmp_path, np.zeros((3, 5, 5), np.uint16), nodata=0))
    assert not valid.any()
    assert (image == GREY).all()
    assert "no valid pixel" in caplog.text


def test_scaling_does_not_depend_on_overviews_nor_reads_the_whole_scene(tmp_path):
    array = np.random.default_rng(0).gamma(1, 400, (1, 2000, 3000)).astype(np.uint16) + 1
    path = scene_of(tmp_path, array, tiled=True)
    with open_scene(path, options()) as scene:
        plain = scene.scaling
    assert plain.high[0] == pytest.approx(np.percentile(array, 98), rel=0.01)
    with rasterio.open(path, "r+") as dst:
        dst.build_overviews([2, 4, 8], rasterio.enums.Resampling.average)
    with open_scene(path, options()) as scene:
        assert scene.scaling == plain
        raw, _ = scene._region.sample()
    assert raw.size == 1024**2


def test_little_data_in_a_large_scene_is_found(tmp_path, caplog):
    array = np.zeros((1, 1500, 2500), np.uint16)
    array[:, 70:90, 70:90] = pattern(1, 20, 20)
    with open_scene(scene_of(tmp_path, array, nodata=0), options()) as scene:
        assert 100 < scene.scaling.high[0] < 120
    assert not caplog.records


def test_undeclared_zeros_of_an_optical_scene_are_kept_and_said_to_be(tmp_path, caplog):
    array = pattern()
    array[:, :, :4] = 0
    path = scene_of(tmp_path, array)
    assert read_all(path)[1].all()
    assert "say --nodata 0" in caplog.text
    caplog.clear()
    array[1, :, :4] = 1  # a colour, no collar
    read_all(make(tmp_path / "cyan.tif", array))
    read_all(path, nodata=0.0)
    read_all(path, nodata=-1.0)
    assert not caplog.records


@pytest.mark.parametrize("shape", [(1, 40), (40, 1), (1, 1)])
def test_one_row_one_column_one_pixel(tmp_path, shape):
    array = pattern(3, *shape)
    image, _ = read_all(scene_of(tmp_path, array))
    np.testing.assert_allclose(image, array / 255, rtol=1e-6)


def test_one_bit_raster_is_black_and_white(tmp_path):
    array = np.eye(8, dtype=np.uint8)[np.newaxis]
    image, _ = read_all(scene_of(tmp_path, array, nbits=1))
    assert (image[0] == np.eye(8)).all()


# --- radar -----------------------------------------------------------------------------------


def test_sar_in_decibels_is_recognised_with_and_without_names(tmp_path):
    decibels = np.random.default_rng(0).normal(-14, 4, (2, 40, 40)).astype(np.float32)
    for descriptions in (("VV", "VH"), ()):
        path = make(tmp_path / "sar.tif", decibels, descriptions=descriptions)
        with open_scene(path, options()) as scene:
            assert (scene.sensor, scene.bands) == ("sar", (1, 2))
            image, _ = scene.read(0, 40)
        assert (image[0] == image[1]).all()
        assert 0.4 < image.mean() < 0.6


def test_undeclared_zeros_of_a_radar_product_are_nodata_and_said_to_be(tmp_path, caplog):
    digital = pattern(1, dtype="uint16")
    digital[:, :, :4] = 0
    path = scene_of(tmp_path, digital, tags={"POLARISATION": "VV"})
    _, valid = read_all(path)
    assert (~valid).sum() == 4 * 60
    assert "--nodata -1" in caplog.text
    assert read_all(path, nodata=-1.0)[1].all()


def test_complex_scene_is_read_as_amplitude(tmp_path):
    values = np.full((1, 20, 20), 3 + 4j, np.complex64)
    values[0, :, 10:] = 30 + 40j
    path = scene_of(tmp_path, values)
    with open_scene(path, options(stretch="0,40")) as scene:
        assert scene.sensor == "sar"
        image, valid = scene.read(0, 20)
    np.testing.assert_allclose(image[0, 0, [0, -1]], np.log10([5, 50]) / 2, rtol=1e-5)
    assert valid.all()
    assert read_all(path, gsd=4.0)[0].shape == (3, 10, 10)


@pytest.mark.parametrize("nodata", [None, -5.0])
def test_nodata_of_a_complex_scene_counts_by_its_amplitude(tmp_path, nodata, caplog):
    values = np.full((1, 20, 20), 3 + 6j, np.complex64)
    values[0, :, :5] = nodata or 0
    path = scene_of(tmp_path, values, nodata=nodata)
    for gsd in (None, 2.5):
        assert read_all(path, gsd=gsd)[1].mean() == pytest.approx(0.75, abs=0.07)
    assert ("--nodata nan" in caplog.text) == (nodata is None)
    assert read_all(path, nodata=np.nan)[1].all()


def test_stretch_none_divides_radar_integers_and_refuses_floats(tmp_path):
    digital = pattern(1, dtype="uint16") * 500
    path = scene_of(tmp_path, digital, tags={"POLARISATION": "VV"})
    np.testing.assert_allclose(read_all(path, stretch="none")[0][:1], digital / 65535, rtol=1e-5)
    path = make(tmp_path / "db.tif", -pattern(1, dtype="float32"), descriptions=("VV",))
    with pytest.raises(UsageError, match="--stretch auto"):
        open_scene(path, options(stretch="none"))


def test_two_optical_bands_are_grey_from_the_first(tmp_path, caplog):
    array = pattern(2)
    path = scene_of(tmp_path, array, photometric="minisblack")
    np.testing.assert_allclose(read_all(path)[0][1], array[0] / 255, rtol=1e-6)
    assert "only band 1" in caplog.text
    with pytest.raises(UsageError, match="--sensor sar"):
        open_scene(path, options(bands=("1", "2")))


# --- the ground ------------------------------------------------------------------------------


def test_bbox_is_a_window_of_whole_pixels(tmp_path):
    array = pattern()
    path = scene_of(tmp_path, array)
    with open_scene(path, options(bbox=(500_010, 5_399_900, 500_021, 5_399_980))) as scene:
        assert scene.grid.transform == Affine(2, 0, 500_010, 0, -2, 5_399_980)
        image, _ = scene.read(0, scene.grid.height)
    np.testing.assert_allclose(image, array[:, 10:50, 5:11] / 255, rtol=1e-6)
    beyond = read_all(path, bbox=(499_000.0, 5_399_990.0, 500_004.0, 5_500_000.0))
    assert beyond[1].shape == (5, 2)
    with pytest.raises(SceneError, match="500000,5399880,500100,5400000"):
        open_scene(path, options(bbox=(0.0, 0.0, 1.0, 1.0)))
    with pytest.raises(SceneError, match=r"bounds in that coordinate system are 1[45][\d.]*,48"):
        open_scene(path, options(bbox=(0.0, 0.0, 1.0, 1.0), bbox_crs="EPSG:4326"))
    with pytest.raises(UsageError, match="--bbox-crs is 'nonsense'"):
        open_scene(path, options(bbox=(0.0, 0.0, 1.0, 1.0), bbox_crs="nonsense"))


def test_bbox_in_degrees_meets_the_same_ground(tmp_path):
    from rasterio.warp import transform_bounds

    box = (500_020.0, 5_399_920.0, 500_060.0, 5_399_960.0)
    degrees = transform_bounds("EPSG:32633", "EPSG:4326", *box)
    path = scene_of(tmp_path, pattern())
    with open_scene(path, options(bbox=degrees, bbox_crs="EPSG:4326")) as scene:
        left, bottom, right, top = scene.grid.bounds
    assert left == pytest.approx(box[0], abs=2)
    assert left <= box[0] + 0.01
    assert bottom <= box[1] + 0.01
    assert right >= box[2] - 0.01
    assert top >= box[3] - 0.01


def test_aoi_leaves_pixels_outside_invalid(tmp_path, caplog):
    import geopandas
    from shapely.geometry import Polygon

    path = scene_of(tmp_path, pattern())
    triangle = Polygon([(500_000, 5_400_000), (500_040, 5_400_000), (500_000, 5_399_960)])
    for crs, target in ((32633, 4326), (None, None)):
        frame = geopandas.GeoDataFrame(geometry=[triangle], crs=crs)
        frame = frame.to_crs(target) if target else frame
        frame.to_file(tmp_path / "aoi.gpkg")
        with open_scene(path, options(aoi=str(tmp_path / "aoi.gpkg"))) as scene:
            _, valid = scene.read(0, scene.grid.height)
            strips = [scene.read(row, 1)[1] for row in range(scene.grid.height)]
        assert valid.sum() == pytest.approx(200, abs=12)
        assert valid[0, 0]
        assert not valid[-1, -1]
        assert (np.concatenate(strips) == valid).all()
    assert "no coordinate system" in caplog.text
    with pytest.raises(SceneError, match="cannot read --aoi"):
        open_scene(path, options(aoi=str(tmp_path / "missing.gpkg")))


def test_aoi_takes_polygons_however_broken_and_nothing_else(tmp_path):
    import geopandas
    import shapely

    path = scene_of(tmp_path, pattern())
    aoi = tmp_path / "aoi.geojson"

    def write(*texts):
        frame = geopandas.GeoDataFrame(geometry=shapely.from_wkt(texts), crs=32633)
        frame.set_geometry(
            shapely.transform(frame.geometry, lambda xy: xy * 2 + [500_000, 5_399_880])
        ).to_file(aoi, driver="GeoJSON")
        return str(aoi)

    bow_tie = "POLYGON ((0 0, 20 20, 20 0, 0 20, 0 0))"
    line, point = "LINESTRING (0 0, 50 60)", "POINT (40 40)"
    square = "GEOMETRYCOLLECTION (POINT (45 45), MULTIPOLYGON (((30 0, 30 10, 40 10, 40 0, 30 0))))"
    _, valid = read_all(path, aoi=write(bow_tie, bow_tie, line, point, square))
    assert valid.shape == (20, 40)
    assert valid.sum() == pytest.approx(200 + 100, abs=25)
    with pytest.raises(SceneError, match="holds no polygons"):
        open_scene(path, options(aoi=write(line, point)))
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    with pytest.raises(SceneError, match="holds no polygons"):
        open_scene(path, options(aoi=str(tmp_path / "table.csv")))
    local = make(tmp_path / "local.tif", pattern(), crs=LOCAL, transform=UTM["transform"])
    with pytest.raises(SceneError, match="local or geocentric"):
        open_scene(local, options(aoi=write(bow_tie)))


def test_gsd_averages_blocks_and_refines(tmp_path):
    array = pattern()
    path = scene_of(tmp_path, array)
    with open_scene(path, options(gsd=4.0)) as scene:
        assert scene.grid.transform == Affine(4, 0, 500_000, 0, -4, 5_400_000)
        image, valid = scene.read(0, 30)
        strips = np.concatenate([scene.read(row, 3)[0] for row in range(0, 30, 3)], axis=1)
    blocks = array.reshape(3, 30, 2, 25, 2).mean(axis=(2, 4)) / 255
    np.testing.assert_allclose(image, blocks, atol=0.6 / 255)
    assert valid.all()
    assert (strips == image).all()
    finer, valid = read_all(path, gsd=1.0)
    assert finer.shape == (3, 120, 100)
    assert valid.all()


@pytest.mark.parametrize("kind", ["nodata", "alpha", "mask", "nan"])
def test_gsd_keeps_invalid_pixels_invalid_and_out_of_the_averages(tmp_path, kind):
    array = np.full((3, 60, 50), 100, np.float32 if kind == "nan" else np.uint8)
    hole = np.zeros((60, 50), bool)
    hole[20:31, 10:21] = True
    more = {}
    if kind == "nodata":
        array[:, hole] = 0
        more["nodata"] = 0
    elif kind == "nan":
        array[:, hole] = np.nan
    elif kind == "mask":
        array[:, hole] = 0
        more["mask"] = ~hole
    else:
        array[:, hole] = 0
        array = np.concatenate([array, np.where(hole, 0, 255).astype(np.uint8)[np.newaxis]])
        more["colours"] = (
            ColorInterp.red,
            ColorInterp.green,
            ColorInterp.blue,
            ColorInterp.alpha,
        )
    image, valid = read_all(scene_of(tmp_path, array, **more), gsd=4.0, stretch="0,255")
    assert valid[10:15, 5:10].sum() == 0
    assert valid.sum() == 30 * 25 - 25
    np.testing.assert_allclose(image[:, valid], 100 / 255, atol=1e-6)
    assert (image[:, ~valid] == GREY).all()


def test_gsd_keeps_zero_in_one_band_a_value(tmp_path):
    array = np.full((3, 20, 20), 100, np.uint8)
    array[0] = 0
    image, valid = read_all(scene_of(tmp_path, array, nodata=0), gsd=4.0)
    assert valid.all()
    assert (image[0] == 0).all()


def test_gsd_in_degrees_feet_and_web_mercator(tmp_path):
    degree = 1 / 111_320
    place = Affine(2 * degree, 0, 10, 0, -2 * degree, 60)
    scenes = {"EPSG:4326": place, "EPSG:2263": Affine(6, 0, 980_000, 0, -6, 200_000)}
    scenes["EPSG:3857"] = Affine(4, 0, 1_113_194, 0, -4, 8_399_737)  # 60 degrees north
    for crs, transform in scenes.items():
        path = make(tmp_path / "scene.tif", pattern(), crs=crs, transform=transform)
        with open_scene(path, options(gsd=5.0)) as scene:
            assert scene.grid.gsd_m == pytest.approx(5, rel=0.002)
            assert scene.read(0, scene.grid.height)[1].mean() > 0.9


def test_dst_crs_moves_the_scene(tmp_path):
    path = scene_of(tmp_path, pattern())
    with open_scene(path, options(dst_crs="EPSG:3857", gsd=2.0)) as scene:
        assert scene.grid.crs.to_epsg() == 3857
        assert scene.grid.is_north_up
        assert scene.grid.gsd_m == pytest.approx(2, rel=0.01)
        image, valid = scene.read(0, scene.grid.height)
        strips = [scene.read(row, 1)[0] for row in range(scene.grid.height)]
    assert valid.mean() > 0.9
    assert (np.concatenate(strips, axis=1) == image).all()
    with pytest.raises(UsageError, match="--dst-crs is 'EPSG:1'"):
        open_scene(path, options(dst_crs="EPSG:1"))


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


def test_scene_with_gcps_only_keeps_them(tmp_path):
    path, array = gcp_scene(tmp_path)
    with open_scene(path, options()) as scene:
        assert len(scene.grid.gcps) == 9
        assert scene.grid.crs.to_epsg() == 4326
        assert scene.grid.gsd_m == pytest.approx(np.sqrt(7.17 * 11.12), rel=0.01)
        np.testing.assert_allclose(scene.read(0, 60)[0], array / 255, rtol=1e-6)
    box = (10.001, 49.996, 10.004, 49.998)
    with open_scene(path, options(bbox=box)) as scene:
        assert (scene.grid.width, scene.grid.height) == (20, 30)
        assert (scene.grid.gcps[0].row, scene.grid.gcps[0].col) == (-10, -20)
        np.testing.assert_allclose(scene.read(0, 30)[0], array[:, 10:40, 20:40] / 255, rtol=1e-6)


@pytest.mark.parametrize("more", [{"dst_crs": "EPSG:4326"}, {"gsd": 8.0}, {"gsd": 20.0}])
def test_scene_with_gcps_only_is_rectified(tmp_path, more):
    rows = np.repeat(np.arange(60, dtype=np.uint8)[:, np.newaxis] * 4, 50, axis=1)
    path, _ = gcp_scene(tmp_path, array=rows[np.newaxis])
    with open_scene(path, options(**more)) as scene:
        assert (scene.grid.is_north_up, scene.grid.gcps) == (True, ())
        assert scene.grid.bounds == pytest.approx((10, 49.995, 10.006, 50), abs=4e-4)
        image, valid = scene.read(0, scene.grid.height)
        lon = scene.grid.transform.c + (np.arange(scene.grid.width) + 0.5) * scene.grid.transform.a
    assert valid.mean() > 0.9
    expected = np.broadcast_to(((lon - 10) / 1e-4 - 0.5) * 4 / 255, valid.shape)
    np.testing.assert_allclose(image[0][valid], expected[valid], atol=0.02)


def test_rotated_grid_is_kept_and_can_be_straightened(tmp_path):
    rotated = Affine.translation(500_000, 5_400_000) * Affine.rotation(30) * Affine.scale(2, -2)
    array = pattern()
    path = scene_of(tmp_path, array, crs="EPSG:32633", transform=rotated)
    with open_scene(path, options()) as scene:
        assert scene.grid.transform.almost_equals(rotated)
        assert scene.grid.pixel_area_m2 == pytest.approx(4)
        assert scene.read(0, 60)[1].all()
    x, y = rotated * (25, 30)
    with open_scene(path, options(bbox=(x - 4, y - 4, x + 4, y + 4))) as scene:
        assert 4 <= scene.grid.width <= 7
        corner = scene.grid.transform * (scene.grid.width / 2, scene.grid.height / 2)
        assert corner == pytest.approx((x, y), abs=2)
    with open_scene(path, options(dst_crs="EPSG:32633")) as scene:
        assert scene.grid.is_north_up
        _, valid = scene.read(0, scene.grid.height)
    assert 0.3 < valid.mean() < 0.8


def test_scene_without_crs_works_in_pixels_with_a_warning(tmp_path, caplog):
    path = make(tmp_path / "plain.png", pattern(), driver="PNG", crs=None)
    with open_scene(path, options(bbox=(5.0, 10.0, 15.0, 30.0))) as scene:
        assert scene.grid.crs is None
        assert scene.grid.pixel_area_m2 is None
        assert (scene.grid.width, scene.grid.height) == (10, 20)
    assert "no coordinate system" in caplog.text
    with pytest.raises(UsageError, match="--gsd and --dst-crs need"):
        open_scene(path, options(gsd=1.0))
    with pytest.raises(UsageError, match="--bbox-crs cannot be used"):
        open_scene(path, options(bbox=(0.0, 0.0, 1.0, 1.0), bbox_crs="EPSG:4326"))


LOCAL = 'LOCAL_CS["site grid",UNIT["foot",0.3048]]'


@pytest.mark.parametrize(("crs", "unit"), [(LOCAL, 0.3048), ("EPSG:4978", 1.0)])
def test_local_and_geocentric_systems_have_a_unit_but_no_place(tmp_path, crs, unit):
    place = {"crs": crs, "transform": UTM["transform"]}
    path = make(tmp_path / "site.tif", pattern(), **place)
    with open_scene(path, options(bbox=(500_000, 5_399_900, 500_020, 5_400_000))) as scene:
        assert scene.grid.pixel_area_m2 == pytest.approx((2 * unit) ** 2)
        assert (scene.grid.width, scene.grid.height) == (10, 50)
        rows = write_rows(tmp_path / "rows.tif", classes(50, 10), scene.grid, nodata=255)
    with rasterio.open(write_class_raster(rows, tmp_path / "out.tif", LEGEND, {})[0]) as dst:
        assert grid_of(dst).pixel_area_m2 == pytest.approx((2 * unit) ** 2)
    with open_scene(path, options(gsd=4.0)) as scene:
        assert scene.grid.gsd_m == pytest.approx(4)
        assert scene.read(0, 5)[1].all()
    with pytest.raises(SceneError, match="--bbox-crs cannot be used"):
        open_scene(path, options(bbox=(0.0, 0.0, 1.0, 1.0), bbox_crs="EPSG:4326"))
    with pytest.raises(SceneError, match="cannot be projected to EPSG:3857"):
        open_scene(path, options(dst_crs="EPSG:3857"))


def test_a_projection_over_grads_keeps_its_metres():
    lambert = Grid(9, 9, Affine(2, 0, 600_000, 0, -2, 2_200_000), rasterio.CRS.from_epsg(27572))
    assert lambert.pixel_area_m2 == 4.0


def test_degrees_are_measured_on_their_own_body():
    moon = rasterio.CRS.from_user_input("+proj=longlat +R=1737400 +no_defs")
    grid = Grid(10, 10, Affine(0.001, 0, 20, 0, -0.001, 60), moon)
    assert grid.gsd_m == pytest.approx(np.radians(0.001) * 1_737_400 * 0.5**0.5, rel=1e-3)


# --- what is not a scene ---------------------------------------------------------------------


def test_files_that_are_no_rasters_are_one_line(tmp_path):
    (tmp_path / "text.tif").write_text("hello, I am no raster\n" * 100)
    (tmp_path / "empty.tif").touch()
    for source, words in (
        (tmp_path / "missing.tif", "there is no such file"),
        (tmp_path / "text.tif", "not a raster that GDAL can read"),
        (tmp_path / "empty.tif", "empty"),
        (tmp_path, "cannot open"),
        ("a" * 300 + ".tif", "there is no such file"),
        ("/vsizip/missing.zip/scene.tif", "cannot open"),
    ):
        with pytest.raises(SceneError, match=words) as caught:
            open_scene(str(source), options())
        assert str(source) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("compress", ["deflate", "none"])
@pytest.mark.parametrize("keep", [6, 200, 0.5, 0.95])
def test_truncated_file_is_one_line(tmp_path, keep, compress):
    path = scene_of(tmp_path, pattern(height=400, width=300), compress=compress)
    size = os.path.getsize(path)
    os.truncate(path, keep if keep > 1 else int(size * keep))
    with pytest.raises(SceneError, match=r"cut short|not a raster") as caught:
        read_all(path)
    assert "\n" not in str(caught.value)


def test_container_of_rasters_asks_for_one(tmp_path):
    path = tmp_path / "two.gpkg"
    for table in ("first", "second"):
        with rasterio.open(
            path,
            "w",
            driver="GPKG",
            count=3,
            height=8,
            width=8,
            dtype="uint8",
            RASTER_TABLE=table,
            APPEND_SUBDATASET="YES",
            **UTM,
        ) as dst:
            dst.write(pattern(3, 8, 8))
    with pytest.raises(SceneError, match=r"2 rasters; name one of them: GPKG:.*first"):
        open_scene(str(path), options())
    assert read_all(f"GPKG:{path}:second")[0].shape == (3, 8, 8)


# --- where scenes live -----------------------------------------------------------------------


def test_zip_and_names_with_spaces(tmp_path):
    array = pattern()
    path = make(tmp_path / "a scene & co.tif", array)
    with zipfile.ZipFile(tmp_path / "my zip.zip", "w") as archive:
        archive.write(path, "in side.tif")
    for source in (
        path,
        f"/vsizip/{tmp_path}/my zip.zip/in side.tif",
        f"zip://{tmp_path}/my zip.zip!in side.tif",
    ):
        np.testing.assert_allclose(read_all(source)[0], array / 255, rtol=1e-6)


@pytest.fixture
def server(tmp_path):
    """Another process: GDAL holds Python's lock while it opens a file."""
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        port = process.stdout.readline().split(" port ")[1].split()[0]
        yield f"http://127.0.0.1:{port}"
        process.terminate()


def test_scene_behind_http(tmp_path, server):
    array = pattern()
    scene_of(tmp_path, array)
    for source in (f"{server}/scene.tif", f"/vsicurl/{server}/scene.tif"):
        np.testing.assert_allclose(read_all(source)[0], array / 255, rtol=1e-6)
    with pytest.raises(SceneError, match="cannot open"):
        open_scene(f"{server}/missing.tif", options())


def test_a_server_that_falls_silent_is_given_up_on(monkeypatch):
    assert gdal_settings("https://example.org/scene.tif")["GDAL_HTTP_LOW_SPEED_TIME"] == "30"
    assert "GDAL_HTTP_LOW_SPEED_TIME" not in gdal_settings("scene.tif")
    assert gdal_settings("scene.tif")["GDAL_CACHEMAX"] > 1 << 20  # bytes, not megabytes
    monkeypatch.setenv("GDAL_HTTP_LOW_SPEED_TIME", "900")
    assert "GDAL_HTTP_LOW_SPEED_TIME" not in gdal_settings("/vsicurl/https://example.org/s.tif")


def test_half_floats_are_read_as_floats():
    virtual = VirtualRaster("scene.tif", Grid(1, 1, Affine.identity()))
    virtual.add_band(1, "float16")
    assert 'dataType="Float32"' in virtual.text


# --- writing ---------------------------------------------------------------------------------

LEGEND = Legend(
    (0, 1, 2), ("background", "building & roof", "road"), ((9, 9, 9), (255, 0, 0), (0, 0, 255))
)


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


def as_vrt(path, tmp_path) -> str:
    """What GDAL itself knows of a raster, category names too (rasterio cannot show them)."""
    with rasterio.open(path) as src:
        rasterio.shutil.copy(src, tmp_path / "copy.vrt", driver="VRT")
    return (tmp_path / "copy.vrt").read_text()


def test_class_raster_carries_all_that_a_map_needs(tmp_path):
    array = classes()
    rows = write_rows(tmp_path / "rows.tif", array, nodata=255)
    out = tmp_path / "out.tif"
    files = write_class_raster(rows, out, LEGEND, {"MODEL": "mini <1>"})
    assert files[0] == out
    with rasterio.open(out) as dst:
        assert (dst.read(1) == array).all()
        assert dst.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert dst.tags(ns="IMAGE_STRUCTURE")["COMPRESSION"] == "DEFLATE"
        assert (dst.crs.to_epsg(), dst.transform) == (32633, UTM["transform"])
        assert (dst.nodata, dst.descriptions) == (255, ("class",))
        assert dst.colorinterp == (ColorInterp.palette,)
        colours = dst.colormap(1)
        assert [colours[i] for i in (0, 1, 2)] == [(*c, 255) for c in LEGEND.colours]
        assert colours[255][3] == 0
        assert dst.tags()["MODEL"] == "mini <1>"
        assert json.loads(dst.tags()["CLASSES"]) == dict(zip("012", LEGEND.names, strict=True))
        assert dst.overviews(1) == [2]
        overview = dst.read(1, out_shape=(350, 300))
        assert set(np.unique(overview)) == {0, 1, 2, 255}
    assert "<Category>building &amp; roof</Category>" in as_vrt(out, tmp_path)
    assert {path.name for path in files} == {
        path.name for path in tmp_path.iterdir() if path.name.startswith("out.tif")
    }


def test_class_raster_of_many_classes_is_uint16(tmp_path):
    count = 300
    legend = Legend(
        tuple(range(count)),
        tuple(f"c{i}" for i in range(count)),
        tuple((i % 256, i // 256, 7) for i in range(count)),
        65535,
        "uint16",
    )
    array = classes(dtype="uint16", nodata=65535)
    array[20:30] = 299
    rows = write_rows(tmp_path / "rows.tif", array, nodata=65535)
    out, *_ = write_class_raster(rows, tmp_path / "out.tif", legend, {})
    with rasterio.open(out) as dst:
        assert (dst.read(1) == array).all()
        assert (dst.dtypes, dst.nodata) == (("uint16",), 65535)
        assert dst.colormap(1)[299] == (43, 1, 7, 255)
    assert "<Category>c299</Category>" in as_vrt(out, tmp_path)
    with pytest.raises(ValueError, match="do not fit"):
        Legend(legend.values, legend.names, legend.colours)


@pytest.mark.parametrize("shape", [(1, 600), (600, 1), (1, 1), (256, 256), (257, 3)])
def test_class_raster_of_any_size(tmp_path, shape):
    array = classes(*shape)
    array[:] = 1
    out, *_ = write_class_raster(
        write_rows(tmp_path / "rows.tif", array, nodata=255), tmp_path / "out.tif", LEGEND, {}
    )
    with rasterio.open(out) as dst:
        assert (dst.read(1) == array).all()


def test_class_raster_keeps_gcps_rotation_and_having_no_crs(tmp_path):
    array = classes(60, 50)
    path, _ = gcp_scene(tmp_path)
    with open_scene(path, options()) as scene:
        gcps = scene.grid
    rotated = Affine.translation(500_000, 5_400_000) * Affine.rotation(30) * Affine.scale(2, -2)
    grids = (
        gcps,
        Grid(50, 60, rotated, rasterio.CRS.from_epsg(32633)),
        Grid(50, 60, Affine.identity()),
        Grid(50, 60, Affine(0.1, 0, 7, 0, -0.1, 9)),
    )
    for grid in grids:
        rows = write_rows(tmp_path / "rows.tif", array, grid, nodata=255)
        out, *_ = write_class_raster(rows, tmp_path / "out.tif", LEGEND, {})
        with rasterio.open(out) as dst:
            points, crs = dst.gcps
            assert [(p.row, p.col, p.x, p.y) for p in points] == [
                (p.row, p.col, p.x, p.y) for p in grid.gcps
            ]
            assert (crs if points else dst.crs) == grid.crs
            assert dst.transform.almost_equals(grid.transform, 1e-9)


def test_creation_options_are_the_users(tmp_path):
    rows = write_rows(tmp_path / "rows.tif", classes(60, 50), nodata=255)
    out, *_ = write_class_raster(rows, tmp_path / "out.tif", LEGEND, {}, (("compress", "lzw"),))
    with rasterio.open(out) as dst:
        assert dst.compression.name == "lzw"
    check_creation_options((("compress", "lzw"), ("BLOCKSIZE", "256")))
    for name, value in (("COMPRESS", "NONSENSE"), ("TILED", "YES")):
        with pytest.raises(UsageError, match=f"--co: .*{name}"):
            check_creation_options(((name, value),))


def test_probabilities_have_a_band_per_class(tmp_path):
    array = pattern(3, 600, 70) % 101
    array[:, :5] = 255
    rows = write_rows(tmp_path / "rows.tif", array, bands=3, nodata=255)
    out, *_ = write_probabilities(rows, tmp_path / "out.tif", LEGEND.names, {"A": "b"})
    with rasterio.open(out) as dst:
        assert (dst.read() == array).all()
        assert (dst.descriptions, dst.nodata) == (LEGEND.names, 255)
        assert dst.tags()["A"] == "b"


def test_sieve_merges_small_patches_but_never_nodata(tmp_path):
    array = np.zeros((600, 40), np.uint8)
    array[100:102, 10:12] = 1  # 4 pixels
    array[300:304, 10:14] = 2  # 16 pixels
    array[500:] = 255
    array[550, 5] = 1  # an island in nodata
    array[200, 3] = 255
    expected = array.copy()
    expected[100:102, 10:12] = 0
    path = write_rows(tmp_path / "rows.tif", array, nodata=255)
    sieve(path, 10)
    with rasterio.open(path) as src:
        assert (src.read(1) == expected).all()
        assert (src.nodata, src.crs.to_epsg()) == (255, 32633)
    assert [p.name for p in tmp_path.iterdir()] == ["rows.tif"]


def test_sieve_of_a_raster_without_a_large_enough_patch_changes_nothing(tmp_path):
    array = np.zeros((6, 7), np.uint8)
    array[2:4, 2:4] = 1
    path = write_rows(tmp_path / "rows.tif", array, nodata=255)
    sieve(path, 1000)
    with rasterio.open(path) as src:
        assert (src.read(1) == array).all()


def test_stderr_comes_back_when_the_last_of_several_writers_is_done():
    there = os.fstat(2)
    silent = _Silent()
    with silent:
        with silent:
            assert not os.path.samestat(os.fstat(2), there)
        assert not os.path.samestat(os.fstat(2), there)
    assert os.path.samestat(os.fstat(2), there)


def test_outputs_that_cannot_be_written_are_one_line(tmp_path):
    grid = Grid(5, 5, Affine.identity())
    with pytest.raises(OutputError, match="cannot write"):
        RowWriter(tmp_path / "no" / "such" / "folder.tif", grid)


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)]
    if not hasattr(os, "geteuid") or os.geteuid() != 0 or subprocess.run(command).returncode:
        pytest.skip("needs the right to mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("height", [900, 1100, 3000])
def test_full_disk_is_one_line(tmp_path, small_disk, height):
    noise = np.random.default_rng(0).integers(0, 255, (height, 1200), dtype=np.uint8)
    with pytest.raises(OutputError, match=r"disk (is|may be) full"):
        write_rows(small_disk / "rows.tif", noise)
    (small_disk / "rows.tif").unlink()
    rows = write_rows(tmp_path / "rows.tif", noise, nodata=255)
    with pytest.raises(OutputError, match=r"disk (is|may be) full"):
        write_class_raster(rows, small_disk / "out.tif", LEGEND, {})

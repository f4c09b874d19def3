import json

import geopandas
import numpy as np
import pytest
import rasterio
import rasterio.shutil
import rasterio.warp
import shapely
from rasterio import Affine
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasters import (
    GREY,
    LEGEND,
    UTM,
    classes,
    gcp_scene,
    make,
    options,
    pattern,
    read_all,
    scene_of,
    write_rows,
)
from shapely.geometry import mapping

from segearth_cli.errors import SceneError, UsageError
from segearth_cli.geo.cog import write_class_raster
from segearth_cli.geo.grid import Grid
from segearth_cli.geo.raster import open_scene
from segearth_cli.geo.writer import grid_of
from segearth_cli.parse import parse_bbox

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


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
    with open_scene(path, options(bbox=(500_012, 5_399_990, 500_020, 5e6 * 2), bbox_crs="32633")):
        pass
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


@pytest.mark.parametrize(("west", "kept"), [(-180, (0, 8)), (178, (12, 20))])
def test_a_box_across_the_antimeridian(tmp_path, west, kept):
    transform = Affine(0.1, 0, west, 0, -0.1, 6)
    path = make(
        tmp_path / "scene.tif", pattern()[:, :60, :20], crs="EPSG:4326", transform=transform
    )
    # from 179.2 E to 179.2 W
    box = (*transform_point(179.2, 1), *transform_point(-179.2, 5))
    with open_scene(path, options(bbox=box, bbox_crs="EPSG:3832")) as scene:
        left, right = scene.grid.bounds[0], scene.grid.bounds[2]
    assert (round((left - west) / 0.1), round((right - west) / 0.1)) == kept


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:32660"])
def test_a_box_may_begin_beyond_its_end_as_geojson_has_it(tmp_path, crs):
    transform = Affine(0.1, 0, 179, 0, -0.1, 6)
    if crs != "EPSG:4326":
        transform = Affine(10_000, 0, 700_000, 0, -10_000, 660_000)  # from 178.8 E on
    path = make(tmp_path / "scene.tif", pattern()[:, :60, :50], crs=crs, transform=transform)
    turned, counted = ((179.5, 1, right, 5) for right in (-179.7, 180.3))
    grids = []
    for box in (turned, counted):
        with open_scene(path, options(bbox=box, bbox_crs="EPSG:4326")) as scene:
            grids.append(scene.grid)
    assert grids[0] == grids[1]
    assert grids[0].width < 50


@pytest.mark.parametrize("turn", [-360, 0, 360])
@pytest.mark.parametrize("crs", [None, "EPSG:4326"])
def test_degrees_of_a_box_may_count_on_around_the_earth(tmp_path, turn, crs):
    path = make(
        tmp_path / "scene.tif",
        pattern()[:, :60, :20],
        crs="EPSG:4326",
        transform=Affine(0.1, 0, 179, 0, -0.1, 6),
    )
    box = (180.2 + turn, 1.0, 180.6 + turn, 5.0)
    with open_scene(path, options(bbox=box, bbox_crs=crs)) as scene:
        assert scene.grid.bounds == pytest.approx((180.2, 1, 180.6, 5))


def transform_point(lon, lat):
    """In a Mercator projection around 150 E."""
    xs, ys = rasterio.warp.transform("EPSG:4326", "EPSG:3832", [lon], [lat])
    return xs[0], ys[0]


def test_a_box_as_qgis_copies_it():
    box = (11.551, 48.136, 11.556, 48.139)
    copied = "11.551,11.556,48.136,48.139 [EPSG:4326]"
    assert parse_bbox(copied, None) == (box, "EPSG:4326")
    assert parse_bbox("11.551,48.136,11.556,48.139", "EPSG:4326") == (box, "EPSG:4326")


def test_aoi_leaves_pixels_outside_invalid(tmp_path, caplog):
    path = scene_of(tmp_path, pattern())
    triangle = shapely.Polygon([(500_000, 5_400_000), (500_040, 5_400_000), (500_000, 5_399_960)])
    for crs, target in ((32633, 4326), (None, None)):
        frame = geopandas.GeoDataFrame(geometry=[triangle], crs=crs)
        frame = frame.to_crs(target) if target else frame
        frame.to_file(tmp_path / "aoi.gpkg")
        with open_scene(path, options(aoi=str(tmp_path / "aoi.gpkg"))) as scene:
            image, valid = scene.read(0, scene.grid.height)
            strips = [scene.read(row, 1)[1] for row in range(scene.grid.height)]
        assert valid.sum() == pytest.approx(200, abs=12)
        assert valid[0, 0]
        assert not valid[-1, -1]
        height, width = valid.shape
        around = pattern()[:, :height, :width] / 255  # what windows see, though it is not mapped
        np.testing.assert_allclose(image, around, rtol=1e-6)
        assert (np.concatenate(strips) == valid).all()
    assert "no coordinate system" in caplog.text
    with pytest.raises(SceneError, match="cannot read --aoi"):
        open_scene(path, options(aoi=str(tmp_path / "missing.gpkg")))


def test_a_raster_is_no_area_of_interest(tmp_path):
    path = scene_of(tmp_path, pattern())
    with pytest.raises(SceneError, match=r"--aoi .*scene\.tif is a raster and holds no polygons"):
        open_scene(path, options(aoi=path))


def test_aoi_takes_polygons_however_broken_and_nothing_else(tmp_path):
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
    with pytest.raises(SceneError, match="has no coordinates"):
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


@pytest.mark.parametrize("crs", ["ESRI:54008", "ESRI:54009", "EPSG:6933", "EPSG:4087"])
def test_gsd_makes_square_pixels_of_that_area(tmp_path, crs):
    path = make(
        tmp_path / "scene.tif", pattern(), crs=crs, transform=Affine(50, 0, 5e6, 0, -50, 5e6)
    )
    with open_scene(path, options(gsd=200.0)) as scene:
        assert scene.grid.transform.a == -scene.grid.transform.e
        assert scene.grid.gsd_m == pytest.approx(200, rel=1e-3)


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


@pytest.mark.parametrize(
    ("gsd", "said"),
    [(1000.0, "more than the scene is wide or high: 100 x 120 m"), (0.001, "give a larger one")],
)
def test_gsd_that_makes_nothing_or_too_much_is_one_line(tmp_path, gsd, said):
    with pytest.raises(SceneError, match=f"--gsd {gsd:g} .*{said}"):
        open_scene(scene_of(tmp_path, pattern()), options(gsd=gsd))


def test_dst_crs_moves_the_scene(tmp_path):
    path = scene_of(tmp_path, pattern())
    with open_scene(path, options(dst_crs="EPSG:3857", gsd=2.0)) as scene:
        assert scene.grid.crs.to_epsg() == 3857
        assert scene.grid.transform.a == -scene.grid.transform.e
        assert scene.grid.is_north_up
        assert scene.grid.gsd_m == pytest.approx(2, rel=0.01)
        image, valid = scene.read(0, scene.grid.height)
        strips = [scene.read(row, 1)[0] for row in range(scene.grid.height)]
    assert valid.mean() > 0.9
    assert (np.concatenate(strips, axis=1) == image).all()
    with pytest.raises(UsageError, match="--dst-crs is 'EPSG:1'"):
        open_scene(path, options(dst_crs="EPSG:1"))


def test_scene_with_gcps_only_is_opened_anew_where_a_server_broke_off(tmp_path):
    path, array = gcp_scene(tmp_path)
    with open_scene(path, options()) as scene:
        scene._reopen()
        np.testing.assert_allclose(scene.read(0, 60)[0], array / 255, rtol=1e-6)


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
    with open_scene(path, options(bbox=(5.0, -30.0, 15.0, -10.0))) as scene:
        as_shown = scene.grid
    for canvas in ((-9.0, -70.0, 60.0, 4.0), (-9.0, -4.0, 60.0, 70.0)):
        with open_scene(path, options(bbox=canvas)) as scene:
            assert scene.grid.height == 60
    with open_scene(path, options(bbox=(5.0, 10.0, 15.0, 30.0))) as scene:
        assert scene.grid == as_shown
        assert scene.grid.crs is None
        assert scene.grid.pixel_area_m2 is None
        assert (scene.grid.width, scene.grid.height) == (10, 20)
    assert "no coordinate system" in caplog.text
    with pytest.raises(UsageError, match="--gsd and --dst-crs need"):
        open_scene(path, options(gsd=1.0))
    with pytest.raises(UsageError, match="--bbox-crs cannot be used"):
        open_scene(path, options(bbox=(0.0, 0.0, 1.0, 1.0), bbox_crs="EPSG:4326"))


def test_a_part_of_a_scene_without_a_place_is_where_gis_show_the_whole(tmp_path):
    path = make(tmp_path / "plain.png", pattern(), driver="PNG", crs=None)
    with open_scene(path, options(bbox=(5.0, 10.0, 15.0, 30.0))) as scene:
        assert scene.grid.transform == Affine(1, 0, 5, 0, -1, -10)
        by_box, _ = scene.read(0, 20)
    with open_scene(path, options()) as scene:
        assert scene.grid.transform.is_identity
    frame = geopandas.GeoDataFrame(geometry=[shapely.box(5, -30, 15, -10)])  # as a map of it has it
    with pytest.warns(UserWarning, match="'crs' was not provided"):
        frame.to_file(tmp_path / "aoi.gpkg")
    with open_scene(path, options(aoi=str(tmp_path / "aoi.gpkg"))) as scene:
        np.testing.assert_array_equal(scene.read(0, 20)[0], by_box)


def test_src_crs_places_a_scene_with_a_world_file(tmp_path, caplog):
    path = make(tmp_path / "ortho.png", pattern(), driver="PNG", crs=None)
    (tmp_path / "ortho.pgw").write_text("2\n0\n0\n-2\n500001\n5399999\n")
    with open_scene(path, options(src_crs="EPSG:25832")) as scene:
        assert scene.grid.crs.to_epsg() == 25832
        assert scene.grid.transform == UTM["transform"]
        assert scene.grid.pixel_area_m2 == pytest.approx(4)
        as_it_is, _ = scene.read(0, scene.grid.height)
    box = (500_010.0, 5_399_960.0, 500_030.0, 5_399_980.0)
    with open_scene(path, options(src_crs="EPSG:25832", bbox=box)) as scene:
        np.testing.assert_array_equal(scene.read(0, 10)[0], as_it_is[:, 10:20, 5:15])
    with open_scene(path, options(src_crs="EPSG:25832", dst_crs="EPSG:4326")) as scene:
        left, bottom, right, top = scene.grid.bounds
        assert (left + right) / 2 == pytest.approx(9, abs=0.01)
        assert (bottom + top) / 2 == pytest.approx(48.75, abs=0.01)
        assert scene.read(0, scene.grid.height)[1].mean() > 0.9
    assert not caplog.text


def test_src_crs_comes_before_the_files_own(tmp_path):
    path = scene_of(tmp_path, pattern())
    with open_scene(path, options(src_crs="EPSG:32632")) as scene:
        assert scene.grid.crs.to_epsg() == 32632
    with open_scene(path, options(src_crs="EPSG:32632", gsd=4.0)) as scene:
        assert (scene.grid.crs.to_epsg(), scene.grid.transform.a) == (32632, 4)


def test_src_crs_places_gcps_that_are_in_no_system(tmp_path):
    points = [
        GroundControlPoint(r, c, 500_000 + 2 * c, 5_400_000 - 2 * r)
        for r in (0, 60)
        for c in (0, 50)
    ]
    path = make(tmp_path / "points.tif", pattern(), crs="EPSG:25832", gcps=points)
    with rasterio.open(path, "r+") as dst:
        dst.gcps = points, CRS()
    with open_scene(path, options(src_crs="EPSG:25832")) as scene:
        assert (scene.grid.crs.to_epsg(), len(scene.grid.gcps)) == (25832, 4)
    with open_scene(path, options(src_crs="EPSG:25832", gsd=2.0)) as scene:
        assert scene.grid.crs.to_epsg() == 25832
        assert scene.grid.bounds == pytest.approx((500_000, 5_399_880, 500_100, 5_400_000), abs=2)


def test_src_crs_cannot_place_what_has_no_coordinates(tmp_path):
    path = make(tmp_path / "plain.png", pattern(), driver="PNG", crs=None)
    with pytest.raises(SceneError, match="does not say where it is: --src-crs needs a geotr"):
        open_scene(path, options(src_crs="EPSG:25832"))
    with pytest.raises(UsageError, match="--src-crs is 'here'"):
        open_scene(path, options(src_crs="here"))


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


@pytest.mark.parametrize("placed", ["affine", "gcps"])
@pytest.mark.parametrize("box", [(-170, -60, 170, 84), (-180, -90, 180, 90), (0, 40, 30, 60)])
def test_aoi_far_larger_than_the_scene_takes_all_of_it(tmp_path, box, placed):
    path = scene_of(tmp_path, pattern()) if placed == "affine" else gcp_scene(tmp_path)[0]
    aoi = tmp_path / "continent.parquet"
    geopandas.GeoDataFrame(geometry=[shapely.box(*box)], crs=4326).to_parquet(aoi)
    with open_scene(path, options(aoi=str(aoi))) as scene:
        assert (scene.grid.height, scene.grid.width) == (60, 50)
        assert scene.read(0, 60)[1].all()


@pytest.mark.parametrize("box", [(-180, -90, 180, 90), (170, 20, 190, 30), (-190, 20, -170, 30)])
def test_aoi_across_the_antimeridian(tmp_path, box):
    transform = Affine(2000, 0, 700_000, 0, -2000, 3_000_000)  # from 179 E to 180 E and beyond
    path = make(tmp_path / "scene.tif", pattern(), crs="EPSG:32660", transform=transform)
    aoi = tmp_path / "aoi.geojson"
    geopandas.GeoDataFrame(geometry=[shapely.box(*box)], crs=4326).to_file(aoi)
    with open_scene(path, options(aoi=str(aoi))) as scene:
        assert scene.read(0, scene.grid.height)[1].mean() > 0.99
        assert (scene.grid.height, scene.grid.width) == (60, 50)


def test_aoi_beside_the_scene_or_of_several_layers_is_one_line(tmp_path):
    path = scene_of(tmp_path, pattern())
    aoi = tmp_path / "aoi.gpkg"
    frame = geopandas.GeoDataFrame(geometry=[shapely.box(1, 2, 3, 4)], crs=4326)
    frame.to_file(aoi, layer="a")
    with pytest.raises(SceneError, match=r"--aoi .*aoi\.gpkg does not touch the scene, whose bou"):
        open_scene(path, options(aoi=str(aoi)))
    close = geopandas.GeoDataFrame(geometry=[shapely.box(500_102, 5_399_900, 500_103, 5_400_000)])
    close.set_crs(32633).to_file(tmp_path / "close.gpkg")
    with pytest.raises(SceneError, match=r"--aoi .*close\.gpkg does not touch the scene"):
        open_scene(path, options(aoi=str(tmp_path / "close.gpkg")))
    frame.to_file(aoi, layer="b")
    with pytest.raises(SceneError, match=r"several layers \(a, b\); say .*gpkg\|layername=a'"):
        open_scene(path, options(aoi=str(aoi)))
    with pytest.raises(SceneError, match="no such layer, but a, b"):
        open_scene(path, options(aoi=f"{aoi}|layername=c"))
    with pytest.raises(SceneError, match="no filter after it"):
        open_scene(path, options(aoi=f"{aoi}|layername=a|subset=b"))


def test_metres_that_are_said_to_be_degrees_are_told(tmp_path):
    aoi = tmp_path / "aoi.geojson"
    square = shapely.box(500_000, 5_399_900, 500_020, 5_399_990)
    aoi.write_text(json.dumps({"type": "Feature", "properties": {}, "geometry": mapping(square)}))
    with pytest.raises(SceneError, match="500000,5399900, which are no degrees: its coordinate sy"):
        open_scene(scene_of(tmp_path, pattern()), options(aoi=str(aoi)))


def test_aoi_in_one_of_several_layers(tmp_path):
    aoi = tmp_path / "aoi.gpkg"
    for layer, right in (("a", 500_020), ("b", 500_040)):
        box = shapely.box(500_000, 5_399_880, right, 5_400_000)
        geopandas.GeoDataFrame(geometry=[box], crs=32633).to_file(aoi, layer=layer)
    path = scene_of(tmp_path, pattern())
    with open_scene(path, options(aoi=f"{aoi}|layername=b")) as scene:
        assert scene.grid.bounds[2] == 500_040


def degrees_scene(folder, west):
    """12 by 8 thousandths of a degree from ``west`` on, by a tenth of each."""
    transform = Affine(1e-4, 0, west, 0, -1e-4, -17.0)
    return make(folder / f"{west}.tif", pattern(3, 80, 120), crs=4326, transform=transform)


@pytest.mark.parametrize(
    ("west", "crs"),
    [
        (179.995, "EPSG:32701"),
        (-180.005, "EPSG:32701"),
        (-180.005, "EPSG:32660"),
        (179.995, "EPSG:32660"),
        (350.0, "EPSG:32629"),
    ],
)
def test_dst_crs_keeps_all_of_a_scene_beyond_180_degrees(tmp_path, west, crs):
    path = degrees_scene(tmp_path, west)
    with open_scene(path, options(dst_crs=crs)) as scene:
        _, valid = scene.read(0, scene.grid.height)
        area = valid.sum() * scene.grid.pixel_area_m2
    with open_scene(path, options()) as scene:
        assert area == pytest.approx(80 * 120 * scene.grid.pixel_area_m2, rel=0.02)


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:4258"])
def test_degrees_go_on_across_the_antimeridian(tmp_path, crs):
    place = {"crs": 32701, "transform": Affine(10, 0, 179_500, 0, -10, 8_118_000)}
    path = make(tmp_path / "utm.tif", pattern(3, 80, 120), **place)
    with open_scene(path, options(dst_crs=crs)) as scene:
        left, _, right, _ = scene.grid.bounds
        assert 179.9 < left < 180 < right < 180.1
        assert scene.grid.crs == CRS.from_user_input(crs)
        _, valid = scene.read(0, scene.grid.height)
        assert valid.sum() * scene.grid.pixel_area_m2 == pytest.approx(80 * 120 * 100, rel=0.02)


@pytest.mark.parametrize("crs", ["EPSG:3857", "EPSG:6933"])
def test_a_system_that_tears_the_scene_apart_is_one_line(tmp_path, crs):
    with pytest.raises(SceneError, match="it lies on both sides of that system's edge"):
        open_scene(degrees_scene(tmp_path, 179.995), options(dst_crs=crs))
    pole = {"crs": 3413, "transform": Affine(100, 0, -4000, 0, -100, 4000)}
    path = make(tmp_path / "pole.tif", pattern(3, 80, 80), **pole)
    with pytest.raises(SceneError, match="or around a pole"):
        open_scene(path, options(dst_crs="EPSG:4326"))


@pytest.mark.parametrize("west", [179.995, -180.005, 350.0])
def test_an_aoi_in_degrees_is_understood_on_all_turns(tmp_path, west):
    parts = [shapely.box(west, -17.008, 180, -17), shapely.box(-180, -17.008, west - 348, -17)]
    if west < 0:
        parts = [shapely.box(-180, -17.008, west + 0.012, -17), shapely.box(179.9, -18, 180, -17)]
    elif west > 180:
        parts = [shapely.box(west - 360, -17.008, west - 359.988, -17)]
    shape = shapely.MultiPolygon(parts)
    geopandas.GeoSeries([shape], crs=4326).to_file(tmp_path / "aoi.geojson")
    path = degrees_scene(tmp_path, west)
    with open_scene(path, options(aoi=str(tmp_path / "aoi.geojson"))) as scene:
        assert (scene.grid.width, scene.grid.height) == (120, 80)
        assert scene.read(0, 80)[1].all()


def banded(folder, values, nodata):
    """A VRT of bands that each declare their own nodata value."""
    path = make(folder / "plain.tif", values)
    bands = "".join(
        f'<VRTRasterBand dataType="Byte" band="{band}"><NoDataValue>{missing}</NoDataValue>'
        f"<SimpleSource><SourceFilename>{path}</SourceFilename><SourceBand>{band}</SourceBand>"
        "</SimpleSource></VRTRasterBand>"
        for band, missing in enumerate(nodata, 1)
    )
    transform = "<GeoTransform>500000,2,0,5400000,0,-2</GeoTransform>"
    size = f'rasterXSize="{values.shape[2]}" rasterYSize="{values.shape[1]}"'
    made = folder / "bands.vrt"
    made.write_text(f"<VRTDataset {size}><SRS>EPSG:32633</SRS>{transform}{bands}</VRTDataset>")
    return str(made)


def test_each_band_keeps_its_own_nodata_when_warped(tmp_path):
    values = pattern()
    values[:, :30, :20] = np.array([0, 255, 255], np.uint8)[:, None, None]
    values[:, :10, 30:] = 0
    path = banded(tmp_path, values, (0, 255, 255))
    image, valid = read_all(path)
    assert (~valid).sum() == 600
    warped_image, warped_valid = read_all(path, gsd=2.0)
    assert (warped_valid == valid).all()
    np.testing.assert_allclose(warped_image[:, 35:], image[:, 35:], atol=1e-6)


@pytest.mark.parametrize("missing", [-3.4e38, np.inf])
@pytest.mark.parametrize("gsd", [1.5, 4.0])
def test_undeclared_floats_beyond_measure_spoil_no_neighbours(tmp_path, missing, gsd):
    values = pattern(dtype="float32")
    values[:, 20:24, 20:24] = missing
    declared = make(tmp_path / "declared.tif", values, nodata=missing)
    silent = scene_of(tmp_path, values)
    expected, valid = read_all(declared, gsd=gsd, stretch="0,255")
    found, found_valid = read_all(silent, gsd=gsd, stretch="0,255")
    assert (found_valid == valid).all()
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "int16", "uint16", "uint8"])
def test_alpha_of_0_and_1_is_all_or_nothing(tmp_path, dtype):
    values = pattern(4, dtype=dtype)
    values[3] = 1
    values[3, :, :10] = 0
    colours = (ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha)
    path = make(tmp_path / "alpha.tif", values, colours=colours)
    assert read_all(path)[1].sum() == 60 * 40
    assert read_all(path, gsd=2.0)[1].sum() == 60 * 40


def test_alpha_and_mask_are_both_respected(tmp_path):
    values = pattern(4)
    values[3] = 255
    values[3, :, :10] = 0
    mask = np.full(values.shape[1:], 255, np.uint8)
    mask[:20] = 0
    colours = (ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha)
    path = make(tmp_path / "both.tif", values, colours=colours, mask=mask)
    for more in ({}, {"gsd": 2.0}):
        valid = read_all(path, **more)[1]
        assert valid[20:, 10:].all()
        assert valid.sum() == 40 * 40


@pytest.mark.parametrize("gsd", [1.3, 4.0])
@pytest.mark.parametrize("nodata", [-9999, 0])
def test_declared_nodata_of_floats_stays_out_of_resampling(tmp_path, nodata, gsd):
    values = pattern(dtype="float32")
    values[:, 20:24, 20:24] = np.nan
    expected, valid = read_all(scene_of(tmp_path, values), gsd=gsd)
    declared = np.nan_to_num(values, nan=nodata)
    found, found_valid = read_all(make(tmp_path / "own.tif", declared, nodata=nodata), gsd=gsd)
    assert (found_valid == valid).all()
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("crs", ["EPSG:4258", "EPSG:3857"])
def test_the_whole_earth_is_not_turned(tmp_path, crs):
    path = make(
        tmp_path / "earth.tif",
        pattern(3, 80, 180),
        crs=4326,
        transform=Affine(2, 0, -180, 0, -2, 80),
    )
    with open_scene(path, options(dst_crs=crs)) as scene:
        left, _, right, _ = scene.grid.bounds
        assert left == pytest.approx(-right, rel=0.02)
        assert scene.read(0, scene.grid.height)[1].mean() > 0.98


@pytest.mark.parametrize("crs", ["EPSG:4979", "EPSG:4326+5773"])
def test_systems_with_heights_go_on_beyond_180_degrees(tmp_path, crs):
    transform = Affine(1e-4, 0, 179.995, 0, -1e-4, -17.0)
    path = make(tmp_path / "high.tif", pattern(3, 80, 120), crs=crs, transform=transform)
    for more in ({"dst_crs": "EPSG:32701"}, {"gsd": 20.0}):
        with open_scene(path, options(**more)) as scene:
            assert scene.read(0, scene.grid.height)[1].mean() > 0.95


def test_a_scene_placed_by_points_beyond_180_degrees(tmp_path):
    corners = [(0, 0), (0, 120), (80, 0), (80, 120), (40, 60)]
    points = [
        GroundControlPoint(row=r, col=c, x=179.995 + c * 1e-4, y=-17 - r * 1e-4) for r, c in corners
    ]
    path = str(tmp_path / "points.tif")
    with rasterio.open(
        path, "w", driver="GTiff", width=120, height=80, count=3, dtype="uint8"
    ) as dst:
        dst.write(pattern(3, 80, 120))
        dst.gcps = (points, CRS.from_epsg(4326))
    with open_scene(path, options(dst_crs="EPSG:32701")) as scene:
        assert scene.read(0, scene.grid.height)[1].mean() > 0.9


def test_a_warped_palette_is_the_same_every_time(tmp_path):
    values = np.random.default_rng(1).integers(1, 120, (1, 60, 50)).astype(np.uint8)
    values[:, 10:20, 5:15] = 7
    path = make(tmp_path / "palette.tif", values, nodata=7)
    with rasterio.open(path, "r+") as dst:
        dst.write_colormap(1, {value: (value, 255 - value, 9, 255) for value in range(256)})
    first, valid = read_all(path, gsd=5.0)
    rng = np.random.default_rng(0)
    for size in rng.integers(1000, 400_000, 30):
        _ = rng.bytes(size)  # in memory that is free again
        again = read_all(path, gsd=5.0)
        assert (again[0] == first).all()
        assert (again[1] == valid).all()


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
@pytest.mark.parametrize("kind", ["alpha", "mask"])
@pytest.mark.parametrize("gsd", [2.0, 1.3, 5.0])
def test_nodata_beside_alpha_or_mask_stays_out_of_resampling(tmp_path, dtype, kind, gsd):
    values = pattern(4 if kind == "alpha" else 3, dtype=dtype)
    values[:3, 20:24, 20:24] = 0
    mask = np.full(values.shape[1:], 255, np.uint8)
    mask[:20] = 0
    if kind == "alpha":
        values[3] = np.minimum(mask, np.iinfo("uint8").max)
    colours = (ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha)
    own = {"colours": colours} if kind == "alpha" else {"mask": mask}
    path = make(tmp_path / "both.tif", values, nodata=0, **own)
    floats = values[:3].astype("float32")
    floats[:, 20:24, 20:24], floats[:, :20] = np.nan, np.nan
    expected, valid = read_all(scene_of(tmp_path, floats), gsd=gsd, stretch="0,255")
    found, found_valid = read_all(path, gsd=gsd, stretch="0,255")
    assert (found_valid == valid).mean() > 0.98  # alpha counts in part along its edge
    both = found_valid & valid
    np.testing.assert_allclose(found[:, both], expected[:, both], atol=0.02)


def test_an_aoi_along_the_edge_of_the_whole_earth_is_not_everywhere(tmp_path):
    place = {"crs": 4326, "transform": Affine(2, 0, -180, 0, -2, 70)}
    path = make(tmp_path / "earth.tif", pattern(3, 70, 180), **place)
    for west in (-180, 170):
        box = geopandas.GeoSeries([shapely.box(west, -60, west + 10, 60)], crs=4326)
        box.to_file(tmp_path / "aoi.gpkg")
        with open_scene(path, options(aoi=str(tmp_path / "aoi.gpkg"))) as scene:
            assert (scene.grid.width, scene.grid.height) == (5, 60)


def test_a_scene_wider_than_half_the_earth_goes_on_too(tmp_path):
    place = {
        "crs": "EPSG:3832",
        "transform": Affine(200_000, 0, -9_400_000, 0, -200_000, 5_000_000),
    }
    path = make(tmp_path / "pacific.tif", pattern(3, 50, 103), **place)
    with open_scene(path, options(dst_crs="EPSG:4326")) as scene:
        left, _, right, _ = scene.grid.bounds
        assert 60 < left < 70
        assert 245 < right < 255
        assert scene.read(0, scene.grid.height)[1].mean() > 0.95

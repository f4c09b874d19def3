import json
import os
import sqlite3
import subprocess
from pathlib import Path
from xml.etree import ElementTree as ET

import geopandas
import numpy as np
import pytest
import rasterio
import rasterio.shutil
import shapely
from pyproj import Geod
from rasterio import Affine
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp
from scenes import PIXEL_M2, UTM, blocks, names_in, options_for, read, write_scene

from segearth_cli.errors import ModelError, OutputError, SceneError, SegEarthError, UsageError
from segearth_cli.outputs import write_outputs
from segearth_cli.segment import plan, segment

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

NAMES = ["background", "building", "road", "water"]
SUFFIXES = [".gpkg", ".geojson", ".geojsonl", ".fgb", ".parquet", ".shp"]
DEGREES = {"crs": "EPSG:4326", "transform": Affine(1e-4, 0, 15, 0, -1e-4, 60)}


@pytest.fixture
def out(tmp_path):
    """A folder for outputs alone."""
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


@pytest.fixture
def source(tmp_path):
    return write_scene(tmp_path / "scene.tif")


def category_names(raster):
    return [c.text for c in ET.parse(f"{raster}.aux.xml").iter("Category")]


def read_vector(path):
    if path.suffix == ".parquet":
        return geopandas.read_parquet(path)
    layer = path.stem if path.suffix == ".gpkg" else None  # beside it lies the table of styles
    return geopandas.read_file(path, layer=layer)


# --- class rasters -----------------------------------------------------------------------------


def test_the_class_raster_opens_in_any_gis_as_a_map(out, source, tiny_model):
    image = blocks()
    image[:, :20, :30] = 0
    source = write_scene(out.parent / "hole.tif", image, nodata=0)
    result = segment(source, options_for(tiny_model, out / "map.tif"))
    with rasterio.open(out / "map.tif") as src:
        values = src.read(1)
        assert (src.count, src.dtypes[0], src.nodata) == (1, "uint8", 255)
        assert (src.shape, src.transform, src.crs.to_epsg()) == (
            (100, 130),
            UTM["transform"],
            32633,
        )
        assert src.colorinterp == (ColorInterp.palette,)
        assert src.colormap(1)[1] == (214, 47, 39, 255)  # buildings are red
        assert src.colormap(1)[3] == (38, 115, 210, 255)  # water is blue
        assert src.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        tags = src.tags()
    assert category_names(out / "map.tif") == NAMES
    assert (values[:20, :30] == 255).all()
    assert set(np.unique(values)) <= {0, 1, 2, 3, 255}
    assert result.pixels == {n: int((values == v).sum()) for v, n in enumerate(NAMES)}
    assert result.nodata_pixels == 20 * 30
    assert result.area_m2["road"] == result.pixels["road"] * PIXEL_M2
    assert json.loads(tags["SEGEARTH_CLASSES"])[1] == ["building", "roof"]
    model = json.loads(tags["SEGEARTH_MODEL"])
    assert (model["name"], model["window"], model["stride"]) == ("tiny", 64, 32)
    assert len(tags["SEGEARTH_MODEL_DIGEST"]) == 64
    assert tags["SEGEARTH_SOURCE"] == source
    assert "scaled from 0..255" in tags["SEGEARTH_SCENE"]
    assert json.loads(tags["SEGEARTH_OPTIONS"])["min_area"] == 0
    assert names_in(out) == ["map.tif", "map.tif.aux.xml"]


def test_large_maps_have_overviews_of_whole_classes(out, tiny_model):
    source = write_scene(out.parent / "large.tif", blocks(1, 40, 1100))
    segment(source, options_for(tiny_model, out / "map.tif"))
    with rasterio.open(out / "map.tif") as src:
        assert src.overviews(1)[:1] == [2]
        assert set(np.unique(src.read(1, out_shape=(20, 550)))) <= {0, 1, 2, 3}


def test_without_background_every_pixel_gets_a_class(out, source, tiny_model):
    segment(source, options_for(tiny_model, out / "map.tif", background=None))
    assert set(np.unique(read(out / "map.tif"))) <= {1, 2, 3}
    assert category_names(out / "map.tif") == ["unclassified", *NAMES[1:]]


def test_a_class_named_other_is_the_background_wherever_it_stands(out, source, tiny_model):
    classes = (("building",), ("other", "soil"), ("water",))
    segment(source, options_for(tiny_model, out / "map.tif", classes=classes))
    assert category_names(out / "map.tif") == ["other", "building", "water"]


@pytest.mark.parametrize("background", [("background",), None])
def test_pixels_under_the_threshold_become_0(out, source, tiny_model, background):
    plain, strict = (
        options_for(
            tiny_model,
            out / f"{threshold}.tif",
            threshold=threshold,
            background=background,
            probabilities=str(out / f"{threshold}p.tif"),
        )
        for threshold in (0.0, 0.45)
    )
    segment(source, plain)
    result = segment(source, strict)
    with rasterio.open(out / "0.45p.tif") as src:
        best = src.read().max(axis=0)
    before, after = read(out / "0.0.tif"), read(out / "0.45.tif")
    assert (after[best < 45] == 0).all()
    assert (after[best > 45] == before[best > 45]).all()
    assert 0 < result.pixels["unclassified" if background is None else "background"] < before.size


@pytest.mark.slow
def test_260_classes_are_uint16(out, tiny_model):
    classes = tuple((f"class {index}",) for index in range(1, 261))
    image = blocks(3, 20, 30)
    image[:, 0, 0] = 0
    source = write_scene(out.parent / "small.tif", image, nodata=0)
    outputs = (out / "map.tif", out / "map.gpkg", out / "map.png")
    result = segment(source, options_for(tiny_model, *outputs, classes=classes))
    with rasterio.open(out / "map.tif") as src:
        assert (src.dtypes[0], src.nodata) == ("uint16", 65535)
        values = src.read(1)
    assert values[0, 0] == 65535
    assert values[values < 65535].max() <= 260
    assert category_names(out / "map.tif")[260] == "class 260"
    assert len(result.pixels) == 261
    assert sum(result.pixels.values()) == values.size - 1


def test_probabilities_are_percents_with_a_named_band_per_class(out, source, tiny_model):
    segment(source, options_for(tiny_model, out / "map.tif", probabilities=str(out / "p.tif")))
    with rasterio.open(out / "p.tif") as src:
        percents = src.read()
        assert src.descriptions == tuple(NAMES)
        assert (src.dtypes[0], src.nodata, src.crs.to_epsg()) == ("uint8", 255, 32633)
        assert json.loads(src.tags()["SEGEARTH_MODEL"])["name"] == "tiny"
    # a class takes its best synonym's share: "roof" beside "building" leaves something over
    total = percents.sum(axis=0, dtype=int)
    assert 50 < total.min() <= total.max() <= 102
    best = percents.max(axis=0)
    assert (np.take_along_axis(percents, read(out / "map.tif")[None], 0)[0] == best).all()


def test_probabilities_alone_are_an_output(out, source, tiny_model):
    options = options_for(
        tiny_model, probabilities=str(out / "p.tif"), classes=(("a",), ("b",)), background=None
    )
    assert segment(source, options).outputs == (str(out / "p.tif"),)
    with rasterio.open(out / "p.tif") as src:
        assert src.descriptions == ("a", "b")
        total = src.read().sum(axis=0, dtype=int)
    assert total.min() >= 99
    assert total.max() <= 101


def test_creation_options_reach_gdal_and_unknown_ones_are_refused(out, source, tiny_model):
    pairs = (("COMPRESS", "LZW"), ("blocksize", "128"))
    segment(source, options_for(tiny_model, out / "map.tif", creation_options=pairs))
    with rasterio.open(out / "map.tif") as src:
        assert (src.profile["compress"], src.block_shapes) == ("lzw", [(128, 128)])
    wrong = options_for(tiny_model, out / "no.tif", creation_options=(("TILED", "YES"),))
    with pytest.raises(UsageError, match=r"--co: .*TILED"):
        segment(source, wrong)
    assert not (out / "no.tif").exists()


def test_min_area_leaves_no_smaller_patch(out, source, tiny_model):
    def smallest(**more):
        outputs = (out / "map.gpkg", out / "map.tif")
        result = segment(source, options_for(tiny_model, *outputs, overwrite=True, **more))
        frame = read_vector(out / "map.gpkg")
        assert frame.area_m2.sum() == pytest.approx(
            PIXEL_M2 * sum(count for name, count in result.pixels.items() if name != "background")
        )
        return frame.area_m2.min()

    assert smallest() < 100 <= smallest(min_area=100.0)


# --- polygons ----------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_polygons_can_be_read_back_and_cover_the_pixels(out, source, tiny_model, suffix):
    result = segment(source, options_for(tiny_model, out / f"map{suffix}"))
    frame = read_vector(out / f"map{suffix}")
    assert list(frame.columns) == [
        "class_id",
        "class_name",
        "area_m2",
        "confidence",
        "source",
        "geometry",
    ]
    in_degrees = suffix in (".geojson", ".geojsonl")
    assert frame.crs.to_epsg() == (4326 if in_degrees else 32633)
    assert set(frame.class_name) <= set(NAMES[1:])
    assert (frame.class_name == [NAMES[value] for value in frame.class_id]).all()
    assert set(frame.source) == {source}
    assert frame.confidence.between(0.2, 1).all()
    for name, area in frame.groupby("class_name").area_m2.sum().items():
        assert area == pytest.approx(result.area_m2[name], rel=1e-6)
    if not in_degrees:
        assert frame.area.to_numpy() == pytest.approx(frame.area_m2.to_numpy())


def test_polygons_lie_on_the_rasters_pixels_with_their_mean_confidence(out, source, tiny_model):
    percents = out / "p.tif"
    outputs = (out / "map.tif", out / "map.gpkg")
    segment(source, options_for(tiny_model, *outputs, probabilities=str(percents)))
    values = read(out / "map.tif")
    frame = read_vector(out / "map.gpkg")
    pairs = zip(frame.geometry, frame.class_id, strict=True)
    drawn = rasterio.features.rasterize(pairs, values.shape, transform=UTM["transform"])
    assert (drawn == values).all()
    with rasterio.open(percents) as src:
        best = src.read().max(axis=0)
    largest = frame.loc[frame.area_m2.idxmax()]
    inside = rasterio.features.geometry_mask(
        [largest.geometry], values.shape, UTM["transform"], invert=True
    )
    assert largest.confidence == pytest.approx(best[inside].mean() / 100, abs=1e-3)


def test_simplified_polygons_have_fewer_vertices_and_do_not_overlap(out, source, tiny_model):
    for name, metres in (("exact", 0.0), ("simple", 4.0)):
        segment(source, options_for(tiny_model, out / f"{name}.gpkg", simplify=metres))
    exact, simple = (read_vector(out / f"{name}.gpkg") for name in ("exact", "simple"))
    vertices = [shapely.get_num_coordinates(frame.geometry).sum() for frame in (exact, simple)]
    assert vertices[1] < 0.7 * vertices[0]
    assert simple.geometry.is_valid.all()
    assert simple.union_all().area == pytest.approx(simple.area.sum(), rel=1e-9)


def test_the_geopackage_carries_its_style(out, source, tiny_model):
    segment(source, options_for(tiny_model, out / "map.gpkg"))
    with sqlite3.connect(out / "map.gpkg") as database:
        ((table, qml, default),) = database.execute(
            "SELECT f_table_name, styleQML, useAsDefault FROM layer_styles"
        )
    assert (table, default) == ("map", 1)
    assert all(name in qml for name in NAMES[1:])


def test_outputs_of_every_kind_at_once(out, source, tiny_model):
    names = [f"map{suffix}" for suffix in (".tif", ".png", *SUFFIXES)]
    result = segment(source, options_for(tiny_model, *(out / name for name in names)))
    assert result.outputs == tuple(str(out / name) for name in names)
    parts = [f"map{suffix}" for suffix in (".cpg", ".dbf", ".prj", ".shx", ".tif.aux.xml")]
    parts += [f"map{suffix}.segearth.json" for suffix in (".geojsonl", ".shp")]
    assert names_in(out) == sorted(names + parts)


# --- where scenes lie --------------------------------------------------------------------------


def test_a_rotated_grid_stays_rotated(out, tiny_model):
    transform = Affine(1.6, 1.2, 500_000, 1.2, -1.6, 5_400_000)
    source = write_scene(out.parent / "rotated.tif", transform=transform)
    result = segment(source, options_for(tiny_model, out / "map.tif", out / "map.gpkg"))
    with rasterio.open(out / "map.tif") as src:
        assert src.transform.almost_equals(transform)
    frame = read_vector(out / "map.gpkg")
    assert sum(result.pixels.values()) == 13_000
    pairs = zip(frame.geometry, frame.class_id, strict=True)
    drawn = rasterio.features.rasterize(pairs, (100, 130), transform=transform)
    assert (drawn != read(out / "map.tif")).mean() < 0.001


def test_a_scene_with_gcps_alone_keeps_them(out, tiny_model):
    corners = [(0, 0), (0, 130), (100, 0), (100, 130)]
    gcps = [GroundControlPoint(r, c, 500_000 + 2 * c, 5_400_000 - 2 * r) for r, c in corners]
    source = write_scene(out.parent / "gcps.tif", transform=Affine.identity(), gcps=gcps)
    result = segment(source, options_for(tiny_model, out / "map.tif", out / "map.gpkg"))
    with rasterio.open(out / "map.tif") as src:
        points, crs = src.gcps
        assert crs.to_epsg() == 32633
        assert sorted((p.row, p.col) for p in points) == corners
    frame = read_vector(out / "map.gpkg")
    left, bottom, right, top = frame.total_bounds
    assert 500_000 - 1e-3 <= left < right <= 500_260 + 1e-3
    assert 5_399_800 - 1e-3 <= bottom < top <= 5_400_000 + 1e-3
    assert frame.area_m2.sum() == pytest.approx(
        sum(area for name, area in result.area_m2.items() if name != "background"), rel=1e-6
    )


def test_a_scene_without_crs_works_in_pixels_and_says_so(out, tiny_model, caplog):
    source = write_scene(out.parent / "plain.tif", crs=None, transform=Affine.identity())
    outputs = (out / "map.tif", out / "map.gpkg", out / "map.png")
    options = options_for(tiny_model, *outputs, min_area=9.0)
    result = segment(source, options)
    said = caplog.messages
    assert f"{source} has no coordinate system: --min-area 9 means pixels" in said
    assert not any("--src-crs" in message for message in said)  # it would have no place
    caplog.clear()
    plan(source, options_for(tiny_model, out / "other.gpkg", min_area=9.0, simplify=2.0))
    assert {message for message in said if "map." not in message} < set(caplog.messages)
    assert f"{source} has no coordinate system: --simplify 2 means pixels" in caplog.messages
    assert set(result.area_m2.values()) == {None}
    with rasterio.open(out / "map.tif") as src:
        assert src.crs is None
        assert src.transform.is_identity
    frame = read_vector(out / "map.gpkg")
    assert frame.crs is None or not frame.crs.is_projected
    assert frame.area_m2.isna().all()
    assert frame.area.min() >= 9


def test_areas_in_degrees_are_those_of_the_ellipsoid(out, tiny_model):
    source = write_scene(out.parent / "degrees.tif", **DEGREES)
    result = segment(source, options_for(tiny_model, out / "map.gpkg"))
    frame = read_vector(out / "map.gpkg")
    geod = Geod(ellps="WGS84")
    fine = frame.segmentize(1e-5).geometry  # a parallel is no straight line on the ground
    expected = [abs(geod.geometry_area_perimeter(polygon)[0]) for polygon in fine]
    assert frame.area_m2.to_numpy() == pytest.approx(np.array(expected), rel=1e-6)
    found = sum(area for name, area in result.area_m2.items() if name != "background")
    assert found == pytest.approx(sum(expected), rel=1e-6)


@pytest.mark.parametrize(
    ("crs", "transform"),
    [
        ("EPSG:4326", Affine(0.1, 0, 10, 0, -0.13, 71)),
        ("EPSG:3857", Affine(1e4, 0, 1e6, 0, -3e4, 11e6)),
        ("EPSG:3413", Affine(2e4, 0, 0, 0, -2e4, 0)),
        ("ESRI:54008", Affine(3e3, 0, 6e6, 0, -3e3, 5.5e6)),  # sinusoidal
        ("ESRI:54009", Affine(3e3, 0, 6e6, 0, -3e3, 5.5e6)),  # Mollweide
    ],
)
def test_areas_of_large_scenes_follow_the_size_of_their_pixels(out, tiny_model, crs, transform):
    place = {"crs": crs, "transform": transform}
    source = write_scene(out.parent / "large.tif", blocks(), **place)
    result = segment(source, options_for(tiny_model, out / "map.gpkg"))
    drawn = read_vector(out / "map.gpkg").groupby("class_name").area_m2.sum()
    assert len(drawn) > 1
    for name, area in drawn.items():
        assert result.area_m2[name] == pytest.approx(area, rel=0.01)


def test_gsd_resamples_in_metres(out, source, tiny_model):
    result = segment(source, options_for(tiny_model, out / "map.tif", gsd=4.0))
    with rasterio.open(out / "map.tif") as src:
        assert src.shape == (50, 65)
        assert src.res == (4, 4)
    assert sum(result.area_m2.values()) == pytest.approx(13_000 * PIXEL_M2)


def test_bbox_in_the_scenes_and_in_other_coordinates(out, source, tiny_model):
    box = (500_020.0, 5_399_900.0, 500_120.0, 5_399_980.0)
    segment(source, options_for(tiny_model, out / "own.tif", bbox=box))
    with rasterio.open(out / "own.tif") as src:
        assert tuple(src.bounds) == box
    degrees = rasterio.warp.transform_bounds("EPSG:32633", "EPSG:4326", *box)
    more = {"bbox": degrees, "bbox_crs": "EPSG:4326"}
    segment(source, options_for(tiny_model, out / "degrees.tif", **more))
    with rasterio.open(out / "degrees.tif") as src:
        assert np.abs(np.subtract(src.bounds, box)).max() <= 2  # a pixel
    with pytest.raises(SceneError, match=r"does not touch the scene.*500000,5399800"):
        segment(source, options_for(tiny_model, out / "x.tif", bbox=(1.0, 2.0, 3.0, 4.0)))
    far = {"bbox": (500_000.0, 5_399_990.0, 500_010.0, 5_400_000.0), "dst_crs": "EPSG:4326"}
    with pytest.raises(SceneError, match="for a box in metres say --bbox-crs"):
        segment(source, options_for(tiny_model, out / "x.tif", **far))


def test_aoi_leaves_the_rest_nodata(out, source, tiny_model):
    circle = shapely.Point(500_100, 5_399_900).buffer(50)
    aoi = out.parent / "aoi.geojson"
    geopandas.GeoSeries([circle], crs="EPSG:32633").to_crs(4326).to_file(aoi)
    options = options_for(tiny_model, out / "map.tif", out / "map.gpkg", aoi=str(aoi))
    result = segment(source, options)
    values = read(out / "map.tif")
    assert values.shape == pytest.approx((50, 50), abs=2)
    assert values[0, 0] == 255
    assert sum(result.area_m2.values()) == pytest.approx(circle.area, rel=0.02)
    frame = read_vector(out / "map.gpkg")
    assert circle.buffer(3).covers(frame.union_all())


def test_a_map_that_is_given_as_a_scene_is_told(out, source, tiny_model, caplog):
    segment(source, options_for(tiny_model, out / "map.tif"))
    assert "is a map" not in caplog.text
    segment(str(out / "map.tif"), options_for(tiny_model, out / "again.tif"))
    assert "map.tif is a map that segearth made, and is read as an image" in caplog.text
    with rasterio.open(source, "r+") as src:
        src.update_tags(CLASSES="a,b")
    segment(source, options_for(tiny_model, out / "labels.tif"))
    assert "names classes of its values, and is read as an image" in caplog.text


def test_dst_crs_warps_the_scene_first(out, source, tiny_model):
    segment(source, options_for(tiny_model, out / "map.tif", dst_crs="EPSG:3857"))
    with rasterio.open(out / "map.tif") as src:
        assert src.crs.to_epsg() == 3857
        bounds = rasterio.warp.transform_bounds(src.crs, "EPSG:32633", *src.bounds)
    assert np.abs(np.subtract(bounds, (500_000, 5_399_800, 500_260, 5_400_000))).max() < 6


# --- odd scenes --------------------------------------------------------------------------------


def test_a_scene_without_data_gives_an_empty_map(out, tiny_model):
    source = write_scene(out.parent / "void.tif", np.zeros((3, 70, 90), np.uint8), nodata=0)
    outputs = (out / "map.tif", out / "map.gpkg", out / "map.geojson", out / "map.png")
    result = segment(source, options_for(tiny_model, *outputs))
    assert (read(out / "map.tif") == 255).all()
    assert (result.nodata_pixels, set(result.pixels.values())) == (6300, {0})
    assert len(read_vector(out / "map.gpkg")) == 0
    assert json.loads((out / "map.geojson").read_text())["features"] == []


@pytest.mark.parametrize("shape", [(1, 90), (90, 1), (1, 1)])
def test_a_row_a_column_and_a_pixel(out, tiny_model, shape):
    source = write_scene(out.parent / "thin.tif", blocks(3, *shape))
    outputs = (out / "map.tif", out / "map.gpkg", out / "map.png")
    result = segment(source, options_for(tiny_model, *outputs))
    assert read(out / "map.tif").shape == shape
    assert sum(result.pixels.values()) == max(shape)
    found = sum(area for name, area in result.area_m2.items() if name != "background")
    assert read_vector(out / "map.gpkg").area_m2.sum() == found


def test_16_bits_and_floats_with_nan(out, tiny_model):
    image = blocks().astype(np.float32) / 255
    image[:, :10, :10] = np.nan
    for name, array in (("u16", blocks().astype(np.uint16) * 200), ("nan", image)):
        source = write_scene(out.parent / f"{name}.tif", array)
        segment(source, options_for(tiny_model, out / f"{name}.tif"))
    assert (read(out / "u16.tif") < 255).all()
    values = read(out / "nan.tif")
    assert (values[:10, :10] == 255).all()
    assert (values == 255).sum() == 100


def test_names_with_spaces_and_accents(out, tiny_model):
    source = write_scene(out.parent / "Bärlauch am Fluß 水.tif")
    names = ["Karte für QGIS 地图.gpkg", "Karte für QGIS 地图.tif"]
    classes = (("Straße",), ("水", "water"))
    segment(source, options_for(tiny_model, *(out / name for name in names), classes=classes))
    frame = read_vector(out / names[0])
    assert set(frame.class_name) == {"Straße", "水"}
    assert set(frame.source) == {source}
    assert category_names(out / names[1]) == ["background", "Straße", "水"]


# --- outputs whole or not at all ---------------------------------------------------------------


def test_an_existing_output_is_refused_before_any_work(out, source, tiny_model):
    (out / "map.gpkg").write_text("mine")
    options = options_for(tiny_model, out / "new.tif", out / "map.gpkg")
    with pytest.raises(OutputError, match=r"map.gpkg exists; use --overwrite"):
        segment("no such scene.tif", options)
    assert names_in(out) == ["map.gpkg"]
    segment(source, options_for(tiny_model, out / "map.gpkg", overwrite=True))
    assert len(read_vector(out / "map.gpkg")) > 0


def test_the_scene_itself_is_never_overwritten(out, source, tiny_model):
    link = out / "link.tif"
    link.symlink_to(source)
    before = open(source, "rb").read()
    for name in (source, link):
        with pytest.raises(OutputError, match="is to be read"):
            segment(source, options_for(tiny_model, name, overwrite=True))
    assert open(source, "rb").read() == before


def test_what_the_scene_is_made_of_is_never_overwritten(out, source, tiny_model):
    area = out / "area.gpkg"
    outline = shapely.box(500_000, 5_399_800, 500_100, 5_400_000)
    geopandas.GeoDataFrame(geometry=[outline], crs="EPSG:32633").to_file(area)
    mosaic = out / "mosaic.vrt"
    rasterio.shutil.copy(source, mosaic, driver="VRT")
    for name, output, more in (
        (f"vrt://{source}?srcwin=0,0,50,50", source, {}),
        (mosaic, source, {}),
        (source, area, {"aoi": str(area)}),
        (source, area, {"aoi": f"{area}|layername=area"}),
    ):
        before = Path(output).read_bytes()
        with pytest.raises(OutputError, match="is to be read"):
            segment(str(name), options_for(tiny_model, output, overwrite=True, **more))
        assert Path(output).read_bytes() == before


def test_a_file_that_appears_meanwhile_is_not_replaced(out, source, tiny_model, monkeypatch):
    made = out / "map.gpkg"

    def write(*args):
        made.write_text("mine")
        return write_outputs(*args)

    monkeypatch.setattr("segearth_cli.segment.write_outputs", write)
    with pytest.raises(OutputError, match=r"map\.gpkg exists; use --overwrite"):
        segment(source, options_for(tiny_model, made))
    assert made.read_text() == "mine"
    assert names_in(out) == ["map.gpkg"]
    segment(source, options_for(tiny_model, made, overwrite=True))
    assert len(read_vector(made)) > 0


def test_missing_folders_are_made_and_go_again_when_nothing_comes(out, source, tiny_model):
    segment(source, options_for(tiny_model, out / "a" / "b" / "map.gpkg"))
    assert names_in(out) == ["a", "a/b", "a/b/map.gpkg"]
    whole = open(source, "rb").read()
    cut = out.parent / "cut.tif"
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SceneError, match="cut short"):
        segment(str(cut), options_for(tiny_model, out / "c" / "d" / "map.gpkg", out / "e.tif"))
    assert names_in(out) == ["a", "a/b", "a/b/map.gpkg"]


@pytest.mark.parametrize("keep", ["an old map", None])
def test_a_failure_in_the_last_output_leaves_everything_as_it_was(out, tiny_model, keep):
    local = 'LOCAL_CS["site",UNIT["metre",1]]'  # has no longitude and latitude for GeoJSON
    source = write_scene(out.parent / "site.tif", crs=local)
    outputs = (out / "map.tif", out / "map.geojson")
    if keep:
        outputs[0].write_text(keep)
    with pytest.raises(OutputError, match=r"write \.gpkg instead"):
        segment(source, options_for(tiny_model, *outputs, overwrite=True))
    assert names_in(out) == (["map.tif"] if keep else [])
    assert not keep or outputs[0].read_text() == keep


def test_folders_that_cannot_be(out, source, tiny_model):
    (out / "file").write_text("")
    for name in ("file/map.gpkg", "file/below/map.gpkg"):
        with pytest.raises(OutputError, match="it or a folder above it is a file"):
            segment(source, options_for(tiny_model, out / name))
    (out / "map.gpkg").mkdir()
    with pytest.raises(OutputError, match="is a folder; name a file in it"):
        segment(source, options_for(tiny_model, out / "map.gpkg", overwrite=True))
    with pytest.raises(OutputError, match="File name too long"):
        segment(source, options_for(tiny_model, out / ("x" * 300) / "map.gpkg"))
    assert names_in(out) == ["file", "map.gpkg"]


@pytest.fixture
def small_disk(tmp_path, request):
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={request.param}", "none", str(folder)]
    if not hasattr(os, "geteuid") or os.geteuid() != 0 or subprocess.run(command).returncode:
        pytest.skip("needs the right to mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize(
    ("small_disk", "name"),
    [("8k", "map.tif"), ("64k", "map.gpkg"), ("24k", "map.shp"), ("24k", "map.geojson")],
    indirect=["small_disk"],
)
def test_a_full_disk_is_one_line_and_leaves_nothing(small_disk, source, tiny_model, name):
    with pytest.raises(OutputError, match="disk is full") as caught:
        segment(source, options_for(tiny_model, small_disk / name))
    assert "\n" not in str(caught.value)
    assert names_in(small_disk) == []


# --- options and models ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"stretch": "2;98"}, "--stretch is '2;98'; give auto"),
        ({"bands": ("9",)}, "no band '9'; it has bands 1 to 3"),
        ({"bands": ("1", "2")}, "--bands names 2 bands; give one"),
        ({"dst_crs": "EPSG:nope"}, "--dst-crs is 'EPSG:nope'"),
        ({"bbox": (0.0, 0.0, 1.0, 1.0), "bbox_crs": "x"}, "--bbox-crs is 'x'"),
        ({"aoi": "nowhere.gpkg"}, r"cannot read --aoi nowhere\.gpkg"),
        ({"classes": (("road",), ("Road",))}, "'road' is named twice"),
        ({"classes": (("clutter",),)}, "the only class is the background"),
        ({"stride": 100}, "stride of 100 pixels skips pixels between windows of 64"),
        ({"modulated_blocks": 9}, "--modulated-blocks is 9, and tiny has 2 blocks"),
        ({"upsampler": "nowhere.ckpt"}, r"no upsampler at nowhere\.ckpt"),
        ({"precision": "fp16"}, "--precision fp16 needs a GPU"),
        ({"device": "cuda:99"}, "--device cuda:99: torch finds no such device"),
        ({"device": "gpu"}, "--device 'gpu' is no device"),
        ({"gsd": 1e-7}, "would make more than 100 x 100 pixels of each pixel"),
    ],
)
def test_what_cannot_be_followed_is_one_line_and_writes_nothing(
    out, source, tiny_model, more, message
):
    with pytest.raises(SegEarthError, match=message) as caught:
        segment(source, options_for(tiny_model, out / "new" / "map.gpkg", **more))
    assert "\n" not in str(caught.value)
    assert names_in(out) == []


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("segearth.json", "has no segearth.json"),
        ("open_clip_config.json", "has no open_clip_config.json"),
        ("open_clip_model.safetensors", "has no open_clip_model.safetensors"),
    ],
)
def test_a_model_folder_with_a_part_missing(out, source, tiny_model, missing, message):
    folder = out.parent / "model"
    folder.mkdir()
    for file in tiny_model.iterdir():
        if file.name != missing:
            (folder / file.name).symlink_to(file)
    with pytest.raises(ModelError, match=message):
        segment(source, options_for(folder, out / "map.gpkg"))
    assert names_in(out) == []


def test_a_plan_is_what_happens_and_writes_nothing(out, source, tiny_model):
    options = options_for(tiny_model, out / "new" / "map.gpkg", gsd=4.0)
    expected = plan(source, options)
    assert names_in(out) == []
    assert (expected.width, expected.height, expected.gsd_m) == (65, 50, 4)
    assert (expected.window, expected.stride, expected.windows) == (64, 32, 2)
    assert expected.crs == "EPSG:32633"
    assert expected.classes == dict(enumerate(NAMES))
    assert expected.outputs == options.outputs
    result = segment(source, options)
    assert sum(result.pixels.values()) == 65 * 50
    assert list(result.pixels) == list(expected.classes.values())

"""The STAC Item beside a map: what a catalogue needs, in the spelling of the extensions."""

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio import CRS, Affine
from rasterio.control import GroundControlPoint
from scenes import blocks, names_in, options_for, read, write_scene
from shapely.geometry import shape
from typer.testing import CliRunner

from segearth_cli.batch import segment_all
from segearth_cli.cli import app
from segearth_cli.errors import UsageError
from segearth_cli.geo.grid import Grid
from segearth_cli.geo.recorded import read_record
from segearth_cli.info import map_info
from segearth_cli.inputs import Input, expand_inputs
from segearth_cli.options import BatchOptions
from segearth_cli.segment import segment
from segearth_cli.stac import footprint, parse_time


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    write_scene(Path("in/scene.tif"))
    return tmp_path


def item_of(tiny_model, source="in/scene.tif", outputs=("maps/map.tif",), **more):
    options = options_for(tiny_model, *outputs, stac=True, **more)
    result = segment(source, options)
    return json.loads(Path(result.outputs[-1]).read_text(encoding="utf-8"))


def test_the_item_names_files_place_time_and_classes(place, tiny_model):
    outputs = ("maps/map.tif", "maps/map.gpkg", "other/map.geojson", "maps/map.png")
    more = {"acquired": "2024-05-06T09:08:07+02:00", "probabilities": "maps/p.tif"}
    item = item_of(tiny_model, outputs=outputs, **more)
    assert names_in(place / "maps") == [
        "map.gpkg",
        "map.png",
        "map.stac.json",
        "map.tif",
        "map.tif.aux.xml",
        "p.tif",
    ]
    assert (item["type"], item["stac_version"], item["id"]) == ("Feature", "1.1.0", "map")
    assert any("classification/v2.0.0" in url for url in item["stac_extensions"])
    properties = item["properties"]
    assert properties["datetime"] == "2024-05-06T07:08:07Z"
    assert properties["proj:code"] == "EPSG:32633"
    assert properties["proj:shape"] == [100, 130]
    assert properties["proj:transform"] == [2, 0, 500_000, 0, -2, 5_400_000]
    assert properties["gsd"] == 2
    assert item["links"] == [{"rel": "derived_from", "href": "../in/scene.tif"}]
    hrefs = {key: asset["href"] for key, asset in item["assets"].items()}
    assert hrefs == {
        "classes": "./map.tif",
        "polygons": "./map.gpkg",
        "polygons-2": "../other/map.geojson",
        "preview": "./map.png",
        "probabilities": "./p.tif",
    }
    assert all((place / "maps" / href).is_file() for href in hrefs.values())
    listed = item["assets"]["classes"]["classification:classes"]
    assert [c["title"] for c in listed] == ["background", "building", "road", "water", "no data"]
    assert [c["count"] for c in listed[:4]] == np.bincount(
        read("maps/map.tif").ravel(), minlength=4
    ).tolist()
    with rasterio.open("maps/map.tif") as src:
        colours = src.colormap(1)
    for entry in listed[:4]:
        red, green, blue = (int(entry["color_hint"][i : i + 2], 16) for i in (0, 2, 4))
        assert colours[entry["value"]] == (red, green, blue, 255)
    polygons = item["assets"]["polygons"]["classification:classes"]
    assert [c["value"] for c in polygons] == [1, 2, 3]


def test_a_file_with_quotes_in_its_name_is_found(place, tiny_model):
    item = item_of(tiny_model, outputs=('maps/a"b.gpkg',))
    assert item["assets"]["polygons"]["href"] == "./a%22b.gpkg"


def test_the_footprint_is_that_of_the_raster_against_the_clock(place, tiny_model):
    item = item_of(tiny_model)
    outline = shape(item["geometry"])
    assert outline.exterior.is_ccw
    with rasterio.open("in/scene.tif") as src:
        bounds = rasterio.warp.transform_bounds(src.crs, "EPSG:4326", *src.bounds)
    assert item["bbox"] == pytest.approx(bounds, abs=1e-6)
    assert outline.bounds == pytest.approx(tuple(item["bbox"]))


def test_across_the_antimeridian_it_is_cut(place, tiny_model):
    grid = {"crs": "EPSG:32601", "transform": Affine(2000, 0, 100_000, 0, -2000, 100_000)}
    source = write_scene(Path("in/fiji.tif"), **grid)
    item = item_of(tiny_model, source)
    parts = shape(item["geometry"])
    assert parts.geom_type == "MultiPolygon"
    assert all(part.is_valid and part.exterior.is_ccw for part in parts.geoms)
    west, _, east, _ = item["bbox"]
    assert 179 < west < 180
    assert -180 < east < -175


@pytest.mark.parametrize(
    ("crs", "transform", "kind", "bbox"),
    [
        ("EPSG:4326", Affine(6, 0, -180, 0, -4, 100), "Polygon", [-180, -90, 180, 90]),
        ("EPSG:4326", Affine(6, 0, 0, 0, -3, 75), "Polygon", [-180, -75, 180, 75]),
        ("EPSG:4326", Affine(0.1, 0, 177, 0, -0.1, 5), "MultiPolygon", [177, 0, -177, 5]),
        ("EPSG:4326", Affine(0.1, 0, -183, 0, -0.1, 5), "MultiPolygon", [177, 0, -177, 5]),
        ("EPSG:4326", Affine(0.1, 0, 180, 0, -0.1, 5), "Polygon", [-180, 0, -174, 5]),
        ("EPSG:4326", Affine(0.1, 0, 174 + 1e-7, 0, -0.1, 5), "Polygon", [174, 0, 180, 5]),
        ("EPSG:3413", Affine(1e5, 0, -3e6, 0, -1e5, 25e5), "Polygon", [-180, 54.9, 180, 90]),
        ("EPSG:6931", Affine(3e5, 0, -9e6, 0, -3e5, 75e5), "Polygon", [-180, -44, 180, 90]),
        ("EPSG:3031", Affine(1e5, 0, -3e6, 0, -1e5, 25e5), "Polygon", [-180, -90, 180, -55.1]),
    ],
)
def test_footprints_around_the_earth_a_pole_and_the_antimeridian(crs, transform, kind, bbox):
    geometry, box = footprint(Grid(60, 50, transform, CRS.from_string(crs)))
    assert geometry["type"] == kind
    assert shape(geometry).is_valid
    assert box == pytest.approx(bbox, abs=0.2)
    west, south, east, north = shape(geometry).bounds
    assert (south, north) == (box[1], box[3])
    assert -180 <= west < east <= 180


@pytest.mark.parametrize("kind", ["none", "gcps", "site"])
def test_scenes_without_a_usual_place(place, tiny_model, kind, caplog):
    gcps = [
        GroundControlPoint(row=r, col=c, x=15 + c / 1e4, y=48 - r / 1e4)
        for r in (0, 100)
        for c in (0, 130)
    ]
    grids = {
        "none": {"crs": None},
        "site": {"crs": 'LOCAL_CS["site",UNIT["metre",1]]'},
        "gcps": {"crs": "EPSG:4326", "gcps": gcps, "transform": Affine.identity()},
    }
    item = item_of(tiny_model, write_scene(Path("in/odd.tif"), **grids[kind]))
    if kind == "gcps":
        assert item["bbox"] == pytest.approx([15, 47.99, 15.013, 48])
        assert "proj:transform" not in item["properties"]
    else:
        assert (item["geometry"], "bbox" in item) == (None, False)
        assert "no place on Earth" in caplog.text


def test_an_unknown_time_is_an_open_interval_and_said(place, tiny_model, caplog):
    properties = item_of(tiny_model)["properties"]
    assert properties["datetime"] is None
    assert properties["start_datetime"] < "0002"
    assert properties["end_datetime"] > "9998"
    assert "say it with --datetime" in caplog.text


def test_names_of_classes_become_what_the_extension_allows(place, tiny_model):
    classes = (("Straße",), ("water!",), ("water?",), ("🌳",), ("a'b; DROP",))
    item = item_of(tiny_model, classes=classes)
    listed = item["assets"]["classes"]["classification:classes"]
    assert [c["title"] for c in listed[1:-1]] == [words[0] for words in classes]
    names = [c["name"] for c in listed]
    assert all(re.fullmatch("[0-9A-Za-z_-]+", name) for name in names)
    assert len(set(names)) == len(names)


def test_the_item_says_how_the_map_was_made_and_is_resumed(place, tiny_model):
    options = options_for(tiny_model, "maps/{stem}.gpkg", stac=True)
    scene = Input("in/scene.tif", "S2", acquired="2024-05-06T07:08:09Z")
    resume = BatchOptions(resume=True)
    list(segment_all([scene], options, resume))
    path = Path("maps/S2.stac.json")
    assert json.loads(path.read_text())["properties"]["datetime"] == "2024-05-06T07:08:09Z"
    assert read_record(path) == read_record(Path("maps/S2.gpkg"))
    before = path.stat().st_mtime_ns
    list(segment_all([scene], options, resume))
    assert path.stat().st_mtime_ns == before
    later = replace(options, acquired="2025-01-02")
    list(segment_all([scene], later, resume))
    assert json.loads(path.read_text())["properties"]["datetime"] == "2025-01-02T00:00:00Z"
    options, before = later, path.stat().st_mtime_ns
    path.unlink()
    list(segment_all([scene], options, resume))
    assert path.is_file()


@pytest.mark.parametrize(
    ("in_collection", "self", "origin"),
    [
        (False, None, "../in/item.json"),
        (True, None, "../in/scene.tif"),
        (True, "./scene.json", "../in/scene.tif"),
        (True, "https://me:secret@host/S2.json?key=1", "https://host/S2.json"),
    ],
)
def test_a_map_comes_from_the_item_of_its_scene(place, tiny_model, in_collection, self, origin):
    asset = {"href": "scene.tif", "type": "image/tiff"}
    source = {"type": "Feature", "id": "S2", "properties": {}, "assets": {"visual": asset}}
    source["links"] = [{"rel": "parent", "href": "https://host/all"}]
    source["links"] += [{"rel": "self", "href": self}] if self else []
    collection = {"type": "FeatureCollection", "features": [source]}
    Path("in/item.json").write_text(json.dumps(collection if in_collection else source))
    options = options_for(tiny_model, "maps/{stem}.gpkg", stac=True)
    list(segment_all(expand_inputs(["in/item.json"]), options))
    item = json.loads(Path("maps/S2.stac.json").read_text())
    assert item["links"] == [{"rel": "derived_from", "href": origin}]


@pytest.mark.parametrize("taken", ["2024-05-06", "2024-05-01/2024-05-31T12:00:00Z"])
def test_the_command_of_an_item_writes_the_item_again(place, tiny_model, taken):
    outputs = {"outputs": ("a/map.gpkg", "b/map.tif"), "probabilities": "b/p.tif"}
    item = item_of(tiny_model, acquired=taken, **outputs)
    assert (item["properties"]["datetime"] is None) == ("/" in taken)
    _, *words = shlex.split(map_info(Path("a/map.stac.json")).command)
    result = CliRunner().invoke(app, [*words, "--overwrite", "--device", "cpu"])
    assert result.exit_code == 0, result.stderr
    assert json.loads(Path("a/map.stac.json").read_text()) == item


def test_what_cannot_be_described_is_refused(place, tiny_model):
    with pytest.raises(UsageError, match="--stac describes files"):
        options_for(tiny_model, "-", stac=True)
    with pytest.raises(UsageError, match="'soon' is no time"):
        segment("in/scene.tif", options_for(tiny_model, "a.tif", stac=True, acquired="soon"))
    for wrong, why in (("2024/2023", "is no time"), ("2024-05-06/2024-05-05", "ends before it")):
        with pytest.raises(UsageError, match=why):
            parse_time(wrong)


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("2024-05-06", "2024-05-06T00:00:00Z"),
        ("2024-05-06 07:08:09", "2024-05-06T07:08:09Z"),
        ("2024-05-06T07:08:09.250Z", "2024-05-06T07:08:09.250000Z"),
        ("2024-05-06 / 2024-05-07", "2024-05-06T00:00:00Z/2024-05-07T23:59:59Z"),
    ],
)
def test_times_are_in_utc(text, time):
    assert parse_time(text) == time


def test_bands_of_one_scene_do_not_matter_to_its_item(place, tiny_model):
    source = write_scene(Path("in/grey.tif"), blocks(1))
    assert item_of(tiny_model, source)["properties"]["segearth"]["scene"].startswith("optical")

"""What can be named on the command line: folders, tile indexes, STAC items."""

import json
import os
import re
import shutil
from pathlib import Path

import geopandas
import pytest
import rasterio
from rasterio import Affine
from scenes import blocks, names_in, options_for, served, write_scene
from shapely import box
from typer.testing import CliRunner

from segearth_cli.batch import segment_all
from segearth_cli.cli import app
from segearth_cli.errors import SceneError, SegEarthError, UsageError
from segearth_cli.inputs import Input, expand_inputs, safe_name, stem_of
from segearth_cli.names import public_name
from segearth_cli.segment import segment

TAKEN = "2024-05-06T07:08:09Z"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working folder with scenes in folders."""
    (tmp_path / "in" / "deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for name in ("in/b.tif", "in/a.TIF", "in/deep/c.tif"):
        write_scene(Path(name), blocks(1, 40, 50))
    return tmp_path


def sources_of(*names, **more):
    return [found.source for found in expand_inputs(names, **more)]


def item(name, assets, **more):
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": name,
        "geometry": None,
        "properties": {"datetime": TAKEN},
        "assets": assets,
        "links": [],
        **more,
    }


def asset(href, kind="image/tiff; application=geotiff", *roles):
    return {"href": href, "type": kind, "roles": list(roles)}


def write_json(path, document):
    Path(path).write_text(json.dumps(document))
    return str(path)


# --- folders -----------------------------------------------------------------------------------


def test_a_folder_is_the_rasters_in_it_and_below(place):
    Path("in/notes.txt").write_text("")
    Path("in/.hidden").mkdir()
    write_scene(Path("in/.hidden/d.tif"))
    assert sources_of("in") == ["in/a.TIF", "in/b.tif", "in/deep/c.tif"]


def test_maps_in_a_folder_are_no_scenes(place, tiny_model, caplog):
    options = options_for(tiny_model, "in/{stem}_map.tif")
    list(segment_all(expand_inputs(["in"]), options))
    assert "in/a_map.tif" in names_in(place)
    assert sources_of("in") == ["in/a.TIF", "in/b.tif", "in/deep/c.tif"]
    assert "in: left out 3 rasters that segearth made" in caplog.text


def test_what_only_looks_like_a_raster_is_left_out(place):
    Path("in/folder.tif").mkdir()
    Path("in/broken.tif").symlink_to("nowhere.tif")
    shutil.copy("in/b.tif", b"in/na\xefve.tif")
    assert [os.fsencode(source) for source in sources_of("in")] == [
        *(b"in/a.TIF", b"in/b.tif", b"in/deep/c.tif", b"in/na\xefve.tif"),
    ]


@pytest.mark.parametrize("name", ["LC08_L2SP_194026_MTL.txt", "MTD_MSIL2A.xml"])
def test_a_folder_of_a_scene_whose_bands_are_files_is_said_to_be(place, caplog, name):
    folder = Path("product/bands")
    folder.mkdir(parents=True)
    for band in ("B02", "B03"):
        write_scene(folder / f"T32_{band}_10m.tif", blocks(1))
    sources_of("product")
    assert not caplog.records
    Path("product", name).touch()
    assert len(sources_of("product")) == 2
    assert f"{name} tells of a scene whose bands are files" in caplog.text


def test_a_folder_without_scenes_is_one_line(place):
    Path("empty").mkdir()
    with pytest.raises(SceneError, match="empty: it is a folder without scenes"):
        expand_inputs(["empty"])


# --- tile indexes ------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".shp", ".gpkg", ".fgb", ".geojson"])
def test_a_tile_index_names_rasters_from_here_or_from_its_own_folder(place, suffix):
    Path("index").mkdir()
    write_scene(Path("index/d.tif"))
    locations = ["in/b.tif", "d.tif", str(place / "in" / "a.TIF"), "s3://bucket/e.tif"]
    shapes = [box(0, 0, 1, 1)] * len(locations)
    frame = geopandas.GeoDataFrame({"location": locations}, geometry=shapes, crs="EPSG:4326")
    frame.to_file(f"index/tiles{suffix}")
    expected = ["in/b.tif", "index/d.tif", str(place / "in" / "a.TIF"), "s3://bucket/e.tif"]
    assert sources_of(f"index/tiles{suffix}") == expected


def test_polygons_that_are_no_tile_index_are_one_line(place):
    frame = geopandas.GeoDataFrame({"name": ["x"]}, geometry=[box(0, 0, 1, 1)], crs="EPSG:4326")
    for suffix in (".gpkg", ".fgb", ".geojson"):
        frame.to_file(f"fields{suffix}")
        with pytest.raises(SceneError, match=r"no tile index|nor a tile index"):
            expand_inputs([f"fields{suffix}"])


def test_a_geopackage_of_tiles_is_a_raster(place):
    with rasterio.open("in/b.tif") as src:
        profile = {"driver": "GPKG", "width": 50, "height": 40, "count": 1, "dtype": "uint8"}
        with rasterio.open("tiles.gpkg", "w", **profile, crs=src.crs, transform=src.transform) as d:
            d.write(src.read())
    assert sources_of("tiles.gpkg") == ["tiles.gpkg"]


# --- STAC --------------------------------------------------------------------------------------


@pytest.mark.parametrize("href", ["b%20c%231.tif", "b c#1.tif"])
def test_an_href_is_a_uri_or_a_plain_name(place, href):
    write_scene(Path("b c#1.tif"))
    Path("item.json").write_text(json.dumps(item("S2", {"visual": asset(href)})))

    assert sources_of("item.json") == ["b c#1.tif"]


def test_items_are_named_by_their_ids_and_each_keeps_its_own_crs(place, tiny_model):
    Path("cat/S2A").mkdir(parents=True)
    Path("cat/S2B").mkdir(parents=True)
    write_scene(Path("cat/S2A/TCI.tif"))
    write_scene(Path("cat/S2B/TCI.tif"), crs="EPSG:32719", transform=Affine(3, 0, 5e5, 0, -3, 7e6))
    features = [item(name, {"visual": asset(f"./{name}/TCI.tif")}) for name in ("S2A", "S2B")]
    items = write_json("cat/items.json", {"type": "FeatureCollection", "features": features})
    found = expand_inputs([items])
    names = ("S2A", "S2B")
    assert found == [Input(f"cat/{name}/TCI.tif", name, TAKEN) for name in names]
    list(segment_all(found, options_for(tiny_model, "maps/{stem}.tif")))
    for name, crs in (("S2A", "EPSG:32633"), ("S2B", "EPSG:32719")):
        with rasterio.open(f"maps/{name}.tif") as src:
            assert src.crs == crs


@pytest.mark.parametrize(
    ("assets", "wanted", "expected"),
    [
        ({"only": asset("a.tif"), "look": asset("b.tif", "image/tiff", "thumbnail")}, None, "a"),
        ({"red": asset("a.tif"), "visual": asset("b.tif")}, None, "b"),
        ({"red": asset("a.tif"), "nir": asset("b.tif")}, "nir", "b"),
        ({"data": {"href": "a.tif"}, "meta": asset("b.xml", "text/xml")}, None, "a"),
        ({"odd": asset("a.nc", "application/netcdf")}, "odd", "a"),
    ],
)
def test_which_asset_is_read(place, assets, wanted, expected):
    path = write_json("item.json", item("x", assets))
    (found,) = expand_inputs([path], asset=wanted)
    assert Path(found.source).stem == expected


@pytest.mark.parametrize(
    ("said", "taken"),
    [
        (TAKEN, TAKEN),
        ("2024-05-06T09:08:09.5+02:00", "2024-05-06T07:08:09.500000Z"),
        ("yesterday", None),
        (None, "2024-05-01T00:00:00Z/2024-05-31T23:59:59Z"),
    ],
)
def test_when_a_scene_was_taken(place, caplog, said, taken):
    times = {"datetime": said, "start_datetime": "2024-05-01", "end_datetime": "2024-05-31"}
    path = write_json("item.json", item("x", {"only": asset("a.tif")}, properties=times))
    (found,) = expand_inputs([path])
    assert found.acquired == taken
    assert ("has the datetime 'yesterday', which is no time" in caplog.text) == (
        said == "yesterday"
    )


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (item("x", {"red": asset("a.tif"), "nir": asset("b.tif")}), "several rasters.*red, nir"),
        (item("x", {"meta": asset("a.xml", "text/xml")}), "item x has no asset with a raster"),
        ({"type": "Collection", "assets": {}, "links": []}, "is a STAC Collection"),
        ({"type": "Catalog", "links": []}, "holds neither STAC Items"),
        ({"type": "FeatureCollection", "features": []}, "is an empty collection"),
        ({"type": "FeatureCollection", "features": [3]}, "holds neither STAC Items"),
        ({"type": "FeatureCollection"}, "holds neither STAC Items"),
        ([1, 2], "holds neither STAC Items"),
        ("text", "holds neither STAC Items"),
    ],
)
def test_documents_that_name_no_scene_are_one_line(place, document, message):
    with pytest.raises(SegEarthError, match=message):
        expand_inputs([write_json("item.json", document)])


def test_an_asset_that_an_item_lacks_is_one_line(place):
    path = write_json("item.json", item("x", {"red": asset("a.tif")}))
    with pytest.raises(UsageError, match="no asset nir; choose with --asset among red"):
        expand_inputs([path], asset="nir")


def test_items_may_share_a_file_if_their_names_differ(place):
    for name in "xy":
        write_json(f"{name}.json", item(name, {"only": asset("in/b.tif")}))
    found = expand_inputs(["x.json", "y.json"])
    assert [(own.source, own.stem) for own in found] == [("in/b.tif", "x"), ("in/b.tif", "y")]
    with pytest.raises(UsageError, match=r"in/b\.tif is named twice"):
        expand_inputs(["x.json", "x.json"])


def test_damaged_documents_are_one_line(place):
    for content in ("{", "[" * 100_000, "\udcff"):
        Path("item.json").write_text(content, errors="surrogateescape")
        with pytest.raises(SceneError, match="is not JSON"):
            expand_inputs(["item.json"])


def test_a_list_may_be_of_find_print0(place):
    for name in ("a b.tif", "c\nd.tif"):
        write_scene(Path(name))
    assert [i.source for i in expand_inputs(["-"], ["a b.tif\0c\n", "d.tif\0"])] == [
        "a b.tif",
        "c\nd.tif",
    ]
    assert [i.source for i in expand_inputs(["-"], ["a b.tif\n", " e.tif"])] == ["a b.tif", "e.tif"]


def test_further_pages_are_not_left_out_in_silence(place, caplog):
    features = [item("x", {"only": asset("a.tif")})]
    links = [{"rel": "next", "href": "https://host/2"}]
    document = {"type": "FeatureCollection", "features": features, "links": links}
    expand_inputs([write_json("items.json", document)])
    assert "items.json has further pages" in caplog.text


def test_items_on_a_server_name_rasters_beside_them(place, tiny_model):
    write_json("in/item.json", item("far/../away", {"visual": asset("b.tif")}))
    with served(place) as host:
        address = f"{host}/in"
        (found,) = expand_inputs([f"{address}/item.json"])
        own = f"{address}/item.json"
        assert found == Input(f"{address}/b.tif", "far_.._away", TAKEN, own)
        segment(found.source, options_for(tiny_model, "map.gpkg"))
        with pytest.raises(SceneError, match=r"cannot read .*absent\.json: File not found"):
            expand_inputs([f"{address}/absent.json"])
    with pytest.raises(SceneError, match=r"cannot read .*refused"):
        expand_inputs([f"{address}/item.json"])


def test_the_command_takes_them_all(place, tiny_model):
    write_json("item.json", item("S2", {"red": asset("in/b.tif"), "nir": asset("in/a.TIF")}))
    write_scene(Path("more.tif"), blocks(1, 40, 50))
    args = ("--classes", "a", "--model", str(tiny_model), "--device", "cpu", "--asset", "nir")
    out = ("-o", "maps/{stem}.geojson", "-q")
    result = CliRunner().invoke(app, ["segment", "-", *args, *out], input="item.json\nmore.tif\n")
    assert result.exit_code == 0, result.stderr
    assert names_in(place / "maps") == ["S2.geojson", "more.geojson"]


# --- names -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("../../etc/passwd", ".._.._etc_passwd"),
        ("..", "scene"),
        (".", "scene"),
        ("", "scene"),
        ("a\x00b\nc", "a_b_c"),
        ("C:\\x", "C_x"),
        ("$(touch x) `id`", "$(touch x) `id`"),
        ("🌳 Straße", "🌳 Straße"),
    ],
)
def test_a_name_stays_in_its_folder(name, safe):
    assert safe_name(name) == safe
    assert stem_of(f"folder/{safe}.tif") == safe


def test_a_zero_byte_is_one_line():
    with pytest.raises(UsageError, match="zero byte"):
        expand_inputs(["a\0b.tif"])


@pytest.mark.parametrize("folder", ["", "in/", "/in/"])
def test_a_part_of_a_file_is_called_as_the_file(folder):
    assert stem_of(f"vrt://{folder}a b.tif?srcwin=0,0,9,9") == "a b"


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("in/a b?.tif", "in/a b?.tif"),
        ("s3://bucket/key@2/x.tif", "s3://bucket/key@2/x.tif"),
        ("https://user:p@ss@host/x.tif?sig=S", "https://host/x.tif"),
        ("https://host?k=a@b", "https://host"),
        ("/vsicurl/https://user:pw@host/x.tif?sig=S", "/vsicurl/https://host/x.tif"),
        (
            "/vsicurl?max_retry=3&url=https%3A%2F%2Fuser:pw%40host%2Fx.tif%3Fsig=S.E",
            "/vsicurl/https://host/x.tif",
        ),
        (
            "/vsizip/{/vsicurl?url=https%3A%2F%2Fuser:pw%40host%2Fa.zip%3Fsig=S}/x.tif",
            "/vsizip/{/vsicurl/https://host/a.zip}/x.tif",
        ),
        (
            "/vsizip//vsicurl/https://u:pw@host/a.zip/x.tif",
            "/vsizip//vsicurl/https://host/a.zip/x.tif",
        ),
        ("vrt://a b.tif?srcwin=0,0,9,9", "vrt://a b.tif?srcwin=0,0,9,9"),
        ("vrt://https://u:pw@host/x.tif?bands=2", "vrt://https://host/x.tif?bands=2"),
        ('NETCDF:"https://u:pw@host/x.nc?token=1":red', 'NETCDF:"https://host/x.nc":red'),
        (
            'NETCDF:"/vsicurl?url=https%3A%2F%2Fu:pw%40host%2Fx.nc":r',
            'NETCDF:"/vsicurl/https://host/x.nc":r',
        ),
    ],
)
def test_names_do_not_give_away_the_keys_to_a_scene(source, shown):
    assert public_name(source) == shown
    assert not {"pw", "S.E", "user", "token"} & set(re.split(r"[^\w.]", stem_of(source)))


def test_a_list_may_begin_with_a_mark_and_hold_urls_of_files(tmp_path):
    for name in ("a.tif", "s p.tif", "50%25.tif"):
        write_scene(tmp_path / name)
    urls = [(tmp_path / name).as_uri() for name in ("a.tif", "s p.tif")]
    lines = ["\ufeff" + urls[0], urls[1], f"file://{tmp_path}/50%25.tif"]
    found = expand_inputs(["-"], [f"{line}\r\n" for line in lines])
    assert [own.source for own in found] == [
        str(tmp_path / name) for name in ("a.tif", "s p.tif", "50%25.tif")
    ]


def test_a_folder_that_cannot_be_searched_is_said(tmp_path, monkeypatch, caplog):
    write_scene(tmp_path / "a.tif")

    def walk(folder, onerror):
        onerror(PermissionError(13, "Permission denied", f"{folder}{below}"))
        yield str(folder), [], ["a.tif"]

    monkeypatch.setattr("os.walk", walk)
    below = "/lost+found"
    assert [own.stem for own in expand_inputs([str(tmp_path)])] == ["a"]
    assert "lost+found: left out, as it cannot be searched: Permission denied" in caplog.text
    below = ""
    with pytest.raises(SceneError, match=r"cannot search .*: Permission denied"):
        expand_inputs([str(tmp_path)])

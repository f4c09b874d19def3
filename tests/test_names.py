"""Scenes whose bands are files of their own: STAC Items of Landsat, Sentinel-2 and Sentinel-1."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio import Affine
from rasterio.control import GroundControlPoint
from scenes import blocks, options_for, read, served, write_scene
from typer.testing import CliRunner

from segearth_cli.cli import app
from segearth_cli.errors import SceneError, UsageError
from segearth_cli.geo.digest import source_digest
from segearth_cli.geo.raster import open_scene
from segearth_cli.geo.remote import is_remote
from segearth_cli.inputs import expand_inputs
from segearth_cli.names import files_named, public_name, stack_files, stack_name, title_of
from segearth_cli.options import SceneOptions
from segearth_cli.segment import segment

NAMES = ("red", "green", "blue")
NOWHERE = """<VRTDataset rasterXSize="130" rasterYSize="100">
<GeoTransform>0,0,0,0,0,0</GeoTransform><VRTRasterBand dataType="Byte" band="1"/></VRTDataset>"""


def write_item(path, hrefs):
    assets = {name: {"href": href, "type": "image/tiff"} for name, href in hrefs.items()}
    item = {"type": "Feature", "id": "LC09", "properties": {}, "assets": assets, "links": []}
    path.write_text(json.dumps(item))
    return str(path)


def write_bands(folder, image=None, **profile):
    """A file for each band, and their places by name."""
    image = blocks() if image is None else image
    for name, band in zip(NAMES, image, strict=False):
        write_scene(folder / f"{name}.tif", band[None], **profile)
    return {name: f"{name}.tif" for name in NAMES[: len(image)]}


@pytest.fixture
def item(tmp_path, monkeypatch):
    """An Item of three bands in a working folder, beside the same bands in one file."""
    monkeypatch.chdir(tmp_path)
    write_scene(tmp_path / "rgb.tif")
    return write_item(Path("item.json"), write_bands(tmp_path))


def run(*args):
    return CliRunner().invoke(app, [*map(str, args)])


def image_of(source, **options):
    with open_scene(source, SceneOptions(**options)) as scene:
        return scene.read(0, scene.grid.height)


@pytest.mark.parametrize("asset", ["red,green,blue", "blue, red,green"])
def test_bands_of_an_item_give_the_map_of_one_file(item, tiny_model, asset):
    words = ("--classes", "building,road", "--model", tiny_model, "--device", "cpu", "-q")
    whole = run("segment", "rgb.tif", *words, "-o", "rgb_map.tif")
    parts = run("segment", item, "--asset", asset, *words, "-o", "{stem}.tif", "-o", "{stem}.gpkg",
                "-o", "{stem}.png", "--stac")  # fmt: skip
    assert (whole.exit_code, parts.exit_code) == (0, 0), parts.stderr
    assert (read("LC09.tif") == read("rgb_map.tif")).all()
    with rasterio.open("LC09.tif") as made, rasterio.open("rgb_map.tif") as expected:
        assert (made.crs, made.transform) == (expected.crs, expected.transform)

    links = json.loads(Path("LC09.stac.json").read_text())["links"]
    assert [link["href"] for link in links] == [f"./{item}"]
    told = json.loads(run("info", "LC09.gpkg", "--json").stdout)
    names = [name.strip() for name in asset.split(",")]
    assert stack_files(told["source"]) == {name: f"{name}.tif" for name in names}
    assert told["source_digest"]["covers"] == "everything"
    before = read("LC09.tif")
    again = shlex.split(told["command"])
    made = run(*again[1:], "--overwrite")
    assert made.exit_code == 0, made.stderr
    assert (read("LC09.tif") == before).all()


def test_a_batch_goes_on_where_it_stopped_and_replaces_no_band(item, tiny_model):
    words = ("--asset", "red,green,blue", "--classes", "a", "--model", tiny_model, "--json", "-q")
    statuses = []
    for _ in range(2):
        result = run("segment", item, "rgb.tif", *words, "-o", "maps/{stem}.tif", "--resume")
        assert result.exit_code == 0, result.stderr
        statuses += [json.loads(line)["status"] for line in result.stdout.splitlines()]
    assert statuses == ["done", "done", "skipped", "skipped"]
    refused = run("segment", item, *words, "-o", "green.tif", "--overwrite")
    assert refused.exit_code == 1
    assert "green.tif is to be read" in refused.stderr


@pytest.mark.parametrize(
    ("asset", "message"),
    [
        ("red,nir,swir", "no asset nir, swir; choose with --asset among red, green, blue"),
        (None, "several rasters; choose .* red, green, blue .of one band each"),
        ("red,", "--asset 'red,' names nothing, or one asset twice"),
        ("red,red", "names nothing, or one asset twice; try red,green,blue"),
    ],
)
def test_assets_that_an_item_lacks_are_named(item, asset, message):
    with pytest.raises(UsageError, match=message):
        expand_inputs([item], asset=asset)


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        (
            {"transform": Affine(4, 0, 500_000, 0, -4, 5_400_000)},
            "red.tif and green.tif are not on",
        ),
        ({"crs": "EPSG:32634"}, "red.tif and green.tif are not on one grid; put them on one"),
        ({"nodata": 7}, "green.tif have different nodata values: 7.0, None; give them one with"),
        (NOWHERE, "cannot place green.tif: its geotransform"),
        ({"photometric": "palette"}, "green.tif has a colour table: it is no band"),
        (None, "cannot open green.tif: there is no such file"),
    ],
)
def test_bands_that_do_not_fit_are_one_line(item, tiny_model, profile, message):
    Path("green.tif").unlink()
    if isinstance(profile, str):
        Path("green.tif").write_text(profile)
    elif profile is not None:
        write_scene(Path("green.tif"), blocks(1), **profile)
    if profile == {"photometric": "palette"}:
        with rasterio.open("green.tif", "r+") as dst:
            dst.write_colormap(1, {n: (n, 0, 0, 255) for n in range(256)})
    result = run("segment", item, "--asset", "red,green,blue", "--classes", "a", "--model",
                 tiny_model, "-o", "map.tif", "-q")  # fmt: skip
    assert result.exit_code == 1
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not Path("map.tif").exists()


@pytest.mark.parametrize("kind", ["nodata", "mask", "alpha"])
def test_what_the_first_chosen_file_leaves_out_is_left_out(tmp_path, kind):
    image = blocks()
    image[:, 20:40, 30:60] = 0
    hole = image[0] == 0
    files = write_bands(tmp_path, image, **({"nodata": 0} if kind == "nodata" else {}))
    green = tmp_path / "green.tif"
    if kind == "mask":
        with rasterio.open(green, "r+") as dst:
            dst.write_mask(~hole)
    if kind == "alpha":
        both = np.stack([image[1], np.where(hole, 0, 255).astype(np.uint8)])
        write_scene(green, both, photometric="minisblack", alpha="yes")
    source = stack_name({name: str(tmp_path / file) for name, file in files.items()})
    pixels, valid = image_of(source, bands=("green", "red", "blue"))
    assert pixels.shape == image.shape
    assert (valid == ~hole).all()
    warped = image_of(source, bands=("green",), gsd=1.0)[1]
    assert (warped[1::2, 1::2] == ~hole).mean() > 0.99
    assert image_of(source, bands=("red",))[1].all() == (kind != "nodata")


def test_a_scene_is_another_one_when_a_mask_beside_a_band_changes(tmp_path):
    files = write_bands(tmp_path)
    source = stack_name({name: str(tmp_path / file) for name, file in files.items()})
    digests = set()
    for share in (0, 50):
        with rasterio.open(tmp_path / "blue.tif", "r+") as dst:
            dst.write_mask(np.arange(100)[:, None] >= np.full((100, 130), share))
        digests.add(source_digest(source)["sha256"])
    assert len(digests) == 2


def test_bits_in_use_are_those_of_the_files(tmp_path):
    image = blocks().astype(np.uint16) * 16
    files = write_bands(tmp_path, image, nbits=12)
    source = stack_name({name: str(tmp_path / file) for name, file in files.items()})
    pixels, _ = image_of(source, stretch="none")
    np.testing.assert_allclose(pixels, image / 4095, atol=1e-6)


def test_values_are_those_of_the_files(tmp_path):
    image = (blocks().astype(np.uint16) * 40) + 7
    files = write_bands(tmp_path, image, nodata=0)
    source = stack_name({f"B0{4 - n}": str(tmp_path / files[name]) for n, name in enumerate(NAMES)})
    whole = write_scene(tmp_path / "whole.tif", image, nodata=0)
    pixels, valid = image_of(source)
    expected, expected_valid = image_of(whole)
    np.testing.assert_array_equal(pixels, expected)
    np.testing.assert_array_equal(valid, expected_valid)
    finer, _ = image_of(source, gsd=1.0)
    assert finer.shape[1:] == (200, 260)


def test_polarisations_of_a_radar_scene_placed_by_points(tmp_path):
    """As Sentinel-1 comes: a file for each, digital numbers, control points."""
    corners = [(0, 0), (0, 130), (100, 0), (100, 130)]
    points = [GroundControlPoint(r, c, 12 + c / 1e3, 55 - r / 1e3, 0) for r, c in corners]
    profile = {"crs": None, "transform": Affine.identity()}
    for name in ("vv", "vh"):
        write_scene(tmp_path / f"{name}.tif", blocks(1).astype(np.uint16) * 9, **profile)
        with rasterio.open(tmp_path / f"{name}.tif", "r+") as dst:
            dst.gcps = points, "EPSG:4326"
    source = stack_name({name: str(tmp_path / f"{name}.tif") for name in ("vv", "vh")})
    with open_scene(source, SceneOptions()) as scene:
        assert scene.sensor == "sar"
        assert len(scene.grid.gcps) == 4
        assert scene.reading.bands == (1, 2)
    with open_scene(source, SceneOptions(bands=("vh",))) as scene:
        assert scene.reading.bands == (2,)


def test_bands_on_a_server(item, tmp_path, tiny_model):
    with served(tmp_path) as address:
        (found,) = expand_inputs([f"{address}/item.json"], asset="red,green,blue")
        assert stack_files(found.source) == {name: f"{address}/{name}.tif" for name in NAMES}
        segment(found.source, options_for(tiny_model, "there.tif"))
        absent = found.source.replace("blue.tif", "absent.tif")
        with pytest.raises(SceneError, match=r"cannot open http://\S*/absent.tif: HTTP.* 404"):
            segment(absent, options_for(tiny_model, "never.tif"))
    segment("rgb.tif", options_for(tiny_model, "here.tif"))
    assert (read("there.tif") == read("here.tif")).all()


@pytest.mark.parametrize(
    "name",
    [
        "{a}.tif",
        "{",
        "{}",
        '{"a": 1}',
        '{"a": ""}',
        '{"": "a.tif"}',
        "[1]",
        "a.tif",
        '{"a":' * 3000,
    ],
)
def test_other_names_that_look_like_bands_are_files(name):
    assert stack_files(name) is None
    assert files_named(name) == [name]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (r'{"red": "C:\data\B04.tif"}', "it is no JSON object of band names and files"),
        ('{"1": "rgb.tif", "2": "rgb.tif"}', "a band is called '1', as if it were a number"),
    ],
)
def test_names_that_are_no_scenes_are_one_line(item, tiny_model, source, message):
    result = run("segment", source, "--classes", "a", "--model", tiny_model, "-o", "m.tif", "-q")
    assert result.exit_code == 1
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_nobody_reads_what_an_address_keeps_secret():
    escaped = r'{"red": "http:\/\/me:pass@h.org\/a.tif?sig=\"1", "green": "what?.tif"}'
    assert stack_files(public_name(escaped)) == {"red": "http://h.org/a.tif", "green": "what?.tif"}
    assert is_remote(escaped)
    assert title_of(escaped) == "a.tif, what?.tif"
    many = stack_name({f"b{n}": f"https://h.org/{n}.tif?key=1" for n in range(10)})
    assert title_of(many) == "0.tif, 1.tif, 2.tif and 7 more"


def test_a_folder_may_be_called_like_a_store(tmp_path):
    folder = tmp_path / "vsis3_copies"
    folder.mkdir()
    assert not is_remote(write_scene(folder / "scene.tif"))
    assert is_remote("/vsis3/bucket/scene.tif")
    assert is_remote("/vsizip//vsicurl/https://a.org/b.zip/scene.tif")

"""Scenes whose bands are files of their own: STAC Items of Landsat, Sentinel-2 and Sentinel-1."""

import json
import shlex
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import rasterio
from rasterio import Affine
from rasterio.control import GroundControlPoint
from scenes import blocks, options_for, read, write_scene
from typer.testing import CliRunner

from segearth_cli.cli import app
from segearth_cli.errors import SceneError, UsageError
from segearth_cli.geo.raster import open_scene
from segearth_cli.inputs import expand_inputs
from segearth_cli.options import SceneOptions
from segearth_cli.segment import segment
from segearth_cli.stack import band_files, is_stack, stack_name, title_of

NAMES = ("red", "green", "blue")


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
    assert [link["href"] for link in links] == [f"./{n.strip()}.tif" for n in asset.split(",")]
    told = json.loads(run("info", "LC09.gpkg", "--json").stdout)
    assert set(band_files(told["source"])) == set(NAMES)
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
    assert "green.tif is a scene to be read" in refused.stderr


@pytest.mark.parametrize(
    ("asset", "message"),
    [
        ("red,nir,swir", "no asset nir, swir; choose with --asset among red, green, blue"),
        (None, "several rasters; choose .* red, green, blue .of one band each"),
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
        ({"crs": "EPSG:32634"}, "red.tif and green.tif are not on one grid; resample them"),
        (None, "cannot open green.tif: there is no such file"),
    ],
)
def test_bands_that_do_not_fit_are_one_line(item, tiny_model, profile, message):
    Path("green.tif").unlink()
    if profile is not None:
        write_scene(Path("green.tif"), blocks(1), **profile)
    result = run("segment", item, "--asset", "red,green,blue", "--classes", "a", "--model",
                 tiny_model, "-o", "map.tif", "-q")  # fmt: skip
    assert result.exit_code == 1
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not Path("map.tif").exists()


@pytest.mark.parametrize("kind", ["nodata", "mask", "alpha"])
def test_what_the_files_leave_out_is_left_out(tmp_path, kind):
    image = blocks()
    image[:, 20:40, 30:60] = 0
    hole = image[0] == 0
    files = write_bands(tmp_path, image, **({"nodata": 0} if kind == "nodata" else {}))
    first = tmp_path / "red.tif"
    if kind == "mask":
        with rasterio.open(first, "r+") as dst:
            dst.write_mask(~hole)
    if kind == "alpha":
        both = np.stack([image[0], np.where(hole, 0, 255).astype(np.uint8)])
        write_scene(first, both, photometric="minisblack", alpha="yes")
    source = stack_name({name: str(tmp_path / file) for name, file in files.items()})
    pixels, valid = image_of(source)
    assert pixels.shape == image.shape
    assert (valid == ~hole).all()


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


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def test_bands_on_a_server(item, tmp_path, tiny_model):
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    try:
        (found,) = expand_inputs([f"{address}/item.json"], asset="red,green,blue")
        assert band_files(found.source) == {name: f"{address}/{name}.tif" for name in NAMES}
        segment(found.source, options_for(tiny_model, "there.tif"))
        absent = found.source.replace("blue.tif", "absent.tif")
        with pytest.raises(SceneError, match=r"cannot open http://\S*/absent.tif: HTTP.* 404"):
            segment(absent, options_for(tiny_model, "never.tif"))
    finally:
        server.shutdown()
        server.server_close()
    segment("rgb.tif", options_for(tiny_model, "here.tif"))
    assert (read("there.tif") == read("here.tif")).all()


@pytest.mark.parametrize("name", ["{a}.tif", "{", "{}", '{"a": 1}', '{"a": ""}', "[1]", "a.tif"])
def test_other_names_that_look_like_bands_are_files(name):
    assert not is_stack(name)
    assert band_files(name) == {"": name}
    assert title_of(f"in/{name}") == name

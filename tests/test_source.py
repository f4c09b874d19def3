import os
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from rasters import UTM, make, options, pattern, read_all, scene_of

from segearth_cli.errors import SceneError
from segearth_cli.geo.raster import open_scene
from segearth_cli.geo.source import gdal_settings

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


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


def test_damaged_tags_of_a_palette_image_are_one_line(tmp_path):
    path = tmp_path / "scene.tif"
    data = bytearray(Path(make(path, pattern(1), photometric="palette")).read_bytes())
    for tag, kind in ((33550, 12), (34737, 2)):  # the pixels' size, and the system's name
        place = data.index(struct.pack("<HH", tag, kind))
        data[place : place + 2] = struct.pack("<H", 65001)
    path.write_bytes(data)
    with pytest.raises(SceneError, match=r"cannot read .*GeoAsciiParams is missing or corrupted"):
        open_scene(str(path), options())


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

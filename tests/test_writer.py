import json
import os
import subprocess

import numpy as np
import pytest
import rasterio
import rasterio.shutil
import shapely
from rasterio import Affine
from rasterio.enums import ColorInterp
from rasterio.features import shapes
from rasters import LEGEND, UTM, classes, gcp_scene, options, pattern, write_rows

from segearth_cli.errors import OutputError, UsageError
from segearth_cli.geo.cog import check_creation_options, write_class_raster, write_probabilities
from segearth_cli.geo.grid import Grid
from segearth_cli.geo.legend import Legend
from segearth_cli.geo.raster import open_scene
from segearth_cli.geo.writer import RowWriter, _Silent, sieve

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


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


def test_sieve_of_a_raster_without_a_large_enough_patch_leaves_the_largest(tmp_path):
    array = np.zeros((6, 7), np.uint8)
    array[2:4, 2:4] = 1
    path = write_rows(tmp_path / "rows.tif", array, nodata=255)
    sieve(path, 1000)
    with rasterio.open(path) as src:
        assert (src.read(1) == 0).all()


def test_sieve_leaves_no_small_patch_among_small_ones(tmp_path):
    array = np.random.default_rng(0).integers(0, 3, (60, 60)).astype(np.uint8)  # all are small
    path = write_rows(tmp_path / "rows.tif", array, nodata=255)
    sieve(path, 200)
    with rasterio.open(path) as src:
        patches = [shapely.geometry.shape(outline).area for outline, _ in shapes(src.read(1))]
    assert min(patches) >= 200


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

import json
import math

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from rasterio import Affine
from rasterio.enums import ColorInterp
from rasters import GREY, UTM, make, options, pattern, read_all, scene_of

from segearth_cli.errors import SceneError, UsageError
from segearth_cli.geo.grid import Grid
from segearth_cli.geo.raster import open_scene
from segearth_cli.geo.virtual import VirtualRaster

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


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
    read_all(path, nodata=math.inf)  # none
    assert not caplog.records


@pytest.mark.parametrize(
    ("dtype", "value", "said"),
    [
        ("int16", -9999, "-9999"),
        ("int16", -32768, "-32768"),
        ("uint16", 0, "0"),
        ("uint16", 65535, "65535"),
        ("float32", -9999, "-9999"),
        ("float64", -99999.25, "-99999.25"),
        ("float32", 1e20, "1e+20"),
    ],
)
def test_an_undeclared_nodata_value_stays_out_of_the_stretch_and_is_named(
    tmp_path, caplog, dtype, value, said
):
    array = pattern(dtype=dtype) + np.array(3000, dtype)
    array[:, :, :4] = value
    path = scene_of(tmp_path, array)
    with open_scene(path, options(sensor="optical")) as scene:
        assert all(2990 < low < high < 3130 for low, high in _spans(scene))
        assert scene.read(0, 60)[1].all()
    (message,) = caplog.messages
    kind = "nodata or saturation:" if value > 0 else "nodata:"
    assert f"is exactly {said}, which looks like {kind}" in message
    assert message.endswith(f"say --nodata {said}")
    caplog.clear()
    _, valid = read_all(path, sensor="optical", nodata=type(value)(value))
    assert (valid == (array[0] != np.array(value, dtype))).all()
    assert not caplog.records


@pytest.mark.parametrize(
    "odd",
    [
        {"rows": 1, "columns": 40, "value": -9999},  # in one band
        {"rows": 1, "columns": 40, "value": -10000},
        {"rows": 60, "columns": 5, "value": 3000},  # a collar that is narrower there
        {"rows": 1, "columns": 40, "value": 30000},
    ],
)
def test_a_few_odd_pixels_do_not_hide_a_collar(tmp_path, caplog, odd):
    array = np.tile(pattern(dtype="int16"), (1, 1, 4)) + np.int16(3000)
    array[:, :, :10] = -9999
    array[1, : odd["rows"], odd["columns"] : odd["columns"] + 1 + odd["rows"] // 60] = odd["value"]
    array[2, : odd["rows"], odd["columns"]] = odd["value"]
    with open_scene(scene_of(tmp_path, array), options(sensor="optical")) as scene:
        assert all(2990 < low < high < 3130 for low, high in _spans(scene))
    assert "is exactly -9999, which looks like nodata" in caplog.text


def test_a_collar_of_zeros_is_left_out_of_16_bits_and_dark_pixels_are_not(tmp_path, caplog):
    rng = np.random.default_rng(0)
    ground = rng.gamma(3, 300, (3, 200, 200)) + 60  # of reflectance, dark with bright roofs
    collar = ground.astype(np.uint16)
    collar[:, :, :30] = 0
    with open_scene(scene_of(tmp_path, collar), options(sensor="optical")) as scene:
        assert min(scene.scaling.low) > 60
    assert "is exactly 0, which looks like nodata: left out" in caplog.text
    caplog.clear()
    dark = np.maximum(ground - 300, 0).astype(np.uint16)
    with open_scene(make(tmp_path / "dark.tif", dark), options(sensor="optical")) as scene:
        assert scene.scaling.low == (0, 0, 0)
    stepped = np.clip(rng.normal(40, 18, (3, 200, 200)), 0, 255).astype(np.uint16) * 257
    assert (stepped == 0).mean() > 0.01
    read_all(make(tmp_path / "stepped.tif", stepped), sensor="optical")
    assert "looks like" not in caplog.text


def test_a_scene_of_nothing_but_a_usual_code_is_said_to_be_one(tmp_path, caplog):
    read_all(scene_of(tmp_path, np.full((3, 60, 80), -9999, np.int16)), sensor="optical")
    assert "is exactly -9999, which looks like nodata" in caplog.text


def _spans(scene):
    return zip(scene.scaling.low, scene.scaling.high, strict=True)


@pytest.mark.parametrize("speckle", [None, 3])
def test_undeclared_nodata_of_decibels_leaves_them_radar(tmp_path, caplog, speckle):
    array = pattern(1, dtype="float32") / 10 - 20
    array[:, :, :10] = -9999
    with open_scene(scene_of(tmp_path, array), options(speckle=speckle)) as scene:
        assert scene.sensor == "sar"
        assert -21 < scene.scaling.low[0] < scene.scaling.high[0] < -7
    assert "say --nodata -9999" in caplog.text


@pytest.mark.parametrize(
    ("dtype", "value"), [("uint8", 255), ("uint16", 125), ("float32", -50), ("int16", -100)]
)
def test_what_may_have_been_measured_is_no_nodata(tmp_path, caplog, dtype, value):
    array = pattern(dtype=dtype)
    array[:, :, :4] = value
    read_all(scene_of(tmp_path, array), sensor="optical")
    few = pattern(dtype=dtype)
    few[:, 0, :9] = -9999 if dtype in ("float32", "int16") else 255
    read_all(make(tmp_path / "few.tif", few), sensor="optical")
    two = np.where(array > 60, 1000, 200).astype(array.dtype)
    read_all(make(tmp_path / "two.tif", two), sensor="optical")
    assert not caplog.records


@pytest.mark.parametrize(
    ("dtype", "value", "idle"),
    [
        ("uint8", 999, True),
        ("uint8", -1, True),
        ("uint16", 0.5, True),
        ("int16", math.nan, False),
        ("int16", -9999, False),
        ("float32", -9999, False),
        ("complex64", 0, False),
    ],
)
def test_a_nodata_value_that_no_pixel_can_have_is_said(tmp_path, caplog, dtype, value, idle):
    read_all(scene_of(tmp_path, pattern(1, dtype=dtype)), nodata=float(value), sensor="sar")
    said = f"--nodata {value:g} means nothing to {tmp_path / 'scene.tif'}, whose values are {dtype}"
    assert (said in caplog.text) == idle


def test_floats_that_nothing_measures_are_missing(tmp_path, caplog):
    array = pattern(dtype="float32")
    array[:, :, :4] = np.finfo(np.float32).min
    path = scene_of(tmp_path, array)
    for more in ({}, {"gsd": 4.0}):
        image, valid = read_all(path, **more)
        assert not valid[:, : valid.shape[1] * 4 // 50].any()
        assert valid[:, valid.shape[1] * 6 // 50 :].all()
        assert np.isfinite(image).all()
    with open_scene(path, options()) as scene:
        assert all(0 < low < high < 120 for low, high in _spans(scene))
    assert not caplog.records
    read_all(make(tmp_path / "none.tif", np.full_like(array, 3.4e38)))
    assert "no valid pixel" in caplog.text


@pytest.mark.parametrize("shape", [(1, 40), (40, 1), (1, 1)])
def test_one_row_one_column_one_pixel(tmp_path, shape):
    array = pattern(3, *shape)
    image, _ = read_all(scene_of(tmp_path, array))
    np.testing.assert_allclose(image, array / 255, rtol=1e-6)


def test_one_bit_raster_is_black_and_white(tmp_path):
    array = np.eye(8, dtype=np.uint8)[np.newaxis]
    image, _ = read_all(scene_of(tmp_path, array, nbits=1))
    assert (image[0] == np.eye(8)).all()


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
    assert "--nodata none" in caplog.text
    assert read_all(path, nodata=-1.0)[1].all()


def test_radar_is_read_as_its_scale_and_offset_have_it(tmp_path):
    decibels = np.random.default_rng(0).normal(-14, 4, (2, 40, 40)).round(2)
    stored = (decibels * 100 + 500).round().astype(np.int16)
    stored[:, :3] = -32768
    path = scene_of(tmp_path, stored, nodata=-32768, descriptions=("VV", "VH"))
    with rasterio.open(path, "r+") as dst:
        dst.scales, dst.offsets = (0.01, 0.01), (-5.0, -5.0)
    for more in ({}, {"bands": ("VH",)}, {"dst_crs": "EPSG:32633"}):
        image, valid = read_all(path, stretch="-40,10", speckle=0, **more)
        expected = decibels[1:] if more.get("bands") else decibels
        np.testing.assert_allclose(image[0, 3:], expected.mean(0)[3:] / 50 + 0.8, atol=1e-4)
        assert (~valid).sum() == 3 * 40
    with open_scene(path, options()) as scene:
        assert scene.scaling.decibels == 0  # decibels already


def test_an_alpha_band_is_looked_at_all_over(tmp_path, caplog):
    array = pattern(4, 512, 512)
    array[3] = 255
    array[3, :64, :64] = np.arange(64)
    colours = (ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha)
    read_all(scene_of(tmp_path, array, colours=colours))
    assert "declared as alpha" not in caplog.text


@pytest.mark.parametrize(("values", "warnings"), [((0, 255), 0), (range(256), 1)])
def test_a_measurement_that_is_declared_as_alpha_is_said_to_be(tmp_path, caplog, values, warnings):
    array = pattern(4)
    array[3] = np.random.default_rng(0).choice(list(values), array[3].shape)
    colours = (ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha)
    path = scene_of(tmp_path, array, colours=colours)
    _, valid = read_all(path)
    assert (valid == (array[3] > 0)).all()
    assert caplog.text.count("gdal_edit -colorinterp_4 undefined") == warnings


def test_a_damaged_part_of_an_alpha_band_is_one_line(tmp_path):
    colours = (ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha)
    array = np.random.default_rng(0).integers(0, 256, (4, 2048, 2048), np.uint8)
    size = {"tiled": True, "blockxsize": 64, "blockysize": 64, "interleave": "band"}
    path = scene_of(tmp_path, array, colours=colours, compress="deflate", **size)
    with open_scene(path, options()) as scene:
        assert len(scene._region.alpha_values()) == 16 * 64 * 64  # of 4 million
    with open(path, "r+b") as stream:
        stream.seek(-1_000_000, 2)
        stream.write(bytes(900_000))
    with pytest.raises(SceneError, match=r"cannot read .*; the file may be damaged"):
        open_scene(path, options())


def test_a_radar_of_many_bands_by_its_tags_is_said_to_be(tmp_path, caplog):
    tags = {"PRODUCT_DESCRIPTION": "RADARSAT-2 quad"}
    path = scene_of(tmp_path, pattern(4, dtype="uint16"), tags=tags)
    with open_scene(path, options()) as scene:
        assert scene.sensor == "sar"
    assert "4 bands without names of polarisations; if it is none, say --sensor" in caplog.text


def test_dark_water_of_one_polarisation_is_data_though_0_is_nodata(tmp_path):
    digital = pattern(2, dtype="uint16") + 1
    digital[1, :, :9] = 0  # less than the noise
    digital[:, :, 40:] = 0  # the border
    path = scene_of(tmp_path, digital, descriptions=("VV", "VH"))
    for speckle in (0, 7):
        _, valid = read_all(path, speckle=speckle)
        assert valid.all(axis=0).tolist() == [True] * 40 + [False] * 10


@pytest.mark.parametrize("gsd", [None, 4.0, 5.0])
@pytest.mark.parametrize("nodata", [-32768, 0])
def test_one_polarisation_that_is_missing_stays_so_whatever_is_made_of_it(
    tmp_path, caplog, gsd, nodata
):
    stored = np.random.default_rng(0).normal(-1400, 300, (2, 60, 60)).astype(np.int16)
    stored[1, :, :20] = nodata
    path = scene_of(tmp_path, stored, nodata=nodata, descriptions=("VV", "VH"))
    with rasterio.open(path, "r+") as dst:
        dst.scales = (0.01, 0.01)
    with open_scene(path, options(gsd=gsd, speckle=0)) as scene:
        width = scene.grid.width
        _, valid = scene.read(0, scene.grid.height)
        assert all(-30 < low < high < 0 for low, high in
                   zip(scene.scaling.low, scene.scaling.high, strict=True))  # fmt: skip
    assert not valid[:, : width // 4].any()
    assert valid[:, width // 2 :].all()
    assert "looks like nodata" not in caplog.text


def test_0_of_decibels_is_not_dark(tmp_path):
    stored = np.random.default_rng(0).normal(-14, 3, (2, 60, 60)).astype(np.int16)
    stored[1, :, :20] = 0
    path = scene_of(tmp_path, stored, nodata=0, descriptions=("VV", "VH"))
    assert not read_all(path, speckle=0)[1][:, :20].any()
    digital = np.abs(stored).astype(np.uint16)
    path = scene_of(tmp_path, digital, nodata=0, descriptions=("VV", "VH"))
    assert read_all(path, speckle=0)[1][:, :20].all()
    assert not read_all(path, speckle=0, nodata=0.0)[1][:, :20].any()


def test_undeclared_nodata_of_a_scaled_radar_is_told_as_it_is_stored(tmp_path, caplog):
    stored = np.random.default_rng(0).normal(-1400, 400, (1, 40, 40)).astype(np.int16)
    stored[:, :4] = -9999
    path = scene_of(tmp_path, stored, descriptions=("VV",))
    with rasterio.open(path, "r+") as dst:
        dst.scales, dst.offsets = (0.01,), (0.0,)
    with open_scene(path, options()) as scene:
        assert -40 < scene.scaling.low[0] < scene.scaling.high[0] < 5
    assert "is exactly -9999, which looks like nodata" in caplog.text
    assert (~read_all(path, nodata=-9999.0)[1]).sum() == 4 * 40


@pytest.mark.parametrize("scales", [(0.01, 1.0), (0.0, 0.0), (float("nan"), 1.0)])
def test_scales_of_one_band_alone_or_that_make_no_sense(tmp_path, scales):
    stored = np.random.default_rng(0).integers(100, 3000, (2, 40, 40)).astype(np.int16)
    path = scene_of(tmp_path, stored, descriptions=("VV", "VH"))
    with rasterio.open(path, "r+") as dst:
        dst.scales = scales
    image, valid = read_all(path, speckle=0)
    assert valid.all()
    assert 0.2 < image.mean() < 0.8


def test_a_stack_keeps_scales_and_units(tmp_path):
    decibels = np.random.default_rng(0).normal(-14, 4, (1, 40, 40))
    files = {}
    for name in ("VV", "VH"):
        files[name] = make(tmp_path / f"{name}.tif", (decibels * 100).astype(np.int16))
        with rasterio.open(files[name], "r+") as dst:
            dst.scales, dst.units = (0.01,), ("dB",)
    with open_scene(json.dumps(files), options(speckle=0)) as scene:
        assert scene.bands == (1, 2)
        assert -40 < scene.scaling.low[0] < scene.scaling.high[0] < 5


def test_measured_values_of_a_stretch_are_told_as_they_are_stored(tmp_path, caplog):
    path = scene_of(tmp_path, pattern(3, dtype="uint16") + 2000)
    with rasterio.open(path, "r+") as dst:
        dst.scales, dst.offsets = (1e-4,) * 3, (-0.1,) * 3
    read_all(path, stretch="0,0.3")
    assert "lie beyond 0 to 0.3; as they are stored these are --stretch 1000,4000" in caplog.text


@pytest.mark.parametrize("tag", ["Scale", "unit", "note"])
def test_amplitudes_may_be_named_by_tags(tmp_path, tag):
    amplitude = np.random.default_rng(0).uniform(0.05, 1, (1, 40, 40)).astype(np.float32)
    path = scene_of(tmp_path, amplitude, descriptions=("VV",), tags={tag: "Amplitude"})
    with open_scene(path, options()) as scene:
        assert scene.scaling.decibels == (10 if tag == "note" else 20)


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("winter.tif", -20.0, "read as radar, in decibels; if it is none, say --sensor optical"),
        ("reflectance.tif", 0.2, "an optical image, in grey; if it is radar, say --sensor sar"),
        ("S1A_IW_VH.tif", 0.2, "S1A_IW_VH.tif is read as radar by its name; if it is none"),
    ],
)
def test_a_sensor_that_is_guessed_is_said(tmp_path, caplog, name, values, said):
    noise = np.random.default_rng(0).normal(values, 0.05, (1, 40, 40)).astype(np.float32)
    read_all(make(tmp_path / name, noise))
    assert said in caplog.text


@pytest.mark.parametrize("nodata", [-9999.0, np.nan])
def test_the_mean_of_two_polarisations_needs_both(tmp_path, nodata):
    decibels = pattern(2, dtype="float32") / -16 - 4
    decibels[1, :, :9] = nodata
    path = scene_of(tmp_path, decibels, nodata=nodata)
    image, valid = read_all(path, sensor="sar", stretch="-25,0")
    assert valid.all(axis=0).tolist() == [False] * 9 + [True] * 41
    assert read_all(path, sensor="sar", bands=("1",))[1].all()
    np.testing.assert_allclose(image[0, :, 9:], decibels[:, :, 9:].mean(0) / 25 + 1, atol=1e-5)


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


def test_what_is_guessed_of_floats_and_values_is_said(tmp_path, caplog):
    floats = make(tmp_path / "floats.tif", pattern(1, dtype="float32") / 1000)
    with open_scene(floats, options()) as scene:
        assert scene.sensor == "optical"
    assert "in grey; if it is radar, say --sensor sar" in caplog.text
    caplog.clear()
    with open_scene(floats, options(sensor="optical")):
        pass
    bright = scene_of(tmp_path, np.full((3, 60, 50), 200, np.uint8))
    with open_scene(bright, options(stretch="0,255")):
        assert caplog.messages == []
    with open_scene(bright, options(stretch="2,98")):
        assert "100 % of the values" in caplog.text
        assert "percentiles are --stretch p2,98" in caplog.text


def test_two_optical_bands_are_grey_from_the_first(tmp_path, caplog):
    array = pattern(2)
    path = scene_of(tmp_path, array, photometric="minisblack")
    np.testing.assert_allclose(read_all(path)[0][1], array[0] / 255, rtol=1e-6)
    assert "only band 1" in caplog.text
    with pytest.raises(UsageError, match="--sensor sar"):
        open_scene(path, options(bands=("1", "2")))


def test_half_floats_are_read_as_floats():
    virtual = VirtualRaster("scene.tif", Grid(1, 1, Affine.identity()))
    virtual.add_band(1, "float16")
    assert 'dataType="Float32"' in virtual.text

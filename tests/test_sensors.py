import numpy as np
import pytest

from segearth_cli.errors import SceneError, UsageError
from segearth_cli.geo.bands import (
    BandFacts,
    choose_bands,
    is_named_as_radar,
    named_bands,
    sensor_by_facts,
    sensor_by_values,
)
from segearth_cli.geo.sensors import (
    NEUTRAL_GREY,
    Scaling,
    Stretch,
    parse_stretch,
    prepare,
    scaling_of,
    unit_of_radar,
)


def facts(*descriptions: str, colours=(), dtype="uint16", tags=None) -> BandFacts:
    count = len(descriptions)
    colours = colours or ("gray", *["undefined"] * (count - 1))
    return BandFacts((dtype,) * count, descriptions, tuple(colours), tags or {})


RGB = ("red", "green", "blue")


@pytest.mark.parametrize(
    ("descriptions", "expected"),
    [
        (("B01", "B02", "B03", "B04", "B05", "B08"), (4, 3, 2)),
        (("B2", "B3", "B4", "B8"), (3, 2, 1)),
        (("SR_B2", "SR_B3", "SR_B4", "SR_B5"), (3, 2, 1)),
        (("B4, central wavelength 665 nm", "B3, x", "B2, x", "B8, x"), (1, 2, 3)),
        (("Blue", "Green", "Red", "Red Edge", "NIR"), (3, 2, 1)),
        (("red edge", "red", "green", "blue"), (2, 3, 4)),
        (("B", "G", "R"), (3, 2, 1)),
        (("r", "g", "b", "nir"), (1, 2, 3)),
        (("coastal_blue", "blue", "green_i", "green", "yellow", "red", "nir"), (6, 4, 2)),
        (("B02_10m", "B03_10m", "B04_10m"), (3, 2, 1)),
        (("Near Infra-Red", "Red", "Green", "Blue"), (2, 3, 4)),
        (("SR_B1", "SR_B2", "SR_B3", "SR_B4", "SR_B5", "SR_B7"), (3, 2, 1)),  # Landsat 5
        (tuple(f"SR_B{n}" for n in range(1, 8)), (4, 3, 2)),  # Landsat 8
        (tuple(f"sur_refl_b0{n}" for n in range(1, 8)), (1, 4, 3)),
    ],
)
def test_descriptions_choose_red_green_blue(descriptions, expected):
    assert choose_bands(facts(*descriptions), (), "optical") == expected
    assert sensor_by_facts(facts(*descriptions)) == "optical"


def test_numbers_that_may_be_another_satellites_are_said_to_be(caplog):
    bare = tuple(f"B{n}" for n in range(1, 8))
    assert choose_bands(facts(*bare), (), "optical") == (4, 3, 2)
    assert "of Landsat 4 to 7 say --bands" in caplog.text
    caplog.clear()
    assert choose_bands(facts(*bare), ("1",), "optical") == (1,)
    assert choose_bands(facts("B1 blue", "B2 green", "B3 red", "B4"), (), "optical") == (3, 2, 1)
    assert choose_bands(facts("B01", "B02", "B03", "B04", "B8A"), (), "optical") == (4, 3, 2)
    assert not [r for r in caplog.records if "Landsat" in r.message]


def test_colour_interpretation_chooses_bands_and_alpha_is_never_one_of_them():
    bgr = facts("", "", "", "", colours=("blue", "green", "red", "alpha"))
    assert choose_bands(bgr, (), "optical") == (3, 2, 1)
    assert bgr.alpha == 4
    assert choose_bands(facts("", "", colours=("gray", "alpha")), (), None) == (1,)
    named = facts("red", "green", "blue", "nir", colours=(*RGB, "alpha"))
    assert named.alpha is None  # GDAL calls the fourth byte band alpha unless told otherwise


def test_undetermined_bands_are_the_first_three_with_a_warning(caplog):
    assert choose_bands(facts(*[""] * 8), (), "optical") == (1, 2, 3)
    assert "--bands" in caplog.text
    caplog.clear()
    assert choose_bands(facts("", "", ""), (), "optical") == (1, 2, 3)
    assert choose_bands(facts(""), (), "optical") == (1,)
    assert not caplog.records


def test_bands_by_number_and_name():
    scene = facts("B02", "B03", "B04", "B08")
    assert named_bands(scene, ("3", "b03", "B02")) == (3, 2, 1)
    assert choose_bands(scene, ("4",), "optical") == (4,)
    with pytest.raises(UsageError, match="has no band '9'; it has bands 1 to 4, named B02"):
        choose_bands(scene, ("9",), "optical")
    with pytest.raises(UsageError, match="names 2 bands"):
        choose_bands(scene, ("1", "2"), "optical")
    with pytest.raises(UsageError, match="one or two polarisations"):
        choose_bands(scene, ("1", "2", "3"), "sar")
    with pytest.raises(SceneError, match="besides alpha"):
        choose_bands(facts("", colours=("alpha",)), (), "optical")


@pytest.mark.parametrize(
    ("scene", "expected"),
    [
        (facts("VV", "VH", dtype="float32"), "sar"),
        (facts("Sigma0_VH_db", dtype="float32"), "sar"),
        (facts("HH", "HV", "HH/HV"), "sar"),
        (facts("VV", "VH", "VV_VH_ratio", colours=RGB, dtype="uint8"), "sar"),
        (facts("", dtype="complex64"), "sar"),
        (facts("", tags={"TIFFTAG_IMAGEDESCRIPTION": "Sentinel-1A IW GRD HR L1"}), "sar"),
        (facts("", tags={"POLARISATION": "HH"}), "sar"),
        (facts("", tags={"TIFFTAG_SOFTWARE": "Adobe Photoshop"}), None),
        (facts("", tags={"AREA_OR_POINT": "Area", "note": "sar"}), None),
        (facts("", "", "", colours=RGB), "optical"),
        (facts("B02", "B03", "B04", "VV", "VH"), "optical"),
        (facts("", ""), None),
    ],
)
def test_sensor_is_recognised(scene, expected):
    assert sensor_by_facts(scene) == expected


def test_the_first_of_several_dates_is_taken():
    dates = ("red", "green", "blue", "nir") * 2
    assert choose_bands(facts(*dates), (), "optical") == (1, 2, 3)


def test_numbers_beyond_colours_are_said_where_nothing_says_colour(caplog):
    assert choose_bands(facts("B8", "B4", "B3"), (), "optical") == (1, 2, 3)
    assert "called B8, B4, B3; choose with --bands" in caplog.text


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("nir", "red", "green"), "bands 1,2,3 are used as red, green and blue, and are called"),
        (("nir08", "B4", "B3"), "called nir08, B4, B3; choose with --bands"),
        (("B3", "B2", "B1"), ""),  # Landsat 5
        (("B5", "B3", "B2"), ""),  # WorldView-2, said to be in colours
        (("", "", ""), ""),
    ],
)
def test_false_colours_are_said_to_be(names, said, caplog):
    assert choose_bands(facts(*names, colours=RGB), (), "optical") == (1, 2, 3)
    assert said in caplog.text
    assert bool(said) == bool(caplog.records)


def test_polarisations_may_be_named_as_snap_names_them():
    scene = facts("Sigma0_VV_db", "Sigma0_VH_db")
    assert named_bands(scene, ("VH", "vv")) == (2, 1)
    with pytest.raises(UsageError, match="no band 'HH'"):
        named_bands(scene, ("HH",))
    with pytest.raises(UsageError, match="no band 'VV'"):  # which of them?
        named_bands(facts("Sigma0_VV", "Gamma0_VV"), ("VV",))


@pytest.mark.parametrize(
    ("name", "bands", "colours", "is_radar"),
    [
        ("N10E105_20_sl_HV_F02DAR.tif", 1, (), True),
        ("ICEYE_GRD_SM_12345.tif", 1, (), True),
        ("S1A_IW_VV_VH.tif", 2, (), True),
        ("dop20_HH_2020.tif", 3, RGB, False),  # Hamburg
        ("town.tif", 1, (), False),
        ("dgm1_HH_2021.tif", 1, (), False),
        ("elevation.grd", 1, (), False),
        ("umbra_dem.tif", 1, (), False),
        ("HK_SAR_dem.tif", 1, (), False),
    ],
)
def test_names_of_radar_products(name, bands, colours, is_radar):
    assert is_named_as_radar(facts(*[""] * bands, colours=colours), name) == is_radar


def test_sar_takes_polarisations_not_their_ratio():
    assert choose_bands(facts("VV/VH", "VV", "VH"), (), "sar") == (2, 3)
    assert choose_bands(facts("", ""), (), "sar") == (1, 2)
    assert choose_bands(facts("VV", "VH"), ("VH",), "sar") == (2,)
    assert choose_bands(facts("VV", "VH"), (), "sar", polarisation="VH") == (2,)
    assert choose_bands(facts("VV", "VH"), ("VV",), "sar", polarisation="VH") == (1,)
    assert choose_bands(facts("HH", "HV"), (), "sar", polarisation="VH") == (1, 2)
    assert sensor_by_facts(facts("B02", "B03", "B04", "VV", "VH"), (4, 5)) == "sar"


def test_decibels_are_recognised_by_their_values():
    rng = np.random.default_rng(0)
    valid = np.ones((32, 32), bool)
    decibels = rng.normal(-12, 4, (2, 32, 32)).astype(np.float32)
    assert sensor_by_values(decibels, valid) == "sar"
    assert sensor_by_values(-decibels, valid) == "optical"
    assert sensor_by_values(decibels - 9000, valid) == "optical"  # elevations below nodata
    assert sensor_by_values(decibels.astype(np.int16), valid) == "optical"
    assert sensor_by_values(decibels, ~valid) == "optical"
    decibels[:, :, :20] = 0  # an undeclared collar
    assert unit_of_radar(decibels, valid, "float32") == "decibels"


def test_stretch_is_read():
    assert parse_stretch(" Auto ") == Stretch("auto")
    assert parse_stretch("-25,0") == Stretch("values", -25.0, 0.0)
    assert parse_stretch("p2,98") == Stretch("percentiles", 2.0, 98.0)
    assert parse_stretch("p2,p98") == Stretch("percentiles", 2.0, 98.0)


@pytest.mark.parametrize(
    "text", ["", "p", "1", "1,2,3", "a,b", "5,5", "9,1", "2,p98", "1p0,20", "p-1,50", "p2,101"]
)
def test_malformed_stretch_is_a_usage_error(text):
    with pytest.raises(UsageError, match="--stretch is"):
        parse_stretch(text)
    with pytest.raises(UsageError, match="--stretch is"):
        parse_stretch("nan,1")


def scale(raw, stretch="auto", sensor="optical", **more):
    valid = np.ones(raw.shape[1:], bool)
    kind = parse_stretch(stretch)
    return scaling_of(kind, sensor, raw.dtype.name, (raw, valid), **more)


def test_uint8_is_divided_by_255_whatever_it_holds():
    raw = np.array([[[0, 51, 102]]] * 3, np.uint8)
    image, valid = prepare(raw, np.array([[True, True, False]]), scale(raw))
    np.testing.assert_allclose(image[:, 0, :2], [[0, 0.2]] * 3, rtol=1e-6)
    assert (image[:, 0, 2] == np.float32(NEUTRAL_GREY)).all()
    assert valid.tolist() == [[True, True, False]]
    assert image.dtype == np.float32


@pytest.mark.parametrize(
    "dtype", ["int8", "uint16", "int16", "int32", "uint32", "int64", "float32", "float64"]
)
def test_other_types_are_stretched_between_percentiles_per_band(dtype):
    ramp = np.linspace(0, 100, 10201).reshape(1, 101, 101).astype(dtype)
    raw = np.concatenate([ramp, ramp // 2, ramp // 4])
    scaling = scale(raw)
    assert scaling.low[0] == pytest.approx(2, abs=1)
    assert scaling.high == pytest.approx((98, 49, 24.5), abs=1)
    image, _ = prepare(raw, np.ones((101, 101), bool), scaling)
    assert image.min() == 0
    assert image.max() == 1


def test_large_integers_keep_their_digits():
    raw = (2**40 + np.arange(101, dtype=np.int64)).reshape(1, 1, 101)
    image, _ = prepare(raw, np.ones((1, 101), bool), scale(raw, "minmax"))
    np.testing.assert_allclose(image[0, 0], np.linspace(0, 1, 101), atol=1e-6)


def test_stretch_by_values_none_and_minmax():
    raw = np.array([[[100, 300, 500]]], np.uint16)
    assert scale(raw, "100,500").high == (500.0,)
    assert scale(raw, "none").high == (65535.0,)
    assert scale(raw.astype(np.float32), "none").high == (1.0,)
    assert scale(raw, "minmax") == Scaling("optical", (100.0,), (500.0,))
    assert scale(np.array([[[0, 1]]], np.uint8), bits=1).high == (1.0,)


def test_constant_and_empty_bands_do_not_divide_by_zero():
    constant = np.full((1, 4, 4), 7, np.uint16)
    image, _ = prepare(constant, np.ones((4, 4), bool), scale(constant))
    np.testing.assert_allclose(image, 0.5)
    sample = (constant, np.zeros((4, 4), bool))
    scaling = scaling_of(Stretch("auto"), "optical", "uint16", sample)
    image, _ = prepare(*sample, scaling)
    assert (image == np.float32(NEUTRAL_GREY)).all()


def test_nan_and_infinity_are_invalid_and_never_reach_the_image():
    raw = np.ones((3, 2, 2), np.float32)
    raw[0, 0, 0], raw[1, 1, 1] = np.nan, np.inf
    image, valid = prepare(raw, np.ones((2, 2), bool), Scaling("optical", (0.0,) * 3, (2.0,) * 3))
    assert valid.tolist() == [[False, True], [True, False]]
    assert np.isfinite(image).all()


def test_sar_two_polarisations_are_scaled_each_then_averaged():
    rng = np.random.default_rng(0)
    raw = np.stack([rng.uniform(-20, 0, (50, 50)), rng.uniform(-30, -10, (50, 50))])
    scaling = scale(raw.astype(np.float32), sensor="sar")
    assert scaling.decibels == 0
    image, _ = prepare(raw, np.ones((50, 50), bool), scaling)
    assert image.shape == (3, 50, 50)
    assert (image[0] == image[2]).all()
    assert image.mean() == pytest.approx(0.5, abs=0.03)


def test_sar_amplitude_and_power_become_decibels_and_zero_is_safe():
    power = 10 ** np.random.default_rng(0).uniform(-2, 0, (1, 60, 60)).astype(np.float32)
    power[0, 0, 0] = 0
    amplitude = (1000 * np.sqrt(power)).astype(np.uint16)
    by_power, by_amplitude = scale(power, sensor="sar"), scale(amplitude, sensor="sar")
    assert (by_power.decibels, by_amplitude.decibels) == (10, 20)
    assert scale(power, sensor="sar", unit="amplitude").decibels == 20
    assert by_power.low[0] == pytest.approx(-19.8, abs=0.3)
    valid = np.ones((60, 60), bool)
    one, _ = prepare(power, valid, by_power)
    two, _ = prepare(amplitude, valid, by_amplitude)
    np.testing.assert_allclose(one, two, atol=0.01)
    assert one[0, 0, 0] == 0
    assert scale(power, "-25,0", sensor="sar").low == (-25.0,)


def test_stretch_none_of_sar_takes_integers_as_they_are():
    raw = np.array([[[0, 6553, 65535]]], np.uint16)
    assert scale(raw, "none", sensor="sar") == Scaling("sar", (0.0,), (65535.0,))
    with pytest.raises(UsageError, match="no full scale"):
        scale(raw.astype(np.float32), "none", sensor="sar")


def test_display_scaled_sar_stays_as_it_is():
    raw = np.full((1, 2, 2), 51, np.uint8)
    image, _ = prepare(raw, np.ones((2, 2), bool), scale(raw, sensor="sar"))
    np.testing.assert_allclose(image, 0.2, rtol=1e-6)


def test_complex_values_count_by_their_amplitude():
    raw = np.full((1, 2, 2), 3 + 4j, np.complex64)
    image, _ = prepare(raw, np.ones((2, 2), bool), Scaling("sar", (0.0,), (10.0,)))
    np.testing.assert_allclose(image, 0.5)

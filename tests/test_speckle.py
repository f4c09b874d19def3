import json
import shutil

import numpy as np
import pytest
from scenes import options_for, write_scene

from segearth_cli.errors import UsageError
from segearth_cli.geo.raster import open_scene
from segearth_cli.geo.sensors import Scaling
from segearth_cli.geo.speckle import LeeFilter
from segearth_cli.options import SceneOptions
from segearth_cli.segment import plan, segment

LOOKS = 4


def radar(height=160, width=200):
    """A bright and a dark field side by side, as power with the speckle of four looks."""
    rng = np.random.default_rng(0)
    power = np.where(np.arange(width) < width // 2, 0.2, 0.02) * np.ones((1, height, width))
    return (power * rng.gamma(LOOKS, 1 / LOOKS, power.shape)).astype(np.float32)


def formula(power, row, col, size, looks):
    """Lee's filter at one pixel, written out."""
    half = size // 2
    rows, cols = (slice(max(0, i - half), i + half + 1) for i in (row, col))
    window = power[rows, cols].astype(np.float64)
    mean, variance = window.mean(), window.var()
    weight = min(max(1 - (1 / looks) / (variance / mean**2), 0), 1)
    return mean + weight * (power[row, col] - mean)


def test_it_is_lees_formula():
    power = radar()
    lee = LeeFilter(5, "power", LOOKS)
    padded = np.pad(power, ((0, 0), (2, 2), (2, 2)))
    valid = np.pad(np.ones(power.shape, bool), ((0, 0), (2, 2), (2, 2)))

    filtered = lee(padded, valid)

    for row, col in ((80, 60), (80, 100), (0, 0), (159, 30), (3, 198)):
        expected = formula(power[0], row, col, 5, LOOKS)
        assert filtered[0, row, col] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("unit", ["power", "amplitude", "decibels"])
def test_the_unit_changes_nothing_but_the_values(unit):
    power = radar()
    to, back = {
        "power": (lambda x: x, lambda x: x),
        "amplitude": (np.sqrt, np.square),
        "decibels": (lambda x: 10 * np.log10(x), lambda x: 10 ** (x / 10)),
    }[unit]
    valid = np.ones(power.shape, bool)

    filtered = back(LeeFilter(7, unit, LOOKS)(to(power), valid))

    np.testing.assert_allclose(filtered, LeeFilter(7, "power", LOOKS)(power, valid), rtol=1e-4)


def test_looks_are_those_of_the_speckle():
    power = radar(400, 400)

    assert LeeFilter(7, "power").looks_of(power, np.ones(power.shape, bool)) == pytest.approx(
        LOOKS, rel=0.3
    )


def test_a_filtered_scene_is_calm_with_its_edge_and_does_not_depend_on_how_it_is_read(tmp_path):
    power = radar()
    power[:, 100:120, 20:40] = np.nan
    source = write_scene(tmp_path / "a.tif", power, nodata=float("nan"))
    plain = open_scene(source, SceneOptions(sensor="sar", stretch="-25,0"))
    filtered = open_scene(source, SceneOptions(sensor="sar", stretch="-25,0", speckle=7))

    before, valid = plain.read(0, 160)
    after, same = filtered.read(0, 160)

    assert (valid == same).all()
    field = (0, slice(10, 90), slice(10, 80))
    assert after[field].std() < 0.6 * before[field].std()
    assert after[0, :, 110:].mean() < after[0, :90, :90].mean() - 0.2
    strips = np.concatenate([filtered.read(row, 20)[0] for row in range(0, 160, 20)], axis=1)
    np.testing.assert_array_equal(strips, after)
    halves = [filtered.read(0, 160, col, 100)[0] for col in (0, 100)]
    np.testing.assert_array_equal(np.concatenate(halves, axis=2), after)


def test_it_is_for_radar_and_odd_sizes(tmp_path, tiny_model, caplog):
    with pytest.raises(UsageError, match="odd number"):
        SceneOptions(speckle=4)
    scene = write_scene(tmp_path / "a.tif")
    said = "is no radar scene: read without a speckle filter"
    card = json.loads((tiny_model / "segearth.json").read_text())
    shutil.copytree(tiny_model, tmp_path / "radar")
    (tmp_path / "radar" / "segearth.json").write_text(
        json.dumps({**card, "sensor": "sar", "speckle": 7})
    )

    for doing in (plan, segment):
        caplog.clear()
        doing(scene, options_for(tmp_path / "radar", tmp_path / "a.png"))
        assert said not in caplog.text
        assert "is read as an optical scene, and tiny was made for radar" in caplog.text
        doing(scene, options_for(tiny_model, tmp_path / f"{doing.__name__}.png", speckle=5))
        assert said in caplog.text


def test_an_optical_model_is_said_to_be_poor_at_radar(tmp_path, tiny_model, caplog):
    source = write_scene(tmp_path / "a.tif", radar())
    plan(source, options_for(tiny_model, tmp_path / "a.png", sensor="sar"))
    assert "is read as radar, and tiny was made for optical images" in caplog.text


def test_the_unit_of_radar_values_can_be_said(tmp_path):
    source = write_scene(tmp_path / "a.tif", (radar() * 1000).astype(np.float32))

    said = {
        unit: open_scene(source, SceneOptions(sensor="sar", sar_unit=unit)).scaling.decibels
        for unit in ("auto", "power", "amplitude", "decibels")
    }

    assert said == {"auto": 10, "power": 10, "amplitude": 20, "decibels": 0}
    with pytest.raises(UsageError, match="--sar-unit"):
        SceneOptions(sar_unit="dB")


@pytest.mark.parametrize(
    ("said", "kind", "looks_like"),
    [
        ("power", "float32", None),
        ("amplitude", "float32", None),  # as floats they look alike
        ("decibels", "float32", "power"),
        ("power", "uint16", "amplitude"),
        ("decibels", "uint16", "amplitude"),
        ("amplitude", "uint16", None),
    ],
)
def test_a_unit_that_the_values_do_not_look_like_gets_a_warning(
    tmp_path, caplog, said, kind, looks_like
):
    source = write_scene(tmp_path / "a.tif", (radar() * 1000).astype(kind))

    open_scene(source, SceneOptions(sensor="sar", sar_unit=said)).close()

    warning = f"a.tif is read in {said}, as --sar-unit says, and looks like {looks_like}"
    assert caplog.text.count("--sar-unit") == (looks_like is not None)
    assert (warning in caplog.text) == (looks_like is not None)


@pytest.mark.parametrize("unit", ["power", "amplitude", "decibels"])
def test_a_tile_of_zeros_has_any_unit(tmp_path, caplog, unit):
    source = write_scene(tmp_path / "a.tif", np.zeros((1, 64, 64), np.float32))

    open_scene(source, SceneOptions(sensor="sar", sar_unit=unit)).close()

    assert "--sar-unit" not in caplog.text


@pytest.mark.parametrize(("share", "is_refused"), [(0.05, True), (0.15, False)])
def test_power_less_its_noise_may_be_mostly_below_zero(tmp_path, caplog, share, is_refused):
    power = np.full((1, 100, 100), -0.001, np.float32)
    power.reshape(-1)[:: round(1 / share)] = 0.2
    source = write_scene(tmp_path / "a.tif", power)
    options = SceneOptions(sensor="sar", sar_unit="power")

    if is_refused:
        with pytest.raises(UsageError, match="hardly a value is above 0"):
            open_scene(source, options)
        return
    with open_scene(source, options) as scene:
        assert scene.scaling.decibels == 10
    assert "is read in power, as --sar-unit says, and looks like decibels" in caplog.text


@pytest.mark.parametrize("unit", ["power", "amplitude"])
def test_a_unit_that_the_values_cannot_have_is_refused(tmp_path, unit):
    decibels = 10 * np.log10(radar())
    decibels[:, 10:20] *= -1  # bright targets lie above 0 dB
    source = write_scene(tmp_path / "a.tif", decibels)
    options = SceneOptions(sensor="sar", sar_unit=unit)

    with pytest.raises(UsageError, match="hardly a value is above 0; these may be decibels"):
        open_scene(source, options)
    noise = np.random.default_rng(1).normal(0, 0.01, (1, 160, 200))
    power = np.where(np.arange(160)[:, None] < 130, 0, radar() - 0.01 + noise).astype(np.float32)
    open_scene(write_scene(tmp_path / "b.tif", power), options).close()


def test_the_unit_of_8_bit_is_what_is_said(tmp_path):
    grey = np.clip(300 * np.sqrt(radar()), 1, 255).astype(np.uint8)
    source = write_scene(tmp_path / "a.tif", grey)

    def scaling(unit):
        with open_scene(source, SceneOptions(sensor="sar", sar_unit=unit)) as scene:
            return scene.scaling

    assert scaling("auto") == scaling("decibels") == Scaling("sar", (0.0,), (255.0,))
    for unit, factor in (("power", 10), ("amplitude", 20)):
        found = scaling(unit)
        assert found.decibels == factor
        bounds = factor * np.log10(np.percentile(grey, (1, 99)))
        assert (*found.low, *found.high) == pytest.approx(tuple(bounds), abs=0.2)


@pytest.mark.parametrize(
    ("values", "unit", "options", "scaled_from"),
    [
        (lambda power: power, "power", {}, "-30..0"),
        (lambda power: 10 * np.log10(power), "decibels", {}, "-30..0"),
        (lambda power: 10 * np.log10(power), "decibels", {"stretch": "-25,5"}, "-25..5"),
        (lambda power: power * 1e6, "power", {}, None),  # nothing calibrated is so bright
        (lambda power: 1000 * power**0.5, "amplitude", {}, None),  # digital numbers
    ],
)
def test_calibrated_radar_is_as_dark_as_the_model_saw_it(
    tmp_path, tiny_model, values, unit, options, scaled_from
):
    """A scene that is all water must not be stretched until it looks like land."""
    folder = shutil.copytree(tiny_model, tmp_path / "radar")
    card = json.loads((folder / "segearth.json").read_text())
    (folder / "segearth.json").write_text(
        json.dumps({**card, "sensor": "sar", "radar_db": [-30, 0]})
    )
    source = write_scene(tmp_path / "a.tif", values(radar() / 20).astype(np.float32))

    own = options_for(folder, tmp_path / "map.png", sensor="sar", sar_unit=unit, **options)
    reading = plan(source, own).reading

    assert scaled_from is None or f"scaled from {scaled_from}" in reading
    assert ("-30..0" in reading) == (scaled_from == "-30..0")

"""`segearth tune`: words, lambda and threshold by labelled scenes."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.windows import Window
from scenes import read
from typer.testing import CliRunner

from segearth_cli.choose import Setting, predicted
from segearth_cli.cli import app
from segearth_cli.look import look
from segearth_cli.options import ModelOptions, SegmentOptions, TuneOptions, parse_labelled
from segearth_cli.tune import space_of, tune

SAMPLES = Path(__file__).parents[1] / "sample_data"
NAMES = "other,building,road,water,tree,grass,cropland,bare ground".split(",")
CLASSES = (
    "building|house|roof,road|street,water|river,tree|forest,grass|meadow,cropland|field,"
    "bare ground|land"
)
WORDS = ("--classes", CLASSES, "--background", "other|background")
CPU = ("--device", "cpu", "--precision", "fp32")
CUTS = {"a": (0, 0), "b": (0, 800), "c": (700, 400)}  # first row and column
SIDE = 360  # pixels


def run(*args):
    return CliRunner().invoke(app, [*map(str, args)])


def error_of(result, code=2):
    assert result.exit_code == code, result.stderr
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line


def cut(name, destination, row, column, side=SIDE):
    """A part of a sample, with its tags."""
    with rasterio.open(SAMPLES / name) as src:
        window = Window(column, row, side, side)
        place = {"width": side, "height": side, "transform": src.window_transform(window)}
        with rasterio.open(destination, "w", **{**src.profile, **place}) as dst:
            dst.write(src.read(window=window))
            dst.update_tags(**src.tags())
    return destination


@pytest.fixture(scope="module")
def town(tmp_path_factory):
    """Three parts of the town, a.tif and a_labels.tif and so on."""
    folder = tmp_path_factory.mktemp("town")
    for name, (row, column) in CUTS.items():
        cut("town.tif", folder / f"{name}.tif", row, column)
        cut("town_labels.tif", folder / f"{name}_labels.tif", row, column)
    return folder


@pytest.fixture(scope="module")
def pairs(town):
    return [f"{town / name}.tif={town / name}_labels.tif" for name in CUTS]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def segment_by(command, scene, *more):
    """Run a command that was printed, on a scene of one's own."""
    words = shlex.split(command)
    assert words[:2] == ["segearth", "segment"]
    assert words[-2:] == ["-o", "map.gpkg"]
    done = run("segment", scene, *words[3:-1], *more)
    assert done.exit_code == 0, done.stderr


# --- the whole ---------------------------------------------------------------------------------


def options_for(pairs, **more):
    return TuneOptions(
        pairs=tuple(map(parse_labelled, pairs)),
        segment=SegmentOptions(
            classes=tuple(tuple(words.split("|")) for words in CLASSES.split(",")),
            background=("other", "background"),
            outputs=("map.gpkg",),
            model=ModelOptions(model="mini", device="cpu", precision="fp32"),
        ),
        **more,
    )


@pytest.mark.slow
def test_the_printed_command_gives_the_classes_that_were_computed(pairs, here):
    options = options_for(pairs[:2], samples=500)
    model, looked = look(options)
    space, _ = space_of(model, options.segment)
    result = tune(options)
    used = result.chosen if result.is_tuned else result.before
    kept = {*(used.background or ()), *(w for words in used.classes for w in words)}
    queries = [q for q, word in enumerate(model.vocabulary.queries) if word in kept]
    setting = Setting(tuple(queries), used.global_bias, used.threshold)
    for scene in looked:
        segment_by(result.command, scene.source, "map.tif", "--device", "cpu", "--overwrite")
        computed = predicted(scene.pixels, space, setting)
        found = read("map.tif")[scene.rows, scene.columns]
        assert (found != computed).mean() < 1e-3  # a probability may round to either side
        assert len(np.unique(found)) > 3


@pytest.mark.slow
def test_scenes_choose_and_check_each_other(pairs, town, here):
    done = run("tune", *pairs, *WORDS, "--model", "mini", *CPU, "--json", "--samples", 800)
    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout)
    before, chosen = result["before"], result["chosen"]
    assert before["classes"][0] == ["building", "house", "roof"]
    assert before["background"] == ["other", "background"]
    assert (before["threshold"], before["global_bias"]) == (0.0, 0.3)
    assert chosen["miou"] >= before["miou"]
    assert [words[0] for words in chosen["classes"]] == NAMES[1:]
    assert len(result["scenes"]) == 3
    for scene in result["scenes"]:
        assert sum(scene["pixels"].values()) == SIDE**2
        assert scene["left_out"]["classes"][0][0] == "building"
    assert result["is_tuned"] == (result["cross_miou"] > before["miou"])
    used = chosen if result["is_tuned"] else before
    assert (
        f"--threshold {used['threshold']:g} --global-bias {used['global_bias']:g}"
        in (result["command"])
    )
    # the score is that of the map, but for the pixels that were not looked at
    first = result["scenes"][0]
    segment_by(result["command"], town / "a.tif", "map.tif")
    measured = run("evaluate", "--pred", "map.tif", "--label", town / "a_labels.tif", "--json")
    measured = json.loads(measured.stdout)["scores"]["classes"]
    alone = run("tune", pairs[0], *WORDS, "--model", "mini", *CPU, "--json", "-q")
    assert first["used"] < sum(first["pixels"].values())
    by_hand = tune_score_of(pairs[0], used)
    for scores in measured:
        if by_hand.get(scores["name"]) is not None:
            assert scores["iou"] == pytest.approx(by_hand[scores["name"]], abs=0.03)
    assert "one scene cannot check" in alone.stderr


def tune_score_of(pair, used):
    """What tune says of these very words, lambda and threshold in one scene."""
    options = options_for([pair], samples=4000)
    segment = SegmentOptions(
        classes=tuple(map(tuple, used["classes"])),
        background=tuple(used["background"]),
        threshold=used["threshold"],
        outputs=("map.gpkg",),
        model=ModelOptions(
            model="mini", device="cpu", precision="fp32", global_bias=used["global_bias"]
        ),
    )
    return tune(TuneOptions(pairs=options.pairs, segment=segment, samples=4000)).before.iou

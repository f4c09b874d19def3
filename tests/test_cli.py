import json
import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from dataclasses import fields
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
from rasterio import Affine
from scenes import blocks, interruptible, names_in, read, surroundings, write_scene
from typer.main import get_command
from typer.testing import CliRunner

from segearth_cli import __version__, cli_segment
from segearth_cli.cli import app
from segearth_cli.options import (
    OUTPUT_SUFFIXES,
    DistillOptions,
    EvaluateOptions,
    ModelOptions,
    SceneOptions,
    SegmentOptions,
    UpsamplerOptions,
)
from segearth_cli.results import SegmentResult

ROOT = Path(__file__).parents[1]
WORDS = ("--classes", "building|roof,road,water")
HEAVY = ("torch", "open_clip", "rasterio", "geopandas", "pandas", "numpy")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working folder."""
    made = tmp_path / "work"
    made.mkdir()
    monkeypatch.chdir(made)
    return made


@pytest.fixture
def scene(tmp_path):
    """A scene in another folder than the outputs."""
    return write_scene(tmp_path / "scene.tif")


@pytest.fixture
def run(tiny_model, folder):
    """Run the command in this process; words and a model are set where none are given."""

    def invoke(*args, env=None, stdin=None):
        return CliRunner().invoke(app, [*map(str, args)], input=stdin, env=env)

    def segment(*args, words=WORDS, model=tiny_model, **more):
        own = ("--model", model) if model else ()
        return invoke("segment", *words, *own, "--device", "cpu", *args, **more)

    segment.any = invoke
    return segment


def command(*args):
    return [sys.executable, "-m", "segearth_cli", *map(str, args)]


def only_line(text):
    (line,) = text.splitlines()
    return line


# --- what is printed, and where ----------------------------------------------------------------


def test_a_run_says_what_it_found_on_stderr_and_nothing_on_stdout(run, scene, folder):
    result = run(scene, "-o", "map.gpkg", "-o", "map.tif")
    assert result.exit_code == 0
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert lines[0] == scene
    assert lines[1].split() == ["class", "share", "area"]
    assert [line.split()[0] for line in lines[2:6]] == ["background", "building", "road", "water"]
    assert lines[6].startswith("wrote map.gpkg, map.tif in ")
    assert len(lines) == 7
    assert names_in(folder) == ["map.gpkg", "map.tif", "map.tif.aux.xml"]


def test_quiet_leaves_warnings_and_verbose_says_the_steps(run, scene, tmp_path):
    assert run(scene, "-o", "a.tif", "-q").stderr == ""
    plain = write_scene(tmp_path / "plain.tif", crs=None, transform=Affine(1, 0, 5, 0, -1, 5))
    warning = only_line(run(plain, "-o", "b.tif", "-q").stderr)
    assert warning.startswith("warning: ")
    assert "no coordinate system" in warning
    spoken = run(scene, "-o", "c.tif", "-v").stderr
    assert "info: model tiny: attention segearth, upsampler bilinear" in spoken
    assert "bands 1,2,3, scaled from 0..255" in spoken


def test_json_is_an_object_per_scene(run, scene, tmp_path):
    other = write_scene(tmp_path / "other.tif", blocks(1, 40, 50))
    missing = str(tmp_path / "missing.tif")
    result = run(scene, missing, other, "-o", "{stem}.gpkg", "--json", "-q", "--nodata", "nan")
    assert result.exit_code == 3
    first, failed, second = map(json.loads, result.stdout.splitlines())
    assert (first["status"], second["status"]) == ("done", "done")
    assert (first["source"], first["outputs"]) == (scene, ["scene.gpkg"])
    assert sum(first["pixels"].values()) == 13_000
    assert first["area_m2"]["road"] == 4 * first["pixels"]["road"]
    assert first["options"]["nodata"] == "nan"
    error = f"cannot open {missing}: there is no such file"
    assert failed.pop("seconds") >= 0
    assert failed == {"status": "failed", "source": missing, "outputs": [], "error": error}
    assert only_line(result.stderr) == f"error: {error}"


def test_a_dash_writes_features_to_stdout(run, scene, folder):
    result = run(scene, "-o", "-", "-o", "map.geojsonl")
    assert result.exit_code == 0
    assert result.stdout == Path("map.geojsonl").read_text()
    assert {json.loads(line)["type"] for line in result.stdout.splitlines()} == {"Feature"}
    assert "wrote stdout, map.geojsonl in" in result.stderr


def test_stdout_carries_one_kind_of_data(run, scene):
    result = run(scene, "-o", "-", "--json")
    assert result.exit_code == 2
    assert only_line(result.stderr) == (
        "error: --json and -o - both write to stdout; give the polygons a file"
    )


def test_a_dry_run_says_how_and_writes_nothing(run, scene, folder):
    table = run(scene, "-o", "new/map.gpkg", "--dry-run")
    assert table.exit_code == 0
    assert "130 x 100 pixels" in table.stderr
    assert "12 of 64 x 64, every 32 pixels" in table.stderr
    assert "0 background, 1 building, 2 road, 3 water" in table.stderr
    result = run(scene, "-o", "new/map.gpkg", "-o", "-", "--dry-run", "--json")
    plan = json.loads(only_line(result.stdout))
    assert (plan["status"], plan["windows"], plan["gsd_m"]) == ("planned", 12, 2.0)
    assert plan["outputs"] == ["new/map.gpkg", "-"]
    assert names_in(folder) == []
    Path("map.gpkg").write_text("")
    assert run(scene, "-o", "map.gpkg", "--dry-run").exit_code == 1


def test_models_are_listed_and_found(run):
    rows = [json.loads(line) for line in run.any("models", "list", "--json").stdout.splitlines()]
    assert "vit-b-16" in {row["name"] for row in rows}
    result = run.any("models", "path", "vit-b-16")
    assert result.exit_code == 1
    assert "segearth models pull vit-b-16" in only_line(result.stderr)
    assert run.any("models", "path", "nonesuch").exit_code == 2


# --- inputs and outputs ------------------------------------------------------------------------


def test_several_scenes_each_get_their_own_outputs(run, scene, tmp_path, folder):
    other = write_scene(tmp_path / "other scene.tif", blocks(1))
    outputs = ("-o", "{stem}/map.tif", "--probabilities", "{stem}/p.tif")
    result = run("-", *outputs, stdin=f"{scene}\n{other}\n")
    assert result.exit_code == 0
    assert [name for name in names_in(folder) if not name.endswith(".xml")] == [
        "other scene",
        "other scene/map.tif",
        "other scene/p.tif",
        "scene",
        "scene/map.tif",
        "scene/p.tif",
    ]


@pytest.mark.parametrize(
    ("names", "output", "code", "message"),
    [
        (["scene.tif", "absent.tif"], "{stem}.gpkg", 3, "absent.tif: there is no such file"),
        (["absent.tif", "gone.tif"], "{stem}.gpkg", 1, "there is no such file"),
        (["absent.tif"], "map.gpkg", 1, "there is no such file"),
        (["scene.tif", "absent.tif"], "map.gpkg", 2, "put {stem} into the name"),
        (["scene.tif", "scene.tif"], "{stem}.gpkg", 2, "scene.tif is named twice"),
        (["scene.tif"], "map.jpg", 2, "cannot tell what to write from 'map.jpg'"),
        (["scene.tif"], "MAP.SHP", 2, "MAP.SHP: GDAL writes shapefiles in lower case"),
        (["scene.tif"], "maps/", 2, ".png, for instance 'maps/{stem}.gpkg', or -"),
        (["scene.tif"], "/vsis3/bucket/map.tif", 2, "is no local file"),
        (["scene.tif"], "scene.tif", 1, "is to be read"),
        (["scene.tif"], "./map.gpkg", 2, "is written twice"),
    ],
)
def test_exit_codes(run, scene, tmp_path, folder, names, output, code, message):
    outputs = ["-o", output, "-o", "map.gpkg"] if output == "./map.gpkg" else ["-o", output]
    if output == "scene.tif":
        outputs = ["-o", scene, "--overwrite"]
    result = run(*(tmp_path / name for name in names), *outputs)
    assert result.exit_code == code
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert message in errors[0]
    assert names_in(folder) == (["scene.gpkg"] if code == 3 else [])


def test_an_existing_output_needs_overwrite(run, scene):
    assert run(scene, "-o", "map.tif").exit_code == 0
    result = run(scene, "-o", "map.tif")
    assert result.exit_code == 1
    assert only_line(result.stderr) == "error: map.tif exists; use --overwrite to replace it"
    assert run(scene, "-o", "map.tif", "--overwrite").exit_code == 0


def test_options_come_from_the_environment(run, scene, tiny_model):
    env = {
        "SEGEARTH_SEGMENT_MODEL": str(tiny_model),
        "SEGEARTH_SEGMENT_CLASSES": "river",
        "SEGEARTH_SEGMENT_NO_BACKGROUND": "1",
        "SEGEARTH_VERSION": "not for --version",
    }
    result = run(scene, "-o", "map.tif", words=(), model=None, env=env)
    assert result.exit_code == 0
    assert (read("map.tif") == 1).all()
    with rasterio.open("map.tif") as src:
        assert json.loads(src.tags()["SEGEARTH_CLASSES"]) == [["river"]]


def test_classes_from_a_file_or_a_preset(run, scene):
    Path("words.txt").write_text("# mine\nFluß, river\nroad\n\n", encoding="utf-8")
    assert run(scene, "-o", "a.gpkg", words=("--classes-file", "words.txt")).exit_code == 0
    assert set(geopandas.read_file("a.gpkg", layer="a").class_name) <= {"Fluß", "road"}
    result = run(scene, "-o", "b.tif", "--json", words=("--preset", "loveda"))
    assert list(json.loads(result.stdout)["pixels"])[:3] == ["background", "building", "road"]


# --- usage errors ------------------------------------------------------------------------------


def test_a_missing_argument_and_an_unknown_command_exit_with_2(run):
    assert run("-o", "map.tif").exit_code == 2
    assert run.any("segmet").exit_code == 2


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--bbox", "1,2,3"], "--bbox '1,2,3' is not four numbers"),
        (["--bbox", "1,5 2,5"], "--bbox '1,5 2,5' is not four numbers"),
        (["--bbox", "3 4 1 2"], "--bbox 3,4,1,2 is no box: give left,bottom,right,top"),
        (["--bbox", "3 1 1 2"], "--bbox 3,1,1,2 is no box: give left,bottom,right,top"),
        (["--bbox", "175 1 -175 2"], "--bbox 175,1,-175,2 is no box: give left,bottom,right,top"),
        (["--bbox", "1,2,3 [EPSG:4326]"], "--bbox '1,2,3 [EPSG:4326]' is not four numbers"),
        (["--bbox", "1,3,2,4 [EPSG:1]", "--bbox-crs", "EPSG:1"], "names its coordinate system"),
        (["--bbox", "0,0,inf,inf"], "--bbox 0,0,inf,inf is no box"),
        (["--bbox", "0,0,1,1", "--aoi", "x.gpkg"], "--bbox and --aoi exclude each other"),
        (["--bands", "7"], "the scene has no band '7'; it has bands 1 to 3"),
        (["-b", "3", "-b", "2"], "--bands is given 2 times; give it once, with commas between"),
        (["--bbox-crs", "EPSG:4326"], "--bbox-crs EPSG:4326 is that of --bbox, and there is none"),
        (["--resume", "--overwrite"], "--resume and --overwrite exclude each other"),
        (["--nodata", "any"], "--nodata 'any' is no number"),
        (["road"], "there is no scene 'road'; part words of --classes"),
        (["--stretch", "5,1"], "the second number must be above the first"),
        (["--co", "LZW"], "--co 'LZW' is not NAME=VALUE"),
        (["--co", "FOO=BAR"], "FOO"),
        (["--sensor", "radar"], "--sensor is 'radar'; choose one of auto, optical, sar"),
        (["--attention", "best"], "--attention is 'best'; choose one of segearth"),
        (["--threshold", "50"], "--threshold is 50.0; it must lie between 0 and 1"),
        (["--min-area", "inf"], "--min-area is inf"),
        (["--gsd", "0"], "--gsd is 0.0; it must be a positive number of metres"),
        (["--logit-scale", "nan"], "--logit-scale is nan"),
        (["--global-bias", "nan"], "--global-bias is nan"),
        (["--window", "32", "--stride", "64"], "pixels would be skipped"),
        (["--stride", "65"], "skips pixels between windows of 64"),
        (["--modulated-blocks", "3", "--dry-run"], "and tiny has 2 blocks; give 2 or less"),
        (["--threads", "0"], "--threads is 0"),
        (["--device", "cuda:99"], "torch finds no such device here"),
        (["--model", "minni"], "no model or folder 'minni'"),
        (["--classes-file", "words.txt"], "--classes and --classes-file exclude each other"),
        (["--probabilities", "p.png"], "--probabilities 'p.png' is a raster; end it with .tif"),
    ],
)
def test_wrong_options_are_one_line_on_stderr(run, scene, folder, args, message):
    result = run(scene, "-o", "map.gpkg", *args)
    assert result.exit_code == 2
    line = only_line(result.stderr)
    assert line.startswith("error: ")
    assert message in line
    assert result.stdout == ""
    assert names_in(folder) == []


def test_options_that_change_nothing_are_said(run, scene):
    words = ("--co", "COMPRESS=LZW", "--datetime", "2024-05-06", "--sar-unit", "power")
    result = run(scene, "-o", "map.gpkg", *words, "--nodata", "999", "--asset", "red")
    assert result.exit_code == 0
    assert "warning: --co is for rasters, and none is written" in result.stderr
    assert "warning: --datetime is for the STAC Item: add --stac" in result.stderr
    assert "warning: --asset red is for STAC Items, and no input is one" in result.stderr
    assert "warning: --nodata 999 means nothing to " in result.stderr
    assert "is read as an optical image, where --sar-unit means nothing" in result.stderr
    result = run(scene, "-o", "map.tif", "--simplify", "2")
    assert "warning: --simplify is for polygons: none are written" in result.stderr


def test_without_nodata_all_pixels_have_data(run, folder):
    write_scene(folder / "hole.tif", np.zeros((3, 40, 50), np.uint8), nodata=0)
    for words, count in (((), 2000), (("--nodata", "none"), 0)):
        result = run("hole.tif", "-o", "map.tif", "--overwrite", "--json", *words)
        assert json.loads(result.stdout)["nodata_pixels"] == count
    assert "--nodata=none" in run.any("info", "map.tif").stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "say what to look for, for instance --classes building,road,water"),
        (("--classes", 'road,"a, b" c'), "quotes go around a whole class, as in"),
        (("--classes", 'road,"a'), "quotes go around a whole class, as in"),
        (("--classes", "a", "--background", ""), "an empty class name in --background ''"),
        (("--classes", "a,,b"), "an empty class name in --classes 'a,,b'"),
        (("--classes", "road,Road"), "'road' is named twice"),
        (("--classes-file", "nowhere.txt"), "cannot read the classes of nowhere.txt"),
        (("--preset", "nonesuch"), "no preset is named 'nonesuch'; choose one of openearthmap"),
    ],
)
def test_wrong_words_are_one_line_on_stderr(run, scene, words, message):
    result = run(scene, "-o", "map.gpkg", words=words)
    assert result.exit_code == 2
    assert message in only_line(result.stderr)


def test_no_output_at_all(run, scene):
    result = run(scene)
    assert result.exit_code == 2
    assert only_line(result.stderr).startswith("error: say what to write")


# --- bad scenes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("empty", "the file is empty (0 bytes)"),
        ("text", "it is not a raster that GDAL can read"),
        ("truncated", "the file may be damaged or cut short"),
        ("missing", "there is no such file"),
        ("folder", "it is a folder without scenes, which end with .tif"),
    ],
)
def test_bad_scenes_are_one_line_and_leave_nothing(run, scene, tmp_path, folder, kind, message):
    bad = tmp_path / f"{kind} scene.tif"
    content = Path(scene).read_bytes()
    if kind == "folder":
        bad.mkdir()
    elif kind != "missing":
        bad.write_bytes({"empty": b"", "text": b"hello\n"}.get(kind, content[: len(content) // 2]))
    result = run(bad, "-o", "maps/map.gpkg", "-o", "map.tif")
    assert result.exit_code == 1
    line = only_line(result.stderr)
    assert line.startswith("error: ")
    assert str(bad) in line
    assert message in line
    assert names_in(folder) == []


# --- the program as others run it --------------------------------------------------------------


def every_command():
    def walk(group, path):
        for name, entry in getattr(group, "commands", {}).items():
            yield [*path, name]
            yield from walk(entry, [*path, name])

    return [[], *walk(get_command(app), [])]


@pytest.mark.parametrize("path", every_command(), ids=" ".join)
def test_every_command_has_help(run, path):
    result = run.any(*path, "--help")
    assert result.exit_code == 0
    assert "Usage: " in result.stdout
    assert result.stderr == ""
    assert run.any(*path, "-h").stdout == result.stdout


# what `flags.own` fills from a command's parameters by their names, and the parameters that the
# command hands over itself: one that is in neither would do nothing
FILLED = {
    "segment": (
        (SegmentOptions, ModelOptions),
        "inputs output classes_file preset no_background datetime co asset shard resume on_error "
        "engine address dry_run json verbose quiet",
    ),
    "bench": (
        (ModelOptions,),
        "scene size classes arch max_memory threads vector json verbose quiet",
    ),
    "evaluate": (
        (EvaluateOptions, ModelOptions, SceneOptions),
        "list_file pred label classes label_values ignore column long_side json csv markdown "
        "verbose quiet",
    ),
    "tune": (
        (SegmentOptions, ModelOptions),
        "labelled classes_file no_background label_values ignore column samples json verbose quiet",
    ),
    "train-upsampler": ((UpsamplerOptions, SceneOptions), "gamma json quiet"),
    "distill-sar": (
        (DistillOptions,),
        "bands stretch nodata sar_bands sar_stretch sar_nodata sar_unit speckle json quiet",
    ),
}
OPTIONLESS = {"info", "models"}  # they fill no dataclass


@pytest.mark.parametrize("name", sorted({own[0] for own in every_command() if own} - OPTIONLESS))
def test_every_parameter_of_a_command_gets_somewhere(name):
    filled, otherwise = FILLED[name]
    known = {field.name for options in filled for field in fields(options)}
    parameters = {own.name for own in get_command(app).commands[name].params}
    assert parameters - known == set(otherwise.split())


def test_version(run):
    assert run.any("--version").stdout == f"segearth {__version__}\n"


def imported(names, arguments):
    """What a command prints, and which of these modules it imports."""
    code = (
        "import sys\nfrom segearth_cli.cli import app\n"
        f"try:\n    app({arguments!r}, prog_name='segearth')\n"
        f"finally:\n    sys.exit(str([m for m in {names!r} if m in sys.modules]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=surroundings()
    )
    *said, modules = (done.stdout + done.stderr).splitlines()
    return said, modules


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["segment", "--help"]])
def test_help_imports_nothing_heavy(arguments):
    said, modules = imported(HEAVY, arguments)
    assert said
    assert modules == "[]"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["info", "scene.tif"], "source           scene.tif"),
        (["segment", "gone.tif"], "error: cannot open gone.tif: there is no such file"),
        (["segment", "gone.tif", "--json", "-q"], '{"status": "failed", "source": "gone.tif", '),
        pytest.param(
            ["segment", "gone.tif", "--dry-run"],
            "error: cannot open gone.tif: there is no such",
            marks=pytest.mark.slow,
        ),
        (["segment", "scene.tif", "--model", "nosuch"], "error: no model or folder 'nosuch'; "),
        pytest.param(
            ["segment", "scene.tif", "--dst-crs", "EPSG:0"], "error: ", marks=pytest.mark.slow
        ),
    ],
)
def test_what_needs_no_network_does_not_wait_for_torch(scene, monkeypatch, arguments, says):
    monkeypatch.chdir(Path(scene).parent)
    Path(scene).rename("scene.tif")
    outputs = ["--classes", "road", "-o", "map.tif"] if arguments[0] == "segment" else []
    said, modules = imported(("torch", "open_clip"), [*arguments, *outputs])
    assert said[0].startswith(says)
    assert modules == "[]"


@pytest.mark.slow
def test_pipes_on_both_sides(scene, tiny_model, folder):
    args = ("segment", "-", "-o", "-", "--model", tiny_model, "--classes", "Straße,水", "-q")
    done = subprocess.run(
        command(*args),
        input=f"{scene}\n".encode(),
        capture_output=True,
        env=surroundings(PYTHONIOENCODING="ascii"),
    )
    assert (done.returncode, done.stderr) == (0, b"")
    features = [json.loads(line) for line in done.stdout.decode("utf-8").splitlines()]
    assert {feature["properties"]["class_name"] for feature in features} <= {"Straße", "水"}
    assert features


@pytest.mark.slow
@pytest.mark.parametrize("scenes", [1, 2])
def test_a_reader_that_leaves_is_no_error_message(scene, tiny_model, folder, tmp_path, scenes):
    sources = [scene, write_scene(tmp_path / "other.tif")][:scenes]
    args = ("segment", *sources, "-o", "-", "--model", tiny_model, *WORDS, "-q")
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(command(*args), stdout=writing, stderr=-1, env=surroundings())
    os.close(writing)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("name", ["segment", "models"])
def test_a_stdout_that_is_full_is_one_line(scene, tiny_model, folder, name):
    arguments = {
        "segment": (scene, "-o", "-", "--model", tiny_model, *WORDS, "-q"),
        "models": ("list", "--json"),
    }[name]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command(name, *arguments), stdout=full, stderr=-1, env=surroundings())
    assert done.returncode == 1
    line = only_line(done.stderr.decode())
    assert line == "error: cannot write to stdout: No space left on device"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_an_interrupted_run_leaves_nothing(tmp_path, tiny_model, folder, sent, code):
    scene = write_scene(tmp_path / "long.tif", blocks(1, 600, 600))
    args = ("-o", "new/map.tif", "-o", "map.gpkg", "--stride", "2", "--model", tiny_model, "-v")
    process = subprocess.Popen(
        command("segment", scene, *args, *WORDS),
        stderr=subprocess.PIPE,
        env=surroundings(),
        preexec_fn=interruptible,
    )
    with process:
        lines = [process.stderr.readline(), process.stderr.readline()]  # scene and model are open
        assert lines[1].startswith(b"info: model tiny")
        process.send_signal(sent)
        rest = process.stderr.read().decode()
    assert process.returncode == code
    assert rest == "error: interrupted; nothing unfinished was written\n"
    assert names_in(folder) == []


def test_windows_are_blended_as_asked(run, scene, folder):
    assert run(scene, "-o", "smooth.tif").exit_code == 0
    assert run(scene, "-o", "mean.tif", "--blend", "mean").exit_code == 0
    assert (read("smooth.tif") != read("mean.tif")).any()
    for name in ("smooth", "mean"):
        made = json.loads(run.any("info", f"{name}.tif", "--json").stdout)
        assert made["model"]["blend"] == name
        assert ("--blend=mean" in made["command"]) == (name == "mean")
    wrong = run(scene, "-o", "odd.tif", "--blend", "median")
    assert wrong.exit_code == 2
    assert "--blend is 'median'; choose one of smooth, mean" in wrong.stderr


# --- wrong usage, and a stdout that takes nothing ----------------------------------------------


@pytest.mark.parametrize(
    ("words", "env", "said"),
    [
        (["segment", "--nope"], {}, "no such option: --nope .*; see .*segment --help"),
        (["segment"], {}, "missing argument 'INPUT.*'; see .*segment --help"),
        (["bench", "--stride", "x"], {}, "--stride 'x' is no whole number; see .*bench --help"),
        (
            ["segment", "a.tif"],
            {"SEGEARTH_SEGMENT_THRESHOLD": "abc"},
            "--threshold 'abc' is no number; it comes from SEGEARTH_SEGMENT_THRESHOLD; see .*",
        ),
        (["models", "path"], {}, "missing argument .*; see .*models path --help"),
    ],
)
def test_wrong_usage_is_one_line(run, words, env, said):
    result = run.any(*words, env=env)
    assert result.exit_code == 2
    assert re.fullmatch(f"error: {said}", only_line(result.stderr))


@pytest.mark.parametrize("words", [["--version"], ["models", "list"], ["models", "path", "mini"]])
def test_a_stdout_that_takes_nothing_is_an_error(words):
    for stdout, why in (("/dev/full", "No space left"), (None, "it is closed")):
        closed = "import os, sys; os.close(1); os.execv(sys.executable, sys.argv[1:])"
        start = command(*words) if stdout else [sys.executable, "-c", closed, *command(*words)]
        with open(stdout or os.devnull, "w") as stream:
            done = subprocess.run(
                start, stdout=stream, stderr=subprocess.PIPE, text=True, env=surroundings()
            )
        assert done.returncode == 1
        assert why in only_line(done.stderr)


def test_a_closed_stderr_is_done_without(tmp_path, scene, tiny_model):
    closed = "import os, sys; os.close(2); os.execv(sys.executable, sys.argv[1:])"
    asked = command("segment", scene, "--classes", "road", "--model", tiny_model,
                    "--device", "cpu", "-o", tmp_path / "map.tif")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", closed, *asked], env=surroundings())
    assert done.returncode == 0
    assert read(tmp_path / "map.tif").shape == (100, 130)


@pytest.mark.parametrize("kind", ["full", "reader gone"])
def test_a_stderr_that_takes_nothing_is_done_without(tmp_path, scene, tiny_model, kind):
    other = write_scene(tmp_path / "other.tif", blocks(1, 40, 50))
    args = (scene, other, "--nodata", "999.5", "-o", "{stem}_map.tif", "--device", "cpu", "--json")
    reading, writing = os.pipe() if kind == "reader gone" else (None, os.open("/dev/full", 1))
    if reading is not None:
        os.close(reading)
    asked = command("segment", *args, "-v", "--model", tiny_model, *WORDS)
    done = subprocess.run(asked, stdout=-1, stderr=writing, cwd=tmp_path, env=surroundings())
    os.close(writing)
    assert [json.loads(line)["status"] for line in done.stdout.splitlines()] == ["done"] * 2
    assert done.returncode == 0


def test_a_folder_that_is_gone_is_one_line(tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    start = "import os, sys; os.rmdir(os.getcwd()); os.execv(sys.executable, sys.argv[1:])"
    asked = [sys.executable, "-c", start, *command("models", "list")]
    done = subprocess.run(asked, cwd=gone, capture_output=True, text=True, env=surroundings())
    assert done.returncode == 1
    assert only_line(done.stderr) == "error: the current folder is gone; change to another one"


def test_too_little_memory_is_one_line(run, scene, folder, monkeypatch):
    def none_left(*args):
        raise MemoryError

    monkeypatch.setattr("segearth_cli.reading.open_source", none_left)
    done = run(scene, "-o", "map.tif", "--json")
    assert done.exit_code == 1
    assert "not enough memory" in json.loads(done.stdout)["error"]
    assert "not enough memory for this process" in only_line(done.stderr)
    assert names_in(folder) == []


def test_a_name_that_is_no_text_is_said_to_be_in_json_that_is(scene, tiny_model, tmp_path):
    odd = tmp_path / os.fsdecode(b"sc\xe9ne.tif")
    shutil.copy(scene, odd)
    asked = command("segment", odd, "-o", tmp_path / "map.tif", "--model", tiny_model, *WORDS)
    done = subprocess.run([*asked, "--json"], capture_output=True, env=surroundings())
    assert done.returncode == 1
    said = json.loads(done.stdout.decode("utf-8"))
    assert said["source"] == str(odd)
    assert "its name is not UTF-8, which GDAL needs; rename it" in said["error"]


def test_pipes_and_devices_are_no_scenes(run, folder):
    os.mkfifo("scene.tif")
    for name in ("scene.tif", "/dev/zero"):
        done = run(name, "-o", "map.tif")
        assert done.exit_code == 1
        assert f"cannot open {name}: it is a pipe or a device" in only_line(done.stderr)


def test_what_lies_at_an_outputs_place_and_is_no_file_stays(run, scene, folder):
    os.mkfifo("pipe.gpkg")
    Path("nowhere.gpkg").symlink_to("store/map.gpkg")
    Path("loop.tif").symlink_to("loop.tif")
    before = names_in(folder)
    for name in before:
        says = "is a pipe or a device" if name == "pipe.gpkg" else "exists; use --overwrite"
        for more in ((), ("--resume",), ("--overwrite",) if name == "pipe.gpkg" else ()):
            done = run(scene, "-o", name, *more)
            assert done.exit_code == 1
            assert f"{name} {says}" in only_line(done.stderr)
    assert names_in(folder) == before


@pytest.mark.parametrize("suffix", [".tif", ".geojsonl", ".gpkg"])
def test_a_name_that_is_too_long_is_refused_before_any_work(run, scene, folder, suffix):
    name = "a" * (250 - len(suffix)) + suffix
    done = run(scene, "-o", name)
    assert done.exit_code == 1
    assert "File name too long, with what may be added to it" in only_line(done.stderr)


def test_outputs_have_the_permissions_that_the_umask_leaves(run, scene, folder):
    before = os.umask(0o002)
    try:
        names = [f"map{suffix}" for suffix in OUTPUT_SUFFIXES if suffix != ".tiff"]
        outputs = [word for name in names for word in ("-o", name)]
        assert run(scene, *outputs, "--stac").exit_code == 0
    finally:
        os.umask(before)
    modes = {name: Path(name).stat().st_mode & 0o777 for name in names_in(folder)}
    assert set(modes.values()) == {0o664}, modes


def test_a_list_from_a_stdin_that_is_closed_is_one_line():
    closed = "import os, sys; os.close(0); os.execv(sys.executable, sys.argv[1:])"
    asked = command("segment", "-", "--classes", "road", "-o", "{stem}.tif")
    done = subprocess.run(
        [sys.executable, "-c", closed, *asked], capture_output=True, text=True, env=surroundings()
    )
    assert done.returncode == 2
    assert only_line(done.stderr).endswith("from standard input, which is closed")


def test_help_that_nobody_can_read_is_an_error():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command("--help"), stdout=full, stderr=subprocess.PIPE, text=True, env=surroundings()
        )
    assert done.returncode == 1
    assert "No space left" in only_line(done.stderr)


def test_info_tells_of_a_scene_how_it_is_read(run, scene, tmp_path):
    said = json.loads(run.any("info", scene, "--json").stdout)
    assert (said["width"], said["height"], said["crs"]) == (130, 100, "EPSG:32633")
    assert said["bands"] == ["uint8 red", "uint8 green", "uint8 blue"]
    table = run.any("info", scene)
    assert "resolution       2 m\n" in table.stdout
    assert "read as          optical, bands 1,2,3" in table.stdout
    radar = ROOT / "sample_data" / "town_sar.tif"
    read_as = json.loads(run.any("info", radar, "--json").stdout)["reading"]
    assert read_as == "sar, bands 2, scaled from -30..0, Lee filter of 7 x 7"
    missing = run.any("info", tmp_path / "absent.tif")
    assert (missing.exit_code, missing.stdout) == (1, "")
    assert "there is no such file" in only_line(missing.stderr)
    folder = run.any("info", tmp_path)
    assert "is a folder, and no model; name one raster or map in it" in only_line(folder.stderr)


def test_info_tells_of_a_model_folder_how_it_runs(run, tiny_model, upsampled_model, tmp_path):
    said = json.loads(run.any("info", tiny_model, "--json").stdout)
    assert (said["folder"], said["name"]) == (str(tiny_model), "tiny")
    assert (said["window"], said["channels"]) == (64, 24)
    table = run.any("info", tiny_model)
    assert f"digest           sha256 {said['digest']}\n" in table.stdout
    assert "upsampler bilinear" in table.stdout
    assert "upsampler upsampler.safetensors" in run.any("info", upsampled_model).stdout
    assert "sha256 e095fc76590e4c1f" in run.any("info", "mini").stdout  # as the README shows
    assert "models pull vit-b-16" in only_line(run.any("info", "vit-b-16").stderr)
    (tmp_path / "segearth.json").write_text('{"name": "half"}')
    half = run.any("info", tmp_path)
    assert (half.exit_code, half.stdout) == (1, "")
    assert "has no open_clip_config.json" in only_line(half.stderr)


def test_maps_without_a_place_are_told_of_without_python_warnings(run, tmp_path, folder):
    scene = write_scene(tmp_path / "nowhere.tif", crs=None, transform=Affine.identity())
    assert run(scene, "-o", "map.tif", "-q").exit_code == 0
    done = subprocess.run(command("info", "map.tif"), capture_output=True, text=True, check=True,
                          env=surroundings(), cwd=folder)  # fmt: skip
    assert "made by" in done.stdout
    assert done.stderr == ""


def test_an_output_that_cannot_be_is_found_before_the_scene_is_read(run, scene, folder):
    Path("file").touch()
    result = run(scene, "-o", "map.tif", "-o", "file/map.gpkg", "-v")
    assert result.exit_code == 1
    assert "cannot write into file" in result.stderr.splitlines()[-1]
    assert "model" not in result.stderr
    assert names_in(folder) == ["file"]


def test_a_zip_archive_is_told_how_to_read(run, scene, folder):
    with zipfile.ZipFile("z.zip", "w") as archive:
        archive.write(scene, "scene.tif")
    result = run("z.zip", "-o", "map.gpkg")
    assert result.exit_code == 1
    assert only_line(result.stderr).endswith("name a raster in it, as /vsizip/z.zip/NAME.tif")
    assert run("/vsizip/z.zip/scene.tif", "-o", "map.gpkg", "--dry-run").exit_code == 0


def test_many_and_long_names_are_shortened_for_people_alone(run, scene, tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "few")
    card = tmp_path / "few" / "segearth.json"
    card.write_text(json.dumps({**json.loads(card.read_text()), "words": ["background"]}))
    names = ["x" * 1500, *(f"thing {number}" for number in range(299))]
    own = {"model": tmp_path / "few", "words": ("--classes", ",".join(names))}
    table = run(scene, "-o", "map.tif", "--dry-run", **own)
    assert max(map(len, table.stderr.splitlines())) < 500
    assert "and 281 more" in table.stderr  # of them the background
    assert "and 290 more: expect an arbitrary map" in table.stderr
    (line,) = run(scene, "-o", "map.tif", "--dry-run", "--json", **own).stdout.splitlines()
    assert list(json.loads(line)["classes"].values()) == ["background", *names]


@pytest.mark.parametrize(
    ("area_m2", "shown"),
    [
        (0.0, "0 m2"),
        (0.25, "0.25 m2"),
        (19268.0, "19268 m2"),
        (12_345_678.0, "12.346 km2"),
        (206_116_980_568_000.0, "206116981 km2"),
        (None, "-"),
    ],
)
def test_areas_have_the_decimals_that_they_need(capsys, area_m2, shown):
    options = SegmentOptions(classes=(("road",),))
    counts, areas = {"road": 4, "x" * 1500: 0}, {"road": area_m2, "x" * 1500: area_m2}
    result = SegmentResult("a.tif", (), counts, areas, 0, 1.0, options)
    cli_segment.show_result(result, as_json=False, quiet=False)
    lines = capsys.readouterr().err.splitlines()
    assert lines[2].split(" %")[1].strip() == shown
    assert max(map(len, lines)) < 100


def test_a_window_far_too_small_is_warned_of(run, scene):
    small, own = (
        run(scene, "-o", "map.tif", "--dry-run", "--window", side) for side in ("16", "64")
    )
    assert "--window 16 is too small for tiny, which takes windows of 64 pixels" in small.stderr
    assert "too small" not in own.stderr


def test_a_scene_that_has_a_world_file_alone_is_told_of_src_crs(run, tmp_path):
    source = write_scene(tmp_path / "world.tif", crs=None)
    plain = run(source, "-o", "map.geojson", "--dry-run")
    assert "segment's --src-crs says what they are in" in plain.stderr
    resampled = run(source, "-o", "map.geojson", "--dry-run", "--gsd", "4")
    assert (resampled.exit_code, "say it with --src-crs" in resampled.stderr) == (2, True)
    boxed = run(source, "-o", "map.geojson", "--bbox", "1,2,3,4", "--bbox-crs", "EPSG:4326")
    assert (boxed.exit_code, "say which with --src-crs" in boxed.stderr) == (2, True)


def test_words_that_a_model_has_never_read_are_named(run, scene, tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "few")
    card = tmp_path / "few" / "segearth.json"
    card.write_text(json.dumps({**json.loads(card.read_text()), "words": ["road", "background"]}))
    words = ("--classes", "Road,dirt_road,blorp")
    result = run(scene, "-o", "map.tif", model=tmp_path / "few", words=words)
    plan = run(scene, "-o", "plan.tif", "--dry-run", model=tmp_path / "few", words=words)
    assert "tiny has never read blorp: expect an arbitrary map" in " ".join(plan.stderr.split())
    assert "tiny has never read blorp: expect an arbitrary map" in " ".join(result.stderr.split())
    assert result.stderr.count("Road") == result.stderr.count("dirt_road") == 1  # in the table


LONG = "x" * 300


@pytest.mark.parametrize(
    "words",
    [
        ["info", LONG],
        ["models", "path", LONG],
        ["evaluate", "--dataset", "loveda", "--root", LONG],
        ["train-upsampler", LONG, "-o", "up"],
        ["distill-sar", "--optical", LONG, "--sar", LONG, "-o", "radar"],
    ],
)
def test_a_name_that_no_system_takes_is_one_line(words, folder):
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 1
    last = done.stderr.splitlines()[-1]
    assert last == f"error: cannot use {LONG[:200]}...: File name too long; check the name"


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv")
def test_what_may_not_be_read_is_one_line(scene, folder):
    closed = folder / "closed"
    closed.mkdir()
    closed.chmod(0)
    drop = "--bounding-set=-dac_override,-dac_read_search"
    own = ["setpriv", drop, drop.replace("bounding-set", "inh-caps"), sys.executable]
    words = [*own, "-m", "segearth_cli", "info", str(closed / "scene.tif")]
    done = subprocess.run(words, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    closed.chmod(0o700)
    assert done.returncode == 1
    assert re.fullmatch(
        r"error: cannot use .*closed.*: Permission denied; give yourself access to it.*\n",
        done.stderr,
    )


def test_alpha_beside_nodata_is_no_matter_of_a_library(folder, tiny_model):
    values = np.full((4, 60, 50), 255, np.uint8)
    values[:, :10] = 0
    write_scene("rgba.tif", values, nodata=0, photometric="RGB", alpha="YES")
    words = ["segment", "rgba.tif", "--classes", "a,b", "--model", str(tiny_model), "-o", "a.tif"]
    done = subprocess.run(
        [sys.executable, "-m", "segearth_cli", *words, "-q"],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0
    assert "Warning" not in done.stderr

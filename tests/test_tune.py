"""`segearth tune`: words, lambda and threshold by labelled scenes."""

import json
import shlex
from pathlib import Path

import geopandas
import numpy as np
import pandas
import pytest
import rasterio
import shapely
from labelled import predicted, truth, vector_of
from rasterio.windows import Window
from scenes import blocks, names_in, read, write_scene
from typer.testing import CliRunner

from segearth_cli.choose import Setting
from segearth_cli.cli import app
from segearth_cli.look import look
from segearth_cli.options import ModelOptions, SegmentOptions, TuneOptions
from segearth_cli.parse import parse_labelled
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
SIDE = 300  # pixels


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


def check_command(options):
    """Segment the scenes as the command says: the classes are those that were computed."""
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
        yield scene, found


@pytest.mark.slow
def test_the_printed_command_gives_the_classes_that_were_computed(pairs, here):
    for _, found in check_command(options_for(pairs[:2], samples=500)):
        assert len(np.unique(found)) > 3


@pytest.mark.parametrize(
    ("name", "precision", "background"),
    [
        ("tiny_model", "fp32", ("background", "rest")),
        ("tiny_model", "bf16", None),
        ("upsampled_model", "fp32", None),
        pytest.param("upsampled_model", "bf16", ("background", "rest"), marks=pytest.mark.slow),
    ],
)
def test_so_it_does_in_any_model(request, tmp_path, here, name, precision, background):
    model = ModelOptions(
        model=str(request.getfixturevalue(name)), device="cpu", precision=precision
    )
    array = blocks(3, 150, 170)
    array[:, 30:80, 40:100] = 0
    scene = write_scene(tmp_path / "scene.tif", array, nodata=0)
    labels = np.full((1, 150, 170), 255, np.uint8)
    labels[:, 20:90, 30:60], labels[:, 100:, 100:120], labels[:, 140, 5] = 1, 2, 2
    labels = write_scene(tmp_path / "labels.tif", labels)
    segment = SegmentOptions(
        classes=(("building", "roof"), ("road", "street")),
        background=background,
        outputs=("map.gpkg",),
        model=model,
    )
    options = TuneOptions(pairs=((scene, labels),), segment=segment, samples=300)
    ((looked, found),) = check_command(options)
    assert set(found) <= {0, 1, 2}  # where there is no data, nothing is looked at
    assert 400 < len(found) < 600
    assert ((looked.rows == 140) & (looked.columns == 5)).sum() <= 1


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


# --- the command -------------------------------------------------------------------------------


@pytest.fixture
def scene(tmp_path):
    return write_scene(tmp_path / "scene.tif")


@pytest.fixture
def small(tmp_path, tiny_model):
    """Two scenes of random weights' own making, with labels: for everything but quality."""
    classes = ("--classes", "building|house,road")
    words = ("--model", tiny_model, *CPU)
    pairs = []
    for name in ("one", "two"):
        path = write_scene(tmp_path / f"{name}.tif", blocks() if name == "one" else blocks()[::-1])
        labels = write_scene(tmp_path / f"{name}_labels.tif", truth())
        pairs.append(f"{path}={labels}")

    def invoke(*args, first=pairs):
        return run("tune", *first, *words, *(() if "--classes" in args else classes), *args)

    invoke.pairs, invoke.model = pairs, str(tiny_model)
    return invoke


def test_the_command_alone_goes_to_stdout_and_nothing_is_written(small, here):
    done = small()
    assert done.exit_code == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert line.startswith(f"segearth segment {small.pairs[0].partition('=')[0]} --classes ")
    assert line.endswith(" --precision fp32 -o map.gpkg")
    table = [row.split() for row in done.stderr.splitlines() if not row.startswith("warning: ")]
    assert table[0][:2] == ["2", "scenes,"]
    assert table[1] == ["IoU", "before", "chosen", "cross-validated"]
    assert [row[0] for row in table[2:6]] == ["background", "building", "road", "mean"]
    assert names_in(here) == []
    assert small("-q").stdout == done.stdout
    segment_by(line, small.pairs[0].partition("=")[0], "map.tif")


def test_defaults_stay_when_scenes_choose_what_is_wrong_for_others(small, tmp_path, here):
    scene = write_scene(tmp_path / "same.tif")
    contrary = write_scene(tmp_path / "contrary.tif", (truth() + 1) % 3)
    pairs = [small.pairs[0], f"{scene}={contrary}"]
    done = small("--json", "-q", first=pairs)
    result = json.loads(done.stdout)
    assert not result["is_tuned"]
    assert result["cross_miou"] <= result["before"]["miou"] <= result["chosen"]["miou"]
    assert (
        "--classes 'building|house,road' --background background --threshold 0 "
        in (result["command"])
    )
    assert "no better in the others than the defaults" in done.stderr


def test_one_scene_is_not_checked_and_that_is_said(small, here):
    done = small("-q", "--json", first=small.pairs[:1])
    result = json.loads(done.stdout)
    assert (result["is_tuned"], result["cross_miou"]) == (True, None)
    assert result["scenes"][0]["left_out"] is None
    assert "one scene cannot check what was chosen by it" in done.stderr


def test_scene_and_model_options_are_in_the_command(small, here):
    done = small("-q", "-b", "3,2,1", "--stretch", "0,200", "--stride", 48, "--no-background")
    words = shlex.split(done.stdout)
    for pair in (("--bands", "3,2,1"), ("--stretch", "0,200"), ("--stride", "48")):
        assert words[words.index(pair[0]) + 1] == pair[1]
    assert "--no-background" in words
    assert "--background" not in words
    segment_by(done.stdout, small.pairs[0].partition("=")[0], "map.tif")


def test_a_class_without_labels_is_named(small, tmp_path, here):
    labels = write_scene(tmp_path / "less.tif", np.where(truth() == 0, 255, truth()))
    scene = small.pairs[0].partition("=")[0]
    done = small("-q", first=[f"{scene}={labels}"])
    assert done.exit_code == 0
    assert "no pixel is labelled background: its words stay as they are, and so does" in done.stderr
    assert " --threshold 0 " in done.stdout


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a.tif=b.tif", ("a.tif", "b.tif")),
        ("d=1/a.tif=d=1/b.tif", ("d=1/a.tif", "d=1/b.tif")),
        ("d=1/a.tif=b.tif", ("d=1/a.tif", "b.tif")),
        ("a.tif=b.tif|layername=c=d", ("a.tif", "b.tif|layername=c=d")),
        ("a.tif=/vsizip/b.zip/c.gpkg|layername=d", ("a.tif", "/vsizip/b.zip/c.gpkg|layername=d")),
    ],
)
def test_an_equals_sign_may_be_in_a_path(here, text, parts):
    Path("d=1").mkdir()
    for name in ("a.tif", "b.tif", "d=1/b.tif"):
        Path(name).touch()
    assert parse_labelled(text) == parts


def test_labels_may_be_explained(small, tmp_path):
    scenes = [pair.partition("=")[0] for pair in small.pairs]
    usual = json.loads(small("--json").stdout)["scenes"]
    for name, values in (("codes", [311, 112, -5]), ("more", [7, 112, 9])):
        write_scene(tmp_path / f"{name}.tif", np.array(values, np.int32)[truth()])
    foreign = vector_of(truth(), scenes[1], "polygons", ("Sonstiges", "Gebäude", "2.0"))
    foreign.to_file(tmp_path / "words.gpkg")
    bare = foreign[foreign.class_name != "Sonstiges"]
    bare.to_file(tmp_path / "bare.gpkg")
    for labels, said in (
        ("codes.tif", "311=background,112=building,-5=2"),
        ("codes.tif", "112=1,-5=road,*=0"),
        ("more.tif", "112=1,9=road,*=0"),
        ("words.gpkg", "sonstiges=0,Gebäude=House,2=road"),
        ("bare.gpkg", "Gebäude=House,2=road,*=0"),
    ):
        pairs = [f"{scene}={tmp_path / labels}" for scene in scenes[1:]]
        done = small("--json", "--label-values", said, first=pairs)
        assert done.exit_code == 0, done.stderr
        assert json.loads(done.stdout)["scenes"][0]["pixels"] == usual[1]["pixels"]
    ignored = small("--json", "--label-values", "112=1,311=0", "--ignore", "-5",
                    first=[f"{scenes[0]}={tmp_path / 'codes.tif'}"])  # fmt: skip
    assert json.loads(ignored.stdout)["scenes"][0]["pixels"].keys() == {"background", "building"}
    assert "no pixel is labelled road: its words stay as they are" in ignored.stderr
    assert ignored.stderr.count("no pixel is labelled") == 1
    two = small("--json", "--classes", "building", "--label-values", "112=1,*=0", "--ignore", "-5",
                first=[f"{scenes[0]}={tmp_path / 'codes.tif'}"])  # fmt: skip
    assert two.exit_code == 0, two.stderr
    assert "no pixel is labelled" not in two.stderr
    column, row = 500_000, 5_400_000
    cloud = shapely.box(column + 60, row - 100, column + 100, row)
    odd = geopandas.GeoDataFrame({"class_name": ["cloud"]}, geometry=[cloud], crs=bare.crs)
    pandas.concat([bare, odd]).to_file(tmp_path / "cloudy.gpkg")
    said = ("--label-values", "Gebäude=1,2=road,*=0,Hause=1", "--ignore", "cloud")
    cloudy = small("--json", *said, first=[f"{scenes[1]}={tmp_path / 'cloudy.gpkg'}"])
    assert "cloudy.gpkg has nothing called hause" in cloudy.stderr
    pixels, before = json.loads(cloudy.stdout)["scenes"][0]["pixels"], usual[1]["pixels"]
    assert sum(before.values()) - sum(pixels.values()) == 20 * 50
    assert pixels["building"] < before["building"]
    wrong = small("--label-values", "112=barn")
    assert "there is no class barn; there are 0 background, 1 building, 2 road" in wrong.stderr
    both = small(first=[f"{scenes[1]}={tmp_path / 'words.gpkg'}"])
    assert "has labels of 'Gebäude', '2.0', 'Sonstiges', which" in both.stderr


def bad_labels(folder, scene):
    """Labels that cannot be used, what is said of them, and the exit code."""
    frame = vector_of(truth(), scene, "polygons")
    odd = frame.assign(class_name="shed")
    lines = frame.set_geometry(frame.boundary)
    far = frame.set_geometry(frame.translate(1e5))
    alone = frame.assign(class_name="house")
    plain = frame.rename(columns={"class_name": "kind"})
    for name, made in (("odd", odd), ("lines", lines), ("far", far), ("alone", alone)):
        made.to_file(folder / f"{name}.gpkg")
    plain.to_file(folder / "plain.gpkg")
    frame.to_file(folder / "layers.gpkg", layer="a")
    frame.to_file(folder / "layers.gpkg", layer="b")
    (folder / "text.csv").write_text("a,b\n1,2\n")
    write_scene(folder / "values.tif", truth() + 3)
    write_scene(folder / "real.tif", truth() + np.float32(0.5))
    write_scene(folder / "small.tif", truth()[:, :50], crs=None)
    return {
        "odd.gpkg": ("'shed', which are none of the classes background, building, road", 2),
        "lines.gpkg": ("neither a point nor a polygon", 1),
        "far.gpkg": ("labels no pixel of the scene", 1),
        "alone.gpkg": ("all labels are building; label pixels of two classes or more", 1),
        "plain.gpkg": ("which column holds the classes: --column (kind)", 2),
        "layers.gpkg": ("several layers (a, b)", 1),
        "text.csv": ("has no coordinates", 1),
        "values.tif": ("holds 3, 4, 5, which are none of the classes 0 background, 1 building", 2),
        "real.tif": ("holds 0.5, and classes are whole numbers", 1),
        "small.tif": ("not both are placed on the ground", 1),
        "missing.tif": ("there is no such file", 1),
    }


BAD = (
    "odd.gpkg", "lines.gpkg", "far.gpkg", "alone.gpkg", "plain.gpkg", "layers.gpkg", "text.csv",
    "values.tif", "real.tif", "small.tif", "missing.tif",
)  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_labels_that_cannot_be_used_are_one_line(small, tmp_path, scene, here, name):
    (message, code) = bad_labels(tmp_path, scene)[name]
    done = small("-q", first=[f"{scene}={tmp_path / name}"])
    errors = [line for line in done.stderr.splitlines() if not line.startswith("warning: ")]
    assert done.exit_code == code, done.stderr
    assert len(errors) == 1
    assert errors[0].startswith("error: ")
    assert message in errors[0]
    assert done.stdout == ""
    assert names_in(here) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("scene.tif",), "is not SCENE=LABELS"),
        (("a=b", "a=c"), "a is named twice, and scenes check each other"),
        (("a=b", "--samples", 0), "--samples is 0"),
        (("a=b", "--classes", "building,clutter", "--background", "rest"), "'clutter' and the"),
        (("a=b", "--model", "unheard-of"), "unheard-of"),
    ],
)
def test_what_cannot_be_asked_for_is_one_line(small, here, arguments, message):
    pairs = [a for a in arguments if "=" in str(a) or str(a).endswith(".tif")]
    rest = arguments[len(pairs) :]
    assert message in error_of(small(*rest, first=pairs))


def test_a_column_is_named(small, tmp_path, scene, here):
    frame = vector_of(truth(), scene, "polygons").rename(columns={"class_name": "kind"})
    frame.assign(label="shed").to_file(tmp_path / "kinds.gpkg")
    pair = [f"{scene}={tmp_path / 'kinds.gpkg'}"]
    for name in ("kind", "KIND"):
        assert small("--column", name, "-q", first=pair).exit_code == 0
    line = error_of(small("--column", "sort", first=pair))
    assert "no such column; it has kind, label" in line
    assert "'shed'" in error_of(small("-q", first=pair))


def test_what_is_unclassified_is_no_label(small, tmp_path, here):
    scene = small.pairs[0].partition("=")[0]
    made = str(tmp_path / "made.tif")
    own = ("--classes", "building,road", "--no-background")
    words = (
        "segment",
        scene,
        *own,
        "--threshold",
        "0.53",
        "--model",
        small.model,
        "-o",
        made,
        *CPU,
    )
    assert run(*words).exit_code == 0
    done = small(*own, "--json", "-q", "--samples", "99999", first=[f"{scene}={made}"])
    result = json.loads(done.stdout)
    assert result["before"]["iou"]["unclassified"] is None
    assert result["before"]["miou"] == pytest.approx(1)

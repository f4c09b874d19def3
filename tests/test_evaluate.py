"""``evaluate --dataset``: every preset's layouts, scored as by hand, and the authors' numbers."""

import io
import json
import os
import shutil
import weakref
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas
import pytest
import rasterio
import torch
import torch.nn.functional as F
from conftest import TINY, Reference
from PIL import Image
from scenes import write_scene
from typer.testing import CliRunner

from segearth_cli import __version__
from segearth_cli.cli import app
from segearth_cli.errors import SceneError, UsageError
from segearth_cli.evaluate import evaluate
from segearth_cli.geo.dataset_labels import check_labels, read_label
from segearth_cli.geo.datasets import find_samples, read_dataset
from segearth_cli.geo.tiling import WindowGrid
from segearth_cli.model import segmenter as module
from segearth_cli.model.card import ModelCard
from segearth_cli.model.folder import load_clip, save_model_folder
from segearth_cli.model.mosaic import image_logits
from segearth_cli.model.segmenter import build_segmenter, model_settings
from segearth_cli.model.text import text_features
from segearth_cli.model.weights import resolve_model
from segearth_cli.options import EvaluateOptions, ModelOptions
from segearth_cli.presets import read_presets
from segearth_cli.scores import IGNORED, Confusion

LAYOUTS = [
    (name, number)
    for name, preset in read_presets().items()
    for number in range(len(preset["layouts"]))
]
IN_COLOUR = {("isaid", 1), ("potsdam", 1), ("vaihingen", 1), ("uavid", 1), ("uavid", 2)}
CPU = {
    "model": ModelOptions(device="cpu", precision="fp32", blend="mean"),
    "progress": False,
}


def truth_of(classes, height, width, rng):
    """Blocks of 16 pixels of every class, and of nothing where the label can say so."""
    small = rng.integers(0, classes + 1, (-(-height // 16), -(-width // 16)))
    truth = np.kron(small, np.ones((16, 16), int))[:height, :width].astype(np.uint8)
    return np.where(truth == classes, IGNORED, truth)


def write_dataset(root, name, number, rng, sides=((48, 80), (70, 64))):
    """Images and labels where a layout has them; what each label says, by its file."""
    dataset = read_dataset(name)
    layout = dataset.layouts[number]
    said = {}
    stems = list(layout.stems[:2]) or ["one", "two"]
    for stem, (height, width) in zip(stems, sides, strict=True):
        image = root / layout.images.replace("*", "part") / f"{stem}{layout.image_suffix}"
        label = root / layout.labels.replace("*", "part") / f"{stem}{layout.label_suffix}"
        image.parent.mkdir(parents=True, exist_ok=True)
        label.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.kron(rng.integers(0, 256, (9, 9, 3)), np.ones((16, 16, 1)))[:height, :width]
        if dataset.sensor == "sar" or image.suffix.lower() == ".jpg":
            pixels[..., :] = pixels[..., :1]  # decoders differ in how they spread colours
        Image.fromarray(pixels.astype(np.uint8)).save(image, quality=95)
        truth = truth_of(len(dataset.classes), height, width, rng)
        said[label] = truth.copy()
        if (name, number) in IN_COLOUR:
            colours = np.array([*dataset.palette, (1, 2, 3)], np.uint8)
            Image.fromarray(colours[np.minimum(truth, len(colours) - 1)]).save(label)
            if not dataset.reduce_zero_label:
                said[label][truth == IGNORED] = dataset.background_index
        elif layout.grey is not None:
            said[label] = (truth == 1).astype(np.uint8)
            values = said[label] * np.uint8(255 if layout.grey > 1 else 1)
            Image.fromarray(values).save(label, quality=100)
        else:
            values = truth + np.uint8(1) if dataset.reduce_zero_label else truth
            values[truth == IGNORED] = 0 if dataset.reduce_zero_label else IGNORED
            if label.suffix == ".jpg":
                said[label] = (truth == 1).astype(np.uint8)
                values = said[label]
            Image.fromarray(values).save(label, quality=100)
        if layout.list:
            (root / layout.list).open("a").write(f"{image.name}\n")
    return said


@pytest.mark.parametrize(("name", "number"), LAYOUTS)
def test_labels_of_a_layout_are_understood(tmp_path, name, number):
    said = write_dataset(tmp_path, name, number, np.random.default_rng(0))

    dataset = read_dataset(name)
    samples = find_samples(dataset, tmp_path)

    assert {sample.label for sample in samples} == set(said)
    for sample in samples:
        assert sample.image.is_file()
        np.testing.assert_array_equal(read_label(sample, dataset), said[sample.label])


def test_masks_of_one_bit_and_masks_of_0_and_1(tmp_path, caplog):
    said = write_dataset(tmp_path, "inria", 1, np.random.default_rng(0))
    dataset = read_dataset("inria")
    samples = find_samples(dataset, tmp_path)
    bits, bytes_ = {"nbits": 1}, {}
    none = {label: np.zeros_like(truth) for label, truth in said.items()}
    for creation, written, read, warnings in (
        (bits, said, said, 0),
        (bytes_, said, none, 1),
        (bytes_, none, none, 0),
    ):
        for label, truth in written.items():
            height, width = truth.shape
            profile = {"height": height, "width": width, "count": 1, "dtype": "uint8", **creation}
            profile["transform"] = rasterio.Affine(1, 0, 5, 0, -1, 5)
            with rasterio.open(label, "w", driver="GTiff", **profile) as dst:
                dst.write(truth, 1)
        caplog.clear()

        check_labels(dataset, samples, progress=False)

        assert len(caplog.records) == warnings
        assert caplog.text.count("has a value of 128 or more, from where on") == warnings
        for sample in samples:
            np.testing.assert_array_equal(read_label(sample, dataset), read[sample.label])


@pytest.mark.parametrize("name", read_presets())
def test_a_preset_is_scored_as_by_hand(tmp_path, name, tiny_model):
    said = write_dataset(tmp_path, name, 0, np.random.default_rng(1))
    dataset = read_dataset(name)
    preset = read_presets()[name]

    result = evaluate(
        EvaluateOptions(dataset=name, root=tmp_path, models=(str(tiny_model),), **CPU)
    )

    folder = resolve_model(str(tiny_model))
    clip, tokenizer = load_clip(folder)
    keys = ["attention", "modulated_blocks", "global_bias", "window"]
    keys += ["stride"] if preset["window"] else []
    settings = model_settings(folder, ModelOptions(**{k: preset[k] for k in keys}), "fp32")
    text = text_features(clip, tokenizer, dataset.queries, None, "")
    segmenter = build_segmenter(clip.visual, None, text, dataset.query_class, settings)
    counts = np.zeros((len(dataset.classes),) * 2, int)
    for sample in find_samples(dataset, tmp_path):
        pixels = torch.from_numpy(np.array(Image.open(sample.image).convert("RGB")))
        image = pixels.permute(2, 0, 1)[None] / 255
        scale = preset["long_side"] / max(image.shape[-2:])
        size = [int(side * scale + 0.5) for side in image.shape[-2:]]
        image = F.interpolate(image, size, mode="bilinear")[0].numpy()
        logits = image_logits(
            segmenter, image, WindowGrid(*image.shape[1:], preset["window"], preset["stride"])
        )
        truth = said[sample.label]
        logits = F.interpolate(logits[None], truth.shape, mode="bilinear")[0]
        queries = (logits * segmenter.logit_scale).softmax(dim=0)
        belongs = torch.tensor(dataset.query_class)
        best = torch.stack([queries[belongs == k].amax(0) for k in range(len(dataset.classes))])
        found = best.argmax(0)
        found[best.amax(0) < preset["threshold"]] = preset["background_index"]
        for true in range(len(dataset.classes)):
            for other in range(len(dataset.classes)):
                counts[true, other] += int(((truth == true) & (found.numpy() == other)).sum())
    confusion = np.array(result.rows[0].scores.confusion)
    assert confusion.sum() == counts.sum() > 0
    # a pixel between two classes falls either way when windows are summed in another order
    assert np.abs(confusion - counts).sum() <= 0.001 * counts.sum()
    hits = confusion.diagonal()
    union = confusion.sum(0) + confusion.sum(1) - hits
    expected = [h / u for h, u in zip(hits, union, strict=True) if u]
    assert result.rows[0].scores.miou == pytest.approx(np.mean(expected))
    assert (result.metric, result.paper_score) == (preset["metric"], preset["paper_score"])


def test_the_protocol_gives_the_authors_classes(tmp_path, reference, monkeypatch):
    """The reference's model and text features, as a dataset with the label it predicts."""
    queries = reference["query_class"].tolist()
    classes = [[f"word{i}" for i, k in enumerate(queries) if k == c] for c in range(9)]
    name = "slide/300x251/SegEarth+jbu_one+gba/classes_threshold0.3"
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    image = reference["image"].numpy()[:300, :251]
    Image.fromarray(image).save(tmp_path / "images/one.png")
    label = reference[name].numpy().astype(np.uint8)
    Image.fromarray(label).save(tmp_path / "labels/one.png")
    dataset = {
        "classes": classes,
        "images": "images",
        "labels": "labels",
        "image_suffix": ".png",
        "threshold": 0.3,
        "background_index": 0,
        "window": 224,
        "stride": 112,
        "attention": "segearth",
        "global_bias": 0.3,
    }
    (tmp_path / "golden.json").write_text(json.dumps(dataset))
    model = reference_model(tmp_path / "model", reference)
    monkeypatch.setattr(module, "text_features", lambda *_: reference["queries"])

    result = evaluate(
        EvaluateOptions(
            dataset=str(tmp_path / "golden.json"), root=tmp_path, models=(str(model),), **CPU
        )
    )

    assert result.rows[0].upsampler == "upsampler"
    assert result.rows[0].scores.pixels == label.size
    assert result.rows[0].scores.accuracy > 0.9995


def reference_model(folder, reference):
    config = {
        "embed_dim": 64,
        "quick_gelu": True,
        "vision_cfg": {
            "image_size": 224,
            "layers": 4,
            "width": 96,
            "head_width": 32,
            "patch_size": 16,
        },
        "text_cfg": {**TINY["text_cfg"]},
    }
    import open_clip

    torch.manual_seed(0)
    state = open_clip.CLIP(**config).state_dict()
    visual = {f"visual.{name}": value for name, value in reference.weights("visual").items()}
    assert visual.keys() <= state.keys()
    preprocess = {"mean": Reference.mean, "std": Reference.std}
    return save_model_folder(
        folder,
        {**state, **visual},
        {"model_cfg": config, "preprocess_cfg": preprocess},
        ModelCard("golden"),
        reference.weights("jbu_one"),
    ).path


@pytest.fixture
def udd(tmp_path):
    write_dataset(tmp_path, "udd5", 0, np.random.default_rng(0))
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)])


def test_settings_are_compared_in_one_table(udd, tiny_model, upsampled_model):
    arguments = ("--dataset", "udd5", "--root", udd, "--device", "cpu", "--precision", "fp32")
    models = f"{tiny_model},{upsampled_model}"
    more = ("--attention", "segearth,gem", "--global-bias", "0,0.3", "--long-side", "0,96")

    done = run(*arguments, "--model", models, *more, "--upsampler", "auto,bilinear", "--markdown")

    assert done.exit_code == 0, done.output
    lines = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert lines[0].startswith("| model | attention | upsampler | lambda | long side | mIoU | veg")
    assert len(lines) == 2 + (1 + 2) * 2 * 2 * 2  # the tiny one has no upsampler of its own
    assert len({line.split(" | ")[2] for line in lines[2:]}) == 2
    alone = run(*arguments, "--model", upsampled_model, "--attention", "gem", "--json")
    row = json.loads(alone.stdout)["rows"][0]
    wanted = ["sharp", "gem", "upsampler", "0.3", "448"]
    assert [row[k] for k in ("model", "attention", "upsampler")] == wanted[:3]
    assert row["long_side"] == 448


def test_csv_is_a_row_for_each_setting(udd, tiny_model):
    done = run("--dataset", "udd5", "--root", udd, "--model", tiny_model, "--csv", "-q")

    header, row = done.stdout.splitlines()
    assert header.split(",")[:6] == [
        "model",
        "attention",
        "upsampler",
        "lambda",
        "long side",
        "mIoU",
    ]
    assert row.startswith("tiny,segearth,bilinear,0.3,448,")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--stride", "0"), "--stride is 0; it must be 1 or more"),
        (("--modulated-blocks", "0"), "--modulated-blocks is 0; it must be 1 or more"),
        (("--window", "0", "--stride", "50"), "leave --stride 50 out"),
        (("--batch-size", "0"), "--batch-size is 0"),
        (("--logit-scale", "0"), "--logit-scale is 0"),
        (("--exact", "--precision", "bf16"), "exclude each other"),
        (("--global-bias", "0,inf"), "--global-bias is inf"),
        (("--precision", "x"), "--precision is 'x'"),
        (("--threads", "0"), "--threads is 0"),
        (("--attention", "gem", "--modulated-blocks", "2"), "--modulated-blocks 2 changes nothing"),
    ],
)
def test_settings_that_no_model_has_are_refused(udd, tiny_model, more, said):
    done = run("--dataset", "udd5", "--root", udd, "--model", tiny_model, *more)
    assert (done.exit_code, done.stdout) == (2, "")
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_row_says_all_that_its_scores_depend_on(udd, tiny_model):
    own = ("--dataset", "udd5", "--root", udd, "--model", tiny_model, "--device", "cpu")
    more = ("--window", "96", "--logit-scale", "40", "--precision", "fp32", "--threshold", "0.2")
    row = json.loads(run(*own, *more, "--json", "-q").stdout)["rows"][0]
    expected = {
        "modulated_blocks": 1,
        "threshold": 0.2,
        "logit_scale": 40.0,
        "window": 96,
        "stride": 48,
        "blend": "mean",
        "precision": "fp32",
        "exact": False,
        "model_digest": resolve_model(str(tiny_model)).digest(),
        "upsampler_digest": None,
        "version": __version__,
    }
    assert {name: row[name] for name in expected} == expected
    table = run(*own, *more, "--csv", "-q").stdout.splitlines()
    header, cells = (line.split(",") for line in table)
    assert header[-len(expected) :] == list(expected)
    said = ["" if value is None else str(value) for value in expected.values()]
    assert cells[-len(expected) :] == said
    row = json.loads(run(*own, "--window", "0", "--json", "-q").stdout)["rows"][0]
    assert (row["window"], row["stride"]) == (0, None)


def test_models_of_one_name_are_called_as_they_were_asked_for(udd, tiny_model, tmp_path):
    other = shutil.copytree(tiny_model, tmp_path / "tiny")
    both = ("--model", f"{tiny_model},{other},mini")
    result = json.loads(run("--dataset", "udd5", "--root", udd, *both, "--json", "-q").stdout)
    assert [row["model"] for row in result["rows"]] == [str(tiny_model), str(other), "mini"]
    assert result["classes"] == [[*words] for words in read_dataset("udd5").classes]


def test_gem_claims_no_modulated_blocks(udd, tiny_model):
    own = ("--dataset", "udd5", "--root", udd, "--model", tiny_model, "--modulated-blocks", "2")
    both = ("--attention", "segearth,gem")
    rows = json.loads(run(*own, *both, "--json", "-q").stdout)["rows"]
    assert [row["modulated_blocks"] for row in rows] == [2, None]
    table = run(*own, *both, "--csv").stdout.splitlines()
    assert [line.split(",")[1] for line in table] == ["attention", "segearth x2", "gem"]


def test_every_image_has_scores_of_its_own(udd, tiny_model):
    own = ("--dataset", "udd5", "--root", udd, "--model", tiny_model, "--per-image", "-q")
    both = ("--global-bias", "0,0.3")
    rows = json.loads(run(*own, *both, "--json").stdout)["rows"]
    names = [sample.image for sample in find_samples(read_dataset("udd5"), udd)]
    for row in rows:
        assert [one["file"] for one in row["files"]] == [*map(str, names)]
        counts = [np.array(one["scores"]["confusion"]) for one in row["files"]]
        np.testing.assert_array_equal(sum(counts), row["scores"]["confusion"])
    table = pandas.read_csv(io.StringIO(run(*own, *both, "--csv").stdout))
    assert [*table.columns[:9]] == ["image", *"model attention upsampler lambda".split(),
                                    "long side", "pixels", "right", "mIoU"]  # fmt: skip
    assert table["image"].tolist() == [*map(str, names), "all"] * 2
    assert table["lambda"].tolist() == [0, 0, 0, 0.3, 0.3, 0.3]
    every = [s for row in rows for s in (*(f["scores"] for f in row["files"]), row["scores"])]
    assert table["pixels"].tolist() == [scores["pixels"] for scores in every]
    right = [100 * scores["accuracy"] for scores in every]
    assert table["right"].tolist() == pytest.approx(right, abs=1e-6)
    shown = run(*own[:-1]).stderr
    worst = min(rows[1]["files"], key=lambda one: one["scores"]["accuracy"])
    assert Path(worst["file"]).name in shown.split("the worst first")[1].splitlines()[1]


@pytest.mark.parametrize(("name", "number"), [("udd5", 0), ("openearthmap", 0), ("potsdam", 0)])
def test_maps_of_a_dataset_score_as_it_did(tmp_path, tiny_model, name, number):
    root, maps = tmp_path / "data", tmp_path / "maps"
    write_dataset(root, name, number, np.random.default_rng(0))
    own = ("--dataset", name, "--root", root, "--model", tiny_model, "--maps", maps)
    (row,) = json.loads(run(*own, "--json", "-q").stdout)["rows"]
    dataset = read_dataset(name)
    samples = find_samples(dataset, root)
    confusion = Confusion(len(dataset.classes))
    found = sorted(maps.rglob("*.tif"))
    with rasterio.open(found[0]) as src:
        made_by = json.loads(src.tags()["SEGEARTH_MODEL"])
        assert (made_by["name"], made_by["blend"]) == ("tiny", "mean")
        assert src.tags()["SEGEARTH_DATASET"] == name
    told = CliRunner().invoke(app, ["info", str(found[0])]).stdout
    assert f"dataset          {name}\n" in told
    assert told.endswith("none: it is of segearth evaluate --maps\n")
    assert {path.stem for path in found} == {sample.image.stem for sample in samples}
    for path in found:
        (sample,) = (s for s in samples if s.image.stem == path.stem)
        with rasterio.open(path) as src:
            assert json.loads(src.tags()["CLASSES"]) == {
                str(value): called for value, called in enumerate(dataset.names)
            }
            if dataset.palette:
                colours = [src.colormap(1)[value][:3] for value in range(len(dataset.palette))]
                assert colours == [*dataset.palette]
            confusion.add(read_label(sample, dataset), src.read(1))
    assert confusion.counts.tolist() == row["scores"]["confusion"]
    again = run(*own)
    assert again.exit_code == 1
    assert "exists; name another folder for the maps" in again.stderr
    (tmp_path / "file").write_text("")
    assert "file is a file; name a folder" in run(*own[:-1], tmp_path / "file").stderr
    several = run(*own[:-1], tmp_path / "more", "--global-bias", "0,0.3")
    assert several.exit_code == 2
    assert "--maps is of one setting" in several.stderr
    assert not (tmp_path / "more").exists()


def test_maps_lie_where_their_images_do(tmp_path, tiny_model):
    write_dataset(tmp_path, "udd5", 0, np.random.default_rng(0))
    (tmp_path / "own.toml").write_text(
        'classes = ["vegetation", "building", "road", "vehicle", "other"]\n'
        'images = "images"\nlabels = "val/gt"\nlabel_suffix = ".png"\n'
    )
    (tmp_path / "images").mkdir()
    places = {}
    for label in sorted((tmp_path / "val/gt").iterdir()):
        with Image.open(label) as truth:
            width, height = (2 * side for side in truth.size)  # twice as fine as its label
        image = np.full((3, height, width), 90, np.uint8)
        path = write_scene(tmp_path / "images" / f"{label.stem}.tif", image)
        places[label.stem] = path
    done = run("--dataset", tmp_path / "own.toml", "--root", tmp_path, "--model", tiny_model,
               "--maps", tmp_path / "maps", "-q")  # fmt: skip
    assert done.exit_code == 0, done.output
    for stem, path in places.items():
        with rasterio.open(path) as image, rasterio.open(tmp_path / f"maps/{stem}.tif") as made:
            assert (2 * made.width, 2 * made.height) == (image.width, image.height)
            assert (made.crs, made.bounds) == (image.crs, image.bounds)


def test_models_and_options_of_the_other_sensor_are_told(udd, tiny_model):
    own = ("--dataset", "udd5", "--root", udd, "--limit", "1", "--long-side", "56")
    done = run(*own, "--model", "mini-sar", "--speckle", "7", "--sar-unit", "power")
    assert done.exit_code == 0, done.output
    assert "udd5 is read as an optical scene, and mini-sar was made for radar" in done.stderr
    assert "udd5 is no radar scene: read without a speckle filter" in done.stderr
    assert "udd5 is read as an optical image, where --sar-unit means nothing" in done.stderr
    assert "say --sensor" not in done.stderr  # which evaluate does not have
    assert "was made for" not in run(*own, "--model", tiny_model).stderr
    assert "--window 7 is too small" in run(*own, "--model", "mini", "--window", "7").stderr


def test_mistakes_are_told_before_any_model_is_loaded(udd, tiny_model, monkeypatch):
    monkeypatch.setattr(module, "load_clip", lambda _: pytest.fail("the model was loaded"))
    own = ("--dataset", "udd5", "--root", udd, "--model")
    assert run(*own, f"{tiny_model},nothing").exit_code == 2
    assert run(*own, tiny_model, "--upsampler", "auto,nothing.ckpt").exit_code == 1


def test_one_model_at_a_time_is_held(udd, tiny_model, upsampled_model, monkeypatch):
    held, alive = [], []

    def loaded(folder):
        alive.append([model() is not None for model in held])
        clip, tokenizer = load_clip(folder)
        held.append(weakref.ref(clip.visual))
        return clip, tokenizer

    monkeypatch.setattr(module, "load_clip", loaded)
    models = f"{tiny_model},{upsampled_model},{tiny_model}"  # one of them twice
    done = run("--dataset", "udd5", "--root", udd, "--model", models, "--json", "-q")
    assert [row["model"] for row in json.loads(done.stdout)["rows"]] == ["tiny", "sharp"]
    assert alive == [[], [False]]


def test_a_dataset_of_ones_own_is_described_by_a_toml_file(tmp_path, tiny_model):
    write_dataset(tmp_path, "udd5", 0, np.random.default_rng(0))
    (tmp_path / "own.toml").write_text(
        'classes = ["vegetation", ["building", "house"], "road", "vehicle", "other"]\n'
        'images = "val/src"\nlabels = "val/gt"\nimage_suffix = ".JPG"\nlabel_suffix = ".png"\n'
    )

    done = run(
        *("--dataset", tmp_path / "own.toml", "--root", tmp_path, "--model", tiny_model),
        *("--limit", "1", "--json", "-q"),
    )

    result = json.loads(done.stdout)
    assert (result["dataset"], result["images"]) == ("own", 1)
    assert [c["name"] for c in result["rows"][0]["scores"]["classes"]][1] == "building"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--dataset", "nothing", "--root", "."), "no dataset is named 'nothing'"),
        (("--dataset", "loveda", "--root", "{}"), "no image of loveda with its label under"),
        (("--dataset", "loveda", "--root", "{}/missing"), "is no folder"),
        (("--dataset", "loveda"), "name its folder with --root"),
        ((), "say what to measure"),
        (("--dataset", "{}/bad.toml", "--root", "{}"), "bad.toml"),
        (("--dataset", "{}/odd.json", "--root", "{}"), "nothing is called 'clases'"),
        (("--dataset", "udd5", "--root", "{}", "--attention", "x"), "--attention is 'x'"),
        (("--dataset", "udd5", "--root", "{}", "--global-bias", "x"), "no list of numbers"),
        (("--dataset", "udd5", "--root", "{}", "--csv", "--json"), "exclude each other"),
        (("--dataset", "udd5", "--root", "{}", "--ignore", "3"), "--ignore is an option of --pred"),
        (("--pred", "a", "--label", "b", "--threshold", "0.1"), "--threshold is an option of"),
    ],
)
def test_what_cannot_be_measured_is_said_in_one_line(udd, arguments, said):
    (udd / "bad.toml").write_text("classes = [\n")
    (udd / "odd.json").write_text('{"clases": ["a", "b"]}')

    done = run(*(argument.format(udd) for argument in arguments))

    assert done.exit_code == 2
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('palette = ["#000000", "#ffffff"]', "palette is .* must be a list of red,green,blue"),
        ("palette = [[0, 0, 0], [1, 1, 1], [2, 2, 2]]", "palette is at most one"),
        ("palette = [[0, 0, 0], [0, 0, 0]]", "palette has one colour for two classes"),
        ("colours = [[0, 0, 0, 2]]", "colours are red,green,blue,class each"),
        ('modulated_blocks = "2"', 'modulated_blocks is "2"; it must be a whole number from 1 on'),
        ('layouts = ["x"]', "does not describe a dataset"),
        ("layouts = [{images = 'a', labels = 'b', patch = [9]}]", "patch is .9.; it must be two"),
        ("layouts = [{images = 5, labels = 'b'}]", "images is 5; it must be a folder"),
        ("layouts = [{images = '*/*', labels = '*'}]", "images is .* with one"),
        ("layouts = [{images = 'a', labels = '*'}]", "labels stands for the one in images"),
        ('global_bias = "0.3"', 'global_bias is "0.3"; it must be a number'),
        ('reduce_zero_label = "false"', 'is "false"; it must be true or false'),
        ("long_side = true", "long_side is true; it must be a whole number of pixels"),
        ('threshold = "0.3"', 'threshold is "0.3"; it must be a number from 0 to 1'),
        ("background_index = -1", "background_index is -1; it must be the number of a class"),
        ('ignore = ["x"]', "ignore is .* it must be a list of whole numbers"),
        ("window = 50\nstride = 60", "stride exceeds window"),
    ],
)
def test_a_dataset_that_makes_no_sense_is_refused(tmp_path, line, said):
    file = tmp_path / "own.toml"
    folders = "" if "layouts" in line else 'images = "a"\nlabels = "b"\n'
    file.write_text(f'classes = ["a", "b"]\n{folders}{line}\n')
    with pytest.raises(UsageError, match=said):
        read_dataset(str(file))


def test_a_class_that_is_named_twice_is_refused(tmp_path):
    file = tmp_path / "own.toml"
    file.write_text('classes = ["a", ["B", "c"], "b"]\nimages = "a"\nlabels = "b"\n')
    with pytest.raises(UsageError, match="a class is named twice"):
        read_dataset(str(file))


def test_labels_that_do_not_fit_are_named(udd, tiny_model):
    label = udd / "val/gt/one.png"
    Image.fromarray(np.full((48, 80), 9, np.uint8)).save(label)

    done = run("--dataset", "udd5", "--root", udd, "--model", tiny_model)

    assert done.exit_code == 1
    assert f"{label} holds 9" in done.stderr
    label.unlink()
    assert "has no label at" in run("--dataset", "udd5", "--root", udd, "--model", "mini").stderr


@pytest.mark.parametrize("classes", ['"ab"', '["a", []]', '["a", 1]', '["a"]', "5"])
def test_classes_are_names(tmp_path, classes):
    file = tmp_path / "own.toml"
    file.write_text(f'classes = {classes}\nimages = "a"\nlabels = "b"\n')
    with pytest.raises(UsageError, match=r"classes is .*; it must be a list of two to 254 names"):
        read_dataset(str(file))


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("{}/val/src", "{}/val/gt"),
        ("{}/*/src/", "{}/*/gt"),
        ("./*/src", "*/gt"),
        ("*/src", "{}/*/gt"),
    ],
)
def test_folders_may_be_absolute(udd, tiny_model, images, labels):
    content = {
        "classes": ["a", "b", "c", "d", "e"],
        "images": images.format(udd),
        "labels": labels.format(udd),
        "image_suffix": ".JPG",
    }
    (udd / "own.json").write_text(json.dumps(content))
    samples = find_samples(read_dataset(str(udd / "own.json")), udd)
    assert [(s.image.name, s.label.is_file()) for s in samples] == [
        ("one.JPG", True),
        ("two.JPG", True),
    ]


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (None, "cannot read the list"),
        (["one", "three"], r"val\.txt names three, and no image is called so"),
        (["one"], ["val/src/one.JPG"]),
        (["val/src/two.JPG", "val/src/one"], ["val/src/one.JPG", "val/src/two.JPG"]),
    ],
)
def test_a_dataset_of_ones_own_is_what_its_list_names(udd, names, found):
    content = {
        "classes": ["a", "b", "c", "d", "e"],
        "images": "*/src",
        "labels": "*/gt",
        "image_suffix": ".JPG",
        "list": "val.txt",
    }
    (udd / "own.json").write_text(json.dumps(content))
    if names:
        (udd / "val.txt").write_text("\n".join(names))
    if isinstance(found, str):
        with pytest.raises(UsageError, match=found):
            find_samples(read_dataset(str(udd / "own.json")), udd)
        return
    samples = find_samples(read_dataset(str(udd / "own.json")), udd)
    assert [sample.image.relative_to(udd).as_posix() for sample in samples] == found
    shutil.copytree(udd / "val", udd / "train")
    if names == ["one"]:
        with pytest.raises(UsageError, match="names one, and 2 images are called so; name them"):
            find_samples(read_dataset(str(udd / "own.json")), udd)
    else:
        assert len(find_samples(read_dataset(str(udd / "own.json")), udd)) == 2


def test_keys_of_layouts_are_said_to_be(tmp_path):
    own = {"classes": ["a", "b"], "layouts": [{"images": "i", "labels": "l"}], "grey": 128}
    (tmp_path / "own.json").write_text(json.dumps(own))
    with pytest.raises(UsageError, match=r"'grey' beside \[\[layouts\]\]; put it into each"):
        read_dataset(str(tmp_path / "own.json"))


def test_labels_of_two_classes_without_one_of_them_are_said(tmp_path, caplog):
    mask = np.zeros((40, 40), np.uint8)
    mask[:10] = 255
    _, file, *_ = one_of_own(tmp_path, np.zeros((40, 40, 3), np.uint8), mask)
    dataset = read_dataset(str(file))
    check_labels(dataset, find_samples(dataset, tmp_path), progress=False)
    assert "no pixel of the labels is water; 25 % say nothing (a value of 255, or" in caplog.text


def test_a_label_that_was_cut_is_said_to_be(tmp_path, caplog):
    label = np.indices((39, 40)).sum(0).astype(np.uint8) % 2
    _, file, *_ = one_of_own(tmp_path, np.zeros((40, 40, 3), np.uint8), label)
    dataset = read_dataset(str(file))
    check_labels(dataset, find_samples(dataset, tmp_path), progress=False)
    assert "1 of 1 labels have a few pixels more or less than their images, as" in caplog.text


def test_words_that_a_model_has_never_read_are_said(tmp_path):
    label = np.indices((40, 40)).sum(0).astype(np.uint8) % 2
    image = np.zeros((40, 40, 3), np.uint8)
    own = one_of_own(tmp_path, image, label, classes=["land", "watr"])
    done = run(*own, "--model", "mini", "-q")
    assert done.exit_code == 0
    assert "mini has never read watr: expect an arbitrary map" in done.stderr


def test_a_list_that_cannot_be_read_is_one_line(udd):
    (udd / "list.txt").write_bytes(b"\xff\xfe")
    for name, said in (("nolist.txt", "No such file or directory"), ("list.txt", "no text in UTF")):
        done = run("--dataset", "udd5", "--root", udd, "--list", udd / name)
        assert done.exit_code == 2
        assert f"cannot read the list {udd / name}: {said}" in done.stderr.replace("it is ", "")
        assert "Errno" not in done.stderr


def one_of_own(folder, image, label, **more):
    """A dataset of one image and its label as PNGs, described by a file."""
    for name, pixels in (("images", image), ("labels", label)):
        (folder / name).mkdir()
        Image.fromarray(pixels).save(folder / name / "one.png")
    content = {
        "classes": ["land", "water"],
        "images": "images",
        "labels": "labels",
        "image_suffix": ".png",
        **more,
    }
    (folder / "own.json").write_text(json.dumps(content))
    return ("--dataset", folder / "own.json", "--root", folder)


@pytest.mark.parametrize("damaged", ["images", "labels", "colours"])
def test_a_png_that_is_cut_short_is_one_line(tmp_path, tiny_model, damaged):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (90, 120, 3), np.uint8)
    colours = np.array([[0, 0, 0], [0, 0, 255]], np.uint8)
    label = rng.integers(0, 2, (90, 120), np.uint8)
    label = colours[label] if damaged == "colours" else label
    own = one_of_own(tmp_path, image, label, palette=colours.tolist())
    path = tmp_path / ("images" if damaged == "images" else "labels") / "one.png"
    os.truncate(path, path.stat().st_size // 2)

    done = run(*own, "--model", tiny_model, "--json")

    assert (done.exit_code, done.stdout) == (1, "")
    assert len(done.stderr.strip().splitlines()) == 1
    assert str(path) in done.stderr
    assert "the file may be damaged or cut short" in done.stderr


def test_a_label_tiff_that_is_cut_short_is_one_line(tmp_path, tiny_model):
    label = np.random.default_rng(0).integers(0, 2, (90, 120), np.uint8)
    own = one_of_own(tmp_path, np.zeros((90, 120, 3), np.uint8), label, label_suffix=".tif")
    path = tmp_path / "labels/one.tif"
    Image.fromarray(label).save(path, compression="tiff_lzw")
    os.truncate(path, path.stat().st_size // 2)

    done = run(*own, "--model", tiny_model)

    assert (done.exit_code, len(done.stderr.strip().splitlines())) == (1, 1)
    assert str(path) in done.stderr


def labelled(folder, values, nodata=None, **more):
    """What a label TIFF with these values says."""
    one_of_own(folder, np.zeros((2, 3, 3), np.uint8), np.zeros((2, 3), np.uint8), **more)
    with rasterio.open(
        folder / "labels/one.png",
        "w",
        driver="GTiff",
        width=3,
        height=2,
        count=1,
        dtype=values.dtype,
        nodata=nodata,
    ) as dst:
        dst.write(values, 1)
    dataset = read_dataset(str(folder / "own.json"))
    return read_label(find_samples(dataset, folder)[0], dataset).tolist()


def test_labels_may_be_whole_floats(tmp_path):
    values = np.array([[0, 1, np.nan], [1, 255, 0]], np.float32)
    assert labelled(tmp_path, values) == [[0, 1, 255], [1, 255, 0]]
    values[0, 0] = 0.5
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    with pytest.raises(SceneError, match=r"one.png holds 0\.5, which is none of the 2 classes"):
        labelled(tmp_path, values)


@pytest.mark.parametrize(
    ("nodata", "more", "expected"),
    [
        (7, {}, [[0, 1, 255], [1, 255, 0]]),
        (0, {"ignore": [7, 9]}, [[0, 1, 255], [1, 255, 0]]),  # of a class: the protocol decides
        (7, {"reduce_zero_label": True, "ignore": [9]}, [[255, 0, 255], [0, 255, 255]]),
    ],
)
def test_nodata_of_a_label_says_nothing_unless_it_is_a_class(tmp_path, nodata, more, expected):
    values = np.array([[0, 1, 7], [1, 9 if more else 7, 0]], np.int16)
    assert labelled(tmp_path, values, nodata, **more) == expected


def test_all_labels_are_read_before_the_model(udd, tiny_model, monkeypatch):
    monkeypatch.setattr(module, "load_clip", lambda _: pytest.fail("the model was loaded"))
    own = ("--dataset", "udd5", "--root", udd, "--model", tiny_model)
    label = udd / "val/gt/two.png"  # the last one
    right = np.asarray(Image.open(label))
    for wrong, said in ((np.full_like(right, 9), "holds 9"), (right[:9], "must show the same")):
        Image.fromarray(wrong).save(label)
        done = run(*own)
        assert (done.exit_code, len(done.stderr.strip().splitlines())) == (1, 1)
        assert said in done.stderr
    for path in (udd / "val/gt").iterdir():
        Image.fromarray(np.full_like(np.asarray(Image.open(path)), 255)).save(path)
    Image.fromarray(np.full_like(right, 255)).save(label)
    done = run(*own, "--json")
    assert (done.exit_code, done.stdout) == (1, "")
    assert f"no pixel of the labels in {udd}/val/gt has a class of udd5" in done.stderr


@pytest.mark.parametrize(
    ("more", "fate"),
    [
        ({}, "they are left out"),
        ({"background_index": 1}, "they count as water"),
        ({"background_index": 1, "reduce_zero_label": True}, "they are left out"),
    ],
)
def test_colours_that_are_no_class_are_told(tmp_path, tiny_model, more, fate):
    label = np.zeros((50, 40, 3), np.uint8)
    label[:2], label[2, :20], label[3, :8], label[4, 0] = (1, 2, 3), (4, 5, 6), (7, 8, 9), 9
    palette = [[0, 0, 0], [0, 0, 255]]
    own = one_of_own(tmp_path, np.zeros_like(label), label, palette=palette, **more)

    done = run(*own, "--model", tiny_model)

    assert done.exit_code == 0, done.output
    said = "5.45 % of the labels' pixels have colours that are no class of own, such as "
    assert f"warning: {said}1,2,3 and 4,5,6 and 7,8,9: {fate}\n" in done.stderr
    assert done.stderr.count("colours") == 1


@pytest.mark.parametrize("name", ["potsdam", "vaihingen"])
def test_black_borders_of_labels_are_expected(tmp_path, name):
    for path in write_dataset(tmp_path, name, 1, np.random.default_rng(0)):
        label = np.asarray(Image.open(path)).copy()
        label[(label == (1, 2, 3)).all(axis=-1)] = 0
        Image.fromarray(label).save(path)
    dataset, strange = read_dataset(name), Counter()
    for sample in find_samples(dataset, tmp_path):
        assert (read_label(sample, dataset, strange) == IGNORED).any()
    assert not strange


def test_large_images_are_cut_as_the_authors_cut_them(tmp_path, tiny_model):
    dataset = read_dataset("inria")
    layout = replace(dataset.layouts[1], patch=(40, 30), overlap=10)
    from segearth_cli.geo.datasets import pieces

    cut = [(r.start, r.stop, c.start, c.stop) for r, c in pieces(70, 100, layout)]

    assert cut[:3] == [(0, 30, 0, 40), (0, 30, 30, 70), (0, 30, 60, 100)]
    assert {row for row, *_ in cut} == {0, 20, 40}
    assert all(stop - start == 30 for start, stop, *_ in cut)


def test_a_threshold_needs_a_background(udd, tiny_model):
    (udd / "own.toml").write_text(
        'classes = ["a", "b", "c", "d", "e"]\nimages = "val/src"\nlabels = "val/gt"\n'
        'image_suffix = ".JPG"\nlabel_suffix = ".png"\n'
    )
    own = ("--dataset", udd / "own.toml", "--root", udd, "--model", tiny_model, "--json", "-q")

    plain, refused = run(*own), run(*own, "--threshold", "0.9")

    assert plain.exit_code == 0, plain.output
    assert refused.exit_code == 2
    assert "no class of own is the background" in refused.stderr


def test_an_image_and_the_label_of_another_are_refused(udd, tiny_model):
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(udd / "val/gt/one.png")

    done = run("--dataset", "udd5", "--root", udd, "--model", tiny_model)

    assert done.exit_code == 1
    assert "they must show the same ground" in done.stderr


def test_a_label_may_be_finer_than_its_image(udd, tiny_model):
    for path in (udd / "val/gt").iterdir():
        label = np.asarray(Image.open(path))
        Image.fromarray(np.kron(label, np.ones((2, 2), np.uint8))).save(path)

    done = run("--dataset", "udd5", "--root", udd, "--model", tiny_model, "--json", "-q")

    assert done.exit_code == 0, done.output


def test_upsamplers_of_equal_file_names_are_told_apart(udd, tiny_model, upsampled_model):
    file = upsampled_model / "upsampler.safetensors"
    own = ("--dataset", "udd5", "--root", udd, "--model", tiny_model, "--json", "-q")

    rows = json.loads(run(*own, "--upsampler", f"bilinear,{file}").stdout)["rows"]

    assert [row["upsampler"] for row in rows] == ["bilinear", "sharp/upsampler.safetensors"]


def test_equal_settings_are_measured_once(udd, tiny_model):
    own = ("--dataset", "udd5", "--root", udd, "--model", tiny_model, "--json", "-q")

    assert len(json.loads(run(*own, "--upsampler", "auto,bilinear").stdout)["rows"]) == 1


def test_a_list_that_names_nothing_there_is_refused(udd, tiny_model):
    (udd / "list.txt").write_text("one\ntypo\n")

    done = run("--dataset", "udd5", "--root", udd, "--list", udd / "list.txt")

    assert "names typo, and no image is called so" in done.stderr


def test_the_grey_of_a_mask_has_no_alpha_and_its_nodata_says_nothing(tmp_path):
    mask = np.array([[0, 0, 255], [255, 0, 0]], np.uint8)
    with_alpha = np.stack([mask, np.full_like(mask, 255)], axis=-1)
    one_of_own(tmp_path, np.zeros((2, 3, 3), np.uint8), with_alpha, grey=1)
    dataset = read_dataset(str(tmp_path / "own.json"))
    (sample,) = find_samples(dataset, tmp_path)
    assert read_label(sample, dataset).tolist() == [[0, 0, 1], [1, 0, 0]]
    values = mask.astype(np.int16)
    values[0, 0] = -9999
    path = tmp_path / "labels" / "one.png"
    path.unlink()
    write_scene(tmp_path / "labels" / "one.tif", values[None], nodata=-9999)
    (tmp_path / "labels" / "one.tif").rename(path)
    assert read_label(sample, dataset).tolist() == [[IGNORED, 0, 1], [1, 0, 0]]
    for high, nodata in ((1, 1), (255, 255), (255, 0)):  # which shows less of a mask in GIS
        values = (mask // 255 * high).astype(np.uint8)
        made = write_scene(tmp_path / "own.tif", values[None], nodata=nodata)
        shutil.move(made, path)
        assert read_label(sample, dataset).tolist() == [[0, 0, 1], [1, 0, 0]]

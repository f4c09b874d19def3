"""What a script may hand over: numbers of numpy, paths and lists; and what it is told otherwise."""

import json
from dataclasses import fields, replace
from enum import Enum
from pathlib import Path

import numpy as np
import pytest
import torch
from scenes import options_for, write_scene

from segearth_cli import options as module
from segearth_cli.batch import segment_all
from segearth_cli.errors import UsageError
from segearth_cli.geo.recorded import read_record
from segearth_cli.options import (
    BatchOptions,
    CompareOptions,
    DistillOptions,
    EvaluateOptions,
    ModelOptions,
    SceneOptions,
    SegmentOptions,
    UpsamplerOptions,
)
from segearth_cli.results import Skipped
from segearth_cli.segment import segment
from segearth_cli.stream import load_model
from segearth_cli.typed import Typed

WORDS = (("building",), ("road",))


def test_every_dataclass_of_options_is_checked():
    every = [each for each in vars(module).values() if isinstance(each, type)]
    options = [each for each in every if each.__module__ == module.__name__]
    assert len(options) == 12
    assert all(issubclass(each, Typed) for each in options)


def test_numbers_of_numpy_lists_and_paths_become_pythons():
    options = SegmentOptions(
        classes=[["building", "house"], ("road",)],
        outputs=[Path("maps") / "a.tif"],
        colours=[np.array([255, 0, 0]), None],
        threshold=np.float32(0.25),
        min_area=np.int64(3),
        nodata=np.uint8(7),
        bbox=np.array([1.0, 2.0, 3.0, 4.0]),
        overwrite=np.bool_(True),
        model=ModelOptions(model=Path("m"), global_bias=torch.tensor(0.5)),
    )
    assert options == SegmentOptions(
        classes=(("building", "house"), ("road",)),
        outputs=(str(Path("maps/a.tif")),),
        colours=((255, 0, 0), None),
        threshold=0.25,
        min_area=3,
        nodata=7,
        bbox=(1.0, 2.0, 3.0, 4.0),
        overwrite=True,
        model=ModelOptions(model="m", global_bias=0.5),
    )
    json.dumps({f.name: getattr(options, f.name) for f in fields(options) if f.name != "model"})
    assert ModelOptions(attention=Enum("Own", {"ONE": "sclip"}, type=str).ONE).attention == "sclip"
    for bands in ([4, 3, 2], np.array([4, 3, 2]), ("4", "3", 2)):
        assert SceneOptions(bands=bands).bands == ("4", "3", "2")
    assert CompareOptions(maps=Path("a.tif"), labels="b.tif").maps == "a.tif"
    assert EvaluateOptions(dataset="udd5", root="there").root == Path("there")
    assert UpsamplerOptions(images=[Path("x")], output="out").output == Path("out")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"threshold": "0.5"}, "threshold is '0.5'; it must be a number"),
        ({"threads": 1.0}, "threads is 1.0; it must be a whole number or None"),
        ({"threads": True}, "threads is True; it must be a whole number or None"),
        ({"stretch": (0, 255)}, "stretch is (0, 255); it must be a text"),
        ({"outputs": "out.tif"}, "outputs is 'out.tif'; it must be a tuple of texts"),
        ({"outputs": None}, "outputs is None; it must be a tuple of texts"),
        ({"classes": ("a", "b")}, "classes is ('a', 'b'); it must be a tuple of tuples of texts"),
        ({"classes": ((1,), ("b",))}, "it must be a tuple of tuples of texts"),
        ({"classes": (("",), ("b",))}, "the class ('',) has a name without letters"),
        ({"bbox": (1, 2, 3)}, "it must be (a number, a number, a number, a number) or None"),
        ({"colours": ("#ff0000", None)}, "colours is ('#ff0000', None); it must be a tuple of"),
        ({"colours": ((300, 0, 0), None)}, "the colour (300, 0, 0) is none"),
        ({"creation_options": {"COMPRESS": "ZSTD"}}, "a tuple of (a text, a text)"),
        ({"model": "mini"}, "model is 'mini'; it must be a ModelOptions"),
        ({"overwrite": 1}, "overwrite is 1; it must be True or False"),
    ],
)
def test_other_types_are_refused_by_name(given, message):
    with pytest.raises(UsageError) as error:
        SegmentOptions(**{"classes": WORDS, **given})
    assert message in str(error.value)


def test_all_other_options_are_typed_too():
    for make in (
        lambda: ModelOptions(window=224.0),
        lambda: ModelOptions(upsampler=None),
        lambda: SceneOptions(bands="1,2,3"),
        lambda: EvaluateOptions(dataset="udd5", root="x", models="mini"),
        lambda: UpsamplerOptions(images="scenes", output="out"),
        lambda: DistillOptions(output="out", pairs=["a.csv"]),
        lambda: BatchOptions(shard=(1, 2.0)),
    ):
        with pytest.raises(UsageError, match="; it must be "):
            make()


def test_scenes_and_lists_of_them_may_be_paths(tmp_path, tiny_model):
    source = Path(write_scene(tmp_path / "scene.tif"))
    options = options_for(tiny_model, tmp_path / "maps" / "{stem}.tif")
    (done,) = segment_all([source], options)
    assert done.source == str(source)
    assert isinstance(next(segment_all([source], options, BatchOptions(resume=True))), Skipped)
    again = segment(source, replace(options, outputs=(str(tmp_path / "b.tif"),)))
    assert again.pixels == done.pixels
    with pytest.raises(UsageError, match="it must be a list of names"):
        next(segment_all(str(source), options))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": (("tree",), ("grass",))}, "loaded for background, building, road, water"),
        ({"background": None}, "other words or colours"),
        ({"attention": "vanilla"}, "other settings"),
        ({"stride": 16}, "other settings"),
        ({"precision": "bf16"}, "other settings"),
        ({"exact": True}, "other settings"),
        ({"name": "mini"}, "the model that was loaded is tiny, and the options name mini"),
    ],
)
def test_a_model_for_other_options_is_refused(tmp_path, tiny_model, change, message):
    source = write_scene(tmp_path / "scene.tif")
    options = options_for(tiny_model, tmp_path / "a.tif", precision="fp32")
    model = load_model(options, "optical")
    segment(source, options, load=lambda sensor: model)
    name = change.get("name", tiny_model)
    change = {key: value for key, value in change.items() if key != "name"}
    others = options_for(name, tmp_path / "b.tif", **{"precision": "fp32", **change})
    with pytest.raises(UsageError, match=message):
        segment(source, others, load=lambda sensor: model)
    assert not (tmp_path / "b.tif").exists()
    more = replace(others, classes=options.classes, background=options.background)
    same = replace(more, model=replace(options.model, precision="auto"), threshold=0.5)
    segment(source, same, load=lambda sensor: model)
    record = read_record(tmp_path / "b.tif")
    assert record["options"]["threshold"] == 0.5


def test_random_numbers_of_the_caller_go_on_as_if_nothing_was(tmp_path, tiny_model):
    source = write_scene(tmp_path / "scene.tif")
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    segment(source, options_for(tiny_model, tmp_path / "a.tif"))
    assert torch.equal(torch.rand(3), expected)

import errno
import json
from importlib import resources

import numpy as np
import pytest
import torch
from scenes import names_in

from segearth_cli.errors import UsageError
from segearth_cli.model.folder import load_clip, open_model_folder
from segearth_cli.model.prompts import (
    BACKGROUND_COLOUR,
    ClassChoice,
    build_vocabulary,
    choose_classes,
    class_colours,
    class_text,
    parse_classes,
    read_classes,
    read_preset,
    usual_colour,
)
from segearth_cli.model.text import encode_text, keep, text_features
from segearth_cli.options import SegmentOptions
from segearth_cli.parse import parse_colours
from segearth_cli.presets import read_presets


def vocabulary(text, background=None, no_background=False):
    choice = choose_classes(text, None, None, background, no_background)
    return build_vocabulary(SegmentOptions(choice.classes, choice.background))


def test_a_class_is_not_called_as_what_is_none():
    with pytest.raises(UsageError, match="give that class another name"):
        vocabulary("road,Unclassified", no_background=True)
    assert vocabulary("road,unclassified").names == ("background", "road", "unclassified")


def test_classes_keep_their_order_behind_the_background():
    words = vocabulary("building, road ,water|river")

    assert words.names == ("background", "building", "road", "water")
    assert words.values == (0, 1, 2, 3)
    assert words.queries == ("background", "building", "road", "water", "river")
    assert words.query_class == (0, 1, 2, 3, 3)


@pytest.mark.parametrize("name", ["background", "Other", "clutter"])
def test_a_class_named_background_is_the_background(name):
    words = vocabulary(f"building,{name}|misc,road")

    assert words.names == (name, "building", "road")
    assert words.values == (0, 1, 2)


def test_the_users_own_background():
    assert vocabulary("car", "street|ground").classes == (("street", "ground"), ("car",))
    assert vocabulary("car,street", "street").names == ("street", "car")
    assert vocabulary("car,other", "ocean").names == ("ocean", "car", "other")


def test_words_of_the_background_join_the_class_that_is_it():
    words = vocabulary("water,tree", background="water|lake")
    assert words.classes == (("water", "lake"), ("tree",))


def test_without_background_values_start_at_one():
    words = vocabulary("building,road", no_background=True)

    assert words.names == ("building", "road")
    assert words.values == (1, 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("building,,road", "empty class name"),
        ("building,|road", "empty class name"),
        ("building,Building", "named twice"),
        ("building|house,House", "'house' is a word of two classes, building and House"),
        ("road|Background", "'background' is a word of two classes, background and road"),
        ("background", "only class is the background"),
    ],
)
def test_class_lists_that_make_no_sense(text, message):
    with pytest.raises(UsageError, match=message):
        vocabulary(text)


def test_a_class_file(tmp_path):
    path = tmp_path / "my classes.txt"
    path.write_text("# roofs\nbuilding, roof\n\nwater\n", encoding="utf-8")

    assert read_classes(path) == (("building", "roof"), ("water",))
    path.write_text('"sand, gravel", beach\n6" pipe\n')
    assert read_classes(path) == (("sand, gravel", "beach"), ('6" pipe',))


def test_class_files_that_cannot_be_read(tmp_path):
    (tmp_path / "empty.txt").write_text("\n# nothing\n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00\x81")

    for name, message in [
        ("missing.txt", "No such file"),
        ("empty.txt", "names no class"),
        ("binary.txt", "not UTF-8"),
    ]:
        with pytest.raises(UsageError, match=message):
            read_classes(tmp_path / name)


@pytest.mark.parametrize(
    "text",
    [
        "id,name\n1,building\n2,road",
        "class,colour\nbuilding,red",
        "class;colour\nbuilding;#ff0000\nroad;#00ff00",
        "1\tbuilding\n2\troad",
        "0: background\n1: building",
        "building,#ff0000\nroad,#00ff00",
        "building,255,0,0\nroad,0,0,0",
        "# classes\n- building\n- road",
        '["building", "road"]',
        '"1","building"\n"2","road"',
        "building;house\nroad;street",
        "building:\n  - house\nroad:\n  - street",
        "building: [house, roof]\nroad: [street]",
        "name: building\nname: road",
        "* building\n* road",
        "1. building\n2. road",
        "1 building\n2 road",
        "building #d73027\nroad # grey",
        "building = house\nroad = street",
        "<class>building</class>",
        "class,synonyms\nbuilding,house",
    ],
)
def test_a_table_is_no_list_of_words(tmp_path, text):
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(UsageError, match=r"no plain list of words.*a class a line, its synonyms"):
        read_classes(tmp_path / "classes.txt")


@pytest.mark.parametrize(
    "text",
    [
        "class\nlabel\nname",
        "class, label",
        "747\nbuilding\nroad",
        "building, 2 storey house\nroad 66",
        "boeing, 747\nroad\nwater",
        "swimming\tpool\nroad\nwater",
        "co-op - store\n-road",
        "3 storey building",
        "1 lane road\n2 lane road\ntree",
    ],
)
def test_odd_words_are_words(tmp_path, text):
    (tmp_path / "classes.txt").write_text(text)
    assert len(read_classes(tmp_path / "classes.txt")) == len(text.splitlines())


def test_classes_are_given_in_one_way(tmp_path):
    with pytest.raises(UsageError, match="say what to look for"):
        choose_classes(None, None, None, None)
    with pytest.raises(UsageError, match="--classes and --preset exclude"):
        choose_classes("road", None, "loveda", None)


def test_a_background_where_there_can_be_none_is_refused():
    with pytest.raises(UsageError, match="--background and --no-background"):
        choose_classes("road", None, None, "ocean", no_background=True)
    with pytest.raises(UsageError, match="--background and --preset"):
        choose_classes(None, None, "loveda", "ocean")


@pytest.mark.parametrize("text", ['building|"river, wide",road', 'water| "a, b"'])
def test_quotes_after_a_bar_are_refused(tmp_path, text):
    (tmp_path / "classes.txt").write_text(text)
    for words in ((text, None), (None, tmp_path / "classes.txt")):
        with pytest.raises(UsageError, match="quotes after a bar; they go around a whole class"):
            choose_classes(*words, None, None)
    names = (('the "old" town', '"quoted"'), ("a, b",))
    assert parse_classes(class_text(names)) == names


def test_a_preset_can_do_without_its_background():
    whole = choose_classes(None, None, "loveda", None)
    choice = choose_classes(None, None, "loveda", None, no_background=True)
    assert whole.background == ("background",)
    assert choice.background is None
    assert choice.classes == whole.classes[1:]
    assert choice.colours == whole.colours[1:]
    assert choice.threshold == whole.threshold


def test_every_preset_gives_a_vocabulary():
    text = resources.files("segearth_cli").joinpath("presets.json").read_text()
    for preset in json.loads(text):
        choice = read_preset(preset["name"])
        words = build_vocabulary(
            SegmentOptions(choice.classes, choice.background, choice.colours, choice.threshold)
        )
        assert len(words.classes) == len(preset["classes"])
        without = {"ddhr-korea", "ddhr-sd", "ddhr-xa", "yeseg-sar"}
        assert words.has_background == (preset["name"] not in without)


def test_a_preset_may_say_as_little_as_a_dataset_of_ones_own(monkeypatch):
    words = {"name": "small", "classes": ["Background", ["building", "house"]]}
    small = {**words, "images": "images", "labels": "labels"}
    monkeypatch.setitem(read_presets(), "small", small)
    classes = (("Background",), ("building", "house"))
    assert read_preset("small") == ClassChoice(classes, background=("Background",))
    monkeypatch.setitem(read_presets(), "small", {**small, "palette": [[1, 2, 3]]})
    assert read_preset("small").colours == ((1, 2, 3), None)
    monkeypatch.setitem(read_presets(), "small", {**small, "threshold": 2})
    with pytest.raises(UsageError, match="small: threshold is 2; it must be a number from 0 to 1"):
        read_preset("small")


def test_a_preset_puts_its_background_first():
    choice = read_preset("potsdam")

    words = build_vocabulary(SegmentOptions(choice.classes, choice.background, choice.colours))

    assert words.names == ("clutter", "road", "building", "grass", "tree", "car")
    assert words.colours[0] == (255, 0, 0)


def test_an_unknown_preset_names_the_known_ones():
    with pytest.raises(UsageError, match="openearthmap"):
        read_preset("potsdamm")


def test_colours_are_those_of_maps_and_all_different():
    assert usual_colour(("water", "river"), 3) == usual_colour(("lake",), 0)
    kinds = ("water", "river", "lake", "sea", "pond", "stream", "road", "street")
    alike = class_colours([(kind,) for kind in kinds], [None] * len(kinds))
    assert alike[0] == usual_colour(("water",), 0)
    assert len(set(alike)) == len(kinds)
    assert len(set(class_colours([(f"water {i}",) for i in range(250)], [None] * 250))) == 250
    said = class_colours([("sea",), ("lake",), ("road",)], [None, alike[0], (1, 2, 3)])
    assert (said[1:], said[0] == alike[0]) == ([alike[0], (1, 2, 3)], False)
    many = {usual_colour((f"thing {i}",), i) for i in range(60)}
    assert len(many) == 60


@pytest.mark.parametrize("text", ["road", "road=red", "=#ff0000", "road=#ff000", "road=#ff0000,"])
def test_colours_that_are_none_are_refused(text):
    with pytest.raises(UsageError, match="is not CLASS=#rrggbb"):
        parse_colours(text)


def test_colours_of_some_classes_are_the_users():
    choice = choose_classes("building|house,road,'a=b', clutter|rest".replace("'", '"'), None, None)
    said = (("House", (1, 2, 3)), ("a=b", (4, 5, 6)))
    colours = choice.coloured(parse_colours("House=#010203, A=B=040506")).colours
    assert colours == choice.coloured(said).colours == ((1, 2, 3), None, (4, 5, 6), None)
    words = build_vocabulary(SegmentOptions(choice.classes, choice.background, colours))
    assert words.names == ("clutter", "building", "road", "a=b")
    assert words.colours[1::2] == ((1, 2, 3), (4, 5, 6))
    assert words.colours[0] == BACKGROUND_COLOUR
    with pytest.raises(UsageError, match="no class 'sea'; there are building, road, a=b, clutter"):
        choice.coloured(parse_colours("sea=#0000ff"))
    with pytest.raises(UsageError, match="--colours gives 'house' two colours; give one"):
        choice.coloured(parse_colours("building=#0000ff,house=#0000fe"))


def test_synonyms_parse():
    assert parse_classes("a|b,c d") == (("a", "b"), ("c d",))
    quoted = (("street, paved", "road"), ('5" pipe',), ('"old" town',))
    assert parse_classes('"street, paved|road", 5" pipe,"""old"" town"') == quoted
    assert parse_classes(class_text(quoted)) == quoted


def test_a_file_of_classes_parts_synonyms_by_commas_or_bars(tmp_path):
    (tmp_path / "words.txt").write_text('# all\nbuilding|house , roof\n\n"street, paved",road\n')
    classes = (("building", "house", "roof"), ("street, paved", "road"))
    assert read_classes(tmp_path / "words.txt") == classes
    (tmp_path / "words.txt").write_text('"street, paved\nwater\n')
    with pytest.raises(UsageError, match="quotes go around a whole name"):
        read_classes(tmp_path / "words.txt")


def test_text_without_its_padding_is_encoded_alike(tiny_model):
    model, tokenizer = load_clip(open_model_folder(tiny_model))
    tokens = tokenizer(["road", "a satellite photo of a very wide river near some houses"])

    with torch.inference_mode():
        torch.testing.assert_close(encode_text(model, tokens), model.encode_text(tokens))


def test_text_features_are_unit_vectors_kept_on_disk(tiny_model, tmp_path):
    model, tokenizer = load_clip(open_model_folder(tiny_model))
    first = text_features(model, tokenizer, ("road", "river"), tmp_path, "digest")

    assert first.shape == (2, 24)
    assert np.allclose(first.norm(dim=1), 1, atol=1e-6)
    assert len(list(tmp_path.glob("*.npy"))) == 2
    again = text_features(None, None, ("road", "river"), tmp_path, "digest")  # nothing to encode
    assert again.equal(first)


def test_a_damaged_or_unwritable_cache_is_done_without(tiny_model, tmp_path):
    model, tokenizer = load_clip(open_model_folder(tiny_model))
    expected = text_features(model, tokenizer, ("road",), tmp_path, "digest")
    (kept_here,) = tmp_path.glob("*.npy")
    np.save(kept_here, np.full(24, np.nan, np.float32))
    assert text_features(model, tokenizer, ("road",), tmp_path, "digest").equal(expected)
    kept_here.write_bytes(b"")
    in_the_way = tmp_path / "file"
    in_the_way.touch()

    for cache in (tmp_path, in_the_way / "cache", None):
        assert text_features(model, tokenizer, ("road",), cache, "digest").equal(expected)


def test_nothing_is_left_of_a_cache_that_a_disk_has_no_room_for(tmp_path, monkeypatch):
    def full(stream, array):
        stream.write(b"begun")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    keep(tmp_path / "features.npy", np.zeros(3, np.float32))
    assert names_in(tmp_path) == []


def test_semicolons_are_no_delimiters_and_that_is_said(tmp_path, caplog):
    assert choose_classes("building;road", None, None).classes == (("building;road",),)
    assert "'building;road' is taken as one name: classes are parted by commas" in caplog.text
    caplog.clear()
    (tmp_path / "classes.csv").write_bytes("\ufeffbuilding;house\r\nroad\r\n".encode())
    choose_classes(None, tmp_path / "classes.csv", None)
    assert "'building;house' is taken as one name" in caplog.text

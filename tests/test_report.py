"""The preview picture: what a person sees of a scene and its map."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from segearth_cli import report
from segearth_cli.errors import OutputError
from segearth_cli.geo.legend import Legend
from segearth_cli.report import write_preview

RED, BLUE = (230, 60, 60), (40, 100, 240)
LEGEND = Legend((0, 1, 2), ("background", "building", "water"), ((0, 0, 0), RED, BLUE))


def preview(path, image, classes, valid=None, legend=LEGEND, **options) -> np.ndarray:
    valid = np.ones(classes.shape, bool) if valid is None else valid
    pixels = dict(enumerate(np.bincount(classes[valid], minlength=len(legend.values)).tolist()))
    write_preview(image, valid, classes, legend, path, pixels=pixels, **options)
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB")).astype(int)


def count(picture: np.ndarray, colour: tuple[int, ...]) -> int:
    return int((np.abs(picture - colour).max(axis=2) <= 1).sum())


def test_the_picture_shows_image_map_and_legend(tmp_path):
    classes = np.zeros((400, 300), np.uint8)
    classes[:100], classes[100:150] = 1, 2
    valid = np.ones(classes.shape, bool)
    valid[390:] = False
    image = np.full((3, 400, 300), 100, np.uint8)
    picture = preview(tmp_path / "p.png", image, classes, valid, title="town.tif")
    mixed = [tuple((np.array(colour) + 100) / 2) for colour in (RED, BLUE)]
    red, blue = (count(picture, colour) for colour in mixed)
    assert red == pytest.approx(2 * blue, rel=0.1)
    assert count(picture, (100, 100, 100)) > red  # the image, and the map's background
    assert count(picture, (222, 226, 230)) > 2 * 9 * 300  # no data, in both
    assert count(picture, RED) >= 13 * 13  # the legend's swatch
    assert count(picture, BLUE) >= 13 * 13


def test_float_and_byte_images_look_the_same(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (3, 30, 40), np.uint8)
    classes = np.zeros((30, 40), np.uint8)
    byte = preview(tmp_path / "byte.png", image, classes)
    real = preview(tmp_path / "real.png", (image / 255).astype(np.float32), classes)
    assert (byte == real).all()
    gaps = np.full((3, 30, 40), np.nan, np.float32)
    assert count(preview(tmp_path / "nan.png", gaps, classes), (0, 0, 0)) >= 2 * 30 * 40


@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 20000), (20000, 1), (3, 5), (900, 1700), (1700, 900), (2500, 2500)]
)
def test_any_shape_fits_a_screen(tmp_path, shape):
    classes = np.ones(shape, np.uint8)
    image = np.full((3, *shape), 0.5, np.float32)
    picture = preview(tmp_path / "p.png", image, classes, title="a long name " * 40)
    assert 100 < max(picture.shape[:2]) <= 1600
    assert count(picture, RED) >= 13 * 13
    assert count(picture, (128, 128, 128)) >= 12


def test_a_scene_without_data_still_has_a_picture(tmp_path):
    classes = np.full((20, 30), 255, np.uint8)
    preview(tmp_path / "p.png", np.zeros((3, 20, 30)), classes, np.zeros((20, 30), bool))


def test_shares_are_of_all_pixels_that_count():
    rows = report._legend_rows(LEGEND, {0: 1, 1: 2, 2: 1})
    assert [row[1:] for row in rows] == [
        ("building", "50.0 %"),
        ("water", "25.0 %"),
        ("background", "25.0 %"),
    ]
    rows = report._legend_rows(LEGEND, {0: 99_999, 1: 1})
    assert [row[2] for row in rows] == ["< 0.1 %", "0.0 %", "100.0 %"]


def test_hundreds_of_classes_list_the_largest(tmp_path):
    number = 300
    names = tuple(f"class {i} " + "with a long name " * 9 for i in range(number))
    colours = tuple((i % 256, 255 - i % 256, 7) for i in range(number))
    legend = Legend(tuple(range(number)), names, colours, 65535, "uint16")
    classes = np.full((200, 200), 299, np.uint16)
    picture = preview(tmp_path / "p.png", np.zeros((3, 200, 200)), classes, legend=legend)
    assert max(picture.shape[:2]) <= 1600
    assert count(picture, colours[299]) >= 13 * 13


def test_words_whose_letters_no_font_has_are_named(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(report, "_FONTS", ("DejaVuSans.ttf",))
    legend = replace(LEGEND, names=("background", "\u5efa\u7269", "w\u00e4sser"))
    image, classes = np.zeros((3, 40, 40)), np.ones((40, 40), np.uint8)
    preview(tmp_path / "p.png", image, classes, legend=legend, title="town.tif")
    (message,) = caplog.messages
    assert "boxes for letters of \u5efa\u7269: no font here" in message
    caplog.clear()
    preview(tmp_path / "p.png", image, classes, title="town.tif")
    assert not caplog.records


def test_a_picture_that_cannot_be_written_is_one_line(tmp_path):
    classes = np.ones((4, 4), np.uint8)
    with pytest.raises(OutputError, match="cannot write"):
        preview(tmp_path / "missing" / "p.png", np.zeros((3, 4, 4)), classes)

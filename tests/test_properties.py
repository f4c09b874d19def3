"""What holds for any input: words, windows, sums, values, polygons."""

import contextlib
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import rasterio
import shapely
import torch
from geopandas import GeoDataFrame
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scenes import options_for, write_scene

from segearth_cli.errors import UsageError
from segearth_cli.geo import seams, sensors, vector
from segearth_cli.geo.grid import Grid
from segearth_cli.geo.legend import Legend
from segearth_cli.geo.recorded import from_tags, to_tags
from segearth_cli.geo.tiling import WindowGrid
from segearth_cli.inputs import expand_inputs, safe_name
from segearth_cli.model.prompts import build_vocabulary, class_text, parse_classes
from segearth_cli.model.sums import RollingSums
from segearth_cli.options import BLENDS, BatchOptions
from segearth_cli.parse import parse_memory, parse_shard, parse_size
from segearth_cli.plain import plain
from segearth_cli.record import _class_words

settings.register_profile(
    "repeatable",
    derandomize=True,
    deadline=None,  # other programs may need the machine
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("repeatable")

sides = st.integers(1, 400)
windows = st.integers(0, 130)
words = st.text(min_size=1, max_size=12)


# --- words -------------------------------------------------------------------------------------


@given(st.text(max_size=60))
def test_any_text_is_classes_or_one_line(text):
    try:
        classes = parse_classes(text)
    except UsageError:
        return
    assert all(word == " ".join(word.split()) != "" for synonyms in classes for word in synonyms)
    assert parse_classes(class_text(classes)) == classes


@given(st.lists(st.lists(words, min_size=1, max_size=3).map(tuple), min_size=1, max_size=6))
def test_values_of_a_vocabulary_are_its_classes_in_order(tmp_path, classes):
    options = options_for(tmp_path, "map.tif", classes=tuple(classes))
    own_words = [{word.casefold() for word in synonyms} for synonyms in classes]
    try:
        vocabulary = build_vocabulary(options)
    except UsageError:
        every_word = [word for synonyms in own_words for word in synonyms]
        assert len(set(every_word)) < len(every_word) or len(classes) == 1
        return
    assert vocabulary.values == tuple(range(len(vocabulary.classes)))
    others = [synonyms for synonyms in classes if synonyms in vocabulary.classes[1:]]
    assert list(vocabulary.classes[1:]) == others
    assert len(vocabulary.queries) == len(vocabulary.query_class)


@given(st.lists(st.lists(words, min_size=1, max_size=3), min_size=1, max_size=5))
def test_a_command_says_exactly_these_classes_or_none_is_made(classes):
    asked = {"classes": classes, "colours": [], "background": ["background"], "threshold": 0.0}
    try:
        said = _class_words(asked, {})
    except UsageError:
        return
    if said is not None:
        assert list(map(list, parse_classes(said[0].removeprefix("--classes=")))) == classes


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), json_values, max_size=4), words, words)
def test_a_record_comes_back_from_tags_as_it_was(options, source, model):
    record = {
        "version": "1",
        "source": source,
        "source_digest": {"sha256": "0"},
        "options": options,
        "model": {"name": model},
    }
    assert from_tags(to_tags(record)) == plain(record)


@given(st.text(max_size=80))
def test_any_name_is_one_file_in_its_folder(name):
    safe = safe_name(name)
    assert safe
    assert not set(safe) & set('/\\:"*?<>|\0')
    assert safe not in (".", "..")


@given(st.lists(st.text(max_size=20), max_size=8))
def test_any_list_of_names_is_scenes_or_one_line(names):
    assume(not any(name.strip() in (".", "..", "/") or name.endswith("/") for name in names))
    try:
        found = expand_inputs(["-"], [f"{name}\n" for name in names])
    except UsageError:
        return
    assert len({own.source for own in found}) == len(found)


@given(st.text(max_size=12), st.sampled_from([parse_size, parse_memory, parse_shard]))
def test_any_text_of_an_option_is_a_value_or_one_line(text, parse):
    with contextlib.suppress(UsageError):
        parse(text)


@given(st.integers(0, 300), st.integers(1, 40))
def test_parts_share_all_scenes_out(scenes, parts):
    every = range(scenes)
    shares = [
        every[BatchOptions(shard=(part, parts)).shard[0] - 1 :: parts]
        for part in range(1, parts + 1)
    ]
    assert sorted(scene for share in shares for scene in share) == list(every)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


# --- windows and their sums --------------------------------------------------------------------


@given(sides, sides, windows, windows.filter(bool))
def test_windows_cover_every_pixel_and_lie_inside(height, width, window, stride):
    assume(window == 0 or stride <= window)
    grid = WindowGrid(height, width, window, stride)
    seen = np.zeros((height, width), int)
    for row in grid.rows:
        for column in grid.columns:
            assert row + grid.window_height <= height
            assert column + grid.window_width <= width
            seen[row : row + grid.window_height, column : column + grid.window_width] += 1
    assert seen.min() >= 1
    down, across = grid.weight_per_pixel
    assert (seen == down[:, None] * across).all()


@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from(BLENDS),
)
def test_the_blend_is_the_weighed_mean_of_the_windows_at_every_pixel(
    height, width, window, stride, blend
):
    assume(stride <= window)
    grid = WindowGrid(height, width, window, stride, blend=blend)
    own_down, own_across = grid.window_weights
    weight = own_down[:, None] * own_across
    rng = np.random.default_rng(0)
    total = np.zeros((2, height, width))
    sums = RollingSums(grid, 2, torch.device("cpu"))
    rows = []
    for row, end in zip(grid.rows, [*grid.rows[1:], height], strict=True):
        for column in grid.columns:
            logits = rng.normal(size=(2, grid.window_height, grid.window_width))
            place = np.s_[:, row : row + grid.window_height, column : column + grid.window_width]
            total[place] += logits * weight
            sums.add(row, column, torch.from_numpy(logits).float())
        rows.append(sums.finish(end))
    down, across = grid.weight_per_pixel
    expected = total / (down[:, None] * across)
    np.testing.assert_allclose(torch.cat(rows, dim=1).numpy(), expected, atol=1e-5)
    assert np.abs(expected).max() < 6  # no pixel is blown up by small weights


# --- values ------------------------------------------------------------------------------------

dtypes = st.sampled_from(["uint8", "int16", "uint16", "float32", "float64"])
shapes = st.tuples(st.sampled_from([1, 3]), st.integers(1, 6), st.integers(1, 6))
stretches = st.sampled_from(["auto", "none", "minmax", "p2,98", "0,1", "-5,3000"])


@given(st.data(), dtypes, shapes, stretches, st.sampled_from(["optical", "sar"]))
def test_any_values_become_an_image_between_0_and_1(data, dtype, shape, stretch, sensor):
    raw = data.draw(arrays(dtype, shape))
    valid = data.draw(arrays(bool, shape))
    assume(not (stretch == "none" and sensor == "sar" and raw.dtype.kind == "f"))  # refused
    if raw.dtype.kind == "f":
        valid &= np.isfinite(raw)
    with np.errstate(all="ignore"):
        scaling = sensors.scaling_of(
            sensors.parse_stretch(stretch), sensor, dtype, (raw, valid), "auto", None
        )
        image, used = sensors.prepare(raw, valid.any(axis=0), scaling)
    assert image.shape == (3, *shape[1:])
    assert image.dtype == np.float32
    assert np.isfinite(image).all()
    assert (image >= 0).all()
    assert (image <= 1).all()
    assert not (used & ~valid.any(axis=0)).any()


@given(st.text(max_size=20))
def test_any_stretch_is_understood_or_one_line(text):
    with contextlib.suppress(UsageError):
        sensors.parse_stretch(text)


# --- polygons ----------------------------------------------------------------------------------


class_rasters = arrays(
    np.uint8,
    st.tuples(st.integers(1, 14), st.integers(1, 14)),
    elements=st.sampled_from([0, 1, 2, 3, 255]),
)


def polygons_of(folder: Path, values: NDArray[np.uint8], simplify_m: float = 0.0) -> GeoDataFrame:
    transform = rasterio.Affine(2, 0, 500_000, 0, -2, 5_400_000)
    grid = Grid(values.shape[1], values.shape[0], transform, rasterio.CRS.from_epsg(32633))
    percents = (np.arange(values.size) % 101).astype(np.uint8).reshape(values.shape)
    for name, array in (("classes", values), ("confidence", percents)):
        write_scene(folder / f"{name}.tif", array[None], nodata=255)
    legend = Legend(tuple(range(4)), ("background", "a", "b", "c"), ((0, 0, 0),) * 4)
    paths = (folder / "classes.tif", folder / "confidence.tif")
    return pd.concat(vector.Polygons(*paths, legend, grid, source="x", simplify_m=simplify_m))


@given(class_rasters)
def test_polygons_are_valid_apart_and_as_large_as_their_pixels(tmp_path_factory, values):
    folder = tmp_path_factory.mktemp("polygons")
    assert polygons_of(folder, values, simplify_m=3).geometry.is_valid.all()
    frame = polygons_of(folder, values)
    assert frame.geometry.is_valid.all()
    for value in (1, 2, 3):
        area = frame.geometry[frame.class_id == value].area.sum()
        assert area == pytest.approx(4 * (values == value).sum())
    assert shapely.union_all(frame.geometry).area == pytest.approx(frame.area.sum())


@given(class_rasters, st.integers(1, 5))
def test_polygons_traced_in_strips_are_those_traced_at_once(tmp_path_factory, values, rows):
    folder = tmp_path_factory.mktemp("strips")
    whole = polygons_of(folder, values)
    with mock.patch.multiple(seams, STRIP=1, FEWEST_ROWS=rows):
        strips = polygons_of(folder, values)
    one, other = (
        sorted(zip(f.geometry.normalize().to_wkb(), f.class_id, f.confidence, strict=True))
        for f in (whole, strips)
    )
    assert one == other

import shutil
from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
import torch
from safetensors.torch import load_file, save_file
from scenes import CLASSES, blocks, names_in, options_for, read, write_scene

from segearth_cli.device import memory_guard, pass_size
from segearth_cli.errors import ModelError, SegEarthError, UsageError
from segearth_cli.geo.raster import open_scene
from segearth_cli.geo.tiling import WindowGrid, window_offsets
from segearth_cli.model.prompts import Vocabulary
from segearth_cli.options import ModelOptions
from segearth_cli.segment import segment
from segearth_cli.stream import (
    class_legend,
    classify_rows,
    load_model,
    memory_estimate,
    scene_panels,
)


def whole_image_at_once(source, options):
    """Class values and percents from one array of summed logits, window after window."""
    model = load_model(options, "optical")
    with open_scene(source, options) as scene:
        image, valid = scene.read(0, scene.grid.height)
    window, stride = model.settings.window, model.settings.stride
    total = np.zeros((len(model.vocabulary.queries), *valid.shape), np.float32)
    grid = WindowGrid(*valid.shape, window, stride, blend=model.settings.blend)
    own_down, own_across = grid.window_weights
    weight = own_down[:, None] * own_across
    offsets = (window_offsets(side, window, stride) for side in valid.shape)
    size = pass_size(torch.device("cpu"), ModelOptions(), grid)
    for row, column in product(*offsets):
        place = (..., slice(row, row + window), slice(column, column + window))
        if valid[place].any():
            with torch.inference_mode():
                # as many windows at once as in a pass: other products round differently
                alike = torch.from_numpy(image[place])[None].repeat(size, 1, 1, 1)
                total[place] += model.segmenter(alike)[0].numpy() * weight
    down, across = grid.weight_per_pixel
    blended = torch.from_numpy(total / (down[:, None] * across))
    probabilities = model.segmenter.class_probabilities(blended).numpy()
    classes = np.where(valid, probabilities.argmax(axis=0), 255)
    return classes, np.where(valid, np.round(100 * probabilities), 255)


@pytest.mark.parametrize("shape", [(100, 130), (64, 64), (40, 130), (150, 50), (30, 20)])
def test_the_map_is_that_of_the_whole_image_at_once(tmp_path, tiny_model, shape):
    image = blocks(3, *shape)
    image[:, : shape[0] // 2, : shape[1] // 3] = 0
    source = write_scene(tmp_path / "scene.tif", image, nodata=0)
    percents = tmp_path / "percents.tif"
    options = options_for(tiny_model, tmp_path / "map.tif", probabilities=str(percents))
    classes, probabilities = whole_image_at_once(source, options)
    segment(source, options)
    assert len(np.unique(classes)) > 2
    assert (read(tmp_path / "map.tif") == classes).all()
    with rasterio.open(percents) as src:
        assert (src.read() == probabilities).all()


@pytest.mark.parametrize("precision", ["fp32", "auto"])
def test_the_map_does_not_depend_on_the_batch_size(tmp_path, tiny_model, precision):
    source = write_scene(tmp_path / "scene.tif")
    maps = []
    for batch_size in (1, 3, 16):
        out = tmp_path / f"{batch_size}.tif"
        segment(source, options_for(tiny_model, out, batch_size=batch_size, precision=precision))
        maps.append(read(out))
    assert (maps[0] == maps[1]).all()
    assert (maps[0] == maps[2]).all()


def test_the_map_does_not_depend_on_how_the_scene_lies_on_the_disk(tmp_path, tiny_model):
    layouts = [
        {"tiled": True, "blockxsize": 16, "blockysize": 16, "compress": "deflate"},
        {"tiled": True, "blockxsize": 128, "blockysize": 64, "interleave": "band"},
        {"blockysize": 1, "compress": "lzw", "predictor": 2},
        {"blockysize": 100, "interleave": "band", "compress": "zstd"},
    ]
    maps = []
    for index, layout in enumerate(layouts):
        source = write_scene(tmp_path / f"scene{index}.tif", **layout)
        segment(source, options_for(tiny_model, tmp_path / f"map{index}.tif"))
        maps.append(read(tmp_path / f"map{index}.tif"))
    assert all((other == maps[0]).all() for other in maps[1:])


def test_windows_without_data_are_not_computed(tmp_path, tiny_model):
    image = blocks(3, 64, 192)
    image[:, :, 64:] = 0
    source = write_scene(tmp_path / "scene.tif", image, nodata=0)
    options = options_for(tiny_model, tmp_path / "map.tif", batch_size=2)
    model, computed = load_model(options, "optical"), []

    def look(module, inputs, output):
        computed.extend(window for window in inputs[0] if window.any())  # passes are filled with 0

    model.segmenter.encoder.register_forward_hook(look)
    with open_scene(source, options) as scene:
        (rows,) = classify_rows(scene, model, options)
    assert len(computed) == 2  # of 5: those that start at columns 0 and 32
    assert (rows.classes[:, :64] < 255).all()
    assert (rows.classes[:, 64:] == 255).all()
    assert (rows.confidence[:, 64:] == 255).all()


def test_between_rows_torch_is_as_the_caller_left_it(tmp_path, tiny_model):
    source = write_scene(tmp_path / "scene.tif", blocks(1, 200, 70))
    options = options_for(tiny_model)
    model = load_model(options, "optical")
    with open_scene(source, options) as scene:
        for _ in classify_rows(scene, model, options):
            assert not torch.is_inference_mode_enabled()


def test_rows_come_as_soon_as_they_are_final(tmp_path, tiny_model):
    source = write_scene(tmp_path / "scene.tif")
    options = options_for(tiny_model, tmp_path / "map.tif")
    model = load_model(options, "optical")
    with open_scene(source, options) as scene:
        heights = [len(rows.classes) for rows in classify_rows(scene, model, options)]
    assert heights == [32, 4, 64]  # windows of 64 start at rows 0, 32 and 36 of 100


@pytest.mark.parametrize(
    ("classes", "background", "nodata", "dtype"),
    [(254, True, 255, "uint8"), (255, True, 65535, "uint16"), (255, False, 65535, "uint16")],
)
def test_the_legend_is_uint16_from_255_classes_on(classes, background, nodata, dtype):
    names = tuple((f"class {index}",) for index in range(classes + background))
    legend = class_legend(Vocabulary(names, background, ((1, 2, 3),) * len(names)))
    assert (legend.nodata, legend.dtype) == (nodata, dtype)
    assert legend.values == tuple(range(classes + 1))
    assert legend.names[0] == ("class 0" if background else "unclassified")


def test_memory_grows_with_the_width_alone():
    low, high, wide = (
        memory_estimate(WindowGrid(height, width, 224, 112), len(CLASSES), 4, 64)
        for height, width in ((2_000, 2_000), (20_000, 2_000), (2_000, 20_000))
    )
    assert low == high < wide


def test_a_scene_50_000_pixels_wide_is_kept_under_4_gb(tmp_path):
    folder = SimpleNamespace(size=600_000_000, embed_dim=512)  # of ViT-B/16
    settings = SimpleNamespace(folder=folder, upsampler="simfeatup", exact=False)
    options = options_for(tmp_path, tmp_path / "map.tif")
    grid = WindowGrid(100_000, 50_000, 224, 112)

    parts, most = scene_panels(grid, settings, 9, torch.device("cpu"), options)

    assert most < 4e9
    assert [part.columns_wanted[0] for part in parts[1:]] == [
        part.columns_wanted[1] for part in parts[:-1]
    ]


@pytest.mark.parametrize("upsampler", ["bilinear", "simfeatup"])
@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
def test_panels_give_the_same_map(tmp_path, tiny_model, upsampled_model, upsampler, precision):
    image = blocks(3, 150, 700)
    image[:, 40:, 300:420] = 0
    source = write_scene(tmp_path / "scene.tif", image, nodata=0)
    model = tiny_model if upsampler == "bilinear" else upsampled_model
    whole = options_for(model, tmp_path / "whole.tif", precision=precision)
    settings = load_model(whole, "optical").settings
    grid = WindowGrid(150, 700, settings.window, settings.stride)
    device = torch.device("cpu")
    _, most = scene_panels(grid, settings, 5, device, whole)
    limited = replace(whole, max_memory=most - 1, outputs=(str(tmp_path / "panels.tif"),))
    parts, less = scene_panels(grid, settings, 5, device, limited)

    segment(source, whole)
    segment(source, limited)

    assert len(parts) > 1
    assert less < most
    assert (read(tmp_path / "panels.tif") == read(tmp_path / "whole.tif")).all()


def test_a_window_of_the_whole_scene_is_never_taken_in_panels(tmp_path):
    folder = SimpleNamespace(size=600_000_000, embed_dim=512)
    settings = SimpleNamespace(folder=folder, upsampler="simfeatup", exact=False)
    options = options_for(tmp_path, tmp_path / "map.tif")

    parts, most = scene_panels(
        WindowGrid(3000, 3000, 0, 112), settings, 9, torch.device("cpu"), options
    )

    assert len(parts) == 1
    assert most > 4e9


def test_too_little_memory_for_any_panel_is_refused(tmp_path, tiny_model):
    source = write_scene(tmp_path / "scene.tif")
    with pytest.raises(UsageError, match=r"--max-memory is too little: .* take about .*GiB"):
        segment(source, options_for(tiny_model, tmp_path / "map.tif", max_memory=1000))
    assert names_in(tmp_path) == ["scene.tif"]


@pytest.mark.parametrize(
    "failure", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_too_little_memory_is_one_line_with_advice(failure):
    with pytest.raises(SegEarthError, match="out of memory; use less"), memory_guard("use less"):
        raise failure


def test_other_errors_pass_the_memory_guard():
    with pytest.raises(RuntimeError, match="a bug"), memory_guard("use less"):
        raise RuntimeError("a bug")


def test_values_that_overflow_are_no_map(tmp_path, tiny_model):
    huge = shutil.copytree(tiny_model, tmp_path / "huge")
    weights = load_file(huge / "open_clip_model.safetensors")
    for name in ("visual.ln_post.weight", "visual.proj"):
        weights[name] *= 1e20
    save_file(weights, huge / "open_clip_model.safetensors", {"format": "pt"})
    source = write_scene(tmp_path / "scene.tif")

    with pytest.raises(ModelError, match="values that are no numbers; try --precision fp32"):
        segment(source, options_for(huge, tmp_path / "map.tif"))
    assert not (tmp_path / "map.tif").exists()


def test_a_depth_that_gem_takes_no_notice_of_is_refused(tmp_path, tiny_model):
    options = options_for(tiny_model, tmp_path / "map.tif", attention="gem", modulated_blocks=2)
    with pytest.raises(UsageError, match="--modulated-blocks 2 changes nothing: the attention gem"):
        load_model(options, "optical")

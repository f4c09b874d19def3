"""What goes wrong in a night: each fault really happens, and the rest goes on."""

import os
import shutil
import sqlite3
import subprocess
from itertools import count
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import torch
from faulty_server import FaultyServer
from scenes import blocks, names_in, options_for, read, write_scene

from segearth_cli.batch import segment_all
from segearth_cli.errors import OutputError, SceneError, SegEarthError
from segearth_cli.geo import vector
from segearth_cli.geo.grid import Grid
from segearth_cli.geo.legend import Legend
from segearth_cli.geo.recorded import read_record
from segearth_cli.options import BatchOptions
from segearth_cli.results import Failure, SegmentResult
from segearth_cli.segment import segment
from segearth_cli.stream import load_model

RESUME = BatchOptions(resume=True)


def kinds(outcomes):
    return [type(outcome) for outcome in outcomes]


@pytest.fixture
def out(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


@pytest.fixture
def sources(tmp_path):
    return [write_scene(tmp_path / f"{name}.tif", blocks(1, 60, 70)) for name in "abc"]


# --- disks and folders -------------------------------------------------------------------------


def mounted(folder, *options):
    """A small file system of memory, or a skipped test."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "none", str(folder)]
    if not hasattr(os, "geteuid") or os.geteuid() != 0 or subprocess.run(command).returncode:
        pytest.skip("needs the right to mount a file system")


def test_a_disk_that_fills_up_in_a_batch(tmp_path, tiny_model):
    noise = np.random.default_rng(0).integers(1, 255, (3, 700, 700), np.uint8)
    large = write_scene(tmp_path / "large.tif", noise)
    small = [write_scene(tmp_path / f"{name}.tif", blocks(1, 60, 70)) for name in "ac"]
    disk = tmp_path / "disk"
    mounted(disk, "size=160k")
    try:
        options = options_for(tiny_model, disk / "{stem}.tif", disk / "{stem}.geojson")
        first, failed, last = segment_all([small[0], large, small[1]], options, RESUME)
        assert kinds([first, last]) == [SegmentResult] * 2
        assert isinstance(failed.error, OutputError)
        assert "disk is full" in str(failed.error)
        assert all(name[0] in "ac" for name in names_in(disk))
        assert all(read_record(Path(name)) for name in (*first.outputs, *last.outputs))
        subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
        again = list(segment_all([small[0], large, small[1]], options, RESUME))
        assert [isinstance(outcome, SegmentResult) for outcome in again] == [False, True, False]
        assert read(disk / "large.tif").shape == (700, 700)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_folder_that_takes_no_files(tmp_path, sources, tiny_model):
    folder = tmp_path / "closed"
    mounted(folder, "ro")
    try:
        for name in (folder / "map.gpkg", folder / "new" / "map.gpkg"):
            with pytest.raises(OutputError, match="Read-only file system") as caught:
                segment(sources[0], options_for(tiny_model, name))
            assert "\n" not in str(caught.value)
        outputs = (tmp_path / "{stem}.gpkg", folder / "{stem}.tif")
        outcomes = list(segment_all(sources, options_for(tiny_model, *outputs)))
        assert kinds(outcomes) == [Failure] * 3
        assert not list(tmp_path.glob("*.gpkg"))
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def large_scene(path):
    """More pixels than are looked at beforehand, in blocks of their own."""
    noise = np.random.default_rng(0).integers(1, 255, (3, 1200, 1200), np.uint8)
    return write_scene(path, noise, tiled=True, blockxsize=64, blockysize=64)


# --- scenes that are damaged or go -------------------------------------------------------------


def test_a_scene_cut_short_in_the_middle_of_a_batch(tmp_path, out, sources, tiny_model):
    whole = Path(sources[1]).read_bytes()
    Path(sources[1]).write_bytes(whole[: len(whole) // 2])
    options = options_for(tiny_model, out / "{stem}.gpkg")
    first, failed, last = segment_all(sources, options, RESUME)
    assert kinds([first, last]) == [SegmentResult] * 2
    assert "may be damaged or cut short" in str(failed.error)
    assert names_in(out) == ["a.gpkg", "c.gpkg"]
    Path(sources[1]).write_bytes(whole)
    list(segment_all(sources, options, RESUME))
    assert names_in(out) == ["a.gpkg", "b.gpkg", "c.gpkg"]


def test_a_file_that_disappears_before_its_turn(out, sources, tiny_model):
    outcomes = segment_all(sources, options_for(tiny_model, out / "{stem}.gpkg"))
    first = next(outcomes)
    Path(sources[2]).unlink()
    second, third = outcomes
    assert kinds([first, second]) == [SegmentResult] * 2
    assert isinstance(third.error, SceneError)
    assert "there is no such file" in str(third.error)
    assert names_in(out) == ["a.gpkg", "b.gpkg"]


def test_a_part_of_a_mosaic_that_disappears_while_it_is_read(
    tmp_path, out, tiny_model, monkeypatch
):
    from segearth_cli import fitness

    source = large_scene(tmp_path / "part.tif")
    rasterio.shutil.copy(source, tmp_path / "all.vrt", driver="VRT")

    def gone(*scene_and_model):
        monkeypatch.undo()
        Path(source).write_bytes(b"")

    monkeypatch.setattr(fitness, "warn_of_resolution", gone)
    with pytest.raises(SceneError, match="cannot read") as caught:
        segment(str(tmp_path / "all.vrt"), options_for(tiny_model, out / "map.tif"))
    assert "\n" not in str(caught.value)
    assert names_in(out) == []


# --- servers -----------------------------------------------------------------------------------


@pytest.fixture
def server(sources, monkeypatch):
    """It serves the first scene; what GDAL waits for is short."""
    monkeypatch.setenv("GDAL_HTTP_LOW_SPEED_TIME", "1")
    monkeypatch.setenv("GDAL_HTTP_RETRY_DELAY", "0.01")
    with FaultyServer(Path(sources[0]).read_bytes()) as faulty:
        yield faulty


names = count()  # GDAL keeps what it knows of an address


@pytest.mark.parametrize(
    "faults",
    [
        ["503", "503"],
        ["ok", "500", "502", "504"],
        ["429"],
        ["drop"],
        ["ok", "drop"],
        ["503"] * 9,
        pytest.param(["stall"], marks=pytest.mark.slow),
        pytest.param(["ok", "stall"], marks=pytest.mark.slow),
        pytest.param(["ok", "half"], marks=pytest.mark.slow),
        pytest.param(["ok", "half", "stall", "503", "drop"], marks=pytest.mark.slow),
    ],
    ids=lambda faults: "-".join(faults[:4]),
)
def test_a_server_that_fails_and_comes_back(out, server, sources, tiny_model, faults):
    segment(sources[0], options_for(tiny_model, out / "local.tif"))
    server.will(faults)
    segment(server.url(f"{next(names)}.tif"), options_for(tiny_model, out / "remote.tif"))
    assert server.requests[: len(faults)] == faults
    assert (read(out / "remote.tif") == read(out / "local.tif")).all()


@pytest.mark.parametrize(("fault", "asked"), [("404", 1), ("403", 1), ("503", 24)])
def test_a_server_that_does_not_come_back(out, server, sources, tiny_model, fault, asked):
    server.will([fault] * 1000)
    url = server.url(f"{next(names)}.tif")
    options = options_for(tiny_model, out / "{stem}.tif")
    failed, done = segment_all([url, sources[1]], options)
    assert f"HTTP response code: {fault}" in str(failed.error)
    assert "\n" not in str(failed.error)
    assert isinstance(done, SegmentResult)
    assert len(server.requests) <= asked + 3
    assert names_in(out) == ["b.tif", "b.tif.aux.xml"]


@pytest.mark.parametrize(
    ("more", "said"),
    [({"bbox": (0.0, 0.0, 1.0, 1.0)}, "does not touch"), ({"bands": ("9",)}, "no band '9'")],
)
def test_what_no_answer_would_change_is_not_asked_again(
    out, server, tiny_model, caplog, more, said
):
    server.will([])
    with pytest.raises(SegEarthError, match=said):
        segment(server.url(f"{next(names)}.tif"), options_for(tiny_model, out / "m.tif", **more))
    assert "trying again" not in caplog.text


@pytest.mark.slow
def test_a_server_that_falls_silent_in_the_middle_of_a_scene(
    tmp_path, out, server, tiny_model, monkeypatch
):
    """Read, opened anew, read on: the map is that of the file."""
    from segearth_cli import fitness

    local = large_scene(tmp_path / "large.tif")
    server.content = Path(local).read_bytes()
    segment(local, options_for(tiny_model, out / "local.tif", stride=64))

    def then(*scene_and_model):
        server.will(["half", "503"])

    monkeypatch.setattr(fitness, "warn_of_resolution", then)
    options = options_for(tiny_model, out / "remote.tif", stride=64)
    segment(server.url(f"{next(names)}.tif"), options)
    assert server.requests[:1] == ["half"]
    assert (read(out / "remote.tif") == read(out / "local.tif")).all()


# --- memory ------------------------------------------------------------------------------------


@pytest.mark.parametrize("fits", [1, 2, 3])
def test_a_device_without_room_takes_fewer_windows_at_once(
    out, sources, tiny_model, fits, caplog, monkeypatch
):
    options = options_for(tiny_model, out / "{stem}.tif")
    for source in sources[:2]:
        write_scene(Path(source))
    model = load_model(options, "optical")
    encoder = model.segmenter.encoder.forward

    def small(images):
        if len(images) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return encoder(images)

    whole = options_for(tiny_model, out / "whole.tif")
    segment(sources[0], whole)
    monkeypatch.setattr(model.segmenter.encoder, "forward", small)
    for source, name in ((sources[0], "first.tif"), (sources[1], "second.tif")):
        segment(source, options_for(tiny_model, out / name), lambda sensor: model)
    assert (read(out / "first.tif") == read(out / "whole.tif")).mean() > 0.999
    said = [record.message for record in caplog.records if "going on with" in record.message]
    assert len(said) == (2 if fits == 1 else 1)  # not again for the second scene
    assert said[0].endswith("4 windows at once: going on with 2")


def test_a_device_without_room_for_one_window_is_one_line(out, sources, tiny_model, monkeypatch):
    model = load_model(options_for(tiny_model, out / "a.tif"), "optical")

    def full(images):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(model.segmenter.encoder, "forward", full)
    with pytest.raises(SegEarthError, match=r"out of memory; .* try a smaller --window"):
        segment(sources[0], options_for(tiny_model, out / "a.tif"), lambda sensor: model)
    assert names_in(out) == []


# --- many polygons, odd names ------------------------------------------------------------------


def chessboard(folder, names, side=210):
    """A class raster whose every pixel is a polygon; over 10,000 of each of four classes."""
    values = (np.indices((side, side)) % 2 * [[[1]], [[2]]]).sum(0).astype(np.uint8) + 1
    grid = Grid(side, side, rasterio.Affine(2, 0, 5e5, 0, -2, 5.4e6), rasterio.CRS.from_epsg(32633))
    for name, array in (("classes", values), ("confidence", np.full_like(values, 50))):
        write_scene(folder / f"{name}.tif", array[None], nodata=255)
    colours = tuple((i, 255 - i, 7) for i in range(len(names)))
    legend = Legend(tuple(range(len(names))), names, colours)
    return (folder / "classes.tif", folder / "confidence.tif", legend, grid), legend


@pytest.mark.parametrize("suffix", [".gpkg", ".geojson", ".geojsonl", ".fgb", ".parquet", ".shp"])
def test_ten_thousand_polygons_of_each_class_with_any_name(tmp_path, suffix):
    names = (
        "background",
        'the "big", red',
        "x'); DROP TABLE layer_styles; --",
        "🌳🏠 arbres, forêt",
        "%s {stem} $(id) <b>&amp;",
    )
    parts, legend = chessboard(tmp_path, names)
    frames = vector.Polygons(*parts, source="in.tif")
    path = tmp_path / f"map{suffix}"
    vector.write_vector(frames, path, legend, {"version": "1"})
    if suffix == ".parquet":
        again = geopandas.read_parquet(path)
    else:
        again = geopandas.read_file(path, layer="map" if suffix == ".gpkg" else None)
    counts = again.class_name.value_counts().to_dict()
    assert set(counts) == set(names[1:])
    assert min(counts.values()) > 10_000
    assert again.geometry.is_valid.all()
    if suffix == ".gpkg":
        with sqlite3.connect(path) as database:
            ((style,),) = database.execute("SELECT styleQML FROM layer_styles")
        assert "🌳🏠 arbres, forêt" in style


def test_the_sidecars_of_a_moved_scene_are_not_needed(tmp_path, out, sources, tiny_model):
    """A batch goes on where a scene was moved to, with its map where it was."""
    options = options_for(tiny_model, out / "{stem}.tif")
    list(segment_all(sources, options, RESUME))
    (tmp_path / "moved").mkdir()
    moved = [shutil.move(source, tmp_path / "moved") for source in sources]
    assert not any(isinstance(o, SegmentResult) for o in segment_all(moved, options, RESUME))

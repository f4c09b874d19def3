"""On a real GPU: the CPU's maps, memory that runs out, a cluster's worker, trainings."""

import contextlib
import gc
import json
import subprocess
import sys

import numpy as np
import pytest
import rasterio
import torch
from rasterio import Affine
from rasterio.windows import Window
from scenes import blocks, names_in, read, surroundings, write_scene
from test_mosaic import WINDOW, picture, segmenter
from trainings import ROOT, report
from typer.testing import CliRunner

from segearth_cli.cli import app
from segearth_cli.geo.tiling import WindowGrid
from segearth_cli.model.cells import shares_cells
from segearth_cli.model.folder import open_model_folder
from segearth_cli.model.mosaic import image_logits

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no NVIDIA GPU"),
]

TOWN = ROOT / "sample_data" / "town.tif"
RADAR = ROOT / "sample_data" / "town_sar.tif"
WORDS = ("--model", "mini", "--classes", "building,road,water")


def run(*args, code=0):
    """What a command says; a bug keeps its traceback."""
    result = CliRunner().invoke(app, [*map(str, args)], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result


def on_one_line(text):
    return " ".join(text.split())


def differing(first, second):
    """The share of pixels that have another class."""
    return (first != second).mean()


def parts_of_the_town(folder, *names):
    """Scenes of a window and a bit, each of another place."""
    for number, name in enumerate(names):
        with rasterio.open(TOWN) as src:
            array = src.read(window=Window(100 + 200 * number, 100 + 150 * number, 300, 260))
        write_scene(folder / name, array, transform=Affine(0.5, 0, 5e5, 0, -0.5, 5.4e6))


# --- the same maps -----------------------------------------------------------------------------


def test_the_town_has_the_map_that_a_cpu_makes(tmp_path):
    def made(device, precision):
        path = tmp_path / f"{device}-{precision}.tif"
        how = ("--device", device, "--precision", precision, "--gsd", 1)
        run("segment", TOWN, *WORDS, *how, "-o", path)
        with rasterio.open(path) as src:
            return src.read(1), (src.crs, src.transform, src.dtypes, src.nodata)

    expected, kind = made("cpu", "fp32")
    assert set(np.unique(expected)) == {0, 1, 2, 3}
    for precision, most in (("fp32", 5e-4), ("fp16", 5e-3), ("bf16", 5e-3)):
        actual, own_kind = made("cuda", precision)
        assert own_kind == kind
        assert differing(actual, expected) <= most, precision


@pytest.mark.parametrize(("stride", "shares"), [(WINDOW // 2, True), (WINDOW * 3 // 4, False)])
def test_upsampled_logits_are_those_of_a_cpu(stride, shares, caplog):
    image = picture(150, 187)
    grid = WindowGrid(150, 187, WINDOW, stride, blend="smooth")
    model = segmenter()
    assert shares_cells(grid, model.fast_upsampler) == shares

    actual = image_logits(segmenter().to("cuda"), image, grid, size=4)

    assert actual.device.type == "cuda"
    expected = image_logits(model, image, grid, size=4)
    torch.testing.assert_close(actual.cpu(), expected, atol=1e-4, rtol=0)
    ours = [record for record in caplog.records if record.name.startswith("segearth_cli")]
    assert not ours  # that triton's kernel does not run would be said


# --- memory ------------------------------------------------------------------------------------


@contextlib.contextmanager
def memory_left(mebibytes):
    """The GPU has that much left for this process, whatever it holds already."""
    gc.collect()
    torch.cuda.empty_cache()
    _, total = torch.cuda.mem_get_info()
    allowed = torch.cuda.memory_reserved() + (mebibytes << 20)
    torch.cuda.set_per_process_memory_fraction(allowed / total)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


def test_where_memory_runs_out_fewer_windows_are_taken_at_once(tmp_path, tiny_model):
    """256 windows take 1200 MiB or more, and rows of 17 that wait to be added some 200."""
    source = write_scene(tmp_path / "in.tif", blocks(3, 352, 352))
    words = ("--model", tiny_model, "--classes", ",".join("abcdefghijklmnop"))
    how = ("--window", 224, "--stride", 8, "--device", "cuda", "--precision", "fp32")
    args = ("segment", source, *words, *how)
    # first, so that the libraries have taken their memory
    run(*args, "-o", tmp_path / "few.tif", "--batch-size", 4)

    with memory_left(650):
        result = run(*args, "-o", tmp_path / "many.tif", "--batch-size", 256)

    said = on_one_line(result.stderr)
    assert "too little memory for 256 windows at once: going on with 128" in said
    expected = read(tmp_path / "few.tif")
    assert len(np.unique(expected)) > 3
    assert differing(read(tmp_path / "many.tif"), expected) <= 1e-3


def test_a_gpu_without_room_for_one_window_is_one_line(tmp_path, upsampled_model):
    """Without approximation a window of 512 pixels takes some 1000 MiB; one of 256 pixels 270."""
    source = write_scene(tmp_path / "in.tif", blocks(3, 512, 512))
    out = tmp_path / "out"
    out.mkdir()
    words = ("--model", upsampled_model, "--classes", "a,b", "--exact", "--device", "cuda")
    args = ("segment", source, *words)
    run(*args, "--window", 64, "--stride", 64, "-o", tmp_path / "small.tif")

    with memory_left(320):
        result = run(*args, "--window", 512, "-o", out / "map.tif", code=1)

    assert result.stderr.startswith("error: out of memory; ")
    assert result.stderr.count("\n") == 1
    assert names_in(out) == []
    run(*args, "--window", 512, "-o", out / "map.tif")  # and nothing of it is left


# --- on a cluster ------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [("a.tif", "b.tif", "c.tif"), ("a.tif",)], ids=len)
def test_a_worker_of_ray_has_the_gpu_and_makes_the_same_files(names, tmp_path, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    monkeypatch.setenv("PYTHONPATH", surroundings()["PYTHONPATH"])
    parts_of_the_town(tmp_path, *names)
    args = ("segment", *names, *WORDS, "-v")
    run(*args, "--device", "cuda", "-o", "here/{stem}.tif")

    command = (*args, "--engine", "ray", "-o", "there/{stem}.tif")
    there = subprocess.run(
        [sys.executable, "-m", "segearth_cli", *command],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert there.returncode == 0, there.stderr
    (loaded,) = (line for line in there.stderr.splitlines() if "model mini:" in line)
    assert " on cuda" in loaded  # says the worker: nobody else has a model
    made = names_in(tmp_path / "here")
    assert {*names} <= {*made}
    assert names_in(tmp_path / "there") == made
    for name in made:
        same = (tmp_path / folder / name for folder in ("here", "there"))
        assert len({file.read_bytes() for file in same}) == 1, name
    assert all(len(np.unique(read(tmp_path / "there" / name))) > 1 for name in names)


# --- the other commands ------------------------------------------------------------------------


def test_bench_counts_the_memory_of_the_gpu():
    result = run("bench", "--model", "mini", "--size", "600x400", "--device", "cuda", "--json")
    record = json.loads(result.stdout)
    assert torch.device(record["device"]).type == "cuda"
    assert record["device_bytes"] > 1 << 20
    assert record["ratio"] > 1


@pytest.mark.parametrize(
    ("command", "precision"),
    [
        (("train-upsampler", TOWN, "--jitters", 1), "bf16"),
        (("distill-sar", "--optical", TOWN, "--sar", RADAR), "bf16"),
        (("distill-sar", "--optical", TOWN, "--sar", RADAR), "fp16"),
    ],
    ids=("upsampler", "distillation", "fp16"),
)
def test_a_training_stops_goes_on_and_ends_in_a_model(command, precision, tmp_path):
    output = tmp_path / "run"
    how = ("--steps", 2, "--crop", 112, "--batch-size", 2, "--device", "cuda")
    args = (*command, "-o", output, "--model", "mini", *how, "--precision", precision, "--json")

    first = json.loads(run(*args, "--stop-at", 1).stdout)
    assert (first["status"], first["step"]) == ("stopped", 1)
    last = json.loads(run(*args, "--resume", "--workers", 1).stdout)

    assert (last["status"], last["step"]) == ("done", 2)
    assert all(np.isfinite([*measured.values()]).all() for measured in last["measured"])
    facts = report(output)
    assert torch.device(facts["device"]).type == "cuda"
    assert (facts["precision"], facts["steps_done"]) == (precision, 2)
    folder = open_model_folder(output)
    assert folder.card.sensor == ("sar" if command[0] == "distill-sar" else "optical")
    assert (folder.upsampler is not None) == (command[0] == "train-upsampler")

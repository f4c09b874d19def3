import json

import pytest
import rasterio
from scenes import names_in, write_scene
from typer.testing import CliRunner

from segearth_cli.bench import write_synthetic
from segearth_cli.cli import app
from segearth_cli.stages import Stopwatch, stage


def bench(*args):
    return CliRunner().invoke(app, ["bench", "--device", "cpu", *map(str, args)])


@pytest.mark.parametrize(
    "model", ["tiny_model", pytest.param("upsampled_model", marks=pytest.mark.slow)]
)
def test_json_holds_every_stage_and_the_whole(request, tmp_path, model):
    source = write_scene(tmp_path / "scene.tif")
    result = bench(source, "--model", request.getfixturevalue(model), "--json", "--vector")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert (record["width"], record["height"], record["windows"]) == (130, 100, 12)
    assert record["queries"] == 9
    stages = {"open", "encoder", "upsampler", "classify", "write", "outputs", "wait for reading"}
    assert stages <= set(record["stage_seconds"])
    assert set(record["beside_seconds"]) == {"read"}
    assert 0 < sum(record["stage_seconds"].values()) <= record["whole_seconds"]
    assert record["whole_seconds"] * 12 == pytest.approx(record["seconds"])
    encoder = record["stage_seconds"]["encoder"]
    assert record["ratio"] == pytest.approx(record["whole_seconds"] / encoder)
    km2 = 130 * 100 * 4 / 1e6
    assert record["km2_per_second"] == pytest.approx(km2 / record["seconds"])
    assert record["process_bytes"] > 1e8
    assert record["device_bytes"] is None
    assert names_in(tmp_path) == ["scene.tif"]


def test_the_table_says_the_ratio_on_a_synthetic_scene(tiny_model):
    result = bench("--model", tiny_model, "--size", "150x100", "--threads", 1)
    assert result.exit_code == 0, result.output
    assert result.stdout == ""
    assert "synthetic: 150 x 100 pixels, 12 windows, 9 queries" in result.stderr
    assert "times the encoder" in result.stderr
    assert "peak memory" in result.stderr


@pytest.mark.slow
def test_an_architecture_runs_with_random_weights():
    result = bench("--arch", "ViT-S-16-alt", "--size", "300x224", "--classes", "road", "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record["model"] == "ViT-S-16-alt"
    assert "upsampler.safetensors" in record["settings"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--arch", "ViT-X"], "'ViT-X' is no plain CLIP vision transformer"),
        (["--arch", "coca_ViT-B-32"], "'coca_ViT-B-32' is no plain CLIP vision transformer"),
        (["--size", "big"], "--size 'big' is not WIDTHxHEIGHT"),
        (["--size", "0x5"], "has no pixels"),
        (["town.tif", "--size", "9x9"], "--size is of a synthetic scene"),
        (["--arch", "ViT-B-32", "--model", "mini"], "--arch and --model are two models"),
        (["--max-memory", "much"], "--max-memory 'much' is no size"),
        (["--exact", "--precision", "bf16"], "--exact and --precision bf16 exclude each other"),
        (["nowhere.tif", "--model", "mini"], "there is no such file"),
    ],
)
def test_what_cannot_be_timed_is_one_line(args, message):
    result = bench(*args)
    assert result.exit_code in (1, 2)
    (line,) = result.stderr.splitlines()
    assert message in line


def test_the_synthetic_scene_is_of_its_size(tmp_path):
    path = write_synthetic(tmp_path / "made.tif", 700, 300)
    with rasterio.open(path) as src:
        assert (src.width, src.height, src.count, src.crs.to_epsg()) == (700, 300, 3, 32632)
        assert src.read().std() > 20


def test_an_inner_stage_is_not_counted_twice():
    with Stopwatch().running() as watch:
        with stage("outer"), stage("inner"):
            pass
        whole = sum(watch.seconds.values())
    assert set(watch.seconds) == {"outer", "inner"}
    assert min(watch.seconds.values()) >= 0
    with stage("later"):
        pass
    assert sum(watch.seconds.values()) == whole

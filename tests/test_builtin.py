"""The model that ships with the package, on the scene that ships with the project."""

from pathlib import Path

import numpy as np
import open_clip
import pytest
import rasterio
import torch
from typer.testing import CliRunner

from segearth_cli.cli import app
from segearth_cli.model.folder import open_model_folder
from segearth_cli.model.weights import BUILTIN, resolve_model
from segearth_cli.options import ModelOptions, SegmentOptions
from segearth_cli.segment import segment

ROOT = Path(__file__).parents[1]

TOWN = ROOT / "sample_data" / "town.tif"
RADAR = ROOT / "sample_data" / "town_sar.tif"
LABELS = ROOT / "sample_data" / "town_labels.tif"


def mean_iou(predicted, truth, values):
    matrix = np.zeros((values, values), np.int64)
    np.add.at(matrix, (truth.ravel(), predicted.ravel()), 1)
    both = np.diag(matrix)
    return (both / (matrix.sum(0) + matrix.sum(1) - both)).mean()


@pytest.mark.parametrize(
    ("sensor", "name", "better"),
    [("optical", "mini", "vit-b-16"), ("sar", "mini-sar", "alignearth-sar")],
)
def test_auto_is_the_built_in_model_and_says_so(sensor, name, better, caplog):
    folder = resolve_model("auto", sensor)

    assert folder.card.name == name
    assert folder.card.sensor == sensor
    assert f"segearth models pull {better}" in caplog.text


@pytest.mark.parametrize("name", ["mini", "mini-sar"])
def test_the_folder_is_small_and_open_clips_own(name):
    folder = open_model_folder(BUILTIN / name)

    assert folder.size < 25e6
    model = open_clip.create_model(f"local-dir:{folder.path}")
    tokens = open_clip.get_tokenizer(f"local-dir:{folder.path}")(["a building", "a river"])
    with torch.inference_mode():
        assert model.encode_text(tokens).isfinite().all()
        assert model.encode_image(torch.rand(1, 3, 224, 224)).isfinite().all()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mini", ("EuroSAT", "UC Merced", "CC0", "OpenStreetMap", "segearth_cli.training.mini")),
        ("mini-sar", ("Optical-SAR", "Copernicus", "MIT", "segearth_cli.training.mini_sar")),
    ],
)
def test_the_card_names_data_licences_and_commands(name, words):
    text = (BUILTIN / name / "README.md").read_text(encoding="utf-8")

    for word in words:
        assert word in text


@pytest.mark.slow
def test_the_town_is_mapped_well_enough(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    out = tmp_path / "town.tif"

    done = CliRunner().invoke(
        app, ["segment", str(TOWN), "--classes", "building,road,water", "-o", str(out)]
    )

    assert done.exit_code == 0, done.output
    with rasterio.open(out) as predicted, rasterio.open(LABELS) as labels:
        assert predicted.crs == labels.crs
        assert predicted.transform == labels.transform
        truth = labels.read(1)
        truth[truth > 3] = 0  # 1 building, 2 road, 3 water; the rest is background
        assert mean_iou(predicted.read(1), truth, 4) > 0.75


@pytest.mark.slow
def test_water_is_found_by_radar(tmp_path):
    out = tmp_path / "water.tif"

    done = CliRunner().invoke(app, ["segment", str(RADAR), "--classes", "water", "-o", str(out)])

    assert done.exit_code == 0, done.output
    with rasterio.open(out) as predicted, rasterio.open(LABELS) as labels:
        water = np.uint8(labels.read(1) == 3)
        assert mean_iou(predicted.read(1), water, 2) > 0.7


def test_an_optical_scene_does_not_need_a_radar_model(tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    (cache / "models" / "alignearth-sar").mkdir(parents=True)  # half of it is missing
    monkeypatch.setenv("SEGEARTH_CACHE", str(cache))
    out = tmp_path / "map.tif"
    options = ("--bbox", "689500,5334400,689560,5334460", "--classes", "water", "-o", str(out))

    done = CliRunner().invoke(app, ["segment", str(TOWN), *options])
    radar = CliRunner().invoke(app, ["segment", str(RADAR), *options, "--overwrite"])

    assert done.exit_code == 0, done.output
    assert radar.exit_code == 1
    assert "alignearth-sar" in radar.output


def test_a_scene_of_another_resolution_gets_a_warning(tmp_path, caplog):
    options = SegmentOptions(
        (("water",),), outputs=(str(tmp_path / "map.tif"),), gsd=10, model=ModelOptions("mini")
    )

    segment(str(TOWN), options)

    assert "pixels of 10 m; mini was made for 0.1 to 1 m" in caplog.text

"""What several tests need: the reference's numbers, a tiny scene, the command line."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # one of several processes: a core each
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from model_server import TINY as PULLED
from open_clip.transformer import QuickGELU, VisionTransformer
from safetensors.torch import load_file
from scenes import blocks, write_scene
from trainings import CPU

from segearth_cli.model.card import ModelCard
from segearth_cli.model.folder import save_model_folder
from segearth_cli.model.upsampler import JBUOne
from segearth_cli.options import DistillOptions, UpsamplerOptions

DATA = Path(__file__).parent / "data"
ROOT = Path(__file__).parents[1]


class Reference:
    """Numbers that the authors' implementation produces (float32, CPU), see tests/data/README."""

    mean = (0.48145466, 0.4578275, 0.40821073)
    std = (0.26862954, 0.26130258, 0.27577711)

    def __init__(self, path: Path) -> None:
        self.arrays = np.load(path)

    def __getitem__(self, name: str) -> torch.Tensor:
        return torch.from_numpy(self.arrays[name])

    def __contains__(self, name: str) -> bool:
        return name in self.arrays.files

    @property
    def names(self) -> list[str]:
        return list(self.arrays.files)

    @property
    def image(self) -> torch.Tensor:
        """3 x 336 x 336 in [0, 1]."""
        return self["image"].permute(2, 0, 1).float() / 255

    def normalised(self, rows: slice, columns: slice) -> torch.Tensor:
        """A window of the image as the encoder takes it: 1 x 3 x h x w."""
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return ((self.image - mean) / std)[None, :, rows, columns]

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        prefix = f"w/{name}."
        return {
            key.removeprefix(prefix): self[key].float()
            for key in self.names
            if key.startswith(prefix)
        }

    def visual(self) -> VisionTransformer:
        visual = VisionTransformer(224, 16, 96, 4, 3, 4.0, output_dim=64, act_layer=QuickGELU)
        visual.load_state_dict(self.weights("visual"))
        return visual.eval()


@pytest.fixture(scope="session")
def reference() -> Reference:
    return Reference(DATA / "reference.npz")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's cache."""
    cache = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv("SEGEARTH_CACHE", str(cache))


TINY = {
    "embed_dim": 24,
    "vision_cfg": {
        "image_size": 64,
        "layers": 2,
        "width": 48,
        "head_width": 16,
        "patch_size": 16,
    },
    "text_cfg": {
        "context_length": 32,
        "vocab_size": 49408,
        "width": 16,
        "heads": 2,
        "layers": 1,
    },
}


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with random weights and windows of 64 pixels: for everything but quality."""
    torch.manual_seed(0)
    card = ModelCard.for_sensor("tiny", "optical", licence="none", window=64, stride=32)
    config = {
        "model_cfg": TINY,
        "preprocess_cfg": {"mean": Reference.mean, "std": Reference.std},
    }
    destination = tmp_path_factory.mktemp("models") / "tiny"
    state = open_clip.CLIP(**TINY).state_dict()
    return save_model_folder(destination, state, config, card).path


@pytest.fixture(scope="session")
def upsampled_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with SimFeatUp of random weights, which sees edges."""
    torch.manual_seed(1)
    upsampler = JBUOne(TINY["embed_dim"])
    upsampler.up.range_temp.data.fill_(2.0)
    card = ModelCard.for_sensor("sharp", "optical", licence="none", window=64, stride=32)
    config = {
        "model_cfg": TINY,
        "preprocess_cfg": {"mean": Reference.mean, "std": Reference.std},
    }
    state = load_file(tiny_model / "open_clip_model.safetensors")
    destination = tmp_path_factory.mktemp("models") / "sharp"
    return save_model_folder(destination, state, config, card, upsampler.state_dict()).path


@pytest.fixture(scope="session")
def tiny_state() -> dict[str, Any]:
    """Random weights of the smallest model that can be pulled from the server of the tests."""
    torch.manual_seed(0)
    return open_clip.CLIP(**PULLED).state_dict()


@pytest.fixture
def tiny_folder(tmp_path: Path, tiny_state: dict[str, Any]) -> Path:
    """A model folder of those weights, which a test may damage."""
    card = ModelCard("tiny", licence="MIT", extra={"trained_on": "nothing"})
    return save_model_folder(tmp_path / "tiny", tiny_state, {"model_cfg": PULLED}, card).path


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Four optical images, and a radar image of each place."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "rgb").mkdir()
    (folder / "vh").mkdir()
    for number in range(4):
        array = np.roll(blocks(3, 100, 130), 7 * number, axis=2)
        write_scene(folder / "rgb" / f"{number}.tif", array)
        radar = (array[:1].astype(np.float32) - array[1:2]) / 20 - 15
        write_scene(folder / "vh" / f"{number}.tif", radar)
    return folder


@pytest.fixture
def upsampler_run(data, tiny_model):
    def arguments(output, *more):
        own = ("--model", tiny_model, "--batch-size", "2", "--jitters", "1", "--kernel", "3")
        return [str(x) for x in ("train-upsampler", data / "rgb", "-o", output, *own, *CPU, *more)]

    return arguments


@pytest.fixture
def distill_run(data, tiny_model):
    def arguments(output, *more):
        pairs = ("--optical", data / "rgb", "--sar", data / "vh")
        own = ("--model", tiny_model, "--batch-size", "4", "--regions", "2")
        return [str(x) for x in ("distill-sar", *pairs, "-o", output, *own, *CPU, *more)]

    return arguments


@pytest.fixture(params=["upsampler", "distill"])
def arguments(request):
    return request.getfixturevalue(f"{request.param}_run")


@pytest.fixture
def distillation(data, tiny_model, tmp_path):
    from segearth_cli.training.distill import Distillation

    def make(**more):
        own = {"output": tmp_path, "model": str(tiny_model), "crop": 64, "regions": 2}
        pairs = {"optical": str(data / "rgb"), "sar": str(data / "vh")}
        options = DistillOptions(**{**own, **pairs, "precision": "fp32", **more})
        return Distillation(options, torch.device("cpu"))

    return make


@pytest.fixture
def upsampling(data, tiny_model, tmp_path):
    from segearth_cli.training.upsampler import UpsamplerTraining

    def make(**more):
        own = {"output": tmp_path, "model": str(tiny_model), "crop": 64, "kernel": 3}
        options = UpsamplerOptions(
            **{**own, "images": (str(data / "rgb"),), "precision": "fp32", "jitters": 1, **more}
        )
        return UpsamplerTraining(options, torch.device("cpu"))

    return make

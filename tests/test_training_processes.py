"""Two processes do what one does."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from one_step import one_step
from scenes import surroundings, write_scene
from trainings import ROOT, logged, report, run


def two_processes(*command):
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2",
              "--standalone", *command]  # fmt: skip
    done = subprocess.run(
        launch, cwd=ROOT, env=surroundings(), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.slow
def test_two_processes_see_the_loss_of_one_and_speak_once(distill_run, data, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    own = shutil.copytree(data, tmp_path / "data")
    write_scene(own / "rgb" / "alone.tif")
    for number in range(6):  # with this seed each process meets one that the other does not
        write_scene(own / "rgb" / f"e{number}.tif", np.zeros((3, 64, 64), np.uint8), nodata=0)
        write_scene(own / "vh" / f"e{number}.tif", np.zeros((1, 64, 64), np.float32))

    def arguments(output):
        named = distill_run(output, "--steps", "2", "--held-out", "0.3", "--seed", "8")
        return [argument.replace(str(data), str(own)) for argument in named]

    assert run(arguments(one)).exit_code == 0
    said = two_processes("-m", "segearth_cli", *arguments(two))

    for tag in ("loss", "contrast", "token", "region"):
        expected = logged(one, f"train/{tag}")
        assert logged(two, f"train/{tag}") == pytest.approx(expected, rel=1e-4)
    assert report(two)["processes"] == 2
    assert sorted(report(two)["skipped"]) == sorted(report(one)["skipped"])
    assert len(report(two)["skipped"]) == 5  # two more are held out, and seen by both
    assert said.count("has no partner of that name") == 1
    assert said.count("5 files or pairs were skipped") == 1


@pytest.mark.slow
def test_two_processes_move_an_upsampler_as_far_as_one(tiny_model, data, tmp_path):
    one, two = tmp_path / "one.pt", tmp_path / "two.pt"
    one_step(str(tiny_model), str(data / "rgb"), str(one))
    two_processes(str(ROOT / "tests" / "one_step.py"), str(tiny_model), str(data / "rgb"), str(two))

    expected, found = (torch.load(path, weights_only=True) for path in (one, two))

    assert max(float(moved.abs().max()) for moved in expected.values()) > 1e-6
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-3)

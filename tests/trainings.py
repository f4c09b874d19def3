"""Trainings run as from the shell, and what they leave."""

import json
from pathlib import Path

from safetensors.torch import load_file
from torch.testing import assert_close
from typer.testing import CliRunner

from segearth_cli.cli import app

ROOT = Path(__file__).parents[1]
CPU = ("--device", "cpu", "--precision", "fp32", "--crop", "64", "--log-every", "1")


def run(arguments):
    return CliRunner().invoke(app, arguments)


def report(output):
    return json.loads((output / "training.json").read_text())


def weights(output):
    files = ("open_clip_model.safetensors", "upsampler.safetensors")
    return {name: load_file(output / name) for name in files if (output / name).is_file()}


def assert_same_weights(first, second):
    assert_close(weights(first), weights(second), atol=0, rtol=0)


def logged(output, tag):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(output / "logs"), size_guidance={"scalars": 0})
    events.Reload()
    return {event.step: event.value for event in events.Scalars(tag)}

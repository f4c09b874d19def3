"""The README's commands run to their end, on coarser pixels, and print such lines as it shows."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from scenes import surroundings

from segearth_cli.options import ATTENTIONS, OUTPUT_SUFFIXES
from segearth_cli.presets import read_presets

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


COMMANDS = [  # and what they print
    shown.partition("\n")[::2]
    for block in re.findall(r"```console\n\$ (.*?)```", README, re.DOTALL)
    for shown in block.split("\n$ ")
]
CHOSEN = re.compile(
    "warning: what some scenes|not in the command|segearth segment 'vrt"
)  # by pixels


def lines_of(text):
    """Its lines without numbers, and without what depends on the machine or on coarser pixels."""
    text = re.sub(r" --(gsd|stride)[= ]\S+", "", text)
    text = re.sub(r"[^\s(]*(?=segearth_cli/builtin)", "", text)
    text = re.sub("bf16|fp32", "<precision>", text)
    text = re.sub(r"(?<=coordinates).*", "", text)
    text = re.sub(r"\d+(\.\d+)?", "#", text)
    return {" ".join(line.split()) for line in text.splitlines() if not CHOSEN.match(line)}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with sample_data, and a shell that finds this interpreter's segearth."""
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(ROOT / "sample_data", folder / "sample_data")
    tools = folder / "bin"
    tools.mkdir()
    command = tools / "segearth"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m segearth_cli "$@"\n')
    command.chmod(0o755)
    environment = {
        **surroundings(PATH=f"{tools}{os.pathsep}{os.environ['PATH']}", HF_HUB_OFFLINE="1"),
        "COLUMNS": "96",
        # a quarter of the pixels, in windows side by side: less than a tenth of the time
        "SEGEARTH_SEGMENT_GSD": "1",
        "SEGEARTH_SEGMENT_STRIDE": "224",
        "SEGEARTH_SEGMENT_DEVICE": "cpu",
        "SEGEARTH_TRAIN_UPSAMPLER_KERNEL": "3",
        "SEGEARTH_TUNE_GSD": "1",
        "SEGEARTH_TUNE_STRIDE": "224",
    }
    return folder, environment


def test_the_readme_shows_commands():
    assert len(COMMANDS) >= 5
    assert "@@" not in README


@pytest.mark.parametrize("names", [ATTENTIONS, OUTPUT_SUFFIXES, tuple(read_presets())])
def test_the_readme_names_all_that_can_be_chosen(names):
    found = {name for name in names if re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", README)}
    assert found == set(names)


@pytest.mark.slow
@pytest.mark.parametrize(("command", "shown"), COMMANDS)
def test_a_command_of_the_readme(command, shown, workplace):
    folder, environment = workplace

    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )

    # `head` ends the pipe early: segearth notices, without a traceback
    assert done.returncode == 0 or "| head" in command, done.stdout
    assert "Traceback" not in done.stdout
    assert lines_of(shown) <= lines_of(done.stdout)


@pytest.mark.slow
def test_the_python_of_the_readme(workplace):
    folder, environment = workplace
    code = "\n".join(re.findall(r"```python\n(.*?)```", README, re.DOTALL))

    done = subprocess.run(
        [sys.executable, "-c", code.replace('"town.gpkg",)', '"python.gpkg",), gsd=1.0')],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stderr
    assert (folder / "python.gpkg").exists()


def test_the_readme_installs_and_tests_as_ci_does():
    ci = (ROOT / ".ci" / "run").read_text()
    assert "pip install '.[test]' && pytest" in README
    assert "'.[test]'" in ci
    assert "pytest" in ci

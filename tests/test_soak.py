"""Five hundred scenes in one process: its memory stays what it is after the first twenty."""

import gc
import itertools
import os
from pathlib import Path

import numpy as np
import pytest
from scenes import blocks, options_for, write_scene

from segearth_cli.batch import segment_all
from segearth_cli.results import SegmentResult

SCENES = int(os.environ.get("SEGEARTH_SOAK_SCENES", "120"))  # 500 for the real thing: minutes
SETTLED = 20
MORE = 1.05

STATUS = Path("/proc/self/status")


def taken():
    """KiB of memory that is the process's own, swapped out or not; pages of files come and go."""
    gc.collect()
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return sum(int(lines[name].split()[0]) for name in ("RssAnon", "VmSwap"))


@pytest.mark.slow
@pytest.mark.skipif(not STATUS.exists(), reason="needs /proc to see memory")
def test_memory_does_not_grow_with_the_number_of_scenes(tmp_path, tiny_model):
    rng = np.random.default_rng(0)
    sources = []
    for number in range(SCENES):
        image = np.roll(blocks(3, 64, 80), int(rng.integers(80)), axis=2)
        sources.append(write_scene(tmp_path / f"{number}.tif", image, compress="deflate"))
    outputs = [tmp_path / "maps" / f"{{stem}}{suffix}" for suffix in (".tif", ".gpkg", ".png")]
    outcomes = segment_all(sources, options_for(tiny_model, *outputs))
    assert all(isinstance(o, SegmentResult) for o in itertools.islice(outcomes, SETTLED))
    settled = taken()
    assert all(isinstance(outcome, SegmentResult) for outcome in outcomes)
    grown = taken() / settled
    print(f"{settled / 2**10:.1f} MiB after {SETTLED} scenes, {grown:.4f} times that at the end")
    assert grown < MORE
    assert len(list((tmp_path / "maps").glob("*.gpkg"))) == SCENES

"""Damaged and hostile files: a map or one line, never a crash, a hang, or a memory explosion."""

import json
import os
import pickle
import random
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from rasterio import Affine
from scenes import blocks, names_in, options_for, surroundings, write_scene

from segearth_cli.batch import segment_all
from segearth_cli.errors import SegEarthError
from segearth_cli.results import SegmentResult
from segearth_cli.segment import segment

TESTS = Path(__file__).parent
SCENES = int(os.environ.get("SEGEARTH_FUZZ_SCENES", 60))
MODELS = int(os.environ.get("SEGEARTH_FUZZ_MODELS", 30))
SEED = int(os.environ.get("SEGEARTH_FUZZ_SEED", 0))
NUMBERS = (0, 1, 2, 3, 7, 255, 256, 65535, 65536, 10**6, 2**31 - 1, 2**31, 2**32 - 1)

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that fork")


def run_all(folder, cases):
    """What became of each case; fails where that is no map and no line."""
    (folder / "spec.json").write_text(json.dumps(cases))
    done = subprocess.run(
        [sys.executable, str(TESTS / "fuzzed.py"), str(folder / "spec.json")],
        env=surroundings(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(said) == len(cases)
    bad = [(c, s) for c, s in zip(cases, said, strict=True) if not s.startswith(("done", "error"))]
    kinds = {what.strip().splitlines()[-1][:60]: f"{case}\n{what}" for case, what in bad}
    assert not bad, f"{len(bad)} of {len(cases)}:\n" + "\n".join(kinds.values())
    return said


# --- scenes ------------------------------------------------------------------------------------


def seeds(folder):
    """Small GeoTIFFs of many kinds."""
    folder.mkdir()
    byte, grey = blocks(3, 60, 70), blocks(1, 60, 70)
    kinds = {
        "plain": (byte, {}),
        "tiled": (byte, {"tiled": True, "blockxsize": 16, "blockysize": 16}),
        "deflate": (byte, {"compress": "deflate", "interleave": "band"}),
        "lzw": (byte.astype(np.uint16) * 200, {"compress": "lzw", "predictor": 2}),
        "float": (byte.astype(np.float32), {"nodata": float("nan"), "compress": "zstd"}),
        "complex": (grey.astype(np.complex64), {}),
        "jpeg": (byte, {"compress": "jpeg", "photometric": "ycbcr"}),
        "palette": (grey, {"photometric": "palette"}),
        "big": (byte, {"BIGTIFF": "YES"}),
        "ints": (grey.astype(np.int16), {"nodata": 7}),
    }
    paths = [write_scene(folder / f"{name}.tif", a, **more) for name, (a, more) in kinds.items()]
    with rasterio.open(paths[0], "r+") as dst:
        dst.build_overviews([2, 4])
    return paths


def damaged(data, pick):
    """The bytes with one to four faults, most of them where the description lies."""
    data = bytearray(data)
    directory = struct.unpack("<I", data[4:8])[0]
    for _ in range(pick.randint(1, 4)):
        near = pick.random() < 0.7 and directory < len(data)
        low, high = (directory, min(len(data), directory + 300)) if near else (0, len(data))
        place = pick.randrange(low, max(low + 1, high - 8))
        kind = pick.randrange(5)
        if kind == 0:
            data[place] = pick.randrange(256)
        elif kind == 1:
            data[place : place + 4] = struct.pack("<I", pick.choice(NUMBERS))
        elif kind == 2:
            data[place : place + 2] = struct.pack("<H", pick.choice(NUMBERS) & 0xFFFF)
        elif kind == 3:
            del data[pick.randrange(8, len(data)) :]
        else:
            length = pick.randrange(1, 200)
            data[place : place + length] = bytes(len(data[place : place + length]))
        if len(data) < 32:
            break
    return bytes(data)


@pytest.mark.slow
def test_damaged_scenes_give_a_map_or_one_line(tmp_path, tiny_model):
    pick = random.Random(SEED)
    originals = [Path(path).read_bytes() for path in seeds(tmp_path / "seeds")]
    out = tmp_path / "out"
    cases = []
    for number in range(SCENES):
        path = tmp_path / f"{number}.tif"
        path.write_bytes(damaged(pick.choice(originals), pick))
        outputs = [str(out / f"{number}{suffix}") for suffix in (".tif", ".gpkg", ".png")]
        cases.append({"source": str(path), "model": str(tiny_model), "outputs": outputs})
    said = run_all(tmp_path, cases)
    for number, what in enumerate(said):
        made = [name for name in names_in(out) if name.split(".")[0] == str(number)]
        assert bool(made) == (what == "done")
    assert not [name for name in names_in(out) if name.startswith(".")]


def header_that_claims(path, width, height, **more):
    """A GeoTIFF of a few hundred bytes that says it is huge."""
    profile = {"driver": "GTiff", "width": width, "height": height, "count": 3, "dtype": "uint8"}
    grid = {"crs": "EPSG:32633", "transform": Affine(1e-3, 0, 5e5, 0, -1e-3, 5.4e6)}
    with rasterio.open(path, "w", SPARSE_OK="TRUE", BIGTIFF="YES", **profile, **grid, **more):
        pass
    return str(path)


@pytest.mark.slow
def test_headers_that_claim_more_than_there_is(tmp_path, tiny_model):
    strip = Path(write_scene(tmp_path / "strip.tif", blocks(1, 60, 70))).read_bytes()
    claims = strip.replace(struct.pack("<HHIH", 256, 3, 1, 70), struct.pack("<HHIH", 256, 3, 1, 7))
    assert claims != strip
    cases = []
    for number, (width, height) in enumerate([(10**6, 10**6), (2**31 - 1, 60), (70, 10**6)]):
        lied = bytearray(strip)
        for tag, value in ((256, width), (257, height), (278, height)):
            place = next(
                lied.find(struct.pack("<HHI", tag, kind, 1))
                for kind in (3, 4)
                if lied.find(struct.pack("<HHI", tag, kind, 1)) >= 0
            )
            lied[place : place + 12] = struct.pack("<HHII", tag, 4, 1, value)
        path = tmp_path / f"lie {number}.tif"
        path.write_bytes(lied)
        cases.append(path)
    tiled = {"tiled": True, "blockxsize": 65536, "blockysize": 65536}
    cases.append(header_that_claims(tmp_path / "tile.tif", 10**6, 10**6, **tiled))
    cases.append(header_that_claims(tmp_path / "sparse.tif", 10**6, 10**6, tiled=True))
    said = run_all(
        tmp_path,
        [
            {"source": str(p), "model": str(tiny_model), "outputs": [str(tmp_path / "o" / "m.tif")]}
            for p in cases
        ],
    )
    assert all(what.startswith("error: ") for what in said), said
    assert not (tmp_path / "o").exists()


# --- models ------------------------------------------------------------------------------------

VALUES = (None, True, 0, -1, 0.5, 10**6, 10**12, 2**63, 1e308, "", "x" * 5000, [], {}, [[1]])


def leaves(document, path=()):
    """The paths of all values in a JSON document."""
    for key, value in document.items() if isinstance(document, dict) else ():
        yield (*path, key)
        yield from leaves(value, (*path, key))


def damaged_model(folder, original, pick):
    """A copy of a model folder with a fault in one of its files."""
    shutil.copytree(original, folder)
    name = pick.choice(["segearth.json", "open_clip_config.json", "open_clip_model.safetensors"])
    file = folder / name
    if name.endswith(".json") and pick.random() < 0.8:
        document = json.loads(file.read_text())
        path = pick.choice(list(leaves(document)))
        inside = document
        for key in path[:-1]:
            inside = inside[key]
        if pick.random() < 0.2:
            del inside[path[-1]]
        else:
            inside[path[-1]] = pick.choice(VALUES)
        file.write_text(json.dumps(document))
        return
    data = bytearray(file.read_bytes())
    end = len(data) if name.endswith(".json") or pick.random() < 0.3 else 2000
    place = pick.randrange(min(end, len(data)))
    if pick.random() < 0.2:
        del data[place:]
    else:
        data[place : place + 8] = pick.randbytes(pick.randint(1, 8))
    file.write_bytes(data)


@pytest.mark.slow
def test_damaged_models_give_a_map_or_one_line(tmp_path, tiny_model):
    pick = random.Random(SEED)
    source = write_scene(tmp_path / "scene.tif", blocks(3, 60, 70))
    cases = []
    for number in range(MODELS):
        damaged_model(tmp_path / f"model {number}", tiny_model, pick)
        output = str(tmp_path / "out" / f"{number}.tif")
        model = str(tmp_path / f"model {number}")
        cases.append({"source": source, "model": model, "outputs": [output]})
    run_all(tmp_path, cases)


class Evil:
    """What a checkpoint does that is more than weights: unpickled, it makes a file."""

    def __init__(self, place):
        self.place = str(place)

    def __reduce__(self):
        return os.mkdir, (self.place,)


@pytest.mark.parametrize("kind", ["torch", "pickle", "weights"])
def test_no_code_of_a_checkpoint_is_run(tmp_path, tiny_model, kind):
    source = write_scene(tmp_path / "scene.tif", blocks(3, 60, 70))
    harm = tmp_path / "harm"
    model, options = tiny_model, {"upsampler": str(tmp_path / "up.ckpt")}
    if kind == "torch":
        torch.save({"state_dict": {"up": Evil(harm)}}, tmp_path / "up.ckpt")
    elif kind == "pickle":
        (tmp_path / "up.ckpt").write_bytes(pickle.dumps({"up": Evil(harm)}))
    else:
        model, options = tmp_path / "model", {}
        shutil.copytree(tiny_model, model)
        (model / "open_clip_model.safetensors").unlink()
        torch.save({"visual": Evil(harm)}, model / "open_clip_pytorch_model.bin")
    with pytest.raises(SegEarthError) as caught:
        segment(source, options_for(model, tmp_path / "map.tif", **options))
    assert "\n" not in str(caught.value)
    assert not harm.exists()
    assert not (tmp_path / "map.tif").exists()


def test_names_of_files_are_no_commands(tmp_path, tiny_model, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    for name in (
        "$(touch harm).tif",
        "`touch harm`; touch harm .tif",
        "-o.tif",
        "a\nb.tif",
        "..tif",
    ):
        source = write_scene(tmp_path / name, blocks(1, 40, 50))
        outputs = [f"out/{{stem}}{suffix}" for suffix in (".tif", ".gpkg", ".shp", ".png")]
        (outcome,) = segment_all([source], options_for(tiny_model, *outputs))
        assert isinstance(outcome, SegmentResult), outcome
        assert all((tmp_path / output).is_file() for output in outcome.outputs)
    assert not (tmp_path / "harm").exists()
    assert not [name for name in names_in(tmp_path / "out") if "/" in name]

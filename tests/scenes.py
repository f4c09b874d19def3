"""Small scenes to segment, and how the tests segment them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import rasterio
from rasterio import Affine

from segearth_cli.options import ModelOptions, SegmentOptions

CLASSES = (("building", "roof"), ("road",), ("water",))
PIXEL_M2 = 4.0
UTM = {"crs": "EPSG:32633", "transform": Affine(2, 0, 500_000, 0, -2, 5_400_000)}


def blocks(bands: int = 3, height: int = 100, width: int = 130) -> np.ndarray:
    """Noisy blocks of ten pixels, uint8 1..255: even random weights see several classes there."""
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (bands, height // 10 + 1, width // 10 + 1))
    image = np.kron(colours, np.ones((10, 10)))[:, :height, :width]
    return np.clip(image + rng.normal(0, 15, image.shape), 1, 255).astype(np.uint8)


def write_scene(path: Path, array: np.ndarray | None = None, **profile: Any) -> str:
    """A GeoTIFF of 2 m pixels in UTM, unless the profile says otherwise; its path."""
    array = blocks() if array is None else array
    count, height, width = array.shape
    profile = {"driver": "GTiff", **UTM, **profile}
    size = {"count": count, "height": height, "width": width}
    with rasterio.open(path, "w", dtype=array.dtype, **size, **profile) as dst:
        dst.write(array)
    return str(path)


def options_for(model: Path, *outputs: Path | str, **more: Any) -> SegmentOptions:
    """Options that run the model on the CPU in float32; further ones by either class's names."""
    names = ModelOptions.__dataclass_fields__.keys() & more.keys() - {"model"}
    own = {name: more.pop(name) for name in names}
    settings = ModelOptions(**{"model": str(model), "device": "cpu", "precision": "fp32", **own})
    more.setdefault("classes", CLASSES)
    return SegmentOptions(outputs=tuple(map(str, outputs)), model=settings, **more)


def read(path: Path | str) -> np.ndarray:
    """The first band."""
    with rasterio.open(path) as src:
        band: np.ndarray = src.read(1)
    return band


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a web server of the folder's files."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def names_in(folder: Path) -> list[str]:
    """Everything in a folder, hidden and nested files too."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def interruptible() -> None:
    """Undo, in a new process, what shells and nohup do: ignore Ctrl-C, and a terminal's end.

    And what Ray does to its own: it blocks Ctrl-C.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def surroundings(**more: str) -> dict[str, str]:
    """The environment of a subprocess that finds the package and the tests from any folder."""
    tests = Path(__file__).parent
    paths = filter(None, [str(tests.parent), str(tests), os.environ.get("PYTHONPATH")])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", **more}


@contextmanager
def ctrl_c_heard() -> Iterator[None]:
    """Ctrl-C is an exception in the block, also where a shell has had it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def stopped_in_the_middle(
    folder: Path, sent: signal.Signals, code: int, *args: object, **environment: str
) -> None:
    """A batch of three scenes gets a signal when the first is done, says so and ends with a code.

    Args:
        folder: of the scenes, which are called a.tif, b.tif and c.tif.
        sent, code: the signal, and the exit code.
        args, environment: further ones of ``segment``.
    """
    sources = [write_scene(folder / "a.tif", blocks(1, 40, 50))]
    sources += [write_scene(folder / f"{name}.tif", blocks(1, 600, 600)) for name in "bc"]
    command = ("segment", *sources, *map(str, args), "--stride", "2", "--json", "-q")
    process = subprocess.Popen(
        [sys.executable, "-m", "segearth_cli", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=surroundings(**environment),
        preexec_fn=interruptible,
    )
    with process:
        first = json.loads(process.stdout.readline())
        process.send_signal(sent)
        rest, errors = process.communicate(timeout=120)
    assert (first["status"], first["source"]) == ("done", sources[0])
    assert (process.returncode, rest) == (code, b"")
    assert errors.decode().startswith("error: interrupted; of 3 scenes 1 were gone through")

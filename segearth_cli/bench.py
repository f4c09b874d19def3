"""How fast segment is here: the encoder alone, every stage, the whole from file to file."""

from __future__ import annotations

import contextlib
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

import numpy as np
import rasterio
import torch
from rasterio import Affine
from rasterio.windows import Window

from segearth_cli.device import pass_size, peak_memory, reset_peak_memory, synchronize, use_threads
from segearth_cli.errors import SceneError
from segearth_cli.geo.raster import open_scene
from segearth_cli.model.card import ModelCard
from segearth_cli.model.convert import plain_config
from segearth_cli.model.folder import save_model_folder
from segearth_cli.model.upsampler import JBUOne
from segearth_cli.options import BenchOptions, SegmentOptions
from segearth_cli.segment import segment
from segearth_cli.stages import Stopwatch
from segearth_cli.stream import Model, load_model, window_grid

ENCODER_PASSES = 5  # before the run, and again after it
SYNTHETIC_GSD_M = 0.5


@dataclass(frozen=True)
class BenchResult:
    """What one run took; times in seconds, memory in bytes."""

    scene: str
    width: int
    height: int
    model: str
    settings: str
    device: str
    threads: int
    windows: int
    queries: int
    load_seconds: float
    encoder_seconds: float  # per window, alone
    stage_seconds: dict[str, float]  # per window, in the run
    beside_seconds: dict[str, float]  # per window, in other threads
    rest_seconds: float  # per window, between the stages
    watched_seconds: float  # per window, of the run whose stages were timed
    whole_seconds: float  # per window, from file to file
    ratio: float  # of the whole to the encoder's time in the run, or on a GPU to its time alone
    first_seconds: float | None  # of the first run, where a GPU's kernels are compiled in it
    seconds: float
    megapixels_per_second: float
    km2_per_second: float | None
    process_bytes: int | None
    device_bytes: int | None


def bench(options: BenchOptions) -> BenchResult:
    """Segment a scene with a stopwatch in hand.

    Raises:
        SegEarthError: as `segment`.
    """
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="segearth-bench-")))
        source = options.scene or write_synthetic(folder / "synthetic.tif", *options.size)
        own = run_options(options, folder)
        use_threads(own.threads)
        started = time.perf_counter()
        with open_scene(source, own) as scene:
            model = load_model(own, scene.sensor)
            grid = window_grid(scene, model.settings)
            area_m2 = scene.grid.pixel_area_m2
        load_seconds = time.perf_counter() - started
        device = model.segmenter.device
        reset_peak_memory(device)
        windows = len(grid)
        size = pass_size(device, own.model, grid)
        side = (grid.window_height, grid.window_width)
        before = encoder_passes(model, size, side)

        def run() -> float:
            started = time.perf_counter()
            segment(source, own, load=lambda sensor: model)
            return time.perf_counter() - started

        is_accelerated = device.type != "cpu"
        first_seconds = run() if is_accelerated else None
        watch = Stopwatch(lambda: synchronize(device))
        with watch.running():
            seconds = watched = run()
        if is_accelerated:  # once more: the stopwatch makes the two wait for each other
            seconds = run()
        if "encoder" not in watch.seconds:
            raise SceneError(f"{source} has no valid pixel to be timed; name another scene")
        encoder_seconds = statistics.median([*before, *encoder_passes(model, size, side)]) / size
        encoder_in_run = encoder_seconds * windows if is_accelerated else watch.seconds["encoder"]
        pixels = grid.width * grid.height
        return BenchResult(
            scene=options.scene or "synthetic",
            width=grid.width,
            height=grid.height,
            model=options.arch or model.settings.name,
            settings=f"attention {model.settings.attention}, upsampler "
            f"{Path(model.settings.upsampler).name}, {model.settings.precision}"
            + (", exact" if model.settings.exact else ""),
            device=str(device),
            threads=torch.get_num_threads(),
            windows=windows,
            queries=len(model.vocabulary.queries),
            load_seconds=load_seconds,
            encoder_seconds=encoder_seconds,
            stage_seconds={name: s / windows for name, s in watch.seconds.items()},
            beside_seconds={name: s / windows for name, s in watch.beside.items()},
            watched_seconds=watched / windows,
            rest_seconds=(watched - sum(watch.seconds.values())) / windows,
            whole_seconds=seconds / windows,
            ratio=seconds / encoder_in_run,
            first_seconds=first_seconds,
            seconds=seconds,
            megapixels_per_second=pixels / seconds / 1e6,
            km2_per_second=None if area_m2 is None else pixels * area_m2 / seconds / 1e6,
            process_bytes=peak_process_memory(),
            device_bytes=peak_memory(device),
        )


def run_options(options: BenchOptions, folder: Path) -> SegmentOptions:
    """Those of the run that is timed: its outputs, and its model, lie in ``folder``."""
    outputs = [str(folder / "map.tif"), *([str(folder / "map.gpkg")] if options.vector else [])]
    own = replace(options.segment, outputs=tuple(outputs), overwrite=True, progress=False)
    if options.arch is None:
        return own
    model = random_model(options.arch, folder / options.arch)
    return replace(own, model=replace(own.model, model=str(model)))


def random_model(arch: str, folder: Path) -> Path:
    """A model folder of an open_clip architecture with SimFeatUp, all weights random.

    Raises:
        UsageError: open_clip knows no such architecture.
    """
    import open_clip

    config = plain_config(arch)
    preprocess = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}
    torch.manual_seed(0)
    clip = open_clip.CLIP(**config)
    save_model_folder(
        folder,
        clip.state_dict(),
        {"model_cfg": config, "preprocess_cfg": preprocess},
        ModelCard(arch),
        JBUOne(config["embed_dim"]).state_dict(),
    )
    return folder


def write_synthetic(path: Path, width: int, height: int) -> str:
    """An RGB scene of smooth hills of colour and fine noise, written in strips; its path."""
    rng = np.random.default_rng(0)
    period = 997.0  # pixels, of the largest hills
    columns = np.arange(width) / period
    profile = {
        "driver": "GTiff",
        "width": width,
        "height": height,
        "count": 3,
        "dtype": "uint8",
        "tiled": True,
        "blockxsize": 256,
        "blockysize": 256,
        "crs": "EPSG:32632",
        "transform": Affine(SYNTHETIC_GSD_M, 0, 500_000, 0, -SYNTHETIC_GSD_M, 5_400_000),
    }
    with rasterio.open(path, "w", **profile) as dst:
        for first in range(0, height, 256):
            rows = (np.arange(first, min(height, first + 256)) / period)[:, None]
            bands = [
                np.sin(2 * np.pi * (3 * columns + rate * rows))
                + np.cos(17 * rate * (columns - rows))
                for rate in (1.0, 1.7, 2.9)
            ]
            image = 128 + 40 * np.stack(bands) + rng.normal(0, 12, (3, len(rows), width))
            window = Window(0, first, width, len(rows))
            dst.write(np.clip(image, 0, 255).astype(np.uint8), window=window)
    return str(path)


@torch.inference_mode()
def encoder_passes(model: Model, size: int, side: tuple[int, int]) -> list[float]:
    """Seconds of some passes of the encoder alone, the first one not counted."""
    segmenter = model.segmenter
    patch = segmenter.encoder.patch_size
    height, width = (-(-length // patch) * patch for length in side)
    images = torch.rand(size, 3, height, width).to(segmenter.device)
    images = segmenter.normalised(images)
    seconds = []
    for _ in range(ENCODER_PASSES + 1):
        synchronize(segmenter.device)
        started = time.perf_counter()
        segmenter.encode(images)
        synchronize(segmenter.device)
        seconds.append(time.perf_counter() - started)
    return seconds[1:]


def peak_process_memory() -> int | None:
    """Most bytes of memory that this process has held; ``None`` where the system does not count."""
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024

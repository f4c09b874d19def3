"""Write synthetic georeferenced aerial scenes with exact per-pixel labels.

A scene is a ground-colour raster plus a surface-height raster. One sun gives the roofs
and crowns their lit and dark sides and casts the shadows; the same surface, seen from
the side by a radar, gives layover, double bounce and radar shadow.

    python sample_data/make.py                           # town.tif, town_sar.tif, town_labels.tif
    python sample_data/make.py --seeds 100-147 -o DIR    # seed_100.tif ... for training
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import rasterio
from synthetic import CLASSES, LABEL_COLOURS, Scene, render

TOWN_SEED = 25


def main() -> None:
    """Write the sample town, or the training scenes of a range of seeds."""
    parser = argparse.ArgumentParser(description="Render synthetic aerial scenes with labels.")
    parser.add_argument("--seeds", type=seeds, help="first-last, as 100-147; default: the town")
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent)
    parser.add_argument("--no-sar", action="store_true", help="leave out the radar view")
    arguments = parser.parse_args()
    jobs = [(seed, f"seed_{seed}") for seed in arguments.seeds or ()]
    for seed, name in jobs or [(TOWN_SEED, "town")]:
        start = time.perf_counter()
        paths = write(render(seed), arguments.output, name, sar=not arguments.no_sar)
        size = sum(path.stat().st_size for path in paths) / 1e6
        print(f"{name}: {size:.2f} MB in {time.perf_counter() - start:.1f} s")


def seeds(text: str) -> range:
    """Return the seeds that "first-last" or a single number names."""
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def write(scene: Scene, folder: Path, name: str, sar: bool = True) -> list[Path]:
    """Write name.tif, name_labels.tif and, if asked for, name_sar.tif; return their paths."""
    height, width = scene.labels.shape
    grid = {"width": width, "height": height, "crs": scene.crs, "transform": scene.transform}
    tiles = {"tiled": True, "blockxsize": 256, "blockysize": 256}
    profile = {"driver": "GTiff", **grid, **tiles, "compress": "deflate", "zlevel": 6}
    folder.mkdir(parents=True, exist_ok=True)
    optical, labels, radar_view = (folder / f"{name}{end}.tif" for end in ("", "_labels", "_sar"))
    rgb = {"photometric": "rgb", "interleave": "pixel", "predictor": 2}
    with rasterio.open(optical, "w", count=3, dtype="uint8", **rgb, **profile) as file:
        file.write(scene.optical.transpose(2, 0, 1))  # H W C -> C H W
        file.descriptions = ("red", "green", "blue")
    with rasterio.open(labels, "w", count=1, dtype="uint8", **profile) as file:
        file.write(scene.labels, 1)
        file.write_colormap(1, {k: (*c, 255) for k, c in enumerate(LABEL_COLOURS)})
        file.update_tags(CLASSES=",".join(CLASSES))
        file.descriptions = ("class",)
    if not sar:
        return [optical, labels]
    bands = {"interleave": "band", "predictor": 3}
    with rasterio.open(radar_view, "w", count=2, dtype="float32", **bands, **profile) as file:
        file.write(np.round(scene.sar * 2) / 2)  # half-decibel steps compress
        file.update_tags(sensor="SAR", units="dB", polarisations="VV,VH", look_direction="east")
        file.descriptions = ("VV", "VH")
    return [optical, labels, radar_view]


if __name__ == "__main__":
    main()

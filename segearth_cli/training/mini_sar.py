"""Train the built-in radar model: `mini`, taught to read radar by ``distill-sar``.

    python sample_data/make.py --seeds 400-419 -o SCENES
    python -m segearth_cli.training.mini_sar --data DIR --scenes DIR --model mini -o mini-sar

Radar images reach users in decibels, as power, or stretched for the eye by somebody. So every
pair is learned in several versions, each read by the tool itself behind its speckle filter.
"""

from __future__ import annotations

import argparse
import csv
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from segearth_cli.geo.raster import open_scene
from segearth_cli.model.files import read_checkpoint
from segearth_cli.model.folder import open_model_folder, save_model_folder
from segearth_cli.model.upsampler import read_upsampler_state
from segearth_cli.options import DistillOptions, SceneOptions
from segearth_cli.training.distill import distill_sar

SPECKLE = 7
POLARISATION = "VH"  # of the pairs
RADAR_DB = (-30.0, 0.0)
GSD_M = (0.5, 20.0)
HELD_OUT = 30  # one pair in so many shows how the training goes
FULL_SCALE_DB = 59.0  # of the amplitudes 1 to 255 in the pairs: about what 0 dB would be
BRIGHTER_DB = 4.0  # VV, or the mean of both polarisations, beside VH

DIGITAL = SceneOptions(sensor="sar", sar_unit="amplitude", speckle=SPECKLE)
OF_PAIRS = (
    SceneOptions(sensor="sar", speckle=SPECKLE),  # as it was stretched for the eye
    *(
        replace(DIGITAL, stretch=f"{low},{low - RADAR_DB[0]}")
        for low in (FULL_SCALE_DB + RADAR_DB[0] - shift for shift in (0.0, BRIGHTER_DB))
    ),
    DIGITAL,  # by percentiles
)
OF_SCENES = (
    SceneOptions(sensor="sar", speckle=SPECKLE, radar_db=RADAR_DB),
    SceneOptions(sensor="sar", speckle=SPECKLE, bands=(POLARISATION,), radar_db=RADAR_DB),
)


def pairs_of(data: Path, scenes: Path) -> Iterator[tuple[Path, Path, tuple[SceneOptions, ...]]]:
    """Optical and radar image of a place, and the ways in which the radar image is read."""
    pairs = data / "sar_pairs"
    for optical in sorted((pairs / "optical").glob("*.jpg")):
        yield optical, pairs / "sar" / optical.name, OF_PAIRS
    for radar in sorted(scenes.glob("*_sar.tif")):
        yield radar.with_name(radar.name.removesuffix("_sar.tif") + ".tif"), radar, OF_SCENES


def write_pairs(data: Path, scenes: Path, folder: Path) -> Path:
    """The radar images as they are read, 8 bit, and the table of pairs that names them."""
    table = folder / "pairs.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(("optical", "sar", "split"))
        for place, (optical, radar, ways) in enumerate(pairs_of(data, scenes)):
            split = "train" if (place + 1) % HELD_OUT else "val"  # of all versions of a pair
            for number, options in enumerate(ways):
                with open_scene(str(radar), options) as scene:
                    image, _ = scene.read(0, scene.grid.height)
                picture = folder / f"{radar.stem}_{number}.png"
                Image.fromarray((image[0] * 255).round().astype("uint8")).save(picture)
                rows.writerow((optical.resolve(), picture.resolve(), split))
    return table


def finish(folder: Path, command: str) -> None:
    """Weights in float16, and a card that says how the images were read."""
    found = open_model_folder(folder)
    state = {name: weight.half() for name, weight in read_checkpoint(found.weights).items()}
    card = replace(
        found.card,
        name="mini-sar",
        speckle=SPECKLE,
        radar_db=RADAR_DB,
        polarisation=POLARISATION,
        attention="segearth",
        modulated_blocks=1,
        gsd_m=GSD_M,
        description="mini, distilled for radar images; works offline, far below the paper's model.",
        made_by=command,
    )
    upsampler = read_upsampler_state(found.upsampler) if found.upsampler else None
    save_model_folder(folder, state, found.read_config(), card, upsampler, into=True)


def main() -> None:
    """Write the pairs, distil, finish the card."""
    parser = argparse.ArgumentParser(prog="python -m segearth_cli.training.mini_sar")
    parser.add_argument("--data", type=Path, required=True, help="folder of the collections")
    parser.add_argument("--scenes", type=Path, required=True, help="rendered scenes with radar")
    parser.add_argument("--model", default="mini", help="the teacher")
    parser.add_argument("-o", "--output", type=Path, required=True, help="model folder to write")
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    given = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    logging.getLogger("segearth_cli.training").setLevel(logging.INFO)
    with TemporaryDirectory() as folder:
        table = write_pairs(given.data, given.scenes, Path(folder))
        distill_sar(
            DistillOptions(
                output=given.output,
                model=given.model,
                pairs=str(table),
                sar_scene=SceneOptions(sensor="sar", speckle=0),
                steps=given.steps,
                batch_size=given.batch_size,
                learning_rate=given.learning_rate,
                warmup_steps=20,
                validate_every=max(given.steps // 4, 1),
                crop=112,
            )
        )
    finish(
        given.output,
        "python -m segearth_cli.training.mini_sar --data DATA --scenes SCENES -o OUTPUT "
        f"--model {given.model} --steps {given.steps} --batch-size {given.batch_size} "
        f"--learning-rate {given.learning_rate}",
    )


if __name__ == "__main__":
    main()

"""What ``segearth info`` tells of a map, a scene or a model folder."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from segearth_cli.errors import SegEarthError
from segearth_cli.geo.raster import open_scene
from segearth_cli.geo.recorded import (
    READERS,
    Record,
    is_of_segment,
    is_probabilities,
    read_record,
)
from segearth_cli.geo.shapes import layer_names
from segearth_cli.geo.source import band_facts, open_raster
from segearth_cli.model.card import CARD, ModelCard
from segearth_cli.model.folder import CHECKPOINT, CONFIG, REPORT, open_model_folder
from segearth_cli.model.weights import list_models, model_path
from segearth_cli.options import RASTER_SUFFIXES, STAC_SUFFIX, SceneOptions
from segearth_cli.reading import radar_options
from segearth_cli.record import command_again
from segearth_cli.stac import time_of

EITHER_SUFFIXES = (*RASTER_SUFFIXES, ".png")  # of maps, and of scenes as well


@dataclass(frozen=True)
class MapInfo:
    """How a map was made."""

    output: str
    record: Record
    command: str | None  # None: of evaluate, or of classes that no command line can say


@dataclass(frozen=True)
class SceneInfo:
    """A raster, and how `segment` would read it."""

    source: str
    width: int
    height: int
    crs: str | None
    gsd_m: float | None
    bounds: tuple[float, float, float, float]  # left, bottom, right, top in its own coordinates
    bands: tuple[str, ...]  # data type, and description or colour
    nodata: float | None
    sensor: str
    reading: str  # sensor, bands, scaling


@dataclass(frozen=True)
class ModelInfo:
    """A model folder, and how it is meant to run."""

    folder: str
    card: ModelCard
    channels: int  # of the features that image and text share
    upsampler: str  # bilinear, or its file's name
    size: int  # bytes
    digest: str


def told(name: str) -> MapInfo | SceneInfo | ModelInfo:
    """What there is to know of a map or, if it is no map of segearth's, of a scene; or of a model.

    Raises:
        SegEarthError: it is none of them.
    """
    path = Path(name)
    if any((path / part).is_file() for part in (CARD, CONFIG, CHECKPOINT, REPORT)):
        return model_info(path)
    if path.is_dir():
        raise SegEarthError(f"{name} is a folder, and no model; name one raster or map in it")
    if is_map_name(path):
        record = read_record(path)
        if record or not may_be_scene(path):
            return _map_info(path, record)
    if not path.exists() and any(row.name == name for row in list_models()):
        return model_info(model_path(name))
    return scene_info(name)


def may_be_scene(path: Path) -> bool:
    """Whether a file that is named as a map may be a scene: a GeoPackage may hold rasters."""
    suffix = path.suffix.lower()
    return suffix in EITHER_SUFFIXES or (suffix == ".gpkg" and not layer_names(str(path)))


def is_map_name(path: Path) -> bool:
    """Whether a file has a name as segearth's maps have."""
    is_item = path.name.endswith(STAC_SUFFIX)
    return path.is_file() and (is_item or path.suffix.lower() in READERS)


def scene_info(source: str) -> SceneInfo:
    """What a raster is, and how `segment` would read it with the model it takes by itself.

    Raises:
        SceneError: it is none.
    """
    with open_raster(source) as src:
        facts = band_facts(src)
        nodata = src.nodata
    names = (
        description or ("" if colour in ("gray", "undefined") else colour)
        for description, colour in zip(facts.descriptions, facts.colours, strict=True)
    )
    options = SceneOptions()
    with open_scene(source, options, radar=lambda: radar_options("auto", options)) as scene:
        return SceneInfo(
            source=source,
            width=scene.grid.width,
            height=scene.grid.height,
            crs=scene.grid.crs and scene.grid.crs.to_string(),
            gsd_m=scene.grid.gsd_m,
            bounds=scene.grid.bounds,
            bands=tuple(
                f"{dtype} {name}".strip() for dtype, name in zip(facts.dtypes, names, strict=True)
            ),
            nodata=nodata,
            sensor=scene.sensor,
            reading=scene.description,
        )


def model_info(path: Path) -> ModelInfo:
    """What a model folder says of itself.

    Raises:
        ModelError: a part of it is missing or damaged.
    """
    folder = open_model_folder(path)
    upsampler = folder.upsampler.name if folder.upsampler else "bilinear"
    return ModelInfo(
        str(path), folder.card, folder.embed_dim, upsampler, folder.size, folder.digest()
    )


def map_info(output: Path) -> MapInfo:
    """What a map says of its making.

    Raises:
        SegEarthError: it says nothing, or is no output of segearth.
    """
    return _map_info(output, read_record(output))


def _map_info(output: Path, record: Record | None) -> MapInfo:
    if record is None:
        raise SegEarthError(
            f"{output} does not say how it was made; another program wrote or changed it"
        )
    command = None
    if is_of_segment(record):
        command = command_again(record, str(output), _place(output))
    return MapInfo(str(output), record, command)


def _place(output: Path) -> list[str]:
    """The options that say where to write it."""
    if not output.name.endswith(STAC_SUFFIX):
        return ["--probabilities" if is_probabilities(output) else "-o", str(output)]
    item = json.loads(output.read_text(encoding="utf-8"))
    try:
        words = ["--stac"]
        for name, asset in item["assets"].items():
            path = os.path.normpath(output.parent / unquote(asset["href"]))
            words += ["--probabilities" if name == "probabilities" else "-o", path]
        time = time_of(item["properties"])
    except (KeyError, TypeError, AttributeError) as error:
        raise SegEarthError(f"{output} does not name the files that it describes") from error
    return [*words, *([f"--datetime={time}"] if time else [])]

"""One scene and a list of words in, maps out: the story of ``segearth segment``."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import urlsplit, urlunsplit

from segearth_cli import __version__, report
from segearth_cli.device import pick_device, pick_precision, use_threads
from segearth_cli.errors import OutputError, UsageError
from segearth_cli.geo import vector, writer
from segearth_cli.geo.grid import Grid, parse_crs
from segearth_cli.geo.raster import Scene, open_scene
from segearth_cli.geo.sensors import parse_stretch
from segearth_cli.geo.writer import Legend, RowWriter
from segearth_cli.model.prompts import build_vocabulary
from segearth_cli.model.segmenter import ModelSettings, model_settings
from segearth_cli.model.weights import resolve_model
from segearth_cli.options import RASTER_SUFFIXES, VECTOR_SUFFIXES, SegmentOptions
from segearth_cli.stages import stage
from segearth_cli.staging import Staging, files_of, publish
from segearth_cli.stream import (
    PERCENT_NODATA,
    Model,
    class_legend,
    classify_rows,
    load_model,
    scene_panels,
    window_grid,
)

STDOUT = "-"
PREVIEW_SIDE = 1000  # pixels
SAID_ELSEWHERE = (  # options that other tags say better, or that are of no matter to the map
    "classes", "background", "colours", "outputs", "overwrite", "progress", "model",
)  # fmt: skip
GSD_TOLERANCE = 1.5  # times the resolution that a model was made for

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SegmentResult:
    """What one scene became."""

    source: str
    outputs: tuple[str, ...]
    pixels: dict[str, int]  # per class name
    area_m2: dict[str, float | None]  # by the central pixel's size; None without a CRS
    nodata_pixels: int
    seconds: float
    options: SegmentOptions


@dataclass(frozen=True)
class Plan:
    """What one scene would take."""

    source: str
    width: int
    height: int
    gsd_m: float | None
    crs: str | None
    reading: str  # sensor, bands, scaling
    model: str
    settings: str
    window: int
    stride: int
    windows: int
    panels: int
    memory_bytes: int
    classes: dict[int, str]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class ClassMap:
    """A classified scene: its working rasters, and what its outputs are made of."""

    classes: Path
    confidence: Path
    probabilities: Path
    legend: Legend
    grid: Grid
    tags: dict[str, str]
    options: SegmentOptions

    @cached_property
    def polygons(self) -> Any:
        """The classes but the background as a GeoDataFrame."""
        return vector.polygons(
            self.classes,
            self.confidence,
            self.legend,
            self.grid,
            source=self.tags["SEGEARTH_SOURCE"],
            simplify_m=self.options.simplify,
        )

    @cached_property
    def counts(self) -> dict[int, int]:
        """Pixels of each raster value."""
        counts = writer.count_values(self.classes, self.legend.nodata + 1)
        return dict(enumerate(counts.tolist()))


def segment(
    source: str,
    options: SegmentOptions,
    load: Callable[[str], Model] | None = None,
    stdout: TextIO | None = None,
) -> SegmentResult:
    """Segment one scene into the outputs that the options name.

    Args:
        source: a path, GDAL virtual path or URL.
        options: what to look for and what to write.
        load: the model for the scene's sensor, which many scenes can share.
        stdout: where the output ``-`` goes.

    Raises:
        SegEarthError: what was expected to go wrong; nothing half-written is left behind.
    """
    started = time.perf_counter()
    check_options(options)
    check_outputs([source], options)
    use_threads(options.threads)
    asked, options = options, with_speckle(options)
    with contextlib.ExitStack() as stack:
        with stage("open"):
            scene = stack.enter_context(open_scene(source, options))
        logger.info("%s: %s", source, scene.description)
        staging = Staging(stack)
        work = staging.beside(*output_paths(options)[:1])
        model = load(scene.sensor) if load else load_model(options, scene.sensor)
        warn_of_scene(scene, model.settings, asked)
        class_map = write_class_map(scene, model, work, options)
        with stage("outputs"):
            finished = write_outputs(scene, class_map, staging)
        if STDOUT in options.outputs:
            write_features(class_map, stdout or sys.stdout)
        publish(finished)
        counts, area = class_map.counts, scene.grid.pixel_area_m2
    names = dict(zip(model.legend.names, model.legend.values, strict=True))
    return SegmentResult(
        source=source,
        outputs=options.written,
        pixels={name: counts[value] for name, value in names.items()},
        area_m2={name: area and counts[value] * area for name, value in names.items()},
        nodata_pixels=counts[model.legend.nodata],
        seconds=time.perf_counter() - started,
        options=options,
    )


def with_speckle(options: SegmentOptions) -> SegmentOptions:
    """The options with the speckle filter that a model named was trained behind."""
    if options.model.model == "auto":  # depends on the scene, and none of these had one
        return options
    return resolve_model(options.model.model).card.with_speckle(options)


def warn_of_scene(scene: Scene, model: ModelSettings, options: SegmentOptions) -> None:
    """Say so when a scene is not what the model, or an option, is for."""
    warn_of_sensor(scene, model)
    warn_of_resolution(scene, model)
    if options.speckle and scene.sensor != "sar":
        logger.warning("%s is no radar scene: read without a speckle filter", scene.source)


def warn_of_sensor(scene: Scene, model: ModelSettings) -> None:
    """Say so when a model that was made for radar sees an optical scene."""
    if (scene.sensor, model.folder.card.sensor) == ("optical", "sar"):
        logger.warning(
            "%s is read as an optical scene, and %s was made for radar: expect a poor map; if it "
            "is radar, say --sensor sar",
            scene.source,
            model.name,
        )


def warn_of_resolution(scene: Scene, model: ModelSettings) -> None:
    """Say so when pixels are far larger or smaller than those the model was made for."""
    gsd_m = scene.grid.gsd_m
    made_for = model.folder.card.gsd_m
    if gsd_m is None or made_for is None:
        return
    finest, coarsest = made_for
    if not finest / GSD_TOLERANCE <= gsd_m <= coarsest * GSD_TOLERANCE:
        logger.warning(
            "%s has pixels of %.3g m; %s was made for %g to %g m: expect a poor map",
            scene.source,
            gsd_m,
            model.name,
            finest,
            coarsest,
        )


def plan(source: str, options: SegmentOptions) -> Plan:
    """What segmenting a scene would take; reads its header and a sample, and no weights.

    Raises:
        SegEarthError: what would go wrong before the first window.
    """
    check_options(options)
    check_outputs([source], options)
    vocabulary = build_vocabulary(options)
    device = pick_device(options.model.device)
    precision = pick_precision(options.model.precision_wanted, device)
    with open_scene(source, with_speckle(options)) as scene:
        folder = resolve_model(options.model.model, scene.sensor)
        settings = model_settings(folder, options.model, precision)
        warn_of_scene(scene, settings, options)
        windows = window_grid(scene, settings)
        queries = len(vocabulary.queries)
        panels, memory = scene_panels(windows, settings, queries, device, options)
        legend = class_legend(vocabulary)
        return Plan(
            source=source,
            width=scene.grid.width,
            height=scene.grid.height,
            gsd_m=scene.grid.gsd_m,
            crs=scene.grid.crs and scene.grid.crs.to_string(),
            reading=scene.description,
            model=f"{settings.name} ({folder.path})",
            settings=f"attention {settings.attention}, upsampler {settings.upsampler}, "
            f"{precision} on {device}" + (", exact" if settings.exact else ""),
            window=settings.window,
            stride=settings.stride,
            windows=len(windows),
            panels=len(panels),
            memory_bytes=memory,
            classes=dict(zip(legend.values, legend.names, strict=True)),
            outputs=options.written,
        )


def check_options(options: SegmentOptions) -> None:
    """Refuse options that no scene can be segmented with, before any work is done.

    Raises:
        UsageError: there is no such stretch, coordinate system, creation option, device or model,
            or no output is named.
        ModelError: the model is not on this machine, or a part of it is missing or damaged.
    """
    if not options.written:
        raise UsageError("say what to write, for instance -o map.gpkg or -o - for stdout")
    build_vocabulary(options)
    parse_stretch(options.stretch)
    for name, crs in (("--dst-crs", options.dst_crs), ("--bbox-crs", options.bbox_crs)):
        if crs is not None:
            parse_crs(crs, name)
    writer.check_creation_options(options.creation_options)
    pick_precision(options.model.precision_wanted, pick_device(options.model.device))
    if options.model.model != "auto":
        resolve_model(options.model.model)


def check_outputs(sources: Sequence[str], options: SegmentOptions) -> None:
    """Refuse outputs that cannot be, before any work is done; ``sources`` are what is read.

    Raises:
        UsageError: a package that a format needs is missing.
        OutputError: an output exists and ``overwrite`` is off, or is one of the sources.
    """
    for path in output_paths(options):
        vector.require_vector_support(path)
        if os.path.isdir(path):
            raise OutputError(f"{path} is a folder; name a file in it")
        for file in files_of(path):
            if any(os.path.exists(source) and file.samefile(source) for source in sources):
                raise OutputError(f"{file} is a scene to be read; write to another file")
            if not options.overwrite:
                raise OutputError(f"{file} exists; use --overwrite to replace it")


def output_paths(options: SegmentOptions) -> list[Path]:
    """Every file that the options ask for."""
    return [Path(name) for name in options.written if name != STDOUT]


def write_class_map(scene: Scene, model: Model, folder: Path, options: SegmentOptions) -> ClassMap:
    """Classify the scene into working rasters; memory depends on its width alone."""
    legend = model.legend
    class_map = ClassMap(
        folder / "classes.tif",
        folder / "confidence.tif",
        folder / "probabilities.tif",
        legend,
        scene.grid,
        describe(scene, model, options),
        options,
    )
    with contextlib.ExitStack() as stack:

        def rows_into(path: Path, dtype: str, nodata: int, bands: int = 1) -> RowWriter:
            return stack.enter_context(RowWriter(path, scene.grid, dtype, bands, nodata))

        classes = rows_into(class_map.classes, legend.dtype, legend.nodata)
        confidence = rows_into(class_map.confidence, "uint8", PERCENT_NODATA)
        bands = len(model.vocabulary.classes)
        every = (
            rows_into(class_map.probabilities, "uint8", PERCENT_NODATA, bands)
            if options.probabilities
            else None
        )
        grid = window_grid(scene, model.settings)
        queries, device = len(model.vocabulary.queries), model.segmenter.device
        panels, _ = scene_panels(grid, model.settings, queries, device, options)
        for panel in panels:
            for raster in filter(None, (classes, confidence, every)):
                raster.start_panel(*panel.columns_wanted)
            with contextlib.closing(classify_rows(scene, model, options, panel)) as finished:
                for rows in finished:
                    with stage("write"):
                        classes.write(rows.classes)
                        confidence.write(rows.confidence)
                        if every is not None and rows.probabilities is not None:
                            every.write(rows.probabilities)
    if options.min_area:
        if scene.grid.pixel_area_m2 is None:
            logger.warning("no coordinate system: --min-area %g means pixels", options.min_area)
        pixels = options.min_area / (scene.grid.pixel_area_m2 or 1.0)
        writer.sieve(class_map.classes, math.ceil(pixels - 1e-9))  # 1e-9: not for rounding's sake
    return class_map


def write_outputs(scene: Scene, class_map: ClassMap, staging: Staging) -> dict[Path, Path]:
    """Write every output beside its destination; returns finished file -> final place."""
    options = class_map.options
    finished: dict[Path, Path] = {}
    for path in output_paths(options):
        place = staging.beside(path) / path.name
        kind = "probabilities" if path == Path(options.probabilities or "") else path.suffix.lower()
        for file in WRITERS[kind](scene, class_map, place):
            finished[file] = path.with_name(file.name)
    return finished


def write_features(class_map: ClassMap, stream: TextIO) -> None:
    """Write the polygons as lines of GeoJSON to stdout.

    Raises:
        OutputError: it takes no more.
        BrokenPipeError: its reader has gone.
    """
    try:
        vector.write_features(class_map.polygons, stream)
        stream.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write to stdout: {error.strerror}") from error


def _write_raster(scene: Scene, class_map: ClassMap, place: Path) -> list[Path]:
    return writer.write_class_raster(
        class_map.classes,
        place,
        class_map.legend,
        class_map.tags,
        class_map.options.creation_options,
    )


def _write_probabilities(scene: Scene, class_map: ClassMap, place: Path) -> list[Path]:
    legend = class_map.legend
    names = legend.names if class_map.options.background is not None else legend.names[1:]
    return writer.write_probabilities(
        class_map.probabilities, place, names, class_map.tags, class_map.options.creation_options
    )


def _write_polygons(scene: Scene, class_map: ClassMap, place: Path) -> list[Path]:
    return vector.write_vector(class_map.polygons, place, class_map.legend)


def _write_preview(scene: Scene, class_map: ClassMap, place: Path) -> list[Path]:
    image, valid = scene.overview(PREVIEW_SIDE)
    classes = writer.read_decimated(class_map.classes, valid.shape)
    report.write_preview(
        image,
        valid,
        classes,
        class_map.legend,
        place,
        title=Path(scene.source).name,
        pixels=class_map.counts,
    )
    return [place]


WRITERS: dict[str, Callable[[Scene, ClassMap, Path], list[Path]]] = {
    **dict.fromkeys(RASTER_SUFFIXES, _write_raster),
    **dict.fromkeys(VECTOR_SUFFIXES, _write_polygons),
    ".png": _write_preview,
    "probabilities": _write_probabilities,
}


def describe(scene: Scene, model: Model, options: SegmentOptions) -> dict[str, str]:
    """How the map was made, for the tags of its files."""
    asked = asdict(options)
    for name in SAID_ELSEWHERE:
        del asked[name]
    settings = asdict(model.settings)
    del settings["folder"]
    return {
        "SEGEARTH_VERSION": __version__,
        "SEGEARTH_SOURCE": label(scene.source),
        "SEGEARTH_SCENE": scene.description,
        "SEGEARTH_CLASSES": json.dumps(model.vocabulary.classes, ensure_ascii=False),
        "SEGEARTH_MODEL": json.dumps(settings),
        "SEGEARTH_MODEL_DIGEST": model.settings.folder.digest(),
        "SEGEARTH_OPTIONS": json.dumps(asked),
    }


def label(source: str) -> str:
    """The source's name for others to read: of a URL without user, password and query."""
    if "://" not in source:
        return source
    parts = urlsplit(source)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))

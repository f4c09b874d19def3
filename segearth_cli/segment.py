"""One scene and a list of words in, maps out: the story of ``segearth segment``."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

from segearth_cli.device import pick_device, pick_precision, precision_here, use_threads
from segearth_cli.fitness import warn_of_scene, warn_of_words
from segearth_cli.geo import writer
from segearth_cli.geo.raster import Scene
from segearth_cli.geo.recorded import Record
from segearth_cli.geo.writer import RowWriter
from segearth_cli.model.prompts import build_vocabulary
from segearth_cli.model.segmenter import model_settings
from segearth_cli.model.weights import resolve_model
from segearth_cli.names import public_name
from segearth_cli.options import SegmentOptions
from segearth_cli.outputs import (
    STDOUT,
    ClassMap,
    check_outputs,
    files_read,
    output_paths,
    write_features,
    write_outputs,
)
from segearth_cli.reading import OpenScene, check_options, open_for_model, open_source
from segearth_cli.record import PROMPTS, settings_record
from segearth_cli.results import Plan, SegmentResult
from segearth_cli.stages import stage
from segearth_cli.staging import Staging, publish
from segearth_cli.stream import (
    PERCENT_NODATA,
    Classifier,
    class_legend,
    load_model,
    scene_panels,
    window_grid,
)

logger = logging.getLogger(__name__)


def segment(
    source: str | os.PathLike[str],
    options: SegmentOptions,
    load: Callable[[str], Classifier] | None = None,
    stdout: TextIO | None = None,
    opened: OpenScene | None = None,
) -> SegmentResult:
    """Segment one scene into the outputs that the options name.

    Args:
        source: the scene's name (see `names`).
        options: what to look for and what to write.
        load: the model for the scene's sensor, which many scenes can share. Who gives it has
            checked the options.
        stdout: where the output ``-`` goes.
        opened: the scene, where somebody has opened it already; it is closed here.

    Raises:
        SegEarthError: what was expected to go wrong; nothing half-written is left behind.
    """
    started = time.perf_counter()
    source = os.fspath(source)
    with contextlib.ExitStack() as stack:
        if opened:
            stack.enter_context(opened.scene)
        if load is None:
            check_options(options)
            precision_here(options.model)
        read = files_read([source], options)
        check_outputs(read, options)
        use_threads(options.threads)
        with stage("open"):
            found = opened or open_source(source, options)
            scene = stack.enter_context(found.scene)
        logger.info("%s: %s", source, scene.description)
        staging = Staging(stack)
        outputs = output_paths(options)
        work = staging.beside(*outputs[:1])
        places = {path: staging.beside(path) / path.name for path in outputs}
        model = load(scene.sensor) if load else load_model(options, scene.sensor)
        model.check(options)
        warn_of_scene(scene, model.settings, options)
        record = describe(scene, model, options, found.digest)
        class_map = write_class_map(scene, model, work, options, record)
        with stage("outputs"):
            finished = write_outputs(scene, class_map, places)
        if STDOUT in options.outputs:
            write_features(class_map, stdout or sys.stdout)
        check_outputs(read, options)  # once more: others may have written there meanwhile
        publish(finished)
        counts, areas = class_map.counts, class_map.areas_m2
    names = dict(zip(model.legend.names, model.legend.values, strict=True))
    return SegmentResult(
        source=source,
        outputs=options.written,
        pixels={name: counts[value] for name, value in names.items()},
        area_m2={name: areas[value] for name, value in names.items()},
        nodata_pixels=counts[model.legend.nodata],
        seconds=time.perf_counter() - started,
        options=options,
    )


def plan(
    source: str, options: SegmentOptions, here: bool = True, opened: Scene | None = None
) -> Plan:
    """What segmenting a scene would take; reads its header and a sample, and no weights.

    Args:
        source, options: see `segment`.
        here: whether the network is to run on this machine; else panels and memory are those of
            a CPU.
        opened: the scene, where somebody has opened it already; it is closed here.

    Raises:
        SegEarthError: what would go wrong before the first window.
    """
    check_options(options)
    check_outputs(files_read([source], options), options)
    vocabulary = build_vocabulary(options)
    if here:
        device = pick_device(options.model.device)
        precision = pick_precision(options.model.precision_wanted, device)
        where = f"{precision} on {device}"
    else:
        device, precision, where = pick_device("cpu"), "fp32", "on a Ray cluster"
    with opened or open_for_model(source, options) as scene:
        folder = resolve_model(options.model.model, scene.sensor)
        settings = model_settings(folder, options.model, precision)
        warn_of_words(settings, vocabulary.queries)
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
            + where
            + (", exact" if settings.exact else ""),
            window=settings.window,
            stride=settings.stride,
            windows=len(windows),
            panels=len(panels),
            memory_bytes=memory,
            classes=dict(zip(legend.values, legend.names, strict=True)),
            outputs=options.written,
        )


def write_class_map(
    scene: Scene, model: Classifier, folder: Path, options: SegmentOptions, record: Record
) -> ClassMap:
    """Classify the scene into working rasters; memory depends on its width alone."""
    legend = model.legend
    class_map = ClassMap(
        folder / "classes.tif",
        folder / "confidence.tif",
        folder / "probabilities.tif",
        legend,
        scene.grid,
        record,
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
        panels = stack.enter_context(contextlib.closing(model.panels(scene, options, folder)))
        for panel, rows_of_panel in panels:
            for raster in filter(None, (classes, confidence, every)):
                raster.start_panel(*panel.columns_wanted)
            with contextlib.closing(rows_of_panel) as finished:
                for rows in finished:
                    with stage("write"):
                        classes.write(rows.classes)
                        confidence.write(rows.confidence)
                        if every is not None and rows.probabilities is not None:
                            every.write(rows.probabilities)
    if options.min_area:
        pixels = options.min_area / (scene.grid.pixel_area_m2 or 1.0)
        writer.sieve(class_map.classes, math.ceil(pixels - 1e-9))  # 1e-9: not for rounding's sake
    return class_map


def describe(
    scene: Scene, model: Classifier, options: SegmentOptions, digest: Mapping[str, Any]
) -> Record:
    """How the map is made, as its files will carry it."""
    return {
        **settings_record(options, model.settings.folder, model.settings.precision, digest),
        "source": public_name(scene.source),
        "sensor": scene.sensor,
        "scene": scene.description,
        "classes": model.vocabulary.classes,
        "prompts": PROMPTS,
        "model": model.settings.as_record(),
    }

"""One scene and a list of words in, maps out: the story of ``segearth segment``."""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from segearth_cli import __version__, report
from segearth_cli.errors import OutputError
from segearth_cli.geo import raster, vector
from segearth_cli.geo.raster import Legend, RowWriter, Scene, open_scene
from segearth_cli.options import RASTER_SUFFIXES, SegmentOptions
from segearth_cli.stream import PERCENT_NODATA, Model, classify_rows, load_model

STDOUT = "-"
PREVIEW_SIDE = 1000  # pixels


@dataclass(frozen=True)
class SegmentResult:
    """What one scene became."""

    source: str
    outputs: tuple[str, ...]
    pixels: dict[str, int]  # per class name
    area_m2: dict[str, float | None]  # None where the scene has no place on the ground
    nodata_pixels: int
    seconds: float
    options: SegmentOptions


@dataclass(frozen=True)
class ClassMap:
    """The working rasters of a scene, and what was counted while writing them."""

    classes: Path
    confidence: Path
    probabilities: Path | None
    legend: Legend


@dataclass
class Staging:
    """Folders beside the outputs where everything is written before it is renamed into place."""

    stack: contextlib.ExitStack
    folders: dict[Path, Path] = field(default_factory=dict)

    def beside(self, destination: Path) -> Path:
        """A temporary folder on the destination's own file system; missing folders are made."""
        parent = destination.parent
        if parent not in self.folders:
            try:
                parent.mkdir(parents=True, exist_ok=True)
                folder = tempfile.TemporaryDirectory(prefix=".segearth-", dir=parent)
            except OSError as error:
                raise OutputError(
                    f"cannot write into {parent}: {error.strerror}; choose another folder"
                ) from error
            self.folders[parent] = Path(self.stack.enter_context(folder))
        return self.folders[parent]


def segment(
    source: str,
    options: SegmentOptions,
    load: Callable[[SegmentOptions, str], Model] = load_model,
    stdout: TextIO | None = None,
) -> SegmentResult:
    """Segment one scene into the outputs that the options name.

    Args:
        source: a path, GDAL virtual path or URL.
        options: what to look for and what to write.
        load: the model for the options and the scene's sensor; many scenes can share one.
        stdout: where the output ``-`` goes.

    Raises:
        SegEarthError: what was expected to go wrong; nothing half-written is left behind.
    """
    started = time.perf_counter()
    check_outputs(source, options)
    with contextlib.ExitStack() as stack:
        scene = stack.enter_context(open_scene(source, options))
        model = load(options, scene.sensor)
        staging = Staging(stack)
        class_map = write_class_map(scene, model, staging, options)
        counts = count_pixels(class_map)
        written = write_outputs(scene, class_map, model, staging, options, stdout or sys.stdout)
        publish(written)
    return SegmentResult(
        source=source,
        outputs=tuple([*options.outputs, *filter(None, [options.probabilities])]),
        **_class_sizes(counts, class_map.legend, scene),
        seconds=time.perf_counter() - started,
        options=options,
    )


def check_outputs(source: str, options: SegmentOptions) -> None:
    """Refuse outputs that exist, before any work is done.

    Raises:
        OutputError: an output exists and ``overwrite`` is off, or is the scene itself.
    """
    for path in output_paths(options):
        if path.exists() and Path(source).exists() and path.samefile(source):
            raise OutputError(f"{path} is the scene itself; write to another file")
        if path.exists() and not options.overwrite:
            raise OutputError(f"{path} exists; use --overwrite to replace it")
        if path.is_dir():
            raise OutputError(f"{path} is a folder; name a file")


def output_paths(options: SegmentOptions) -> list[Path]:
    """Every file that the options ask for."""
    names = [*options.outputs, *filter(None, [options.probabilities])]
    return [Path(name) for name in names if name != STDOUT]


def write_class_map(
    scene: Scene, model: Model, staging: Staging, options: SegmentOptions
) -> ClassMap:
    """Classify the scene into working rasters; memory depends on its width alone."""
    paths = output_paths(options)
    folder = (
        staging.beside(paths[0])
        if paths
        else Path(staging.stack.enter_context(tempfile.TemporaryDirectory(prefix="segearth-")))
    )
    legend = model.legend
    probabilities = folder / "probabilities.tif" if options.probabilities else None
    class_map = ClassMap(folder / "classes.tif", folder / "confidence.tif", probabilities, legend)
    with contextlib.ExitStack() as writers:
        classes = writers.enter_context(
            RowWriter(class_map.classes, scene.grid, dtype=legend.dtype, nodata=legend.nodata)
        )
        confidence = writers.enter_context(
            RowWriter(class_map.confidence, scene.grid, dtype="uint8", nodata=PERCENT_NODATA)
        )
        every = probabilities and writers.enter_context(
            RowWriter(
                probabilities,
                scene.grid,
                bands=len(model.vocabulary.classes),
                dtype="uint8",
                nodata=PERCENT_NODATA,
            )
        )
        for rows in classify_rows(scene, model, options):
            classes.write(rows.classes)
            confidence.write(rows.confidence)
            if every:
                every.write(rows.probabilities)
    if options.min_area and scene.grid.pixel_area_m2:
        raster.sieve(class_map.classes, round(options.min_area / scene.grid.pixel_area_m2))
    return class_map


def write_outputs(
    scene: Scene,
    class_map: ClassMap,
    model: Model,
    staging: Staging,
    options: SegmentOptions,
    stdout: TextIO,
) -> dict[Path, Path]:
    """Write every output beside its destination; returns staged file -> final file."""
    tags = describe(scene, model, options)
    staged: dict[Path, Path] = {}
    frame = None

    def polygons() -> Any:
        nonlocal frame
        if frame is None:
            frame = vector.polygons(
                class_map.classes,
                class_map.confidence,
                class_map.legend,
                scene.grid,
                source=scene.source,
                simplify_m=options.simplify,
            )
        return frame

    for path in output_paths(options):
        folder = staging.beside(path)
        place = folder / path.name
        if path == Path(options.probabilities or ""):
            names = list(model.vocabulary.names)
            written = raster.write_probabilities(
                class_map.probabilities, place, names, tags, options.creation_options
            )
        elif path.suffix.lower() in RASTER_SUFFIXES:
            written = raster.write_class_raster(
                class_map.classes, place, class_map.legend, tags, options.creation_options
            )
        elif path.suffix.lower() == ".png":
            written = [write_preview(scene, class_map, place)]
        else:
            written = vector.write_vector(polygons(), place, class_map.legend)
        staged.update({file: path.parent / file.name for file in written})
    if STDOUT in options.outputs:
        vector.write_sequence(polygons(), stdout)
    return staged


def write_preview(scene: Scene, class_map: ClassMap, place: Path) -> Path:
    """The image, the map over it and the legend, as a picture."""
    image, valid = scene.overview(PREVIEW_SIDE)
    classes = raster.read_decimated(class_map.classes, valid.shape)
    report.write_preview(image, valid, classes, class_map.legend, place, title=scene.source)
    return place


def publish(staged: dict[Path, Path]) -> None:
    """Rename finished files into place."""
    for file, destination in staged.items():
        sidecar = destination.with_name(destination.name + ".aux.xml")
        if destination.suffix.lower() in RASTER_SUFFIXES and sidecar not in staged.values():
            sidecar.unlink(missing_ok=True)  # statistics of the file that is being replaced
        try:
            file.replace(destination)
        except OSError as error:
            raise OutputError(f"cannot write {destination}: {error.strerror}") from error


def describe(scene: Scene, model: Model, options: SegmentOptions) -> dict[str, str]:
    """How the map was made, for the tags of its files."""
    settings = model.settings
    return {
        "SEGEARTH_VERSION": __version__,
        "SEGEARTH_SOURCE": scene.source,
        "SEGEARTH_MODEL": settings.name,
        "SEGEARTH_MODEL_DIGEST": settings.digest,
        "SEGEARTH_CLASSES": json.dumps(model.vocabulary.classes, ensure_ascii=False),
        "SEGEARTH_ATTENTION": settings.attention,
        "SEGEARTH_MODULATED_BLOCKS": str(settings.modulated_blocks),
        "SEGEARTH_UPSAMPLER": settings.upsampler,
        "SEGEARTH_GLOBAL_BIAS": str(settings.global_bias),
        "SEGEARTH_LOGIT_SCALE": str(settings.logit_scale),
        "SEGEARTH_WINDOW": str(settings.window),
        "SEGEARTH_STRIDE": str(settings.stride),
        "SEGEARTH_PRECISION": settings.precision,
        "SEGEARTH_THRESHOLD": str(options.threshold),
        "SEGEARTH_MIN_AREA_M2": str(options.min_area),
        "SEGEARTH_SENSOR": scene.sensor,
        "SEGEARTH_BANDS": ",".join(map(str, scene.bands)),
        "SEGEARTH_STRETCH": scene.scaling,
    }


def count_pixels(class_map: ClassMap) -> NDArray[np.int64]:
    """Pixels of each raster value."""
    return raster.histogram(class_map.classes, class_map.legend.nodata + 1)


def _class_sizes(counts: NDArray[np.int64], legend: Legend, scene: Scene) -> dict[str, Any]:
    area = scene.grid.pixel_area_m2
    pixels = {
        name: int(counts[value]) for value, name in zip(legend.values, legend.names, strict=True)
    }
    return {
        "pixels": pixels,
        "area_m2": {name: None if area is None else n * area for name, n in pixels.items()},
        "nodata_pixels": int(counts[legend.nodata]),
    }

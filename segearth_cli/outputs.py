"""A classified scene in every format: what each output is made of, and how it is written."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from segearth_cli import report, stac
from segearth_cli.errors import OutputError, SceneError
from segearth_cli.geo import cog, vector, writer
from segearth_cli.geo.companions import companions, files_of, record_beside
from segearth_cli.geo.digest import source_files
from segearth_cli.geo.grid import Grid
from segearth_cli.geo.legend import Legend
from segearth_cli.geo.raster import Scene
from segearth_cli.geo.recorded import Record, is_of_segment, read_record, require_package, to_tags
from segearth_cli.names import file_and_layer, files_named, shortened, title_of
from segearth_cli.options import RASTER_SUFFIXES, VECTOR_SUFFIXES, SegmentOptions
from segearth_cli.stdout import writing_to

STDOUT = "-"
PREVIEW_SIDE = 1000  # pixels


@dataclass(frozen=True)
class ClassMap:
    """A classified scene: its working rasters, and what its outputs are made of."""

    classes: Path
    confidence: Path
    probabilities: Path
    legend: Legend
    grid: Grid
    record: Record
    options: SegmentOptions

    @cached_property
    def polygons(self) -> vector.Polygons:
        """The classes but the background."""
        return vector.Polygons(
            self.classes,
            self.confidence,
            self.legend,
            self.grid,
            source=self.record["source"],
            simplify_m=self.options.simplify,
        )

    @cached_property
    def counts(self) -> dict[int, int]:
        """Pixels of each raster value."""
        return dict(enumerate(self._counted[0].tolist()))

    @cached_property
    def areas_m2(self) -> dict[int, float | None]:
        """Their area; None without a CRS."""
        counts, areas = self._counted
        return dict(enumerate([None] * len(counts) if areas is None else areas.tolist()))

    @cached_property
    def _counted(self) -> tuple[NDArray[np.int64], NDArray[np.float64] | None]:
        return writer.count_values(self.classes, self.legend.nodata + 1, self.grid)


FileId = tuple[int, int]  # device and number on it

_LONE = (".tif", ".tiff")  # suffixes of scenes that are made of no other files


def files_read(sources: Iterable[str], options: SegmentOptions) -> frozenset[FileId]:
    """The files among what is read, however they are called.

    Those that a mosaic is made of are looked up where anything may be replaced.
    """
    found: set[FileId] = set()
    files = [file_and_layer(options.aoi)[0]] if options.aoi else []
    for source in sources:
        files += files_named(source)
        may_replace = options.overwrite or options.replace_maps
        if may_replace and not source.lower().endswith(_LONE):
            with contextlib.suppress(SceneError):  # which will be said when it is opened
                files += source_files(source)
    for file in files:
        with contextlib.suppress(OSError, ValueError):
            stat = os.stat(file)
            found.add((stat.st_dev, stat.st_ino))
    return frozenset(found)


def check_outputs(read: Collection[FileId], options: SegmentOptions) -> None:
    """Refuse outputs that cannot be, before any work is done.

    Args:
        read: see `files_read`.
        options: which outputs, and what of files that are there may be replaced.

    Raises:
        UsageError: a package that a format needs is missing.
        OutputError: an output exists and may not be replaced, or is to be read.
    """
    for path in output_paths(options):
        require_package(path)
        if os.path.isdir(path):
            raise OutputError(f"{path} is a folder; name a file in it")
        check_length(path)
        if os.path.exists(path) and not os.path.isfile(path):
            raise OutputError(f"{path} is a pipe or a device; name a file")
        files = files_of(path)
        for file in files:
            with contextlib.suppress(OSError):  # of a link to nowhere
                stat = file.stat()
                if (stat.st_dev, stat.st_ino) in read:
                    raise OutputError(f"{file} is to be read; write to another file")
        may_replace = options.overwrite or (options.replace_maps and is_ours(path))
        if files and not may_replace:
            raise OutputError(f"{files[0]} exists; use --overwrite to replace it")


def check_length(path: Path) -> None:
    """Refuse a name that is too long, with what may be added to it, for the file system.

    Raises:
        OutputError: it is.
    """
    for file in (path, *companions(path)):
        try:
            os.lstat(file)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise OutputError(
                    f"cannot write {shortened(str(path))}: {error.strerror}, with what may be "
                    f"added to it ({file.suffix}); give a shorter one"
                ) from error


def is_ours(path: Path) -> bool:
    """Whether what lies at an output's place was made by segearth, or left when it was killed."""
    if path.is_file():
        record = read_record(path)
        return record is not None and is_of_segment(record)
    if os.path.lexists(path):  # a link to nowhere
        return False
    left = [file for file in companions(path) if file.exists()]
    if path.suffix.lower() == ".shp":
        return not left or record_beside(path).is_file()
    # a record, names of classes, statistics
    return all(file == record_beside(path) or file.suffix == ".xml" for file in left)


def output_paths(options: SegmentOptions) -> list[Path]:
    """Every file that the options ask for."""
    return [Path(name) for name in options.written if name != STDOUT]


def kind_of(path: Path, options: SegmentOptions) -> str:
    """What an output is: its suffix in lower case, or ``probabilities``."""
    return "probabilities" if path == Path(options.probabilities or "") else path.suffix.lower()


def write_outputs(
    scene: Scene, class_map: ClassMap, places: Mapping[Path, Path]
) -> dict[Path, Path]:
    """Write every output where ``places`` says; returns finished file -> final place."""
    options = class_map.options
    finished: dict[Path, Path] = {}
    for path, place in places.items():
        for file in WRITERS[kind_of(path, options)](scene, class_map, place):
            finished[file] = path.with_name(file.name)
    return finished


def write_features(class_map: ClassMap, stream: TextIO) -> None:
    """Write the polygons as lines of GeoJSON to stdout.

    Raises:
        OutputError: it takes no more.
        BrokenPipeError: its reader has gone.
    """
    with writing_to(stream):
        vector.write_features(class_map.polygons, stream)


def _write_raster(scene: Scene, class_map: ClassMap, place: Path) -> list[Path]:
    return cog.write_class_raster(
        class_map.classes,
        place,
        class_map.legend,
        to_tags(class_map.record),
        class_map.options.creation_options,
    )


def _write_probabilities(scene: Scene, class_map: ClassMap, place: Path) -> list[Path]:
    legend = class_map.legend
    names = legend.names if class_map.options.background is not None else legend.names[1:]
    return cog.write_probabilities(
        class_map.probabilities,
        place,
        names,
        to_tags(class_map.record),
        class_map.options.creation_options,
    )


def _write_polygons(scene: Scene, class_map: ClassMap, place: Path) -> list[Path]:
    return vector.write_vector(class_map.polygons, place, class_map.legend, class_map.record)


def _write_preview(scene: Scene, class_map: ClassMap, place: Path) -> list[Path]:
    image, valid = scene.overview(PREVIEW_SIDE)
    classes = writer.read_decimated(class_map.classes, valid.shape)
    report.write_preview(
        image,
        valid,
        classes,
        class_map.legend,
        place,
        pixels=class_map.counts,
        title=title_of(scene.source),
        record=class_map.record,
    )
    return [place]


def _write_stac(scene: Scene, class_map: ClassMap, place: Path) -> list[Path]:
    stac.write_item(
        place,
        class_map.grid,
        class_map.legend,
        class_map.counts,
        class_map.record,
        class_map.options,
    )
    return [place]


WRITERS: dict[str, Callable[[Scene, ClassMap, Path], list[Path]]] = {
    **dict.fromkeys(RASTER_SUFFIXES, _write_raster),
    **dict.fromkeys(VECTOR_SUFFIXES, _write_polygons),
    ".png": _write_preview,
    ".json": _write_stac,
    "probabilities": _write_probabilities,
}

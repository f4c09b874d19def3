"""Which outputs are there already, whole and made with the same settings."""

from __future__ import annotations

from pathlib import Path

from segearth_cli.geo.digest import source_digest
from segearth_cli.geo.recorded import read_record
from segearth_cli.model.weights import found_model
from segearth_cli.options import RASTER_SUFFIXES, SENSORS, SegmentOptions
from segearth_cli.outputs import kind_of, output_paths
from segearth_cli.record import same_settings, settings_record
from segearth_cli.stac import item_time, parse_time


def is_complete(source: str, options: SegmentOptions) -> bool:
    """Whether every output is there and says that it was made so, of this source as it is now.

    Outputs are renamed into place when they are whole, the file that names them last: one that is
    there is whole, unless somebody has removed a part of it.

    Raises:
        SegEarthError: the source or the model is gone.
    """
    from segearth_cli.device import precision_here  # imports torch

    paths = output_paths(options)
    records = [read_record(path) if _is_whole(path, options) else None for path in paths]
    first = records[0] if records else None
    if first is None or any(record is None for record in records):
        return False
    sensor = first.get("sensor")
    if sensor not in SENSORS:  # no record that segearth wrote
        return False
    item, taken = options.stac_path, options.acquired
    if item and taken and item_time(Path(item)) != parse_time(taken):
        return False
    # which bands are looked at and what sensor they are of follows from source and options
    folder = found_model(options.model.model, sensor)
    precision = precision_here(options.model)
    settings = settings_record(options, folder, precision, source_digest(source))
    return all(record is not None and same_settings(record, settings) for record in records)


def _is_whole(path: Path, options: SegmentOptions) -> bool:
    """Whether an output's file is there, and those that it is nothing without."""
    parts: list[Path] = []
    kind = kind_of(path, options)
    if kind == ".shp":
        parts = [path.with_suffix(end) for end in (".shx", ".dbf")]
    elif kind in RASTER_SUFFIXES:
        parts = [path.with_name(f"{path.name}.aux.xml")]  # the classes' names
    return all(file.is_file() for file in (path, *parts))

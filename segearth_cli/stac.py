"""A STAC Item for a map: where it lies, what its files are, what their values mean."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pyproj
import shapely
from numpy.typing import NDArray
from pyproj.exceptions import ProjError

from segearth_cli.errors import OutputError, UsageError
from segearth_cli.geo import antimeridian
from segearth_cli.geo.grid import Grid, is_on_earth
from segearth_cli.geo.legend import Legend
from segearth_cli.geo.recorded import KEY, Record
from segearth_cli.names import files_named, is_path, public_name
from segearth_cli.options import STAC_SUFFIX, VECTOR_SUFFIXES, SegmentOptions
from segearth_cli.plain import plain
from segearth_cli.staging import shown

EXTENSIONS = tuple(
    f"https://stac-extensions.github.io/{name}/schema.json"
    for name in ("classification/v2.0.0", "projection/v2.0.0", "processing/v1.2.0")
)
MEDIA_TYPES = {
    ".tif": "image/tiff; application=geotiff; profile=cloud-optimized",
    ".tiff": "image/tiff; application=geotiff; profile=cloud-optimized",
    ".gpkg": "application/geopackage+sqlite3",
    ".geojson": "application/geo+json",
    ".geojsonl": "application/x-ndjson",
    ".fgb": "application/vnd.flatgeobuf",
    ".parquet": "application/vnd.apache.parquet",
    ".shp": "application/vnd.shp",
    ".png": "image/png",
}
_SIDES = 9  # points along each side of a footprint: straight lines bend in degrees
_DECIMALS = 7
# "somewhere between these": STAC has no other word for an unknown time
_UNKNOWN = "0001-01-01T00:00:00Z/9999-12-31T23:59:59Z"

logger = logging.getLogger(__name__)


def write_item(
    place: Path,
    grid: Grid,
    legend: Legend,
    counts: Mapping[int, int],
    record: Record,
    options: SegmentOptions,
) -> None:
    """Write the Item of one scene's outputs, which lie beside it or are named from there.

    Raises:
        OutputError: it cannot be written.
    """
    item = item_of(grid, legend, counts, record, options)
    try:
        place.write_text(json.dumps(item, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {shown(place)}: {error.strerror}") from error


def item_of(
    grid: Grid,
    legend: Legend,
    counts: Mapping[int, int],
    record: Record,
    options: SegmentOptions,
) -> dict[str, Any]:
    """The Item as JSON has it."""
    path = Path(str(options.stac_path))
    source = record["source"]
    geometry, bbox = footprint(grid)
    if geometry is None:
        logger.warning("%s: no place on Earth, so that catalogues will not find it by place", path)
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": list(EXTENSIONS),
        "id": path.name.removesuffix(STAC_SUFFIX),
        "geometry": geometry,
        **({"bbox": bbox} if bbox else {}),
        "properties": {
            **_time(options, path),
            **_projection(grid),
            "processing:software": {"segearth": record["version"]},
            KEY: plain(record),
        },
        "links": [
            {"rel": "derived_from", "href": _relative(place, path.parent)}
            for place in _origins(options, source)
        ],
        "assets": _assets(options, path.parent, _classes(legend, counts)),
    }


def _origins(options: SegmentOptions, source: str) -> list[str]:
    """What a map was made of: the Item of its scene, else the scene's files."""
    return [public_name(options.source_item)] if options.source_item else files_named(source)


def parse_time(text: str) -> str:
    """A time, or the two ends of an interval with ``/`` between, as STAC writes them.

    Each is a date, or a time with or without its offset from UTC; an interval ends when the date
    at its end does.

    Raises:
        UsageError: this is no time, or ends before it starts.
    """
    ends = text.split("/", 1)
    try:
        moments = [_moment(end) for end in ends]
    except (ValueError, OverflowError) as error:
        raise UsageError(
            f"--datetime {text!r} is no time; give one such as 2024-05-31T10:20:30Z, or two with "
            "a / between"
        ) from error
    if len(ends) > 1 and re.fullmatch(r"[\d-]+", ends[1].strip()):
        moments[1] = moments[1].replace(hour=23, minute=59, second=59)
    if moments[0] > moments[-1]:
        raise UsageError(f"--datetime {text!r} ends before it starts")
    return "/".join(moment.isoformat().replace("+00:00", "Z") for moment in moments)


def _moment(text: str) -> datetime:
    # Python 3.10 reads three or six digits of a second
    exact = re.sub(r"\.(\d+)", lambda digits: f".{digits[1]:0<6.6}", text.strip().upper())
    moment = datetime.fromisoformat(exact.replace("Z", "+00:00"))
    return moment.replace(tzinfo=moment.tzinfo or timezone.utc).astimezone(timezone.utc)


def time_of(properties: Mapping[str, Any]) -> str | None:
    """When an Item says that its scene was taken: a time, or both ends with ``/`` between."""
    if properties.get("datetime") is not None:
        return str(properties["datetime"])
    ends = [properties.get(end) for end in ("start_datetime", "end_datetime")]
    interval = "/".join(map(str, ends)) if all(ends) else None
    return None if interval == _UNKNOWN else interval


def item_time(path: Path) -> str | None:
    """When an Item of ours says that its scene was taken."""
    return time_of(json.loads(path.read_text(encoding="utf-8"))["properties"])


def _time(options: SegmentOptions, path: Path) -> dict[str, Any]:
    if options.acquired is None:
        logger.warning("%s: nothing says when the scene was taken; say it with --datetime", path)
    taken = _UNKNOWN if options.acquired is None else parse_time(options.acquired)
    start, _, end = taken.partition("/")
    if end:
        return {"datetime": None, "start_datetime": start, "end_datetime": end}
    return {"datetime": start}


def _projection(grid: Grid) -> dict[str, Any]:
    known: dict[str, Any] = {"proj:shape": [grid.height, grid.width]}
    if not grid.gcps:
        known["proj:transform"] = list(grid.transform)[:6]
    if grid.crs is not None:
        authority = grid.crs.to_authority()
        crs = pyproj.CRS.from_user_input(grid.crs)
        known["proj:code"] = ":".join(authority) if authority else None
        if not authority:
            known["proj:wkt2"] = crs.to_wkt()
    if grid.gsd_m is not None:
        known["gsd"] = round(grid.gsd_m, 6)
    return known


def footprint(grid: Grid) -> tuple[dict[str, Any] | None, list[float] | None]:
    """The grid's outline in WGS 84, and its box; nothing for grids that lie nowhere.

    One that crosses the antimeridian is cut there, as RFC 7946 asks. One around a pole, or around
    the Earth, is all longitudes between its latitudes.
    """
    if grid.crs is None or not is_on_earth(grid.crs):
        return None, None
    along, ends = np.linspace(0, 1, _SIDES)[:-1], np.ones(_SIDES - 1)
    # against the clock, rows running down: first down the left side
    columns = np.concatenate([0 * ends, along, ends, 1 - along]) * grid.width
    rows = np.concatenate([along, ends, 1 - along, 0 * ends]) * grid.height
    xs, ys = grid.ground(columns, rows)
    try:
        crs = pyproj.CRS.from_user_input(grid.crs)
        to_degrees = pyproj.Transformer.from_crs(crs, "OGC:CRS84", always_xy=True)
        lon, lat = to_degrees.transform(xs, ys)
    except ProjError:
        return None, None
    if not (np.isfinite(lon).all() and np.isfinite(lat).all()):
        return None, None
    ring = shapely.Polygon(zip(xs, ys, strict=True))
    poles = to_degrees.transform([0, 0], [90, -90], direction="INVERSE")
    inside = tuple(ring.contains(shapely.Point(x, y)) for x, y in zip(*poles, strict=True))
    return outline(np.round(lon, _DECIMALS), np.round(lat, _DECIMALS).clip(-90, 90), inside)


def outline(
    lon: NDArray[np.float64], lat: NDArray[np.float64], poles: Sequence[bool]
) -> tuple[dict[str, Any], list[float]]:
    """A ring of degrees as GeoJSON and its box; neighbours lie less than half the Earth apart.

    ``poles``: whether the North and the South Pole lie inside.
    """
    low, high = float(lat.min()), float(lat.max())
    ring = np.stack([antimeridian.unrolled(np.append(lon, lon[0])), np.append(lat, lat[0])], axis=1)
    whole = antimeridian.in_one_piece([ring])
    if whole is None or np.ptp(ring[:, 0]) >= 360:
        north, south = poles
        low, high = (-90.0 if south else low), (90.0 if north else high)
        everywhere = shapely.box(-180, low, 180, high)
        return json.loads(shapely.to_geojson(everywhere)), list(everywhere.bounds)
    shape = shapely.orient_polygons(antimeridian.cut(whole))
    west, _, east, _ = whole.bounds
    box = [west, low, east - 360 * (east > 180), high]
    return json.loads(shapely.to_geojson(shape)), box


def _classes(legend: Legend, counts: Mapping[int, int]) -> list[dict[str, Any]]:
    names = [re.sub(r"[^0-9A-Za-z_-]+", "-", name).strip("-") for name in legend.names]
    listed: list[dict[str, Any]] = [
        {
            "value": value,
            "name": own if own and names.count(own) == 1 else f"class-{value}",
            "title": name,
            "color_hint": "{:02X}{:02X}{:02X}".format(*colour),
            "count": counts.get(value, 0),
        }
        for value, own, name, colour in zip(
            legend.values, names, legend.names, legend.colours, strict=True
        )
    ]
    nodata = {"value": legend.nodata, "name": "nodata", "title": "no data", "nodata": True}
    return [*listed, {**nodata, "count": counts.get(legend.nodata, 0)}]


def _assets(
    options: SegmentOptions, folder: Path, classes: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    assets: dict[str, Any] = {}
    for name in options.written:
        suffix = Path(name).suffix.lower()
        if name == "-" or name.endswith(STAC_SUFFIX):
            continue
        asset: dict[str, Any] = {"href": _uri(name, folder), "type": MEDIA_TYPES[suffix]}
        if name == options.probabilities:
            key, asset["roles"] = "probabilities", ["data"]
        elif suffix == ".png":
            key, asset["roles"] = "preview", ["overview"]
        else:
            key, asset["roles"] = "classes", ["data"]
            asset["classification:classes"] = list(classes)
            if suffix in VECTOR_SUFFIXES:
                key = "polygons"
                asset["classification:classes"] = [c for c in classes[:-1] if c["value"]]
        if key in assets:
            key = f"{key}-{len(assets)}"
        assets[key] = asset
    return assets


def _relative(name: str, folder: Path) -> str:
    """A scene's place as a URI seen from the Item; what is no file on a disk stays as it is."""
    if not is_path(name) or ('"' in name and not os.path.exists(name)):
        return name
    return _uri(name, folder)


def _uri(name: str, folder: Path) -> str:
    """A file's place as a URI seen from the Item."""
    try:
        path = os.path.relpath(name, folder)
    except ValueError:  # another drive of Windows
        return Path(name).absolute().as_uri()
    return quote(path if path.startswith("..") else f"./{path}")

"""Class raster -> polygons -> any vector format.

Borders are traced and simplified in pixel coordinates and placed on the ground at the end, so
that rotated grids, GCPs and scenes without a CRS all take the same path.
"""

import json
import logging
import math
import os
import re
import sqlite3
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any, TextIO

import geopandas
import numpy as np
import pandas as pd
import pyogrio
import shapely
from numpy.typing import NDArray
from pyproj import CRS, Geod, Transformer
from pyproj.exceptions import CRSError, ProjError

from segearth_cli.errors import OutputError, UsageError
from segearth_cli.geo import antimeridian
from segearth_cli.geo.companions import companions, files_of, record_beside
from segearth_cli.geo.failures import DISK_FULL, disk_is_full
from segearth_cli.geo.grid import Grid, degrees, is_on_earth, metres_per_unit, unit_of
from segearth_cli.geo.legend import Legend
from segearth_cli.geo.outlines import Regions, Rings, noded, simplified, together
from segearth_cli.geo.recorded import KEY, Record, require_package, to_json, to_tags
from segearth_cli.geo.seams import whole_regions
from segearth_cli.geo.style import save_default_style
from segearth_cli.staging import shown

logger = logging.getLogger(__name__)

Frames = Iterable[geopandas.GeoDataFrame]  # polygons, some at a time, as `Polygons` yields them

_DECIMALS = 7  # of a degree, at least: RFC 7946's advice, a centimetre
_PARTS = 20  # of a pixel that decimals must tell apart
_METRES = 111_320  # of a degree
_PIECES = 256  # of the scene's extent: edges that are measured on the ground are no longer than one
_LONGEST_IN_DBF = 254  # bytes of a text
_STEPS = 16  # along an edge: less than half the Earth each
_PROBE = 4096  # bytes: one block of a disk


class Polygons:
    """The connected regions (4 neighbours) of every class but 0 and nodata, as often as asked for.

    Iterating yields one GeoDataFrame or more, a strip's worth of regions each, whose columns are
    ``class_id``, ``class_name``, ``area_m2`` (of the polygon as returned: geodesic where the CRS is
    geographic or stretches lengths of the scene by over 1 %, planar elsewhere, NaN without a CRS),
    ``confidence`` (mean over the region's pixels, 0 to 1), ``source``, ``geometry`` in the grid's
    CRS. Without georeferencing x is the column and y minus the row, as QGIS shows such a raster.

    Args:
        classes_path: class raster.
        confidence_path: percents.
        legend: of the class raster.
        grid: where its pixels lie.
        source: what the column of that name says.
        simplify_m: removes, smallest first, vertices whose triangle with their neighbours is
            smaller than its square (Visvalingam-Whyatt); borders between polygons stay shared.
            Without a CRS it is taken as pixels. Takes all regions at once, as GCPs do.
    """

    def __init__(
        self,
        classes_path: str | Path,
        confidence_path: str | Path,
        legend: Legend,
        grid: Grid,
        *,
        source: str,
        simplify_m: float = 0.0,
    ) -> None:
        self._paths = (classes_path, confidence_path)
        self._legend = legend
        self._grid = grid
        self._source = source
        self._simplify_m = simplify_m
        self._only: geopandas.GeoDataFrame | None = None  # where there is but one

    @property
    def decimals(self) -> int:
        """Of a degree, that coordinates need for polygons to stay what they are."""
        return max(_DECIMALS, math.ceil(math.log10(_PARTS * _METRES / (self._grid.gsd_m or 1.0))))

    def __iter__(self) -> Iterator[geopandas.GeoDataFrame]:
        """Trace the raster, unless one frame held everything the last time."""
        if self._only is not None:
            yield self._only
            return
        count = 0
        for regions in self._regions():
            frame = self._frame(regions)
            count += 1
            yield frame
        if count == 1:
            self._only = frame

    def _regions(self) -> Iterator[Regions]:
        """Yield the regions as they will be drawn, in pixel coordinates: at least once."""
        found = whole_regions(*self._paths, self._legend.nodata)
        if not self._simplify_m and not self._grid.gcps:
            is_empty = True
            for regions in found:
                if len(regions.rings.values):
                    is_empty = False
                    yield regions
            if is_empty:
                yield regions
            return
        regions = together(list(found))
        if not len(regions.rings.values):
            yield regions
        elif self._simplify_m:
            tolerance = _tolerance_pixels(self._grid, self._simplify_m)
            yield replace(regions, rings=simplified(regions.rings, tolerance))
        else:  # straight pixel edges bend: meeting borders must bend alike
            yield replace(regions, rings=noded(regions.rings))

    def _frame(self, regions: Regions) -> geopandas.GeoDataFrame:
        crs = None if self._grid.crs is None else CRS.from_user_input(self._grid.crs)
        names = dict(zip(self._legend.values, self._legend.names, strict=True))
        rings = replace(regions.rings, xy=_ground(regions.rings.xy, self._grid))
        values, geometry = rings.values.tolist(), rings.geometry()
        return geopandas.GeoDataFrame(
            {
                "class_id": rings.values,
                "class_name": pd.array([names[value] for value in values], dtype="string"),
                "area_m2": _areas_m2(rings, geometry, self._grid, crs),
                "confidence": regions.confidence,
                "source": pd.array([self._source] * len(values), dtype="string"),
            },
            geometry=geometry,
            crs=crs,
        )


def _tolerance_pixels(grid: Grid, simplify_m: float) -> float:
    return simplify_m / math.sqrt(grid.pixel_area_m2 or 1.0)


def _ground(xy: NDArray[Any], grid: Grid) -> NDArray[np.float64]:
    """Return x and y in the grid's CRS of pixel positions [points, 2]."""
    columns, rows = xy.T
    if grid.is_in_pixels:
        return np.column_stack([columns, -rows])
    return np.column_stack(grid.ground(columns, rows))


def _areas_m2(
    rings: Rings, geometry: NDArray[Any], grid: Grid, crs: CRS | None
) -> NDArray[np.float64]:
    """Return the area of every polygon in square metres, NaN without a CRS."""
    if crs is None or not len(rings.values):
        return np.full(len(rings.values), np.nan)
    unit = unit_of(crs)
    planar = np.asarray(shapely.area(geometry) * unit**2)
    if not crs.is_geographic and not _stretches(grid, crs, unit):
        return planar
    # straight in the CRS is not straight on the ground: by pieces the difference is small
    left, bottom, right, top = grid.bounds
    longest = max(right - left, top - bottom) / _PIECES
    pieces = shapely.segmentize(geometry, longest)
    _, xy, (ring_offsets, _) = shapely.to_ragged_array(pieces)
    lon, lat = degrees(crs, *xy.T)
    geod = crs.get_geod() or Geod(ellps="WGS84")
    ends = ring_offsets.tolist()
    areas = [
        geod.polygon_area_perimeter(lon[start:stop], lat[start:stop])[0]
        for start, stop in pairwise(ends)
    ]
    on_ground = rings.shells_minus_holes(np.array(areas, np.float64))
    # beyond the projection there is no ground
    return np.where(np.isfinite(on_ground), on_ground, planar)


def _stretches(grid: Grid, crs: CRS, unit: float) -> bool:
    """Whether the projection draws lengths too long or short anywhere in the scene."""
    thirds = np.linspace(0, 1, 3)
    places = np.stack(np.meshgrid(thirds * grid.width, thirds * grid.height), axis=-1)
    xs, ys = _ground(places.reshape(-1, 2), grid).T
    across, up, _ = metres_per_unit(crs, xs, ys)
    return bool((across != unit).any() or (up != unit).any())


def write_vector(
    frames: Frames,
    destination: str | Path,
    legend: Legend,
    record: Record | None = None,
) -> list[Path]:
    """Write `Polygons` in the format of the destination's suffix; return the files made.

    Files of the same name are replaced. The layer is named after the file. A GeoPackage gets the
    legend's colours as QGIS style. All carry the record, some in a file beside them.
    Raises OutputError, and leaves no file, when the disk is full or the folder is not writable.
    """
    path = Path(destination)
    require_package(path)
    layer = _Layer(_layer_name(path.stem), legend, record or {})
    write = WRITERS[path.suffix.lower()]
    parts = _Watched(frames, path.name, as_geojson=write in (_write_geojson, _write_geojsonl))
    try:
        _remove(path)
        with closing(parts):
            write(parts, path, layer)
    except (OSError, RuntimeError, ValueError, sqlite3.Error) as error:
        reason = _reason(error, path)
        _remove(path)
        if parts.are_being_made:
            raise
        raise OutputError(f"cannot write {shown(path)}: {reason}") from error
    except BaseException:  # Ctrl-C
        _remove(path)
        raise
    return files_of(path)


def write_features(frames: Frames, stream: TextIO) -> None:
    """Write one GeoJSON feature per line (no record separators), as `write_vector` would.

    OSError of the stream passes through, so that a closed pipe can be told from a full disk.
    """
    with closing(_Watched(frames, "the output", as_geojson=True)) as parts:
        for feature in _features(parts):
            stream.write(feature + "\n")


def _features(frames: Frames) -> Iterator[str]:
    """Yield GeoJSON texts as RFC 7946 has them.

    WGS 84, right-handed rings, 7 decimals or what small pixels need, cut at the antimeridian.
    """
    decimals = frames.decimals if isinstance(frames, _Watched) else _DECIMALS
    for frame in frames:
        columns = [name for name in frame.columns if name != frame.geometry.name]
        rows = zip(*(frame[name].tolist() for name in columns), strict=True)
        geometries = shapely.to_geojson(_lon_lat(frame.geometry, decimals))
        for row, geometry in zip(rows, geometries, strict=True):
            values = [None if value != value else value for value in row]  # NaN
            properties = json.dumps(dict(zip(columns, values, strict=True)), ensure_ascii=False)
            yield f'{{"type":"Feature","properties":{properties},"geometry":{geometry}}}'


def _lon_lat(geometry: geopandas.GeoSeries, decimals: int) -> NDArray[Any]:
    shapes = geometry.to_numpy()
    if geometry.crs is not None:
        shapes = _in_degrees(shapes, geometry.crs)
    rounded = shapely.transform(shapes, lambda xy: np.round(xy, decimals) + 0.0)
    spoilt = ~shapely.is_valid(rounded)
    spoilt[spoilt] = shapely.is_valid(shapes[spoilt])  # by rounding
    for index in np.flatnonzero(spoilt).tolist():
        parts = shapely.get_parts(shapely.make_valid(rounded[index]))
        areas = [part for part in parts if part.geom_type in ("Polygon", "MultiPolygon")]
        rounded[index] = shapely.union_all(areas) if areas else shapes[index]
    return np.asarray(shapely.orient_polygons(rounded))


def _in_degrees(shapes: NDArray[Any], crs: CRS) -> NDArray[Any]:
    if not is_on_earth(crs):
        raise OutputError(_NO_LON_LAT)
    try:
        to_degrees = Transformer.from_crs(crs, "OGC:CRS84", always_xy=True).transform
    except (CRSError, ProjError) as error:
        raise OutputError(_NO_LON_LAT) from error
    placed = shapely.transform(shapes, lambda xy: np.column_stack(to_degrees(*xy.T)))
    if not np.isfinite(shapely.get_coordinates(placed)).all():
        raise OutputError(_NO_LON_LAT)
    for index in np.flatnonzero(antimeridian.may_cross(placed)).tolist():
        rings = [shapes[index].exterior, *shapes[index].interiors]
        whole = antimeridian.in_one_piece([_unrolled(ring, to_degrees) for ring in rings])
        if whole is not None:
            placed[index] = antimeridian.cut(whole)
    return np.asarray(shapely.transform(placed, antimeridian.snapped))


def _unrolled(ring: Any, to_degrees: Callable[..., Any]) -> NDArray[np.float64]:
    """A ring in degrees, in one piece: places along its edges tell which way around these go."""
    places = shapely.get_coordinates(ring)
    along = np.linspace(0, 1, _STEPS, endpoint=False)[:, None]
    edges = places[:-1, None] + along * np.diff(places, axis=0)[:, None]
    dense = np.concatenate([edges.reshape(-1, 2), places[-1:]])
    longitudes, latitudes = to_degrees(*dense.T)
    return np.stack([antimeridian.unrolled(longitudes), latitudes], axis=1)[::_STEPS]


_NO_LON_LAT = (
    "the scene's coordinate system has no longitude and latitude for GeoJSON; write .gpkg instead"
)


@dataclass(frozen=True)
class _Layer:
    """What goes into a file beside the polygons."""

    name: str
    legend: Legend
    record: Record


def _write_geojson(frames: Frames, path: Path, layer: _Layer) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        about = f'"{KEY}":{to_json(layer.record)},' if layer.record else ""
        stream.write(f'{{"type":"FeatureCollection",{about}"features":[')
        for index, feature in enumerate(_features(frames)):
            stream.write((",\n" if index else "\n") + feature)
        stream.write("\n]}\n")


def _write_geojsonl(frames: Frames, path: Path, layer: _Layer) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        stream.writelines(feature + "\n" for feature in _features(frames))
    _write_beside(path, layer.record)


def _write_parquet(frames: Frames, path: Path, layer: _Layer) -> None:
    from pyarrow import parquet

    boxes = []
    with ExitStack() as stack:
        for index, frame in enumerate(frames):
            buffer = BytesIO()
            frame.to_parquet(buffer, index=False)
            table = parquet.read_table(buffer)
            about = dict(table.schema.metadata)
            geo = json.loads(about.pop(b"geo"))  # of the whole file: written when all is known
            table = table.replace_schema_metadata(about)
            if index == 0:
                writer = parquet.ParquetWriter(path, table.schema, compression="zstd")
                stack.enter_context(writer)
            writer.write_table(table)
            boxes.append(shapely.box(*frame.total_bounds))
        (column,) = geo["columns"].values()
        if "bbox" in column:
            column["bbox"] = shapely.total_bounds(boxes).tolist()
        record = {KEY: to_json(layer.record)} if layer.record else {}
        writer.add_key_value_metadata({"geo": json.dumps(geo), **record})


def _write_gpkg(frames: Frames, path: Path, layer: _Layer) -> None:
    _write_ogr(frames, path, layer.name, "GPKG", layer_metadata=to_tags(layer.record) or None)
    save_default_style(path, layer.name, layer.legend, moment())
    with TemporaryDirectory(dir=path.parent) as folder:  # SQLite's leave the group no way to write
        probe = Path(folder, "probe")
        probe.touch()
        path.chmod(probe.stat().st_mode)


def _write_fgb(frames: Frames, path: Path, layer: _Layer) -> None:
    metadata = to_tags(layer.record) or None
    _write_ogr([_whole(frames)], path, layer.name, "FlatGeobuf", layer_metadata=metadata)


def _write_shp(frames: Frames, path: Path, layer: _Layer) -> None:
    made = moment()
    dated = {"DBF_DATE_LAST_UPDATE": f"{made:%Y-%m-%d}"} if made else {}
    whole = _whole(frames)
    texts = {*whole["class_name"], *whole["source"]}
    if any(len(text.encode()) > _LONGEST_IN_DBF for text in texts):
        logger.warning("%s: texts are cut after %d bytes", path.name, _LONGEST_IN_DBF)
    _write_ogr([whole], path, path.stem, "ESRI Shapefile", encoding="UTF-8", **dated)
    _write_beside(path, layer.record)


def _whole(frames: Frames) -> geopandas.GeoDataFrame:
    """Return all frames as one, for formats that are written in one go."""
    return pd.concat(frames, ignore_index=True)


def _write_ogr(frames: Frames, path: Path, layer: str, driver: str, **options: Any) -> None:
    """Write the only layer of a file; its type of geometry is Polygon."""
    made = moment()
    pyogrio.set_gdal_config_options(
        {"OGR_CURRENT_DATE": f"{made:%Y-%m-%dT%H:%M:%S.000Z}" if made else None}
    )
    where = {"layer": layer, "driver": driver, "geometry_type": "Polygon"}
    count = 0
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "'crs' was not provided")
        warnings.filterwarnings("ignore", ".*has been truncated", RuntimeWarning)
        for index, frame in enumerate(frames):
            pyogrio.write_dataframe(frame, path, append=index > 0, **where, **options)
            count += len(frame)
            options = {}  # they are the layer's
    fids, _ = pyogrio.read_bounds(path, layer=0)
    if len(fids) != count:
        raise OSError(f"only {len(fids)} of {count} polygons arrived")
    with TemporaryFile(dir=path.parent) as probe:  # GDAL keeps silent if the end did not fit,
        probe.write(bytes(_PROBE))  # and then nothing else does


WRITERS: dict[str, Callable[[Frames, Path, _Layer], None]] = {
    ".gpkg": _write_gpkg,
    ".geojson": _write_geojson,
    ".geojsonl": _write_geojsonl,
    ".fgb": _write_fgb,
    ".parquet": _write_parquet,
    ".shp": _write_shp,
}


def _write_beside(path: Path, record: Record) -> None:
    if record:
        record_beside(path).write_text(to_json(record) + "\n", encoding="utf-8")


def moment() -> datetime | None:
    """The time that files bear as that of their making, where the user has fixed it.

    ``SOURCE_DATE_EPOCH``, as for other tools that can make the same bytes twice: GeoPackages and
    shapefiles hold the time.

    Raises:
        UsageError: it is no number of seconds.
    """
    text = os.environ.get("SOURCE_DATE_EPOCH")
    if not text:
        return None
    try:
        return datetime.fromtimestamp(int(text), timezone.utc)
    except (ValueError, OverflowError, OSError) as error:
        raise UsageError(
            f"SOURCE_DATE_EPOCH is {text!r}; it must be seconds since 1970, or unset"
        ) from error


def _remove(path: Path) -> None:
    for part in (path, *companions(path)):
        part.unlink(missing_ok=True)


def _layer_name(name: str) -> str:
    """Return a name that a GeoPackage accepts for a table and QGIS in a layer's address."""
    name = re.sub(r"[^\w .-]", "_", name).strip().lstrip("-") or "polygons"
    taken = re.match("gpkg_|sqlite_|rtree_|layer_styles$", name, re.IGNORECASE)
    return f"map_{name}" if taken else name


class _Watched:
    """Frames on their way into a file: an error may be of their making or of writing them.

    Closing lets go of the files that they are made of. ``as_geojson``: they are written in degrees,
    with so many ``decimals``.
    """

    def __init__(self, frames: Frames, name: str, as_geojson: bool) -> None:
        self.are_being_made = False
        self.decimals = frames.decimals if isinstance(frames, Polygons) else _DECIMALS
        self._frames = self._passed_on(frames, name, as_geojson)

    def __iter__(self) -> Iterator[geopandas.GeoDataFrame]:
        """Pass the frames on, and say so where they have no coordinate system."""
        return self._frames

    def close(self) -> None:
        """Ask for no more."""
        self._frames.close()

    def _passed_on(
        self, frames: Frames, name: str, as_geojson: bool
    ) -> Generator[geopandas.GeoDataFrame, None, None]:
        has_warned = False
        self.are_being_made = True
        for frame in frames:
            self.are_being_made = False
            if frame.crs is None and not has_warned:
                logger.warning(
                    "%s has no coordinate system: its coordinates are the scene's own%s",
                    name,
                    ", and programs will take them for degrees (EPSG:4326)" if as_geojson else "",
                )
                has_warned = True
            yield frame
            self.are_being_made = True
        self.are_being_made = False


def _reason(error: BaseException, path: Path) -> str:
    if disk_is_full(path.parent, error):
        return DISK_FULL
    reason = " ".join(str(error).replace(str(path), str(shown(path))).split())
    return f"{reason}; check that the folder exists, is writable and has room"

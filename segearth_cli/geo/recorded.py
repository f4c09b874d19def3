"""Where each format keeps the record of how a map was made, and how it is read back.

A record is a JSON object, some of whose values are objects too. Rasters and OGR layers carry a tag
for each value (``SEGEARTH_VERSION``, ...), JSON and pictures all of it as an object named
``segearth``; formats with no place for it (shapefiles, lines of GeoJSON) have a file beside them.
"""

import json
import warnings
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyogrio
import rasterio
from PIL import Image, UnidentifiedImageError
from pyogrio.errors import DataLayerError, DataSourceError

from segearth_cli.errors import SegEarthError, UsageError
from segearth_cli.geo.companions import record_beside
from segearth_cli.geo.failures import GDAL_ERRORS
from segearth_cli.geo.writer import quiet
from segearth_cli.options import RASTER_SUFFIXES, STAC_SUFFIX
from segearth_cli.plain import plain

Record = dict[str, Any]

KEY = "segearth"
PREFIX = "SEGEARTH_"
_TEXTS = ("version", "source", "dataset", "scene", "sensor", "prompts", "model_digest")
_PARTS = {"version": str, "source": str, "model": dict}
_PARTS_OF_SEGMENT = {"source_digest": dict, "options": dict}
_LONGEST = 64 << 20  # bytes of a file or line that may be a record: far more than any


def to_json(record: Mapping[str, Any]) -> str:
    """The record as a JSON object in one line."""
    return _dumped(dict(record))


def to_tags(record: Mapping[str, Any]) -> dict[str, str]:
    """The record as texts by name, what rasters and layers can carry."""
    return {
        PREFIX + name.upper(): value if name in _TEXTS else _dumped(value)
        for name, value in record.items()
    }


def _dumped(value: Any) -> str:
    return json.dumps(plain(value), ensure_ascii=False)


def from_tags(tags: Mapping[str, str]) -> Record | None:
    """The record among tags; ``None`` where there is none, or one that makes no sense."""
    record: Record = {}
    for name, text in sorted(tags.items()):
        if name.startswith(PREFIX):
            key = name.removeprefix(PREFIX).lower()
            try:
                record[key] = text if key in _TEXTS else json.loads(text)
            except ValueError:
                return None
    return _checked(record)


def _checked(value: Any) -> Record | None:
    """The value, if it is a record with all that telling about it needs."""
    if not isinstance(value, dict):
        return None
    parts = _PARTS | (_PARTS_OF_SEGMENT if is_of_segment(value) else {})
    return value if all(isinstance(value.get(k), kind) for k, kind in parts.items()) else None


def is_of_segment(record: Record) -> bool:
    """Whether ``segment`` made what carries the record, and can again; else ``evaluate`` did."""
    return "options" in record


def read_record(path: Path) -> Record | None:
    """The record in an output; ``None`` where there is none.

    Raises:
        SegEarthError: no output can be read there.
    """
    kind = STAC_SUFFIX if path.name.endswith(STAC_SUFFIX) else path.suffix.lower()
    if kind not in READERS:
        raise SegEarthError(
            f"{path} is none of segearth's outputs: they end with {' '.join(READERS)}"
        )
    if not path.is_file():
        raise SegEarthError(f"there is no file {path}")
    try:
        return _checked(READERS[kind](path))
    except OSError as error:
        raise SegEarthError(f"cannot read {path}: {error.strerror or error}") from error


def _raster_record(path: Path) -> Record | None:
    try:
        return from_tags(_tags(path))
    except (*GDAL_ERRORS, UnicodeError):  # the name of a file may be no text
        return None  # whatever it is, it is no map of ours


def require_package(path: str | Path, what: str = "writing") -> None:
    """Raise UsageError when a package that the format of a file needs is not installed."""
    if Path(path).suffix.lower() == ".parquet" and find_spec("pyarrow") is None:
        raise UsageError(
            f"{what} {Path(path).name} needs pyarrow: pip install 'segearth-cli[parquet]'"
        )


def is_probabilities(path: Path) -> bool:
    """Whether an output is a raster of probabilities, which names no classes by value."""
    if path.suffix.lower() not in RASTER_SUFFIXES:
        return False
    return "CLASSES" not in _tags(path)


def _tags(path: Path) -> dict[str, str]:
    """A raster's own tags, wherever it lies."""
    with quiet(), rasterio.open(path) as src:
        tags: dict[str, str] = src.tags()
        return tags


def _layer_record(path: Path) -> Record | None:
    try:
        names = [name for name, kind in pyogrio.list_layers(path) if kind is not None]
        tags = pyogrio.read_info(path, layer=names[0])["layer_metadata"] if names else None
    except (DataSourceError, DataLayerError):
        return None
    return from_tags(tags or {})


def _parquet_record(path: Path) -> Any:
    require_package(path, "reading")
    import pyarrow
    import pyarrow.parquet

    try:
        metadata = pyarrow.parquet.read_metadata(path).metadata or {}
    except pyarrow.ArrowInvalid:
        return None
    return _loaded(metadata.get(KEY.encode(), b""))


def _geojson_record(path: Path) -> Any:
    with path.open("rb") as stream:
        head = stream.readline(_LONGEST)
    collection = _loaded(head.strip() + b"]}")
    return collection.get(KEY) if isinstance(collection, dict) else None


def _picture_record(path: Path) -> Any:
    try:
        with warnings.catch_warnings():  # the pixels of a large picture are not looked at
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                text = picture.info.get(KEY, "")
    except (UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, ValueError):
        return None
    return _loaded(text)


def _record_beside(path: Path) -> Any:
    beside = record_beside(path)
    return _file_record(beside) if beside.is_file() else None


def _file_record(path: Path) -> Any:
    if path.stat().st_size > _LONGEST:
        return None
    return _loaded(path.read_bytes())


def _stac_record(path: Path) -> Any:
    item = _file_record(path)
    properties = item.get("properties") if isinstance(item, dict) else None
    return properties.get(KEY) if isinstance(properties, dict) else None


def _loaded(text: str | bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


READERS: dict[str, Callable[[Path], Any]] = {
    **dict.fromkeys(RASTER_SUFFIXES, _raster_record),
    ".gpkg": _layer_record,
    ".fgb": _layer_record,
    ".geojson": _geojson_record,
    ".geojsonl": _record_beside,
    ".shp": _record_beside,
    ".parquet": _parquet_record,
    ".png": _picture_record,
    STAC_SUFFIX: _stac_record,
}

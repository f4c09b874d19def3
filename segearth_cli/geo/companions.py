"""Which files belong to an output by their names: parts of it, or made from it by others."""

import os
from pathlib import Path

from segearth_cli.options import RASTER_SUFFIXES

_RECORD = "{name}.segearth.json"  # of formats that cannot carry how they were made

COMPANIONS: dict[str, tuple[str, ...]] = {
    ".shp": (
        _RECORD,  # before the others: it tells whose they are
        *(f"{{stem}}.{end}" for end in ("shx", "dbf", "prj", "cpg", "qpj", "qix", "sbn", "sbx")),
    ),
    ".geojsonl": (_RECORD,),
    **dict.fromkeys((".geojson", ".fgb", ".parquet"), ()),
    ".gpkg": ("{name}-journal", "{name}-wal", "{name}-shm"),
    ".png": ("{name}.aux.xml",),
    **dict.fromkeys(RASTER_SUFFIXES, ("{name}.aux.xml", "{name}.ovr", "{name}.msk")),
}


def companions(path: Path) -> list[Path]:
    """The files, there or not, that a GIS takes for parts of an output.

    Left behind by an older one they would spoil it: a projection, an index, overviews.
    """
    names = COMPANIONS.get(path.suffix.lower(), ())
    return [path.with_name(name.format(stem=path.stem, name=path.name)) for name in names]


def record_beside(path: Path) -> Path:
    """Where the record of an output lies that cannot carry it."""
    return path.with_name(_RECORD.format(name=path.name))


def files_of(path: Path) -> list[Path]:
    """The output and its companions, as far as they are there."""
    return [file for file in (path, *companions(path)) if os.path.lexists(file)]

"""A source's digest: which bytes or pixels a map was made of, told without reading all of them."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rasterio.windows import Window

from segearth_cli.errors import SceneError
from segearth_cli.geo.failures import GDAL_ERRORS, damage
from segearth_cli.geo.remote import is_remote, patiently
from segearth_cli.geo.source import open_raster, opened
from segearth_cli.names import stack_files

_WHOLE = 4 << 20  # bytes: smaller files are read whole
_END = 1 << 20  # bytes at the head and at the tail of larger ones
_BLOCKS, _BLOCK = 16, 1 << 16  # number and bytes of what is read between
_MOST_FILES = 64  # of a mosaic's that are opened
_LATTICE, _SIDE = 3, 64  # windows along each side, and pixels along theirs, of a remote raster
_MOST_BANDS = 4
_MADE_BY_VIEWERS = (".aux.xml", ".ovr")  # statistics and overviews that a GIS leaves beside


def source_digest(source: str) -> dict[str, Any]:
    """What a raster holds, as ``sha256``, its ``bytes`` where they are known, and what it covers.

    Of local files: size and content, of those over 4 MiB head, tail and 16 blocks between. Of
    anything else (URLs, archives, subdatasets): pixels from all over. Always with what GDAL says
    about size, bands and place. Names and times do not matter.

    Raises:
        SceneError: it cannot be opened or read.
    """
    return patiently(source, lambda: _digest(source))


def source_files(source: str) -> list[str]:
    """The files on this machine that a raster is read from, a mosaic's parts among them.

    Raises:
        SceneError: it cannot be opened.
    """
    if is_remote(source):
        return []
    with open_raster(source) as src:
        return _files(src, source)


def _digest(source: str) -> dict[str, Any]:
    with open_raster(source) as src:
        total = hashlib.sha256(_facts(src).encode())
        files = [
            file for file in _files(src, source) if not file.lower().endswith(_MADE_BY_VIEWERS)
        ]
        if files and all(map(os.path.isfile, files)):
            size = sum(map(os.path.getsize, files))
            covers = _add_files(total, [Path(file) for file in files], source)
        else:
            size, covers = None, _add_pixels(total, src, source)
    return {"sha256": total.hexdigest(), "bytes": size, "covers": covers}


def _files(src: Any, source: str) -> list[str]:
    """All files that a scene is made of; of a stack each band's own, with its mask."""
    stack = stack_files(source)
    if stack is None:
        return list(src.files)
    found: list[str] = []
    for file in stack.values():
        with opened(file) as band:
            found += band.files or [file]  # what is no file of a disk's stays none
    return found


def _facts(src: Any) -> str:
    gcps, gcps_crs = src.gcps
    crs = src.crs or gcps_crs
    return json.dumps(
        [
            [src.width, src.height, *src.dtypes],
            [crs.to_wkt() if crs else None, *src.transform],
            [[p.row, p.col, p.x, p.y] for p in gcps],
            [*map(repr, src.nodatavals), *src.descriptions],
            [colour.name for colour in src.colorinterp],
        ]
    )


def _add_files(total: Any, files: list[Path], source: str) -> str:
    is_whole = True
    try:
        for file in files:
            size = file.stat().st_size
            total.update(f"{size}\0".encode())
        for file in files[:_MOST_FILES]:
            is_whole &= file.stat().st_size <= _WHOLE
            for part in _parts(file):
                total.update(part)
    except OSError as error:
        raise SceneError(f"cannot read {source}: {error.strerror}") from error
    if len(files) > _MOST_FILES:
        return f"sizes of {len(files)} files, content of {_MOST_FILES} in samples"
    if is_whole:
        return "everything"
    return "size, first and last MiB, 16 blocks of 64 KiB between"


def _parts(file: Path) -> Iterator[bytes]:
    size = file.stat().st_size
    with file.open("rb") as stream:
        if size <= _WHOLE:
            yield stream.read()
            return
        yield stream.read(_END)
        for index in range(1, _BLOCKS + 1):
            stream.seek(size * index // (_BLOCKS + 1))
            yield stream.read(_BLOCK)
        stream.seek(-_END, os.SEEK_END)
        yield stream.read(_END)


def _add_pixels(total: Any, src: Any, source: str) -> str:
    bands = list(range(1, min(src.count, _MOST_BANDS) + 1))
    width, height = min(_SIDE, src.width), min(_SIDE, src.height)
    try:
        for row in range(_LATTICE):
            for column in range(_LATTICE):
                left = (src.width - width) * column // (_LATTICE - 1)
                top = (src.height - height) * row // (_LATTICE - 1)
                total.update(src.read(bands, window=Window(left, top, width, height)).tobytes())
    except GDAL_ERRORS as error:
        raise SceneError(f"cannot read {source}: {damage(error)}") from error
    return f"size, place and 9 windows of {width} x {height} pixels"

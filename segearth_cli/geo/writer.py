"""Rasters that segearth writes: temporary ones by rows, class rasters and probabilities as COG."""

import json
import logging
import math
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from shutil import disk_usage
from threading import Lock
from types import TracebackType
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning
from rasterio.features import sieve as gdal_sieve
from rasterio.io import MemoryFile
from rasterio.windows import Window

from segearth_cli.errors import OutputError, UsageError
from segearth_cli.geo.failures import DISK_FULL, GDAL_ERRORS, disk_is_full
from segearth_cli.geo.grid import Grid
from segearth_cli.geo.virtual import Colour, VirtualRaster
from segearth_cli.staging import companions, files_of, shown

TILE = 256  # pixels; rows are handed to GDAL in whole tiles
# creation options that would give pixels other values, or another place
_SPOILING = dict.fromkeys(
    ("NBITS", "MAX_Z_ERROR", "MAX_Z_ERROR_OVERVIEW"), "it would change the values of classes"
) | dict.fromkeys(
    ("TILING_SCHEME", "TARGET_SRS", "RES", "EXTENT", "ZOOM_LEVEL", "ZOOM_LEVEL_STRATEGY"),
    "the map keeps its scene's grid; --gsd, --bbox and --dst-crs choose another",
)
_RESAMPLINGS = ("NEAREST", "MODE")  # that make no class of two
_OPTION_LOGGER = "rasterio._env"  # where GDAL's warnings about creation options arrive


class _Silent:
    """Without the lines that libtiff itself writes to stderr when a disk is full.

    It does so beside GDAL's error handling, which reports the failure as well. The file descriptor
    is the whole process's: of several threads the last one out puts it back.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._inside = 0
        self._kept: int | None = None

    def __enter__(self) -> None:
        """Send stderr nowhere."""
        with self._lock:
            self._inside += 1
        try:
            with self._lock, suppress(OSError):  # of a stderr that is closed
                if self._kept is None:
                    self._kept = os.dup(2)
                    nowhere = os.open(os.devnull, os.O_WRONLY)
                    os.dup2(nowhere, 2)
                    os.close(nowhere)
        except BaseException:  # Ctrl-C
            self.__exit__()
            raise

    def __exit__(self, *error: object) -> None:
        """Put it back."""
        with self._lock:
            self._inside -= 1
            if self._inside == 0 and self._kept is not None:
                os.dup2(self._kept, 2)
                os.close(self._kept)
                self._kept = None


_LIBTIFF_SILENT = _Silent()


@dataclass(frozen=True)
class Legend:
    """What the values of a class raster mean: 0 is background, 1..K the classes."""

    values: tuple[int, ...]
    names: tuple[str, ...]
    colours: tuple[Colour, ...]
    nodata: int = 255
    dtype: str = "uint8"

    def __post_init__(self) -> None:
        """Refuse a legend that a raster cannot carry."""
        if self.values != tuple(range(len(self.values))):
            raise ValueError("the values of a legend are 0, 1, ..., K")
        if not len(self.values) == len(self.names) == len(self.colours):
            raise ValueError("a legend has one name and one colour per value")
        if len(self.values) > self.nodata:
            raise ValueError(f"{len(self.values)} values do not fit beside nodata {self.nodata}")


class RowWriter:
    """A temporary tiled, compressed GeoTIFF written by consecutive rows.

    Rows are kept until they fill a row of tiles, so memory is ``width * 256`` pixels per band.
    Panels, some columns after the others, are written one at a time, each from the top.
    Closing reads the file back: GDAL keeps silent about a disk that fills up at the end.
    """

    def __init__(
        self,
        path: str | Path,
        grid: Grid,
        dtype: str = "uint8",
        bands: int = 1,
        nodata: float | None = None,
    ) -> None:
        """Create the file; raises OutputError where that is impossible."""
        self.path = Path(path)
        self._grid = grid
        self._rows = np.zeros((bands, TILE, grid.width), dtype)
        self._columns = (0, grid.width)
        self._held = 0
        self._written = 0
        with _writing(self.path):
            self._dataset = rasterio.open(
                self.path,
                "w",
                driver="GTiff",
                width=grid.width,
                height=grid.height,
                count=bands,
                dtype=dtype,
                nodata=nodata,
                tiled=True,
                blockxsize=TILE,
                blockysize=TILE,
                interleave="band",
                compress="deflate",
                zlevel=1,
                bigtiff="if_safer",
                **_placement(grid),
            )

    def start_panel(self, first: int, end: int) -> None:
        """Write columns ``first`` to ``end`` from now on, from the top; whole tiles of them."""
        if first != self._columns[0]:
            self._check_panel()
        self._columns = (first, end)
        self._written = 0

    def write(self, rows: NDArray[Any]) -> None:
        """Append rows, [h, W] or [bands, h, W]; raises OutputError when the disk is full."""
        rows = rows[np.newaxis] if rows.ndim == 2 else rows
        width = rows.shape[2]
        done = 0
        while done < rows.shape[1]:
            take = min(TILE - self._held, rows.shape[1] - done)
            self._rows[:, self._held : self._held + take, :width] = rows[:, done : done + take]
            self._held += take
            done += take
            if self._held == TILE or self._written + self._held == self._grid.height:
                self._flush()

    def _flush(self) -> None:
        first, end = self._columns
        window = Window(first, self._written, end - first, self._held)
        with _writing(self.path), _LIBTIFF_SILENT:
            self._dataset.write(self._rows[:, : self._held, : end - first], window=window)
        self._written += self._held
        self._held = 0

    def close(self) -> None:
        """Finish the file and check that all of it arrived; raises OutputError if not."""
        if self._dataset.closed:
            return
        with _writing(self.path), _LIBTIFF_SILENT:
            self._dataset.close()
        self._check_panel()
        _check_whole(self.path)

    def _check_panel(self) -> None:
        if self._written != self._grid.height:
            raise ValueError(f"{self._written} of {self._grid.height} rows were written")

    def __enter__(self) -> "RowWriter":
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close; after an error the file is only let go."""
        if kind is None:
            self.close()
        else:
            with suppress(*GDAL_ERRORS, OSError), _quiet(), _LIBTIFF_SILENT:
                self._dataset.close()


def sieve(path: str | Path, min_pixels: int) -> None:
    """Merge patches of fewer than ``min_pixels`` into their largest neighbour, in place.

    Patches are 4-connected; nodata never changes and never grows. GDAL keeps a few numbers per
    patch; pixels go through a memory-mapped file beside the raster, so memory stays small.
    """
    if min_pixels <= 1:
        return
    path = Path(path)
    raw_path, sieved_path = (path.with_name(f"{path.name}.{end}") for end in ("raw", "sieved"))
    try:
        with _writing(path), rasterio.open(path) as src:
            grid = grid_of(src)
            min_pixels = min(min_pixels, grid.width * grid.height)  # GDAL takes no more
            out = _mapped(raw_path, src.dtypes[0], src.shape)
            with rasterio.open(_validity(path, grid, src.nodata)) as mask:
                gdal_sieve(rasterio.band(src, 1), min_pixels, out=out, mask=rasterio.band(mask, 1))
            dtype, nodata = src.dtypes[0], src.nodata
        with RowWriter(sieved_path, grid, dtype, nodata=nodata) as writer:
            for row in range(0, grid.height, TILE):
                writer.write(np.asarray(out[row : row + TILE]))
        del out
        os.replace(sieved_path, path)
    finally:
        for leftover in (raw_path, sieved_path):
            leftover.unlink(missing_ok=True)


def count_values(path: str | Path, values: int) -> NDArray[np.int64]:
    """Return how many pixels of a class raster have each value below ``values``."""
    counts = np.zeros(values, np.int64)
    with _writing(Path(path)), rasterio.open(path) as src:
        for row in range(0, src.height, TILE):
            rows = src.read(1, window=Window(0, row, src.width, min(TILE, src.height - row)))
            counts += np.bincount(rows.ravel(), minlength=values)[:values]
    return counts


def read_decimated(path: str | Path, shape: tuple[int, int]) -> NDArray[Any]:
    """Return a class raster at another size [h, w], by nearest neighbours."""
    with _writing(Path(path)), rasterio.open(path) as src:
        decimated: NDArray[Any] = src.read(1, out_shape=shape)
    return decimated


def _mapped(path: Path, dtype: str, shape: tuple[int, int]) -> "np.memmap[Any, Any]":
    """Return an array that lives in a file whose room on the disk is taken beforehand.

    A disk that fills up under a mapped file kills the process instead of raising an error.
    """
    size = max(1, math.prod(shape)) * np.dtype(dtype).itemsize
    with open(path, "wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)
    return np.memmap(path, dtype, "r+", shape=shape)


def _validity(path: Path, grid: Grid, nodata: float | None) -> str:
    """Return a virtual raster that is 0 where the class raster is nodata, 1 elsewhere."""
    virtual = VirtualRaster(os.path.abspath(path), grid)
    table = {0: 1} if nodata is None else {int(nodata) - 1: 1, int(nodata): 0}
    virtual.add_lookup(1, table)
    return virtual.text


def write_class_raster(
    classes_path: str | Path,
    destination: str | Path,
    legend: Legend,
    tags: Mapping[str, str],
    creation_options: tuple[tuple[str, str], ...] = (),
) -> list[Path]:
    """Write classes as a Cloud-Optimized GeoTIFF with colours, names, tags and overviews.

    Returns the files written: category names may need a ``.aux.xml`` beside the raster, which
    belongs to it. Raises OutputError.
    """
    with _writing(Path(destination)), rasterio.open(classes_path) as src:
        grid = grid_of(src)
    virtual = VirtualRaster(os.path.abspath(classes_path), grid)
    classes = json.dumps(dict(zip(map(str, legend.values), legend.names, strict=True)))
    virtual.tag({**tags, "CLASSES": classes})
    virtual.add_band(
        1, legend.dtype, legend.nodata, "class", colours=legend.colours, categories=legend.names
    )
    return _write_cog(virtual, Path(destination), "MODE", creation_options)


def write_probabilities(
    probabilities_path: str | Path,
    destination: str | Path,
    names: tuple[str, ...],
    tags: Mapping[str, str],
    creation_options: tuple[tuple[str, str], ...] = (),
) -> list[Path]:
    """Write percentages (uint8, nodata 255, one band per class) as a COG; returns its files."""
    with _writing(Path(destination)), rasterio.open(probabilities_path) as src:
        grid = grid_of(src)
    virtual = VirtualRaster(os.path.abspath(probabilities_path), grid)
    virtual.tag(dict(tags))
    for index, name in enumerate(names, 1):
        virtual.add_band(index, "uint8", 255, name)
    return _write_cog(virtual, Path(destination), "AVERAGE", creation_options)


def check_creation_options(creation_options: tuple[tuple[str, str], ...]) -> None:
    """Refuse ``--co`` options that GDAL's COG driver would ignore, or that would spoil the map.

    Raises UsageError. GDAL only warns about the first, so a small raster is written in memory.
    """
    if not creation_options:
        return
    for name, value in creation_options:
        if name.upper() in _SPOILING:
            raise UsageError(f"--co {name}: {_SPOILING[name.upper()]}")
        if name.upper().endswith("RESAMPLING") and value.upper() not in _RESAMPLINGS:
            raise UsageError(
                f"--co {name}={value}: it would make classes of others; take "
                f"{' or '.join(_RESAMPLINGS)}"
            )
    grid = Grid(1, 1, Affine.identity())
    gdal_logger = logging.getLogger(_OPTION_LOGGER)
    heard = _Heard()
    level, propagate = gdal_logger.level, gdal_logger.propagate
    gdal_logger.addHandler(heard)
    gdal_logger.setLevel(logging.WARNING)
    gdal_logger.propagate = False
    try:
        with _quiet(), MemoryFile() as source, MemoryFile() as copy:
            with source.open(driver="GTiff", width=1, height=1, count=1, dtype="uint8") as dst:
                dst.write(np.zeros((1, 1, 1), np.uint8))
            virtual = VirtualRaster(source.name, grid)
            virtual.add_band(1, "uint8", 255, colours=((0, 0, 0),))
            with rasterio.open(virtual.text) as src:
                options = _cog_options("MODE", creation_options)
                rasterio.shutil.copy(src, copy.name, driver="COG", **options)
    except GDAL_ERRORS as error:
        raise UsageError(f"--co: {error}") from error
    finally:
        gdal_logger.removeHandler(heard)
        gdal_logger.setLevel(level)
        gdal_logger.propagate = propagate
    if heard.messages:
        raise UsageError(f"--co: {heard.messages[0]} (the outputs are Cloud-Optimized GeoTIFF)")


class _Heard(logging.Handler):
    """What GDAL warned about."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the message without rasterio's prefix."""
        self.messages.append(record.getMessage().split(" in ", 1)[-1])


def _cog_options(resampling: str, creation_options: tuple[tuple[str, str], ...]) -> dict[str, str]:
    """Return the COG driver's options; the user's come last."""
    return {
        "COMPRESS": "DEFLATE",
        "BIGTIFF": "IF_SAFER",
        "OVERVIEW_RESAMPLING": resampling,
        **{name.upper(): value for name, value in creation_options},
    }


def _write_cog(
    virtual: VirtualRaster,
    destination: Path,
    resampling: str,
    creation_options: tuple[tuple[str, str], ...],
) -> list[Path]:
    options = _cog_options(resampling, creation_options)
    for stale in companions(destination):
        stale.unlink(missing_ok=True)
    with _writing(destination), rasterio.open(virtual.text) as src, _LIBTIFF_SILENT:
        rasterio.shutil.copy(src, destination, driver="COG", **options)
    _check_whole(destination)
    return files_of(destination)


def grid_of(src: Any) -> Grid:
    """Return the grid of an open raster that `RowWriter` wrote."""
    gcps, gcps_crs = src.gcps
    crs = (gcps_crs if gcps else src.crs) or None
    return Grid(src.width, src.height, src.transform, crs, tuple(gcps))


def _placement(grid: Grid) -> dict[str, Any]:
    if grid.gcps:
        return {"gcps": list(grid.gcps), "crs": grid.crs or CRS()}
    placed: dict[str, Any] = {} if grid.transform.is_identity else {"transform": grid.transform}
    return placed | ({"crs": grid.crs} if grid.crs else {})


def _check_whole(path: Path) -> None:
    """Read every pixel once, a row of tiles at a time; raises OutputError for a cut file."""
    with _writing(path), rasterio.open(path) as src:
        step = src.block_shapes[0][0]
        for row in range(0, src.height, step):
            src.read(window=Window(0, row, src.width, min(step, src.height - row)))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without rasterio's warning about rasters in pixel coordinates."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn every way in which writing a file fails into one line about that file."""
    try:
        with _quiet():
            yield
    except (*GDAL_ERRORS, OSError) as error:
        raise OutputError(f"cannot write {shown(path)}: {_reason(path, error)}") from error


def _reason(path: Path, error: Exception) -> str:
    """Return one line; GDAL does not say that a disk is full, only which bytes did not arrive."""
    if not path.parent.is_dir():
        return f"there is no folder {path.parent}"
    cause = error.__cause__ or error
    reason = (str(cause).strip() or type(cause).__name__).splitlines()[0].rstrip(".")
    if disk_is_full(path.parent, error):
        return DISK_FULL
    if "TIFF" in reason or "block" in reason.lower():
        free_mb = disk_usage(path.parent).free / 1e6
        return f"{reason}; the disk may be full ({free_mb:.0f} MB are free there)"
    return reason

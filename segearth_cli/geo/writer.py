"""Working rasters, written by rows: the classes of a scene before they become a map."""

import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from shutil import disk_usage
from threading import Lock
from types import TracebackType
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning
from rasterio.features import sieve as gdal_sieve
from rasterio.windows import Window

from segearth_cli.errors import OutputError
from segearth_cli.geo.failures import DISK_FULL, GDAL_ERRORS, disk_is_full
from segearth_cli.geo.grid import Grid
from segearth_cli.geo.virtual import VirtualRaster
from segearth_cli.staging import shown

_PARTS = 16  # of a grid, down and across, that each have their own size of pixels
TILE = 256  # pixels; rows are handed to GDAL in whole tiles


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


LIBTIFF_SILENT = _Silent()


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
        with writing(self.path):
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
        with writing(self.path), LIBTIFF_SILENT:
            self._dataset.write(self._rows[:, : self._held, : end - first], window=window)
        self._written += self._held
        self._held = 0

    def close(self) -> None:
        """Finish the file and check that all of it arrived; raises OutputError if not."""
        if self._dataset.closed:
            return
        with writing(self.path), LIBTIFF_SILENT:
            self._dataset.close()
        self._check_panel()
        check_whole(self.path)

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
            with suppress(*GDAL_ERRORS, OSError), quiet(), LIBTIFF_SILENT:
                self._dataset.close()


def sieve(path: str | Path, min_pixels: int) -> None:
    """Merge patches of fewer than ``min_pixels`` into their largest neighbour, in place.

    The smallest go first: GDAL leaves small patches that have small neighbours only. Patches are
    4-connected; nodata never changes and never grows. GDAL keeps a few numbers per patch; pixels
    go through memory-mapped files beside the raster, so memory stays small.
    """
    if min_pixels <= 1:
        return
    path = Path(path)
    *raw_paths, sieved_path = (
        path.with_name(f"{path.name}.{end}") for end in ("raw", "before", "sieved")
    )
    try:
        with writing(path), rasterio.open(path) as src:
            grid = grid_of(src)
            min_pixels = min(min_pixels, grid.width * grid.height)  # GDAL takes no more
            out, before = (_mapped(file, src.dtypes[0], src.shape) for file in raw_paths)
            with rasterio.open(_validity(path, grid, src.nodata)) as mask:
                source = rasterio.band(src, 1)
                for pixels in (*_doubling(2, min_pixels), min_pixels):
                    gdal_sieve(source, pixels, out=out, mask=rasterio.band(mask, 1))
                    source, out, before = out, before, out
            out = source
            dtype, nodata = src.dtypes[0], src.nodata
        with RowWriter(sieved_path, grid, dtype, nodata=nodata) as writer:
            for row in range(0, grid.height, TILE):
                writer.write(np.asarray(out[row : row + TILE]))
        del out, before, source
        os.replace(sieved_path, path)
    finally:
        for leftover in (*raw_paths, sieved_path):
            leftover.unlink(missing_ok=True)


def _doubling(first: int, end: int) -> Iterator[int]:
    """``first``, twice that, and so on, below ``end``."""
    while first < end:
        yield first
        first *= 2


def count_values(
    path: str | Path, values: int, grid: Grid
) -> tuple[NDArray[np.int64], NDArray[np.float64] | None]:
    """Return how many pixels of a class raster have each value below ``values``, and their area.

    The latter in square metres, with pixels as large as they are in each part of the ``grid``;
    None without a CRS.
    """
    lefts, tops = (
        np.linspace(0, side, min(_PARTS, side) + 1).astype(int).tolist()
        for side in (grid.width, grid.height)
    )
    rows_in, columns_in = ([sum(ends) / 2 for ends in pairwise(e)] for e in (tops, lefts))
    known = grid.pixel_areas_m2(
        np.tile(columns_in, len(rows_in)), np.repeat(rows_in, len(columns_in))
    )
    of_pixels = np.zeros((len(rows_in), len(columns_in)))
    if known is not None:
        of_pixels = known.reshape(of_pixels.shape)
    counts, areas = np.zeros(values, np.int64), np.zeros(values)
    with writing(Path(path)), rasterio.open(path) as src:
        for (top, bottom), line in zip(pairwise(tops), of_pixels, strict=True):
            for row in range(top, bottom, TILE):
                rows = src.read(1, window=Window(0, row, src.width, min(TILE, bottom - row)))
                for part, area in zip(np.split(rows, lefts[1:-1], axis=1), line, strict=True):
                    found = np.bincount(part.ravel(), minlength=values)[:values]
                    counts += found
                    areas += found * area
    return counts, None if known is None else areas


def read_decimated(path: str | Path, shape: tuple[int, int]) -> NDArray[Any]:
    """Return a class raster at another size [h, w], by nearest neighbours."""
    with writing(Path(path)), rasterio.open(path) as src:
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


def check_whole(path: Path) -> None:
    """Read every pixel once, a row of tiles at a time; raises OutputError for a cut file."""
    with writing(path), rasterio.open(path) as src:
        step = src.block_shapes[0][0]
        for row in range(0, src.height, step):
            window = Window(0, row, src.width, min(step, src.height - row))
            for band in src.indexes:  # alone: memory does not grow with their number
                src.read(band, window=window)


@contextmanager
def quiet() -> Iterator[None]:
    """Without rasterio's warning about rasters in pixel coordinates."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn every way in which writing a file fails into one line about that file."""
    try:
        with quiet():
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

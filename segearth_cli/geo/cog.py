"""Class rasters and probabilities as Cloud-Optimized GeoTIFF."""

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path

import rasterio
import rasterio.shutil
from rasterio import Affine
from rasterio.io import MemoryFile

from segearth_cli.errors import UsageError
from segearth_cli.geo.companions import companions, files_of
from segearth_cli.geo.failures import GDAL_ERRORS, reason
from segearth_cli.geo.grid import Grid
from segearth_cli.geo.legend import Legend
from segearth_cli.geo.virtual import VirtualRaster
from segearth_cli.geo.writer import LIBTIFF_SILENT, check_whole, grid_of, quiet, writing

# creation options that would give pixels other values, or another place
_SPOILING = dict.fromkeys(
    ("NBITS", "MAX_Z_ERROR", "MAX_Z_ERROR_OVERVIEW"), "it would change the values of classes"
) | dict.fromkeys(
    ("TILING_SCHEME", "TARGET_SRS", "RES", "EXTENT", "ZOOM_LEVEL", "ZOOM_LEVEL_STRATEGY"),
    "the map keeps its scene's grid; --gsd, --bbox and --dst-crs choose another",
)
_TRIED = 1024  # pixels a side of a raster that has overviews
_RESAMPLINGS = ("NEAREST", "MODE")  # that make no class of two
_OPTION_LOGGER = "rasterio._env"  # where GDAL's warnings about creation options arrive


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
    with writing(Path(destination)), rasterio.open(classes_path) as src:
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
    with writing(Path(destination)), rasterio.open(probabilities_path) as src:
        grid = grid_of(src)
    virtual = VirtualRaster(os.path.abspath(probabilities_path), grid)
    virtual.tag(dict(tags))
    for index, name in enumerate(names, 1):
        virtual.add_band(index, "uint8", 255, name)
    return _write_cog(virtual, Path(destination), "AVERAGE", creation_options)


def check_creation_options(creation_options: tuple[tuple[str, str], ...]) -> None:
    """Refuse ``--co`` options that GDAL's COG driver would ignore, or that would spoil the map.

    Raises UsageError. GDAL only warns about the first, so an empty raster is written in memory.
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
        if name.upper() == "BLOCKSIZE" and not _is_block(value):  # GDAL would abort the process
            raise UsageError(f"--co {name}={value}: give a multiple of 16 from 64 to 4096, as 512")
    gdal_logger = logging.getLogger(_OPTION_LOGGER)
    heard = _Heard()
    level, propagate = gdal_logger.level, gdal_logger.propagate
    gdal_logger.addHandler(heard)
    gdal_logger.setLevel(logging.WARNING)
    gdal_logger.propagate = False
    try:
        with quiet(), MemoryFile() as source, MemoryFile() as copy:
            size = {"width": _TRIED, "height": _TRIED}
            with source.open(driver="GTiff", count=1, dtype="uint8", sparse_ok=True, **size):
                pass
            virtual = VirtualRaster(source.name, Grid(_TRIED, _TRIED, Affine.identity()))
            virtual.add_band(1, "uint8", 255, colours=((0, 0, 0),))
            with rasterio.open(virtual.text) as src:
                # a thread that fails says less
                options = _cog_options("MODE", (("NUM_THREADS", "1"), *creation_options))
                rasterio.shutil.copy(src, copy.name, driver="COG", **options)
    except (*GDAL_ERRORS, SystemError) as error:
        raise UsageError(f"--co: {reason(error).split('.tif: ')[-1]}") from error
    finally:
        gdal_logger.removeHandler(heard)
        gdal_logger.setLevel(level)
        gdal_logger.propagate = propagate
    if heard.messages:
        raise UsageError(f"--co: {heard.messages[0]} (the outputs are Cloud-Optimized GeoTIFF)")


def _is_block(text: str) -> bool:
    return text.isdecimal() and 64 <= int(text) <= 4096 and int(text) % 16 == 0


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
        "NUM_THREADS": "ALL_CPUS",  # the same bytes, sooner
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
    names = rasterio.Env(GDAL_PAM_ENABLED="YES")  # of the classes, whatever the environment says
    with names, writing(destination), rasterio.open(virtual.text) as src, LIBTIFF_SILENT:
        rasterio.shutil.copy(src, destination, driver="COG", **options)
    check_whole(destination)
    return files_of(destination)

"""A file as the scene reads it: opened, its bands picked, warped.

Everything that depends on how GDAL names, opens and resamples files is here.
"""

import logging
import math
import os
import stat
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import rasterio
from rasterio.crs import CRS
from rasterio.enums import MaskFlags, Resampling
from rasterio.errors import NodataShadowWarning, NotGeoreferencedWarning
from rasterio.vrt import WarpedVRT

from segearth_cli.errors import SceneError
from segearth_cli.geo.bands import BandFacts
from segearth_cli.geo.failures import GDAL_ERRORS, CPLE_BaseError, damage, reason
from segearth_cli.geo.grid import Grid, parse_crs, warp_target
from segearth_cli.geo.region import BEYOND_DATA
from segearth_cli.geo.remote import is_remote, retry_settings
from segearth_cli.geo.virtual import VirtualRaster
from segearth_cli.names import is_path, stack_files
from segearth_cli.options import SceneOptions

_CACHE_BYTES = 256 << 20  # rasterio takes bytes; GDAL's own default grows with the machine
_URI_SCHEMES = ("http", "ftp", "s3", "gs", "az", "oss", "zip", "tar", "gzip", "file")
_PLAUSIBLE = 10**10  # pixels that no file is asked about
_DENSEST = 2000  # pixels a byte: the best compression of a single value makes a thousand
_MOST_BANDS = 10_000  # GDAL and rasterio take minutes to list more
_COARSER = 1.02  # times the pixel area: from here on pixels are averaged

# rasters in pixel coordinates are told of by us, and beside nodata alpha is looked at as well
CHATTER = (NotGeoreferencedWarning, NodataShadowWarning)

logger = logging.getLogger(__name__)


@contextmanager
def environment(settings: dict[str, Any]) -> Iterator[None]:
    """GDAL's settings for one call, without rasterio's warnings that say nothing new."""
    with rasterio.Env(**settings), warnings.catch_warnings():
        for kind in CHATTER:
            warnings.simplefilter("ignore", kind)
        yield


def gdal_settings(source: str) -> dict[str, Any]:
    """Return sensible GDAL settings; whatever the user has set stays.

    No GDAL_NUM_THREADS: decoding GeoTIFF in threads, GDAL (3.10) returns zeros, and no error, for
    a remote read that fails. No PNGs read as a whole at once: of one that is cut short, GDAL (3.10)
    then returns what its memory held before, and no error.
    """
    settings: dict[str, Any] = {
        "GDAL_CACHEMAX": _CACHE_BYTES,
        "GDAL_PNG_WHOLE_IMAGE_OPTIM": "NO",
    }
    if is_remote(source):
        settings |= {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", **retry_settings()}
    taken = rasterio.env.getenv() if rasterio.env.hasenv() else {}
    return {
        name: value
        for name, value in settings.items()
        if name not in os.environ and name not in taken
    }


@contextmanager
def opened(source: str, virtual: VirtualRaster | None = None) -> Iterator[Any]:
    """Open a raster, or what is made of it; raises SceneError for what is none."""
    if virtual is None and (files := stack_files(source)) is not None:
        virtual = band_stack(files)
    if virtual is None and is_path(source) and _is_stream(source):
        raise SceneError(f"cannot open {source}: it is a pipe or a device, and GDAL needs a file")
    try:
        src = rasterio.open(virtual.text if virtual else source)
    except (*GDAL_ERRORS, ValueError) as error:
        raise SceneError(f"cannot open {source}: {_why_not(source, error)}") from error
    with src:
        if src.count == 0:
            names = src.subdatasets
            inside = (
                f"it holds {len(names)} rasters; name one of them: {', '.join(names)}"
                if names
                else "it holds no raster bands"
            )
            raise SceneError(f"cannot open {source}: {inside}")
        if src.count > _MOST_BANDS:
            raise SceneError(f"cannot open {source}: it claims {src.count} bands; it is damaged")
        try:
            yield src
        except CPLE_BaseError as error:  # which rasterio lets through where it reads metadata
            raise SceneError(f"cannot read {source}: {damage(error)}") from error


@contextmanager
def open_raster(source: str) -> Iterator[Any]:
    """The same under GDAL's settings for where it lies: what is read at once, and closed."""
    with environment(gdal_settings(source)), opened(source) as src:
        yield src


def is_raster(source: str) -> bool:
    """Whether GDAL can open a raster; servers are not asked."""
    if is_remote(source):
        return True
    try:
        with open_raster(source):
            return True
    except SceneError:
        return False


def _is_stream(path: str) -> bool:
    """Whether something is there that is neither a file nor a folder."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _why_not(source: str, error: BaseException) -> str:
    if source.lstrip().startswith("{") and not os.path.exists(source):
        return (
            'it is no JSON object of band names and files, as {"red": "B04.tif", ...}; write '
            "backslashes twice, or as slashes"
        )
    if isinstance(error, UnicodeEncodeError):
        return "its name is not UTF-8, which GDAL needs; rename it"
    local = is_path(source)
    if local and not os.path.exists(source) and ":" not in source:
        return "there is no such file"
    if local and os.path.isdir(source):
        return f"it is a folder; name the rasters in it, for instance {source.rstrip('/')}/*.tif"
    if local and os.path.isfile(source) and os.path.getsize(source) == 0:
        return "the file is empty (0 bytes)"
    if local and zipfile.is_zipfile(source):
        return f"it is a zip archive; name a raster in it, as /vsizip/{source}/NAME.tif"
    if "not recognized as being in a supported file format" in reason(error):
        return "it is not a raster that GDAL can read"
    return damage(error)


def check_claim(source: str, grid: Grid, share: float) -> None:
    """Refuse a GeoTIFF of whose grid a share claims more pixels than a file of its size can hold.

    What is made of a file may well be larger.

    Raises SceneError: going through them would take days, of nothing.
    """
    for file in (stack_files(source) or {"": source}).values():
        if not file.lower().endswith((".tif", ".tiff")) or not os.path.isfile(file):
            continue
        pixels, size = grid.width * grid.height * share, os.path.getsize(file)
        if pixels > _PLAUSIBLE and pixels > _DENSEST * size:
            raise SceneError(
                f"{file} claims {grid.width} x {grid.height} pixels in {size} bytes: it is "
                "empty or damaged; name a part of it with --bbox"
            )


def band_facts(src: Any) -> BandFacts:
    """Return what the file says about its bands."""
    return BandFacts(
        dtypes=tuple(src.dtypes),
        descriptions=tuple(description or "" for description in src.descriptions),
        colours=tuple(colour.name for colour in src.colorinterp),
        tags=src.tags(),
        scales=tuple(zip(src.scales, src.offsets, strict=True)),
        units=tuple(unit or "" for unit in src.units),
    )


def _grid_of(src: Any, source: str) -> Grid:
    gcps, gcps_crs = src.gcps
    placed_by_gcps = bool(gcps) and src.crs is None and src.transform.is_identity
    grid = Grid(
        width=src.width,
        height=src.height,
        transform=src.transform,
        crs=(gcps_crs or None) if placed_by_gcps else (src.crs or None),
        gcps=tuple(gcps) if placed_by_gcps else (),
    )
    if not grid.is_sound:
        raise SceneError(
            f"cannot place {source}: its geotransform {tuple(grid.transform)[:6]} gives pixels no "
            "size on the ground; correct it, for instance with gdal_edit"
        )
    return grid


def file_grid(src: Any, source: str, crs: CRS | None = None) -> Grid:
    """Return the file's grid, with a warning where it has no place on the ground.

    ``crs`` is what its coordinates are in, whatever the file says.
    """
    grid = _grid_of(src, source)
    if crs is not None:
        if grid.transform.is_identity and not grid.gcps:
            raise SceneError(
                f"{source} does not say where it is: --src-crs needs a geotransform, a world file "
                "or ground control points, which gdal_translate -a_ullr or -gcp can give it"
            )
        grid = replace(grid, crs=crs)
    if grid.crs is None:
        logger.warning(
            "%s has %s: working in %s coordinates, without areas in square metres%s",
            source,
            "only RPCs (orthorectify it with gdalwarp -rpc for a map)"
            if src.rpcs
            else "no coordinate system",
            "pixel" if grid.is_in_pixels else "its own",
            "" if grid.is_in_pixels else "; segment's --src-crs says what they are in",
        )
    return grid


@dataclass(frozen=True)
class _BandFile:
    """An open file of a stack, the name of its bands, and what it says of them."""

    name: str
    file: str
    src: Any
    grid: Grid
    facts: BandFacts

    @classmethod
    def of(cls, name: str, file: str, src: Any) -> "_BandFile":
        return cls(name, file, src, _grid_of(src, file), band_facts(src))

    def check_beside(self, first: "_BandFile") -> None:
        """Refuse bands that do not go with those of the first file."""
        if self.name.isdigit():
            raise SceneError(
                f"a band is called {self.name!r}, as if it were a number; say what it shows"
            )
        if "palette" in self.facts.colours:
            raise SceneError(
                f"{self.file} has a colour table: it is no band of a scene; name it alone"
            )
        both = f"{first.file} and {self.file}"
        if not self.grid.is_same(first.grid):
            raise SceneError(f"{both} are not on one grid; put them on one with gdalwarp")
        missing = {repr(value) for value in (*first.src.nodatavals, *self.src.nodatavals)}
        if len(missing) > 1:
            raise SceneError(
                f"{both} have different nodata values: {', '.join(sorted(missing))}; give them "
                "one with gdal_translate -a_nodata"
            )

    def add_to(self, virtual: VirtualRaster) -> None:
        """Add its bands, as it describes them."""
        path, facts = _gdal_name(self.src, self.file), self.facts
        for band in facts.data:
            own = facts.descriptions[band - 1] or str(band)
            virtual.add_band(
                band,
                facts.dtypes[band - 1],
                self.src.nodatavals[band - 1],
                self.name if len(facts.data) == 1 else f"{self.name} {own}",
                path=path,
                bits=self.src.tags(band, ns="IMAGE_STRUCTURE").get("NBITS"),
                masked=facts.alpha is not None or _has_mask(self.src, band),
                scale=facts.scale_of(band),
                unit=facts.units[band - 1],
            )


def band_stack(files: Mapping[str, str]) -> VirtualRaster:
    """Return the bands of files on one grid as one raster, each called as its file is here.

    Raises SceneError for files that do not make one.
    """
    with ExitStack() as resources:
        parts = [
            _BandFile.of(name, file, resources.enter_context(opened(file)))
            for name, file in files.items()
        ]
        virtual = VirtualRaster("", parts[0].grid)
        virtual.tag(parts[0].src.tags())
        for part in parts:
            part.check_beside(parts[0])
            part.add_to(virtual)
        return virtual


def _gdal_name(src: Any, source: str) -> str:
    """Return the name by which GDAL itself opens the source (rasterio also takes URIs)."""
    if stack_files(source) is not None:
        return str(src.name)
    if "://" in source and source.startswith(_URI_SCHEMES):
        return str(src.files[0]) if src.files else source
    return os.path.abspath(source) if os.path.exists(source) else source


def picked_bands(
    src: Any,
    source: str,
    grid: Grid,
    facts: BandFacts,
    bands: tuple[int, ...],
    nodata: float | None,
    as_floats: bool = False,
    for_warping: bool = False,
) -> tuple[VirtualRaster, int, int | None]:
    """Return the chosen bands as a virtual raster, their number, and its alpha band.

    A colour table is expanded, complex values become amplitudes, a mask becomes an alpha band.
    ``as_floats`` are NaN where a band has no data, whatever the others have. Warping knows alpha or
    one nodata value for all bands: ``for_warping`` alpha tells where there is data if each band has
    its own value, if there is a mask besides, or if floats beyond `BEYOND_DATA` are nodata.
    """
    virtual = VirtualRaster(_gdal_name(src, source), grid)
    if facts.colours[bands[0] - 1] == "palette" and len(bands) == 1:
        _add_palette(virtual, src, bands[0], nodata)
        return virtual, 3, 4
    dtype = np.result_type(
        *(facts.dtypes[b - 1] for b in bands if not facts.dtypes[b - 1].startswith("complex")),
        *(np.float32 for b in bands if facts.dtypes[b - 1].startswith("complex")),
    ).name
    declared = [src.nodatavals[band - 1] if nodata is None else nodata for band in bands]
    mask = f"mask,{bands[0]}" if _has_mask(src, bands[0]) else ""
    alpha = None if facts.alpha in bands else facts.alpha
    masks = [part for part in (mask, alpha) if part]
    has_nodata = not all(map(_is_silent, declared))
    differ = len(set(map(repr, declared))) > 1
    by_alpha = for_warping and not as_floats and has_nodata and (differ or bool(masks))
    for band, missing in zip(bands, [None] * len(bands) if by_alpha else declared, strict=True):
        if facts.dtypes[band - 1].startswith("complex"):
            virtual.add_amplitude(band, facts.dtypes[band - 1], missing)
            continue
        if as_floats:
            virtual.add_floats(band, missing)
            continue
        if missing is None and np.dtype(dtype).kind == "f":
            missing = math.nan
        virtual.add_band(band, dtype, missing)
    if by_alpha:
        virtual.add_alpha_where_not(dict(zip(bands, declared, strict=True)), masks)
    elif masks and for_warping:  # which takes an alpha of 1 in 255 for nearly nothing
        virtual.add_opaque(*masks)
    elif alpha:
        virtual.add_alpha(alpha, facts.dtypes[alpha - 1], mask)
    elif mask:
        virtual.add_alpha(mask)
    elif for_warping and np.dtype(dtype).kind == "f" and not has_nodata:
        virtual.add_alpha_within(bands, BEYOND_DATA)
    else:
        return virtual, len(bands), None
    return virtual, len(bands), len(bands) + 1


def _is_silent(nodata: float | None) -> bool:
    """Whether a band's nodata value says no more than that NaN is none."""
    return nodata is None or math.isnan(nodata)


def is_silent_on_nodata(src: Any, bands: tuple[int, ...]) -> bool:
    """Whether the file declares no nodata value, mask or alpha for its bands."""
    return all(set(src.mask_flag_enums[b - 1]) == {MaskFlags.all_valid} for b in bands)


def undeclared_nodata(src: Any, bands: tuple[int, ...], sensor: str | None) -> float | None:
    """Return 0 for SAR digital numbers (uint16, complex) whose file is silent on nodata.

    In such products, Sentinel-1's among them, 0 is what was not measured.
    """
    digital = all(src.dtypes[b - 1].startswith(("uint16", "complex")) for b in bands)
    return 0.0 if sensor == "sar" and digital and is_silent_on_nodata(src, bands) else None


def _has_mask(src: Any, band: int) -> bool:
    """Whether a band has a mask of its own, beside nodata and alpha."""
    flags = set(src.mask_flag_enums[band - 1])
    return not flags & {MaskFlags.all_valid, MaskFlags.nodata, MaskFlags.alpha}


def _add_palette(virtual: VirtualRaster, src: Any, band: int, nodata: float | None) -> None:
    """Add red, green, blue and alpha of a band with a colour table."""
    for component in (1, 2, 3):
        virtual.add_colour(band, component)
    missing = src.nodatavals[band - 1] if nodata is None else nodata
    if missing is not None:
        virtual.add_alpha_where_not({band: missing})
    elif _has_mask(src, band):
        virtual.add_alpha(f"mask,{band}")
    else:
        virtual.add_colour(band, 4)


def warped(
    resources: ExitStack, dataset: Any, grid: Grid, options: SceneOptions, onto: Grid | None
) -> tuple[Any, Grid]:
    """Return the scene on another grid, with alpha as its last band.

    ``onto``, or the grid that ``--gsd`` and ``--dst-crs`` ask for.
    """
    crs = parse_crs(options.dst_crs, "--dst-crs") if options.dst_crs else None
    settings: dict[str, Any] = {
        "tolerance": 1e-6,  # pixels: a coarser approximation depends on how rows are read
        "NUM_THREADS": str(options.threads or "ALL_CPUS"),
        "UNIFIED_SRC_NODATA": "YES",  # 0 in one band of a valid pixel is a value
    }
    if grid.gcps and grid.crs is not None:
        # WarpedVRT uses GCPs only for the grid that it chooses itself
        own = grid.wrapped_crs
        place = {"src_crs": own, "crs": crs or grid.crs, "resampling": Resampling.cubic}
        dataset = _warped_view(resources, dataset, place | settings)
        grid = Grid(dataset.width, dataset.height, dataset.transform, dataset.crs)
        if options.gsd is None and onto is None:
            return dataset, grid
    target = onto or warp_target(grid, options.gsd, crs)
    coarser = (target.pixel_area_m2 or 0.0) > _COARSER * (grid.pixel_area_m2 or 0.0)
    place = {
        "src_crs": grid.wrapped_crs,
        "crs": target.wrapped_crs,
        "transform": target.transform,
        "width": target.width,
        "height": target.height,
        "resampling": Resampling.average if coarser else Resampling.cubic,
    }
    return _warped_view(resources, dataset, place | settings), target


def _warped_view(resources: ExitStack, dataset: Any, settings: dict[str, Any]) -> Any:
    """Return a warped dataset whose last band is alpha; ``resources`` closes it."""
    has_alpha = dataset.colorinterp[-1].name == "alpha"
    # rasterio would begin with nodata, which the view has none of: alpha stands for it
    begin = {"init_dest_nodata": False, "INIT_DEST": "0"}
    try:
        view = WarpedVRT(dataset, add_alpha=not has_alpha, **begin, **settings)
        return resources.enter_context(view)
    except (*GDAL_ERRORS, OverflowError) as error:
        raise SceneError(f"the scene cannot be resampled: {reason(error)}") from error

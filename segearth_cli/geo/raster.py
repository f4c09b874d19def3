"""Scenes: any GDAL raster as rows of a 3-channel image and a validity mask."""

import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.windows import Window

from segearth_cli.errors import SceneError
from segearth_cli.geo import sensors
from segearth_cli.geo.aoi import region_asked
from segearth_cli.geo.bands import (
    BandFacts,
    choose_bands,
    is_named_as_radar,
    named_bands,
    sensor_by_facts,
    sensor_by_values,
)
from segearth_cli.geo.grid import Grid, parse_crs
from segearth_cli.geo.missing import (
    stray_value,
    warn_about_values,
    warn_of_alpha,
    warn_of_idle_nodata,
    without,
)
from segearth_cli.geo.recorded import from_tags
from segearth_cli.geo.region import Region, Sample
from segearth_cli.geo.remote import patiently
from segearth_cli.geo.source import (
    band_facts,
    check_claim,
    environment,
    file_grid,
    gdal_settings,
    is_silent_on_nodata,
    opened,
    picked_bands,
    undeclared_nodata,
    warped,
)
from segearth_cli.geo.values import Reading, found_reading
from segearth_cli.names import title_of
from segearth_cli.options import SceneOptions

_GUESSES = {
    "sar": ("radar, in decibels", "none", "optical"),
    "optical": ("an optical image, in grey", "radar", "sar"),
}

logger = logging.getLogger(__name__)


class Scene:
    """An open raster seen as rows of a 3-channel float image plus a validity mask.

    ``grid`` is the region that is read; ``reading``, with bands and scaling, is fixed for the whole
    scene. A context manager; made by `open_scene`.
    """

    def __init__(
        self,
        region: Region,
        grid: Grid,
        reading: Reading,
        settings: dict[str, Any],
        resources: ExitStack,
        again: Callable[[], "Scene"],
    ) -> None:
        """Take over ``resources``, which `close` closes; ``again`` opens the same scene anew."""
        self.source = region.source
        self.grid = grid
        self.reading = reading
        self._region = region
        self._settings = settings
        self._resources = resources
        self._again = again

    @property
    def bands(self) -> tuple[int, ...]:
        """The file's 1-based bands."""
        return self.reading.bands

    @property
    def scaling(self) -> sensors.Scaling:
        """How values become [0, 1]."""
        return self.reading.scaling

    @property
    def sensor(self) -> str:
        """``"optical"`` or ``"sar"``."""
        return self.scaling.sensor

    @property
    def is_calibrated(self) -> bool:
        """Whether these are a radar's power or decibels, which other scenes' can be compared to."""
        is_float = np.dtype(self._region.dataset.dtypes[0]).kind == "f"
        is_amplitude = self.scaling.decibels == sensors.OF_AMPLITUDE
        return self.sensor == "sar" and not is_amplitude and (is_float or bool(self._region.scales))

    @property
    def description(self) -> str:
        """Bands and scaling in one line, for logs and tags."""
        bands = ",".join(map(str, self.bands))
        lee = self.reading.speckle
        return f"{self.sensor}, bands {bands}, scaled from {self.scaling.description}" + (
            f", Lee filter of {lee.size} x {lee.size}" if lee else ""
        )

    def read(
        self, row_off: int, rows: int, col_off: int = 0, cols: int | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return image float32 [3, rows, cols] in [0, 1] and valid [rows, cols] of some rows.

        All columns, unless some are named. Pixels without data are a neutral grey; around the
        polygons of ``--aoi`` the image is as it is, and invalid. Raises SceneError when the file
        cannot be read.
        """
        cols = self.grid.width - col_off if cols is None else cols
        for first, count, size in (
            (row_off, rows, self.grid.height),
            (col_off, cols, self.grid.width),
        ):
            if not (0 <= first and 0 < count and first + count <= size):
                raise ValueError(f"pixels {first}..{first + count} of {size}")
        return self._prepared(Window(col_off, row_off, cols, rows), (rows, cols))

    def overview(self, max_side: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return image [3, h, w] and valid [h, w] of the whole scene, at most ``max_side`` long."""
        factor = max(1.0, max(self.grid.height, self.grid.width) / max_side)
        height, width = (
            max(1, round(side / factor)) for side in (self.grid.height, self.grid.width)
        )
        window = Window(0, 0, self.grid.width, self.grid.height)
        return self._prepared(window, (height, width))

    def _prepared(
        self, window: Window, shape: tuple[int, int]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return image and valid of a window, decimated to a shape."""
        raw, valid = self._patiently(lambda region: region.read(window, shape))
        covered: NDArray[np.bool_] = np.any(valid, axis=0)  # a colour without red is one
        if self.sensor == "sar":  # and the mean of two polarisations needs both
            is_dark = (raw == 0) & self.reading.zero_is_dark
            covered &= np.all(valid | is_dark, axis=0)
        image, holds_data = sensors.prepare(raw, covered, self.scaling)
        return image, holds_data & self._region.inside(window, shape)

    def _patiently(self, read: Callable[[Region], Sample]) -> Sample:
        """What is read, from the scene opened anew where a server stopped answering."""
        failed = False

        def attempt() -> Sample:
            nonlocal failed
            if failed:
                self._reopen()
            failed = True
            with rasterio.Env(**self._settings):
                return read(self._region)

        return patiently(self.source, attempt)

    def _reopen(self) -> None:
        fresh = self._again()
        self._resources.callback(fresh.close)
        if not fresh.grid.is_same(self.grid):
            raise SceneError(f"{self.source} changed while it was read; segment it again")
        self._region = fresh._region

    def close(self) -> None:
        """Close the file; reading afterwards is an error."""
        self._resources.close()

    def __enter__(self) -> "Scene":
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the file."""
        self.close()


def open_scene(
    source: str,
    options: SceneOptions,
    onto: Grid | None = None,
    reading: Reading | None = None,
    prefix: str = "",
    radar: Callable[[], SceneOptions] | None = None,
) -> Scene:
    """Open a scene by its name (see `names`) as ``options`` say, or on a given grid.

    ``reading`` is that of the same scene, opened before by the same options: its values are not
    looked at again. ``prefix`` is that of its options' names in messages, as in ``--sar-bands``.
    ``radar`` gives the options by which the values are read if they turn out to be a radar's.
    Raises SceneError for what is no readable raster or does not meet ``--bbox`` or ``--aoi``,
    UsageError for options that the scene cannot follow. What is guessed is logged as a warning.
    """
    return patiently(source, lambda: _open_once(source, options, onto, reading, prefix, radar))


def _open_once(
    source: str,
    options: SceneOptions,
    onto: Grid | None,
    reading: Reading | None,
    prefix: str,
    radar: Callable[[], SceneOptions] | None = None,
) -> Scene:
    settings = gdal_settings(source)
    with environment(settings), ExitStack() as resources:
        with opened(source) as src:
            facts = band_facts(src)
            if from_tags(facts.tags) is not None:
                logger.warning("%s is a map that segearth made, and is read as an image", source)
            elif "CLASSES" in facts.tags:
                logger.warning("%s names classes of its values, and is read as an image", source)
            crs = parse_crs(options.src_crs, "--src-crs") if options.src_crs else None
            grid = file_grid(src, source, crs)
            known = _known_sensor(facts, options, source, prefix)
            if known == "sar" and radar is not None:
                options = radar()
            bands = choose_bands(facts, options.bands, known, prefix, options.polarisation)
            warn_of_idle_nodata(source, facts, bands, options.nodata, prefix)
            assumed = undeclared_nodata(src, bands, known) if options.nodata is None else None
            nodata = assumed if options.nodata is None else options.nodata
            silent = is_silent_on_nodata(src, bands) and "palette" not in facts.colours
            is_scaled = known == "sar" and facts.are_scaled(bands)
            is_warped = any(to is not None for to in (onto, options.gsd, options.dst_crs))
            virtual, channels, alpha = picked_bands(
                src, source, grid, facts, bands, nodata, is_scaled, is_warped
            )
            bits = src.tags(bands[0], ns="IMAGE_STRUCTURE").get("NBITS")
            own_alpha = None if facts.alpha in bands else facts.alpha
            if reading is None and own_alpha is not None and is_warped:  # then it is all or nothing
                whole = Window(0, 0, grid.width, grid.height)
                warn_of_alpha(Region(source, src, whole, 0, own_alpha, None), own_alpha)
        dataset = resources.enter_context(opened(source, virtual))
        own = grid
        if is_warped:
            dataset, grid = warped(resources, dataset, grid, options, onto)
            alpha = dataset.count
        window, shapes = region_asked(grid, options)
        share = window.width * window.height / (grid.width * grid.height)
        check_claim(source, own, share)
        grid = grid.crop(window)
        region = Region(source, dataset, window, channels, alpha, shapes)
        if reading is None:
            sample = region.sample()
            stray = stray_value(sample) if options.nodata is None else None
            counted = without(stray, sample)
            sensor = known or sensor_by_values(*counted)
            if known is None and sensor == "sar" and radar is not None:
                options = radar()
            if known is None and sample[0].dtype.kind == "f":
                _warn_of_guess(source, sensor, prefix)
            if own_alpha is not None and not is_warped:
                warn_of_alpha(region, own_alpha)
            doubtful = options.nodata is None and (silent or sensor == "sar")
            warn_about_values(sample, stray, facts, bands, source, assumed, doubtful, prefix)
            full = int(bits) if bits else None
            reading = found_reading(region, counted, facts, bands, sensor, full, options, prefix)
        if len(reading.bands) < len(bands):
            region = replace(region, channels=1)
        region = replace(region, speckle=reading.speckle, scales=reading.scales)
        again = partial(_open_once, source, options, onto, reading, prefix)
        return Scene(region, grid, reading, settings, resources.pop_all(), again)


def _warn_of_guess(source: str, sensor: str, prefix: str) -> None:
    read_as, other, word = _GUESSES[sensor]
    logger.warning(
        "%s does not say what its floats are: read as %s; if it is %s, say --%ssensor %s",
        source,
        read_as,
        other,
        prefix,
        word,
    )


def _known_sensor(facts: BandFacts, options: SceneOptions, source: str, prefix: str) -> str | None:
    if options.sensor != "auto":
        return options.sensor
    wanted = named_bands(facts, options.bands)
    if len(wanted) == 3:
        return "optical"
    known = sensor_by_facts(facts, wanted)
    if known == "sar" and not wanted and len(facts.data) > 2 and not facts.polarised():
        logger.warning(
            "%s is read as radar by its tags, though it has %d bands without names of "
            "polarisations; if it is none, say --%ssensor optical",
            source,
            len(facts.data),
            prefix,
        )
    if known is None and is_named_as_radar(facts, title_of(source)):
        logger.warning(
            "%s is read as radar by its name; if it is none, say --%ssensor optical", source, prefix
        )
        return "sar"
    return known

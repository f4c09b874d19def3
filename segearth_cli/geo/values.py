"""How a scene's values are read, by a sample of them: unit, speckle filter, scaling."""

import logging
from dataclasses import dataclass, replace

import numpy as np

from segearth_cli.errors import UsageError
from segearth_cli.geo import sensors
from segearth_cli.geo.bands import BandFacts
from segearth_cli.geo.region import Region, Sample
from segearth_cli.geo.speckle import LeeFilter
from segearth_cli.options import SceneOptions

_MOST_BEYOND = 0.25  # of the values, that a stretch cuts off

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reading:
    """How a scene's values are read: what its sample told, which another opening need not repeat.

    Attributes:
        bands: the file's 1-based bands.
        scaling: of their values.
        speckle: the filter before it; None without.
        scales: and offsets that a radar's stored values have, before both; () without.
        zero_is_dark: 0 in one of two polarisations may be measured, though it is nodata in both.
    """

    bands: tuple[int, ...]
    scaling: sensors.Scaling
    speckle: LeeFilter | None = None
    scales: tuple[tuple[float, float], ...] = ()
    zero_is_dark: bool = False


def found_reading(
    region: Region,
    sample: Sample,
    facts: BandFacts,
    bands: tuple[int, ...],
    sensor: str,
    bits: int | None,
    options: SceneOptions,
    prefix: str,
) -> Reading:
    """Return how the scene's values are read, by a sample of them."""
    stretch = sensors.parse_stretch(options.stretch, prefix)
    region, bands, sample = _settled(region, bands, sample, sensor, options)
    unit, speckle = "auto", None
    if sensor == "sar" and facts.are_scaled(bands):
        region = replace(region, scales=tuple(map(facts.scale_of, bands)))
        sample = region.measured(sample[0]), sample[1]
    dtype = sample[0].dtype.name
    if sensor == "sar":
        unit = _radar_unit(region.source, sample, facts, bands, dtype, options.sar_unit)
    if sensor == "sar" and options.speckle:
        speckle = _speckle_filter(sample, unit, options.speckle)
        logger.info("%s: %.1f looks, in %s", region.source, speckle.looks, speckle.unit)
        raw, valid = replace(region, speckle=speckle).sample()
        sample = raw, valid & sample[1]
    scaling = sensors.scaling_of(
        stretch, sensor, dtype, sample, unit, bits, prefix, options.radar_db
    )
    if sensor == "optical":
        _warn_about_stretch(stretch, sample, region.source, facts.scale_of(bands[0]), prefix)
    is_whole = np.dtype(dtype).kind in "iu"
    zero_is_dark = is_whole and scaling.decibels > 0 and options.nodata is None
    return Reading(bands, scaling, speckle, region.scales, zero_is_dark)


def _warn_about_stretch(
    stretch: sensors.Stretch,
    sample: Sample,
    source: str,
    scale: tuple[float, float],
    prefix: str,
) -> None:
    """Say so where values that were given look like measured ones, and the stored ones have a
    ``scale`` and offset, or like the percentiles of another program.
    """
    if stretch.kind != "values" or not 0 <= stretch.low < stretch.high <= 100:
        return
    raw, valid = sample
    values = raw[valid]
    beyond = float(((values < stretch.low) | (values > stretch.high)).mean()) if values.size else 0
    if beyond <= _MOST_BEYOND:
        return
    hint = f"percentiles are --{prefix}stretch p{stretch.low:g},{stretch.high:g}"
    if scale != (1.0, 0.0):
        low, high = sorted((value - scale[1]) / scale[0] for value in (stretch.low, stretch.high))
        hint = f"as they are stored these are --{prefix}stretch {low:.10g},{high:.10g}"
    logger.warning(
        "%.0f %% of the values of %s lie beyond %g to %g; %s",
        100 * beyond,
        source,
        stretch.low,
        stretch.high,
        hint,
    )


def _radar_unit(
    source: str,
    sample: Sample,
    facts: BandFacts,
    bands: tuple[int, ...],
    dtype: str,
    said: str,
) -> str:
    """Return what radar values are; ``auto`` for 8 bit, which somebody else has scaled."""
    if dtype == "uint8":
        return said
    says_amplitude = facts.are_complex(bands) or facts.say_amplitude(bands)
    if said == "auto":
        return sensors.unit_of_radar(*sample, dtype, says_amplitude)
    doubt = sensors.doubt_of_unit(said, *sample, dtype, says_amplitude)
    if doubt is not None:
        logger.warning(
            "%s is read in %s, as --sar-unit says, and looks like %s", source, said, doubt
        )
    return said


def _speckle_filter(sample: Sample, unit: str, size: int) -> LeeFilter:
    """Return the Lee filter for a radar scene."""
    lee = LeeFilter(size, "amplitude" if unit == "auto" else unit)  # 8 bits: grey values
    return replace(lee, looks=lee.looks_of(*sample))


def _settled(
    region: Region, bands: tuple[int, ...], sample: Sample, sensor: str, options: SceneOptions
) -> tuple[Region, tuple[int, ...], Sample]:
    """Drop the second band of what turned out not to be SAR: grey needs one."""
    if sensor == "sar" or len(bands) != 2:
        return region, bands, sample
    if options.bands:
        raise UsageError(
            "--bands names 2 bands of an optical scene; give one, or red,green,blue "
            "(or --sensor sar for two polarisations)"
        )
    logger.warning("of the 2 bands only band %d is used, as grey; choose with --bands", bands[0])
    return replace(region, channels=1), bands[:1], (sample[0][:1], sample[1][:1])

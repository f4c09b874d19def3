"""Values that look like missing data, and are not declared to be."""

import logging
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segearth_cli.geo.bands import BandFacts
from segearth_cli.geo.region import Region, Sample

_SHARE = 0.01  # of the pixels: fewer of one value are not worth a word
_ODD = 1e-4  # of the pixels: so few may have any value
_GAP = 0.01  # of the range of nearly all: between 0 that is missing data and the darkest pixels
_STEPS = 3  # of the data's own: a gap is wider
_MOST_BETWEEN = 0.5  # share of an alpha band that is neither transparent nor opaque
_CODES = (-9999.0, -32767.0, -32768.0, -999.0)  # by which programs usually mark missing data

logger = logging.getLogger(__name__)


def warn_of_idle_nodata(
    source: str, facts: BandFacts, bands: tuple[int, ...], nodata: float | None, prefix: str
) -> None:
    """Say so where no band can hold the number that was given; ``none`` is infinite."""
    if nodata is None or not math.isfinite(nodata):
        return
    nodata = float(nodata)
    dtypes = [facts.dtypes[band - 1] for band in bands]
    if any(_holds(dtype, nodata) for dtype in dtypes):
        return
    logger.warning(
        "--%snodata %s means nothing to %s, whose values are %s: all of them are data",
        prefix,
        _plain(nodata, "float64"),
        source,
        dtypes[0],
    )


def _holds(dtype: str, value: float) -> bool:
    if dtype.startswith("complex") or np.dtype(dtype).kind == "f":
        return True
    limits = np.iinfo(dtype)
    return value.is_integer() and limits.min <= value <= limits.max


def stray_value(sample: Sample) -> float | None:
    """Return the value of pixels that cannot be measured as the others were, if there is one.

    ``sample`` is (raw, valid), both [B, H, W]. In one of the bands more than 1 % of the pixels have
    the value, and it lies apart from the others, but for a few that may be as odd. 8 bits have
    none: 255 is a cloud.
    """
    raw, valid = sample
    if raw.dtype.itemsize == 1:
        return None
    for band, is_valid in zip(raw, valid & np.isfinite(raw), strict=True):
        values = band[is_valid]
        ends = [float(values.min()), float(values.max())] if values.size else []
        for value in dict.fromkeys((*ends, *_CODES)):
            here = values == value
            if ends and here.mean() > _SHARE and _is_apart(value, values[~here]):
                return value
    return None


def _is_apart(value: float, others: NDArray[Any]) -> bool:
    """Whether a value lies beyond the others by more than the range of nearly all of them.

    A usual code may lie closer below them, and so may 0 of whole numbers, if there is a gap. A
    code alone is one, too.
    """
    is_code = value in _CODES
    if not others.size:
        return is_code
    few = max(int(_ODD * others.size), min(2, others.size // 100))
    ranked = np.partition(others, (few, others.size - 1 - few)).astype(np.float64)
    lowest, highest = ranked[few], ranked[-1 - few]
    first, last = np.percentile(others, (1, 99))
    if value < lowest and is_code:
        return True
    least = last - first
    if value == 0 < lowest and others.dtype.kind in "iu":
        darkest = np.unique(others[others <= np.percentile(others, 10)])
        steps = np.diff(darkest)  # 8 bits in 16 come in large ones
        least = max(_GAP * least, _STEPS * steps.min()) if steps.size else least
    return bool(max(lowest - value, value - highest) > least > 0)  # of two values neither is


def without(value: float | None, sample: Sample) -> Sample:
    """Return a sample in which a band's pixels of a value are not valid, unless all would be."""
    raw, valid = sample
    others = valid if value is None else valid & (raw != value)
    return (raw, others) if others.any() else sample


def warn_about_values(
    sample: Sample,
    stray: float | None,
    facts: BandFacts,
    bands: tuple[int, ...],
    source: str,
    assumed: float | None,
    doubtful: bool,
    prefix: str,
) -> None:
    """Say what the values leave in doubt.

    ``stray`` is what `stray_value` found, ``assumed`` a nodata value that no one declared,
    ``doubtful`` whether zeros could be one.
    """
    raw, valid = sample
    zeros, covered = (raw == 0).all(axis=0), _has_data(raw, valid)
    if not covered.any():
        logger.warning("%s has no valid pixel to be segmented", source)
        return
    lost = ~np.any(valid, axis=0)  # zeros, as nothing else is declared; NaN where there are scales
    if assumed is not None and lost.any():
        logger.warning(
            "%g is taken as nodata (%.2g %% of %s), as radar products use it; if it is a "
            "measurement, say --%snodata %s",
            assumed,
            100 * lost.mean(),
            source,
            prefix,
            "nan" if facts.are_complex(bands) else "none",
        )
    if stray is not None:
        value = _plain(stray, raw.dtype)
        logger.warning(
            "more than %.0f %% of %s is exactly %s, which looks like nodata%s: left out of the "
            "stretch, and mapped all the same; if it is nodata, say --%snodata %s",
            100 * _SHARE,
            source,
            value,
            " or saturation" if stray > 0 else "",
            prefix,
            value,
        )
    elif assumed is None and doubtful and zeros[covered].mean() > _SHARE:
        logger.warning(
            "more than %.0f %% of %s is exactly 0; if those pixels are nodata, say --%snodata 0",
            100 * _SHARE,
            source,
            prefix,
        )


def warn_of_alpha(region: Region, band: int) -> None:
    """Say so where what is declared as alpha, 1-based, looks like a measurement.

    GDAL calls the fourth of four byte bands alpha unless it is told otherwise.
    """
    values = region.alpha_values()
    between = (values > values.min()) & (values < values.max())
    if between.mean() > _MOST_BETWEEN:
        logger.warning(
            "band %d of %s is declared as alpha and has many values, as near infrared has: pixels "
            "of 0 there count as nodata; if it is no alpha, gdal_edit -colorinterp_%d undefined",
            band,
            region.source,
            band,
        )


def _has_data(raw: NDArray[Any], valid: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which pixels hold data, [H, W]."""
    covered: NDArray[np.bool_] = np.any(valid, axis=0)
    covered &= np.all(np.isfinite(raw), axis=0)
    return covered


def _plain(value: float, dtype: Any) -> str:
    """Return the shortest text that a type reads as the value."""
    is_short = value.is_integer() and abs(value) < 1e15
    return f"{value:.0f}" if is_short else str(np.dtype(dtype).type(value))

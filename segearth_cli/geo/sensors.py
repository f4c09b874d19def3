"""Optical and SAR bands -> a 3-channel image in [0, 1]: which scaling.

Numpy only, so that it can be used on arrays that never were a file.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segearth_cli.errors import UsageError

NEUTRAL_GREY = 0.45  # what invalid pixels show: close to CLIP's mean, so it excites no class
SMALLEST_POWER = 1e-10  # -100 dB: below any sensor's noise floor, and its logarithm is finite
_MOST_LOOKED_AT = 1 << 16  # values that decide whether a band looks like decibels


@dataclass(frozen=True)
class Stretch:
    """``--stretch``, read: kind is auto, none, minmax, values or percentiles."""

    kind: str
    low: float = 0.0
    high: float = 1.0


def parse_stretch(text: str, prefix: str = "") -> Stretch:
    """Read ``auto``, ``none``, ``minmax``, ``LO,HI`` or ``pLO,HI``; raises UsageError."""
    option = f"--{prefix}stretch"
    plain = text.strip().lower()
    if plain in ("auto", "none", "minmax"):
        return Stretch(plain)
    kind = "percentiles" if plain.startswith("p") else "values"
    try:
        first, second = plain.removeprefix("p").split(",")
        second = second.strip().removeprefix("p") if kind == "percentiles" else second
        low, high = float(first), float(second)
    except ValueError:
        raise UsageError(
            f"{option} is {text!r}; give auto, none, minmax, LO,HI (values) or "
            "pLO,HI (percentiles, for instance p2,98)"
        ) from None
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise UsageError(f"{option} is {text!r}; the second number must be above the first")
    if kind == "percentiles" and not 0 <= low < high <= 100:
        raise UsageError(f"{option} is {text!r}; percentiles lie between 0 and 100")
    return Stretch(kind, low, high)


@dataclass(frozen=True)
class Scaling:
    """How raw values become [0, 1], fixed once per scene: one ``low`` and ``high`` per band.

    ``decibels`` is the factor of log10 that comes first: 0 (none), 10 (power), 20 (amplitude).
    """

    sensor: str
    low: tuple[float, ...]
    high: tuple[float, ...]
    decibels: int = 0

    @property
    def description(self) -> str:
        """One line for logs and tags, for instance ``83..2410, 102..2233, 64..1999``."""
        unit = f" of {self.decibels} log10" if self.decibels else ""
        spans = (f"{low:.6g}..{high:.6g}" for low, high in zip(self.low, self.high, strict=True))
        return ", ".join(spans) + unit


def scaling_of(
    stretch: Stretch,
    sensor: str,
    dtype: str,
    sample: tuple[NDArray[Any], NDArray[np.bool_]],
    unit: str = "auto",
    bits: int | None = None,
    prefix: str = "",
    radar_db: tuple[float, float] | None = None,
) -> Scaling:
    """Return the scene's one scaling.

    ``sample`` is (raw, valid), both [B, H, W], of pixels from all over the scene. ``unit`` is that
    of radar values, ``bits`` a type that is not used in full (a 1-bit mask stored as uint8).
    ``radar_db`` is taken by ``auto`` for radar in decibels or power, if its middle lies there: so a
    scene that is all water stays dark. Raises UsageError for ``none`` on float SAR values.
    """
    raw, valid = sample
    bands = len(raw)
    if stretch.kind == "none" and sensor == "sar" and np.dtype(dtype).kind == "f":
        raise UsageError(
            f"--{prefix}stretch none cannot be used: radar values in floating point have no full "
            f"scale; use --{prefix}stretch auto, or values in decibels, for instance "
            f"--{prefix}stretch -25,0"
        )
    usable = valid & np.isfinite(raw)
    values = [band[use].astype(np.float64) for band, use in zip(raw, usable, strict=True)]
    decibels = 0
    is_grey = dtype == "uint8" and unit == "auto"  # scaled for the eye by somebody else
    if sensor == "sar" and stretch.kind != "none" and not is_grey:
        unit = unit_of_radar(raw, valid, dtype) if unit == "auto" else unit
        decibels = _DECIBELS_OF[unit]
        values = [_decibels(band[band > 0], decibels) if decibels else band for band in values]
    if stretch.kind == "values":
        spans = [(stretch.low, stretch.high)] * bands
    elif (
        stretch.kind == "auto"
        and unit in _CALIBRATED
        and radar_db is not None
        and all(band.size and radar_db[0] < np.median(band) < radar_db[1] for band in values)
    ):
        spans = [radar_db] * bands
    elif stretch.kind == "none" or (stretch.kind == "auto" and dtype == "uint8" and not decibels):
        spans = [(0.0, _full_scale(dtype, bits))] * bands
    else:
        low, high = {
            "minmax": (0.0, 100.0),
            "percentiles": (stretch.low, stretch.high),
            "auto": (1.0, 99.0) if sensor == "sar" else (2.0, 98.0),
        }[stretch.kind]
        spans = [_percentiles(band, low, high) for band in values]
    return Scaling(sensor, tuple(s[0] for s in spans), tuple(s[1] for s in spans), decibels)


def _full_scale(dtype: str, bits: int | None) -> float:
    """Return the largest value of an integer type; floats are taken to lie in [0, 1]."""
    if np.dtype(dtype).kind not in "iu":
        return 1.0
    return float(2**bits - 1) if bits else float(np.iinfo(np.dtype(dtype)).max)


def _percentiles(values: NDArray[np.float64], low: float, high: float) -> tuple[float, float]:
    """Return two percentiles; a constant or empty band gets a span that maps it to the middle."""
    if values.size == 0:
        return 0.0, 1.0
    first, last = (float(v) for v in np.percentile(values, (low, high)))
    if last > first:
        return first, last
    first, last = float(values.min()), float(values.max())  # nearly constant: take what there is
    if last > first:
        return first, last
    margin = max(abs(first), 1.0) * 0.5
    return first - margin, first + margin


OF_AMPLITUDE = 20
_DECIBELS_OF = {"decibels": 0, "power": 10, "amplitude": OF_AMPLITUDE}  # factor of the logarithm
_CALIBRATED = ("decibels", "power")  # units that say how bright the ground is
_FEW_POSITIVE = 0.1  # share of the values: power less its noise has more, decibels have fewer


def unit_of_radar(
    raw: NDArray[Any], valid: NDArray[np.bool_], dtype: str, says_amplitude: bool = False
) -> str:
    """Return what radar values are: ``decibels``, ``amplitude`` or ``power``.

    ``raw`` and ``valid`` [B, H, W]. Values mostly below zero are decibels; integers, and what
    ``says_amplitude``, are amplitudes (digital numbers). Zeros do not count: they may be undeclared
    nodata.
    """
    values = raw[valid & np.isfinite(raw) & (raw != 0)]
    step = max(1, values.size // _MOST_LOOKED_AT)
    if values.size and np.median(values[::step]) < 0:
        return "decibels"
    return "amplitude" if says_amplitude or np.dtype(dtype).kind in "iu" else "power"


def doubt_of_unit(
    unit: str,
    raw: NDArray[Any],
    valid: NDArray[np.bool_],
    dtype: str,
    says_amplitude: bool = False,
) -> str | None:
    """Return what radar values look like, if not what they are said to be.

    ``unit`` and what follows is as in `unit_of_radar`. Raises UsageError for a unit that the values
    cannot have: power or amplitude where at most a tenth of them is above 0.
    """
    counted = valid & np.isfinite(raw) & (raw != 0)
    if not counted.any():
        return None
    if unit != "decibels" and (raw[counted] > 0).mean() <= _FEW_POSITIVE:
        raise UsageError(
            f"--sar-unit {unit} cannot be used: hardly a value is above 0; these may be decibels: "
            "--sar-unit decibels"
        )
    found = unit_of_radar(raw, counted, dtype, says_amplitude)
    if found == unit or (unit, found) == ("amplitude", "power"):  # floats do not tell these apart
        return None
    return found


def _decibels(values: NDArray[Any], factor: int) -> NDArray[Any]:
    """Return factor * log10(values); zero and below become the smallest power, never -inf."""
    smallest = SMALLEST_POWER if factor == 10 else SMALLEST_POWER**0.5
    scaled: NDArray[Any] = factor * np.log10(np.maximum(values, smallest))
    return scaled


def prepare(
    raw: NDArray[Any], valid: NDArray[np.bool_], scaling: Scaling
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Turn raw bands into the network's input.

    ``raw`` [B, H, W] with B = 1, 2 or 3 (complex values by their amplitude), ``valid`` [H, W].
    Returns the image, float32 [3, H, W] in [0, 1], and validity [H, W]: pixels that are not finite
    are invalid too, and invalid pixels are a neutral grey.
    """
    if raw.dtype.kind == "c":
        raw = np.abs(raw)
    if raw.dtype.kind == "f":
        valid = valid & np.isfinite(raw).all(axis=0)
    # float64 where float32 would lose digits: large integers and doubles
    exact = raw.dtype.itemsize > 2 and raw.dtype != np.float32
    with np.errstate(invalid="ignore", over="ignore"):
        values: Any = raw.astype(np.float64 if exact else np.float32)
        if scaling.decibels:
            values = _decibels(values, scaling.decibels)
        shape = (-1, 1, 1)
        low = np.asarray(scaling.low, values.dtype).reshape(shape)
        high = np.asarray(scaling.high, values.dtype).reshape(shape)
        values -= low
        values /= high - low
        scaled = np.clip(values, 0.0, 1.0, out=values).astype(np.float32, copy=False)
    if scaled.shape[0] == 2:  # two polarisations
        scaled = scaled.mean(axis=0, keepdims=True, dtype=np.float32)
    image = np.repeat(scaled, 3, axis=0) if scaled.shape[0] == 1 else scaled  # B H W -> 3 H W
    if not valid.all():
        image[:, ~valid] = NEUTRAL_GREY
    return image, valid

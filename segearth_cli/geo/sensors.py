"""Optical and SAR bands -> a 3-channel image in [0, 1]: which bands, which sensor, which scaling.

Numpy only: what a file says about its bands arrives as `BandFacts`, so all of this can be used on
arrays that never were a file.
"""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segearth_cli.errors import SceneError, UsageError

NEUTRAL_GREY = 0.45  # what invalid pixels show: close to CLIP's mean, so it excites no class
_SMALLEST_POWER = 1e-10  # -100 dB: below any sensor's noise floor, and its logarithm is finite
_MOST_LOOKED_AT = 1 << 16  # values that decide whether a band looks like decibels

_POLARISATION = re.compile(r"(?<![a-z])(vv|vh|hh|hv)(?![a-z])", re.IGNORECASE)
_COLOUR_WORDS = tuple(
    re.compile(rf"(?<![a-z]){word}(?![a-z])(?![ _-]*edge)", re.IGNORECASE)
    for word in ("red", "green", "blue")
)
_COLOUR_CODES = tuple(  # Sentinel-2 and Landsat 8/9 number red, green and blue alike
    re.compile(rf"(?<![a-z0-9])b0?{number}(?![a-z0-9])", re.IGNORECASE) for number in (4, 3, 2)
)
_SAR_TAG_NAMES = ("POLARISATION", "POLARISATIONS", "POLARIZATION", "POLARIZATIONS", "SAR_MODE")
_SAR_TAG_WORDS = re.compile(
    r"(?<![a-z])(sentinel-?1[a-d]?|sar|terrasar-?x|radarsat(-?[12])?|cosmo-?skymed|iceye|"
    r"capella|umbra|alos-?2?[ _-]?palsar-?2?|risat|envisat[ _-]asar|grd|slc)(?![a-z])",
    re.IGNORECASE,
)
_SAR_TAG_PLACES = re.compile(
    r"description|software|mission|sensor|satellite|instrument|platform|"
    r"product|identifier|title|source",
    re.IGNORECASE,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BandFacts:
    """What a file says about its bands, one entry per band; ``colours`` are GDAL's names."""

    dtypes: tuple[str, ...]
    descriptions: tuple[str, ...]
    colours: tuple[str, ...]
    tags: Mapping[str, str]

    @property
    def count(self) -> int:
        """How many bands there are, alpha included."""
        return len(self.dtypes)

    @property
    def alpha(self) -> int | None:
        """The 1-based alpha band; a band called near infrared is none, whatever its type says."""
        for index in range(self.count, 0, -1):
            named = self.descriptions[index - 1].strip()
            if self.colours[index - 1] == "alpha" and (not named or "alpha" in named.lower()):
                return index
        return None

    @property
    def data(self) -> tuple[int, ...]:
        """The 1-based bands that hold measurements."""
        return tuple(index for index in range(1, self.count + 1) if index != self.alpha)

    def are_complex(self, bands: tuple[int, ...]) -> bool:
        """Whether some of the bands hold complex numbers."""
        return any(self.dtypes[band - 1].startswith("complex") for band in bands)

    def polarised(self, *wanted: str) -> tuple[int, ...]:
        """The bands named VV, VH, HH or HV, or as wanted, alone (a ratio of two names none)."""
        named = {
            index: {p.upper() for p in _POLARISATION.findall(self.descriptions[index - 1])}
            for index in self.data
        }
        return tuple(
            index
            for index, names in named.items()
            if len(names) == 1 and (not wanted or names <= set(wanted))
        )

    def by_description(self) -> tuple[int, ...]:
        """Red, green and blue by the bands' names, empty unless all three are found."""
        for patterns in (_COLOUR_WORDS, _COLOUR_CODES):
            found = [
                next((i for i in self.data if p.search(self.descriptions[i - 1])), 0)
                for p in patterns
            ]
            if all(found) and len(set(found)) == 3:
                return tuple(found)
        return ()

    def by_colour(self) -> tuple[int, ...]:
        """Red, green and blue by colour interpretation, empty unless all three are found."""
        found = tuple(
            next((i for i in self.data if self.colours[i - 1] == colour), 0)
            for colour in ("red", "green", "blue")
        )
        return found if all(found) else ()


def named_bands(facts: BandFacts, wanted: tuple[str, ...], prefix: str = "") -> tuple[int, ...]:
    """Return the 1-based bands that ``--bands`` names by number or description.

    Raises UsageError for a number or name that the scene does not have; ``prefix`` is that of the
    option's name, here and below.
    """
    names = [description.strip().lower() for description in facts.descriptions]
    indexes = []
    for entry in wanted:
        text = entry.strip()
        if text.isdigit() and 1 <= int(text) <= facts.count:
            indexes.append(int(text))
        elif text.lower() in names and text:
            indexes.append(names.index(text.lower()) + 1)
        else:
            known = ", ".join(d for d in facts.descriptions if d)
            raise UsageError(
                f"--{prefix}bands: the scene has no band {text!r}; it has bands 1 to {facts.count}"
                + (f", named {known}" if known else "")
            )
    return tuple(indexes)


def sensor_by_facts(facts: BandFacts, wanted: tuple[int, ...] = ()) -> str | None:
    """Return ``"sar"`` or ``"optical"`` where the file's own words settle it, else None."""
    polarised = facts.polarised()
    if wanted and set(wanted) <= set(polarised):
        return "sar"
    if facts.are_complex(facts.data):
        return "sar"
    if facts.by_description() or facts.by_colour() or "palette" in facts.colours:
        return "optical"
    if polarised or _tags_say_sar(facts.tags):
        return "sar"
    return "optical" if len(facts.data) > 2 else None


def sensor_by_values(raw: NDArray[Any], valid: NDArray[np.bool_]) -> str:
    """Tell float bands in decibels (mostly below zero, above -100) from an optical image.

    ``raw`` and ``valid`` [B, H, W].
    """
    if raw.dtype.kind != "f" or raw.shape[0] > 2:
        return "optical"
    values = raw[valid & np.isfinite(raw)].astype(np.float64)
    if values.size == 0:
        return "optical"
    low, middle = np.percentile(values, (1, 50))
    return "sar" if -100.0 < low < middle < -1.0 else "optical"


def choose_bands(
    facts: BandFacts,
    wanted: tuple[str, ...],
    sensor: str | None,
    prefix: str = "",
    polarisation: str = "",
) -> tuple[int, ...]:
    """Return the 1-based bands to read: 1 or 3 for optical, 1 or 2 for SAR.

    ``sensor`` None means that the values will tell. Of radar bands that ``polarisation`` is taken
    if there is one and no other is wanted. Raises UsageError for a count of ``--bands``
    that the sensor cannot use, SceneError for a scene without a band of measurements.
    """
    if not facts.data:
        raise SceneError("the scene has no band besides alpha: there is nothing to segment")
    if wanted:
        indexes = named_bands(facts, wanted, prefix)
        allowed = {"sar": (1, 2), "optical": (1, 3), None: (1, 2, 3)}[sensor]
        if len(indexes) not in allowed:
            raise UsageError(
                f"--{prefix}bands names {len(indexes)} bands; give "
                + ("one or two polarisations" if sensor == "sar" else "one, or red,green,blue")
            )
        return indexes
    if sensor == "sar":
        return facts.polarised(polarisation)[:1] or (facts.polarised() or facts.data)[:2]
    return facts.by_description() or facts.by_colour() or _first_bands(facts, sensor)


def _first_bands(facts: BandFacts, sensor: str | None) -> tuple[int, ...]:
    """Return the bands of a file that names no colours: grey, or the first three."""
    if len(facts.data) <= 2:
        return facts.data[:1] if sensor == "optical" else facts.data
    if len(facts.data) > 3:
        logger.warning(
            "nothing says which of the %d bands are red, green and blue: using %s; choose with "
            "--bands (a Sentinel-2 stack that starts at B02 needs --bands 3,2,1)",
            len(facts.data),
            ",".join(map(str, facts.data[:3])),
        )
    return facts.data[:3]


def _tags_say_sar(tags: Mapping[str, str]) -> bool:
    for name, value in tags.items():
        if name.upper() in _SAR_TAG_NAMES:
            return True
        if _SAR_TAG_PLACES.search(name) and _SAR_TAG_WORDS.search(value):
            return True
    return False


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
        low, high = (float(part) for part in plain.removeprefix("p").split(","))
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


_DECIBELS_OF = {"decibels": 0, "power": 10, "amplitude": 20}  # factor of the logarithm
_CALIBRATED = ("decibels", "power")  # units that say how bright the ground is
_FEW_POSITIVE = 0.1  # share of the values: power less its noise has more, decibels have fewer


def unit_of_radar(
    raw: NDArray[Any], valid: NDArray[np.bool_], dtype: str, says_amplitude: bool = False
) -> str:
    """Return what radar values are: ``decibels``, ``amplitude`` or ``power``.

    ``raw`` and ``valid`` [B, H, W]. Values mostly below zero are decibels; integers, and what
    ``says_amplitude``, are amplitudes (digital numbers).
    """
    values = raw[valid & np.isfinite(raw)]
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

    ``unit`` and what follows is as in `unit_of_radar`. Zeros do not count: they may be undeclared
    nodata. Raises UsageError for a unit that the values cannot have: power or amplitude where at
    most a tenth of them is above 0.
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
    smallest = _SMALLEST_POWER if factor == 10 else _SMALLEST_POWER**0.5
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
        values = raw.astype(np.float64 if exact else np.float32)
        if scaling.decibels:
            values = _decibels(values, scaling.decibels)
        shape = (-1, 1, 1)
        low = np.asarray(scaling.low, values.dtype).reshape(shape)
        high = np.asarray(scaling.high, values.dtype).reshape(shape)
        scaled = np.clip((values - low) / (high - low), 0.0, 1.0).astype(np.float32)
    if scaled.shape[0] == 2:  # two polarisations
        scaled = scaled.mean(axis=0, keepdims=True, dtype=np.float32)
    image = np.repeat(scaled, 3, axis=0) if scaled.shape[0] == 1 else scaled  # B H W -> 3 H W
    image[:, ~valid] = NEUTRAL_GREY
    return image, valid

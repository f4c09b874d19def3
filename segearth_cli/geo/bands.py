"""Which bands of a scene are red, green and blue, or polarisations; which sensor took them.

Numpy only: what a file says about its bands arrives as `BandFacts`.
"""

import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segearth_cli.errors import SceneError, UsageError

_POLARISATION = re.compile(r"(?<![a-z])(vv|vh|hh|hv)(?![a-z])", re.IGNORECASE)
_COLOUR_WORDS = {
    word: re.compile(rf"(?<![a-z])(?<!infra[ _-]){word}(?![a-z])(?![ _-]*edge)", re.IGNORECASE)
    for word in ("red", "green", "blue")
}
_INFRARED_FROM = 5  # among the numbers of Sentinel-2's and Landsat's bands
_INFRARED = re.compile(r"(?<![a-z])(nir|swir|infra[ _-]?red)", re.IGNORECASE)
_UNIT_TAGS = re.compile(r"unit|scale|calibration|radiometr|quantity", re.IGNORECASE)
_BAND_CODE = re.compile(r"(?<![a-z0-9])b0?(\d{1,2})(?![a-z0-9])", re.IGNORECASE)
_LANDSAT_4 = {1, 2, 3, 4, 5, 7}  # to 7, without the thermal band
_SAR_TAG_NAMES = ("POLARISATION", "POLARISATIONS", "POLARIZATION", "POLARIZATIONS", "SAR_MODE")
_SAR_TAG_WORDS = re.compile(
    r"(?<![a-z])(sentinel-?1[a-d]?|sar|terrasar-?x|radarsat(-?[12])?|cosmo-?skymed|iceye|"
    r"capella|umbra|alos-?2?[ _-]?palsar-?2?|risat|envisat[ _-]asar|grd|slc)(?![a-z])",
    re.IGNORECASE,
)
_MISSION = re.compile(
    r"(?<![a-z])(s1[a-d]?|sentinel-?1[a-d]?|iceye|capella|umbra|alos|palsar|radarsat|rs2|rcm|tsx|"
    r"tdx|terrasar|csk|cosmo|risat|nisar|saocom|novasar|envisat|ers)(?![a-z])",
    re.IGNORECASE,
)
_PRODUCT = re.compile(r"(?<![a-z])(vv|vh|hh|hv|grd|slc|gec|rtc|gtc|mli)(?![a-z])", re.IGNORECASE)
_MOSAIC = re.compile(r"(?<![a-z])sl_(hh|hv)(?![a-z])", re.IGNORECASE)
_SAR_TAG_PLACES = re.compile(
    r"description|software|mission|sensor|satellite|instrument|platform|"
    r"product|identifier|title|source",
    re.IGNORECASE,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BandFacts:
    """What a file says about its bands, one entry per band; ``colours`` are GDAL's names.

    Measured is stored value x scale + offset, in units.
    """

    dtypes: tuple[str, ...]
    descriptions: tuple[str, ...]
    colours: tuple[str, ...]
    tags: Mapping[str, str]
    scales: tuple[tuple[float, float], ...] = ()  # scale and offset
    units: tuple[str, ...] = ()

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

    def scale_of(self, band: int) -> tuple[float, float]:
        """Scale and offset of a 1-based band; none where they make no sense."""
        scale, offset = self.scales[band - 1] if self.scales else (1.0, 0.0)
        return (scale, offset) if scale and math.isfinite(scale + offset) else (1.0, 0.0)

    def are_scaled(self, bands: tuple[int, ...]) -> bool:
        """Whether some of the bands have a scale or an offset."""
        return any(self.scale_of(band) != (1.0, 0.0) for band in bands)

    def say_amplitude(self, bands: tuple[int, ...]) -> bool:
        """Whether the bands are said to hold amplitudes."""
        said = [value for name, value in self.tags.items() if _UNIT_TAGS.search(name)]
        said += [text[b - 1] for text in (self.descriptions, self.units) if text for b in bands]
        return any("amplitude" in text.lower() for text in said)

    @property
    def tags_say_sar(self) -> bool:
        """Whether a tag names a radar."""
        return any(
            name.upper() in _SAR_TAG_NAMES
            or (_SAR_TAG_PLACES.search(name) and _SAR_TAG_WORDS.search(value))
            for name, value in self.tags.items()
        )

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
        return self._by_word() or self._by_letter() or self._by_code()

    def _by_word(self) -> tuple[int, ...]:
        """Red, green and blue that are called so."""
        names = self._indices
        found = [
            names.get(colour)  # before coastal blue and green I
            or next((i for i in self.data if word.search(self.descriptions[i - 1])), 0)
            for colour, word in _COLOUR_WORDS.items()
        ]
        return tuple(found) if all(found) and len(set(found)) == 3 else ()

    def _by_letter(self) -> tuple[int, ...]:
        """Red, green and blue that are called R, G and B."""
        names = self._indices
        return tuple(names[letter] for letter in "rgb") if names.keys() >= {*"rgb"} else ()

    @property
    def _indices(self) -> dict[str, int]:
        """The first band of every name."""
        return {self.descriptions[i - 1].strip().lower(): i for i in reversed(self.data)}

    def _by_code(self) -> tuple[int, ...]:
        """Red, green and blue by the numbers that their satellite gives bands."""
        bands = self._codes()
        numbers = _red_green_blue(set(bands), self._names)
        return tuple(bands[n] for n in numbers) if bands.keys() >= set(numbers) else ()

    def _codes(self) -> dict[int, int]:
        """Bands by the numbers that their satellite gives them."""
        return {
            int(code[1]): index
            for index in reversed(self.data)
            if (code := _BAND_CODE.search(self.descriptions[index - 1]))
        }

    def names_infrared(self, bands: tuple[int, ...]) -> bool:
        """Whether some of the bands are called infrared; where nothing says that they are colours,
        also by a number that no colour has.
        """
        beyond = {index for number, index in self._codes().items() if number >= _INFRARED_FROM}
        words = any(_INFRARED.search(self.descriptions[b - 1]) for b in bands)
        return words or (bands != self.by_colour() and not beyond.isdisjoint(bands))

    @property
    def _names(self) -> str:
        return " ".join(self.descriptions).lower()

    @property
    def could_be_landsat_4(self) -> bool:
        """Whether red, green and blue have numbers that Landsat 4 to 7 counts otherwise."""
        numbers = set(self._codes())
        return (
            not self._by_word()
            and {1, 2, 3, 4} <= numbers
            and max(numbers) <= 7
            and numbers != _LANDSAT_4
            and not (6 in numbers and "sr_b" in self._names)
            and not any(name in self._names for name in ("sur_refl", "b0", "b8a"))
        )

    def by_colour(self) -> tuple[int, ...]:
        """Red, green and blue by colour interpretation, empty unless all three are found."""
        found = tuple(
            next((i for i in self.data if self.colours[i - 1] == colour), 0)
            for colour in ("red", "green", "blue")
        )
        return found if all(found) else ()


def _red_green_blue(numbers: set[int], names: str) -> tuple[int, int, int]:
    """Return the numbers of red, green and blue of the satellite that has such bands."""
    if "sur_refl" in names:  # MODIS
        return 1, 4, 3
    if numbers == _LANDSAT_4:
        return 3, 2, 1
    return 4, 3, 2  # Sentinel-2 and Landsat 8 and 9


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
        elif len(polarised := facts.polarised(text.upper())) == 1:  # of Sigma0_VV_db
            indexes.extend(polarised)
        else:
            known = ", ".join(d for d in facts.descriptions if d)
            raise UsageError(
                f"--{prefix}bands: the scene has no band {text!r}; it has bands 1 to {facts.count}"
                + (f", named {known}" if known else "")
            )
    return tuple(indexes)


def polarisation_of(names: tuple[str, ...]) -> str:
    """The one polarisation that bands are named by; empty where it is none, or several."""
    found = {name.upper() for text in names for name in _POLARISATION.findall(text)}
    return found.pop() if len(found) == 1 else ""


def sensor_by_facts(facts: BandFacts, wanted: tuple[int, ...] = ()) -> str | None:
    """Return ``"sar"`` or ``"optical"`` where the file's own words settle it, else None.

    Pictures of radar bands have colours, too: a band's name says more.
    """
    polarised = facts.polarised()
    if wanted and set(wanted) <= set(polarised):
        return "sar"
    if facts.are_complex(facts.data):
        return "sar"
    if facts.by_description() or "palette" in facts.colours:
        return "optical"
    if polarised:
        return "sar"
    if facts.by_colour():
        return "optical"
    if facts.tags_say_sar:
        return "sar"
    return "optical" if len(facts.data) > 2 else None


def is_named_as_radar(facts: BandFacts, name: str) -> bool:
    """Whether a file of one or two grey bands has a name as radar products have: of a mission and a
    product or polarisation, or as JAXA's mosaics.
    """
    stem = name.rpartition(".")[0] or name
    is_grey = len(facts.data) <= 2 and not facts.by_colour()
    is_product = _MISSION.search(stem) and _PRODUCT.search(stem)
    return is_grey and bool(is_product or _MOSAIC.search(stem))


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
    found = facts.by_description()
    if found and facts.could_be_landsat_4:
        logger.warning(
            "bands 4, 3, 2 are taken as red, green and blue, as of Landsat 8 and Sentinel-2; of "
            "Landsat 4 to 7 say --bands with those numbered 3, 2, 1"
        )
    bands = found or facts.by_colour() or _first_bands(facts, sensor)
    if not found and len(bands) == 3 and facts.names_infrared(bands):
        logger.warning(
            "bands %s are used as red, green and blue, and are called %s; choose with --bands",
            ",".join(map(str, bands)),
            ", ".join(facts.descriptions[band - 1] for band in bands),
        )
    return bands


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

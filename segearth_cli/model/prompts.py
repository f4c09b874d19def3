"""Words: class names, synonyms, backgrounds, colours and presets.

Nothing here imports torch, so that the command line can parse classes fast: what becomes of words
in the network is in `text`.
"""

from __future__ import annotations

import colorsys
import csv
import io
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path

from segearth_cli.errors import UsageError
from segearth_cli.geo.datasets import read_dataset
from segearth_cli.names import listed, plain_name, shortened
from segearth_cli.options import (
    BACKGROUND_NAMES,
    DEFAULT_BACKGROUND,
    UNCLASSIFIED,
    SegmentOptions,
)
from segearth_cli.presets import read_presets
from segearth_cli.tables import table_line
from segearth_cli.words import Words

logger = logging.getLogger(__name__)

Colour = tuple[int, int, int]

BACKGROUND_COLOUR: Colour = (0, 0, 0)
_QUOTE_AFTER_BAR = re.compile(r'\|\s*"(?!")')

# Colours that maps of these things usually have; the first word of a class decides.
USUAL_COLOURS: dict[str, Colour] = {
    "building": (214, 47, 39),
    "roof": (214, 47, 39),
    "house": (214, 47, 39),
    "city": (168, 50, 50),
    "village": (222, 120, 90),
    "road": (255, 190, 0),
    "street": (255, 190, 0),
    "pavement": (168, 168, 168),
    "railway": (60, 60, 60),
    "water": (38, 115, 210),
    "river": (38, 115, 210),
    "lake": (38, 115, 210),
    "sea": (18, 75, 150),
    "tree": (20, 110, 40),
    "forest": (20, 110, 40),
    "vegetation": (76, 165, 60),
    "greenery": (76, 165, 60),
    "grass": (150, 205, 90),
    "grassland": (150, 205, 90),
    "cropland": (225, 205, 140),
    "farmland": (225, 205, 140),
    "agricultural": (225, 205, 140),
    "field": (225, 205, 140),
    "land": (205, 170, 125),
    "bareland": (190, 150, 105),
    "barren": (190, 150, 105),
    "bare": (190, 150, 105),
    "sand": (235, 215, 160),
    "car": (150, 60, 200),
    "vehicle": (150, 60, 200),
}


# what a colour is mixed with, white or black, and how much of it, for classes like others
MOST_NAMED = 20  # classes, in a message
_SHADES = ((255, 0.45), (0, 0.4), (255, 0.7), (0, 0.65))


@dataclass(frozen=True)
class Vocabulary(Words):
    """The classes of a map, in the order of their raster values.

    Attributes:
        classes: synonyms per class, its name first; the background class, if any, comes first.
        has_background: whether the first class is the background (raster value 0). Without one,
            values start at 1 and 0 means "below the threshold".
        colours: one per class.
    """

    classes: tuple[tuple[str, ...], ...]
    has_background: bool
    colours: tuple[Colour, ...]

    @property
    def values(self) -> tuple[int, ...]:
        """Raster value of each class."""
        first = 0 if self.has_background else 1
        return tuple(range(first, first + len(self.classes)))


def build_vocabulary(options: SegmentOptions) -> Vocabulary:
    """The vocabulary that the options describe: background first, then the others in order.

    Raises:
        UsageError: a class is named twice, a word stands for two classes, or nothing but background
            is left.
    """
    classes = list(options.classes)
    said: list[Colour | None] = [*options.colours] or [None] * len(classes)
    colours = class_colours(classes, said)
    names = [synonyms[0].casefold() for synonyms in classes]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"class {name!r} is named twice; join synonyms with | instead")
    has_background = options.background is not None
    if not has_background and UNCLASSIFIED in names:
        raise UsageError(
            f"{UNCLASSIFIED} is what pixels below the threshold are called where there is no "
            "background; give that class another name"
        )
    if options.background is not None:
        wanted = options.background[0].casefold()
        own = names.index(wanted) if wanted in names else None
        if own is None and options.background == DEFAULT_BACKGROUND:
            own = next((i for i, name in enumerate(names) if name in BACKGROUND_NAMES), None)
        if own is None:
            background, colour = options.background, BACKGROUND_COLOUR
        else:
            given = () if options.background == DEFAULT_BACKGROUND else options.background
            background = tuple(dict.fromkeys((*classes.pop(own), *given)))
            colour = colours.pop(own)
            colour = BACKGROUND_COLOUR if said[own] is None else colour
        classes.insert(0, background)
        colours.insert(0, colour)
    if len(classes) == int(has_background):
        raise UsageError("the only class is the background; name something to look for")
    class_of: dict[str, str] = {}
    for synonyms in classes:
        name = synonyms[0]
        for word in map(str.casefold, synonyms):
            other = class_of.setdefault(word, name)
            if other != name:
                raise UsageError(
                    f"{word!r} is a word of two classes, {other} and {name}: the first would get "
                    "all of it; take it from one"
                )
    return Vocabulary(tuple(classes), has_background, tuple(colours))


def parse_classes(text: str) -> tuple[tuple[str, ...], ...]:
    """``"water|river,building"`` as synonyms per class.

    Quotes around a class keep its commas, as in CSV: see `class_text`.

    Raises:
        UsageError: a class or a synonym is empty, or quotes do not go around a class.
    """
    origin, line = f"--classes {text!r}", " ".join(text.splitlines())
    _check_quotes(line, origin)
    try:
        (row,) = csv.reader([line], skipinitialspace=True, strict=True) if line else [[""]]
    except csv.Error as error:
        raise UsageError(
            f"{origin}: {error}; quotes go around a whole class, as in 'road,\"street, paved\"'"
        ) from error
    return tuple(_synonyms(part.split("|"), origin) for part in row)


def class_text(classes: Sequence[Sequence[str]]) -> str:
    """Synonyms per class as `parse_classes` reads them, unless a name holds a bar."""
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow("|".join(synonyms) for synonyms in classes)
    return line.getvalue()


def read_classes(path: Path) -> tuple[tuple[str, ...], ...]:
    """Classes of a text file: one a line, synonyms after commas or bars; ``#`` comments a line.

    Quotes around a name keep its commas, as in CSV.

    Raises:
        UsageError: the file is missing, not text, a table or a list of another form, or names no
            class.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text; convert it with iconv"
        raise UsageError(f"cannot read the classes of {path}: {reason}") from error
    lines = [line.strip() for line in lines]
    classes = [line for line in lines if line and not line.startswith("#")]
    if not classes:
        raise UsageError(f"{path} names no class; write one a line, synonyms after commas")
    if (odd := table_line(classes)) is not None:
        raise UsageError(
            f"{path} is no plain list of words, with {shortened(odd)!r}; write a class a line, its "
            "synonyms after commas, without numbers, colours, semicolons and headers"
        )
    for line in classes:
        _check_quotes(line, f"{path}: {line!r}")
    try:
        rows = [*csv.reader(classes, skipinitialspace=True, strict=True)]
    except csv.Error as error:
        raise UsageError(f"{path}: {error}; quotes go around a whole name, in one line") from error
    return tuple(_synonyms("|".join(words).split("|"), str(path)) for words in rows)


def _check_quotes(line: str, origin: str) -> None:
    """Refuse quotes after a bar, which CSV would take for a part of the word."""
    if _QUOTE_AFTER_BAR.search(line):
        raise UsageError(
            f"{origin}: quotes after a bar; they go around a whole class, bars included, as in "
            "'road,\"water|river, wide\"'"
        )


def _synonyms(words: list[str], origin: str) -> tuple[str, ...]:
    synonyms = tuple(" ".join(word.split()) for word in words)
    if not all(synonyms):
        raise UsageError(
            f"an empty class name in {origin}; separate names with single commas, and "
            "put quotes around a list with spaces"
        )
    return synonyms


def class_colours(
    classes: Sequence[tuple[str, ...]], said: Sequence[Colour | None]
) -> list[Colour]:
    """A colour per class: the one that is ``said``, else one of its own.

    What is usually drawn alike comes in shades.
    """
    taken = {colour for colour in said if colour is not None}
    colours = []
    for index, (synonyms, colour) in enumerate(zip(classes, said, strict=True)):
        if colour is None:
            usual = usual_colour(synonyms, index)
            shades = (_mixed(usual, tone, share) for tone, share in _SHADES)
            series = (_of_series(index + more * len(classes)) for more in count(1))
            colour = next(c for c in chain((usual,), shades, series) if c not in taken)
            taken.add(colour)
        colours.append(colour)
    return colours


def _mixed(colour: Colour, tone: int, share: float) -> Colour:
    red, green, blue = (round(part + (tone - part) * share) for part in colour)
    return red, green, blue


def usual_colour(synonyms: tuple[str, ...], index: int) -> Colour:
    """The colour that maps give such a class, or the next of an endless distinct series."""
    for word in (word for name in synonyms for word in name.casefold().split()):
        colour = USUAL_COLOURS.get(word) or USUAL_COLOURS.get(word.removesuffix("s"))
        if colour:
            return colour
    return _of_series(index)


def _of_series(index: int) -> Colour:
    hue = (0.83 + index * 0.61803398875) % 1.0  # golden-ratio steps never come close to repeating
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.65 + 0.25 * (index % 2), 0.9 - 0.25 * (index % 3))
    return round(red * 255), round(green * 255), round(blue * 255)


@dataclass(frozen=True)
class ClassChoice:
    """What the user, or a preset, says of the classes; the fields are those of the options."""

    classes: tuple[tuple[str, ...], ...]
    background: tuple[str, ...] | None
    colours: tuple[Colour | None, ...] = ()
    threshold: float = 0.0

    def without_background(self) -> ClassChoice:
        """The same, and every pixel gets one of the other classes."""
        kept = [index for index, own in enumerate(self.classes) if own != self.background]
        classes = tuple(self.classes[index] for index in kept)
        colours = tuple(self.colours[index] for index in kept) if self.colours else ()
        return replace(self, classes=classes, colours=colours, background=None)

    def coloured(self, said: Sequence[tuple[str, Colour]]) -> ClassChoice:
        """The same, with other colours for some classes by any of their names.

        Raises:
            UsageError: there is no such class.
        """
        number = {plain_name(word): n for n, own in enumerate(self.classes) for word in own}
        chosen: dict[int, Colour] = {}
        for name, colour in said:
            if plain_name(name) not in number:
                known = listed([own[0] for own in self.classes], MOST_NAMED)
                raise UsageError(
                    f"--colours: there is no class {name!r}; there are {known} (the background has "
                    "a colour of its own where it is one of --classes)"
                )
            if chosen.setdefault(number[plain_name(name)], colour) != colour:
                raise UsageError(f"--colours gives {name!r} two colours; give one")
        usual = self.colours or (None,) * len(self.classes)
        colours = tuple(chosen.get(n, colour) for n, colour in enumerate(usual))
        return replace(self, colours=colours if said else self.colours)


def choose_classes(
    text: str | None,
    file: Path | None,
    preset: str | None,
    background: str | None = None,
    no_background: bool = False,
) -> ClassChoice:
    """The classes of the one way in which they were given.

    Args:
        text: as ``parse_classes`` reads it.
        file: as ``read_classes`` reads it.
        preset: a name of ``presets.json``, which has a background of its own or none.
        background: ``|``-separated words for everything else.
        no_background: leave the class of everything else out.

    Raises:
        UsageError: they were given in no way or in several, or cannot be understood.
    """
    ways = {"--classes": text, "--classes-file": file, "--preset": preset}
    given = [name for name, value in ways.items() if value is not None]
    if len(given) != 1:
        raise UsageError(
            "say what to look for, for instance --classes building,road,water"
            if not given
            else f"{' and '.join(given)} exclude each other; give one"
        )
    if background is not None and (no_background or preset is not None):
        other = "--no-background" if no_background else "--preset, which has its own,"
        raise UsageError(f"--background and {other} exclude each other; give one")
    if preset is not None:
        choice = read_preset(preset)
        return choice.without_background() if no_background else choice
    classes = parse_classes(text) if text is not None else read_classes(Path(str(file)))
    odd = [word for words in classes for word in words if ";" in word]
    if odd:
        logger.warning(
            "%r is taken as one name: classes are parted by commas, synonyms by bars; in a file "
            "classes by lines and synonyms by commas",
            shortened(odd[0]),
        )
    if no_background:
        return ClassChoice(classes, None)
    if background is None:
        return ClassChoice(classes, DEFAULT_BACKGROUND)
    return ClassChoice(classes, _synonyms(background.split("|"), f"--background {background!r}"))


def preset_names() -> tuple[str, ...]:
    """The names that `read_preset` knows."""
    return tuple(read_presets())


def read_preset(name: str) -> ClassChoice:
    """Classes, background, colours and threshold of one of the authors' datasets.

    Raises:
        UsageError: no preset has that name, or it says something that no dataset has.
    """
    if name not in preset_names():
        known = ", ".join(preset_names())
        raise UsageError(f"no preset is named {name!r}; choose one of {known}")
    preset = read_dataset(name)
    index = preset.background_index
    fallback = () if index is None else preset.classes[index]  # of pixels under the threshold
    without = (None,) * (len(preset.classes) - len(preset.palette))
    return ClassChoice(
        preset.classes,
        background=fallback if BACKGROUND_NAMES.intersection(map(str.casefold, fallback)) else None,
        colours=(*preset.palette, *without) if preset.palette else (),
        threshold=preset.threshold,
    )

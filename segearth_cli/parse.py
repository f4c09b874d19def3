"""Texts of the command line as values: sizes, lists, pairs, boxes."""

from __future__ import annotations

import csv
import io
import math
import os
import re
from collections.abc import Iterable

from segearth_cli.errors import UsageError
from segearth_cli.names import file_and_layer, is_number


def parse_size(text: str) -> tuple[int, int]:
    """``"1500x1200"``, or ``"1500"`` for a square, as pixels across and down.

    Raises:
        UsageError: these are not whole numbers.
    """
    try:
        width, _, height = text.lower().partition("x")
        return int(width), int(height or width)
    except ValueError as error:
        raise UsageError(f"--size {text!r} is not WIDTHxHEIGHT, for instance 20000x2000") from error


def parse_shard(text: str | None) -> tuple[int, int]:
    """``"2/8"`` as part and number of parts; all in one for ``None``.

    Raises:
        UsageError: these are not whole numbers.
    """
    if text is None:
        return 1, 1
    try:
        part, parts = (int(number) for number in text.split("/"))
    except ValueError as error:
        raise UsageError(f"--shard {text!r} is not PART/PARTS, for instance 2/8") from error
    return part, parts


def parse_memory(text: str | None) -> int | None:
    """``"2GB"`` or ``"2GiB"`` (both 2 * 2**30), ``"512M"`` or a number of bytes as bytes.

    Raises:
        UsageError: this is no size.
    """
    if text is None:
        return None
    plain = text.strip().upper().removesuffix("B").removesuffix("I")
    units = {"K": 10, "M": 20, "G": 30, "T": 40}
    number, power = (plain[:-1], units[plain[-1]]) if plain[-1:] in units else (plain, 0)
    try:
        size = float(number) * 2**power
    except ValueError as error:
        raise UsageError(f"--max-memory {text!r} is no size; give one such as 2GB") from error
    if not 1 <= size < math.inf:
        raise UsageError(f"--max-memory {text!r} is no size; give one such as 2GB")
    return int(size)


def parse_nodata(text: str) -> float:
    """A pixel value, or for ``none`` one that no pixel has.

    Raises:
        ValueError: it is no number.
    """
    return math.inf if text.strip().lower() == "none" else float(text)


def parse_list(text: str | None) -> tuple[str, ...]:
    """``"a,b"`` as its parts; nothing for ``None``."""
    return tuple(part.strip() for part in text.split(",") if part.strip()) if text else ()


def parse_names(option: str, text: str | None) -> tuple[str, ...]:
    """``"a,b"`` as names of 0, 1, ...; nothing for ``None``.

    Raises:
        UsageError: one of them is empty.
    """
    names = tuple(part.strip() for part in text.split(",")) if text else ()
    if "" in names:
        raise UsageError(f"{option} {text!r} leaves a name empty")
    return names


def parse_numbers(option: str, text: str | None) -> tuple[float, ...]:
    """``"0,0.3"`` as numbers; nothing for ``None``.

    Raises:
        UsageError: these are no numbers.
    """
    try:
        return tuple(float(part) for part in parse_list(text))
    except ValueError as error:
        raise UsageError(f"{option} {text!r} is no list of numbers such as 0,0.3") from error


def parse_whole(option: str, text: str | None) -> tuple[int, ...]:
    """``"448,896"`` as whole numbers; nothing for ``None``.

    Raises:
        UsageError: these are no whole numbers.
    """
    try:
        return tuple(int(part) for part in parse_list(text))
    except ValueError as error:
        raise UsageError(f"{option} {text!r} is no list of whole numbers") from error


def parse_label_values(text: str | None) -> tuple[tuple[int | str | None, int | str], ...]:
    """``"1=2,house=building,*=0"`` as pairs of a label's value or name and the map's.

    ``None`` stands for all other labels.

    Raises:
        UsageError: these are no such pairs.
    """
    pairs = [[_value_or_name(end) for end in part.split("=")] for part in parse_list(text)]
    if not all(len(pair) == 2 and "" not in pair for pair in pairs):
        raise UsageError(
            f"--label-values {text!r} is not LABEL=MAP,..., for instance 1=1,2=road,*=0"
        )
    return tuple((None if old == "*" else old, new) for old, new in pairs)


def parse_colours(text: str | None) -> tuple[tuple[str, tuple[int, int, int]], ...]:
    """``"building=#d73027,water=#4575b4"`` as names with red, green and blue.

    Quotes around a pair keep its commas, as in CSV.

    Raises:
        UsageError: these are no such pairs.
    """
    if text is None:
        return ()
    pairs = []
    for part in next(csv.reader([" ".join(text.splitlines())], skipinitialspace=True), []):
        name, _, colour = (end.strip() for end in part.rpartition("="))
        if not name or not re.fullmatch("#?[0-9a-fA-F]{6}", colour):
            raise UsageError(
                f"--colours {text!r} is not CLASS=#rrggbb,..., for instance building=#d73027"
            )
        red, green, blue = bytes.fromhex(colour.removeprefix("#"))
        pairs.append((name, (red, green, blue)))
    return tuple(pairs)


def colour_text(colours: Iterable[tuple[str, tuple[int, int, int]]]) -> str:
    """Names with red, green and blue as `parse_colours` reads them."""
    line = io.StringIO()
    pairs = (f"{name}=#{bytes(colour).hex()}" for name, colour in colours)
    csv.writer(line, lineterminator="").writerow(pairs)
    return line.getvalue()


def parse_values(text: str | None) -> tuple[int | str, ...]:
    """``"255,-1,cloud"`` as values and names."""
    return tuple(_value_or_name(part) for part in parse_list(text))


def _value_or_name(text: str) -> int | str:
    text = text.strip()
    return int(text) if is_number(text) else text


def parse_labelled(text: str) -> tuple[str, str]:
    """``"scene.tif=labels.gpkg"`` as its two parts.

    Where there are several ``=``, the last one after which a file's name begins.

    Raises:
        UsageError: a part is missing.
    """
    before_layer, _ = file_and_layer(text)
    ends = [index for index, character in enumerate(before_layer) if character == "="]
    splits = [(text[:end], text[end + 1 :]) for end in ends if text[:end] and text[end + 1 :]]
    if not splits:
        raise UsageError(f"{text!r} is not SCENE=LABELS, for instance scene.tif=labels.gpkg")
    there = [split for split in splits if os.path.exists(file_and_layer(split[1])[0])]
    return there[-1] if there else splits[-1]


def parse_bands(text: str | None) -> tuple[str, ...]:
    """``"4,3,2"`` or ``"B04,B03,B02"`` as band names; nothing for ``None``."""
    return tuple(part.strip() for part in text.split(",")) if text else ()


def parse_bbox(
    text: str | None, crs: str | None
) -> tuple[tuple[float, float, float, float] | None, str | None]:
    """A box and its coordinate system, which a box as QGIS copies it carries with it.

    Args:
        text: ``"left,bottom,right,top"``, between commas or else spaces, or QGIS's
            ``"left,right,bottom,top [CRS]"``.
        crs: of the box, where it carries none.

    Raises:
        UsageError: these are not four numbers, or two coordinate systems are named, or one of no
            box.
    """
    if text is None:
        if crs is not None:
            raise UsageError(f"--bbox-crs {crs} is that of --bbox, and there is none")
        return None, None
    numbers, of_qgis, own_crs = text.partition("[")
    try:
        parts = numbers.split(",") if "," in numbers else numbers.split()
        first, second, third, fourth = map(float, parts)
    except ValueError as error:
        raise UsageError(
            f"--bbox {text!r} is not four numbers; give left,bottom,right,top"
        ) from error
    if not of_qgis:
        return (first, second, third, fourth), crs
    if crs is not None:
        raise UsageError(f"--bbox {text!r} names its coordinate system; leave --bbox-crs away")
    return (first, third, second, fourth), own_crs.rstrip().removesuffix("]") or None


def parse_pairs(texts: list[str]) -> tuple[tuple[str, str], ...]:
    """``NAME=VALUE`` creation options as pairs.

    Raises:
        UsageError: there is no ``=``.
    """
    pairs = []
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise UsageError(f"--co {text!r} is not NAME=VALUE")
        pairs.append((name, value))
    return tuple(pairs)

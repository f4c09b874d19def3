"""Tables of classes, which are no lists of words; imports nothing heavy."""

from __future__ import annotations

import re
from collections.abc import Sequence

_HEADERS = frozenset(
    "id fid value code index class classes class_id class_name classname name label category "
    "colour color synonyms words names".split()
)
_BETWEEN = re.compile(r"[,;|\t]")  # cells of a line
_CODE = re.compile(r"[+-]?\d+(\.\d+)?|#[0-9a-f]{6}")  # a value or a colour, and no word
# lists and YAML, JSON, XML; values before words; comments or colours behind them; tables
_NO_WORDS = re.compile(r"^[-*] |^[\[{<]|^\d+[.)]\s|^\d+\s*[:=]|^\w+:(\s|$)|\s[#=]|[;\t]")


def table_line(lines: Sequence[str]) -> str | None:
    """A line that shows that most are no words: a header, values, colours, YAML or JSON.

    None of what may well be a list of words, which may hold a number or be called ``class``.
    """
    cells = _cells(lines[0])
    if len(lines) > 1 and len(cells) > 1 and _HEADERS.issuperset(cells):
        return lines[0]
    if _are_numbered(lines):
        return lines[0]
    odd = [
        line for line in lines if _NO_WORDS.search(line) or any(map(_CODE.fullmatch, _cells(line)))
    ]
    return odd[0] if 2 * len(odd) > len(lines) else None


def _are_numbered(lines: Sequence[str]) -> bool:
    """Whether lines begin with 0, 1, 2 or 1, 2, 3 and so on."""
    numbers = [int(found[1]) if (found := re.match(r"(\d+)\s", line)) else -1 for line in lines]
    start = numbers[0]
    return len(lines) > 1 and start in (0, 1) and numbers == [*range(start, start + len(lines))]


def _cells(line: str) -> list[str]:
    return [cell.strip(" \"'").casefold() for cell in _BETWEEN.split(line)]

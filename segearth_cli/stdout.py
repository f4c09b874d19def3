"""Data on stdout: it arrives whole, or the command fails."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from io import TextIOWrapper
from typing import Any, TextIO

from segearth_cli.errors import OutputError, UsageError
from segearth_cli.plain import plain

_ODD = re.compile("[\ud800-\udfff]")


def speak_utf8() -> None:
    """Data is UTF-8 whatever the terminal speaks; odd bytes in file names stay."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")


@contextlib.contextmanager
def writing_to(stream: TextIO | None) -> Iterator[None]:
    """Whatever the block writes to stdout arrives, or is an expected error.

    Raises:
        OutputError: it takes no more, or is closed.
        BrokenPipeError: its reader has gone.
    """
    if stream is None:
        raise OutputError("cannot write to stdout: it is closed")
    try:
        yield
        stream.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write to stdout: {error.strerror or error}") from error


def let_go() -> None:
    """Forget what stdout did not take: the interpreter would try again."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_lines(*lines: object) -> None:
    """Lines of text.

    Raises:
        OutputError, BrokenPipeError: as `writing_to`.
    """
    with writing_to(sys.stdout):
        for line in lines:
            print(line)


def print_json(record: dict[str, Any], nan: str | None = "nan") -> None:
    """One JSON object as a line; JSON has no number for NaN.

    Raises:
        OutputError, BrokenPipeError: as `writing_to`.
    """
    text = json.dumps(plain(record, nan), ensure_ascii=False)
    # bytes of file names that are no UTF-8, as Python knows them
    print_lines(_ODD.sub(lambda odd: f"\\u{ord(odd[0]):04x}", text))


def table_form(as_json: bool, as_csv: bool, as_markdown: bool) -> str | None:
    """The one form in which a table goes to stdout, if any.

    Raises:
        UsageError: several were asked for.
    """
    wanted = {"json": as_json, "csv": as_csv, "markdown": as_markdown}
    forms = [name for name, is_wanted in wanted.items() if is_wanted]
    if len(forms) > 1:
        raise UsageError(f"--{forms[0]} and --{forms[1]} exclude each other; give one")
    return forms[0] if forms else None


def print_table(form: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table as CSV or Markdown.

    Raises:
        OutputError, BrokenPipeError: as `writing_to`.
    """
    with writing_to(sys.stdout):
        if form == "csv":
            cells = [["" if cell == "-" else cell for cell in row] for row in rows]
            csv.writer(sys.stdout, lineterminator="\n").writerows([columns, *cells])
            return
        for line in (columns, ["---"] * len(columns), *rows):
            print("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |")

"""What a person reads on stderr: tables, log lines, errors."""

from __future__ import annotations

import logging
import math
import os
import sys
from collections.abc import Collection, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from io import TextIOWrapper
from typing import ClassVar

from rich.console import Console
from rich.table import Table
from rich.text import Text

_ENDLESS = 10_000  # columns
# loggers of whether a raster has a place, and of how it is read
OF_PLACES = ("segearth_cli.geo.source",)
OF_SCENES = (*OF_PLACES, *(f"segearth_cli.geo.{name}" for name in ("raster", "missing", "bands")))


def need_no_stderr() -> None:
    """Where stderr is closed, full or its reader gone, what would be said there is lost, and the
    work is done.
    """
    if sys.stderr is None:
        while (free := os.open(os.devnull, os.O_RDWR)) < 2:  # no output may become stderr
            pass
        sys.stderr = open(free, "w", encoding="utf-8")
    elif sys.stderr is sys.__stderr__ and isinstance(sys.stderr, TextIOWrapper):
        own = sys.stderr
        # a buffer fails when a signal's handler writes in the middle of a write
        raw = open(own.fileno(), "wb", buffering=0, closefd=False)
        sys.stderr = Losable(raw, own.encoding, own.errors, write_through=True)


class Losable(TextIOWrapper):
    """A stream that goes nowhere from when it takes no more."""

    def write(self, text: str) -> int:
        """Write, or lose the text."""
        try:
            return super().write(text)
        except BlockingIOError:  # full for now
            return len(text)
        except OSError:
            self._let_go()
            return len(text)

    def flush(self) -> None:
        """Flush, or lose what was not."""
        try:
            super().flush()
        except BlockingIOError:
            pass
        except OSError:
            self._let_go()

    def _let_go(self) -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())


def console() -> Console:
    """Standard error: stdout carries data only. Lines end at a terminal's edge, if there is one."""
    width = None if sys.stderr.isatty() else _ENDLESS
    return Console(stderr=True, soft_wrap=True, highlight=False, width=width)


def print_error(message: str) -> None:
    """One line on stderr, whatever the message holds."""
    console().print(Text.assemble(("error: ", "bold red"), " ".join(message.split())))


class LineHandler(logging.Handler):
    """Log records as lines like the errors': level, colon, message. The same warning comes once."""

    STYLES: ClassVar = {logging.WARNING: "bold yellow", logging.INFO: "dim"}

    def __init__(self) -> None:
        super().__init__()
        self._warned: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        if record.levelno == logging.WARNING:
            message = record.getMessage()
            if message in self._warned:
                return
            self._warned.add(message)
        style = self.STYLES.get(record.levelno, "bold red")
        level = (f"{record.levelname.lower()}: ", style)
        if record.exc_info and not record.exc_text:  # of a worker's record the text is all there is
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        out = console()
        with bars_aside():
            out.print(Text.assemble(level, " ".join(record.getMessage().split())))
            if record.exc_text:
                out.print(Text(record.exc_text))


def bars_aside() -> AbstractContextManager[object]:
    """Context in which lines do not run into progress bars, if there are any."""
    tqdm = sys.modules.get("tqdm")  # whoever shows a bar has imported it
    return tqdm.tqdm.external_write_mode(file=sys.stderr) if tqdm else nullcontext()


class OnceForAllScenes(logging.Filter):
    """Lets each kind of remark about a raster through once: a training reads thousands."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether this kind has not been said yet."""
        if not record.name.startswith("segearth_cli.geo"):
            return True
        is_new = record.msg not in self._said
        self._said.add(record.msg)
        return is_new


def log_to_stderr(
    verbose: bool, quiet: bool, many_scenes: bool = False, hidden: Collection[str] = ()
) -> None:
    """Warnings (and with ``verbose`` the steps) on stderr, one line each.

    Of ``many_scenes`` each kind of remark comes once; of the loggers ``hidden`` none does.
    """
    handler = LineHandler()
    handler.addFilter(lambda record: record.name not in hidden)
    if many_scenes:
        handler.addFilter(OnceForAllScenes())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    level = logging.INFO if verbose and not quiet else logging.WARNING
    logging.getLogger("segearth_cli").setLevel(level)
    logging.getLogger("rasterio").setLevel(logging.ERROR)  # GDAL's chatter about odd tags


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A plain table; every column but the first is aligned to the right."""
    made = Table(
        title=Text(title) if title else None, title_justify="left", box=None, pad_edge=False
    )
    for index, column in enumerate(columns):
        made.add_column(column, justify="right" if index else "left", overflow="fold")
    for row in rows:
        made.add_row(*map(Text, row))
    return made


def percent(share: float | None) -> str:
    """A share as a cell of a table."""
    return "-" if share is None or math.isnan(share) else f"{100 * share:.1f}"

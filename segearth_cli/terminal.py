"""What a person reads on stderr: tables, log lines, errors; with ``--json`` the same on stdout."""

from __future__ import annotations

import logging
import math
import os
import sys
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import asdict
from io import TextIOWrapper
from typing import TYPE_CHECKING, ClassVar

from rich.console import Console
from rich.table import Table
from rich.text import Text

from segearth_cli.errors import SegEarthError
from segearth_cli.names import counted, listed, shortened
from segearth_cli.results import Failure, Outcome, Plan, SegmentResult, Skipped
from segearth_cli.stdout import print_json

if TYPE_CHECKING:
    from segearth_cli.training.report import TrainResult


_ENDLESS = 10_000  # columns
_KM2_FROM = 1e7  # m2 of the largest class
_DECIMALS_BELOW, _NO_DECIMALS_FROM = 10, 1000  # of m2, and of km2
_MOST_CLASSES = 20  # of a plan
# loggers of how a raster is read
OF_SCENES = tuple(f"segearth_cli.geo.{name}" for name in ("raster", "missing", "source", "bands"))


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
        out = console()
        out.print(Text.assemble(level, " ".join(record.getMessage().split())))
        if record.exc_info and not record.exc_text:  # of a worker's record the text is all there is
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        if record.exc_text:
            out.print(Text(record.exc_text))


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
    verbose: bool, quiet: bool, many_scenes: bool = False, pictures: bool = False
) -> None:
    """Warnings (and with ``verbose`` the steps) on stderr, one line each.

    Of ``many_scenes`` each kind of remark comes once; of ``pictures``, which have no place on the
    ground and need none, no remark on how they are read.
    """
    handler = LineHandler()
    if pictures:
        handler.addFilter(lambda record: record.name not in OF_SCENES)
    elif many_scenes:
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


def show_result(result: SegmentResult, as_json: bool, quiet: bool) -> None:
    """One segmented scene: what was found and where it was written."""
    if as_json:
        print_json({"status": "done", **asdict(result)})
    if quiet:
        return
    valid = sum(result.pixels.values())
    areas = result.area_m2
    in_km2 = max((area for area in areas.values() if area is not None), default=0.0) >= _KM2_FROM
    rows = [
        [
            shortened(name),
            f"{100 * pixels / valid:.1f} %" if valid else "-",
            _area(areas[name], in_km2),
        ]
        for name, pixels in result.pixels.items()
    ]
    out = console()
    out.print(table(result.source, ["class", "share", "area"], rows))
    places = ", ".join("stdout" if name == "-" else name for name in result.outputs) or "nothing"
    out.print(Text(f"wrote {places} in {result.seconds:.1f} s"))


def show_failure(failure: Failure, as_json: bool, alone: bool) -> None:
    """One scene that failed, the only one or one of several."""
    message = str(failure.error)
    named = alone or failure.source in message
    print_error(message if named else f"{failure.source}: {message}")
    if as_json:
        record = {
            "status": "failed",
            "source": failure.source,
            "outputs": [],
            "seconds": failure.seconds,
            "error": str(failure.error),
        }
        print_json(record)


def show_skipped(skipped: Skipped, as_json: bool, quiet: bool) -> None:
    """One scene whose outputs were there."""
    if as_json:
        print_json({"status": "skipped", **asdict(skipped)})
    if not quiet:
        places = ", ".join(skipped.outputs)
        console().print(Text(f"{skipped.source}: {places} complete already"))


def show_outcomes(
    outcomes: Generator[Outcome | Plan, None, None],
    jobs: int,
    scenes: int,
    as_json: bool,
    quiet: bool,
) -> list[SegEarthError]:
    """Every scene as it is done, and at the end a table; returns what went wrong.

    ``jobs`` are to be done of ``scenes`` that were named.

    Raises:
        KeyboardInterrupt: as it came, saying how far it went.
    """
    seen: list[Outcome] = []
    try:
        with closing(outcomes):
            for outcome in outcomes:
                if isinstance(outcome, Plan):
                    show_plan(outcome, as_json, quiet)
                    continue
                seen.append(outcome)
                if isinstance(outcome, Failure):
                    show_failure(outcome, as_json, alone=scenes == 1)
                elif isinstance(outcome, Skipped):
                    show_skipped(outcome, as_json, quiet)
                else:
                    show_result(outcome, as_json, quiet)
    except KeyboardInterrupt as interrupt:
        if scenes > 1:
            interrupt.args = (
                f"interrupted; of {jobs} scenes {len(seen)} were gone through, and no other is "
                "left half-written; the same command with --resume goes on",
            )
        raise
    if scenes > 1 and seen and not quiet:
        show_summary(seen, jobs)
    if jobs == 0:
        logging.getLogger(__name__).warning("this part holds none of the %d scenes", scenes)
    return [outcome.error for outcome in seen if isinstance(outcome, Failure)]


def show_summary(seen: Sequence[Outcome], jobs: int) -> None:
    """What became of many scenes: how many, how long, and the name of each that failed."""
    kinds = {"done": SegmentResult, "complete already": Skipped, "failed": Failure}
    by_kind = {name: [o for o in seen if isinstance(o, kind)] for name, kind in kinds.items()}
    rows = [
        [name, str(len(some)), f"{sum(o.seconds for o in some):.1f} s"]
        for name, some in by_kind.items()
        if some
    ]
    if len(seen) < jobs:
        rows.append(["not begun", str(jobs - len(seen)), ""])
    out = console()
    out.print(table("", ["", "scenes", "time"], rows))
    for outcome in seen:
        if isinstance(outcome, Failure):
            message = " ".join(str(outcome.error).split())
            named = outcome.source in message
            out.print(Text(f"failed: {message if named else f'{outcome.source}: {message}'}"))


def show_plan(plan: Plan, as_json: bool, quiet: bool) -> None:
    """What one scene would take."""
    if as_json:
        print_json({"status": "planned", **asdict(plan)})
    if as_json or quiet:
        return
    classes = [f"{value} {shortened(name)}" for value, name in plan.classes.items()]
    rows = [
        ["size", f"{plan.width} x {plan.height} pixels"],
        ["resolution", "unknown" if plan.gsd_m is None else f"{plan.gsd_m:.4g} m"],
        ["coordinate system", plan.crs or "none"],
        ["read as", plan.reading],
        ["model", plan.model],
        ["runs as", plan.settings],
        [
            "windows",
            f"{plan.windows} of {plan.window} x {plan.window}, every {plan.stride} pixels"
            if plan.windows > 1
            else "1, the whole scene",
        ],
        [
            "memory",
            f"about {plan.memory_bytes / 2**30:.1f} GiB"
            + (f", in {plan.panels} panels" if plan.panels > 1 else ""),
        ],
        ["classes", listed(classes, _MOST_CLASSES)],
        ["outputs", ", ".join(plan.outputs) or "none"],
    ]
    made = table(plan.source, ["", ""], rows)
    made.show_header = False
    made.columns[1].justify = "left"
    console().print(made)


def percent(share: float | None) -> str:
    """A share as a cell of a table."""
    return "-" if share is None or math.isnan(share) else f"{100 * share:.1f}"


def show_training(result: TrainResult | None, as_json: bool, quiet: bool) -> None:
    """What a training came to: every measure, before and after; or how to go on with it."""
    if result is None:  # another process's to show
        return
    if as_json:
        print_json({"status": result.status, **asdict(result)})
    if quiet:
        return
    if result.step < result.steps:
        console().print(
            Text(
                f"stopped at step {result.step} of {result.steps}, and saved; go on with --resume "
                "and without --stop-at, or with a later one"
            )
        )
        return
    first, last = result.measured[0], result.measured[-1]
    rows = [[name, f"{first[name]:.4g}", f"{last[name]:.4g}"] for name in last if name != "step"]
    out = console()
    out.print(
        table(
            "On what was held out",
            ["", "before", f"after {counted(int(last['step']), 'step')}"],
            rows,
        )
    )
    if result.skipped:
        number = len(result.skipped)
        out.print(
            Text(f"{number} {'file or pair was' if number == 1 else 'files or pairs were'} skipped")
        )
    out.print(Text(f"{result.output} in {result.seconds:.0f} s"))


def _area(area_m2: float | None, in_km2: bool) -> str:
    if area_m2 is None:
        return "-"
    if in_km2:
        area_km2 = area_m2 / 1e6
        return f"{area_km2:.{0 if area_km2 >= _NO_DECIMALS_FROM else 3}f} km2"
    return f"{area_m2:.2g} m2" if 0 < area_m2 < _DECIMALS_BELOW else f"{area_m2:.0f} m2"

"""What a person reads on stderr, and a pipe on stdout: tables, JSON lines, log lines, errors."""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import os
import sys
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar

from rich.console import Console
from rich.table import Table
from rich.text import Text

from segearth_cli.errors import OutputError, SegEarthError, UsageError
from segearth_cli.plain import plain

if TYPE_CHECKING:
    from segearth_cli.batch import Failure, Skipped
    from segearth_cli.bench import BenchResult
    from segearth_cli.compare import CompareResult
    from segearth_cli.evaluate import EvaluateResult, Row
    from segearth_cli.info import MapInfo
    from segearth_cli.model.weights import ModelRow
    from segearth_cli.scores import Scores
    from segearth_cli.segment import Plan, SegmentResult
    from segearth_cli.training.report import TrainResult


def console() -> Console:
    """Standard error: stdout carries data only."""
    return Console(stderr=True, soft_wrap=True, highlight=False)


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
    ground and need none, no remark at all.
    """
    handler = LineHandler()
    if pictures:
        handler.addFilter(lambda record: not record.name.startswith("segearth_cli.geo"))
    elif many_scenes:
        handler.addFilter(OnceForAllScenes())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    level = logging.INFO if verbose and not quiet else logging.WARNING
    logging.getLogger("segearth_cli").setLevel(level)
    logging.getLogger("rasterio").setLevel(logging.ERROR)  # GDAL's chatter about odd tags


def speak_utf8() -> None:
    """Data on stdout is UTF-8 whatever the terminal speaks; odd bytes in file names stay."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")


def finish_stdout() -> None:
    """Flush stdout, or let go of what it does not take: the interpreter would try again."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_json(record: dict[str, Any], nan: str | None = "nan") -> None:
    """One JSON object as a line on stdout; JSON has no number for NaN.

    Raises:
        OutputError: stdout takes no more, for another reason than that its reader has gone.
    """
    try:
        print(json.dumps(plain(record, nan), ensure_ascii=False), flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write to stdout: {error.strerror}") from error


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
    rows = [
        [name, f"{100 * pixels / valid:.1f} %" if valid else "-", _area(result.area_m2[name])]
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
    outcomes: Generator[SegmentResult | Skipped | Failure | Plan, None, None],
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
    from segearth_cli.batch import Failure, Skipped
    from segearth_cli.segment import Plan

    seen: list[SegmentResult | Skipped | Failure] = []
    try:
        with closing(outcomes):
            for outcome in outcomes:
                if isinstance(outcome, Plan):
                    show_plan(outcome, as_json)
                    continue
                seen.append(outcome)
                if isinstance(outcome, Failure):
                    show_failure(outcome, as_json, alone=scenes == 1)
                elif isinstance(outcome, Skipped):
                    show_skipped(outcome, as_json, quiet)
                else:
                    show_result(outcome, as_json, quiet)
    except KeyboardInterrupt as interrupt:
        if scenes == 1:
            raise
        raise type(interrupt)(
            f"interrupted; of {jobs} scenes {len(seen)} were gone through, and no other is left "
            "half-written; the same command with --resume goes on"
        ) from interrupt
    if scenes > 1 and seen and not quiet:
        show_summary(seen, jobs)
    if jobs == 0:
        logging.getLogger(__name__).warning("this part holds none of the %d scenes", scenes)
    return [outcome.error for outcome in seen if isinstance(outcome, Failure)]


def show_summary(seen: Sequence[SegmentResult | Skipped | Failure], jobs: int) -> None:
    """What became of many scenes: how many, how long, and the name of each that failed."""
    from segearth_cli.batch import Failure, Skipped
    from segearth_cli.segment import SegmentResult

    kinds = {"done": SegmentResult, "complete already": Skipped, "failed": Failure}
    counted = {name: [o for o in seen if isinstance(o, kind)] for name, kind in kinds.items()}
    rows = [
        [name, str(len(some)), f"{sum(o.seconds for o in some):.1f} s"]
        for name, some in counted.items()
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


def show_plan(plan: Plan, as_json: bool) -> None:
    """What one scene would take."""
    if as_json:
        print_json({"status": "planned", **asdict(plan)})
        return
    rows = [
        ["size", f"{plan.width} x {plan.height} pixels"],
        ["resolution", "unknown" if plan.gsd_m is None else f"{plan.gsd_m:.4g} m"],
        ["coordinate system", plan.crs or "none"],
        ["read as", plan.reading],
        ["model", plan.model],
        ["runs as", plan.settings],
        ["windows", f"{plan.windows} of {plan.window} x {plan.window}, every {plan.stride} pixels"],
        [
            "memory",
            f"about {plan.memory_bytes / 2**30:.1f} GiB"
            + (f", in {plan.panels} panels" if plan.panels > 1 else ""),
        ],
        ["classes", ", ".join(f"{value} {name}" for value, name in plan.classes.items())],
        ["outputs", ", ".join(plan.outputs) or "none"],
    ]
    made = table(plan.source, ["", ""], rows)
    made.show_header = False
    made.columns[1].justify = "left"
    console().print(made)


def show_info(info: MapInfo, as_json: bool) -> None:
    """How a map was made, on stdout: it is what was asked for."""
    record = info.record
    if as_json:
        print_json({"output": info.output, "command": info.command, **record})
        return
    digest, model = record["source_digest"], record["model"]
    settings = [f"{name} {value}" for name, value in model.items() if name != "name"]
    rows = [
        ["made by", f"segearth {record['version']}"],
        ["source", record["source"]],
        ["digest of source", f"sha256 {digest.get('sha256')} ({digest.get('covers')})"],
        ["read as", str(record.get("scene"))],
        ["classes", ", ".join("|".join(words) for words in record.get("classes", []))],
        ["prompts", str(record.get("prompts"))],
        ["model", str(model.get("name"))],
        ["digest of model", f"sha256 {record.get('model_digest')}"],
        ["runs as", ", ".join(settings)],
        ["command", info.command or "none can say such classes: see options in --json"],
    ]
    for name, value in rows:
        print(f"{name:<17}{value}")


def show_bench(result: BenchResult, as_json: bool) -> None:
    """What one run took, stage by stage."""
    if as_json:
        print_json(asdict(result))
        return
    whole = result.whole_seconds
    stages = sorted(result.stage_seconds.items(), key=lambda item: -item[1])
    rest = whole - sum(result.stage_seconds.values())

    def row(name: str, seconds: float) -> list[str]:
        return [name, f"{1e3 * seconds:.1f} ms", f"{100 * seconds / whole:.1f} %"]

    made = table(
        f"{result.scene}: {result.width} x {result.height} pixels, {result.windows} windows, "
        f"{result.queries} queries",
        ["stage", "per window", "share"],
        [
            row("encoder alone, before and after", result.encoder_seconds),
            *(row(name, seconds) for name, seconds in stages),
            row("the rest", rest),
            row("whole, from file to file", whole),
            *([*row(f"beside: {name}", s)[:2], ""] for name, s in result.beside_seconds.items()),
        ],
    )
    out = console()
    out.print(made)
    threads = f", {result.threads} threads" if result.device == "cpu" else ""
    area = result.km2_per_second
    out.print(Text(f"{result.model}: {result.settings} on {result.device}{threads}"))
    out.print(
        Text(
            f"{result.ratio:.2f} times the encoder; {1 / whole:.2f} windows, "
            f"{result.megapixels_per_second:.3g} megapixels"
            + (f", {area:.3g} km2" if area is not None else "")
            + f" per second; {result.seconds:.1f} s in all, {result.load_seconds:.1f} s to load"
        )
    )
    memory = f"peak memory {result.process_bytes / 2**30:.2f} GiB"
    if result.device_bytes is not None:
        memory += f", on the device {result.device_bytes / 2**30:.2f} GiB"
    out.print(Text(memory))


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
    """A table on stdout as CSV or Markdown."""
    if form == "csv":
        csv.writer(sys.stdout, lineterminator="\n").writerows([columns, *rows])
        return
    for line in (columns, ["---"] * len(columns), *rows):
        print("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |")


def show_evaluation(result: EvaluateResult, form: str | None, quiet: bool) -> None:
    """How settings score on a dataset: classes of a single one, else a row each."""
    if form == "json":
        print_json(asdict(result), nan=None)
    columns, rows = _comparison_table(result)
    if form in ("csv", "markdown"):
        print_table(form, columns, rows)
    if quiet:
        return
    out = console()
    title = f"{result.dataset}: {_counted(result.images, 'image')}"
    if len(result.rows) == 1:
        out.print(_class_table(title, result.rows[0].scores))
        score = result.rows[0].scores.of(result.metric)
        out.print(Text(f"{_setting_of(result.rows[0])}: {result.metric} {percent(score)}"))
    else:
        few = len(columns) - len(result.rows[0].scores.classes)  # a terminal is narrow
        out.print(table(title, columns[:few], [row[:few] for row in rows]))
    if result.paper_score is not None:
        out.print(Text(f"the paper's model: {result.metric} {result.paper_score}"))
    out.print(Text(f"in {result.seconds:.0f} s"))


def show_comparison(result: CompareResult, form: str | None, quiet: bool) -> None:
    """How maps score against labels, class by class."""
    if form == "json":
        print_json(asdict(result), nan=None)
    if form in ("csv", "markdown"):
        print_table(form, CLASS_COLUMNS, _class_rows(result.scores))
    if not quiet:
        console().print(_class_table(_counted(result.maps, "map"), result.scores))


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


CLASS_COLUMNS = ("class", "IoU", "F1", "precision", "recall", "pixels")


def _class_rows(scores: Scores) -> list[list[str]]:
    rows = [
        [c.name, *map(percent, (c.iou, c.f1, c.precision, c.recall)), str(c.pixels)]
        for c in scores.classes
    ]
    means = (scores.miou, scores.mean_f1, None, scores.mean_accuracy)
    return [*rows, ["mean", *map(percent, means), str(scores.pixels)]]


def _class_table(title: str, scores: Scores) -> Table:
    made = table(title, CLASS_COLUMNS, _class_rows(scores))
    made.caption = f"right: {percent(scores.accuracy)} % of the pixels"
    made.caption_justify = "left"
    return made


def _comparison_table(result: EvaluateResult) -> tuple[list[str], list[list[str]]]:
    """A row for each setting, with the IoU of every class."""
    names = [scores.name for scores in result.rows[0].scores.classes]
    columns = ["model", "attention", "upsampler", "lambda", "long side", result.metric, *names]
    rows = [
        [
            row.model,
            row.attention + (f" x{row.modulated_blocks}" if row.modulated_blocks > 1 else ""),
            row.upsampler,
            f"{row.global_bias:g}",
            str(row.long_side or "own"),
            percent(row.scores.of(result.metric)),
            *(percent(scores.iou) for scores in row.scores.classes),
        ]
        for row in result.rows
    ]
    return columns, rows


def _setting_of(row: Row) -> str:
    size = f"long side {row.long_side}" if row.long_side else "images as they are"
    return (
        f"{row.model}, attention {row.attention}, upsampler {row.upsampler}, "
        f"lambda {row.global_bias:g}, threshold {row.threshold:g}, {size}"
    )


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
    out.print(table("On what was held out", ["", "before", f"after {last['step']} steps"], rows))
    if result.skipped:
        out.print(Text(f"{len(result.skipped)} files or pairs were skipped"))
    out.print(Text(f"{result.output} in {result.seconds:.0f} s"))


def show_models(models: Sequence[ModelRow], as_json: bool) -> None:
    """Every model by name: a table, or JSON lines."""
    if as_json:
        for model in models:
            print_json({**asdict(model), "path": model.path and str(model.path)})
        return
    made = table(
        "Models",
        ["name", "sensor", "where", "size", "what"],
        [
            [
                model.name,
                model.sensor,
                model.where,
                f"{model.size / 1e6:.0f} MB" if model.size else "",
                model.description,
            ]
            for model in models
        ],
    )
    for index in (1, 2, 4):
        made.columns[index].justify = "left"
    Console(soft_wrap=False).print(made)


def _area(area_m2: float | None) -> str:
    if area_m2 is None:
        return "-"
    return f"{area_m2 / 1e6:.2f} km2" if area_m2 >= 1e5 else f"{area_m2:.0f} m2"

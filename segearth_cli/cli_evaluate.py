"""``segearth evaluate``: options become a dataclass, then one call, then a table."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer
from rich.table import Table
from rich.text import Text

from segearth_cli import terminal
from segearth_cli.errors import UsageError
from segearth_cli.flags import (
    Bands,
    BatchSize,
    Blend,
    Column,
    Device,
    Exact,
    Ignore,
    Json,
    LabelValues,
    LogitScale,
    ModulatedBlocks,
    Precision,
    Quiet,
    SarUnit,
    Speckle,
    Stretch,
    Stride,
    Threads,
    Verbose,
    Window,
    class_option,
    map_option,
    model_option,
    own,
    scene_option,
)
from segearth_cli.names import counted
from segearth_cli.options import (
    ATTENTIONS,
    CompareOptions,
    EvaluateOptions,
    ModelOptions,
    SceneOptions,
)
from segearth_cli.parse import (
    parse_bands,
    parse_label_values,
    parse_list,
    parse_names,
    parse_numbers,
    parse_values,
    parse_whole,
)
from segearth_cli.stdout import print_json, print_table, table_form

if TYPE_CHECKING:
    from segearth_cli.compare import CompareResult
    from segearth_cli.evaluate import EvaluateResult, Row
    from segearth_cli.scores import FileScores, Scores


OF_MAPS = ("label", "classes", "label_values", "ignore", "column")
OF_BOTH = ("dataset", "pred", "per_image", "json", "csv", "markdown", "verbose", "quiet")


def evaluate_command(
    context: typer.Context,
    dataset: Annotated[
        str | None,
        class_option(metavar="NAME|FILE", help="A preset, or a .toml or .json that describes one."),
    ] = None,
    root: Annotated[Path | None, class_option(metavar="DIR", help="Folder of the dataset.")] = None,
    list_file: Annotated[
        Path | None,
        class_option("--list", metavar="FILE", help="Images to be used: a stem or name a line."),
    ] = None,
    limit: Annotated[
        int | None, class_option(metavar="N", help="Only the first N images, for a first look.")
    ] = None,
    pred: Annotated[
        str | None,
        map_option(metavar="FILE|DIR", help="Maps to measure, instead of a model; or a folder."),
    ] = None,
    label: Annotated[
        str | None,
        map_option(
            metavar="FILE|DIR",
            help="Their labels: rasters, points or polygons; by stem in a folder.",
        ),
    ] = None,
    classes: Annotated[
        str | None,
        map_option(metavar="A,B,...", help="Names of a map's values 0, 1, ..., if it has none."),
    ] = None,
    label_values: LabelValues = None,
    ignore: Ignore = None,
    column: Column = None,
    model: Annotated[
        str, model_option(metavar="A,B,...", help="Models to compare: names or folders.")
    ] = "auto",
    attention: Annotated[
        str | None,
        model_option(metavar="A,B,...", help=f"Attentions to compare: {', '.join(ATTENTIONS)}."),
    ] = None,
    upsampler: Annotated[
        str, model_option(metavar="A,B,...", help="Upsamplers to compare: auto, bilinear, files.")
    ] = "auto",
    global_bias: Annotated[
        str | None, model_option(metavar="A,B,...", help="Values of lambda to compare, as 0,0.3.")
    ] = None,
    long_side: Annotated[
        str | None,
        scene_option(metavar="A,B,...", help="Sizes of the images to compare; 0: as they are."),
    ] = None,
    modulated_blocks: ModulatedBlocks = None,
    threshold: Annotated[
        float | None, class_option(metavar="0..1", help="Less certain pixels are background.")
    ] = None,
    logit_scale: LogitScale = None,
    window: Window = None,
    stride: Stride = None,
    blend: Blend = EvaluateOptions.model.blend,
    bands: Bands = None,
    stretch: Stretch = SceneOptions.stretch,
    sar_unit: SarUnit = SceneOptions.sar_unit,
    speckle: Speckle = None,
    device: Device = EvaluateOptions.model.device,
    precision: Precision = EvaluateOptions.model.precision,
    batch_size: BatchSize = None,
    exact: Exact = False,
    threads: Threads = None,
    per_image: Annotated[
        bool,
        map_option(
            "--per-image", help="Scores of every image, or map, too: a row each in CSV or Markdown."
        ),
    ] = False,
    maps: Annotated[
        Path | None,
        map_option(metavar="DIR", help="Write the map of each image of a dataset there."),
    ] = None,
    json: Json = False,
    csv: Annotated[bool, map_option("--csv", help="Print a table as CSV on stdout.")] = False,
    markdown: Annotated[
        bool, map_option("--markdown", help="Print a table as Markdown on stdout.")
    ] = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Measure a model on a labelled dataset, or maps against labels: IoU, F1, accuracy.

    Example: segearth evaluate --dataset loveda --root LoveDA --attention segearth,clearclip

    Example: segearth evaluate --pred map.tif --label labels.tif
    """
    given = dict(locals())
    # pictures, which have no place on the ground and need none
    hidden = terminal.OF_SCENES if dataset is not None and not verbose else ()
    terminal.log_to_stderr(verbose, quiet, many_scenes=True, hidden=hidden)
    form = table_form(json, csv, markdown)
    if dataset is not None or pred is not None:
        refuse_idle_options(context, measures_maps=dataset is None)
    if (dataset is None) == (pred is None):
        raise UsageError("say what to measure: --dataset NAME --root DIR, or --pred and --label")
    if dataset is not None:
        if root is None:
            raise UsageError(f"--dataset {dataset} lies somewhere: name its folder with --root")
        from segearth_cli.evaluate import evaluate

        show_evaluation(evaluate(dataset_options(given)), form, quiet)
    else:
        if label is None:
            raise UsageError(f"--pred {pred} needs labels to be measured against: --label FILE")
        from segearth_cli.compare import compare

        show_comparison(compare(comparison_options(given)), form, quiet)


def dataset_options(given: dict[str, Any]) -> EvaluateOptions:
    """How a dataset is measured, from what the command was given.

    Raises:
        UsageError: a value cannot be understood.
    """
    bands = parse_bands(given["bands"])
    in_lists = {"model", "attention", "upsampler", "global_bias"}
    of_all = {name: value for name, value in given.items() if name not in in_lists}
    parsed = {
        "names": given["list_file"],
        "models": parse_list(given["model"]),
        "attentions": parse_list(given["attention"]),
        "upsamplers": parse_list(given["upsampler"]),
        "global_biases": parse_numbers("--global-bias", given["global_bias"]),
        "long_sides": parse_whole("--long-side", given["long_side"]),
        "model": ModelOptions(**own(ModelOptions, of_all)),
        "scene": SceneOptions(**own(SceneOptions, given | {"bands": bands})),
        "progress": not given["quiet"],
    }
    return EvaluateOptions(**own(EvaluateOptions, given | parsed))


def comparison_options(given: dict[str, Any]) -> CompareOptions:
    """How maps are measured against labels, from what the command was given.

    Raises:
        UsageError: a value cannot be understood.
    """
    return CompareOptions(
        maps=given["pred"],
        labels=given["label"],
        classes=parse_names("--classes", given["classes"]),
        label_values=parse_label_values(given["label_values"]),
        ignore=parse_values(given["ignore"]),
        column=given["column"],
        per_image=given["per_image"],
        progress=not given["quiet"],
    )


def refuse_idle_options(context: typer.Context, measures_maps: bool) -> None:
    """Refuse an option that was given, and that only the other way to measure has.

    Raises:
        UsageError: there is one.
    """
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if source is None or source.name != "COMMANDLINE" or parameter.name in OF_BOTH:
            continue
        if (parameter.name in OF_MAPS) != measures_maps:
            other = "--dataset, not of --pred" if measures_maps else "--pred, not of --dataset"
            raise UsageError(f"{parameter.opts[0]} is an option of {other}; leave it out")


def show_evaluation(result: EvaluateResult, form: str | None, quiet: bool) -> None:
    """How settings score on a dataset: classes of a single one, else a row each."""
    if form == "json":
        print_json(asdict(result), nan=None)
    elif form:
        further = FURTHER_COLUMNS if form == "csv" else ()
        print_table(form, *_setting_table(result, further, TOLD[form]))
    if quiet:
        return
    out = terminal.console()
    title = f"{result.dataset}: {counted(result.images, 'image')}"
    if len(result.rows) == 1:
        (row,) = result.rows
        out.print(_class_table(title, row.scores))
        score = row.scores.of(result.metric)
        out.print(Text(f"{_setting_of(row)}: {result.metric} {terminal.percent(score)}"))
        _show_worst(row.files)
    else:
        columns = [*SETTING_COLUMNS, result.metric]  # a terminal is narrow
        rows = [
            [*_setting_cells(row), terminal.percent(row.scores.of(result.metric))]
            for row in result.rows
        ]
        out.print(terminal.table(title, columns, rows))
        if result.rows[0].files and form is None:
            out.print(Text("the images' scores: with --csv, --markdown or --json"))
    if result.paper_score is not None:
        out.print(Text(f"the paper's model: {result.metric} {result.paper_score}"))
    out.print(Text(f"in {result.seconds:.0f} s"))


def show_comparison(result: CompareResult, form: str | None, quiet: bool) -> None:
    """How maps score against labels, class by class."""
    if form == "json":
        print_json(asdict(result), nan=None)
    elif form and result.files:
        columns = ["map", *FILE_COLUMNS, "mIoU", *result.scores.names]
        files = with_all(result.files, result.scores)
        told = TOLD[form]
        print_table(form, columns, [[one.file, *_file_cells(one, told=told)] for one in files])
    elif form:
        print_table(form, CLASS_COLUMNS, _class_rows(result.scores, TOLD[form]))
    if not quiet:
        terminal.console().print(_class_table(counted(len(result.pairs), "map"), result.scores))
        _show_worst(result.files)


CLASS_COLUMNS = ("class", "IoU", "F1", "precision", "recall", "pixels")


Told: TypeAlias = Callable[[float | None], str]  # a share as a cell of a table


def _in_full(share: float | None) -> str:
    """A percentage for programs."""
    return "-" if share is None or math.isnan(share) else str(round(100 * share, 6))


TOLD = {"csv": _in_full, "markdown": terminal.percent}  # how tables have shares


def _class_rows(scores: Scores, told: Told = terminal.percent) -> list[list[str]]:
    rows = [
        [c.name, *map(told, (c.iou, c.f1, c.precision, c.recall)), str(c.pixels)]
        for c in scores.classes
    ]
    means = (scores.miou, scores.mean_f1, None, scores.mean_accuracy)
    return [*rows, ["mean", *map(told, means), str(scores.pixels)]]


def _class_table(title: str, scores: Scores) -> Table:
    made = terminal.table(title, CLASS_COLUMNS, _class_rows(scores))
    made.caption = f"right: {terminal.percent(scores.accuracy)} % of the pixels"
    made.caption_justify = "left"
    return made


FILE_COLUMNS = ("pixels", "right")
MOST_SHOWN = 10  # files, on a terminal


def with_all(files: Sequence[FileScores], scores: Scores) -> list[FileScores]:
    """The scores of every file, and those of all together."""
    from segearth_cli.scores import FileScores

    return [*files, FileScores("all", scores)]


def _file_cells(one: FileScores, metric: str = "mIoU", told: Told = terminal.percent) -> list[str]:
    """How an image or a map scores alone, with the IoU of every class."""
    scores = one.scores
    return [
        str(scores.pixels),
        told(scores.accuracy),
        *_score_cells(scores, metric, told),
    ]


def _score_cells(scores: Scores, metric: str, told: Told) -> list[str]:
    """The score that the table is about, and the IoU of every class."""
    shares = (scores.of(metric), *(of_class.iou for of_class in scores.classes))
    return [*map(told, shares)]


def _show_worst(files: Sequence[FileScores]) -> None:
    """Those with the fewest right pixels, the worst first."""
    labelled = [one for one in files if one.scores.pixels]
    if labelled:
        worst = sorted(labelled, key=lambda one: one.scores.accuracy)[:MOST_SHOWN]
        columns = ["the worst first", *FILE_COLUMNS]
        rows = [[one.file, *_file_cells(one)[: len(FILE_COLUMNS)]] for one in worst]
        terminal.console().print(terminal.table("", columns, rows))


SETTING_COLUMNS = ("model", "attention", "upsampler", "lambda", "long side")
# what further columns of CSV are called, as in JSON
FURTHER_COLUMNS = (
    "modulated_blocks",
    "threshold",
    "logit_scale",
    "window",
    "stride",
    "blend",
    "precision",
    "exact",
    "model_digest",
    "upsampler_digest",
    "version",
)


def _setting_table(
    result: EvaluateResult, further: Sequence[str], told: Told
) -> tuple[list[str], list[list[str]]]:
    """A row for each setting, or each image by it, with the IoU of every class.

    ``further`` are settings that the last columns hold, ``-`` where one has no meaning.
    """
    metric, names = result.metric, result.rows[0].scores.names
    rows = []
    for row in result.rows:
        setting = _setting_cells(row)
        more = ["-" if (v := getattr(row, name)) is None else str(v) for name in further]
        if row.files:
            files = with_all(row.files, row.scores)
            rows += [[one.file, *setting, *_file_cells(one, metric, told), *more] for one in files]
        else:
            rows.append([*setting, *_score_cells(row.scores, metric, told), *more])
    scores = [*SETTING_COLUMNS, metric, *names]
    if result.rows[0].files:
        scores = ["image", *SETTING_COLUMNS, *FILE_COLUMNS, metric, *names]
    return [*scores, *further], rows


def _setting_cells(row: Row) -> list[str]:
    blocks = f" x{row.modulated_blocks}" if (row.modulated_blocks or 0) > 1 else ""
    return [
        row.model,
        row.attention + blocks,
        row.upsampler,
        f"{row.global_bias:g}",
        str(row.long_side or "own"),
    ]


def _setting_of(row: Row) -> str:
    size = f"long side {row.long_side}" if row.long_side else "images as they are"
    return (
        f"{row.model}, attention {row.attention}, upsampler {row.upsampler}, "
        f"lambda {row.global_bias:g}, threshold {row.threshold:g}, {size}"
    )

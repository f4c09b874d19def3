"""``segearth tune``: options become a dataclass, then one call."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from segearth_cli import terminal
from segearth_cli.flags import (
    Attention,
    Bands,
    BatchSize,
    Blend,
    ClassesFile,
    Column,
    Device,
    Exact,
    Gsd,
    Ignore,
    Json,
    LabelValues,
    LogitScale,
    ModelName,
    ModulatedBlocks,
    NoBackground,
    Nodata,
    Precision,
    Quiet,
    SarUnit,
    Sensor,
    Speckle,
    Stretch,
    Stride,
    Threads,
    UpsamplerName,
    Verbose,
    Window,
    class_option,
    own,
    run_option,
)
from segearth_cli.names import counted
from segearth_cli.options import ModelOptions, SegmentOptions, TuneOptions
from segearth_cli.parse import parse_bands, parse_label_values, parse_labelled, parse_values
from segearth_cli.stdout import print_json, print_lines

if TYPE_CHECKING:
    from segearth_cli.tune import TuneResult

OUTPUT = "map.gpkg"  # of the command that is printed


def tune_command(
    labelled: Annotated[
        list[str],
        typer.Argument(
            metavar="SCENE=LABELS",
            show_envvar=False,
            help="Scenes with labels: a class raster, or points or polygons with a class column. "
            "Two scenes or more check each other.",
        ),
    ],
    classes: Annotated[
        str | None,
        class_option(metavar="A,B|C,...", help="Classes, and after | words to choose from."),
    ] = None,
    classes_file: ClassesFile = None,
    background: Annotated[
        str | None,
        class_option(
            metavar="A|B", help='Words for everything else to choose from. Default: "background".'
        ),
    ] = None,
    no_background: NoBackground = False,
    label_values: LabelValues = None,
    ignore: Ignore = None,
    column: Column = None,
    samples: Annotated[
        int, run_option(metavar="N", help="Labelled pixels of each class used per scene.")
    ] = TuneOptions.samples,
    sensor: Sensor = SegmentOptions.sensor,
    bands: Bands = None,
    stretch: Stretch = SegmentOptions.stretch,
    nodata: Nodata = None,
    gsd: Gsd = None,
    sar_unit: SarUnit = SegmentOptions.sar_unit,
    speckle: Speckle = None,
    model: ModelName = ModelOptions.model,
    attention: Attention = None,
    modulated_blocks: ModulatedBlocks = None,
    upsampler: UpsamplerName = ModelOptions.upsampler,
    logit_scale: LogitScale = None,
    window: Window = None,
    stride: Stride = None,
    blend: Blend = ModelOptions.blend,
    device: Device = ModelOptions.device,
    precision: Precision = ModelOptions.precision,
    batch_size: BatchSize = None,
    exact: Exact = False,
    threads: Threads = None,
    json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Choose words, threshold and lambda by labelled scenes; print the segment command for them.

    Example: segearth tune a.tif=a.gpkg b.tif=b.gpkg --classes 'building|house,water|river'
    """
    given = dict(locals())
    from segearth_cli.model.prompts import choose_classes

    terminal.log_to_stderr(verbose, quiet)
    wanted = choose_classes(classes, classes_file, None, background, no_background)
    parsed = {
        "classes": wanted.classes,
        "background": wanted.background,
        "bands": parse_bands(bands),
        "outputs": (OUTPUT,),
        "progress": not quiet,
        "model": ModelOptions(**own(ModelOptions, given)),
    }
    options = TuneOptions(
        pairs=tuple(map(parse_labelled, labelled)),
        column=column,
        label_values=parse_label_values(label_values),
        ignore=parse_values(ignore),
        samples=samples,
        segment=SegmentOptions(**own(SegmentOptions, given | parsed)),
    )
    from segearth_cli.tune import tune

    show_tuning(tune(options), json, quiet)


def show_tuning(result: TuneResult, as_json: bool, quiet: bool) -> None:
    """What labelled scenes chose, class by class; the command that uses it goes to stdout."""
    if as_json:
        print_json(asdict(result))
    if not quiet:
        out = terminal.console()
        out.print(_tuning_table(result))
        for name, value in _tuned_settings(result).items():
            out.print(Text(f"{name}: {value}"))
    if not as_json:
        print_lines(result.command)


def _tuning_table(result: TuneResult) -> Table:
    """IoU of each class before and after, and in scenes that had no part in the choice."""
    columns = [
        ("before", result.before.miou, result.before.iou),
        ("chosen", result.chosen.miou, result.chosen.iou),
    ]
    if result.cross_miou is not None and result.cross_iou is not None:
        columns.append(("cross-validated", result.cross_miou, result.cross_iou))
    labelled = sum(sum(scene.pixels.values()) for scene in result.scenes)
    used = sum(scene.used for scene in result.scenes)
    scenes = counted(len(result.scenes), "scene")
    made = terminal.table(
        f"{scenes}, {used} of {labelled} labelled pixels, model {result.model}",
        ["IoU", *(name for name, _, _ in columns)],
        [
            *(
                [name, *(terminal.percent(iou[name]) for _, _, iou in columns)]
                for name, share in result.before.iou.items()
                if share is not None
            ),
            ["mean", *(terminal.percent(miou) for _, miou, _ in columns)],
        ],
    )
    made.caption = "chosen: on the pixels that it was chosen by, which promises nothing"
    made.caption_justify = "left"
    return made


def _tuned_settings(result: TuneResult) -> dict[str, str]:
    """What was chosen, beside what was given."""
    before, chosen = result.before, result.chosen
    words = {word for synonyms in chosen.classes for word in synonyms} | {
        *(chosen.background or ())
    }
    given = [*(before.background or ()), *(w for synonyms in before.classes for w in synonyms)]
    dropped = [word for word in dict.fromkeys(given) if word not in words]
    unused = "" if result.is_tuned else "not in the command: "
    return {
        f"{unused}chosen threshold": f"{chosen.threshold:g} (before: {before.threshold:g})",
        f"{unused}chosen lambda": f"{chosen.global_bias:g} (before: {before.global_bias:g})",
        f"{unused}dropped words": ", ".join(dropped) or "none",
    }

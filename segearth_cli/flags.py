"""Options that several commands share, as Typer reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer
from typer.core import TyperCommand

from segearth_cli.errors import UsageError
from segearth_cli.options import (
    ATTENTIONS,
    BLENDS,
    PRECISIONS,
    SAR_UNITS,
    SENSOR_CHOICES,
)
from segearth_cli.parse import parse_nodata

option = partial(typer.Option, show_envvar=False)
class_option = partial(option, rich_help_panel="Classes")
scene_option = partial(option, rich_help_panel="Scene")
model_option = partial(option, rich_help_panel="Model")
map_option = partial(option, rich_help_panel="Outputs")
many_option = partial(option, rich_help_panel="Many scenes")
run_option = partial(option, rich_help_panel="Run")


GIVEN = "segearth_cli.given"  # in a context's meta: what was typed, by the options' names


class Command(TyperCommand):
    """A command that takes no list twice: of -b 3 -b 2 -b 1 two bands would go unnoticed."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Look at all that was typed, then go on as usual.

        Raises:
            UsageError: an option that takes a list is given again.
        """
        typed, _, order = self.make_parser(ctx).parse_args(args=list(args))
        ctx.meta[GIVEN] = typed
        for param in order:
            times = order.count(param)
            if times > 1 and "," in str(param.metavar) and not param.multiple:
                raise UsageError(
                    f"{max(param.opts, key=len)} is given {times} times; give it once, with commas "
                    "between its values"
                )
        return list(super().parse_args(ctx, args))


def own(options: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """Of what a command was given what some options hold under the same name."""
    return {f.name: given[f.name] for f in fields(options) if f.name in given}


Verbose: TypeAlias = Annotated[bool, option("--verbose", "-v", help="Say what is being done.")]
Quiet: TypeAlias = Annotated[bool, option("--quiet", "-q", help="Print only warnings and errors.")]
Json: TypeAlias = Annotated[bool, option("--json", help="Print results as JSON lines on stdout.")]
ClassesFile: TypeAlias = Annotated[
    Path | None,
    class_option(metavar="FILE", help="The same as text: a class a line, synonyms after commas."),
]
NoBackground: TypeAlias = Annotated[
    bool, class_option("--no-background", help="Give every valid pixel one of the classes.")
]
Sensor: TypeAlias = Annotated[
    str, scene_option(metavar="|".join(SENSOR_CHOICES), help="Kind of image.")
]
ModulatedBlocks: TypeAlias = Annotated[
    int | None, model_option(metavar="N", help="Blocks with that attention, from the last.")
]
LogitScale: TypeAlias = Annotated[
    float | None,
    model_option(
        metavar="FACTOR", help="Sharpness of the softmax: the logits are multiplied by it."
    ),
]
ModelName: TypeAlias = Annotated[
    str,
    model_option(
        metavar="NAME|FOLDER|ARCH:FILE",
        help="A name of segearth models list, a model folder, or a checkpoint with its "
        "open_clip architecture, as ViT-B-32:epoch_20.pt.",
    ),
]
Attention: TypeAlias = Annotated[
    str | None,
    model_option(metavar="NAME", help=f"Attention of the last block: {', '.join(ATTENTIONS)}."),
]
UpsamplerName: TypeAlias = Annotated[
    str, model_option(metavar="auto|bilinear|PATH", help="Upsampler of the features.")
]
Window: TypeAlias = Annotated[
    int | None,
    model_option(metavar="PIXELS", help="Side of a window; 0: the whole scene at once."),
]
Stride: TypeAlias = Annotated[
    int | None, model_option(metavar="PIXELS", help="Step from one window to the next.")
]
Blend: TypeAlias = Annotated[
    str,
    model_option(
        metavar="|".join(BLENDS),
        help="Where windows overlap: smooth fades each out towards its borders; mean is the "
        "authors', with steps where windows end.",
    ),
]
Device: TypeAlias = Annotated[
    str, model_option(metavar="NAME", help="auto, cpu, cuda, cuda:1 or mps.")
]
Precision: TypeAlias = Annotated[
    str, model_option(metavar="|".join(PRECISIONS), help="Number format of the encoder.")
]
BatchSize: TypeAlias = Annotated[
    int | None,
    model_option(metavar="WINDOWS", help="Windows at once on a GPU; a CPU takes four."),
]
Exact: TypeAlias = Annotated[
    bool,
    model_option("--exact", help="Float32 and every channel: no approximation for speed."),
]
MaxMemory: TypeAlias = Annotated[
    str | None,
    model_option(metavar="SIZE", help="Take wide scenes in panels to stay below this, as 2GB."),
]
Threads: TypeAlias = Annotated[
    int | None, model_option(metavar="N", help="CPU threads. Default: as many as cores.")
]

Stretch: TypeAlias = Annotated[
    str,
    scene_option(
        metavar="HOW",
        help="Values shown as black and white, the same for the whole scene: auto, none, "
        "minmax, two values LO,HI or two percentiles pLO,HI.",
    ),
]
Nodata: TypeAlias = Annotated[
    float | None,
    scene_option(
        metavar="VALUE|none",
        parser=parse_nodata,
        help="Value of pixels without data, if not the file's own; none: no value is.",
    ),
]
Gsd: TypeAlias = Annotated[
    float | None, scene_option(metavar="METRES", help="Resample to this pixel size first.")
]
Bands: TypeAlias = Annotated[
    str | None,
    scene_option(
        "-b", "--bands", metavar="4,3,2", help="Bands to read, red first: numbers or descriptions."
    ),
]
SarUnit: TypeAlias = Annotated[
    str, scene_option(metavar="|".join(SAR_UNITS), help="Radar: what the values are.")
]
Speckle: TypeAlias = Annotated[
    int | None,
    scene_option(
        metavar="N",
        help="Radar: a Lee filter of N x N pixels against speckle; 0: none. Default: the model's.",
    ),
]
LabelValues: TypeAlias = Annotated[
    str | None,
    class_option(
        metavar="LABEL=CLASS,...",
        help="Classes, by value or name, for values or names of the labels; * for the rest.",
    ),
]
Ignore: TypeAlias = Annotated[
    str | None,
    class_option(metavar="N,...", help="Values or names of the labels that say nothing."),
]
Column: TypeAlias = Annotated[
    str | None,
    class_option(
        metavar="NAME",
        help="Column of points or polygons that holds the class. Default: the first of "
        "class_name, class, label, name that is there.",
    ),
]
ModelOut: TypeAlias = Annotated[
    Path, run_option("-o", "--output", metavar="DIR", help="The model folder to make.")
]
Steps: TypeAlias = Annotated[
    int | None, run_option(metavar="N", help="Updates of the weights. Default: all epochs.")
]
Epochs: TypeAlias = Annotated[int, run_option(metavar="N", help="Times that all is looked at.")]
TrainBatchSize: TypeAlias = Annotated[
    int, run_option(metavar="CROPS", help="Crops per step, of all processes together.")
]
Accumulate: TypeAlias = Annotated[
    int, run_option(metavar="N", help="Parts that a batch is taken in, to save memory.")
]
CropSide: TypeAlias = Annotated[int, run_option("--crop", metavar="PIXELS", help="Side of a crop.")]
LearningRate: TypeAlias = Annotated[float, run_option(metavar="RATE", help="The highest.")]
WarmupSteps: TypeAlias = Annotated[
    int, run_option(metavar="N", help="Steps until then; a cosine goes down to 0 after.")
]
HeldOut: TypeAlias = Annotated[
    float, run_option(metavar="SHARE", help="Share of the files that is only measured on.")
]
ValidateEvery: TypeAlias = Annotated[
    int | None, run_option(metavar="STEPS", help="Measure so often. Default: after each epoch.")
]
SaveEvery: TypeAlias = Annotated[
    int, run_option(metavar="STEPS", help="Write a checkpoint so often, and when measured.")
]
LogEvery: TypeAlias = Annotated[int, run_option(metavar="STEPS", help="Log losses so often.")]
Seed: TypeAlias = Annotated[int, run_option(metavar="N", help="The same seed, the same result.")]
Workers: TypeAlias = Annotated[
    int, run_option(metavar="N", help="Processes that read images; 0: the main one does.")
]
Resume: TypeAlias = Annotated[
    bool, run_option("--resume", help="Go on where the run in the folder was saved.")
]
OverwriteRun: TypeAlias = Annotated[
    bool, run_option("--overwrite", help="Begin anew in a folder that is there.")
]
StopAt: TypeAlias = Annotated[
    int | None, run_option(metavar="STEP", help="Save and stop there, to --resume later.")
]

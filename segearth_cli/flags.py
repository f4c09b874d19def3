"""Options that several commands share, as Typer reads them."""

from __future__ import annotations

from functools import partial
from typing import Annotated, TypeAlias

import typer

from segearth_cli.options import ATTENTIONS, PRECISIONS

option = partial(typer.Option, show_envvar=False)
class_option = partial(option, rich_help_panel="Classes")
scene_option = partial(option, rich_help_panel="Scene")
model_option = partial(option, rich_help_panel="Model")
map_option = partial(option, rich_help_panel="Outputs")

Verbose: TypeAlias = Annotated[bool, option("--verbose", "-v", help="Say what is being done.")]
Quiet: TypeAlias = Annotated[bool, option("--quiet", "-q", help="Print only warnings and errors.")]
Json: TypeAlias = Annotated[bool, option("--json", help="Print results as JSON lines on stdout.")]
ModelName: TypeAlias = Annotated[
    str,
    model_option(metavar="NAME|FOLDER", help="A name of segearth models list, or a model folder."),
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

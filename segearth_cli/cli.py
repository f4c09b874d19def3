"""The command line: options become a dataclass, then one call. Heavy imports stay in commands."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from segearth_cli import __version__, stdout, terminal
from segearth_cli.cli_bench import bench_command
from segearth_cli.cli_evaluate import evaluate_command
from segearth_cli.cli_info import info_command
from segearth_cli.cli_models import models_app
from segearth_cli.cli_training import distill_sar_command, train_upsampler_command
from segearth_cli.cli_tune import tune_command
from segearth_cli.errors import NO_MEMORY, SegEarthError, Stopped, Terminated, UsageError
from segearth_cli.flags import (
    GIVEN,
    Address,
    Asset,
    Attention,
    Bands,
    BatchSize,
    Blend,
    Command,
    Device,
    Engine,
    Exact,
    Gsd,
    Json,
    MaxMemory,
    ModelName,
    Nodata,
    OnError,
    Precision,
    Quiet,
    ResumeBatch,
    SarUnit,
    Shard,
    Speckle,
    Stretch,
    Stride,
    Threads,
    UpsamplerName,
    Verbose,
    Window,
    class_option,
    map_option,
    model_option,
    option,
    own,
    scene_option,
)
from segearth_cli.options import (
    RASTER_SUFFIXES,
    SENSOR_CHOICES,
    VECTOR_SUFFIXES,
    BatchOptions,
    ModelOptions,
    SegmentOptions,
)
from segearth_cli.parse import (
    parse_bands,
    parse_bbox,
    parse_colours,
    parse_memory,
    parse_pairs,
    parse_shard,
)
from segearth_cli.signals import STOPPING, handled_by

logger = logging.getLogger(__name__)

PARTLY_FAILED = 3


def _terminate(number: int, frame: object) -> None:
    raise Terminated(number)


# what typer raises for an unknown option, a value of the wrong kind, a missing argument
WRONG_USAGE: Any = typer.BadParameter.__bases__[0]
NO_NUMBER = {
    "should be a valid number": "number",
    "should be a valid integer": "whole number",
    "could not convert string to float": "number",
}


class ErrorBoundary(TyperGroup):
    """Prints expected errors as one line on stderr; anything else is a bug and keeps its trace."""

    def get_params(self, ctx: Any) -> list[Any]:
        """The program's own options, which no environment variable sets."""
        params = super().get_params(ctx)
        for param in params:
            vars(param).update(show_envvar=False, allow_from_autoenv=False)
        return params

    def main(self, *args: Any, **more: Any) -> Any:
        """Run the program and exit with its code."""
        stdout.speak_utf8()
        terminal.need_no_stderr()
        try:
            _check_folder()
            status = super().main(*args, **{**more, "standalone_mode": False})
        except SegEarthError as error:
            terminal.print_error(str(error))
            status = error.exit_code
        except WRONG_USAGE as error:
            if message := error.format_message():  # empty where the help has been shown instead
                terminal.print_error(wrong_usage(error, message))
            status = error.exit_code
        except OSError as error:  # of the help, which typer prints
            if error.errno not in (errno.ENOSPC, errno.EIO, errno.EBADF) or error.filename:
                raise
            terminal.print_error(f"cannot write to stdout: {error.strerror}")
            status = 1
        except MemoryError:
            terminal.print_error(NO_MEMORY)
            status = 1
        finally:
            stdout.let_go()
        sys.exit(status or 0)

    def invoke(self, ctx: Any) -> Any:
        """Run a command; turn its being stopped into exit codes."""
        try:
            # they are a Ctrl-C: it unwinds the stack, so that temporary folders go
            with handled_by(_terminate, *(n for n in STOPPING if n != signal.SIGINT)):
                return super().invoke(ctx)
        except Stopped as stop:
            if str(stop):
                terminal.print_error(str(stop))
            sys.exit(128 + stop.number)
        except KeyboardInterrupt as interrupt:
            terminal.print_error(str(interrupt) or "interrupted; nothing unfinished was written")
            sys.exit(128 + getattr(interrupt, "number", signal.SIGINT))  # as shells count
        except BrokenPipeError:  # the reader of stdout has gone: `| head`
            sys.exit(128 + signal.SIGPIPE if hasattr(signal, "SIGPIPE") else 1)


def _check_folder() -> None:
    """Refuse to run in a folder that somebody has removed: libraries say less, or abort.

    Raises:
        SegEarthError: it is gone.
    """
    with contextlib.suppress(PermissionError):  # it is there, and may do
        try:
            os.getcwd()
        except FileNotFoundError as error:
            raise SegEarthError("the current folder is gone; change to another one") from error


def wrong_usage(error: Any, message: str) -> str:
    """What typer says, where the value came from, and where to read on."""
    context, parameter = error.ctx, getattr(error, "param", None)
    where = f"see {context.command_path} --help" if context else "see segearth --help"
    typed = context.meta.get(GIVEN, {}).get(parameter.name) if parameter is not None else None
    if parameter is not None and context.get_parameter_source(parameter.name).name == "ENVIRONMENT":
        variable = f"{context.auto_envvar_prefix}_{parameter.name.upper()}"
        where, typed = f"it comes from {variable}; {where}", os.environ.get(variable)
    kind = next((kind for words, kind in NO_NUMBER.items() if words in message), None)
    if parameter is not None and kind is not None:
        return f"{max(parameter.opts, key=len)} {typed!r} is no {kind}; {where}"
    return f"{message[0].lower()}{message[1:].rstrip('.')}; {where}"


app = typer.Typer(
    cls=ErrorBoundary,
    no_args_is_help=True,
    context_settings={"auto_envvar_prefix": "SEGEARTH", "help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
app.add_typer(models_app, name="models", help="List, fetch and find models.")


def show_version(wanted: bool) -> None:
    """Print the version and stop."""
    if wanted:
        stdout.print_lines(f"segearth {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Turn a georeferenced image and a list of words into a map."""


def warn_of_idle_options(options: SegmentOptions) -> None:
    """Say which options change nothing, as nothing is written that they are for."""
    suffixes = {Path(name).suffix.lower() for name in options.outputs}
    has_rasters = options.probabilities is not None or not suffixes.isdisjoint(RASTER_SUFFIXES)
    has_polygons = "-" in options.outputs or not suffixes.isdisjoint(VECTOR_SUFFIXES)
    for is_idle, why in (
        (options.creation_options and not has_rasters, "--co is for rasters, and none is written"),
        (options.simplify and not has_polygons, "--simplify is for polygons: none are written"),
        (options.acquired and not options.stac, "--datetime is for the STAC Item: add --stac"),
    ):
        if is_idle:
            logger.warning(why)


def environment_hint(command: str) -> str:
    """What a command's help says of its environment variables."""
    name = f"SEGEARTH_{command.upper().replace('-', '_')}_MODEL"
    return f"Every option can be set in the environment too, as in {name}=mini."


@app.command("segment", cls=Command, epilog=environment_hint("segment"))
def segment_command(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT",
            show_envvar=False,
            help="Rasters: paths, GDAL paths or URLs; folders, tile indexes, STAC Items; bands in "
            'files of their own as {"red": "B4.tif", "green": "B3.tif", "blue": "B2.tif"}; '
            "- reads them from stdin, one a line.",
        ),
    ],
    output: Annotated[
        list[str] | None,
        map_option(
            "-o",
            "--output",
            metavar="OUT",
            help="What to write, by suffix; repeatable. "
            f"Class raster: {' '.join(RASTER_SUFFIXES)}. Polygons: {' '.join(VECTOR_SUFFIXES)}, "
            "or - for GeoJSON lines on stdout. "
            "Preview: .png. With several inputs a pattern such as {stem}.gpkg.",
        ),
    ] = None,
    classes: Annotated[
        str | None,
        class_option(metavar="A,B|C,...", help="What to look for; | joins synonyms of a class."),
    ] = None,
    classes_file: Annotated[
        Path | None,
        class_option(
            metavar="FILE", help="The same as text: a class a line, synonyms after commas."
        ),
    ] = None,
    preset: Annotated[
        str | None,
        class_option(metavar="NAME", help="Classes and threshold of a known dataset, as loveda."),
    ] = None,
    colours: Annotated[
        str | None,
        class_option(
            metavar="A=#rrggbb,...", help="Colours of some classes; the others get usual ones."
        ),
    ] = None,
    background: Annotated[
        str | None,
        class_option(
            metavar="A|B",
            help='Words for everything else, value 0 of the map. Default: "background".',
        ),
    ] = None,
    no_background: Annotated[
        bool, class_option("--no-background", help="Give every valid pixel one of the classes.")
    ] = False,
    threshold: Annotated[
        float | None,
        class_option(
            metavar="0..1", help="Less certain pixels become 0. Default: 0, or the preset's."
        ),
    ] = None,
    sensor: Annotated[
        str, scene_option(metavar="|".join(SENSOR_CHOICES), help="Kind of image.")
    ] = SegmentOptions.sensor,
    bands: Bands = None,
    stretch: Stretch = SegmentOptions.stretch,
    nodata: Nodata = None,
    gsd: Gsd = None,
    sar_unit: SarUnit = SegmentOptions.sar_unit,
    speckle: Speckle = None,
    src_crs: Annotated[
        str | None,
        scene_option(metavar="CRS", help="The scene's own, where the file does not tell or errs."),
    ] = None,
    dst_crs: Annotated[
        str | None,
        scene_option(metavar="CRS", help="Warp to this coordinate system first, as EPSG:32633."),
    ] = None,
    bbox: Annotated[
        str | None,
        scene_option(metavar="LEFT,BOTTOM,RIGHT,TOP", help="Segment only this part of the scene."),
    ] = None,
    bbox_crs: Annotated[
        str | None,
        scene_option(metavar="CRS", help="Coordinate system of --bbox, if not the map's."),
    ] = None,
    aoi: Annotated[
        str | None, scene_option(metavar="FILE", help="Segment only inside these polygons.")
    ] = None,
    model: ModelName = ModelOptions.model,
    attention: Attention = None,
    modulated_blocks: Annotated[
        int | None, model_option(metavar="N", help="Blocks with that attention, from the last.")
    ] = None,
    upsampler: UpsamplerName = ModelOptions.upsampler,
    global_bias: Annotated[
        float | None,
        model_option(metavar="LAMBDA", help="Share of the class token that is taken off."),
    ] = None,
    logit_scale: Annotated[
        float | None,
        model_option(
            metavar="FACTOR", help="Sharpness of the softmax: the logits are multiplied by it."
        ),
    ] = None,
    window: Window = None,
    stride: Stride = None,
    blend: Blend = ModelOptions.blend,
    device: Device = ModelOptions.device,
    precision: Precision = ModelOptions.precision,
    batch_size: BatchSize = None,
    exact: Exact = False,
    max_memory: MaxMemory = None,
    threads: Threads = None,
    probabilities: Annotated[
        str | None,
        map_option(metavar="PATH", help="Also write a .tif of percents, a band per class."),
    ] = None,
    stac: Annotated[
        bool, map_option("--stac", help="Write a STAC Item too, beside the first output.")
    ] = False,
    datetime: Annotated[
        str | None,
        map_option(metavar="TIME[/TIME]", help="When the scene was taken, for the STAC Item."),
    ] = None,
    min_area: Annotated[
        float,
        map_option(metavar="M2", help="Merge patches smaller than this into their neighbours."),
    ] = SegmentOptions.min_area,
    simplify: Annotated[
        float,
        map_option(
            metavar="METRES",
            help="Drop corners whose triangle is smaller than this squared, after --min-area; "
            "outlines move by up to three times as much, shared borders stay shared.",
        ),
    ] = SegmentOptions.simplify,
    co: Annotated[
        list[str] | None,
        map_option(metavar="NAME=VALUE", help="Creation option of GDAL's COG driver; repeatable."),
    ] = None,
    overwrite: Annotated[bool, map_option("--overwrite", help="Replace existing outputs.")] = False,
    asset: Asset = None,
    shard: Shard = None,
    resume: ResumeBatch = False,
    on_error: OnError = BatchOptions.on_error,
    engine: Engine = BatchOptions.engine,
    address: Address = None,
    dry_run: Annotated[
        bool, option("--dry-run", help="Say what would be read and how, and stop.")
    ] = False,
    json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Segment scenes into class rasters, polygons and previews.

    Example: segearth segment scene.tif --classes building,road,water -o map.gpkg
    """
    given = dict(locals())
    from segearth_cli import batch
    from segearth_cli.inputs import expand_inputs
    from segearth_cli.model.prompts import choose_classes

    terminal.log_to_stderr(verbose, quiet)
    if json and "-" in (output or ()) and not dry_run:
        raise UsageError("--json and -o - both write to stdout; give the polygons a file")
    wanted = choose_classes(classes, classes_file, preset, background, no_background)
    wanted = wanted.coloured(parse_colours(colours))
    box, box_crs = parse_bbox(bbox, bbox_crs)
    parsed = {
        "classes": wanted.classes,
        "colours": wanted.colours,
        "background": wanted.background,
        "threshold": wanted.threshold if threshold is None else threshold,
        "bands": parse_bands(bands),
        "bbox": box,
        "bbox_crs": box_crs,
        "outputs": tuple(output or ()),
        "acquired": datetime,
        "creation_options": parse_pairs(co or []),
        "max_memory": parse_memory(max_memory),
        "progress": not quiet,
        "model": ModelOptions(**own(ModelOptions, given)),
    }
    options = SegmentOptions(**own(SegmentOptions, given | parsed))
    if resume and overwrite:
        raise UsageError("--resume and --overwrite exclude each other: one keeps what is complete")
    how = BatchOptions(
        resume=resume,
        on_error=on_error,
        shard=parse_shard(shard),
        engine=engine,
        address=address,
    )
    sources = expand_inputs(inputs, asset=asset)
    jobs = batch.jobs_of(sources, options, how)
    warn_of_idle_options(options)
    outcomes = batch.plan_jobs(jobs, how) if dry_run else batch.segment_jobs(jobs, how)
    failures = terminal.show_outcomes(outcomes, len(jobs), len(sources), json, quiet)
    if failures:
        raise typer.Exit(failures[0].exit_code if len(failures) == len(jobs) else PARTLY_FAILED)


for name, function in (
    ("bench", bench_command),
    ("evaluate", evaluate_command),
    ("tune", tune_command),
    ("train-upsampler", train_upsampler_command),
    ("distill-sar", distill_sar_command),
):
    app.command(name, cls=Command, epilog=environment_hint(name))(function)
app.command("info", cls=Command)(info_command)

"""The command line: options become a dataclass, then one call. Heavy imports stay in commands."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer
from typer.core import TyperGroup

from segearth_cli import __version__, terminal
from segearth_cli.errors import SegEarthError
from segearth_cli.options import (
    ATTENTIONS,
    PRECISIONS,
    SENSORS,
    ModelOptions,
    SegmentOptions,
    parse_bands,
    parse_bbox,
    parse_pairs,
)

PARTLY_FAILED = 3
INTERRUPTED = 130


class ErrorBoundary(TyperGroup):
    """Prints expected errors as one line on stderr; anything else is a bug and keeps its trace."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command; turn its expected errors into exit codes."""
        try:
            return super().invoke(ctx)
        except SegEarthError as error:
            terminal.print_error(str(error))
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            terminal.print_error("interrupted; nothing unfinished was written")
            sys.exit(INTERRUPTED)
        except BrokenPipeError:
            # The reader of stdout has gone (`| head`): the interpreter must not flush into it.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)


app = typer.Typer(
    cls=ErrorBoundary,
    no_args_is_help=True,
    context_settings={"auto_envvar_prefix": "SEGEARTH", "help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
models_app = typer.Typer(no_args_is_help=True)
app.add_typer(models_app, name="models", help="List, fetch and find models.")


def show_version(wanted: bool) -> None:
    """Print the version and stop."""
    if wanted:
        print(f"segearth {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Turn a georeferenced image and a list of words into a map."""


option = partial(typer.Option, show_envvar=False)
class_option = partial(option, rich_help_panel="Classes")
scene_option = partial(option, rich_help_panel="Scene")
model_option = partial(option, rich_help_panel="Model")
map_option = partial(option, rich_help_panel="Outputs")

Verbose: TypeAlias = Annotated[bool, option("--verbose", "-v", help="Say what is being done.")]
Quiet: TypeAlias = Annotated[bool, option("--quiet", "-q", help="Only warnings and errors.")]
Json: TypeAlias = Annotated[bool, option("--json", help="Results as JSON lines on stdout.")]

ENVIRONMENT = "Every option can be set in the environment too, as in SEGEARTH_SEGMENT_MODEL=mini."


@app.command("segment", epilog=ENVIRONMENT)
def segment_command(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...",
            show_envvar=False,
            help="Rasters, GDAL paths or URLs; - reads a list from stdin.",
        ),
    ],
    output: Annotated[
        list[str] | None,
        map_option(
            "-o",
            "--output",
            metavar="OUT",
            help="Repeatable: .tif .gpkg .geojson .geojsonl .fgb .parquet .shp .png, or - for "
            "features on stdout. A pattern with {stem} for several inputs.",
        ),
    ] = None,
    classes: Annotated[
        str | None, class_option(metavar="A,B|C,...", help="Class names; | joins synonyms.")
    ] = None,
    classes_file: Annotated[
        Path | None,
        class_option(metavar="FILE", help="A class per line, synonyms after commas."),
    ] = None,
    preset: Annotated[
        str | None,
        class_option(metavar="NAME", help="Classes and threshold of a known dataset."),
    ] = None,
    background: Annotated[
        str, class_option(metavar="A|B", help="Prompts of everything else; value 0 in the map.")
    ] = "background",
    no_background: Annotated[
        bool, class_option("--no-background", help="Give every valid pixel one of the classes.")
    ] = False,
    threshold: Annotated[
        float | None,
        class_option(metavar="0..1", help="Pixels less probable than this become 0."),
    ] = None,
    sensor: Annotated[str, scene_option(metavar="|".join(SENSORS), help="Kind of image.")] = "auto",
    bands: Annotated[
        str | None,
        scene_option("-b", "--bands", metavar="4,3,2", help="Numbers or descriptions, red first."),
    ] = None,
    stretch: Annotated[
        str,
        scene_option(
            metavar="HOW",
            help="Values that become black and white, once per scene: auto, none, minmax, "
            "LO,HI or percentiles pLO,HI.",
        ),
    ] = "auto",
    nodata: Annotated[
        float | None, scene_option(metavar="VALUE", help="Of pixels without data.")
    ] = None,
    gsd: Annotated[
        float | None, scene_option(metavar="METRES", help="Resample to this pixel size.")
    ] = None,
    dst_crs: Annotated[
        str | None, scene_option(metavar="CRS", help="Warp into this CRS first.")
    ] = None,
    bbox: Annotated[
        str | None,
        scene_option(metavar="LEFT,BOTTOM,RIGHT,TOP", help="Only this part of the scene."),
    ] = None,
    bbox_crs: Annotated[
        str | None, scene_option(metavar="CRS", help="Of --bbox, if not the scene's.")
    ] = None,
    aoi: Annotated[
        str | None, scene_option(metavar="FILE", help="Only inside these polygons.")
    ] = None,
    model: Annotated[
        str, model_option(metavar="NAME|FOLDER", help="See segearth models list.")
    ] = "auto",
    attention: Annotated[
        str | None,
        model_option(metavar="NAME", help=f"Of the last block: {', '.join(ATTENTIONS)}."),
    ] = None,
    modulated_blocks: Annotated[
        int | None, model_option(metavar="N", help="Last blocks that give features.")
    ] = None,
    upsampler: Annotated[
        str, model_option(metavar="auto|bilinear|PATH", help="Of the features.")
    ] = "auto",
    global_bias: Annotated[
        float | None, model_option(metavar="LAMBDA", help="Share of the class token taken off.")
    ] = None,
    logit_scale: Annotated[
        float | None, model_option(metavar="FACTOR", help="Of the logits before the softmax.")
    ] = None,
    window: Annotated[
        int | None, model_option(metavar="PIXELS", help="Side of a window; 0 = the whole scene.")
    ] = None,
    stride: Annotated[
        int | None, model_option(metavar="PIXELS", help="From one window to the next.")
    ] = None,
    device: Annotated[
        str, model_option(metavar="NAME", help="auto, cpu, cuda, cuda:1 or mps.")
    ] = "auto",
    precision: Annotated[
        str, model_option(metavar="|".join(PRECISIONS), help="Of the encoder.")
    ] = "auto",
    batch_size: Annotated[
        int | None, model_option(metavar="WINDOWS", help="Through the network at once.")
    ] = None,
    threads: Annotated[
        int | None, model_option(metavar="N", help="CPU threads of the network.")
    ] = None,
    probabilities: Annotated[
        str | None, map_option(metavar="PATH", help="A .tif of percents, a band per class.")
    ] = None,
    min_area: Annotated[
        float, map_option(metavar="M2", help="Merge smaller patches into their neighbours.")
    ] = 0.0,
    simplify: Annotated[
        float, map_option(metavar="METRES", help="Straighten outlines; neighbours stay joined.")
    ] = 0.0,
    co: Annotated[
        list[str] | None,
        map_option(metavar="NAME=VALUE", help="GDAL creation option of rasters; repeatable."),
    ] = None,
    overwrite: Annotated[bool, map_option("--overwrite", help="Replace existing outputs.")] = False,
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
    from segearth_cli import batch
    from segearth_cli.model.prompts import choose_classes

    terminal.log_to_stderr(verbose, quiet)
    wanted = choose_classes(classes, classes_file, preset, None if no_background else background)
    options = SegmentOptions(
        classes=wanted.classes,
        colours=wanted.colours,
        background=wanted.background,
        threshold=wanted.threshold if threshold is None else threshold,
        sensor=sensor,
        bands=parse_bands(bands),
        stretch=stretch,
        nodata=nodata,
        gsd=gsd,
        dst_crs=dst_crs,
        bbox=parse_bbox(bbox),
        bbox_crs=bbox_crs,
        aoi=aoi,
        min_area=min_area,
        simplify=simplify,
        outputs=tuple(output or ()),
        probabilities=probabilities,
        overwrite=overwrite,
        creation_options=parse_pairs(co or []),
        threads=threads,
        model=ModelOptions(
            model=model,
            attention=attention,
            modulated_blocks=modulated_blocks,
            upsampler=upsampler,
            global_bias=global_bias,
            logit_scale=logit_scale,
            window=window,
            stride=stride,
            device=device,
            precision=precision,
            batch_size=batch_size,
        ),
    )
    sources = batch.expand_inputs(inputs)
    if dry_run:
        for plan in batch.plan_all(sources, options):
            terminal.show_plan(plan, json)
        return
    failures = []
    for outcome in batch.segment_all(sources, options):
        if isinstance(outcome, batch.Failure):
            terminal.show_failure(outcome, json)
            failures.append(outcome.error)
        else:
            terminal.show_result(outcome, json, quiet)
    if failures:
        raise typer.Exit(failures[0].exit_code if len(sources) == 1 else PARTLY_FAILED)


@models_app.command("list")
def models_list(json: Json = False) -> None:
    """Show every model by name, and where its weights are."""
    from segearth_cli.model.weights import list_models

    terminal.show_models(list_models(), json)


@models_app.command("pull")
def models_pull(
    name: Annotated[str, typer.Argument(help="For instance vit-b-16.", show_envvar=False)],
    file: Annotated[
        list[Path] | None,
        option(metavar="FILE", help="A file of the model that you have already; repeatable."),
    ] = None,
    force: Annotated[bool, option("--force", help="Fetch again.")] = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Download a model, check it and keep it for offline use; prints its folder."""
    from segearth_cli.model.weights import pull

    terminal.log_to_stderr(verbose, quiet)
    print(pull(name, force=force, files=file or ()).path)


@models_app.command("path")
def models_path(
    name: Annotated[str, typer.Argument(help="For instance mini.", show_envvar=False)],
) -> None:
    """Print the folder of a model that is on this machine."""
    from segearth_cli.model.weights import model_path

    print(model_path(name))

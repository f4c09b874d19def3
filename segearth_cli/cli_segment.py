"""``segearth segment``: its options, and what a person reads of scene after scene."""

from __future__ import annotations

import logging
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from segearth_cli import terminal
from segearth_cli.errors import SegEarthError, UsageError
from segearth_cli.flags import (
    Attention,
    Bands,
    BatchSize,
    Blend,
    ClassesFile,
    Device,
    Exact,
    Gsd,
    Json,
    LogitScale,
    MaxMemory,
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
    many_option,
    map_option,
    model_option,
    option,
    own,
    scene_option,
)
from segearth_cli.names import listed, shortened
from segearth_cli.options import (
    ENGINES,
    ON_ERROR,
    RASTER_SUFFIXES,
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
from segearth_cli.results import Failure, Outcome, Plan, SegmentResult, Skipped
from segearth_cli.stdout import print_json

PARTLY_FAILED = 3
_KM2_FROM = 1e7  # m2 of the largest class
_DECIMALS_BELOW, _NO_DECIMALS_FROM = 10, 1000  # of m2, and of km2
_MOST_CLASSES = 20  # of a plan

logger = logging.getLogger(__name__)


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
    classes_file: ClassesFile = None,
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
    no_background: NoBackground = False,
    threshold: Annotated[
        float | None,
        class_option(
            metavar="0..1", help="Less certain pixels become 0. Default: 0, or the preset's."
        ),
    ] = None,
    sensor: Sensor = SegmentOptions.sensor,
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
    modulated_blocks: ModulatedBlocks = None,
    upsampler: UpsamplerName = ModelOptions.upsampler,
    global_bias: Annotated[
        float | None,
        model_option(metavar="LAMBDA", help="Share of the class token that is taken off."),
    ] = None,
    logit_scale: LogitScale = None,
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
    asset: Annotated[
        str | None,
        many_option(
            metavar="NAME[,NAME...]",
            help="The asset of STAC Items to read, or several that are a band each, as "
            "red,green,blue. Default: visual, or its only raster.",
        ),
    ] = None,
    shard: Annotated[
        str | None,
        many_option(metavar="I/N", help="Only the I-th of N parts of the scenes: for job arrays."),
    ] = None,
    resume: Annotated[
        bool,
        many_option(
            "--resume", help="Leave out scenes whose maps are there, whole and made the same way."
        ),
    ] = False,
    on_error: Annotated[
        str, many_option(metavar="|".join(ON_ERROR), help="What to do when a scene fails.")
    ] = BatchOptions.on_error,
    engine: Annotated[
        str,
        many_option(
            metavar="|".join(ENGINES), help="Who does the work: this process, or a Ray cluster."
        ),
    ] = BatchOptions.engine,
    address: Annotated[
        str | None,
        many_option(
            metavar="HOST:PORT",
            help="The Ray cluster that runs, or auto. Left out: one on this machine, for this run.",
        ),
    ] = None,
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
    failures = show_outcomes(outcomes, len(jobs), len(sources), json, quiet)
    if failures:
        raise typer.Exit(failures[0].exit_code if len(failures) == len(jobs) else PARTLY_FAILED)


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
    out = terminal.console()
    out.print(terminal.table(result.source, ["class", "share", "area"], rows))
    places = ", ".join("stdout" if name == "-" else name for name in result.outputs) or "nothing"
    out.print(Text(f"wrote {places} in {result.seconds:.1f} s"))


def show_failure(failure: Failure, as_json: bool, alone: bool) -> None:
    """One scene that failed, the only one or one of several."""
    message = str(failure.error)
    named = alone or failure.source in message
    terminal.print_error(message if named else f"{failure.source}: {message}")
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
        terminal.console().print(Text(f"{skipped.source}: {places} complete already"))


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
    seen: list[Outcome | Plan] = []
    try:
        with closing(outcomes):
            for outcome in outcomes:
                seen.append(outcome)
                if isinstance(outcome, Plan):
                    show_plan(outcome, as_json, quiet)
                elif isinstance(outcome, Failure):
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
    all_planned = all(isinstance(outcome, Plan) for outcome in seen)
    if scenes > 1 and not all_planned and not quiet:
        show_summary(seen, jobs)
    if jobs == 0:
        logger.warning("this part holds none of the %d scenes", scenes)
    return [outcome.error for outcome in seen if isinstance(outcome, Failure)]


def show_summary(seen: Sequence[Outcome | Plan], jobs: int) -> None:
    """What became of many scenes: how many, how long, and the name of each that failed."""
    kinds = {"done": SegmentResult, "complete already": Skipped, "failed": Failure}
    done = [outcome for outcome in seen if not isinstance(outcome, Plan)]
    by_kind = {name: [o for o in done if isinstance(o, kind)] for name, kind in kinds.items()}
    plans = [outcome for outcome in seen if isinstance(outcome, Plan)]
    rows = [["planned", str(len(plans)), ""]] if plans else []
    rows += [
        [name, str(len(some)), f"{sum(o.seconds for o in some):.1f} s"]
        for name, some in by_kind.items()
        if some
    ]
    if len(seen) < jobs:
        rows.append(["not begun", str(jobs - len(seen)), ""])
    out = terminal.console()
    out.print(terminal.table("", ["", "scenes", "time"], rows))
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
    made = terminal.table(plan.source, ["", ""], rows)
    made.show_header = False
    made.columns[1].justify = "left"
    terminal.console().print(made)


def _area(area_m2: float | None, in_km2: bool) -> str:
    if area_m2 is None:
        return "-"
    if in_km2:
        area_km2 = area_m2 / 1e6
        return f"{area_km2:.{0 if area_km2 >= _NO_DECIMALS_FROM else 3}f} km2"
    return f"{area_m2:.2g} m2" if 0 < area_m2 < _DECIMALS_BELOW else f"{area_m2:.0f} m2"

"""``segearth bench``: options become a dataclass, then one call, then a table."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from segearth_cli import terminal
from segearth_cli.errors import UsageError
from segearth_cli.flags import (
    Attention,
    BatchSize,
    Device,
    Exact,
    Json,
    MaxMemory,
    ModelName,
    Precision,
    Quiet,
    Stride,
    Threads,
    UpsamplerName,
    Verbose,
    Window,
    class_option,
    map_option,
    model_option,
    own,
    scene_option,
)
from segearth_cli.options import BenchOptions, ModelOptions, SegmentOptions
from segearth_cli.parse import parse_memory, parse_size
from segearth_cli.stdout import print_json

if TYPE_CHECKING:
    from segearth_cli.bench import BenchResult


def bench_command(
    scene: Annotated[
        str | None,
        typer.Argument(
            metavar="SCENE", show_envvar=False, help="A raster. Left out: a synthetic one."
        ),
    ] = None,
    size: Annotated[
        str | None,
        scene_option(
            metavar="WIDTHxHEIGHT", help="Pixels of the synthetic scene. Default: 1500x1200."
        ),
    ] = None,
    classes: Annotated[
        str, class_option(metavar="A,B|C,...", help="What to look for; background is added.")
    ] = "building,road,water,tree,grass,car,sand,field",
    model: ModelName = ModelOptions.model,
    arch: Annotated[
        str | None,
        model_option(
            metavar="NAME",
            help="An architecture of open_clip instead, as ViT-B-16-quickgelu: random weights, "
            "with a random SimFeatUp.",
        ),
    ] = None,
    attention: Attention = None,
    upsampler: UpsamplerName = ModelOptions.upsampler,
    window: Window = None,
    stride: Stride = None,
    device: Device = ModelOptions.device,
    precision: Precision = ModelOptions.precision,
    batch_size: BatchSize = None,
    exact: Exact = False,
    max_memory: MaxMemory = None,
    threads: Threads = None,
    vector: Annotated[
        bool, map_option("--vector", help="Write polygons too, beside the class raster.")
    ] = False,
    json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Measure how fast segment is on this machine, stage by stage; nothing is kept.

    Example: segearth bench --arch ViT-B-16-quickgelu
    """
    given = dict(locals())
    from segearth_cli.bench import bench
    from segearth_cli.model.prompts import choose_classes

    terminal.log_to_stderr(verbose, quiet)
    if scene is not None and size is not None:
        raise UsageError("--size is of a synthetic scene; leave it out, or the scene")
    if arch is not None and model != ModelOptions.model:
        raise UsageError("--arch and --model are two models; give one")
    wanted = choose_classes(classes, None, None)
    options = BenchOptions(
        scene=scene,
        size=BenchOptions.size if size is None else parse_size(size),
        arch=arch,
        vector=vector,
        segment=SegmentOptions(
            classes=wanted.classes,
            background=wanted.background,
            threads=threads,
            max_memory=parse_memory(max_memory),
            model=ModelOptions(**own(ModelOptions, given)),
        ),
    )
    show_bench(bench(options), json, quiet)


def show_bench(result: BenchResult, as_json: bool, quiet: bool) -> None:
    """What one run took, stage by stage."""
    if as_json:
        print_json(asdict(result))
    if as_json or quiet:
        return
    whole = result.whole_seconds
    stages = sorted(result.stage_seconds.items(), key=lambda item: -item[1])

    def row(name: str, seconds: float) -> list[str]:
        digits = 1 if whole > 0.01 else 3
        share = 100 * seconds / result.watched_seconds
        return [name, f"{1e3 * seconds:.{digits}f} ms", f"{share:.1f} %"]

    made = terminal.table(
        f"{result.scene}: {result.width} x {result.height} pixels, {result.windows} windows, "
        f"{result.queries} queries",
        ["stage", "per window", "share"],
        [
            row("encoder alone, before and after", result.encoder_seconds),
            *(row(name, seconds) for name, seconds in stages),
            row("the rest", result.rest_seconds),
            row("whole, from file to file", whole),
            *([*row(f"beside: {name}", s)[:2], ""] for name, s in result.beside_seconds.items()),
        ],
    )
    out = terminal.console()
    out.print(made)
    threads = f", {result.threads} threads" if result.device == "cpu" else ""
    area, first = result.km2_per_second, result.first_seconds
    out.print(Text(f"{result.model}: {result.settings} on {result.device}{threads}"))
    out.print(
        Text(
            f"{result.ratio:.2f} times the encoder; {1 / whole:.2f} windows, "
            f"{result.megapixels_per_second:.3g} megapixels"
            + (f", {area:.3g} km2" if area is not None else "")
            + f" per second; {result.seconds:.1f} s in all, {result.load_seconds:.1f} s to load"
            + (f", {first:.1f} s the first time" if first is not None else "")
        )
    )
    memory = [
        f"{where}{peak / 2**30:.2f} GiB"
        for where, peak in (("", result.process_bytes), ("on the device ", result.device_bytes))
        if peak is not None
    ]
    if memory:
        out.print(Text(f"peak memory {', '.join(memory)}"))

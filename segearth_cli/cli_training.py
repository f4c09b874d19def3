"""The commands that train: options become a dataclass, then one call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from segearth_cli import terminal
from segearth_cli.errors import Stopped
from segearth_cli.flags import (
    Accumulate,
    Bands,
    CropSide,
    Device,
    Epochs,
    Gsd,
    HeldOut,
    Json,
    LearningRate,
    LogEvery,
    ModelName,
    ModelOut,
    Nodata,
    OverwriteRun,
    Precision,
    Quiet,
    Resume,
    SarUnit,
    SaveEvery,
    Seed,
    Speckle,
    Steps,
    StopAt,
    Stretch,
    Threads,
    TrainBatchSize,
    ValidateEvery,
    WarmupSteps,
    Workers,
    model_option,
    own,
    run_option,
    scene_option,
)
from segearth_cli.names import counted
from segearth_cli.options import (
    SENSOR_CHOICES,
    UPSAMPLED,
    DistillOptions,
    SceneOptions,
    UpsamplerOptions,
)
from segearth_cli.parse import parse_bands, parse_nodata
from segearth_cli.stdout import print_json

if TYPE_CHECKING:
    from segearth_cli.training.report import TrainResult


def train_upsampler_command(
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE", show_envvar=False, help="Images to train on: files and folders."
        ),
    ],
    output: ModelOut,
    model: ModelName = UpsamplerOptions.model,
    kernel: Annotated[
        int, model_option(metavar="PIXELS", help="Side of a pixel's neighbourhood: 11, FeatUp 7.")
    ] = UpsamplerOptions.kernel,
    stack: Annotated[
        bool, model_option("--stack", help="A module per doubling, as FeatUp, instead of one.")
    ] = False,
    ratio: Annotated[
        int | None,
        model_option(metavar="N", help="Upsample so many times. Default: up to the pixels."),
    ] = None,
    features: Annotated[
        str,
        model_option(metavar="|".join(UPSAMPLED), help="What is upsampled: eq. 6, or FeatUp's."),
    ] = UpsamplerOptions.features,
    gamma: Annotated[
        float, model_option(metavar="WEIGHT", help="Of image reconstruction; 0 leaves it out.")
    ] = UpsamplerOptions.content_weight,
    jitters: Annotated[
        int, run_option(metavar="N", help="Views of each crop.")
    ] = UpsamplerOptions.jitters,
    sensor: Annotated[
        str,
        scene_option(
            metavar="|".join(SENSOR_CHOICES),
            help="How images are read; auto: as those of the model.",
        ),
    ] = SceneOptions.sensor,
    bands: Bands = None,
    stretch: Stretch = SceneOptions.stretch,
    nodata: Nodata = None,
    gsd: Gsd = None,
    sar_unit: SarUnit = SceneOptions.sar_unit,
    speckle: Speckle = None,
    steps: Steps = None,
    epochs: Epochs = UpsamplerOptions.epochs,
    batch_size: TrainBatchSize = UpsamplerOptions.batch_size,
    accumulate: Accumulate = UpsamplerOptions.accumulate,
    crop: CropSide = UpsamplerOptions.crop,
    learning_rate: LearningRate = UpsamplerOptions.learning_rate,
    warmup_steps: WarmupSteps = UpsamplerOptions.warmup_steps,
    held_out: HeldOut = UpsamplerOptions.held_out,
    validate_every: ValidateEvery = None,
    save_every: SaveEvery = UpsamplerOptions.save_every,
    log_every: LogEvery = UpsamplerOptions.log_every,
    seed: Seed = UpsamplerOptions.seed,
    device: Device = UpsamplerOptions.device,
    precision: Precision = UpsamplerOptions.precision,
    workers: Workers = UpsamplerOptions.workers,
    threads: Threads = None,
    resume: Resume = False,
    overwrite: OverwriteRun = False,
    stop_at: StopAt = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train SimFeatUp, the upsampler of features, on images without labels.

    Logged: loss = uncertain + gamma x content, and reconstruction, the plain error of rebuilt
    features. Measured on held-out crops: that error with the learned downsampler, with means over
    patches in its place (by_mean), and with bilinear upsampling (bilinear_by_mean), to fall below.

    Example: segearth train-upsampler images/ -o sharp --model vit-b-16
    """
    given = dict(locals())
    terminal.log_to_stderr(not quiet, quiet, many_scenes=True, hidden=terminal.OF_PLACES)
    of_scene = given | {"bands": parse_bands(bands), "threads": None}  # those are the network's
    parsed = {
        "images": tuple(images),
        "scene": SceneOptions(**own(SceneOptions, of_scene)),
        "content_weight": gamma,
        "progress": not quiet,
    }
    options = UpsamplerOptions(**own(UpsamplerOptions, given | parsed))
    from segearth_cli.training.upsampler import train_upsampler

    show_training(lambda: train_upsampler(options), json, quiet)


def distill_sar_command(
    output: ModelOut,
    optical: Annotated[
        str | None, scene_option(metavar="DIR", help="Optical images of the pairs.")
    ] = None,
    sar: Annotated[
        str | None, scene_option(metavar="DIR", help="Radar images, named as the optical ones.")
    ] = None,
    pairs: Annotated[
        str | None,
        scene_option(
            metavar="FILE",
            help="Instead: a CSV with columns optical, sar and, if you like, split (train, val).",
        ),
    ] = None,
    model: ModelName = DistillOptions.model,
    bands: Bands = None,
    stretch: Stretch = SceneOptions.stretch,
    nodata: Nodata = None,
    sar_bands: Annotated[
        str | None, scene_option(metavar="1,2", help="Bands of the radar images, one or two.")
    ] = None,
    sar_stretch: Annotated[
        str, scene_option(metavar="HOW", help="The same as --stretch, of the radar images.")
    ] = SceneOptions.stretch,
    sar_nodata: Annotated[
        float | None,
        scene_option(
            metavar="VALUE|none",
            parser=parse_nodata,
            help="The same as --nodata, of the radar images.",
        ),
    ] = None,
    sar_unit: SarUnit = SceneOptions.sar_unit,
    speckle: Speckle = None,
    regions: Annotated[
        int, model_option(metavar="K", help="Features are compared in K x K regions.")
    ] = DistillOptions.regions,
    temperature: Annotated[
        float, model_option(metavar="TAU", help="Of the contrast, in the beginning.")
    ] = DistillOptions.temperature,
    steps: Steps = None,
    epochs: Epochs = DistillOptions.epochs,
    batch_size: TrainBatchSize = DistillOptions.batch_size,
    accumulate: Accumulate = DistillOptions.accumulate,
    crop: CropSide = DistillOptions.crop,
    learning_rate: LearningRate = DistillOptions.learning_rate,
    warmup_steps: WarmupSteps = DistillOptions.warmup_steps,
    held_out: HeldOut = DistillOptions.held_out,
    validate_every: ValidateEvery = None,
    save_every: SaveEvery = DistillOptions.save_every,
    log_every: LogEvery = DistillOptions.log_every,
    seed: Seed = DistillOptions.seed,
    device: Device = DistillOptions.device,
    precision: Precision = DistillOptions.precision,
    checkpointing: Annotated[
        bool,
        run_option("--checkpointing", help="Compute activations twice instead of keeping them."),
    ] = False,
    workers: Workers = DistillOptions.workers,
    threads: Threads = None,
    resume: Resume = False,
    overwrite: OverwriteRun = False,
    stop_at: StopAt = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Teach an optical model to read radar images, from pairs of both (AlignEarth).

    Logged: loss = contrast + token + region; contrast is 2 ln(batch size) by chance, token and
    region are 1 - cosine. Measured on held-out crops: recall@1 both ways (1 / pairs by chance),
    and cosines of class tokens and of regions.

    Example: segearth distill-sar --optical rgb/ --sar vh/ -o radar --model vit-b-16
    """
    given = dict(locals())
    terminal.log_to_stderr(not quiet, quiet, many_scenes=True, hidden=terminal.OF_PLACES)
    parsed = {
        "optical_scene": SceneOptions(
            sensor="optical", bands=parse_bands(bands), stretch=stretch, nodata=nodata
        ),
        "sar_scene": SceneOptions(
            sensor="sar",
            bands=parse_bands(sar_bands),
            stretch=sar_stretch,
            nodata=sar_nodata,
            sar_unit=sar_unit,
            speckle=speckle,
        ),
        "progress": not quiet,
    }
    options = DistillOptions(**own(DistillOptions, given | parsed))
    from segearth_cli.training.distill import distill_sar

    show_training(lambda: distill_sar(options), json, quiet)


def show_training(train: Callable[[], TrainResult | None], as_json: bool, quiet: bool) -> None:
    """What a training comes to: every measure, before and after; or how to go on with it."""
    try:
        result = train()
    except Stopped as stop:  # which says the rest itself
        if as_json and stop.result is not None:
            print_result(stop.result)
        raise
    if result is None:  # another process's to show
        return
    if as_json:
        print_result(result)
    if quiet:
        return
    if result.step < result.steps:
        terminal.console().print(
            Text(
                f"stopped at step {result.step} of {result.steps}, and saved; go on with --resume "
                "and without --stop-at, or with a later one"
            )
        )
        return
    first, last = result.measured[0], result.measured[-1]
    rows = [[name, f"{first[name]:.4g}", f"{last[name]:.4g}"] for name in last if name != "step"]
    out = terminal.console()
    out.print(
        terminal.table(
            "On what was held out",
            ["", "before", f"after {counted(int(last['step']), 'step')}"],
            rows,
        )
    )
    if result.skipped:
        number = len(result.skipped)
        what = "file or pair was" if number == 1 else "files or pairs were"
        out.print(Text(f"{number} {what} skipped: see training.json"))
    out.print(Text(f"{result.output} in {result.seconds:.0f} s"))


def print_result(result: Any) -> None:
    """What a training came to, as JSON on stdout."""
    print_json({"status": result.status, **asdict(result)})

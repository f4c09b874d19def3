"""``segearth evaluate``: options become a dataclass, then one call."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from segearth_cli import terminal
from segearth_cli.errors import UsageError
from segearth_cli.flags import (
    Bands,
    BatchSize,
    Blend,
    Device,
    Exact,
    Json,
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
    scene_option,
)
from segearth_cli.options import (
    ATTENTIONS,
    CompareOptions,
    EvaluateOptions,
    SceneOptions,
    parse_bands,
    parse_label_values,
    parse_list,
    parse_numbers,
    parse_whole,
)


def evaluate_command(
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
        Path | None,
        map_option(metavar="FILE|DIR", help="Maps to measure, instead of a model; or a folder."),
    ] = None,
    label: Annotated[
        Path | None, map_option(metavar="FILE|DIR", help="Their labels, by stem in a folder.")
    ] = None,
    classes: Annotated[
        str | None,
        map_option(metavar="A,B,...", help="Names of a map's values 0, 1, ..., if it has none."),
    ] = None,
    label_values: Annotated[
        str | None,
        map_option(
            metavar="LABEL=MAP,...",
            help="Values of the map for those of the label; * for the rest.",
        ),
    ] = None,
    ignore: Annotated[
        str | None, map_option(metavar="N,...", help="Values of the label that say nothing.")
    ] = None,
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
    modulated_blocks: Annotated[
        int | None, model_option(metavar="N", help="Blocks with that attention, from the last.")
    ] = None,
    threshold: Annotated[
        float | None, class_option(metavar="0..1", help="Less certain pixels are background.")
    ] = None,
    logit_scale: Annotated[
        float | None, model_option(metavar="FACTOR", help="Sharpness of the softmax.")
    ] = None,
    window: Window = None,
    stride: Stride = None,
    blend: Blend = "mean",
    bands: Bands = None,
    stretch: Stretch = "auto",
    sar_unit: SarUnit = "auto",
    speckle: Speckle = None,
    device: Device = "auto",
    precision: Precision = "auto",
    batch_size: BatchSize = None,
    exact: Exact = False,
    threads: Threads = None,
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
    terminal.log_to_stderr(verbose, quiet, pictures=not verbose)
    form = terminal.table_form(json, csv, markdown)
    of_maps = {
        "--label": label,
        "--classes": classes,
        "--label-values": label_values,
        "--ignore": ignore,
    }
    of_datasets = {
        "--root": root, "--list": list_file, "--limit": limit, "--attention": attention,
        "--global-bias": global_bias, "--long-side": long_side, "--threshold": threshold,
        "--window": window, "--stride": stride, "--bands": bands,
    }  # fmt: skip
    idle = of_maps if dataset is not None else of_datasets
    strange = next((name for name, value in idle.items() if value is not None), None)
    if strange is not None and (dataset is not None or pred is not None):
        other = "--pred, not of --dataset" if dataset is not None else "--dataset, not of --pred"
        raise UsageError(f"{strange} is an option of {other}; leave it out")
    if (dataset is None) == (pred is None):
        raise UsageError("say what to measure: --dataset NAME --root DIR, or --pred and --label")
    if dataset is not None:
        if root is None:
            raise UsageError(f"--dataset {dataset} lies somewhere: name its folder with --root")
        from segearth_cli.evaluate import evaluate

        options = EvaluateOptions(
            dataset=dataset,
            root=root,
            names=list_file,
            limit=limit,
            models=parse_list(model),
            attentions=parse_list(attention),
            upsamplers=parse_list(upsampler),
            global_biases=parse_numbers("--global-bias", global_bias),
            long_sides=parse_whole("--long-side", long_side),
            modulated_blocks=modulated_blocks,
            threshold=threshold,
            logit_scale=logit_scale,
            window=window,
            stride=stride,
            blend=blend,
            scene=SceneOptions(
                bands=parse_bands(bands), stretch=stretch, sar_unit=sar_unit, speckle=speckle
            ),
            device=device,
            precision=precision,
            batch_size=batch_size,
            exact=exact,
            threads=threads,
            progress=not quiet,
        )
        terminal.show_evaluation(evaluate(options), form, quiet)
        return
    if pred is None or label is None:
        raise UsageError(f"--pred {pred} needs labels to be measured against: --label FILE")
    from segearth_cli.compare import compare

    comparison = CompareOptions(
        maps=pred,
        labels=label,
        classes=parse_list(classes),
        label_values=parse_label_values(label_values),
        ignore=parse_whole("--ignore", ignore),
        progress=not quiet,
    )
    terminal.show_comparison(compare(comparison), form, quiet)

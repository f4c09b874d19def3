"""A model measured on a labelled dataset by the authors' protocol (paper 5.2).

Images are resized to the long side, cut into windows, and their logits resized back to the label.
Settings that are compared share one walk through the encoder where they can (`model.variants`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from segearth_cli import __version__
from segearth_cli.device import (
    memory_guard,
    pass_size,
    pick_device,
    precision_here,
    release_memory,
    use_threads,
)
from segearth_cli.errors import ModelError, UsageError
from segearth_cli.fitness import (
    warn_of_radar_options,
    warn_of_sensor,
    warn_of_window,
    warn_of_words,
)
from segearth_cli.geo.dataset_labels import check_labels, check_shapes, read_label
from segearth_cli.geo.dataset_maps import DatasetMaps
from segearth_cli.geo.datasets import Dataset, Sample, find_samples, pieces, read_dataset
from segearth_cli.geo.legend import Legend
from segearth_cli.geo.raster import open_scene
from segearth_cli.geo.recorded import to_tags
from segearth_cli.geo.tiling import WindowGrid
from segearth_cli.model.files import file_digest
from segearth_cli.model.prompts import class_colours
from segearth_cli.model.segmenter import (
    NO_NUMBERS,
    ModelSettings,
    Segmenter,
    load_segmenters,
    model_settings,
)
from segearth_cli.model.variants import variant_logits
from segearth_cli.model.weights import resolve_model
from segearth_cli.options import EvaluateOptions, ModelOptions, SceneOptions
from segearth_cli.progress import progress_bar
from segearth_cli.record import PROMPTS
from segearth_cli.scores import IGNORED, Confusion, FileScores, Scores


@dataclass(frozen=True)
class Row:
    """One setting, and what it scores."""

    model: str
    attention: str
    modulated_blocks: int | None  # None of gem, which has a depth of its own
    upsampler: str
    global_bias: float
    long_side: int  # pixels; 0 = as the images are
    threshold: float
    logit_scale: float
    window: int  # pixels; 0 = the whole image at once
    stride: int | None  # pixels; None of whole images
    blend: str
    precision: str
    exact: bool
    model_digest: str
    upsampler_digest: str | None  # sha256 of its file; None of bilinear
    version: str  # of segearth
    scores: Scores
    files: tuple[FileScores, ...]  # each image's, where they were asked for


@dataclass(frozen=True)
class EvaluateResult:
    """A dataset, and every setting's scores on it."""

    dataset: str
    metric: str
    paper_score: float | None  # percent, of the paper's model
    images: int
    classes: tuple[tuple[str, ...], ...]  # and the words they are looked for by
    rows: tuple[Row, ...]
    seconds: float


def evaluate(options: EvaluateOptions) -> EvaluateResult:
    """Score every combination of the options' values on a dataset.

    Raises:
        SegEarthError: no such dataset or model, or an image or label cannot be read.
    """
    dataset = read_dataset(options.dataset)
    samples = find_samples(dataset, options.root, options.names)[: options.limit]
    return measure(dataset, samples, options)


def measure(
    dataset: Dataset, samples: Sequence[Sample], options: EvaluateOptions
) -> EvaluateResult:
    """The same of a dataset and samples in hand.

    Raises:
        SegEarthError: no such model, or an image or label cannot be read.
    """
    started = time.perf_counter()
    if threshold_of(dataset, options) and dataset.background_index is None:
        raise UsageError(
            f"--threshold: no class of {dataset.name} is the background that uncertain pixels "
            "become; leave it out, or name one in background_index"
        )
    asked = [*dict.fromkeys(options.models)]
    every = [settings_of(name, dataset, options) for name in asked]
    called = [settings[0].name for settings in every]
    for place, name in enumerate(asked):
        if called.count(called[place]) > 1:  # what was asked for tells them apart
            every[place] = [replace(one, name=name) for one in every[place]]
    warn_of_mismatch(dataset, every, options)
    maps = None if options.maps is None else maps_into(options.maps, dataset, samples)
    if maps is not None and sum(map(len, every)) * len(options.long_sides or (0,)) > 1:
        raise UsageError("--maps is of one setting; name one of all that are compared")
    check_labels(dataset, samples, options.progress)
    use_threads(options.scene.threads)
    rows: list[Row] = []
    images = len(samples) * len(every)
    with progress_bar(options.progress, total=images, unit="image", desc=dataset.name) as progress:
        for settings in every:
            rows += rows_of(settings, dataset, samples, options, progress.update, maps)
            release_memory(pick_device(options.model.device))  # one model at a time is held
    return EvaluateResult(
        dataset=dataset.name,
        metric=dataset.metric,
        paper_score=dataset.paper_score,
        images=len(samples),
        classes=dataset.classes,
        rows=tuple(rows),
        seconds=time.perf_counter() - started,
    )


def settings_of(name: str, dataset: Dataset, options: EvaluateOptions) -> list[ModelSettings]:
    """Every setting of one model, without reading its weights.

    Raises:
        SegEarthError: there is no such model, upsampler or device, or options exclude each other.
    """
    folder = resolve_model(name, dataset.sensor)
    precision = precision_here(options.model)
    own = by_protocol(options.model, dataset)
    attentions = options.attentions or (dataset.attention or folder.card.attention,)
    is_for_another = options.model.modulated_blocks is None or {*attentions} != {"gem"}
    every: list[ModelSettings] = []
    for attention, upsampler, bias in product(
        attentions,
        options.upsamplers,
        options.global_biases or (dataset.global_bias,),
    ):
        varied = replace(
            own, model=name, attention=attention, upsampler=upsampler, global_bias=bias
        )
        if attention == "gem" and is_for_another:
            varied = replace(varied, modulated_blocks=None)
        settings = model_settings(folder, varied, precision)
        if settings not in every:  # auto and bilinear may be the same
            every.append(settings)
    return every


def by_protocol(model: ModelOptions, dataset: Dataset) -> ModelOptions:
    """How models run on a dataset: as it says, where the options are silent."""
    window = dataset.window if model.window is None else model.window
    stride = model.stride
    if stride is None and model.window is None and window != 0:
        stride = dataset.stride
    blocks = dataset.modulated_blocks if model.modulated_blocks is None else model.modulated_blocks
    return replace(model, window=window, stride=stride, modulated_blocks=blocks)


def maps_into(folder: Path, dataset: Dataset, samples: Sequence[Sample]) -> DatasetMaps:
    """Where the images' maps go, in the colours of the dataset's own labels if it has any.

    Raises:
        OutputError: a map is there already.
    """
    own = [*dataset.palette, *[None] * (len(dataset.classes) - len(dataset.palette))]
    colours = tuple(class_colours(dataset.classes, own))
    values = tuple(range(len(dataset.classes)))
    return DatasetMaps(folder, samples, Legend(values, dataset.names, colours, IGNORED))


def warn_of_mismatch(
    dataset: Dataset, every: list[list[ModelSettings]], options: EvaluateOptions
) -> None:
    """Say so when a model, or an option, is not for such images or windows."""
    remedy = 'describe it by a file with sensor = "sar"'
    for settings in every:
        warn_of_sensor(dataset.name, dataset.sensor, settings[0], remedy)
        warn_of_window(settings[0])
    warn_of_radar_options(dataset.name, dataset.sensor, options.scene, remedy)


def rows_of(
    every: Sequence[ModelSettings],
    dataset: Dataset,
    samples: Sequence[Sample],
    options: EvaluateOptions,
    done: Callable[[], object],
    maps: DatasetMaps | None = None,
) -> list[Row]:
    """What one model's settings score; ``done`` is called after each image.

    The map of each image by the last setting goes to ``maps``.

    Raises:
        SegEarthError: the model is damaged, an image or label cannot be read, or there is not
            enough memory.
    """
    sides = options.long_sides or (dataset.long_side,)
    warn_of_words(every[0], dataset.queries)
    segmenters = load_segmenters(every, dataset, pick_device(options.model.device))
    keys = list(product(sides, range(len(every))))
    totals = {key: Confusion(len(dataset.classes)) for key in keys}
    files: dict[tuple[int, int], list[FileScores]] = {key: [] for key in keys}
    scene = every[0].folder.card.radar_read(options.scene)
    for sample in samples:
        truth = read_label(sample, dataset)
        made = np.full_like(truth, IGNORED)
        counts = {key: Confusion(len(dataset.classes)) for key in keys}
        for image, place in read_pieces(sample, truth.shape, dataset, scene):
            own = truth[place]
            for side in sides:
                scaled = resized(image, side)
                grid = every[0].windows(*scaled.shape[1:])
                classes = predicted(scaled, grid, own.shape, segmenters, dataset, options)
                for number, found in enumerate(classes):
                    counts[side, number].add(own, found)
                    made[place] = found
        for key, confusion in counts.items():
            totals[key].merge(confusion)
            if options.per_image:
                scores = confusion.scores(dataset.names)
                files[key].append(FileScores(str(sample.image), scores))
        if maps is not None:
            maps.write(sample, made, map_tags(every[-1], sample, dataset))
        done()
    return [
        row_of(every[number], side, dataset, options, totals[side, number], files[side, number])
        for side, number in keys
    ]


def map_tags(settings: ModelSettings, sample: Sample, dataset: Dataset) -> dict[str, str]:
    """How a map of a dataset's image was made: no command of ``segment`` makes it again."""
    return to_tags(
        {
            "version": __version__,
            "source": str(sample.image),
            "dataset": dataset.name,
            "model": {**settings.as_record(), "upsampler": upsampler_name(settings)},
            "model_digest": settings.folder.digest(),
            "classes": dataset.classes,
            "prompts": PROMPTS,
        }
    )


def row_of(
    settings: ModelSettings,
    side: int,
    dataset: Dataset,
    options: EvaluateOptions,
    confusion: Confusion,
    files: Sequence[FileScores],
) -> Row:
    """A row of the table."""
    return Row(
        model=settings.name,
        attention=settings.attention,
        modulated_blocks=None if settings.attention == "gem" else settings.modulated_blocks,
        upsampler=upsampler_name(settings),
        global_bias=settings.global_bias,
        long_side=side,
        threshold=threshold_of(dataset, options),
        logit_scale=settings.logit_scale,
        window=settings.window,
        stride=settings.stride if settings.window else None,
        blend=settings.blend,
        precision=settings.precision,
        exact=settings.exact,
        model_digest=settings.folder.digest(),
        upsampler_digest=(
            None if settings.upsampler == "bilinear" else file_digest(Path(settings.upsampler))
        ),
        version=__version__,
        scores=confusion.scores(dataset.names),
        files=tuple(files),
    )


def upsampler_name(settings: ModelSettings) -> str:
    """``bilinear``, ``upsampler`` for the model's own, or a file with the folder it lies in."""
    path = Path(settings.upsampler)
    if settings.upsampler == "bilinear" or path == settings.folder.upsampler:
        return path.stem
    return "/".join(path.absolute().parts[-2:])


def threshold_of(dataset: Dataset, options: EvaluateOptions) -> float:
    """The probability below which a pixel is background."""
    return dataset.threshold if options.threshold is None else options.threshold


def read_pieces(
    sample: Sample, shape: tuple[int, ...], dataset: Dataset, options: SceneOptions
) -> Iterator[tuple[NDArray[np.float32], tuple[slice, slice]]]:
    """An image, 3 x H x W in [0, 1], and its place in the label; or piece by piece.

    Raises:
        SceneError: it cannot be read, or is read as another part of the ground than a label of
            that ``shape``.
    """
    with open_scene(str(sample.image), replace(options, sensor=dataset.sensor)) as scene:
        size = (scene.grid.height, scene.grid.width)
        check_shapes(sample, size, shape)
        for rows, columns in pieces(*size, sample.layout):
            height, width = rows.stop - rows.start, columns.stop - columns.start
            image, _ = scene.read(rows.start, height, columns.start, width)
            is_whole = sample.layout.patch is None  # whose label may have another size
            yield image, (slice(None), slice(None)) if is_whole else (rows, columns)


@torch.inference_mode()
def predicted(
    image: NDArray[np.float32],
    grid: WindowGrid,
    shape: tuple[int, ...],
    segmenters: list[Segmenter],
    dataset: Dataset,
    options: EvaluateOptions,
) -> Iterator[NDArray[np.uint8]]:
    """The class of every pixel of the label by each setting, H x W."""
    size = pass_size(segmenters[0].device, options.model, grid)
    advice = "try a smaller --batch-size, --long-side or --window, --device cpu, or fewer settings"
    with memory_guard(advice):
        every = variant_logits(segmenters, image, grid, size)
        for segmenter, logits in zip(segmenters, every, strict=True):
            yield classes_of(
                segmenter,
                logits,
                (shape[0], shape[1]),
                threshold_of(dataset, options),
                dataset.background_index,
            )


def resized(image: NDArray[np.float32], long_side: int) -> NDArray[np.float32]:
    """The image so that its longer side has that many pixels; 0 leaves it as it is."""
    if not long_side:
        return image
    factor = long_side / max(image.shape[1:])
    height, width = (max(1, int(side * factor + 0.5)) for side in image.shape[1:])
    if (height, width) == image.shape[1:]:
        return image
    pixels = torch.from_numpy(np.ascontiguousarray(image))[None]
    made = F.interpolate(pixels, (height, width), mode="bilinear", align_corners=False)
    return np.asarray(made[0].numpy())


def classes_of(
    segmenter: Segmenter,
    logits: Tensor,
    shape: tuple[int, int],
    threshold: float,
    background: int | None,
) -> NDArray[np.uint8]:
    """Classes of logits Q x h x w on the label's pixels, H x W; the uncertain are background."""
    if logits.shape[1:] != shape:
        logits = F.interpolate(logits[None], shape, mode="bilinear", align_corners=False)[0]
    best, index = segmenter.class_probabilities(logits).max(dim=0)
    if not best.isfinite().all():
        raise ModelError(NO_NUMBERS)
    if background is not None:
        index[best < threshold] = background
    return np.asarray(index.to(torch.uint8).cpu().numpy())

"""A scene streamed through the network: rows of windows in, finished rows of the map out.

Memory holds one row of windows, whatever the scene's height; a pixel's logits are summed in the
same order however the scene is read and whatever the batch size.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeAlias, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segearth_cli.device import fetched, has_own_memory, memory_guard, pass_size, ready_for
from segearth_cli.errors import ModelError, UsageError
from segearth_cli.fitness import warn_of_words
from segearth_cli.geo.legend import Legend
from segearth_cli.geo.raster import Scene
from segearth_cli.geo.tiling import WindowGrid
from segearth_cli.geo.writer import TILE
from segearth_cli.model.mosaic import blended_logits
from segearth_cli.model.prompts import BACKGROUND_COLOUR, Vocabulary, build_vocabulary
from segearth_cli.model.segmenter import (
    NO_NUMBERS,
    ModelSettings,
    Segmenter,
    load_segmenter,
    model_settings,
)
from segearth_cli.model.weights import found_model
from segearth_cli.model.windows import MARGIN, Strip
from segearth_cli.names import title_of
from segearth_cli.options import UNCLASSIFIED, SegmentOptions
from segearth_cli.progress import progress_bar
from segearth_cli.stages import stage

PERCENT_NODATA = 255
COLUMNS = 4096  # scored at once
MOST_COORDINATES = 128  # that features usually need (see `model.coordinates`)
USUAL_MEMORY = 2400 << 20  # bytes
NARROWEST = 8  # windows that a panel is wide unless less memory is asked for
WORTHWHILE = 0.9  # of the memory: more panels than that saves are not
BASE_MEMORY = 1100 << 20  # bytes: torch, GDAL and its cache

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rows:
    """Finished rows of the map, the next ones from the top."""

    classes: NDArray[Any]  # h W; raster values
    confidence: NDArray[np.uint8]  # h W; percent
    probabilities: NDArray[np.uint8] | None  # K h W; percent


Panels: TypeAlias = Generator[tuple[WindowGrid, Generator[Rows, None, None]], None, None]


class Classifier(Protocol):
    """What a scene's map is made by: a model here, or the workers that hold one."""

    @property
    def settings(self) -> ModelSettings:
        """The model's."""

    @property
    def vocabulary(self) -> Vocabulary:
        """The words that are looked for."""

    @property
    def legend(self) -> Legend:
        """What the map looks like."""

    def check(self, options: SegmentOptions) -> None:
        """Refuse options that it was not loaded for.

        Raises:
            UsageError: it looks for other words, or runs in another way.
        """

    def panels(self, scene: Scene, options: SegmentOptions, folder: Path) -> Panels:
        """The scene's map in panels from the left, with each one's rows from the top.

        ``folder`` is for working files.
        """


@dataclass(frozen=True)
class Model:
    """A segmenter with its settings, the words it was loaded for and what their map looks like."""

    segmenter: Segmenter
    settings: ModelSettings
    vocabulary: Vocabulary
    legend: Legend

    def check(self, options: SegmentOptions) -> None:
        """Refuse options that it was not loaded for.

        Raises:
            UsageError: it looks for other words, or runs in another way.
        """
        if build_vocabulary(options) != self.vocabulary:
            raise UsageError(
                f"the model was loaded for {', '.join(self.vocabulary.names)}, and the options "
                "name other words or colours; load one for each choice of classes"
            )
        own, folder = options.model, self.settings.folder
        if own.model != "auto":
            other = found_model(own.model, folder.card.sensor)
            if other.path != folder.path and other.digest() != folder.digest():
                raise UsageError(
                    f"the model that was loaded is {self.settings.name}, and the options name "
                    f"{own.model}"
                )
        precision = own.precision_wanted
        if precision == "auto":
            precision = self.settings.precision
        if model_settings(folder, own, precision) != self.settings:
            raise UsageError(
                "the model was loaded with other settings than those of the options; load one for "
                "each choice of them"
            )

    def panels(self, scene: Scene, options: SegmentOptions, folder: Path) -> Panels:
        """As few as memory allows, computed one after the other."""
        grid = window_grid(scene, self.settings)
        queries, device = len(self.vocabulary.queries), self.segmenter.device
        panels, _ = scene_panels(grid, self.settings, queries, device, options)
        for panel in panels:
            yield panel, classify_rows(scene, self, options, panel)


def load_model(options: SegmentOptions, sensor: str) -> Model:
    """The model that the options name, ready for scenes of that sensor."""
    vocabulary = build_vocabulary(options)
    segmenter, settings = load_segmenter(options.model, vocabulary, sensor)
    logger.info(
        "model %s: attention %s, upsampler %s, %s on %s",
        settings.name,
        settings.attention,
        settings.upsampler,
        settings.precision,
        segmenter.device,
    )
    warn_of_words(settings, vocabulary.queries)
    return Model(segmenter, settings, vocabulary, class_legend(vocabulary))


def class_legend(vocabulary: Vocabulary) -> Legend:
    """Values, names and colours of the class raster; value 0 always has an entry."""
    values, names, colours = vocabulary.values, vocabulary.names, vocabulary.colours
    if not vocabulary.has_background:
        values, names = (0, *values), (UNCLASSIFIED, *names)
        colours = (BACKGROUND_COLOUR, *colours)
    nodata, dtype = (255, "uint8") if values[-1] < 255 else (65535, "uint16")
    return Legend(values, names, colours, nodata, dtype)


def window_grid(scene: Scene, settings: ModelSettings) -> WindowGrid:
    """The windows over a scene."""
    return settings.windows(scene.grid.height, scene.grid.width)


def memory_estimate(grid: WindowGrid, queries: int, windows: int, coordinates: int) -> int:
    """Bytes of memory that a scene, or a panel, takes at most, but for polygons and weights.

    ``windows`` go through the network at once; ``coordinates`` of features are brought to pixel
    resolution, none by bilinear interpolation. All three are 0 where a GPU holds them.
    """
    left, right = grid.columns_seen
    rows = grid.window_height
    image = 3 * 6 * (right - left + 2 * MARGIN) * (rows + 2 * MARGIN)  # read ahead, kept, padded
    logits = queries * (right - left) * (rows + 2 * grid.stride)
    halves = 3 * len(grid.columns) * coordinates * (rows // 2 + 8) ** 2  # rows of windows
    at_once = windows * rows * grid.window_width * (2 * queries + 3 + coordinates)
    scored = 8 * queries * rows * min(COLUMNS, right - left)
    return BASE_MEMORY + 4 * (image + logits + halves + at_once + scored)  # float32


def panel_width(grid: WindowGrid, count: int) -> int:
    """Of at most ``count`` panels of equal width, in whole tiles of the map."""
    return -(-grid.width // (TILE * count)) * TILE


def panels_across(grid: WindowGrid, count: int) -> list[WindowGrid]:
    """The grid in panels of equal width; at most ``count``."""
    wide = panel_width(grid, count)
    return [
        replace(grid, wanted=(first, min(grid.width, first + wide)))
        for first in range(0, grid.width, wide)
    ]


def scene_panels(
    grid: WindowGrid,
    settings: ModelSettings,
    queries: int,
    device: torch.device,
    options: SegmentOptions,
) -> tuple[list[WindowGrid], int]:
    """The grid in as few panels as keep below the limit, and what they take at most.

    The limit is ``--max-memory``, else ``USUAL_MEMORY`` beside the model's weights. A panel is some
    columns of whole tiles of the map, with all windows that touch them.

    Raises:
        UsageError: not even the narrowest panel keeps below ``--max-memory``.
    """
    windows = pass_size(device, options.model, grid)
    channels = settings.folder.embed_dim
    if settings.upsampler == "bilinear":
        channels = 0
    elif not settings.exact:
        channels = min(channels, MOST_COORDINATES)
    here = (0, 0, 0) if has_own_memory(device) else (queries, windows, channels)
    weights = 2 * settings.folder.size  # read, and as float32
    if options.probabilities:
        weights += 2 * queries * TILE * grid.width  # a row of tiles, and as it is written
        weights += 2 * queries * grid.stride * grid.width  # rows that arrive
    limit = options.max_memory or weights + USUAL_MEMORY
    tiles = -(-grid.width // TILE)
    fewest: list[WindowGrid] = []
    least = 0
    fewest_of_width = {panel_width(grid, n): n for n in range(tiles, 0, -1)}
    for count in sorted(fewest_of_width.values()):
        parts = panels_across(grid, count)
        most = weights + max(memory_estimate(part, *here) for part in parts)
        if most <= limit:
            return parts, most
        if not fewest or most < WORTHWHILE * least:
            fewest, least = parts, most
        first, end = parts[0].columns_wanted
        if options.max_memory is None and end - first < NARROWEST * grid.window_width:
            return fewest, least  # nobody asked for less
    if options.max_memory is None:
        return fewest, least
    raise UsageError(
        f"--max-memory is too little: panels {TILE} pixels wide take about "
        f"{math.ceil(10 * most / 2**30) / 10:.1f}GiB; give that much, or a smaller --window"
    )


def classify_rows(
    scene: Scene, model: Model, options: SegmentOptions, panel: WindowGrid | None = None
) -> Generator[Rows, None, None]:
    """The scene's map, or a panel's, from top to bottom, as soon as rows are final.

    Args:
        scene: what is read.
        model: runs over it.
        options: what the map holds.
        panel: of ``scene_panels``.

    Raises:
        SegEarthError: the scene cannot be read, or there is not enough memory.
    """
    whole = window_grid(scene, model.settings)
    grid = panel or whole
    device = model.segmenter.device
    size = pass_size(device, options.model, whole)
    valid: dict[int, NDArray[np.bool_]] = {}
    title = title_of(scene.source)
    progress = progress_bar(options.progress, total=len(grid), unit="window", desc=title)
    advice = (
        f"windows of {grid.window_height} x {grid.window_width} pixels were under way: "
        "try a smaller --window, --bbox, --max-memory, --device cpu or, on a GPU, a smaller "
        "--batch-size"
    )
    # closed here and not some day: nobody may read a scene that has been closed
    reading = contextlib.closing(read_ahead(read_strips(scene, grid, valid, device)))
    with progress, memory_guard(advice), reading as strips:
        blended = blended_logits(strips, model.segmenter, grid, size, progress.update)
        before: ScoredRows | None = None  # arrives while the device computes the next rows
        for row, logits in zip(grid.rows, blended, strict=True):
            with stage("classify"):
                scores = score_rows(logits, valid.pop(row)[: logits.shape[1]], model, options)
                rows = before.rows(model.legend) if before else None
            before = scores
            if rows:
                yield rows
        if before:
            yield before.rows(model.legend)


def read_strips(
    scene: Scene, grid: WindowGrid, valid: dict[int, NDArray[np.bool_]], device: torch.device
) -> Iterator[Strip]:
    """Every row of windows with the pixels around it; each row of the scene is read once.

    ``valid`` receives the validity mask of each row of windows, by its first row. The pixels are
    ready for the ``device``.
    """
    left, right = grid.columns_seen
    first_column, end_column = max(0, left - MARGIN), min(grid.width, right + MARGIN)
    width = end_column - first_column
    wanted = slice(*(column - first_column for column in grid.columns_wanted))
    beside = (first_column - left + MARGIN, right + MARGIN - end_column)
    image = np.empty((3, 0, width + sum(beside)), np.float32)
    mask = np.empty((0, width), np.bool_)
    top = 0  # row of the scene that is held first
    for row in grid.rows:
        first, end = max(0, row - MARGIN), min(grid.height, row + grid.window_height + MARGIN)
        with stage("read"):
            held = top + image.shape[1]
            image, mask, top = image[:, first - top :], mask[first - top :], first
            if held < end:
                new_image, new_mask = scene.read(held, end - held, first_column, width)
                new_image = np.pad(new_image, ((0, 0), (0, 0), beside), mode="edge")
                image = np.concatenate([image, new_image], axis=1)
                mask = np.concatenate([mask, new_mask])
            inside = mask[row - top : row - top + grid.window_height]
            valid[row] = inside[:, wanted]
            has_data = [
                bool(inside[:, column : column + grid.window_width].any())
                for column in (column - first_column for column in grid.columns)
            ]
            above, below = MARGIN - (row - top), row + grid.window_height + MARGIN - end
            strip = image  # which nobody changes
            if above or below:
                strip = np.pad(image, ((0, 0), (above, below), (0, 0)), mode="edge")
            pixels = ready_for(device, strip)
        yield Strip(row, pixels, tuple(has_data))


def read_ahead(strips: Iterator[Strip]) -> Generator[Strip, None, None]:
    """The same strips, the next one being read while one is used."""
    end = object()
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(next, strips, end)
        while True:
            with stage("wait for reading"):
                strip = coming.result()
            if strip is end:
                return
            coming = reader.submit(next, strips, end)
            yield cast(Strip, strip)


@dataclass(frozen=True)
class ScoredRows:
    """Finished rows of the map on their way from the device: values, percents, and of each class.

    Attributes:
        are_numbers: by parts.
        valid: which pixels have data.
        has_arrived: waits until they are here.
    """

    classes: Tensor
    confidence: Tensor
    are_numbers: Tensor
    probabilities: Tensor | None
    valid: NDArray[np.bool_]
    has_arrived: Callable[[], object]

    def rows(self, legend: Legend) -> Rows:
        """The rows as they are written, nodata where not valid.

        Raises:
            ModelError: the network's values overflowed.
        """
        self.has_arrived()
        if not self.are_numbers.all():
            raise ModelError(NO_NUMBERS)
        classes = self.classes.numpy().astype(legend.dtype, copy=False)
        percents = [one.numpy() for one in (self.confidence, self.probabilities) if one is not None]
        if not self.valid.all():
            missing = ~self.valid
            classes[missing] = legend.nodata
            for one in percents:
                one[..., missing] = PERCENT_NODATA
        return Rows(classes, percents[0], percents[1] if percents[1:] else None)


@torch.inference_mode()
def score_rows(
    logits: Tensor, valid: NDArray[np.bool_], model: Model, options: SegmentOptions
) -> ScoredRows:
    """Classes and confidence of finished rows (Q h W, h W)."""
    # a few columns: what is computed on the way takes several times their memory
    parts = [_score(part, model, options) for part in logits.split(COLUMNS, dim=2)]
    wholes = [torch.cat(same, dim=-1) for same in zip(*parts, strict=True)]
    (classes, confidence, are_numbers, *every), has_arrived = fetched(wholes)
    return ScoredRows(
        classes, confidence, are_numbers, every[0] if every else None, valid, has_arrived
    )


def _score(logits: Tensor, model: Model, options: SegmentOptions) -> list[Tensor]:
    """Values and percents of the best class, whether all are numbers, and the percents of every
    class where they are asked for.
    """
    probabilities = model.segmenter.class_probabilities(logits)
    best, index = probabilities.max(dim=0)
    is_byte = model.legend.dtype == "uint8"
    dtype = torch.uint8 if is_byte else torch.int32  # not every device knows uint16
    values = torch.tensor(model.vocabulary.values, dtype=dtype, device=logits.device)[index]
    values[best < options.threshold] = 0
    every = [to_percent(probabilities)] if options.probabilities else []
    return [values, to_percent(best), best.isfinite().all()[None], *every]


def to_percent(probability: Tensor) -> Tensor:
    """Whole percents, in bytes."""
    return (probability * 100).round().to(torch.uint8)

"""A scene streamed through the network: rows of windows in, finished rows of the map out.

Memory holds one row of windows, whatever the scene's height; a pixel's logits are summed in the
same order however the scene is read and whatever the batch size.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from segearth_cli.device import memory_guard, pass_size
from segearth_cli.geo.raster import Scene
from segearth_cli.geo.tiling import RollingBlend, WindowGrid
from segearth_cli.geo.writer import Legend
from segearth_cli.model.prompts import BACKGROUND_COLOUR, Vocabulary, build_vocabulary
from segearth_cli.model.segmenter import ModelSettings, Segmenter, load_segmenter
from segearth_cli.options import SegmentOptions

PERCENT_NODATA = 255
MOST_WAITING = 8  # windows per window of a pass
BASE_MEMORY = 1100 << 20  # bytes: torch, GDAL and its cache

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Model:
    """A segmenter with its settings, the words it was loaded for and what their map looks like."""

    segmenter: Segmenter
    settings: ModelSettings
    vocabulary: Vocabulary
    legend: Legend


@dataclass(frozen=True)
class Rows:
    """Finished rows of the map, the next ones from the top."""

    classes: NDArray[Any]  # h W; raster values
    confidence: NDArray[np.uint8]  # h W; percent
    probabilities: NDArray[np.uint8] | None  # K h W; percent


@dataclass(frozen=True)
class WindowImage:
    """One window on its way through the network."""

    image: NDArray[np.float32]  # 3 h w
    has_data: bool


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
    return Model(segmenter, settings, vocabulary, class_legend(vocabulary))


def class_legend(vocabulary: Vocabulary) -> Legend:
    """Values, names and colours of the class raster; value 0 always has an entry."""
    values, names, colours = vocabulary.values, vocabulary.names, vocabulary.colours
    if not vocabulary.has_background:
        values, names = (0, *values), ("unclassified", *names)
        colours = (BACKGROUND_COLOUR, *colours)
    nodata, dtype = (255, "uint8") if values[-1] < 255 else (65535, "uint16")
    return Legend(values, names, colours, nodata, dtype)


def window_grid(scene: Scene, settings: ModelSettings) -> WindowGrid:
    """The windows over a scene."""
    return WindowGrid(scene.grid.height, scene.grid.width, settings.window, settings.stride)


def memory_estimate(grid: WindowGrid, queries: int, windows: int, channels: int) -> int:
    """Bytes of memory that a scene takes at most, but for its polygons and the model's weights.

    ``windows`` go through the network at once; ``channels`` of features are brought to pixel
    resolution, none by bilinear interpolation.
    """
    strip = grid.width * (3 * queries + 8)  # logits, image, probabilities
    at_once = windows * grid.window_width * (2 * queries + 3 + 4 * channels)
    return BASE_MEMORY + 4 * grid.window_height * (strip + at_once)  # float32


def classify_rows(scene: Scene, model: Model, options: SegmentOptions) -> Iterator[Rows]:
    """The scene's map from top to bottom, as soon as rows are final.

    Raises:
        SegEarthError: the scene cannot be read, or there is not enough memory.
    """
    grid = window_grid(scene, model.settings)
    size = pass_size(model.segmenter.device, options.model.batch_size, len(grid))
    blend = RollingBlend(grid, len(model.vocabulary.queries))
    valid: dict[int, NDArray[np.bool_]] = {}
    logits = window_logits(read_windows(scene, grid, valid), model.segmenter, size)
    progress = tqdm(
        total=len(grid),
        unit="window",
        desc=Path(scene.source).name,
        disable=None if options.progress else True,  # None: where stderr is no terminal
        leave=False,
    )
    advice = (
        f"{size} windows of {grid.window_height} x {grid.window_width} pixels were under way: "
        "try a smaller --window, --bbox, --device cpu or, on a GPU, a smaller --batch-size"
    )
    with progress, memory_guard(advice):
        for row, row_end in blend.row_ends():
            for column in grid.columns:
                window_logit = next(logits)
                if window_logit is not None:
                    blend.add(column, window_logit)
                progress.update()
            mean_logits = blend.finish_row(row_end)
            yield score_rows(mean_logits, valid.pop(row)[: row_end - row], model, options)


def read_windows(
    scene: Scene, grid: WindowGrid, valid: dict[int, NDArray[np.bool_]]
) -> Iterator[WindowImage]:
    """Every window of the scene, row by row; each row of the scene is read once.

    ``valid`` receives the validity mask of each row of windows, by its first row.
    """
    image = np.empty((3, 0, grid.width), np.float32)
    mask = np.empty((0, grid.width), np.bool_)
    first = 0  # row of the scene that the strip starts with
    for row in grid.rows:
        new_row = first + image.shape[1]
        new_image, new_mask = scene.read(new_row, row + grid.window_height - new_row)
        image = np.concatenate([image[:, row - first :], new_image], axis=1)
        mask = np.concatenate([mask[row - first :], new_mask])
        first = row
        valid[row] = mask
        for column in grid.columns:
            across = slice(column, column + grid.window_width)
            yield WindowImage(image[:, :, across], bool(mask[:, across].any()))


def window_logits(
    windows: Iterator[WindowImage], segmenter: Segmenter, size: int
) -> Iterator[NDArray[np.float32] | None]:
    """Logits of each window in order, Q x h x w; ``None`` where a window has no data.

    Windows with data run in passes of ``size``.
    """
    waiting: list[WindowImage] = []

    def run() -> Iterator[NDArray[np.float32] | None]:
        images = [window.image for window in waiting if window.has_data]
        results = iter(run_pass(segmenter, images, size) if images else ())
        for window in waiting:
            yield next(results) if window.has_data else None
        waiting.clear()

    gathered = 0
    for window in windows:
        waiting.append(window)
        gathered += window.has_data
        # A window that waits keeps its strip in memory: not too many, even without data.
        if gathered == size or len(waiting) == MOST_WAITING * size:
            yield from run()
            gathered = 0
    yield from run()


def run_pass(
    segmenter: Segmenter, images: list[NDArray[np.float32]], size: int
) -> NDArray[np.float32]:
    """Logits of some windows in a forward pass of ``size`` windows: B Q h w."""
    batch = np.zeros((size, *images[0].shape), np.float32)
    batch[: len(images)] = images
    with torch.inference_mode():
        logits: NDArray[np.float32] = segmenter(torch.from_numpy(batch)).cpu().numpy()
    return logits[: len(images)]


def score_rows(
    logits: NDArray[np.float32], valid: NDArray[np.bool_], model: Model, options: SegmentOptions
) -> Rows:
    """Classes and confidence of finished rows (Q h W, h W); nodata where not valid."""
    device = model.segmenter.device
    probabilities = model.segmenter.class_probabilities(torch.from_numpy(logits).to(device))
    best, index = probabilities.max(dim=0)
    values = torch.tensor(model.vocabulary.values, device=device)[index]
    values[best < options.threshold] = 0
    classes = values.cpu().numpy().astype(model.legend.dtype)
    classes[~valid] = model.legend.nodata
    every = percent(probabilities, valid) if options.probabilities else None
    return Rows(classes, percent(best, valid), every)


def percent(probability: torch.Tensor, valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Whole percents, nodata where not valid (h W)."""
    rounded: NDArray[np.uint8] = (probability * 100).round().to(torch.uint8).cpu().numpy()
    rounded[..., ~valid] = PERCENT_NODATA
    return rounded

"""Labelled pixels as the network sees them: one walk through the encoder per scene.

Only pixels with labels are kept, and only windows that see one are run.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from segearth_cli.choose import Pixels
from segearth_cli.device import memory_guard, pass_size, use_threads
from segearth_cli.errors import SceneError, UsageError
from segearth_cli.fitness import warn_of_scene
from segearth_cli.geo.label_meaning import LabelMeaning
from segearth_cli.geo.labels import (
    Places,
    open_labels,
    spread_places,
)
from segearth_cli.geo.raster import Scene
from segearth_cli.model.points import point_cosines
from segearth_cli.model.prompts import Vocabulary, build_vocabulary
from segearth_cli.names import plain_label, plain_name, title_of
from segearth_cli.options import BACKGROUND_NAMES, UNCLASSIFIED, SegmentOptions, TuneOptions
from segearth_cli.progress import progress_bar
from segearth_cli.reading import check_options, open_for_model
from segearth_cli.stream import Model, class_legend, load_model, window_grid

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Looked:
    """A scene that has been looked at: its labelled pixels, and where they are."""

    source: str
    labels: str
    labelled: dict[int, int]  # pixels per value
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    pixels: Pixels


def look(options: TuneOptions) -> tuple[Model, list[Looked]]:
    """Take every scene's labelled pixels through the network, once; all labels are read before.

    Raises:
        SegEarthError: a scene or its labels cannot be read, or do not fit the classes.
    """
    own = options.segment
    check_options(own)
    vocabulary = build_vocabulary(own)
    meaning = label_meaning(vocabulary).explained(options)
    use_threads(own.threads)
    with contextlib.ExitStack() as stack:
        scenes = [stack.enter_context(open_for_model(source, own)) for source, _ in options.pairs]
        sensor = one_sensor(scenes)
        every = []
        for scene, (_, labels) in zip(scenes, options.pairs, strict=True):
            with open_labels(labels, scene.grid, meaning, options.column) as opened:
                every.append(spread_places(opened, options.samples))
        check_labels(every, meaning)
        model = load_model(own, sensor)
        looked = []
        for scene, (_, labels), places in zip(scenes, options.pairs, every, strict=True):
            warn_of_scene(scene, model.settings, own)
            looked.append(look_at(scene, labels, places, model, own))
    return model, looked


def label_meaning(vocabulary: Vocabulary) -> LabelMeaning:
    """What labels may call the classes: a name, a synonym that is of one class alone, or, of the
    background, any of its usual names.

    Raises:
        UsageError: a class besides the background has one of those.
    """
    names = class_legend(vocabulary).names
    of_background = {*BACKGROUND_NAMES, plain_name(names[0])}
    twice = next((name for name in names[1:] if plain_name(name) in of_background), None)
    if vocabulary.has_background and twice is not None:
        raise UsageError(
            f"the class {twice!r} and the background are the same to labels; leave one of them out"
        )
    first = names.index(vocabulary.names[0])
    words = [
        (plain_label(word), value)
        for value, synonyms in enumerate(vocabulary.classes, first)
        for word in synonyms
    ]
    of_one = {word: value for word, value in words if len({v for w, v in words if w == word}) == 1}
    own = {plain_label(name): value for value, name in enumerate(names)}
    values: dict[str, int | None] = {**of_one, **dict.fromkeys(of_background, 0), **own}
    if not vocabulary.has_background:
        values[UNCLASSIFIED] = None  # as a label it says nothing
    return LabelMeaning(dict(enumerate(names)), values)


def one_sensor(scenes: list[Scene]) -> str:
    """The sensor of all scenes.

    Raises:
        UsageError: they have different ones.
    """
    other = next((scene for scene in scenes if scene.sensor != scenes[0].sensor), None)
    if other is not None:
        raise UsageError(
            f"{scenes[0].source} is read as {scenes[0].sensor} and {other.source} as "
            f"{other.sensor}; tune them apart, or say --sensor"
        )
    return scenes[0].sensor


def check_labels(every: list[Places], meaning: LabelMeaning) -> None:
    """Refuse labels of a single class, and say which classes have none.

    Raises:
        SceneError: all labels are of one class.
    """
    found = set().union(*(places.labelled for places in every))
    if len(found) == 1:
        raise SceneError(
            f"all labels are {meaning.names[found.pop()]}; label pixels of two classes or more"
        )
    known = {value for value in meaning.by_text.values() if value is not None}
    is_class = {value for value in known if meaning.names[value] != UNCLASSIFIED}
    for value in sorted(is_class - found):
        logger.warning(
            "no pixel is labelled %s: its words stay as they are%s",
            meaning.names[value],
            "" if value else ", and so does the threshold",
        )


def look_at(
    scene: Scene, labels: str, places: Places, model: Model, options: SegmentOptions
) -> Looked:
    """One scene's labelled pixels through the network.

    Raises:
        SceneError: it cannot be read, or has no data where the labels are.
        SegEarthError: there is not enough memory.
    """
    grid = window_grid(scene, model.settings)
    size = pass_size(model.segmenter.device, options.model, grid)
    progress = progress_bar(options.progress, unit="window", desc=title_of(scene.source))
    advice = "try a smaller --window, --device cpu or, on a GPU, a smaller --batch-size"
    with progress, memory_guard(advice), torch.inference_mode():
        found = point_cosines(
            model.segmenter, grid, places.rows, places.columns, scene.read, size, progress.update
        )
    valid = found.valid
    if not valid.any():
        raise SceneError(f"{scene.source} has no data where {labels} has labels")
    pixels = Pixels(
        places.values[valid].astype(np.int64),
        places.weights[valid],
        found.cosines[:, valid],
        found.similarities[:, valid],
    )
    rows, columns = places.rows[valid], places.columns[valid]
    return Looked(scene.source, labels, places.labelled, rows, columns, pixels)

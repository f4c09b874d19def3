"""Words, lambda and threshold by a few labelled scenes: the story of ``segearth tune``."""

from __future__ import annotations

import logging
import math
import shlex
import time
from dataclasses import dataclass, replace
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray

from segearth_cli.choose import (
    Pixels,
    Setting,
    Space,
    choose,
    confusion_of,
    joined,
    labelled_ious,
    left_out,
    lookalikes,
    mean_iou,
)
from segearth_cli.look import look
from segearth_cli.model.prompts import class_text
from segearth_cli.model.weights import resolve_model
from segearth_cli.options import ModelOptions, SegmentOptions, TuneOptions
from segearth_cli.record import as_json, no_option, option_words
from segearth_cli.stream import Model

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TunedWords:
    """A setting in the words of the command line, and what it scores on labelled pixels."""

    classes: tuple[tuple[str, ...], ...]
    background: tuple[str, ...] | None
    threshold: float
    global_bias: float
    miou: float
    iou: dict[str, float | None]  # of each class; None where neither map nor label has it


@dataclass(frozen=True)
class LabelledScene:
    """A scene, its labels, and scores in it alone."""

    source: str
    labels: str
    pixels: dict[str, int]  # that are labelled, per class
    used: int  # of them
    before: float  # mIoU
    left_out: TunedWords | None  # what the other scenes chose, with its scores in this one


@dataclass(frozen=True)
class Apart:
    """Two classes that are hardly told apart; 0.5 is chance."""

    classes: tuple[str, str]
    auc: float


@dataclass(frozen=True)
class TuneResult:
    """What was chosen, by what, and whether that is any better.

    Attributes:
        before: the settings as they were given, or are by default.
        chosen: the best on the pixels that it was chosen by: its scores promise nothing.
        cross_miou, cross_iou: scores in scenes that had no part in the choice.
        is_tuned: whether the command has the chosen settings.
        command: to segment scenes with.
    """

    scenes: tuple[LabelledScene, ...]
    model: str
    before: TunedWords
    chosen: TunedWords
    cross_miou: float | None
    cross_iou: dict[str, float | None] | None
    lookalikes: tuple[Apart, ...]
    is_tuned: bool
    command: str
    seconds: float


def tune(options: TuneOptions) -> TuneResult:
    """Choose words, lambda and threshold by labelled scenes.

    Raises:
        SegEarthError: a scene or its labels cannot be read, or do not fit the classes.
    """
    started = time.perf_counter()
    model, looked = look(options)
    space, start = space_of(model, options.segment)
    scenes = [scene.pixels for scene in looked]
    pixels = joined(scenes)
    chosen = choose(pixels, space, start)
    folds = left_out(scenes, space, start) if len(scenes) > 1 else []
    before, after = (words_of(s, pixels, space, model) for s in (start, chosen))
    cross_miou, cross_iou = cross_scores(scenes, folds, space, model)
    is_tuned = cross_miou is None or cross_miou > before.miou
    apart = hardly_apart(pixels, space, chosen if is_tuned else start, model)
    warn_of_trust(cross_miou, before, apart)
    return TuneResult(
        scenes=tuple(
            LabelledScene(
                source=scene.source,
                labels=scene.labels,
                pixels={model.legend.names[v]: count for v, count in scene.labelled.items()},
                used=len(scene.pixels.values),
                before=words_of(start, scene.pixels, space, model).miou,
                left_out=words_of(fold, scene.pixels, space, model) if fold else None,
            )
            for scene, fold in zip_longest(looked, folds)
        ),
        model=model.settings.name,
        before=before,
        chosen=after,
        cross_miou=cross_miou,
        cross_iou=cross_iou,
        lookalikes=apart,
        is_tuned=is_tuned,
        command=command_of(options, model, after if is_tuned else before),
        seconds=time.perf_counter() - started,
    )


def space_of(model: Model, options: SegmentOptions) -> tuple[Space, Setting]:
    """What can be chosen from, and the setting that is used without any choice."""
    vocabulary = model.vocabulary
    space = Space(
        np.array(vocabulary.query_class), vocabulary.values[0], model.settings.logit_scale
    )
    every = tuple(range(len(vocabulary.queries)))
    return space, Setting(every, model.settings.global_bias, options.threshold)


def words_of(setting: Setting, pixels: Pixels, space: Space, model: Model) -> TunedWords:
    """A setting in words, with its scores on the pixels."""
    vocabulary = model.vocabulary
    classes: list[list[str]] = [[] for _ in vocabulary.classes]
    for query in setting.queries:
        classes[vocabulary.query_class[query]].append(vocabulary.queries[query])
    kept = tuple(map(tuple, classes))
    counts = confusion_of(pixels, space, setting)
    return TunedWords(
        classes=kept[1:] if vocabulary.has_background else kept,
        background=kept[0] if vocabulary.has_background else None,
        threshold=setting.threshold,
        global_bias=setting.global_bias,
        miou=float(mean_iou(counts)),
        iou=_by_name(counts, model),
    )


def _by_name(counts: NDArray[np.float64], model: Model) -> dict[str, float | None]:
    shares = labelled_ious(counts).tolist()
    return {
        name: None if math.isnan(share) else share
        for name, share in zip(model.legend.names, shares, strict=True)
    }


def cross_scores(
    scenes: list[Pixels], folds: list[Setting], space: Space, model: Model
) -> tuple[float | None, dict[str, float | None] | None]:
    """Mean IoU, and each class's, over all scenes, each by what the others chose."""
    if not folds:
        return None, None
    every = [confusion_of(pixels, space, fold) for pixels, fold in zip(scenes, folds, strict=True)]
    counts = np.sum(every, axis=0)
    return float(mean_iou(counts)), _by_name(counts, model)


def hardly_apart(pixels: Pixels, space: Space, setting: Setting, model: Model) -> tuple[Apart, ...]:
    """Pairs of classes that the logits do not tell apart, by name."""
    names = model.legend.names
    return tuple(
        Apart((names[pair.values[0]], names[pair.values[1]]), pair.auc)
        for pair in lookalikes(pixels, space, setting)
    )


def warn_of_trust(cross_miou: float | None, before: TunedWords, apart: tuple[Apart, ...]) -> None:
    """Say what the labels do not show, or show to be in vain."""
    if cross_miou is None:
        logger.warning(
            "one scene cannot check what was chosen by it: expect less elsewhere; label a second "
            "scene to learn how much"
        )
    elif cross_miou <= before.miou:
        logger.warning(
            "what some scenes choose is no better in the others than the defaults (mIoU %.1f "
            "against %.1f): the command has the defaults; more labelled scenes may help",
            100 * cross_miou,
            100 * before.miou,
        )
    for pair in apart:
        logger.warning(
            "%s and %s cannot be told apart (AUC %.2f; 0.5 is chance): try other words, or make "
            "them one class",
            *pair.classes,
            pair.auc,
        )


def command_of(options: TuneOptions, model: Model, words: TunedWords) -> str:
    """The ``segment`` command that uses a setting, on the first of the scenes."""
    own = options.segment
    unnamed = replace(own, model=replace(own.model, model=ModelOptions.model, global_bias=None))
    background = (
        ["--no-background"]
        if words.background is None
        else ["--background", "|".join(words.background)]
    )
    parts = [
        *("segearth", "segment", no_option(options.pairs[0][0])),
        *("--classes", class_text(words.classes)),
        *background,
        *("--threshold", f"{words.threshold:g}"),
        *("--global-bias", f"{words.global_bias:g}"),
        *("--model", model_name(own.model.model, model)),
        *(part for word in option_words(as_json(unnamed)) for part in word.split("=", 1)),
        *("-o", own.outputs[0]),
    ]
    return shlex.join(parts)


def model_name(asked: str, model: Model) -> str:
    """The model by name: ``auto`` may be another one tomorrow."""
    if asked != "auto":
        return asked
    folder = model.settings.folder
    return (
        folder.path.name
        if folder.path == resolve_model(folder.path.name).path
        else str(folder.path)
    )

"""Counts of true and predicted classes, and the scores that come of them; numpy only."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

IGNORED = 255  # a label that says nothing


@dataclass(frozen=True)
class ClassScores:
    """Scores of one class, in 0..1; NaN where neither map nor label has it."""

    name: str
    iou: float
    f1: float
    precision: float
    recall: float
    pixels: int  # of the label


@dataclass(frozen=True)
class Scores:
    """Scores of a map over all pixels of a dataset (not the mean over its images), in 0..1."""

    classes: tuple[ClassScores, ...]
    miou: float  # mean over the classes that map or label has
    mean_f1: float
    mean_accuracy: float  # mean recall
    accuracy: float  # share of the pixels
    foreground_iou: float | None  # of the second of two classes
    pixels: int
    confusion: tuple[tuple[int, ...], ...] = field(repr=False)  # rows are true classes

    @property
    def names(self) -> tuple[str, ...]:
        """Of the classes."""
        return tuple(scores.name for scores in self.classes)

    def of(self, metric: str) -> float:
        """The score that a table is about: ``mIoU`` or ``foreground IoU``."""
        is_foreground = metric == "foreground IoU" and self.foreground_iou is not None
        return float(self.foreground_iou or 0.0) if is_foreground else self.miou


@dataclass(frozen=True)
class FileScores:
    """An image or a map of those that were measured, and how it scores alone."""

    file: str
    scores: Scores


class Confusion:
    """Pixels by true class (rows) and predicted class (columns), added up exactly.

    Args:
        classes: how many there are.
    """

    def __init__(self, classes: int) -> None:
        self.counts = np.zeros((classes, classes), np.int64)

    def add(self, truth: NDArray[np.integer], predicted: NDArray[np.integer]) -> None:
        """Count pixels; both are class indices of equal shape, ``IGNORED`` ones are left out."""
        classes = len(self.counts)
        known = (truth < classes) & (predicted < classes)
        pairs = truth[known].astype(np.int64) * classes + predicted[known]
        self.counts += np.bincount(pairs, minlength=classes**2).reshape(classes, classes)

    def merge(self, other: Confusion) -> None:
        """Count what another one has counted, of the same classes."""
        self.counts += other.counts

    def scores(self, names: Sequence[str], unscored: Collection[int] = ()) -> Scores:
        """Every score of what was counted.

        Args:
            names: of the classes.
            unscored: indices of those that are none: a pixel predicted so is missed by its own
                class, and no mean has them in it.
        """
        hits = self.counts.diagonal().astype(np.float64)
        true, predicted = (self.counts.sum(axis=axis).astype(np.float64) for axis in (1, 0))
        iou = ious(self.counts)
        with np.errstate(invalid="ignore", divide="ignore"):
            f1 = 2 * hits / (true + predicted)
            precision, recall = hits / predicted, hits / true
            accuracy = hits.sum() / true.sum()
        for scores in (iou, f1, precision, recall):
            scores[[*unscored]] = np.nan
        return Scores(
            classes=tuple(
                ClassScores(name, float(i), float(f), float(p), float(r), int(n))
                for name, i, f, p, r, n in zip(names, iou, f1, precision, recall, true, strict=True)
            ),
            miou=_mean(iou),
            mean_f1=_mean(f1),
            mean_accuracy=_mean(recall),
            accuracy=float(accuracy),
            foreground_iou=float(iou[1]) if len(names) == 2 else None,
            pixels=int(true.sum()),
            confusion=tuple(map(tuple, self.counts.tolist())),
        )


def ious(counts: NDArray[Any]) -> NDArray[np.float64]:
    """IoU of each class from pixels, or their weights, by true (rows) and predicted class.

    ... x K x K -> ... x K; NaN where neither map nor label has the class.
    """
    hits = np.diagonal(counts, axis1=-2, axis2=-1).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        shares: NDArray[np.float64] = hits / (counts.sum(axis=-1) + counts.sum(axis=-2) - hits)
    return shares


def _mean(values: NDArray[np.float64]) -> float:
    """Mean of what is a number; NaN where nothing is."""
    numbers = values[np.isfinite(values)]
    return float(numbers.mean()) if numbers.size else float("nan")

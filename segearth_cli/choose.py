"""Words, lambda and threshold chosen by labelled pixels, and how far to trust the choice; numpy.

All of it is deterministic: the same pixels choose the same setting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from segearth_cli.scores import ious

BIASES = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)  # lambdas that are tried beside the model's own
THRESHOLDS = (0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
BETTER = 1e-6  # of a score: less is rounding
HIGHEST = 600.0  # exponent: a sum of many such terms is still a number
TOLD_APART = 0.6  # AUC from which on two classes are; 0.5 is chance


@dataclass(frozen=True)
class Setting:
    """What is chosen: which queries stay, lambda, and the probability below which a pixel is 0."""

    queries: tuple[int, ...]
    global_bias: float
    threshold: float


@dataclass(frozen=True)
class Space:
    """What can be chosen from.

    Attributes:
        query_class: index of each query's class; the queries of a class follow one another.
        first_value: of the map, that the first class has: 0 for the background, else 1.
        logit_scale: factor on the logits before the softmax.
    """

    query_class: NDArray[np.int64]
    first_value: int
    logit_scale: float

    @property
    def values(self) -> int:
        """How many values a map has, 0 among them."""
        return int(self.query_class[-1]) + 1 + self.first_value

    @property
    def names(self) -> tuple[int, ...]:
        """The first query of each class, which is always kept."""
        return tuple(np.flatnonzero(np.diff(self.query_class, prepend=-1)).tolist())


@dataclass(frozen=True)
class Pixels:
    """Labelled pixels: N of them, and Q queries.

    Attributes:
        values: true values of the map, N.
        weights: labelled pixels that each stands for, N.
        cosines, similarities: Q x N; logits are cosines less lambda times similarities.
    """

    values: NDArray[np.int64]
    weights: NDArray[np.float64]
    cosines: NDArray[np.float32]
    similarities: NDArray[np.float32]

    def logits(self, global_bias: float) -> NDArray[np.float64]:
        """Logits of every query, Q x N."""
        return self.cosines.astype(np.float64) - global_bias * self.similarities


@dataclass(frozen=True)
class Lookalikes:
    """Two classes that the logits hardly tell apart."""

    values: tuple[int, int]
    auc: float


def joined(parts: Sequence[Pixels]) -> Pixels:
    """Pixels of several scenes as those of one."""
    return Pixels(
        np.concatenate([part.values for part in parts]),
        np.concatenate([part.weights for part in parts]),
        np.concatenate([part.cosines for part in parts], axis=1),
        np.concatenate([part.similarities for part in parts], axis=1),
    )


def choose(pixels: Pixels, space: Space, start: Setting) -> Setting:
    """The best setting for the pixels that a greedy search from ``start`` finds.

    Lambda and threshold for all words first, then words go one by one as long as the score does
    not fall, then lambda and threshold for the rest, until nothing changes. Lambda and threshold
    stay those of ``start`` where no others are better.
    """
    best, chosen = score_of(pixels, space, start), start
    while True:
        before = chosen
        for bias in dict.fromkeys((start.global_bias, *BIASES)):
            found, threshold = best_threshold(
                terms(pixels, space, bias), pixels, space, chosen.queries, start.threshold
            )
            if found > best + BETTER:
                best, chosen = found, Setting(chosen.queries, bias, threshold)
        best, chosen = _without_words(pixels, space, chosen, best, start.threshold)
        if chosen == before:
            return chosen


def _without_words(
    pixels: Pixels, space: Space, setting: Setting, best: float, usual: float
) -> tuple[float, Setting]:
    """Drop the word without which the score is best, while it is no worse than before.

    Of equals the last one goes: people name the best words first. Words of a class that no pixel is
    labelled stay: without it in sight they could only be wrong.
    """
    labelled = np.isin(space.query_class + space.first_value, pixels.values)
    of_queries = terms(pixels, space, setting.global_bias)
    while True:
        trials = []
        for query in reversed(setting.queries):
            if labelled[query] and query not in space.names:
                rest = tuple(other for other in setting.queries if other != query)
                found, threshold = best_threshold(of_queries, pixels, space, rest, usual)
                trials.append((found, replace(setting, queries=rest, threshold=threshold)))
        found, without = max(trials, key=lambda trial: trial[0], default=(-1.0, setting))
        if found < best - BETTER:
            return best, setting
        best, setting = found, without


def best_threshold(
    of_queries: NDArray[np.float64],
    pixels: Pixels,
    space: Space,
    queries: tuple[int, ...],
    usual: float,
) -> tuple[float, float]:
    """The best score of these queries, and its threshold: the usual one, unless one is better.

    Pixels of value 0 must be labelled for that: any threshold could only harm the others.
    """
    thresholds = sorted({usual, *THRESHOLDS}) if (pixels.values == 0).any() else [usual]
    counts = confusions(of_queries, pixels, space, queries, thresholds)
    scores = mean_iou(counts)
    highest = float(scores.max())
    own = thresholds.index(usual)
    return highest, usual if scores[own] >= highest - BETTER else thresholds[int(scores.argmax())]


def terms(pixels: Pixels, space: Space, global_bias: float) -> NDArray[np.float64]:
    """Each query's term of the softmax, Q x N, as multiples of the largest among class names.

    Those are always kept: no choice of the others leaves a sum of zero.
    """
    exponents = space.logit_scale * pixels.logits(global_bias)
    exponents -= exponents[list(space.names)].max(axis=0)
    return np.exp(np.minimum(exponents, HIGHEST))


def decided(
    of_queries: NDArray[np.float64], space: Space, queries: tuple[int, ...]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The most probable class's value and its probability, N each; a class has its best query's."""
    kept = of_queries[list(queries)]
    firsts = np.flatnonzero(np.diff(space.query_class[list(queries)], prepend=-1))
    of_classes = np.maximum.reduceat(kept, firsts, axis=0)  # K x N
    probability = of_classes.max(axis=0) / kept.sum(axis=0)
    return of_classes.argmax(axis=0) + space.first_value, probability


def confusions(
    of_queries: NDArray[np.float64],
    pixels: Pixels,
    space: Space,
    queries: tuple[int, ...],
    thresholds: Sequence[float],
) -> NDArray[np.float64]:
    """Weights by true and predicted value for each of the rising thresholds: T x V x V."""
    found, probability = decided(of_queries, space, queries)
    size, steps = space.values, len(thresholds)
    reached = np.searchsorted(thresholds, probability, side="right")  # thresholds that it passes
    cells = (pixels.values * size + found) * (steps + 1) + reached
    summed = np.bincount(cells, pixels.weights, size**2 * (steps + 1))
    by_reached = summed.reshape(size, size, steps + 1)
    passed = by_reached[..., ::-1].cumsum(axis=-1)[..., ::-1][..., 1:]  # V x V x T
    counts: NDArray[np.float64] = np.moveaxis(passed, -1, 0).copy()
    failed = by_reached.cumsum(axis=-1)[..., :-1]  # summed apart: a difference is never quite 0
    counts[:, :, 0] += failed.sum(axis=1).T
    return counts


def confusion_of(pixels: Pixels, space: Space, setting: Setting) -> NDArray[np.float64]:
    """Weights by true (rows) and predicted value, V x V."""
    of_queries = terms(pixels, space, setting.global_bias)
    counts = confusions(of_queries, pixels, space, setting.queries, [setting.threshold])
    return np.asarray(counts[0])


def mean_iou(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the labelled values: ... x V x V -> ...

    A map that says anything else there, the unlabelled background say, is wrong by what it misses.
    """
    return np.asarray(np.nanmean(labelled_ious(counts), axis=-1))


def labelled_ious(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """IoU of each value, NaN of those that no pixel is labelled: ... x V x V -> ... x V."""
    shares: NDArray[np.float64] = np.where(counts.sum(axis=-1) > 0, ious(counts), np.nan)
    return shares


def score_of(pixels: Pixels, space: Space, setting: Setting) -> float:
    """Mean IoU of a setting."""
    return float(mean_iou(confusion_of(pixels, space, setting)))


def left_out(scenes: Sequence[Pixels], space: Space, start: Setting) -> list[Setting]:
    """What is chosen for each scene by all the others."""
    return [
        choose(joined([other for other in scenes if other is not scene]), space, start)
        for scene in scenes
    ]


def lookalikes(pixels: Pixels, space: Space, setting: Setting) -> list[Lookalikes]:
    """Pairs of classes that the logits do not tell apart.

    A pixel's evidence is the difference of the two classes' best logits. Among pixels of the two,
    the AUC is the chance that one of the first class has more of it than one of the second.
    """
    logits = pixels.logits(setting.global_bias)[list(setting.queries)]
    firsts = np.flatnonzero(np.diff(space.query_class[list(setting.queries)], prepend=-1))
    of_classes = np.maximum.reduceat(logits, firsts, axis=0)
    found = []
    for one, other in combinations(range(len(firsts)), 2):
        values = (one + space.first_value, other + space.first_value)
        first, second = (pixels.values == value for value in values)
        if first.any() and second.any():
            evidence = of_classes[one] - of_classes[other]
            auc = _auc(
                evidence[first], pixels.weights[first], evidence[second], pixels.weights[second]
            )
            if auc < TOLD_APART:
                found.append(Lookalikes(values, auc))
    return found


def _auc(
    high: NDArray[np.float64],
    high_weights: NDArray[np.float64],
    low: NDArray[np.float64],
    low_weights: NDArray[np.float64],
) -> float:
    """The chance that one of ``high`` exceeds one of ``low``; ties count half."""
    order = np.argsort(low, kind="stable")
    below = np.concatenate([[0.0], low_weights[order].cumsum()])
    ranked = low[order]
    less, up_to = (below[np.searchsorted(ranked, high, side)] for side in ("left", "right"))
    return float((high_weights * (less + up_to)).sum() / (2 * high_weights.sum() * below[-1]))

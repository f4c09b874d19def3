"""Words, lambda and threshold by labelled pixels."""

import numpy as np
import pytest
from labelled import predicted

from segearth_cli.choose import Pixels, Setting, Space, choose, lookalikes, score_of


def pixels_of(values, cosines):
    """Pixels whose class token says nothing."""
    cosines = np.asarray(cosines, np.float32)
    values = np.asarray(values)
    return Pixels(values, np.ones(len(values)), cosines, np.zeros_like(cosines))


def test_a_word_that_does_not_help_goes_and_one_that_does_stays():
    rng = np.random.default_rng(0)
    values = np.repeat([0, 1, 2], 100)
    space = Space(np.array([0, 1, 1, 2, 2]), 0, 50.0)
    cosines = 0.1 * (space.query_class[:, None] == values) + rng.normal(0, 0.01, (5, 300))
    cosines[1, 100:150] = 0.0  # half of class 1 is found by its second word alone
    cosines[4] = cosines[3] - 0.2  # a word that never wins
    pixels = pixels_of(values, cosines)
    start = Setting((0, 1, 2, 3, 4), 0.3, 0.0)
    chosen = choose(pixels, space, start)
    assert chosen == Setting((0, 1, 2, 3), 0.3, 0.0)
    assert score_of(pixels, space, chosen) == 1.0


def test_lambda_and_threshold_are_found():
    rng = np.random.default_rng(0)
    values = np.repeat([0, 1, 2], 200)
    space = Space(np.array([0, 1, 2]), 0, 50.0)
    bias = np.repeat(rng.normal(0, 0.3, (3, 60)), 10, axis=1)  # of a window's token
    cosines = 0.1 * (np.arange(3)[:, None] == values) * (values > 0) + 0.5 * bias
    cosines += rng.normal(0, 0.005, cosines.shape)
    pixels = Pixels(values, np.ones(600), cosines.astype(np.float32), bias.astype(np.float32))
    start = Setting((0, 1, 2), 0.1, 0.0)
    chosen = choose(pixels, space, start)
    assert chosen.global_bias == 0.5
    assert 0.5 <= chosen.threshold <= 0.9
    assert score_of(pixels, space, chosen) > 0.99 > score_of(pixels, space, start)
    found = predicted(pixels, space, chosen)
    assert (found == values).mean() > 0.99


def test_without_background_the_uncertain_are_value_0():
    space = Space(np.array([0, 1]), 1, 50.0)
    pixels = pixels_of([1, 2, 0], [[0.2, 0.0, 0.1], [0.0, 0.2, 0.1]])
    assert predicted(pixels, space, Setting((0, 1), 0.0, 0.0)).tolist() == [1, 2, 1]
    chosen = choose(pixels, space, Setting((0, 1), 0.0, 0.0))
    assert predicted(pixels, space, chosen).tolist() == [1, 2, 0]


def test_classes_that_look_alike_are_named():
    rng = np.random.default_rng(0)
    values = np.repeat([0, 1, 2], 300)
    cosines = 0.1 * (np.arange(3)[:, None] == np.minimum(values, 1))  # 2 looks like 1
    pixels = pixels_of(values, cosines + rng.normal(0, 0.02, cosines.shape))
    space = Space(np.array([0, 1, 2]), 0, 50.0)
    (found,) = lookalikes(pixels, space, Setting((0, 1, 2), 0.0, 0.0))
    assert found.values == (1, 2)
    assert found.auc == pytest.approx(0.5, abs=0.06)


def test_what_is_not_labelled_stays_as_it_is():
    rng = np.random.default_rng(0)
    values = np.repeat([1, 2], 100)
    space = Space(np.array([0, 0, 1, 1, 2]), 0, 50.0)
    cosines = 0.02 * (space.query_class[:, None] == values) + rng.normal(0, 0.01, (5, 200))
    cosines[1] += 0.02  # takes pixels from the others, where nothing speaks for it
    start = Setting((0, 1, 2, 3, 4), 0.3, 0.2)
    chosen = choose(pixels_of(values, cosines), space, start)
    assert set(chosen.queries) >= {0, 1, 2, 4}
    assert chosen.threshold == 0.2

import numpy as np
import pytest

from segearth_cli.scores import IGNORED, Confusion


def test_scores_are_those_counted_by_hand():
    truth = np.array([[0, 0, 1, 1], [2, 2, 1, IGNORED]], np.uint8)
    found = np.array([[0, 1, 1, 1], [2, 0, 2, 0]], np.uint8)
    confusion = Confusion(4)
    confusion.add(truth[:1], found[:1])  # in two parts
    confusion.add(truth[1:], found[1:])

    scores = confusion.scores(("a", "b", "c", "d"))

    assert scores.confusion == ((1, 1, 0, 0), (0, 2, 1, 0), (1, 0, 1, 0), (0, 0, 0, 0))
    assert [c.iou for c in scores.classes[:3]] == pytest.approx([1 / 3, 2 / 4, 1 / 3])
    assert [c.f1 for c in scores.classes[:3]] == pytest.approx([2 / 4, 4 / 6, 2 / 4])
    assert [c.precision for c in scores.classes[:3]] == pytest.approx([1 / 2, 2 / 3, 1 / 2])
    assert [c.recall for c in scores.classes[:3]] == pytest.approx([1 / 2, 2 / 3, 1 / 2])
    assert np.isnan(scores.classes[3].iou), "neither map nor label has it"
    assert scores.miou == pytest.approx((1 / 3 + 1 / 2 + 1 / 3) / 3)
    assert scores.accuracy == pytest.approx(4 / 7)
    assert scores.foreground_iou is None
    assert scores.pixels == 7


def test_two_classes_have_a_foreground():
    confusion = Confusion(2)
    confusion.add(np.array([0, 1, 1]), np.array([1, 1, 0]))

    scores = confusion.scores(("background", "road"))

    assert scores.of("foreground IoU") == scores.foreground_iou == pytest.approx(1 / 3)
    assert scores.of("mIoU") == pytest.approx((0 + 1 / 3) / 2)


def test_a_class_that_is_never_found_counts_as_nothing():
    confusion = Confusion(3)
    confusion.add(np.array([0, 2]), np.array([0, 0]))

    scores = confusion.scores(("a", "b", "c"))

    assert scores.miou == pytest.approx((1 / 2 + 0) / 2)

from __future__ import annotations

import numpy as np
import pytest

from training.metrics import Counts, iou_matrix, match_instances, match_points


def test_figures_by_hand() -> None:
    counts = Counts(6, 2, 4)
    assert counts.precision == 0.75
    assert counts.recall == 0.6
    assert counts.f1 == pytest.approx(12 / 18)
    assert counts.average_precision == 0.5
    assert counts + Counts(1, 1, 1) == Counts(7, 3, 5)
    assert Counts().f1 == 0.0
    assert Counts().precision == 0.0
    assert Counts().recall == 0.0
    assert Counts().average_precision == 0.0


def test_overlap_by_hand() -> None:
    true = np.zeros((4, 8), np.int32)
    true[:, :2] = 1
    true[:, 4:] = 2
    found = np.zeros_like(true)
    found[:, 1:5] = 1  # shares 4 of 16 + 8 - 4 with 1, and 4 of 16 + 16 - 4 with 2
    assert iou_matrix(found, true) == pytest.approx(np.array([[4 / 20, 4 / 28]]))


def test_instances_at_one_half() -> None:
    true = np.zeros((10, 30), np.int32)
    true[:, :10], true[:, 10:20] = 1, 2
    found = np.zeros_like(true)
    found[:, :6], found[:, 6:14], found[:, 25:] = 1, 2, 3
    # 1 on 1: 60/100; 2 on 2: 40/140 is too little; 3 is nowhere.
    assert match_instances(found, true) == Counts(1, 2, 1)
    assert match_instances(np.zeros_like(true), true) == Counts(0, 0, 2)
    assert match_instances(found, np.zeros_like(true)) == Counts(0, 3, 0)


def test_low_thresholds_match_one_to_one() -> None:
    true = np.ones((2, 8), np.int32)
    found = np.array([[1] * 4 + [2] * 4] * 2, np.int32)
    assert match_instances(found, true, 0.5) == Counts(1, 1, 0)


def test_points() -> None:
    true = np.zeros((10, 10), np.int32)
    true[2:4, 2:4] = 1
    true[7, 7] = 5
    points = np.array([[2.4, 3.4], [3.0, 2.0], [7.0, 7.49], [0.0, 0.0], [50.0, 1.0], [-1.0, 2.0]])
    # The second lies in an object already claimed; the fourth on nothing; the last two outside.
    assert match_points(points, true) == Counts(2, 4, 0)
    assert match_points(points[:1], true) == Counts(1, 0, 1)
    assert match_points(np.zeros((0, 2)), true) == Counts(0, 0, 2)


def test_points_in_three_dimensions() -> None:
    true = np.zeros((3, 3, 3), np.int32)
    true[1, 1, 1] = 1
    assert match_points(np.array([[1.0, 1.0, 1.0]]), true) == Counts(1, 0, 0)

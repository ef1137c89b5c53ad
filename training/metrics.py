"""How results are counted: objects matched by overlap, points matched by lying inside an object."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment


@dataclass(frozen=True)
class Counts:
    """Right, wrong and missed objects; adding counts pools images.

    Attributes
    ----------
    true_positive, false_positive, false_negative
        Numbers of objects.
    """

    true_positive: int = 0
    false_positive: int = 0
    false_negative: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.true_positive + other.true_positive,
            self.false_positive + other.false_positive,
            self.false_negative + other.false_negative,
        )

    @property
    def precision(self) -> float:
        """Share of the found objects that are right; 0 if none was found."""
        found = self.true_positive + self.false_positive
        return self.true_positive / found if found else 0.0

    @property
    def recall(self) -> float:
        """Share of the true objects that were found; 0 if there are none."""
        there = self.true_positive + self.false_negative
        return self.true_positive / there if there else 0.0

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall: 2 TP / (2 TP + FP + FN)."""
        total = 2 * self.true_positive + self.false_positive + self.false_negative
        return 2 * self.true_positive / total if total else 0.0

    @property
    def average_precision(self) -> float:
        """TP / (TP + FP + FN), the figure StarDist and Cellpose call AP at one threshold."""
        total = self.true_positive + self.false_positive + self.false_negative
        return self.true_positive / total if total else 0.0


def iou_matrix(found: NDArray[np.integer], true: NDArray[np.integer]) -> NDArray[np.float64]:
    """Intersection over union of every found with every true object.

    Parameters
    ----------
    found, true
        Instance labels 1..n and 1..m without gaps, 0 is background, same shape.

    Returns
    -------
    ndarray
        Shape (n, m).
    """
    n, m = int(found.max(initial=0)), int(true.max(initial=0))
    pair = found.astype(np.int64).ravel() * (m + 1) + true.astype(np.int64).ravel()
    shared = np.bincount(pair, minlength=(n + 1) * (m + 1)).reshape(n + 1, m + 1)
    union = shared.sum(1, keepdims=True)[1:] + shared.sum(0, keepdims=True)[:, 1:] - shared[1:, 1:]
    return np.asarray(shared[1:, 1:] / np.maximum(union, 1), dtype=np.float64)


def match_instances(found: NDArray[np.integer], true: NDArray[np.integer], min_iou: float = 0.5) -> Counts:
    """Count objects matched one to one with an overlap of at least `min_iou`.

    The assignment with the most matches is taken (above 0.5 it is the only one).
    """
    iou = iou_matrix(found, true)
    good = iou >= min_iou
    rows, columns = linear_sum_assignment(-(good + iou / (iou.size + 1.0)))
    right = int(good[rows, columns].sum())
    return Counts(right, iou.shape[0] - right, iou.shape[1] - right)


def match_points(points: NDArray[np.floating], true: NDArray[np.integer]) -> Counts:
    """Count points that lie inside an object nobody before them has claimed.

    Parameters
    ----------
    points
        Index coordinates, shape (n, ndim), the best first. A point belongs to the pixel it is nearest to;
        a point outside the image is wrong.
    true
        Instance labels.
    """
    claimed: set[int] = set()
    for point in np.floor(np.asarray(points, dtype=np.float64) + 0.5).astype(int):
        if (point < 0).any() or (point >= true.shape).any():
            continue
        value = int(true[tuple(point)])
        if value:
            claimed.add(value)
    there = len(np.unique(true[true > 0]))
    return Counts(len(claimed), len(points) - len(claimed), there - len(claimed))

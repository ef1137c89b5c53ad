"""From a heatmap to objects: peaks, their sizes, and one box per object, in any number of dimensions.

A centre network (CenterNet; Zhou, Wang and Kraehenbuehl, "Objects as Points", 2019) gives a heatmap that
peaks at the centre of each object and, at every pixel, the size an object centred there would have.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import KDTree


@dataclass(frozen=True)
class Detections:
    """Objects found in one image, best first.

    Attributes
    ----------
    centres
        Index coordinates, float64, shape (n, ndim); the centre of pixel 0 is 0.0.
    sizes
        Full extent along each axis in pixels, float64, shape (n, ndim).
    scores
        Between 0 and 1, float64, shape (n,), descending.
    """

    centres: NDArray[np.float64]
    sizes: NDArray[np.float64]
    scores: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.scores)


def find_peaks(
    heatmap: NDArray[np.floating], threshold: float, min_distance: float = 2.0
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Local maxima of a heatmap, the highest first.

    Parameters
    ----------
    heatmap
        Any number of dimensions.
    threshold
        Lowest value a peak may have (inclusive).
    min_distance
        Of two peaks nearer than this, in pixels, only the higher is kept. At 2 or more (default 2), one
        peak is left of a flat top up to three pixels wide.

    Returns
    -------
    centres : ndarray
        Integer index coordinates, shape (n, ndim).
    scores : ndarray
        The heatmap there, float64, shape (n,), descending.
    """
    centres = local_maxima(heatmap, threshold)
    scores = heatmap[tuple(centres.T)].astype(np.float64)
    keep = _best_apart(centres.astype(np.float64), scores, min_distance)
    return centres[keep], scores[keep]


def local_maxima(heatmap: NDArray[np.floating], threshold: float) -> NDArray[np.intp]:
    """Where a heatmap reaches a threshold and no neighbour is higher, (n, ndim), in the order of memory."""
    highest = ndimage.maximum_filter(heatmap, size=3, mode="constant", cval=-np.inf)
    return np.argwhere((heatmap == highest) & (heatmap >= threshold))


def _best_apart(centres: NDArray[np.float64], scores: NDArray[np.float64], min_distance: float) -> NDArray[np.intp]:
    """Indices of the peaks that are left, the highest first."""
    order = np.argsort(-scores, kind="stable")
    return order[_keep_apart(centres[order], min_distance)]


class PeakRows:
    """Collects the peaks of a heatmap (y, x) that comes in rows, from top to bottom; in all those of the whole map.

    Parameters
    ----------
    threshold : float
        See `find_peaks`.
    shape : tuple of 2 ints
        Of the whole heatmap.
    """

    def __init__(self, threshold: float, shape: tuple[int, int]) -> None:
        self._threshold, self._shape = threshold, shape
        self._before: NDArray[np.floating] | None = None
        self._first = 0
        self._found: list[tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]] = []

    def take(self, first: int, maps: NDArray[np.floating]) -> None:
        """Rows (1 + 2, n, x) that follow: the heatmap, and the size of an object along y and x."""
        if self._before is not None:
            maps, first = np.concatenate([self._before, maps], axis=1), first - self._before.shape[1]
        stop = first + maps.shape[1]
        centres = local_maxima(maps[0], self._threshold)
        # the outer rows do not know their neighbours yet; the last one comes again, with one before it
        known = (centres[:, 0] >= self._first - first) & (centres[:, 0] < maps.shape[1] - (stop < self._shape[0]))
        centres = centres[known]
        self._first = stop if stop == self._shape[0] else stop - 1
        scores = maps[0][tuple(centres.T)].astype(np.float64)
        sizes = maps[1:, centres[:, 0], centres[:, 1]].T.astype(np.float64)
        self._found.append((centres + np.array([first, 0.0]), sizes, scores))
        self._before = np.array(maps[:, -2:])

    def result(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Centres (n, 2), sizes (n, 2) and scores (n,), from top to bottom."""
        if not self._found:
            return np.zeros((0, 2)), np.zeros((0, 2)), np.zeros(0)
        centres, sizes, scores = zip(*self._found, strict=True)
        return np.concatenate(centres), np.concatenate(sizes), np.concatenate(scores)


def suppress(
    centres: NDArray[np.floating], sizes: NDArray[np.floating], scores: NDArray[np.floating], max_iou: float
) -> NDArray[np.intp]:
    """Greedy non-maximum suppression of boxes, the highest score first.

    Parameters
    ----------
    centres, sizes
        Centres and full extents, shape (n, ndim), in any one unit.
    scores
        Shape (n,).
    max_iou
        A box whose intersection over union with a better box is greater than this is dropped.

    Returns
    -------
    ndarray
        Indices of the kept boxes, the highest score first.
    """
    order = np.argsort(-np.asarray(scores), kind="stable")
    if not len(order):
        return order
    points = np.asarray(centres, dtype=np.float64)[order]
    extents = np.asarray(sizes, dtype=np.float64)[order]
    low, high = points - extents / 2, points + extents / 2
    volume = extents.prod(axis=1)
    alive = np.ones(len(points), dtype=bool)
    # boxes further apart than half of both their edges share nothing
    tree, widest = KDTree(points), float(extents.max())
    for i in range(len(points)):
        if not alive[i]:
            continue
        near = np.asarray(tree.query_ball_point(points[i], (extents[i].max() + widest) / 2, p=np.inf), dtype=np.intp)
        near = near[near > i]
        overlap = np.minimum(high[i], high[near]) - np.maximum(low[i], low[near])
        shared = np.clip(overlap, 0, None).prod(axis=1)
        union = volume[i] + volume[near] - shared
        alive[near[shared > max_iou * union]] = False
    return order[alive]


def detections(
    centres: NDArray[np.float64],
    sizes: NDArray[np.float64],
    scores: NDArray[np.float64],
    *,
    min_distance: float = 2.0,
    max_iou: float = 0.3,
) -> Detections:
    """Objects of a centre network: the best of all local maxima of its heatmap.

    Parameters
    ----------
    centres, sizes, scores
        Of the maxima in the order of memory, as `PeakRows` and `local_maxima` give them: (n, ndim), (n, ndim), (n,).
    min_distance
        Objects nearer than this, in pixels, to a better one are dropped.
    max_iou
        Objects whose box overlaps a better one's by more than this are dropped.

    Returns
    -------
    Detections
        In pixels of the heatmap.
    """
    best = _best_apart(centres, scores, min_distance)
    best = best[suppress(centres[best], sizes[best], scores[best], max_iou)]
    return Detections(centres[best], sizes[best], scores[best])


def _keep_apart(points: NDArray[np.float64], reach: float) -> NDArray[np.bool_]:
    """Of points in order of merit, mark those not nearer than this to a better kept one."""
    alive = np.ones(len(points), dtype=bool)
    if len(points) == 0:
        return alive
    tree = KDTree(points)
    for i in range(len(points)):
        if alive[i]:
            # query_ball_point includes the rim; a distance of exactly `reach` is allowed.
            near = np.asarray(tree.query_ball_point(points[i], np.nextafter(reach, 0.0)), dtype=np.intp)
            alive[near[near > i]] = False
    return alive

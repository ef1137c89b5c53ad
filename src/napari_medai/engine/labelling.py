"""From a network's scores to labels: probabilities, the class of each voxel, and which pieces are kept."""

from __future__ import annotations

from math import inf, log

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from napari_medai.engine.slabs import Decide
from napari_medai.models.spec import Label


def activated(scores: NDArray[np.float32], output: str) -> NDArray[np.float32]:
    """Probabilities (K, …) out of what the network gives (K, …)."""
    if output == "softmax" and len(scores) > 1:
        shifted = np.exp(scores - scores.max(axis=0))
        return np.asarray(shifted / shifted.sum(axis=0))
    if output in ("softmax", "sigmoid"):
        return np.asarray(1 / (1 + np.exp(-np.clip(scores, -80, 80))))
    return scores


def decided(
    scores: NDArray[np.float32], values: list[int], labels: tuple[Label, ...], output: str, threshold: float
) -> NDArray[np.int32]:
    """Labels (\\*spatial) out of probabilities (K, \\*spatial).

    Parameters
    ----------
    values : list of int
        Label of each channel.
    labels : tuple of Label
        Their thresholds count for regions and where there is a single channel.
    threshold : float
        Of the person; 0 takes the labels' own. With two classes it is the probability of the second.
    """
    table = np.asarray(values, dtype=np.int32)
    if output == "sigmoid" or len(scores) == 1:
        out = np.zeros(scores.shape[1:], np.int32)
        own = {label.value: label.threshold for label in labels}
        for channel, value in zip(scores, values, strict=True):
            out[channel > (threshold or own.get(value, 0.5))] = value
        return out
    if threshold and len(scores) == 2:
        return np.asarray(table[(scores[1] > threshold).astype(np.intp)])
    return np.asarray(table[scores.argmax(axis=0)])


def decision(values: list[int], labels: tuple[Label, ...], output: str, threshold: float) -> Decide:
    """How labels come out of what the network gives, before it is made probabilities; parameters as `decided`.

    Probabilities grow with their logits, so that a threshold on the one is a threshold on the other.
    """
    own = {label.value: label.threshold for label in labels}
    scale = float if output == "probabilities" else _logit
    if output == "sigmoid" or len(values) == 1:
        return Decide(tuple(values), "above", tuple(scale(threshold or own.get(value, 0.5)) for value in values))
    if threshold and len(values) == 2:  # the second's share is above it
        return Decide(tuple(values), "argmax", (2 * threshold - 1 if output == "probabilities" else _logit(threshold),))
    return Decide(tuple(values))


def _logit(probability: float) -> float:
    return log(probability / (1 - probability)) if 0 < probability < 1 else inf * (probability - 0.5)


def largest_piece(labels: NDArray[np.int32]) -> NDArray[np.int32]:
    """Of each label its largest connected piece (over faces, edges and corners)."""
    out = np.zeros_like(labels)
    touching = ndimage.generate_binary_structure(labels.ndim, labels.ndim)
    for value, place in enumerate(ndimage.find_objects(np.maximum(labels, 0)), start=1):
        if place is not None:
            pieces, count = ndimage.label(labels[place] == value, touching)
            out[place][pieces == 1 + _sizes(pieces, count)[1:].argmax()] = value
    return out


def _sizes(pieces: NDArray[np.int32], count: int) -> NDArray[np.int64]:
    """Voxels of each piece, (count + 1,); plane by plane, because numpy counts in a copy of eight bytes a voxel."""
    total = np.zeros(count + 1, np.int64)
    for plane in pieces:
        total += np.bincount(plane.ravel(), minlength=count + 1)
    return total


def kept_mb(voxels: int, itemsize: int, largest: bool, apart: bool) -> float:
    """Memory that `largest_piece` and `pieces` (``apart``) take of so many voxels at most, MiB."""
    return voxels * max((5 + 2 * itemsize) * largest, 16 * apart) / 2**20


def pieces(labels: NDArray[np.int32], smallest: int = 0, instances: bool = False) -> NDArray[np.int32]:
    """Connected pieces (over faces) of labels.

    Parameters
    ----------
    labels : (\\*spatial) int32 array
    smallest : int
        Pieces of fewer voxels go.
    instances : bool
        Whether the pieces are numbered from 1 instead of keeping their label.
    """
    if smallest <= 1 and not instances:
        return labels
    touching = ndimage.generate_binary_structure(labels.ndim, 1)
    found = np.zeros_like(labels)
    for value in np.unique(labels[labels != 0]):
        each, count = ndimage.label(labels == value, touching)
        keep = _sizes(each, count) >= max(1, smallest)
        keep[0] = False
        if instances:
            numbers = np.where(keep, np.cumsum(keep) + found.max(), 0)
            found[each > 0] = numbers[each[each > 0]]
        else:
            found[keep[each]] = value
    return found

"""From the maps of a network of another framework to labels and instances."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.measure import label
from skimage.segmentation import watershed

from napari_medai.core.errors import ModelError
from napari_medai.engine.instances import decode_instances

# Objects of fewer pixels than this are noise, where nobody says how small objects may be
SMALLEST_OBJECT = 12
# Probabilities may miss 0 and 1 by this much: sums of float32
_ROUNDING = 1e-3


def decode_maps(
    maps: NDArray[np.floating],
    how: Mapping[str, Any],
    *,
    threshold: float = 0.0,
    min_size: int = 0,
    note: Callable[[str], None] = lambda _: None,
) -> NDArray[np.int32]:
    """Labels or instances out of a network's maps.

    Parameters
    ----------
    maps : (K, \\*spatial) float array
        Probabilities, logits, distances or labels, as ``how`` says.
    how : mapping
        ``kind`` and the numbers of the channels:

        - ``"threshold"``: ``channel`` at or above the threshold is label 1.
        - ``"pieces"``: the connected pieces of that are instances.
        - ``"argmax"``: the largest channel wins; labels count the channels without ``background`` from 1. With no
          background, what no channel reaches the threshold in is 0.
        - ``"boundary"``: pieces of ``foreground`` without ``boundary`` grow to the boundary (watershed): instances.
        - ``"depth"``: hills of the distance ``depth`` in ``foreground`` are instances.
        - ``"labels"``, ``"instances"``: the first channel holds them already.
    threshold : float
        Probability of foreground; 0 takes 0.5.
    min_size : int
        Smaller pieces are removed; 0 keeps all labels, and instances of at least `SMALLEST_OBJECT`.
    note : callable
        Told of what was concluded from the values.

    Returns
    -------
    (\\*spatial) int32 array

    Raises
    ------
    ModelError
        The kind is not known, or there are fewer channels than it names.
    """
    kind, level = how.get("kind"), threshold or 0.5
    named = [
        how[key] for key in ("channel", "foreground", "boundary", "depth", "background") if how.get(key) is not None
    ]
    if max(named, default=0) >= len(maps):
        raise ModelError(f"The network gave {len(maps)} channels; its description names channel {max(named)}.")
    if kind in ("labels", "instances"):
        return _without_small(np.rint(maps[0]).astype(np.int32), min_size)
    if kind in ("threshold", "pieces"):
        mask = (_probabilities(maps[how["channel"]], note) >= level).astype(np.int32)
        if kind == "threshold":
            return _without_small(mask, min_size)
        kept = _without_small(mask, min_size or SMALLEST_OBJECT)
        return np.asarray(label(kept, connectivity=1), dtype=np.int32)
    if kind == "argmax":
        return _without_small(_largest(maps, how, level, note), min_size)
    if kind == "boundary":
        foreground = _probabilities(maps[how["foreground"]], note)
        return _grown(foreground, _probabilities(maps[how["boundary"]], note), how, level, min_size)
    if kind == "depth":
        foreground = _probabilities(maps[how["foreground"]], note)
        depth = _relative(maps[how["depth"]], foreground >= level)
        return decode_instances(foreground, depth, foreground_threshold=level, min_area=min_size or SMALLEST_OBJECT)
    raise ModelError(f"Maps of the kind {kind!r} cannot be made into labels.")


def _probabilities(values: NDArray[np.floating], note: Callable[[str], None]) -> NDArray[np.floating]:
    """Values in 0..1 as they are; others are logits."""
    if values.size and (values.min() < -_ROUNDING or values.max() > 1 + _ROUNDING):
        note("values outside of 0..1 were taken as logits")
        return np.asarray(1 / (1 + np.exp(-np.clip(values, -60, 60))))
    return values


def _largest(
    maps: NDArray[np.floating], how: Mapping[str, Any], level: float, note: Callable[[str], None]
) -> NDArray[np.int32]:
    background = how.get("background")
    if how.get("assumed"):
        note(f"channel {background} was taken as background: the package does not say which is")
    best = np.argmax(maps, axis=0)
    values = np.arange(1, len(maps) + 1)
    if background is not None:
        values = np.array([0 if n == background else n + (n < background) for n in range(len(maps))])
        return np.asarray(values[best], dtype=np.int32)
    high = _probabilities(np.take_along_axis(maps, best[np.newaxis], axis=0)[0], note)
    return np.where(high >= level, values[best], 0).astype(np.int32)


def _grown(
    foreground: NDArray[np.floating],
    boundary: NDArray[np.floating],
    how: Mapping[str, Any],
    level: float,
    min_size: int,
) -> NDArray[np.int32]:
    """Pieces of the inside, grown over the foreground along the boundary."""
    # classes that exclude each other leave the rim of an object to the boundary
    mask = (foreground + boundary if how.get("exclusive") else np.maximum(foreground, 0)) >= level
    seeds = label(mask & (foreground >= level) & (boundary < np.minimum(foreground, 0.5)), connectivity=1)
    grown = watershed(boundary, seeds, mask=mask)
    areas = np.bincount(grown.ravel())
    keep = areas >= (min_size or SMALLEST_OBJECT)
    keep[0] = False
    numbers = np.where(keep, np.cumsum(keep), 0).astype(np.int32)
    return np.asarray(numbers[grown], dtype=np.int32)


def _relative(depth: NDArray[np.floating], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Distances as a share of the largest one in each piece of the mask."""
    pieces, count = ndimage.label(mask)
    highest = np.concatenate([[1.0], np.atleast_1d(ndimage.maximum(depth, pieces, index=np.arange(1, count + 1)))])
    return np.asarray(np.clip(depth / np.maximum(highest, 1e-6)[pieces], 0, 1), dtype=np.float32)


def _without_small(labels: NDArray[np.int32], min_size: int) -> NDArray[np.int32]:
    """Labels whose connected pieces of fewer voxels than ``min_size`` are removed."""
    if min_size <= 1:
        return labels
    pieces = label(labels, connectivity=1)
    small = np.bincount(pieces.ravel()) < min_size
    return np.where(small[pieces], 0, labels)

"""From foreground and depth maps to instance labels: seeds, watershed, clean-up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.measure import label
from skimage.morphology import reconstruction
from skimage.segmentation import watershed


def decode_instances(
    foreground: NDArray[np.floating],
    depth: NDArray[np.floating],
    *,
    foreground_threshold: float = 0.5,
    seed_threshold: float = 0.4,
    saddle: float = 0.4,
    min_area: int = 12,
) -> NDArray[np.int32]:
    """Objects of a network that predicts foreground and normalised depth.

    Each hill of the depth map that rises by more than `saddle` above the saddle to a higher one is a seed
    (an h-maximum; Soille, Morphological Image Analysis, 6.3.5); the foreground is shared out between the
    seeds by a watershed on the depth map.

    Parameters
    ----------
    foreground
        Probability of foreground, shape (y, x) (any number of dimensions works).
    depth
        Distance to the object's rim over the greatest such distance in the object, 0..1, same shape.
    foreground_threshold
        Lowest probability of an object's pixels.
    seed_threshold
        Lowest depth of a seed's top.
    saddle
        How far the depth must fall between two objects; 0..1.
    min_area
        Objects of fewer pixels are dropped, holes of fewer pixels are filled.

    Returns
    -------
    ndarray
        int32 labels 1..n without gaps, same shape, 0 is background. Every object is one connected piece.
    """
    return decode_part(foreground, depth, Decoding(foreground_threshold, seed_threshold, saddle, min_area)).labels


@dataclass(frozen=True)
class Decoding:
    """How objects come out of maps, see `decode_instances`."""

    foreground_threshold: float
    seed_threshold: float
    saddle: float
    min_area: int


@dataclass(frozen=True, eq=False)
class Part:
    """The objects of a part of an image.

    Attributes
    ----------
    labels : (\\*shape) int32 array
        1..n in the order of their anchors.
    anchors : (n, ndim) array
        First pixel, in the order of memory, of each object's seed: what tells an object from others whatever part of
        the image is looked at.
    """

    labels: NDArray[np.int32]
    anchors: NDArray[np.intp]


def decode_part(
    foreground: NDArray[np.floating],
    depth: NDArray[np.floating],
    how: Decoding,
    goes_on: Sequence[tuple[bool, bool]] = (),
) -> Part:
    """As `decode_instances`, of a part of an image.

    Parameters
    ----------
    foreground, depth : array
        See `decode_instances`.
    how : Decoding
        The thresholds.
    goes_on : sequence of (bool, bool)
        For each axis, whether the image goes on before the part's beginning and behind its end. What touches such a
        side is only a piece: as small as it may be it is neither a hole to be filled nor an object to be dropped.
    """
    saddle, min_area = how.saddle, how.min_area
    mask = foreground >= how.foreground_threshold
    mask = fill_small_holes(mask, min_area, goes_on)
    hills = np.where(mask, ndimage.gaussian_filter(depth.astype(np.float32), 1.0), 0.0)
    # The ground is at 0: a hill lower than `saddle` stays below it, whatever else the image holds.
    cut = reconstruction(np.maximum(hills - np.float32(saddle), np.float32(0)), hills, method="dilation")
    # What sticks out of the cut landscape are the tops of hills at least `saddle` high.
    above = hills - cut
    tops = label((above > 0.5 * saddle) & mask, connectivity=1)
    numbers = np.arange(tops.max() + 1)
    height = ndimage.maximum(hills, tops, index=numbers)
    # A hill lower than `saddle` sticks out by its own height only; the tolerance is for float32.
    high = ndimage.maximum(above, tops, index=numbers) > 0.999 * saddle
    seeds = np.where(high & (height >= how.seed_threshold) & (numbers > 0), numbers, 0)[tops]
    labels = watershed(-hills, seeds, mask=mask & _reach(mask, seeds))
    keep = np.bincount(labels.ravel(), minlength=len(numbers)) >= max(min_area, 1)
    _at_sides(labels, goes_on, keep, True)
    keep[0] = False
    at = np.flatnonzero(seeds)
    found, first = np.unique(seeds.ravel()[at], return_index=True)
    anchors = np.stack(np.unravel_index(at[first], seeds.shape), axis=1)[keep[found]]
    return Part(_renumber(labels, keep), anchors)


def fill_small_holes(
    mask: NDArray[np.bool_], max_area: int, goes_on: Sequence[tuple[bool, bool]] = ()
) -> NDArray[np.bool_]:
    """Fill the holes of a mask that have fewer than `max_area` pixels (4-neighbours in 2-D).

    Those that touch a side where the image goes on (see `decode_part`) are left.
    """
    holes = label(~mask, connectivity=1)
    small = np.bincount(holes.ravel()) < max_area
    _at_sides(holes, goes_on, small, False)
    small[0] = False  # label 0 is the mask itself
    return np.asarray(mask | small[holes])


def _at_sides(
    labels: NDArray[np.integer], goes_on: Sequence[tuple[bool, bool]], of_label: NDArray[np.bool_], value: bool
) -> None:
    """Set what is kept of each label, for those that touch a side where the image goes on."""
    for axis, ends in enumerate(goes_on):
        for end, open_end in zip((0, -1), ends, strict=True):
            if open_end:
                of_label[np.unique(np.take(labels, end, axis=axis))] = value


def _reach(mask: NDArray[np.bool_], seeds: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Connected pieces of the mask that hold a seed."""
    pieces = label(mask, connectivity=1)
    with_seed = np.zeros(pieces.max() + 1, dtype=bool)
    with_seed[pieces[seeds > 0]] = True
    with_seed[0] = False
    return np.asarray(with_seed[pieces])


def _renumber(labels: NDArray[np.integer], keep: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Labels 1..n in the old order, those not marked in `keep` set to 0."""
    numbers = np.where(keep, np.cumsum(keep), 0).astype(np.int32)
    return np.asarray(numbers[labels], dtype=np.int32)

"""What runners give, before it becomes a result on a grid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Found:
    """Objects in one image.

    Attributes
    ----------
    centres : (n, ndim) array
        Index coordinates.
    sizes : (n, ndim) array
        Extent along each axis in voxels.
    labels : list of str
        Kind of each object.
    scores : (n,) array
        In 0..1.
    """

    centres: NDArray[np.float64]
    sizes: NDArray[np.float64]
    labels: list[str]
    scores: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class SliceScores:
    """What a classifier says of a series of slices, or of an image, which is a series of one.

    Attributes
    ----------
    probabilities : (classes,) array
        Of the series.
    slice_index : (n,) int array
        Slices the network looked at, ascending.
    slice_probabilities : (n, classes) array
        Of each slice.
    attention : (n,) array
        Share of each slice; sums to 1.
    """

    probabilities: NDArray[np.float64]
    slice_index: NDArray[np.int64]
    slice_probabilities: NDArray[np.float64]
    attention: NDArray[np.float64]

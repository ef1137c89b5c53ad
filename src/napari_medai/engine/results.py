"""What runners of detectors give, before it becomes a result on a grid."""

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

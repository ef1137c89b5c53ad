"""Resampling along array axes, edge to edge: both grids cover the same box.

Voxels are boxes, not points: n voxels resampled to m span the same length, voxel i of the new grid being centred at
``(i + 0.5) * n / m - 0.5`` of the old. Resampling back therefore ends on the very grid that it began with.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse


def resample(array: NDArray[np.floating], shape: Sequence[int]) -> NDArray[np.float32]:
    """Resample the last axes of an array linearly, averaging first where they shrink.

    Parameters
    ----------
    array : (…, \\*spatial) float array
        Any number of leading axes is kept.
    shape : sequence of int
        New size of the last ``len(shape)`` axes.

    Returns
    -------
    (…, \\*shape) float32 array
        The input itself where nothing changes and it is float32.
    """
    out = np.asarray(array, dtype=np.float32)
    first = out.ndim - len(shape)
    # axes that shrink come first, so that the others have less to do
    for axis in sorted(range(first, out.ndim), key=lambda n: shape[n - first] / out.shape[n]):
        size = int(shape[axis - first])
        if size != out.shape[axis]:
            out = _along(out, axis, size)
    return out


def resample_labels(array: NDArray[Any], shape: Sequence[int]) -> NDArray[Any]:
    """Resample the last axes of an array to the nearest voxel; type and values are kept.

    Parameters, shapes
        As `resample`.
    """
    out = array
    for n, size in enumerate(shape):
        axis = array.ndim - len(shape) + n
        if size != out.shape[axis]:
            out = np.take(out, nearest_index(out.shape[axis], int(size)), axis=axis)
    return out


def nearest_index(old: int, new: int) -> NDArray[np.intp]:
    """The old voxel in which each new voxel's centre lies, (new,)."""
    # in integers, so that a centre on a face always goes to the upper voxel
    index: NDArray[np.intp] = (2 * np.arange(new) + 1) * old // (2 * new)
    return index


def _along(array: NDArray[np.float32], axis: int, size: int) -> NDArray[np.float32]:
    moved = np.moveaxis(array, axis, 0)
    flat = np.ascontiguousarray(moved).reshape(array.shape[axis], -1)
    out = weights(array.shape[axis], size) @ flat
    return np.ascontiguousarray(np.moveaxis(out.reshape(size, *moved.shape[1:]), 0, axis), dtype=np.float32)


@lru_cache(maxsize=64)
def weights(old: int, new: int, averaging: bool = True) -> sparse.csr_matrix:
    """Weights of linear interpolation along an axis, rows in ascending order of the old voxels.

    Parameters
    ----------
    old, new : int
        Number of voxels before and after.
    averaging : bool
        Whether, where the new voxels are larger, a triangle as wide as they are is averaged over. Default True.

    Returns
    -------
    (new, old) sparse float32 matrix
        Every row adds up to one.
    """
    step = old / new
    width = max(1.0, step) if averaging else 1.0
    centre = (np.arange(new) + 0.5) * step - 0.5
    reach = int(np.ceil(width))
    column = np.floor(centre).astype(int)[:, None] + np.arange(-reach, reach + 2)
    weight = np.clip(1 - np.abs(column - centre[:, None]) / width, 0, None)
    weight[(column < 0) | (column >= old)] = 0  # beyond the edge: what is inside counts alone
    weight /= weight.sum(axis=1, keepdims=True)
    row = np.repeat(np.arange(new), column.shape[1])
    inside = weight.ravel() > 0
    values = (weight.ravel()[inside].astype(np.float32), (row[inside], column.ravel()[inside]))
    return sparse.csr_matrix(values, shape=(new, old))

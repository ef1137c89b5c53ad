"""Scans that napari cannot slice along its own axes, seen through a lazy array that is parallel to them.

Their layers show a view: each slice is looked up in the scan where the slider stands. The scan itself, its grid and
its affine stay in the layer's record, and what is painted on a view goes into the voxels of the scan.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_medai.core.geometry import Affine, Grid
from napari_medai.core.reslice import Resampled, covering_grid, resampled
from napari_medai.core.sampling import ROUNDING
from napari_medai.core.volume import SPATIAL_AXES, Volume


def view_of(volume: Volume, to_world: Affine, grid: Grid | None = None) -> tuple[Any, Affine]:
    """The array that shows a volume parallel to the display's axes.

    Parameters
    ----------
    volume : Volume
        With a ``z`` axis. Labels must be numpy: they can be painted.
    to_world : (4, 4) array
        Displayed -> world.
    grid : Grid, optional
        In displayed coordinates. Default: the one that covers the volume and keeps its detail; for labels so
        fine that none of their voxels is hidden.

    Returns
    -------
    array : Resampled or PaintedView
        Images are clear (NaN) where they do not reach, colours black.
    displayed : (4, 4) array
        Index of the array -> displayed; it only scales and shifts.
    """
    labels = bool(volume.meta.get("is_labels")) and volume.dtype.kind in "iub"
    grid = grid or covering_grid(volume.grid, to_world, every_voxel=labels)
    matrix = np.asarray(np.linalg.solve(volume.affine, to_world @ grid.affine), dtype=np.float64)
    if labels:
        return PaintedView(volume.array, volume.axes, matrix, grid.shape), grid.affine
    outside = 0.0 if volume.is_rgb else np.nan
    dtype = volume.dtype if volume.is_rgb else np.result_type(volume.dtype, np.float32)
    return resampled(volume.array, volume.axes, matrix, grid.shape, 1, outside, dtype), grid.affine


class PaintedView:
    """Labels seen on another grid: reading looks the nearest voxel up, writing changes it.

    An element of the view that is written sets the voxel it shows, if it differs; what is written outside of the
    labels is dropped. Takes what napari's labels layers use: integers, slices, and one integer array per axis.

    Parameters
    ----------
    array : numpy array
        Whole numbers; written into.
    axes : str
        Its axes, ``z``, ``y`` and ``x`` among them and no ``s``.
    matrix : (4, 4) array
        Index of the view (k, j, i) -> index of the array.
    shape : tuple of 3 ints
        Of the view, (z, y, x).
    """

    def __init__(self, array: NDArray[Any], axes: str, matrix: Affine, shape: tuple[int, int, int]) -> None:
        self.source = array
        self._axes, self._size = axes, shape
        self._first = axes.index("z")
        self._matrix = matrix
        self._seen: Resampled = resampled(array, axes, matrix, shape, 0)
        self.dtype: np.dtype[Any] = self._seen.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Size along every axis."""
        return self._seen.shape

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return self._seen.ndim

    @property
    def size(self) -> int:
        """Number of elements."""
        return self._seen.size

    def __len__(self) -> int:
        return self.shape[0]

    def onto(self, array: NDArray[Any]) -> PaintedView:
        """The same view of other labels of the same shape."""
        return PaintedView(array, self._axes, self._matrix, self._size)

    def astype(self, dtype: Any) -> NDArray[Any]:
        """All elements as another type."""
        return self._seen.astype(dtype)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self._seen.__array__(dtype, copy)

    def __getitem__(self, index: Any) -> Any:
        if not _has_arrays(index):
            return self._seen[index]
        places, inside = self._places(list(np.broadcast_arrays(*index)))
        values = np.zeros(inside.shape, self.dtype)
        values[inside] = self.source[places]
        return values

    def __setitem__(self, index: Any, values: Any) -> None:
        if not _has_arrays(index):
            keys = index if isinstance(index, tuple) else (index,)
            keys = (*keys, *[slice(None)] * (self.ndim - len(keys)))
            ranges = [range(n)[key] for n, key in zip(self.shape, keys, strict=True)]
            kept = tuple(len(r) for r in ranges if isinstance(r, range))
            index = np.ix_(*[np.atleast_1d(np.asarray(r)) for r in ranges])
            size = np.broadcast_shapes(*[a.shape for a in index])
            values = np.broadcast_to(values, kept).reshape(size)
        index = list(np.broadcast_arrays(*index))
        values = np.broadcast_to(values, index[0].shape)
        places, inside = self._places(index)
        wanted = values[inside]
        # several elements show one voxel: those that were not meant to change must not undo those that were
        changed = self.source[places] != wanted
        self.source[tuple(p[changed] for p in places)] = wanted[changed]

    def _places(self, index: list[NDArray[Any]]) -> tuple[tuple[NDArray[np.intp], ...], NDArray[np.bool_]]:
        """The voxels of the array that some elements of the view show, and which elements show any."""
        first, n = self._first, len(SPATIAL_AXES)
        index = [np.asarray(a, dtype=np.intp) for a in index]
        index = [np.where(a < 0, a + size, a) for a, size in zip(index, self.shape, strict=True)]
        spatial = index[first : first + n]
        inside = np.ones(index[0].shape, bool)
        at = []
        for row, size in zip(self._matrix[:3], self.source.shape[first : first + n], strict=True):
            # as `Where` reads: a point on the face of two voxels shows the one that is painted
            place = row[0] * spatial[0] + row[1] * spatial[1] + row[2] * spatial[2] + row[3]
            inside &= (place >= -0.5 - ROUNDING) & (place <= size - 0.5 + ROUNDING)
            at.append(np.clip(np.floor(place + (0.5 - ROUNDING)), 0, size - 1).astype(np.intp))
        every = [*index[:first], *at, *index[first + n :]]
        return tuple(a[inside] for a in every), inside


def _has_arrays(index: Any) -> bool:
    return isinstance(index, tuple) and any(isinstance(key, np.ndarray | list) for key in index)

"""A prepared image that is made when it is looked at: turned, resampled and normalised a piece at a time.

Nothing of it is in memory but the piece that is asked for and what that is made of, so that scans larger than memory,
and lazy ones, go through a network like any other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_medai.core.errors import NotFiniteError
from napari_medai.core.geometry import Reorientation
from napari_medai.engine.resample import weights

NOT_FINITE = "Some pixels are NaN or infinite; replace them first, e.g. with numpy.nan_to_num."
# Voxels of the image that are looked at in one go
_VOXELS = 2**22


class Planes:
    """An image as a network wants it; index it like an array, (C, \\*spatial).

    Parameters
    ----------
    array : array
        (C, \\*spatial) of the image as it is stored: numpy, dask or Zarr; any type of real numbers.
    turned : Reorientation or None
        How its axes are brought into the network's order; none for 2-D.
    shape : sequence of int
        Of the network's grid, which covers the same box.
    offset, scale : sequence of float
        A pixel p of channel c becomes ``(p - offset[c]) / scale[c]``.
    clip : (low, high), optional
        Between what it is clipped then.
    zero : bool
        Whether what is 0 in the resampled image stays 0.

    Attributes
    ----------
    shape : tuple of int
        (C, \\*spatial).
    """

    dtype = np.dtype(np.float32)

    def __init__(
        self,
        array: Any,
        turned: Reorientation | None,
        shape: Sequence[int],
        offset: Sequence[float],
        scale: Sequence[float],
        clip: tuple[float, float] | None = None,
        zero: bool = False,
    ) -> None:
        self._array, self._turned, self._clip, self._zero = array, turned, clip, zero
        image = tuple(array.shape[1:])
        self._oriented = image if turned is None else tuple(image[n] for n in turned.order)
        self.shape = (int(array.shape[0]), *map(int, shape))
        self.ndim = len(self.shape)
        column = (-1,) + (1,) * (self.ndim - 1)
        self._offset = np.asarray(offset, np.float32).reshape(column)
        self._scale = np.asarray(scale, np.float32).reshape(column)

    @property
    def nbytes(self) -> int:
        """Of all of it at once."""
        return 4 * prod(self.shape)

    def __getitem__(self, where: tuple[slice, ...]) -> NDArray[np.float32]:
        """A piece; slices without steps, one for each axis."""
        pieces = [slice(*part.indices(n)) for part, n in zip(where, self.shape, strict=True)]
        ways = [weights(old, new) for old, new in zip(self._oriented, self.shape[1:], strict=True)]
        rows = [way[part.start : part.stop] for way, part in zip(ways, pieces[1:], strict=True)]
        seen = [slice(int(row.indices.min()), int(row.indices.max()) + 1) for row in rows]
        out = self._read(pieces[0], seen)
        # axes that shrink come first, so that the others have less to do
        order = sorted(range(len(rows)), key=lambda n: self.shape[n + 1] / self._oriented[n])
        for n in order:
            if self._oriented[n] != self.shape[n + 1]:
                out = _along(out, n + 1, rows[n][:, seen[n]])
        zero = out == 0 if self._zero else None
        out = out - self._offset[pieces[0]]  # may have been the image itself
        out /= self._scale[pieces[0]]
        if zero is not None:
            out[zero] = 0
        if self._clip is not None:
            np.clip(out, *self._clip, out=out)
        return np.ascontiguousarray(out)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """All of it, made a slab at a time."""
        whole, first = np.empty(self.shape, np.float32), 0
        for slab in pieces_of(self):
            whole[:, first : first + slab.shape[1]] = slab
            first += slab.shape[1]
        return whole if dtype is None else whole.astype(dtype, copy=False)

    @property
    def step(self) -> int:
        """Planes that are made in one go where all are wanted."""
        size = max(1, _VOXELS // max(1, prod(self._oriented) // self._oriented[0]))
        return max(1, int(size * self.shape[1] // self._oriented[0]))

    def box(self, where: Sequence[slice]) -> Box:
        """A box (\\*spatial) of it, made when it is looked at, too."""
        return Box(self, where)

    def _read(self, channels: slice, seen: Sequence[slice]) -> NDArray[np.float32]:
        """A piece of the turned image, float32."""
        if self._turned is None:
            return np.asarray(self._array[(channels, *seen)], dtype=np.float32)
        places = [slice(None)] * len(seen)
        for new, (old, flip) in enumerate(zip(self._turned.order, self._turned.flips, strict=True)):
            low, high = seen[new].start, seen[new].stop
            size = self._oriented[new]
            places[old] = slice(size - high, size - low) if flip else slice(low, high)
        piece = np.asarray(self._array[(channels, *places)], dtype=np.float32)
        flips = [slice(None, None, -1) if flip else slice(None) for flip in self._turned.flips]
        return piece.transpose(0, *(n + 1 for n in self._turned.order))[(slice(None), *flips)]


class Box:
    """A box of an image that is made when it is looked at; index it like an array, (C, \\*spatial)."""

    dtype = np.dtype(np.float32)

    def __init__(self, whole: Planes, where: Sequence[slice]) -> None:
        self._whole, self._first = whole, [part.start for part in where]
        self.shape = (whole.shape[0], *(part.stop - part.start for part in where))
        self.ndim = len(self.shape)

    def __getitem__(self, where: tuple[slice, ...]) -> NDArray[np.float32]:
        """A piece; slices without steps, one for each axis."""
        channels, *pieces = (slice(*part.indices(n)) for part, n in zip(where, self.shape, strict=True))
        moved = (slice(n + p.start, n + p.stop) for n, p in zip(self._first, pieces, strict=True))
        return self._whole[(channels, *moved)]


def pieces_of(image: Planes | NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    """An image (C, \\*spatial) in pieces along its first axis of space; one that is in memory is one piece."""
    step = image.step if isinstance(image, Planes) else max(1, image.shape[1])
    for first in range(0, image.shape[1], step):
        part = slice(first, min(image.shape[1], first + step))
        yield image[(slice(None), part, *[slice(None)] * (image.ndim - 2))]


def slabs_of(array: Any) -> Iterator[NDArray[Any]]:
    """An array (one channel, its first axis along the slabs) in pieces of a bearable size, as it is stored."""
    step = max(1, _VOXELS // max(1, prod(array.shape[1:])))
    for first in range(0, array.shape[0], step):
        yield np.asarray(array[first : first + step])


def extremes(array: Any) -> tuple[float, float]:
    """Smallest and largest value.

    Raises
    ------
    NotFiniteError
        A value is NaN or infinite.
    """
    low, high = np.inf, -np.inf
    for slab in slabs_of(array):
        low, high = np.minimum(low, slab.min()), np.maximum(high, slab.max())  # NaN stays
        if not np.isfinite([low, high]).all():
            raise NotFiniteError(NOT_FINITE)
    return float(np.float32(low)), float(np.float32(high))


def sample(array: Any, most: int) -> NDArray[np.float32]:
    """At most so many values, evenly spread over the flattened array."""
    size = prod(array.shape)
    step, at, filled = ceil(size / most), 0, 0
    found = np.empty(ceil(size / step), np.float32)
    for slab in slabs_of(array):
        some = slab.ravel()[-at % step :: step]
        found[filled : filled + len(some)] = some
        at, filled = at + slab.size, filled + len(some)
    return found


def _along(array: NDArray[np.float32], axis: int, rows: Any) -> NDArray[np.float32]:
    """Linear combinations of an axis."""
    moved = np.moveaxis(array, axis, 0)
    flat = np.ascontiguousarray(moved).reshape(moved.shape[0], -1)
    out = (rows @ flat).reshape(rows.shape[0], *moved.shape[1:])
    return np.asarray(np.moveaxis(out, 0, axis), dtype=np.float32)


def occupied(array: Any, margin: int) -> tuple[slice, ...]:
    """Where an image is not empty ground, its smallest value.

    Parameters
    ----------
    array : (C, \\*spatial) array
        numpy or `Planes`, looked at piece by piece.
    margin : int
        Voxels around that; below 0 all of the image is given.
    """
    shape = array.shape[1:]
    if margin < 0:
        return tuple(slice(0, n) for n in shape)
    low = min(float(slab.min()) for slab in pieces_of(array))
    seen = [np.zeros(size, bool) for size in shape]
    first = 0
    for slab in pieces_of(array):
        some = np.any(slab > low, axis=0)
        for axis, found in enumerate(seen):
            part = slice(first, first + some.shape[0]) if axis == 0 else slice(None)
            found[part] |= np.any(some, axis=tuple(n for n in range(some.ndim) if n != axis))
        first += some.shape[0]
    box = []
    for size, found in zip(shape, seen, strict=True):
        planes = np.flatnonzero(found)
        begin, end = (int(planes[0]), int(planes[-1]) + 1) if len(planes) else (0, size)
        box.append(slice(max(0, begin - margin), min(size, end + margin)))
    return tuple(box)

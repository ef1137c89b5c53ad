"""Planes as one array that decodes only what is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dask.array as da
import numpy as np
from numpy.typing import NDArray

from napari_medai.io.dicom.decoding import Plane, decode
from napari_medai.io.lazy import lazy, spread

# Values beyond these cannot be told apart in float32, so whole numbers stay integers as far as they can.
_INTEGERS = (np.uint8, np.int8, np.uint16, np.int16, np.int32, np.uint32, np.int64)


class Planes:
    """An array (t, z, y, x) or (t, z, y, x, s) over planes on disk.

    Parameters
    ----------
    planes : sequence of sequences of (Plane or None)
        ``planes[t][z]``; None is a missing slice.
    rows, columns : int
        Size of a plane.
    dtype : numpy.dtype
        Type of the values.
    colour : bool
        Whether there is an axis s of three samples.
    blank : float
        Value of a missing slice.
    """

    def __init__(
        self,
        planes: Sequence[Sequence[Plane | None]],
        rows: int,
        columns: int,
        dtype: np.dtype[Any],
        colour: bool,
        blank: float,
    ) -> None:
        self.planes = tuple(tuple(row) for row in planes)
        self.dtype = np.dtype(dtype)
        self.shape = (len(self.planes), len(self.planes[0]), rows, columns) + ((3,) if colour else ())
        self.ndim = len(self.shape)
        self.blank = blank

    def plane(self, t: int, z: int) -> NDArray[Any]:
        """Decode one plane."""
        plane = self.planes[t][z]
        if plane is None:
            return np.full(self.shape[2:], self.blank, self.dtype)
        return decode(plane, self.dtype)

    def fill(self, t: int, z: int, out: NDArray[Any]) -> None:
        """Decode one plane into its place, an array of its shape and type."""
        plane = self.planes[t][z]
        values = self.blank if plane is None else decode(plane, self.dtype, out)
        if values is not out:
            out[...] = values

    def __getitem__(self, key: Any) -> NDArray[Any]:
        """Decode the planes that a basic index touches, and no others."""
        key = spread(key, self.ndim)
        ts, zs = (np.arange(size)[index] for size, index in zip(self.shape[:2], key[:2], strict=True))
        rest = tuple(key[2:])
        if ts.size == 1 and zs.size == 1:
            one: NDArray[Any] = self.plane(int(ts.item()), int(zs.item()))[rest]
            return one.reshape(ts.shape + zs.shape + one.shape)
        inner = np.empty(self.shape[2:], np.bool_)[rest].shape
        found = np.empty((ts.size, zs.size, *inner), self.dtype)
        for a, t in enumerate(ts.flat):
            for b, z in enumerate(zs.flat):
                found[a, b] = self.plane(int(t), int(z))[rest]
        return found.reshape(ts.shape + zs.shape + inner)

    def lazy(self) -> da.Array:
        """A dask array with one chunk for each plane; see `napari_medai.io.lazy`."""
        return lazy(self)


def common_dtype(planes: Sequence[Plane], hounsfield: bool = False) -> np.dtype[Any]:
    """The smallest type that holds the values of all planes.

    Stored integers keep their type where no rescale changes them; whole slopes and intercepts give
    integers too; anything else float32 (float64 only for stored doubles).

    Parameters
    ----------
    planes : sequence of Plane
        All of an image.
    hounsfield : bool
        Whether whole values are Hounsfield units: int16 holds all that occur (the extended scale ends at
        30710), and padding beyond it is held at the ends of the range.
    """
    masks = [number for plane in planes for _, number in plane.segments or ()]
    filled = [plane for plane in planes if plane.segments is None]
    if masks or not filled:
        return np.dtype(np.uint8 if max(masks, default=0) < 256 else np.uint16)
    planes, first = filled, filled[0]
    if first.file.colour:
        return np.dtype(np.uint8) if "PALETTE" in first.file.photometric else first.file.dtype.newbyteorder("=")
    if any(p.file.dtype.kind == "f" for p in planes):
        return np.dtype(np.float64 if any(p.file.dtype.itemsize == 8 for p in planes) else np.float32)
    if not all(p.whole for p in planes):
        return np.dtype(np.float32)
    if all(p.slope == 1 and p.intercept == 0 and p.table is None for p in planes):
        return np.result_type(*{p.file.dtype.newbyteorder("=") for p in planes})
    if hounsfield:
        return np.dtype(np.int16)
    low, high = min(p.limits[0] for p in planes), max(p.limits[1] for p in planes)
    for kind in _INTEGERS[2:]:
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return np.dtype(kind)
    return np.dtype(np.float32)

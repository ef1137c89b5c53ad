"""Looking up voxels: where the points of a plane lie in an array, and the part of the array to be read for them."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_medai.core.volume import SPATIAL_AXES

# Planes of lazy sources are kept up to this size, all frames together; a larger image is read again for each plane.
KEPT_BYTES = 512 * 2**20
# Coordinates are compared and rounded to this share of a voxel: 1e-5 of a step in value on a ramp of one per voxel.
ROUNDING = 1e-5


class Where:
    """Where in the source the points of a plane lie, and which of them lie inside.

    Coordinates along a source axis that do not change along an axis of the plane are kept without it: planes
    parallel to the source's cost less, and fall on its voxels exactly where they should.
    """

    def __init__(
        self,
        origin: NDArray[np.float64],
        vectors: NDArray[np.float64],
        sizes: Sequence[int],
        shape: Sequence[int],
        order: int,
    ) -> None:
        self.order, self._sizes = order, tuple(sizes)
        inside: Any = np.True_
        coordinates = []
        for a, n in enumerate(shape):
            at = np.full((1,) * len(sizes), origin[a])
            for d, size in enumerate(sizes):
                if abs(vectors[d, a]) * size > ROUNDING:
                    at = at + (vectors[d, a] * np.arange(size)).reshape(
                        [-1 if e == d else 1 for e in range(len(sizes))]
                    )
            if at.size <= max(sizes, default=1):
                whole = np.rint(at)
                at = np.where(np.abs(at - whole) <= ROUNDING, whole, at)
            inside = inside & (at >= -0.5 - ROUNDING) & (at <= n - 0.5 + ROUNDING)
            coordinates.append(np.clip(at, 0, n - 1))
        inside = np.broadcast_to(inside, self._sizes)
        self._all = bool(inside.all())
        self.empty = not self._all and not inside.any()
        self.inside = (...,) if self._all else inside
        if self.empty:
            return
        if not self._all:
            coordinates = [c if c.size == 1 else np.broadcast_to(c, self._sizes)[inside] for c in coordinates]
            coordinates = [c.reshape(-1) for c in coordinates]
        self._lower, self._share = zip(
            *(_split(c, n, order) for c, n in zip(coordinates, shape, strict=True)), strict=True
        )
        self.low = tuple(int(c.min()) for c in self._lower)
        self.high = tuple(
            int(c.max()) + 1 + (share is not None) for c, share in zip(self._lower, self._share, strict=True)
        )

    def values(self, block: NDArray[Any], start: Sequence[int], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Look up ``block``, whose first voxel is ``start`` of the source; the result broadcasts to the points."""
        take = _Lookup(block, [c - s for c, s in zip(self._lower, start, strict=True)])
        work = np.result_type(block.dtype, np.float32)

        def along(axis: int, corner: tuple[int, ...]) -> NDArray[Any]:
            if axis == 3:
                found = take(corner)
                return found if self.order == 0 else found.astype(work, copy=False)
            here = along(axis + 1, (*corner, 0))
            share = self._share[axis]
            if share is None:
                return here
            share = share.astype(here.real.dtype, copy=False)
            if block.ndim == 4:
                share = share[..., None]
            mixed: NDArray[Any] = here + (along(axis + 1, (*corner, 1)) - here) * share
            return mixed

        found = along(0, ())
        if found.dtype != dtype:
            found = (
                np.rint(found).astype(dtype) if dtype.kind in "iu" and found.dtype.kind == "f" else found.astype(dtype)
            )
        return found


def _split(at: NDArray[np.float64], size: int, order: int) -> tuple[NDArray[np.intp], NDArray[np.float64] | None]:
    """The lower voxel and the share of the next one; none where all points lie on voxels."""
    if order == 0:
        return np.floor(at + (0.5 - ROUNDING)).astype(np.intp), None
    lower = np.floor(at)
    if np.array_equal(lower, at):
        return lower.astype(np.intp), None
    lower = np.minimum(lower, size - 2)  # the last voxel is the whole of the next one
    return lower.astype(np.intp), at - lower


class _Lookup:
    """Voxels of a block, and their neighbours: by their places in memory, which is faster, where it has no gaps."""

    def __init__(self, block: NDArray[Any], index: Sequence[NDArray[np.intp]]) -> None:
        self._block, self._index, self._flat = block, index, None
        unit = block.itemsize * (block.shape[3] if block.ndim == 4 else 1)
        steps = block.strides[:3]
        turned = block[tuple(slice(None, None, -1 if step < 0 else 1) for step in steps)]
        order = sorted(range(3), key=lambda a: -abs(steps[a]))
        turned = turned.transpose([*order, *range(3, block.ndim)])
        if turned.flags.c_contiguous and all(step % unit == 0 for step in steps):
            self._flat = turned.reshape(-1, *block.shape[3:])
            self._steps = [step // unit for step in steps]
            first = sum(-step * (n - 1) for step, n in zip(self._steps, block.shape, strict=False) if step < 0)
            # the sums of fewer points come first
            terms = sorted((x * step for x, step in zip(index, self._steps, strict=True)), key=lambda x: x.size)
            self._places = terms[0] + first + terms[1] + terms[2]

    def __call__(self, corner: Sequence[int]) -> NDArray[Any]:
        """The voxels that lie ``corner`` (0 or 1 along each axis) further on."""
        if self._flat is None:
            found: NDArray[Any] = self._block[tuple(x + c for x, c in zip(self._index, corner, strict=True))]
            return found
        offset = sum(c * step for c, step in zip(corner, self._steps, strict=True))
        if offset >= 0:
            values: NDArray[Any] = np.take(self._flat[offset:], self._places, axis=0)
        else:
            values = np.take(self._flat, self._places + offset, axis=0)
        return values


class Source:
    """The array that is looked up: ``block`` gives the part of it in which some voxels lie, as numpy.

    Arrays in memory are used as they are, so that what is written into them shows. Of others, whole planes are read
    along the axis on which they are divided most, and kept.
    """

    def __init__(self, array: Any, axes: str) -> None:
        self._array, self._axes = array, axes
        self._numpy = isinstance(array, np.ndarray)
        self.colour_axis = axes.index("s") if "s" in axes else -1
        sizes = dict(zip(axes, array.shape, strict=True))
        self.shape = (int(sizes.get("z", 1)), int(sizes["y"]), int(sizes["x"]))
        blocks = dict(zip(axes, getattr(array, "numblocks", ()), strict=False))
        self._divided = max(range(3), key=lambda a: blocks.get(SPATIAL_AXES[a], 1))
        self._frames: OrderedDict[tuple[tuple[int, int], ...], tuple[NDArray[Any], NDArray[np.bool_]]] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        # a lock cannot be copied, and planes that were kept are read again
        return (Source, (self._array, self._axes))

    def described(self) -> Iterator[tuple[str, int, int]]:
        """Letter, size and number of each axis, ``z`` among them even where there is one plane."""
        for number, letter in enumerate(self._axes):
            if letter == "y" and "z" not in self._axes:
                yield "z", 1, -1
            yield letter, int(self._array.shape[number]), number

    def block(
        self, fixed: dict[int, int], low: Sequence[int], high: Sequence[int]
    ) -> tuple[NDArray[Any], tuple[int, int, int]]:
        """An array (z, y, x[, s]) that holds at least the voxels ``low`` to before ``high``, and its first voxel."""
        if self._numpy:
            return self._part(fixed, (slice(None),) * 3), (0, 0, 0)
        bytes_of_frame = math.prod(self.shape) * self._array.dtype.itemsize
        bytes_of_frame *= self._array.shape[-1] if self.colour_axis != -1 else 1
        bounds = [slice(a, min(b, n)) for a, b, n in zip(low, high, self.shape, strict=True)]
        if bytes_of_frame > KEPT_BYTES:
            return self._part(fixed, bounds), (low[0], low[1], low[2])
        with self._lock:
            key = tuple(sorted((n, at) for n, at in fixed.items() if n != self.colour_axis))
            if key not in self._frames:
                while self._frames and (len(self._frames) + 1) * bytes_of_frame > KEPT_BYTES:
                    self._frames.popitem(last=False)
                colours = self._array.shape[-1:] if self.colour_axis != -1 else ()
                # pages that are never written take no memory
                self._frames[key] = (
                    np.empty((*self.shape, *colours), self._array.dtype),
                    np.zeros(self.shape[self._divided], bool),
                )
            self._frames.move_to_end(key)
            kept, known = self._frames[key]
            wanted = bounds[self._divided]
            for run in _runs(~known[wanted], wanted.start):
                part = [slice(None)] * 3
                part[self._divided] = run
                kept[tuple(part)] = self._part(fixed, part)
                known[run] = True
        return kept, (0, 0, 0)

    def _part(self, fixed: dict[int, int], part: Sequence[slice]) -> NDArray[Any]:
        index: list[Any] = []
        for number, letter in enumerate(self._axes):
            if letter in SPATIAL_AXES:
                index.append(part[SPATIAL_AXES.index(letter)])
            else:
                index.append(slice(None) if letter == "s" else fixed[number])
        found = np.asarray(self._array[tuple(index)])
        return found if "z" in self._axes else found[None]


def _runs(wanted: NDArray[np.bool_], first: int) -> Iterator[slice]:
    """Slices of the unbroken runs of true, counted from ``first``."""
    edges = np.flatnonzero(np.diff(np.r_[False, wanted, False].astype(np.int8)))
    for start, stop in edges.reshape(-1, 2).tolist():
        yield slice(first + start, first + stop)

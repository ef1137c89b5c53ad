"""Lazy resampling: the voxels of one grid looked up on another, only those that are asked for.

A grid's voxel is found in another grid by one affine, index to index. Whatever is then cut out by an index, a plane
of any orientation or a single voxel, is again an affine of fewer axes, so that nothing is computed before the pixels
themselves are wanted. Conventions: an index is the centre of a voxel; a voxel reaches half an index to either side;
within the outermost half voxel the outermost centre counts, beyond it there is the *outside* value.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_medai.core.errors import InputError
from napari_medai.core.geometry import Affine, Grid
from napari_medai.core.sampling import ROUNDING, Source, Where
from napari_medai.core.volume import SPATIAL_AXES, Volume

# Outside of a CT there is air.
_AIR_HU = -1024


def reslice(volume: Volume, grid: Grid, order: int | None = None, *, outside: float | None = None) -> Volume:
    """The image on another grid, computed where and when its pixels are asked for.

    Parameters
    ----------
    volume : Volume
        numpy, dask or any other array that can be sliced.
    grid : Grid
        Where the new voxels lie, in the same world; its units must be the volume's.
    order : {None, 0, 1}
        0 takes the nearest voxel, 1 interpolates linearly between eight. Default: 0 for labels and for images of
        true and false, 1 else.
    outside : float, optional
        Value beyond the image. Default: 0; for a CT that can hold it -1024, which is air. With NaN the pixels of
        an image of whole numbers become floating.

    Returns
    -------
    Volume
        Same axes, with ``z`` where the grid has several planes; ``t``, ``c`` and ``s`` are carried. Its `array` is a
        `Resampled`. The type of the pixels is kept, interpolated whole numbers are rounded.

    Raises
    ------
    InputError
        The units differ, or ``order`` is neither 0 nor 1.
    """
    if volume.units != grid.units:
        raise InputError(f"The grid is in {grid.units}, the image in {volume.units}; resampling needs one world.")
    if order not in (None, 0, 1):
        raise InputError(f"Order {order!r} was given; 0 (nearest) and 1 (linear) are known.")
    if order is None:
        order = 0 if volume.meta.get("is_labels") or volume.dtype.kind == "b" else 1
    if outside is None:
        outside = _AIR_HU if volume.modality == "CT" and volume.dtype.kind in "if" and volume.dtype.itemsize > 1 else 0
    dtype = np.result_type(volume.dtype, np.float32) if np.isnan(outside) else volume.dtype
    matrix: Affine = np.asarray(np.linalg.solve(volume.affine, grid.affine), dtype=np.float64)
    array = resampled(volume.array, volume.axes, matrix, grid.shape, order, outside, dtype)
    axes = volume.axes
    if "z" not in axes:
        if grid.shape[0] == 1:
            array = array[(slice(None),) * axes.index("y") + (0,)]
        else:
            axes = axes.replace("y", "zy")
    return volume.replace(array=array, axes=axes, affine=grid.affine)


def resampled(
    array: Any,
    axes: str,
    matrix: Affine,
    shape: Sequence[int],
    order: int,
    outside: float = 0,
    dtype: Any = None,
) -> Resampled:
    """A lazy array of ``shape`` (z, y, x) whose index, times ``matrix``, is an index of ``array``; see `Resampled`.

    An array without ``z`` counts as one plane, and the result has a ``z`` before its ``y``.
    """
    source = Source(array, axes)
    spatial = [_Axis(int(n), vector=matrix[:3, a]) for a, n in enumerate(shape)]
    out: list[_Axis] = []
    for letter, size, number in source.described():
        out += spatial if letter == "z" else [] if letter in SPATIAL_AXES else [_Axis(size, number=number)]
    return Resampled(source, tuple(out), matrix[:3, 3], {}, order, outside, np.dtype(dtype or array.dtype))


def covering_grid(grid: Grid, frame: Affine, *, every_voxel: bool = False) -> Grid:
    """The smallest grid parallel to a frame's axes that holds a tilted one without losing its detail.

    Parameters
    ----------
    grid : Grid
        To be covered.
    frame : (4, 4) array
        Frame coordinates -> world: a rigid motion, or the affine of a viewer's display.
    every_voxel : bool
        Whether each voxel is to be the nearest one of at least one point of the new grid, so that nothing is lost
        between two points: up to three times as fine. Default False.

    Returns
    -------
    Grid
        In *frame coordinates*: its affine only scales and shifts. Along each axis its spacing is that at which the
        frame's axis meets the next voxel of the tilted grid, whichever face it leaves by first; thick slices that
        are tilted are so cut at the fineness of their planes.
    """
    through = np.linalg.solve(frame, grid.affine)
    linear = through[:3, :3]
    # one frame unit along axis d moves the index by |inverse[:, d]|: a step may move no index by more than one
    moves = np.abs(np.linalg.inv(linear))
    spacing = 1 / moves.max(axis=0)
    if every_voxel:
        # half a step along all axes together stays within half a voxel of each index
        far = np.maximum(1.0, moves @ spacing)
        spacing /= np.where(moves * spacing > ROUNDING, far[:, None], 1.0).max(axis=0)
    ends = np.array(list(product(*[(-0.5, n - 0.5) for n in grid.shape]))) @ linear.T + through[:3, 3]
    low, high = ends.min(axis=0), ends.max(axis=0)
    size = np.maximum(1, np.ceil((high - low) / spacing - 1e-3)).astype(int)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = (low + high) / 2 - spacing * (size - 1) / 2
    return Grid((int(size[0]), int(size[1]), int(size[2])), affine, grid.units)


@dataclass(frozen=True, eq=False)
class _Axis:
    """An axis of a lazy array: a step through the source (``vector``), or some indices of source axis ``number``."""

    size: int
    vector: NDArray[np.float64] | None = None
    number: int = -1
    start: int = 0
    step: int = 1

    def cut(self, index: slice) -> tuple[_Axis, int]:
        """The axis of a slice, and where it starts."""
        steps = range(*index.indices(self.size))
        first = steps.start if len(steps) else 0
        if self.vector is not None:
            return _Axis(len(steps), vector=self.vector * steps.step), first
        return replace(self, size=len(steps), start=self.start + self.step * first, step=self.step * steps.step), first


class Resampled:
    """An array that is computed when numpy asks for it (``numpy.asarray``); indexing it gives another one.

    Made by `reslice` and `resampled`. Understands integers, slices (of any step) and ``...``; `transpose`. Where all
    axes are gone, the value itself is given. Threads may read it at once.

    Attributes
    ----------
    shape, dtype, ndim, size, nbytes
        As numpy's.
    """

    def __init__(
        self,
        source: Source,
        axes: tuple[_Axis, ...],
        origin: NDArray[np.float64],
        fixed: dict[int, int],
        order: int,
        outside: float,
        dtype: np.dtype[Any],
    ) -> None:
        self._source, self._axes, self._origin, self._fixed = source, axes, origin, fixed
        self._order, self._outside, self.dtype = order, outside, dtype
        self._token = uuid.uuid4().hex

    @property
    def shape(self) -> tuple[int, ...]:
        """Size along every axis."""
        return tuple(axis.size for axis in self._axes)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self._axes)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes that all elements would take."""
        return self.size * self.dtype.itemsize

    def __repr__(self) -> str:
        return f"Resampled(shape={self.shape}, dtype={self.dtype})"

    def __len__(self) -> int:
        if not self._axes:
            raise TypeError("len() of an array without axes")
        return self.shape[0]

    def __dask_tokenize__(self) -> str:
        """A name of its own: dask would read all pixels to find one."""
        return self._token

    def _with(self, axes: tuple[_Axis, ...], origin: NDArray[np.float64], fixed: dict[int, int]) -> Resampled:
        return Resampled(self._source, axes, origin, fixed, self._order, self._outside, self.dtype)

    def __getitem__(self, index: Any) -> Any:
        keys = _whole_index(index, self.ndim)
        axes, origin, fixed = [], self._origin.copy(), dict(self._fixed)
        for axis, key in zip(self._axes, keys, strict=True):
            if isinstance(key, slice):
                kept, first = axis.cut(key)
                axes.append(kept)
            else:
                first = int(key) + axis.size * (key < 0)
                if not 0 <= first < axis.size:
                    raise IndexError(f"index {key} is out of bounds for an axis of size {axis.size}")
                if axis.vector is None:
                    fixed[axis.number] = axis.start + axis.step * first
            if axis.vector is not None:
                origin = origin + axis.vector * first
        view = self._with(tuple(axes), origin, fixed)
        return view if axes else np.asarray(view)[()]

    def astype(self, dtype: Any) -> NDArray[Any]:
        """All pixels, computed, as another type."""
        return self.__array__(dtype)

    def transpose(self, *order: Any) -> Resampled:
        """The same with its axes permuted, as numpy's."""
        if len(order) == 1 and not isinstance(order[0], int | np.integer):
            order = tuple(order[0])
        order = order or tuple(reversed(range(self.ndim)))
        if sorted(n % self.ndim for n in order) != list(range(self.ndim)):
            raise ValueError(f"axes {order} do not permute {self.ndim} axes")
        return self._with(tuple(self._axes[n] for n in order), self._origin, self._fixed)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("A resampled array is computed; it cannot be given without a copy.")
        out = self._compute()
        return out if dtype is None else out.astype(dtype, copy=False)

    def _compute(self) -> NDArray[Any]:
        spatial = [n for n, axis in enumerate(self._axes) if axis.vector is not None]
        colour = [n for n, axis in enumerate(self._axes) if axis.number == self._source.colour_axis != -1]
        lead = [n for n in range(self.ndim) if n not in spatial and n not in colour]
        made = [*lead, *spatial, *colour]
        out = np.full([self.shape[n] for n in made], self._outside, self.dtype)
        vectors = np.array([self._axes[n].vector for n in spatial]).reshape(-1, 3)
        sizes = [self.shape[n] for n in spatial]
        for frame in np.ndindex(*[self.shape[n] for n in lead]):
            fixed = dict(self._fixed)
            for n, at in zip(lead, frame, strict=True):
                fixed[self._axes[n].number] = self._axes[n].start + self._axes[n].step * at
            for place, origin in _planes(vectors, sizes, self._origin):
                samples = self._axes[colour[0]] if colour else None
                self._fill(out[(*frame, *place, ...)], origin, vectors[len(place) :], fixed, samples)
        return out.transpose(np.argsort(made)) if made else out

    def _fill(
        self,
        out: NDArray[Any],
        origin: NDArray[np.float64],
        vectors: NDArray[np.float64],
        fixed: dict[int, int],
        samples: _Axis | None,
    ) -> None:
        """Compute a plane, a line or a point into ``out``."""
        sizes = out.shape[: len(vectors)]
        where = Where(origin, vectors, sizes, self._source.shape, self._order)
        if where.empty:
            return
        block, start = self._source.block(fixed, where.low, where.high)
        values = where.values(block, start, self.dtype)
        if samples is not None:
            values = values[..., np.arange(samples.size) * samples.step + samples.start]
        elif self._source.colour_axis != -1:
            values = values[..., fixed[self._source.colour_axis]]
        out[where.inside] = values


def _planes(
    vectors: NDArray[np.float64], sizes: Sequence[int], origin: NDArray[np.float64]
) -> Iterator[tuple[tuple[int, ...], NDArray[np.float64]]]:
    """The index and origin of each plane of a box; a plane, line or point is one by itself."""
    if len(sizes) < 3:
        yield (), origin
        return
    for n in range(sizes[0]):
        yield (n,), origin + vectors[0] * n


def _whole_index(index: Any, ndim: int) -> list[Any]:
    """An index with a key for every axis."""
    keys = list(index) if isinstance(index, tuple) else [index]
    if any(not (k is Ellipsis or isinstance(k, slice | int | np.integer)) or isinstance(k, bool) for k in keys):
        raise IndexError("A resampled array takes integers, slices and '...'; numpy.asarray it for others.")
    dots = [n for n, k in enumerate(keys) if k is Ellipsis]
    if len(keys) - len(dots) > ndim or len(dots) > 1:
        raise IndexError(f"{len(keys)} indices were given for {ndim} axes.")
    at = dots[0] if dots else len(keys)
    return [*keys[:at], *[slice(None)] * (ndim - len(keys) + len(dots)), *keys[at + 1 :]]

"""Bring pixels to what a network was trained on, and what it says exactly back to the grid of the image."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from napari_medai.core.errors import InputError, ModelError, NotFiniteError
from napari_medai.core.geometry import Affine, Grid, Reorientation, world_to_index
from napari_medai.core.volume import Volume
from napari_medai.engine.conform import (
    in_network_order,
    into_cube,
    is_turn,
    lies_outside,
    out_of_cube,
    through_cube,
    towards,
)
from napari_medai.engine.device import free_memory_mb
from napari_medai.engine.planes import NOT_FINITE, Planes, extremes, sample
from napari_medai.engine.resample import resample, resample_labels
from napari_medai.models.spec import Prepare

# Percentiles, mean and deviation are taken over about this many voxels of a larger image, evenly spread
SAMPLE_VOXELS = 2**24
# A prepared image that is larger than this share of free memory is made piece by piece
LAZY_SHARE = 1 / 16
# Spacings that differ by less than this share count as equal: headers round to three digits
SAME_SPACING = 0.005


@dataclass(frozen=True, eq=False)
class Prepared:
    """An image as a network wants it, and the way back.

    Attributes
    ----------
    array : (C, \\*spatial) float32 array
        Oriented, resampled and normalised; where the whole would be large a `Planes`, of which each piece is made when
        it is asked for.
    spacing : tuple of float
        Of ``array`` along its spatial axes, in the image's unit.
    shape : tuple of int
        Spatial shape of the image: what every undo ends on.
    reorientation : Reorientation or None
        What was done to the axes first; none for 2-D and where there is a cube.
    oriented_shape : tuple of int
        Spatial shape between reorientation and resampling.
    offset, scale : tuple of float
        A pixel p of channel c became ``(p - offset[c]) / scale[c]``.
    through : (4, 4) array or None
        Index in the image -> index in ``array`` where it is a cube (`Prepare.conform`).
    """

    array: NDArray[np.float32] | Planes
    spacing: tuple[float, ...]
    shape: tuple[int, ...]
    reorientation: Reorientation | None
    oriented_shape: tuple[int, ...]
    offset: tuple[float, ...]
    scale: tuple[float, ...]
    through: Affine | None = None

    @property
    def same_voxels(self) -> bool:
        """Whether every voxel of the image is one of ``array``: whatever goes back is not interpolated."""
        if self.through is not None:
            return is_turn(self.through[:3, :3])
        return self.oriented_shape == self.array.shape[1:]

    def undo(self, values: NDArray[np.floating]) -> NDArray[np.float32]:
        """Maps (…, \\*spatial) such as probabilities, back on the image's grid by linear resampling.

        Beyond a cube they are 0.
        """
        if self.through is not None:
            return self._each(np.asarray(values, dtype=np.float32), 1)
        return np.ascontiguousarray(self._turn_back(resample(values, self.oriented_shape)))

    def undo_labels(self, labels: NDArray[np.integer]) -> NDArray[Any]:
        """Labels (…, \\*spatial), back on the image's grid by the nearest voxel; type and values are kept.

        Beyond a cube they are 0.
        """
        if self.through is not None:
            return self._each(np.asarray(labels), 0)
        return np.ascontiguousarray(self._turn_back(resample_labels(labels, self.oriented_shape)))

    def undo_image(self, values: NDArray[np.floating]) -> NDArray[np.float32]:
        """Pixels (…, C, \\*spatial) in the network's scale, back on the image's grid and in its scale of values.

        What was clipped stays clipped. C is that of ``array``, or the axis is left out where that is 1.
        """
        per_channel = (-1,) + (1,) * len(self.shape) if len(self.scale) > 1 else ()
        scale, offset = (np.asarray(v, np.float32).reshape(per_channel) for v in (self.scale, self.offset))
        return np.asarray(self.undo(values) * scale + offset)

    def undo_points(self, points: NDArray[np.floating]) -> NDArray[np.float64]:
        """Index coordinates (n, ndim) on ``array``, as index coordinates on the image."""
        if self.through is not None:
            return world_to_index(self.through, np.asarray(points, dtype=np.float64).reshape(-1, 3))
        old, new = np.asarray(self.oriented_shape, float), np.asarray(self.array.shape[1:], float)
        at = (np.asarray(points, dtype=np.float64).reshape(-1, len(old)) + 0.5) * old / new - 0.5
        if self.reorientation is None:
            return np.asarray(at)
        back = self.reorientation
        flipped = np.where(back.flips, np.asarray(self.oriented_shape) - 1 - at, at)
        return np.ascontiguousarray(flipped[:, list(back.inverse().order)])

    def undo_sizes(self, sizes: NDArray[np.floating]) -> NDArray[np.float64]:
        """Extents (n, ndim) in voxels of ``array``, as extents in voxels of the image."""
        if self.through is not None:
            extents = np.asarray(sizes, dtype=np.float64).reshape(-1, 3)
            return np.asarray(extents @ np.abs(np.linalg.inv(self.through[:3, :3])).T)
        factor = np.asarray(self.oriented_shape, float) / np.asarray(self.array.shape[1:], float)
        scaled = np.asarray(sizes, dtype=np.float64).reshape(-1, len(factor)) * factor
        if self.reorientation is None:
            return np.asarray(scaled)
        return np.ascontiguousarray(scaled[:, list(self.reorientation.inverse().order)])

    def _each(self, values: NDArray[Any], order: int) -> NDArray[Any]:
        assert self.through is not None
        lead = values.shape[:-3]
        parts = [out_of_cube(part, self.through, self.shape, order) for part in values.reshape(-1, *values.shape[-3:])]
        return np.stack(parts).reshape(*lead, *self.shape)

    def _turn_back(self, array: NDArray[Any]) -> NDArray[Any]:
        return array if self.reorientation is None else turn(array, self.reorientation.inverse())


def prepare(
    volume: Volume,
    how: Prepare,
    diameter: float | None = None,
    note: Callable[[str], None] = lambda _: None,
    orientation: str = "",
    free_mb: float | None = None,
) -> Prepared:
    """Orient, resample and normalise an image with spatial axes, and channels if it has them.

    The axes are brought to the model's order first, so that a network sees every head the same way up; then comes
    the model's spacing, cubic voxels, fixed size, cube, or its size of objects; last the pixels are normalised (by
    percentiles or moments of the image before it was resampled, each channel for itself).

    Parameters
    ----------
    volume : Volume
        Axes ``"yx"``, ``"zyx"``, ``"cyx"`` or ``"czyx"``; real pixels, all finite.
    how : Prepare
        Of the model's description.
    diameter : float, optional
        Typical object diameter in pixels of the image; needed where ``how.object_diameter`` is given, without it
        the size is kept. Applies to 2-D images.
    note : callable
        Told of what could not be done and what was.
    orientation : str
        Directions in which the network's axes run, `Accepts.orientation`. Default ``"SPL"``. Applies to volumes.
    free_mb : float, optional
        Memory that may be taken, MiB. Default: what is free.

    Raises
    ------
    InputError
        There are other axes, or every pixel of a channel has the same value.
    NotFiniteError
        A pixel is NaN or infinite.
    """
    if volume.axes not in (volume.spatial_axes, "c" + volume.spatial_axes):
        raise InputError(f"Axes {volume.axes!r} were given; take single frames and channels first.")
    if how.conform and volume.ndim_spatial == 3:
        pixels = np.asarray(volume.numpy(), dtype=np.float32)
        return _conformed(pixels if "c" in volume.axes else pixels[np.newaxis], volume.grid, how, orientation, note)
    stored = volume.array if "c" in volume.axes else volume.array[np.newaxis]
    offset, scale = _moments(stored, how)
    grid, reorientation = volume.grid, None
    if volume.ndim_spatial == 3:
        reorientation = towards(volume.affine, orientation)
        grid = grid.reoriented(reorientation)
    oriented = grid.shape[3 - volume.ndim_spatial :]
    shape = _new_shape(grid, volume.ndim_spatial, how, diameter, note, orientation)
    clip = how.scaled if how.clip and how.normalise in ("percentile", "range", "minmax") else None
    zero = how.nonzero and how.normalise == "zscore"
    planes = Planes(stored, reorientation, shape, offset, scale, clip, zero)
    # read again for each row of tiles, and only then, where it would take a large part of what is free
    free_mb = free_memory_mb(torch.device("cpu")) if free_mb is None else free_mb
    small = planes.nbytes <= LAZY_SHARE * free_mb * 2**20
    spacing = grid.spacing[3 - volume.ndim_spatial :]
    new = tuple(s * old / n for s, old, n in zip(spacing, oriented, shape, strict=True))
    array = np.asarray(planes) if small else planes
    return Prepared(array, new, volume.spatial_shape, reorientation, oriented, offset, scale)


def _conformed(
    pixels: NDArray[np.float32],
    grid: Grid,
    how: Prepare,
    orientation: str,
    note: Callable[[str], None],
) -> Prepared:
    """In a cube parallel to the patient's axes."""
    if not np.isfinite(pixels).all():
        raise NotFiniteError(NOT_FINITE)
    if grid.units == "pixel":
        note("the image has no place in a patient and no voxel size: its voxels are taken as millimetres")
    unit = 1000.0 if grid.units == "um" else 1.0
    spacing = tuple(s * unit for s in how.spacing_mm or (1.0, 1.0, 1.0))
    edge = how.conform
    through = through_cube(grid, edge, spacing, orientation)
    if not is_turn(through[:3, :3]):
        mm = " x ".join(f"{s:g}" for s in how.spacing_mm or (1, 1, 1))
        note(f"resampled to a cube of {edge} voxels of {mm} mm, parallel to the patient's axes, and back")
    if lies_outside(through, grid.shape, edge):
        note(f"the image is larger than the {edge} voxels that the model looks at; what lies beyond is background")
    cubes = np.stack([into_cube(channel, grid, through, edge, spacing) for channel in pixels])
    # of the cube: however the scan was cut and sampled, the same head has the same percentiles there
    offset, scale = _moments(cubes, how)
    array = _normalised(cubes, how, offset, scale)
    new = in_network_order(spacing, orientation)
    return Prepared(array, new, grid.shape, None, grid.shape, offset, scale, through)


def _moments(pixels: Any, how: Prepare) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Offset and scale of each channel."""
    moments = [normalisation(channel, how) for channel in pixels]
    return tuple(m[0] for m in moments), tuple(m[1] for m in moments)


def _normalised(
    array: NDArray[np.float32], how: Prepare, offset: tuple[float, ...], scale: tuple[float, ...]
) -> NDArray[np.float32]:
    per_channel = (-1,) + (1,) * (array.ndim - 1)
    zero = array == 0 if how.nonzero and how.normalise == "zscore" else None
    out = array - np.asarray(offset, np.float32).reshape(per_channel)
    out /= np.asarray(scale, np.float32).reshape(per_channel)
    if zero is not None:
        out[zero] = 0
    if how.clip and how.normalise in ("percentile", "range", "minmax"):
        np.clip(out, *how.scaled, out=out)
    return np.ascontiguousarray(out)


def turn(array: NDArray[Any], reorientation: Reorientation) -> NDArray[Any]:
    """The last three axes of an array permuted and flipped; a view."""
    first = array.ndim - 3
    order = [*range(first), *(first + n for n in reorientation.order)]
    flips = [slice(None, None, -1) if flip else slice(None) for flip in reorientation.flips]
    return array.transpose(order)[(..., *flips)]


def normalisation(pixels: Any, how: Prepare) -> tuple[float, float]:
    """Offset and scale, so that ``(pixel - offset) / scale`` is normalised, of an array in memory or not.

    Where both percentiles fall on one value (an object on a large empty ground) the whole range is taken.

    Raises
    ------
    InputError
        Every pixel has the same value.
    NotFiniteError
        A pixel is NaN or infinite.
    """
    if how.normalise == "none":
        return 0.0, 1.0
    lowest, highest = extremes(pixels)
    if how.normalise == "range":
        return _onto(how, how.low, how.high)
    if lowest == highest:
        raise InputError(f"Every pixel has the value {lowest:g}: there is nothing to look at.")
    if how.normalise == "minmax":
        return _onto(how, lowest, highest)
    seen = sample(pixels, SAMPLE_VOXELS)
    if how.nonzero:
        seen = seen[seen != 0]
    if how.normalise == "zscore":
        mean = float(seen.mean(dtype=np.float64))
        # in parts: all at once would be a copy in double precision
        squares = sum(float(np.square(part - mean).sum()) for part in _parts(seen))
        return mean, (squares / len(seen)) ** 0.5 or highest - lowest
    low, high = (
        lowest if p == 0 else highest if p == 100 else float(np.percentile(seen, p, overwrite_input=True))
        for p in (how.low, how.high)
    )
    return _onto(how, low, high) if high > low else _onto(how, lowest, highest)


def _parts(values: NDArray[np.float32]) -> Iterator[NDArray[np.float64]]:
    for first in range(0, len(values), 2**20):
        yield values[first : first + 2**20].astype(np.float64)


def _onto(how: Prepare, low: float, high: float) -> tuple[float, float]:
    """Offset and scale that bring ``low`` and ``high`` to ``how.scaled``."""
    first, second = how.scaled
    scale = (high - low) / (second - first)
    return low - first * scale, scale


def _new_shape(
    grid: Grid, ndim: int, how: Prepare, diameter: float | None, note: Callable[[str], None], orientation: str
) -> tuple[int, ...]:
    """Spatial shape that the network is to see."""
    shape, spacing = grid.shape[3 - ndim :], grid.spacing[3 - ndim :]
    wanted: tuple[float, ...] | None = None
    if how.size:
        if len(how.size) != ndim:
            raise ModelError(f"The model's size has {len(how.size)} axes; the image has {ndim}.")
        wanted = tuple(s * old / n for s, old, n in zip(spacing, shape, how.size, strict=True))
    elif how.spacing_mm is not None:
        if grid.units == "pixel":
            note("voxel size unknown: not resampled to the model's spacing")
        else:
            unit = 1000.0 if grid.units == "um" else 1.0
            ordered = in_network_order(how.spacing_mm, orientation) if ndim == 3 else how.spacing_mm[1:]
            wanted = tuple(s * unit for s in ordered)
    elif how.isotropic:
        wanted = (min(spacing),) * ndim
    elif how.object_diameter is not None and diameter and ndim == 2:
        wanted = tuple(s * diameter / how.object_diameter for s in spacing)
    if wanted is None or all(abs(w / s - 1) < SAME_SPACING for w, s in zip(wanted, spacing, strict=True)):
        return shape if not how.size else how.size
    new = tuple(max(1, round(n * s / w)) for n, s, w in zip(shape, spacing, wanted, strict=True))
    if new != shape:
        sizes = (" x ".join(map(str, size)) for size in (shape, new))
        note("resampled from {} to {} voxels for the model, and back".format(*sizes))
    return new

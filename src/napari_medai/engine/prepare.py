"""Bring pixels to what a network was trained on, and what it says exactly back to the grid of the image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_medai.core.errors import InputError, NotFiniteError
from napari_medai.core.geometry import Grid, Reorientation, canonical_reorientation
from napari_medai.core.volume import Volume
from napari_medai.engine.resample import resample, resample_labels
from napari_medai.models.spec import Prepare

# Percentiles, mean and deviation are taken over about this many voxels of a larger image, evenly spread
SAMPLE_VOXELS = 2**24
# Spacings that differ by less than this share count as equal: headers round to three digits
SAME_SPACING = 0.005


@dataclass(frozen=True, eq=False)
class Prepared:
    """An image as a network wants it, and the way back.

    Attributes
    ----------
    array : (1, \\*spatial) float32 array
        Oriented, resampled and normalised.
    spacing : tuple of float
        Of ``array`` along its spatial axes, in the image's unit.
    shape : tuple of int
        Spatial shape of the image: what every undo ends on.
    reorientation : Reorientation or None
        What was done to the axes first; none for 2-D.
    oriented_shape : tuple of int
        Spatial shape between reorientation and resampling.
    offset, scale : float
        A pixel p became ``(p - offset) / scale``.
    """

    array: NDArray[np.float32]
    spacing: tuple[float, ...]
    shape: tuple[int, ...]
    reorientation: Reorientation | None
    oriented_shape: tuple[int, ...]
    offset: float
    scale: float

    def undo(self, values: NDArray[np.floating]) -> NDArray[np.float32]:
        """Maps (…, \\*spatial) such as probabilities, back on the image's grid by linear resampling."""
        return np.ascontiguousarray(self._turn_back(resample(values, self.oriented_shape)))

    def undo_labels(self, labels: NDArray[np.integer]) -> NDArray[Any]:
        """Labels (…, \\*spatial), back on the image's grid by the nearest voxel; type and values are kept."""
        return np.ascontiguousarray(self._turn_back(resample_labels(labels, self.oriented_shape)))

    def undo_image(self, values: NDArray[np.floating]) -> NDArray[np.float32]:
        """Pixels (…, \\*spatial) in the network's scale, back on the image's grid and in its scale of values.

        What was clipped stays clipped.
        """
        return self.undo(values) * np.float32(self.scale) + np.float32(self.offset)

    def undo_points(self, points: NDArray[np.floating]) -> NDArray[np.float64]:
        """Index coordinates (n, ndim) on ``array``, as index coordinates on the image."""
        old, new = np.asarray(self.oriented_shape, float), np.asarray(self.array.shape[1:], float)
        at = (np.asarray(points, dtype=np.float64).reshape(-1, len(old)) + 0.5) * old / new - 0.5
        if self.reorientation is None:
            return np.asarray(at)
        back = self.reorientation
        flipped = np.where(back.flips, np.asarray(self.oriented_shape) - 1 - at, at)
        return np.ascontiguousarray(flipped[:, list(back.inverse().order)])

    def undo_sizes(self, sizes: NDArray[np.floating]) -> NDArray[np.float64]:
        """Extents (n, ndim) in voxels of ``array``, as extents in voxels of the image."""
        factor = np.asarray(self.oriented_shape, float) / np.asarray(self.array.shape[1:], float)
        scaled = np.asarray(sizes, dtype=np.float64).reshape(-1, len(factor)) * factor
        if self.reorientation is None:
            return np.asarray(scaled)
        return np.ascontiguousarray(scaled[:, list(self.reorientation.inverse().order)])

    def _turn_back(self, array: NDArray[Any]) -> NDArray[Any]:
        return array if self.reorientation is None else turn(array, self.reorientation.inverse())


def prepare(
    volume: Volume, how: Prepare, diameter: float | None = None, note: Callable[[str], None] = lambda _: None
) -> Prepared:
    """Orient, resample and normalise an image with spatial axes only.

    The axes are brought to the canonical order first, so that a network sees every head the same way up; then comes
    the model's spacing, cubic voxels, or its size of objects; last the pixels are normalised (by percentiles or
    moments of the image before it was resampled).

    Parameters
    ----------
    volume : Volume
        Axes ``"yx"`` or ``"zyx"``; real pixels, all finite.
    how : Prepare
        Of the model's description.
    diameter : float, optional
        Typical object diameter in pixels of the image; needed where ``how.object_diameter`` is given, without it
        the size is kept. Applies to 2-D images.
    note : callable
        Told of what could not be done and what was.

    Raises
    ------
    InputError
        There are other axes than spatial ones, or every pixel has the same value.
    NotFiniteError
        A pixel is NaN or infinite.
    """
    if volume.axes != volume.spatial_axes:
        raise InputError(f"Axes {volume.axes!r} were given; take single frames and channels first.")
    pixels = np.asarray(volume.numpy(), dtype=np.float32)
    offset, scale = normalisation(pixels, how)
    grid = volume.grid
    reorientation = None
    if volume.ndim_spatial == 3:
        reorientation = canonical_reorientation(volume.affine)
        pixels, grid = turn(pixels, reorientation), grid.reoriented(reorientation)
    shape = _new_shape(grid, volume.ndim_spatial, how, diameter, note)
    array = resample(pixels, shape)
    array = (array - np.float32(offset)) / np.float32(scale)
    if how.clip and how.normalise == "percentile":
        array = np.clip(array, 0, 1)
    spacing = grid.spacing[3 - volume.ndim_spatial :]
    new = tuple(s * old / n for s, old, n in zip(spacing, pixels.shape, shape, strict=True))
    return Prepared(
        np.ascontiguousarray(array)[np.newaxis],
        new,
        volume.spatial_shape,
        reorientation,
        pixels.shape,
        offset,
        scale,
    )


def turn(array: NDArray[Any], reorientation: Reorientation) -> NDArray[Any]:
    """The last three axes of an array permuted and flipped; a view."""
    first = array.ndim - 3
    order = [*range(first), *(first + n for n in reorientation.order)]
    flips = [slice(None, None, -1) if flip else slice(None) for flip in reorientation.flips]
    return array.transpose(order)[(..., *flips)]


def normalisation(pixels: NDArray[np.float32], how: Prepare) -> tuple[float, float]:
    """Offset and scale, so that ``(pixel - offset) / scale`` is normalised.

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
    flat = pixels.ravel()
    lowest, highest = float(flat.min()), float(flat.max())
    if not np.isfinite([lowest, highest]).all():
        raise NotFiniteError("Some pixels are NaN or infinite; replace them first, e.g. with numpy.nan_to_num.")
    if lowest == highest:
        raise InputError(f"Every pixel has the value {lowest:g}: there is nothing to look at.")
    sample = flat[:: ceil(flat.size / SAMPLE_VOXELS)]
    if how.normalise == "zscore":
        deviation = float(sample.std(dtype=np.float64))
        return float(sample.mean(dtype=np.float64)), deviation or highest - lowest
    low, high = (float(p) for p in np.percentile(sample, (how.low, how.high)))
    return (low, high - low) if high > low else (lowest, highest - lowest)


def _new_shape(
    grid: Grid, ndim: int, how: Prepare, diameter: float | None, note: Callable[[str], None]
) -> tuple[int, ...]:
    """Spatial shape that the network is to see."""
    shape, spacing = grid.shape[3 - ndim :], grid.spacing[3 - ndim :]
    wanted: tuple[float, ...] | None = None
    if how.spacing_mm is not None:
        if grid.units == "pixel":
            note("voxel size unknown: not resampled to the model's spacing")
        else:
            unit = 1000.0 if grid.units == "um" else 1.0
            wanted = tuple(s * unit for s in how.spacing_mm[3 - ndim :])
    elif how.isotropic:
        wanted = (min(spacing),) * ndim
    elif how.object_diameter is not None and diameter and ndim == 2:
        wanted = tuple(s * diameter / how.object_diameter for s in spacing)
    if wanted is None or all(abs(w / s - 1) < SAME_SPACING for w, s in zip(wanted, spacing, strict=True)):
        return shape
    new = tuple(max(1, round(n * s / w)) for n, s, w in zip(shape, spacing, wanted, strict=True))
    if new != shape:
        sizes = (" x ".join(map(str, size)) for size in (shape, new))
        note("resampled from {} to {} voxels for the model, and back".format(*sizes))
    return new

"""Typical object size of a 2-D image, and rescaling to a common size and exactly back.

A network that has seen nuclei 24 pixels wide splits those that are 48 wide. As in Cellpose (Stringer et
al., Nature Methods 18, 2021) images are therefore brought to one typical object diameter first. Here the
diameter is estimated from the image itself, without a network.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.filters import threshold_otsu
from skimage.measure import label
from skimage.segmentation import watershed

from napari_medai.engine.instances import fill_small_holes
from napari_medai.engine.peaks import find_peaks
from napari_medai.engine.resample import resample

LONGEST_SIDE = 1024
"""Images are thinned out to this many pixels before the estimate: it needs no more, and costs 0.2 s."""

SCALE_LIMITS = (0.125, 8.0)
"""Beyond these factors an estimate is not believed and is cut off."""


def equivalent_diameters(labels: NDArray[np.integer]) -> NDArray[np.float64]:
    """Diameter of the disc of equal area, in pixels, of each object of an instance image, shape (n,)."""
    areas = np.bincount(labels.ravel())[1:]
    return np.asarray(2 * np.sqrt(areas[areas > 0] / np.pi), dtype=np.float64)


def typical_diameter(diameters: NDArray[np.floating]) -> float:
    """Area-weighted median of diameters: half of all object area lies in objects at least as wide.

    Weighting by area keeps debris and micronuclei, which can outnumber the nuclei, from counting.

    Parameters
    ----------
    diameters
        Shape (n,), n >= 1.
    """
    ordered = np.sort(np.asarray(diameters, dtype=np.float64))
    area = np.cumsum(ordered**2)
    return float(ordered[np.searchsorted(area, area[-1] / 2)])


def estimate_diameter(image: NDArray[np.generic]) -> float | None:
    """Typical diameter of the bright objects of an image, in its own pixels.

    Otsu's threshold on the square root of the intensities (so that dim objects count), pinholes filled,
    touching objects split at the watershed of the distance transform, then `typical_diameter`.

    Parameters
    ----------
    image
        Shape (y, x), bright objects on a dark ground, any numeric type.

    Returns
    -------
    float or None
        Pixels; none if the image is flat or nothing of at least 12 pixels stands out.
    """
    diameters, step = _diameters(image)
    return typical_diameter(diameters) * step if len(diameters) else None


def object_diameters(image: NDArray[np.generic]) -> NDArray[np.float64]:
    """Diameters in pixels, shape (n,), of the objects that `estimate_diameter` looks at; none if nothing stands out."""
    diameters, step = _diameters(image)
    return diameters * step


def _diameters(image: NDArray[np.generic]) -> tuple[NDArray[np.float64], int]:
    """Diameters of the objects of the thinned image, and by how much it was thinned."""
    values = np.asarray(image, dtype=np.float32)
    step = max(1, int(np.ceil(max(values.shape) / LONGEST_SIDE)))
    if step > 1:  # mean of blocks, the odd rows and columns at the end left out
        rows, columns = (n // step for n in values.shape)
        blocks = values[: rows * step, : columns * step].reshape(rows, step, columns, step)
        values = blocks.mean(axis=(1, 3))
    mask = foreground_of(values)
    if mask is None:
        return np.zeros(0), step
    mask = fill_small_holes(mask, 20)
    depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1].astype(np.float32)
    if not mask.any():
        return np.zeros(0), step
    # A first size out of whole clumps says how far apart the centres of single objects must lie.
    clumps = label(mask, connectivity=1)
    deepest = ndimage.maximum(depth, clumps, index=np.arange(1, clumps.max() + 1))
    reach = max(2.0, 0.75 * typical_diameter(np.asarray(deepest)))
    peaks, _ = find_peaks(ndimage.gaussian_filter(depth, 1.0), 1.0, reach)
    seeds = np.zeros(mask.shape, dtype=np.int32)
    seeds[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    diameters = equivalent_diameters(watershed(-depth, seeds, mask=mask))
    return diameters[diameters >= equivalent_diameters(np.ones((3, 4), dtype=np.int64))[0]], step


def foreground_of(values: NDArray[np.float32]) -> NDArray[np.bool_] | None:
    """Where an image (y, x) is bright: Otsu's threshold on the square root; none if it is flat."""
    low, high = np.percentile(values, (1.0, 99.8))
    if not high > low:
        return None
    values = np.sqrt(np.clip((values - low) / (high - low), 0, 1))
    values = ndimage.gaussian_filter(values, 1.0)
    return np.asarray(values > threshold_otsu(values))


def scale_for(diameter: float | None, target: float) -> float:
    """Factor that brings objects of `diameter` to `target` pixels; 1 if the diameter is not known."""
    if diameter is None:
        return 1.0
    return float(np.clip(target / diameter, *SCALE_LIMITS))


def rescale(planes: NDArray[np.floating], scale: float) -> NDArray[np.float32]:
    """Resize planes by a factor, averaging where they shrink; `resample` and `rescaled_to_original` come back exactly.

    Parameters
    ----------
    planes
        Shape (C, y, x).
    scale
        New size over old size; see `rescaled`.

    Returns
    -------
    ndarray
        float32, shape (C, y', x').
    """
    return resample(planes, rescaled(planes.shape[1:], scale))


def rescaled(shape: Sequence[int], scale: float) -> tuple[int, int]:
    """A shape (y, x) times a factor, each axis rounded to whole pixels, at least one."""
    y, x = (max(1, round(n * scale)) for n in shape)
    return y, x


def rescaled_to_original(
    points: NDArray[np.floating], rescaled: tuple[int, int], original: tuple[int, int]
) -> NDArray[np.float64]:
    """Index coordinates on the rescaled grid as index coordinates on the original grid.

    Parameters
    ----------
    points
        Shape (n, 2), (y, x).
    rescaled, original
        Shapes (y, x) of the two grids, whose outer corners coincide.
    """
    factor = np.asarray(original, dtype=np.float64) / np.asarray(rescaled, dtype=np.float64)
    return np.asarray((np.asarray(points, dtype=np.float64) + 0.5) * factor - 0.5)

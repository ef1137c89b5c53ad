"""Small pictures of images, for lists to choose from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Picture

from napari_medai.core.volume import Volume

# What lies outside these percentiles of the plane is black or white.
_PERCENTILES = (0.5, 99.5)
# Of a larger plane its middle is shown: a slide of 100,000 x 100,000 pixels is not decoded for a thumbnail.
_LARGEST = 4096
# Labels without colours of their own: golden angle around the circle of hues, so that neighbours differ.
_GOLDEN = 0.618034


class _Openable(Protocol):
    def volume(self, source: str = "") -> Volume: ...


def thumbnail(image: _Openable | Volume, size: int = 96) -> NDArray[np.uint8]:
    """The middle slice of an image, as stored, windowed and in true proportions.

    Parameters
    ----------
    image : Volume, or what has a method ``volume()``
        Only one plane of it is decoded: the middle slice at the first time point in the first channel.
    size : int
        Of the longer edge, in pixels. Default 96.

    Returns
    -------
    (height, width, 3) uint8 array

    Raises
    ------
    ReadError
        The plane cannot be decoded.
    """
    volume = image if isinstance(image, Volume) else image.volume()
    array = _level(volume, size)
    plane = _middle(volume, array)
    spacing = volume.spacing[1:] if volume.units != "pixel" else (1.0, 1.0)
    rows, columns = (volume.axes.index(axis) for axis in "yx")
    # pixels of a coarser level are larger
    spacing = (
        spacing[0] * volume.shape[rows] / array.shape[rows],
        spacing[1] * volume.shape[columns] / array.shape[columns],
    )
    labels = bool(volume.meta.get("is_labels")) and plane.dtype.kind in "iub"
    if volume.is_rgb:
        pixels = _colour(plane)
    elif labels:
        pixels = _labels(plane, volume.meta.get("label_colors", {}))
    else:
        pixels = np.repeat(_grey(plane, volume.meta.get("window"))[..., None], 3, axis=2)
    high, wide = pixels.shape[0] * spacing[0], pixels.shape[1] * spacing[1]
    factor = size / max(high, wide)
    shape = max(1, round(wide * factor)), max(1, round(high * factor))
    how = Picture.Resampling.NEAREST if labels else Picture.Resampling.BILINEAR
    return np.asarray(Picture.fromarray(pixels).resize(shape, how))


def _level(volume: Volume, size: int) -> Any:
    """The pixels, of a pyramid those of the coarsest level that is large enough."""
    levels = volume.meta.get("levels", ())
    large = [level for level in levels if max(level.shape) >= size and level.ndim == len(volume.axes)]
    return large[-1] if large else volume.array


def _middle(volume: Volume, array: Any) -> NDArray[Any]:
    index: list[Any] = []
    for axis, size in zip(volume.axes, array.shape, strict=True):
        start = max(0, (size - _LARGEST) // 2)
        whole = slice(start, start + _LARGEST) if axis in "yx" else slice(None)
        index.append({"t": 0, "c": 0, "z": size // 2}.get(axis, whole))
    plane = array[tuple(index)]
    # not on dask's threads: it would leave a pool of them behind for each thread that makes thumbnails
    return np.asarray(plane.compute(scheduler="synchronous") if hasattr(plane, "dask") else plane)


def _grey(plane: NDArray[Any], window: tuple[float, float] | None) -> NDArray[np.uint8]:
    values = plane.astype(np.float32)
    finite = values[np.isfinite(values)]
    low, high = window if window is not None else (0.0, 0.0)
    if not low < high and finite.size:
        low, high = (float(v) for v in np.percentile(finite, _PERCENTILES))
        if not low < high:
            low, high = float(finite.min()), float(finite.max())
    if not low < high:
        high = low + 1.0
    scaled = np.clip((np.nan_to_num(values, nan=low, posinf=high, neginf=low) - low) / (high - low), 0, 1)
    return np.asarray(np.round(255 * scaled), dtype=np.uint8)


def _colour(plane: NDArray[Any]) -> NDArray[np.uint8]:
    plane = plane[..., :3]
    if plane.dtype == np.uint8:
        return np.ascontiguousarray(plane)
    top = np.iinfo(plane.dtype).max if plane.dtype.kind in "iu" else 1.0
    scaled = np.clip(np.nan_to_num(plane.astype(np.float32)) / top, 0, 1)
    return np.asarray(np.round(255 * scaled), dtype=np.uint8)


def _labels(plane: NDArray[Any], colors: Mapping[int, Any]) -> NDArray[np.uint8]:
    pixels = np.zeros((*plane.shape, 3), np.uint8)
    for value in np.unique(plane):
        if value:
            color = colors.get(int(value)) or _hue(int(value) * _GOLDEN % 1.0)
            pixels[plane == value] = np.round(255 * np.clip(np.asarray(color[:3], float), 0, 1)).astype(np.uint8)
    return pixels


def _hue(turn: float) -> tuple[float, float, float]:
    import colorsys

    return colorsys.hsv_to_rgb(turn, 0.7, 1.0)

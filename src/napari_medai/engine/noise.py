"""How strong the noise of an image is, and what a denoiser removed beyond it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Array = NDArray[np.float32]

MAD_OF_GAUSSIAN = 0.6745
"""Median absolute deviation of a Gaussian with standard deviation 1."""
LEVELS = 16
"""Brightness levels at which the noise is measured: photon noise grows with brightness."""
DETAIL_WINDOW = 7
DETAIL_MARGIN = 1.4
"""Of what was removed, only variance beyond this many times that of the noise is taken for detail."""
LEAST_NOISE = 0.003
"""Noise weaker than this share of a channel's deviation is too little to compare channels by."""


def _blocks(image: Array) -> Array:
    """The four pixels of each block of 2 x 2 in the last two axes, shape (4, number of blocks)."""
    rows, columns = image.shape[-2] // 2 * 2, image.shape[-1] // 2 * 2
    return np.stack([image[..., i:rows:2, j:columns:2].ravel() for i in (0, 1) for j in (0, 1)])


def _diagonal(image: Array) -> Array:
    """Absolute values of the finest diagonal Haar coefficients, which hold little but noise."""
    a, b, c, d = _blocks(image)
    return np.asarray(np.abs(a - b - c + d) / 2, dtype=np.float32)


def noise_level(channel: Array) -> float:
    """Standard deviation of the noise of one channel, (..., y, x), as one number.

    From the median of the finest diagonal Haar coefficients (Donoho and Johnstone, Biometrika 1994); 0 if
    the channel is less than two pixels high or wide.
    """
    diagonal = _diagonal(channel)
    return float(np.median(diagonal)) / MAD_OF_GAUSSIAN if diagonal.size else 0.0


def noise_by_brightness(noisy: Array, clean: Array) -> Array:
    """Measure the standard deviation of the noise in one channel as a function of brightness.

    As `noise_level`, in up to `LEVELS` classes of brightness.

    Parameters
    ----------
    noisy
        Shape (..., y, x).
    clean
        An estimate of the image without noise, same shape.

    Returns
    -------
    ndarray
        Standard deviation at every pixel, float32, same shape.
    """
    diagonal = _diagonal(noisy)
    if not diagonal.size:
        return np.zeros_like(noisy)
    level = _blocks(clean).mean(axis=0)
    # at least 500 coefficients a class: a median of fewer is itself noisy
    classes = np.array_split(np.argsort(level), int(np.clip(len(level) // 500, 1, LEVELS)))
    middles = [float(np.mean(level[part])) for part in classes]
    spreads = [float(np.median(diagonal[part])) / MAD_OF_GAUSSIAN for part in classes]
    return np.interp(clean, middles, spreads).astype(np.float32)


def channel_scales(image: Array) -> Array:
    """What each channel is divided by so that noise is equally strong in all and the mean variance is 1.

    Colours share their noise and are all divided by the same; fluorescence channels of different gains are
    brought to one another. Where no noise can be measured, each channel is divided by its own deviation.

    Parameters
    ----------
    image
        Shape (channels, ..., y, x).

    Returns
    -------
    ndarray
        One positive number per channel.
    """
    spread = image.std(axis=tuple(range(1, image.ndim)))
    usable = spread > 0
    noise = np.array([noise_level(channel) for channel in image])
    if (noise[usable] > LEAST_NOISE * spread[usable]).all():
        scales = noise * np.sqrt(np.mean((spread[usable] / noise[usable]) ** 2))
    else:
        scales = spread
    return np.where(usable, scales, 1).astype(np.float32)


def put_back_detail(noisy: Array, clean: Array, ndim: int) -> Array:
    """Give back what was removed where it is more than noise.

    A local Wiener filter on the difference (Lee, IEEE PAMI 1980): where its variance is that of the noise
    nothing returns; in an image without noise everything does.

    Parameters
    ----------
    noisy, clean
        One channel, shape (*space), or (z, y, x) with ``ndim`` 2 for a stack of planes.
    ndim
        Dimensions in which neighbours are looked at.

    Returns
    -------
    ndarray
        float32, same shape.
    """
    removed = noisy - clean
    window = [1] * (noisy.ndim - ndim) + [DETAIL_WINDOW if ndim == 2 else 5] * ndim
    variance = ndimage.uniform_filter(removed**2, window, mode="reflect")
    noise = noise_by_brightness(noisy, clean) ** 2
    share = np.clip(1 - DETAIL_MARGIN * noise / np.maximum(variance, 1e-12), 0, 1)
    return np.asarray(clean + share * removed, dtype=np.float32)

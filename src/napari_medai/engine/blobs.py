"""Find blob-like objects of many sizes in volumes with a network that knows one range of sizes.

The network (`napari_medai.nets.blobs.BlobCentres`) was taught objects of 4 to 22 voxels on cubic voxels.
Here a volume of any spacing is brought to cubic voxels at one or several scales, the network's maps are
read at each, and what is found at all scales and of both polarities is merged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import KDTree
from torch.nn import functional

from napari_medai.core.errors import InputError
from napari_medai.engine.peaks import find_peaks

Array = NDArray[np.float32]
Polarity = Literal["bright", "dark", "both"]
Predict = Callable[[Array], NDArray[np.floating]]

LOW_PERCENTILE, HIGH_PERCENTILE = 1.0, 99.8
BEST_DIAMETER = 10.0
"""Diameter in the network's voxels to which a known object size is brought."""
SMALLEST, LARGEST = 3.0, 25.0
"""Diameters in the network's voxels that are believed; others belong to another scale."""
MERGE_REACH = 0.5
"""Of two objects nearer than this times the larger diameter, the one with the better score stays."""
MAX_SAMPLES = 2_000_000
"""Percentiles of larger volumes are taken from a regular subset of about this many voxels."""


@dataclass(frozen=True)
class Blobs:
    """Objects found in one volume, best first.

    Attributes
    ----------
    centres
        Index coordinates (z, y, x) in the volume, float64, shape (n, 3).
    diameters
        In the unit of the spacing, float64, shape (n,).
    scores
        Between 0 and 1, float64, shape (n,), descending.
    bright
        True for objects brighter than what lies around them, shape (n,).
    """

    centres: NDArray[np.float64]
    diameters: NDArray[np.float64]
    scores: NDArray[np.float64]
    bright: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.scores)

    def where(self, keep: NDArray[np.bool_] | NDArray[np.intp]) -> Blobs:
        """Those marked by a mask or listed by index."""
        return Blobs(self.centres[keep], self.diameters[keep], self.scores[keep], self.bright[keep])


def normalise(volume: NDArray[np.generic]) -> Array:
    """Map the 1st percentile to 0 and the 99.8th to 1, clipped to -1..3.

    Parameters
    ----------
    volume
        Real numbers, any shape.

    Raises
    ------
    InputError
        If the volume is constant, or so nearly empty that the two percentiles are the same and so are
        its smallest and largest values.
    """
    step = max(1, math.ceil((volume.size / MAX_SAMPLES) ** (1 / volume.ndim)))
    sample = np.asarray(volume[(slice(None, None, step),) * volume.ndim], dtype=np.float32)
    low, high = (float(p) for p in np.percentile(sample, (LOW_PERCENTILE, HIGH_PERCENTILE)))
    if high <= low:
        low, high = float(volume.min()), float(volume.max())
    if high <= low:
        raise InputError("All voxels have the same value; objects can only be found where intensities differ.")
    scaled = (np.asarray(volume, dtype=np.float32) - low) / (high - low)
    return np.clip(scaled, -1, 3, out=scaled)


def pyramid(
    spacing: Sequence[float],
    diameter: float = 0.0,
    smallest: float = 4.0,
    largest: float = 40.0,
) -> tuple[float, ...]:
    """Voxel sizes at which the network looks at a volume.

    Parameters
    ----------
    spacing
        Of the volume along z, y, x, in any unit.
    diameter
        Typical diameter of the objects in the same unit; 0 (default) if not known.
    smallest, largest
        Without a diameter: the range to cover, in voxels of the finest spacing.

    Returns
    -------
    tuple of float
        Edges of cubic voxels in the unit of `spacing`, finest first.
    """
    if diameter > 0:
        return (diameter / BEST_DIAMETER,)
    finest = min(spacing)
    scales = [finest if smallest >= 4 else finest / 2]
    while largest * finest / scales[-1] > 20:
        scales.append(scales[-1] * 2)
    return tuple(scales)


def resample(volume: Array, spacing: Sequence[float], voxel: float) -> tuple[Array, NDArray[np.float64]]:
    """Bring a volume to cubic voxels of an edge.

    Parameters
    ----------
    volume
        Shape (z, y, x), float32.
    spacing
        Along z, y, x.
    voxel
        Edge of the new voxels in the same unit.

    Returns
    -------
    resampled : ndarray
        Linear interpolation, after Gaussian smoothing along axes that become coarser.
    steps : ndarray
        Old voxels per new voxel along each axis, shape (3,). New index ``n`` lies at old index
        ``(n + 0.5) * step - 0.5``.
    """
    size = [max(1, round(n * s / voxel)) for n, s in zip(volume.shape, spacing, strict=True)]
    steps = np.array(volume.shape) / np.array(size)
    if size == list(volume.shape):
        return volume, steps
    smooth = ndimage.gaussian_filter(volume, np.maximum(0, (steps - 1) / 2), mode="nearest")
    made = functional.interpolate(torch.from_numpy(smooth)[None, None], size=size, mode="trilinear")
    return made[0, 0].numpy(), steps


def decode(maps: NDArray[np.floating], threshold: float, polarity: Polarity = "both") -> Blobs:
    """Objects in the network's maps at one scale.

    Parameters
    ----------
    maps
        Shape (3, z, y, x): logit of bright centres, logit of dark centres, log2 of the diameter in voxels.
    threshold
        Lowest score of an object.
    polarity
        Which objects to look for. Default both.

    Returns
    -------
    Blobs
        In voxels of the maps; objects outside `SMALLEST` to `LARGEST` are left out.
    """
    found = []
    # the threshold on logits spares the logistic function over the whole volume
    lowest = math.log(threshold / (1 - threshold))
    for channel, name in enumerate(("bright", "dark")):
        if polarity not in (name, "both"):
            continue
        centres, logits = find_peaks(maps[channel], lowest)
        diameters = 2.0 ** maps[2][tuple(centres.T)].astype(np.float64)
        scores = 1 / (1 + np.exp(-logits))
        bright = np.full(len(scores), name == "bright")
        found.append(Blobs(centres.astype(np.float64), diameters, scores, bright))
    every = _joined(found)
    return every.where((every.diameters >= SMALLEST) & (every.diameters <= LARGEST))


def merge(blobs: Blobs, spacing: Sequence[float], reach: float = MERGE_REACH) -> Blobs:
    """Of objects that are one within another, keep the best.

    Parameters
    ----------
    blobs
        Diameters in the unit of `spacing`.
    spacing
        Along z, y, x.
    reach
        Objects nearer than `reach` times the larger of their diameters exclude each other.

    Returns
    -------
    Blobs
        Best first.
    """
    ranked = blobs.where(np.argsort(-blobs.scores, kind="stable"))
    places = ranked.centres * np.asarray(spacing, dtype=np.float64)
    alive = np.ones(len(ranked), dtype=bool)
    if len(ranked) == 0:
        return ranked
    tree = KDTree(places)
    widest = float(ranked.diameters.max())
    for i in range(len(ranked)):
        if not alive[i]:
            continue
        near = np.asarray(tree.query_ball_point(places[i], reach * widest), dtype=np.intp)
        near = near[near > i]
        gap = np.linalg.norm(places[near] - places[i], axis=1)
        alive[near[gap < reach * np.maximum(ranked.diameters[near], ranked.diameters[i])]] = False
    return ranked.where(alive)


def find_blobs(
    volume: NDArray[np.generic],
    spacing: Sequence[float],
    predict: Predict,
    *,
    threshold: float,
    polarity: Polarity = "both",
    diameter: float = 0.0,
) -> Blobs:
    """Find bright and dark blob-like objects in a volume.

    Parameters
    ----------
    volume
        Shape (z, y, x), any real type, finite.
    spacing
        Along z, y, x in any unit.
    predict
        Runs the network, in tiles or at once: (1, z, y, x) float32 to (3, z, y, x), see `decode`.
    threshold
        Lowest score of an object, between 0 and 1.
    polarity
        ``"bright"``, ``"dark"`` or ``"both"`` (default).
    diameter
        Typical diameter in the unit of `spacing`: then one scale is looked at. 0 (default) looks at the
        finest spacing and at twice that, which covers 4 to 40 voxels.

    Returns
    -------
    Blobs
        Centres in voxels of `volume`, diameters in the unit of `spacing`, best first.

    Raises
    ------
    InputError
        If all voxels are the same or the threshold is not between 0 and 1.
    """
    if not 0 < threshold < 1:
        raise InputError(f"The threshold is {threshold:g}; a score lies between 0 and 1, so give such a number.")
    scaled = normalise(volume)
    found = []
    for voxel in pyramid(spacing, diameter):
        image, steps = resample(scaled, spacing, voxel)
        here = decode(predict(np.ascontiguousarray(image[None])), threshold, polarity)
        centres = (here.centres + 0.5) * steps - 0.5
        found.append(Blobs(centres, here.diameters * voxel, here.scores, here.bright))
    return merge(_joined(found), spacing)


def _joined(parts: Sequence[Blobs]) -> Blobs:
    return Blobs(
        np.concatenate([p.centres for p in parts]),
        np.concatenate([p.diameters for p in parts]),
        np.concatenate([p.scores for p in parts]),
        np.concatenate([p.bright for p in parts]),
    )

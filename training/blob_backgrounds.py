"""Real backgrounds for simulated blobs: heads and CT slices straight from packages, and the haze of fluorescence.

What is read for which purpose:

=============  =====================================================================================
training       MNI152 T1 (nilearn) and the inia19 macaque T1 (mricron-data), both without the third of
               the volume that is nearest to the last slice; CT slices of pydicom and pydicom-data
validation     the left-out thirds of MNI152 and inia19
test           Colin27 (mricron-data, ``ch2``), from which nothing is ever trained
=============  =====================================================================================
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import nibabel as nib
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.data import get_testdata_file
from scipy import ndimage

from training.packages import package_member

Split = Literal["training", "validation", "test"]
Array = NDArray[np.float32]

MRICRON = "usr/share/mricron/templates"
MNI152 = "nilearn/datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
CT_FILES = ("693_UNCR.dcm", "693_UNCI.dcm", "CT_small.dcm", "eCT_Supplemental.dcm", "explicit_VR-UN.dcm")
VALIDATION_PART = 1 / 3
LEAST_CONTENT = 0.25
"""A background patch from a head is drawn again while less of it than this lies inside the head."""


@dataclass(frozen=True)
class Sources:
    """Images that backgrounds are cut from, scaled so that 0 is air or black and 1 bright.

    Attributes
    ----------
    volumes
        Heads, each (z, y, x).
    slices
        CT images, each (y, x).
    """

    volumes: tuple[Array, ...]
    slices: tuple[Array, ...]


def _scaled(image: NDArray[np.generic]) -> Array:
    values = np.asarray(image, dtype=np.float32)
    low, high = np.percentile(values, (1, 99.8))
    return np.clip((values - low) / max(float(high - low), 1e-6), -0.2, 1.5).astype(np.float32)


def _head(package: str, member: str) -> Array:
    image = nib.Nifti1Image.from_bytes(gzip.decompress(package_member(package, member)))
    return _scaled(np.asarray(image.dataobj).T)


def _ct_slices() -> list[Array]:
    found = []
    for name in CT_FILES:
        path = get_testdata_file(name, download=False)
        if path is None:
            continue  # pydicom-data is optional; CT_small.dcm is in pydicom itself
        pixels = np.asarray(pydicom.dcmread(path).pixel_array)
        found += [_scaled(plane) for plane in (pixels if pixels.ndim == 3 else pixels[None])]
    return found


@lru_cache(maxsize=3)
def sources(split: Split) -> Sources:
    """Read the images of a split, see the table at the top of this file."""
    if split == "test":
        return Sources((_head("mricron-data", f"{MRICRON}/ch2.nii.gz"),), ())
    heads = [_head("nilearn", MNI152), _head("mricron-data", f"{MRICRON}/inia19-t1-brain.nii.gz")]
    cuts = [round(head.shape[0] * (1 - VALIDATION_PART)) for head in heads]
    if split == "validation":
        return Sources(tuple(head[cut:] for head, cut in zip(heads, cuts, strict=True)), ())
    return Sources(tuple(head[:cut] for head, cut in zip(heads, cuts, strict=True)), tuple(_ct_slices()))


def smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], sigma: float) -> Array:
    """Gaussian noise smoothed over `sigma` voxels, mean 0, standard deviation 1."""
    step = max(1, int(sigma / 1.5))
    coarse = [n // step + 4 for n in shape]
    noise = ndimage.gaussian_filter(rng.standard_normal(coarse).astype(np.float32), sigma / step)
    if step > 1:
        noise = ndimage.zoom(noise, step, order=1)
    noise = noise[tuple(slice(0, n) for n in shape)]
    return np.asarray((noise - noise.mean()) / max(float(noise.std()), 1e-6), dtype=np.float32)


def _turned(rng: np.random.Generator, patch: Array) -> Array:
    patch = np.transpose(patch, rng.permutation(patch.ndim))
    for axis in range(patch.ndim):
        if rng.random() < 0.5:
            patch = np.flip(patch, axis)
    return np.ascontiguousarray(patch)


def head_background(rng: np.random.Generator, images: Sources, size: int) -> Array:
    """A cube cut from a head at a random zoom (0.7 to 1.4), turned and mirrored, (size, size, size)."""
    for _ in range(20):
        head = images.volumes[rng.integers(len(images.volumes))]
        zoom = rng.uniform(0.7, 1.4)
        edge = min(round(size / zoom), *head.shape)
        start = [int(rng.integers(0, n - edge + 1)) for n in head.shape]
        patch = head[tuple(slice(s, s + edge) for s in start)]
        if (patch > 0.1).mean() >= LEAST_CONTENT:
            break
    grid = np.meshgrid(*[np.linspace(0, edge - 1, size, dtype=np.float32)] * 3, indexing="ij")
    return _turned(rng, ndimage.map_coordinates(patch, grid, order=1))


def slice_background(rng: np.random.Generator, images: Sources, size: int) -> Array:
    """A cube made of one slice that drifts sideways from plane to plane, (size, size, size)."""
    plane = images.slices[rng.integers(len(images.slices))]
    zoom = rng.uniform(0.5, 1.5)
    drift = rng.uniform(-1, 1, 2)[:, None] * np.arange(size) + 4 * smooth_noise(rng, (2, size), 8)
    y, x = np.meshgrid(*[np.arange(size, dtype=np.float32)] * 2, indexing="ij")
    y0, x0 = rng.uniform(0, plane.shape[0]), rng.uniform(0, plane.shape[1])
    layers = [
        ndimage.map_coordinates(
            plane, [y0 + (y + drift[0, k]) / zoom, x0 + (x + drift[1, k]) / zoom], order=1, mode="mirror"
        )
        for k in range(size)
    ]
    return _turned(rng, np.stack(layers).astype(np.float32))


def haze_background(rng: np.random.Generator, size: int) -> Array:
    """The dim, uneven background of fluorescence: a level, a smooth haze and a gradient."""
    haze = rng.uniform(0, 0.06) * smooth_noise(rng, (size,) * 3, float(rng.uniform(5, 16)))
    ramp = rng.uniform(-0.1, 0.1) * np.linspace(-1, 1, size, dtype=np.float32)
    shape = [1, 1, 1]
    shape[rng.integers(3)] = size
    return np.asarray(rng.uniform(0.02, 0.25) + haze + ramp.reshape(shape), dtype=np.float32)

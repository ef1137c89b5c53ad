"""Simulated blobs in three dimensions: crowds of nuclei and sparse lesions, bright or dark."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from training.blob_backgrounds import (
    Sources,
    haze_background,
    head_background,
    slice_background,
    smooth_noise,
)

Array = NDArray[np.float32]

SMALLEST, LARGEST = 4.0, 22.0
"""Diameters in voxels that the network is taught to find at one scale."""


@dataclass(frozen=True)
class Phantom:
    """A simulated volume and the truth about it.

    Attributes
    ----------
    image
        Intensities, about 0 to 1, float32, (z, y, x).
    labels
        Object number per voxel, int32, (z, y, x); 0 is background. Objects out of the taught sizes
        are drawn into the image and not labelled.
    centres
        Centres of mass of the objects 1..n in voxels, (n, 3) as z, y, x.
    diameters
        Diameters of the balls of the same volumes, in voxels, (n,).
    bright
        True where an object is brighter than what lies around it, (n,).
    """

    image: Array
    labels: NDArray[np.int32]
    centres: NDArray[np.float64]
    diameters: NDArray[np.float64]
    bright: NDArray[np.bool_]


def _rotation(rng: np.random.Generator) -> NDArray[np.float64]:
    q, r = np.linalg.qr(rng.standard_normal((3, 3)))
    return np.asarray(q * np.sign(np.diag(r)))


def _diameters(rng: np.random.Generator, kind: str, size: int, largest: float) -> NDArray[np.float64]:
    if kind == "crowd":
        top = min(largest, size / 3)
        middle = np.exp(rng.uniform(np.log(SMALLEST * 1.2), np.log(top * 0.9)))
        spread = np.exp(rng.normal(0, rng.uniform(0.05, 0.25), 400))
        drawn = np.clip(middle * spread, SMALLEST, largest)
        share = rng.uniform(0.03, 0.55)
        count = int(share * size**3 / (np.pi / 6 * middle**3)) + 1
        return np.asarray(drawn[: min(count, 250)])
    count = int(rng.integers(0, 15) * (size / 56) ** 2) + (size > 60)
    return np.exp(rng.uniform(np.log(SMALLEST), np.log(largest), count))


def _places(
    rng: np.random.Generator, diameters: NDArray[np.float64], size: int, closeness: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Random centres that keep `closeness` times the mean diameter apart; those without room are dropped."""
    centres: list[NDArray[np.float64]] = []
    kept: list[float] = []
    for diameter in sorted(diameters, reverse=True):
        for _ in range(12):
            centre = rng.uniform(-0.3 * diameter, size - 1 + 0.3 * diameter, 3)
            if not centres:
                break
            gaps = np.linalg.norm(np.array(centres) - centre, axis=1)
            if (gaps >= closeness * (np.array(kept) + diameter) / 2).all():
                break
        else:
            continue
        centres.append(centre)
        kept.append(float(diameter))
    return np.array(centres).reshape(-1, 3), np.array(kept)


def _draw(
    rng: np.random.Generator, centres: NDArray[np.float64], diameters: NDArray[np.float64], size: int
) -> NDArray[np.int32]:
    """Label volume of irregular ellipsoids; where two overlap, a voxel goes to the relatively nearer one."""
    nearest = np.ones((size,) * 3, dtype=np.float32)
    labels = np.zeros((size,) * 3, dtype=np.int32)
    bumps = smooth_noise(rng, (size,) * 3, float(np.clip(np.mean([*diameters, 8]) / 4, 1.2, 4)))
    roughness = rng.choice([0.0, 0.08, 0.18])
    flatness = rng.uniform(0.0, 0.35)
    shared = _rotation(rng) if rng.random() < 0.5 else None
    for number, (centre, diameter) in enumerate(zip(centres, diameters, strict=True), start=1):
        ratios = np.exp(rng.normal(0, flatness, 3).clip(-0.6, 0.6))
        semi = diameter / 2 * ratios / np.prod(ratios) ** (1 / 3)
        reach = semi.max() * 1.25
        low = np.maximum(np.floor(centre - reach), 0).astype(int)
        high = np.minimum(np.ceil(centre + reach) + 1, size).astype(int)
        if (low >= high).any():
            continue
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        axes = [np.arange(a, b) - c for a, b, c in zip(low, high, centre, strict=True)]
        offsets = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
        turned = offsets @ (_rotation(rng) if shared is None else shared) / semi
        distance = np.sqrt((turned**2).sum(-1)).astype(np.float32) + roughness * bumps[box]
        closer = distance < nearest[box]
        nearest[box][closer] = distance[closer]
        labels[box][closer] = number
    return labels


def _shade(
    rng: np.random.Generator, background: Array, labels: NDArray[np.int32], signs: NDArray[np.float64], kind: str
) -> tuple[Array, NDArray[np.float64]]:
    """Paint objects over the background with their own contrast, texture and edge; give back contrasts too."""
    count = len(signs)
    voxels = np.maximum(np.bincount(labels.ravel(), minlength=count + 1), 1)
    around = np.bincount(labels.ravel(), background.ravel(), count + 1) / voxels
    squares = np.bincount(labels.ravel(), background.ravel() ** 2, count + 1) / voxels
    rough = np.sqrt(np.maximum(squares - around**2, 0))
    spread = rng.uniform(0.0, 0.35)
    contrast = rng.uniform(0.25, 0.9) if kind == "crowd" else rng.uniform(0.3, 0.8)
    sizes = contrast * np.clip(np.exp(rng.normal(0, spread, count)), 0.5, 1.8)
    sizes = np.maximum(sizes, 1.8 * rough[1:])  # an object must stand out from what it lies in
    # nothing is darker than black: where there is no room below, the object becomes a bright one
    levels = np.concatenate([[0.0], np.where(around[1:] < 0.8 * sizes, 1, signs) * sizes])
    step = levels[labels].astype(np.float32)
    inside = (around[labels] + step).astype(np.float32)
    mask = labels > 0
    if rng.random() < 0.7:
        grain = smooth_noise(rng, labels.shape, float(rng.uniform(0.7, 3)))
        inside += rng.uniform(0.05, 0.35) * grain * step
    if rng.random() < 0.5 and count:
        depth = ndimage.distance_transform_edt(mask).astype(np.float32)
        profile = np.exp(-depth / max(float(depth.max()), 1.0) * rng.uniform(0.5, 2))
        inside += rng.uniform(-0.5, 0.4) * (profile - 0.5) * step
    inside += rng.uniform(0, 0.3) * (background - background.mean())
    return np.where(mask, inside, background).astype(np.float32), levels[1:]


def _clutter(rng: np.random.Generator, image: Array) -> Array:
    """Vessels and sheets: bright or dark structures that are no blobs."""
    size = image.shape[0]
    image = image.copy()
    for _ in range(rng.integers(0, 4)):
        steps = 3 * size
        direction = np.cumsum(rng.normal(0, 0.05, (steps, 3)), axis=0) + rng.normal(0, 1, 3)
        path = rng.uniform(0, size, 3) + np.cumsum(
            direction / np.linalg.norm(direction, axis=1, keepdims=True) * 0.7, axis=0
        )
        path = path[((path >= 0) & (path <= size - 1)).all(axis=1)].round().astype(int)
        line = np.ones(image.shape, dtype=bool)
        line[tuple(path.T)] = False
        if len(path):
            tube = ndimage.distance_transform_edt(line) < rng.uniform(0.8, 3)
            image[tube] += rng.choice([-1, 1]) * rng.uniform(0.2, 0.6)
    if rng.random() < 0.3:
        normal = rng.normal(0, 1, 3)
        normal /= np.linalg.norm(normal)
        grid = np.stack(np.meshgrid(*[np.arange(size) - size / 2] * 3, indexing="ij"), axis=-1) @ normal
        grid = grid + 2 * smooth_noise(rng, image.shape, 8)
        image[np.abs(grid - rng.uniform(-size / 3, size / 3)) < rng.uniform(0.7, 2.5)] += rng.uniform(-0.5, 0.5)
    return image


def _camera(rng: np.random.Generator, image: Array, smallest: float, faintest: float) -> Array:
    """Blur by a point spread function, anisotropic sampling, photon and read noise.

    Noise is at most half as strong as the `faintest` contrast: fainter objects cannot be told from it.
    """
    axis = int(rng.integers(3))
    blur = np.full(3, rng.uniform(0.3, min(1.3, smallest / 5)))
    blur[axis] *= rng.uniform(1, 2.5)
    image = ndimage.gaussian_filter(image, blur)
    step = rng.uniform(1, np.clip(smallest / 2, 1, 4)) if rng.random() < 0.5 else 1.0
    size = image.shape[axis]
    if step > 1:
        planes = np.arange(0, size, step)
        image = ndimage.map_coordinates(
            image,
            np.meshgrid(*[planes if a == axis else np.arange(n) for a, n in enumerate(image.shape)], indexing="ij"),
            order=1,
        )
    noise = rng.uniform(0.0, 0.5) * min(faintest, 0.4)
    image = image + noise * rng.standard_normal(image.shape).astype(np.float32)
    if rng.random() < 0.5:
        fewest = 8 * max(float(image.mean()), 0.05) / faintest**2
        photons = fewest * np.exp(rng.uniform(0, np.log(30)))
        image = rng.poisson(np.clip(image, 0, None) * photons).astype(np.float32) / photons
    if step > 1:
        back = np.clip(np.arange(size) / step, 0, image.shape[axis] - 1)
        grid = [back if a == axis else np.arange(n) for a, n in enumerate(image.shape)]
        image = ndimage.map_coordinates(image, np.meshgrid(*grid, indexing="ij"), order=1)
    return np.asarray(image, dtype=np.float32)


def simulate(
    rng: np.random.Generator,
    images: Sources,
    size: int = 56,
    *,
    background: str | None = None,
    largest: float = LARGEST,
) -> Phantom:
    """Simulate one volume.

    Parameters
    ----------
    rng
        Source of all randomness.
    images
        What backgrounds are cut from.
    size
        Edge of the cube in voxels.
    background
        ``"head"``, ``"slice"`` or ``"haze"``; None draws one of the three.
    largest
        Largest labelled diameter in voxels. Up to 22 one scale of the network is enough; beyond that
        several are needed.

    Returns
    -------
    Phantom
        Image, labels, centres, diameters and polarity.
    """
    if background is None:
        background = str(rng.choice(["head", "slice", "haze"], p=[0.37, 0.15, 0.48]))
    if background == "haze":
        canvas, kind = haze_background(rng, size), "crowd" if rng.random() < 0.85 else "sparse"
    else:
        make = head_background if background == "head" else slice_background
        canvas, kind = make(rng, images, size), "sparse" if rng.random() < 0.8 else "crowd"
    centres, diameters = _places(rng, _diameters(rng, kind, size, largest), size, rng.uniform(0.72, 1.1))
    labels = _draw(rng, centres, diameters, size)
    signs = np.ones(len(diameters)) if background == "haze" else rng.choice([-1.0, 1.0], len(diameters))
    if background != "haze" and rng.random() < 0.6:
        signs[:] = rng.choice([-1.0, 1.0])
    if background == "haze" and len(diameters) and rng.random() < 0.1:
        canvas = _with_giant(rng, canvas, labels, size)
    image, contrasts = _shade(rng, canvas, labels, signs, kind)
    signs = np.sign(contrasts)
    if rng.random() < 0.35:
        image = (
            _clutter(rng, image)
            if not len(diameters) or rng.random() < 0.5
            else np.where(labels > 0, image, _clutter(rng, image))
        )
    faintest = float(np.abs(contrasts).min()) if len(diameters) else 0.4
    image = _camera(rng, image, float(diameters.min()) if len(diameters) else 8.0, faintest)
    if background == "haze" and rng.random() < 0.35:
        image, signs = 1 - image, -signs
    return _phantom(image, labels, signs)


def _with_giant(rng: np.random.Generator, canvas: Array, labels: NDArray[np.int32], size: int) -> Array:
    """Add one object that is too large for the network's scale, unlabelled, where no labelled one lies."""
    radius = rng.uniform(0.28, 0.45) * size
    grid = np.stack(np.meshgrid(*[np.arange(size)] * 3, indexing="ij"), axis=-1) - rng.uniform(0, size, 3)
    giant = np.sqrt((grid**2).sum(-1)) + 2 * smooth_noise(rng, canvas.shape, 5) < radius
    labels[giant] = 0
    return np.where(giant, canvas + rng.uniform(0.3, 0.7), canvas).astype(np.float32)


def _phantom(image: Array, labels: NDArray[np.int32], signs: NDArray[np.float64]) -> Phantom:
    """Measure the objects that are visible and number them 1..n."""
    volumes = np.bincount(labels.ravel(), minlength=len(signs) + 1)[1 : len(signs) + 1]
    visible = np.flatnonzero(volumes >= 0.5 * np.pi / 6 * SMALLEST**3)
    lookup = np.zeros(max(len(signs), int(labels.max(initial=0))) + 1, dtype=np.int32)
    lookup[visible + 1] = np.arange(1, len(visible) + 1)
    labels = lookup[labels]
    centres = ndimage.center_of_mass(labels > 0, labels, np.arange(1, len(visible) + 1))
    return Phantom(
        image,
        labels,
        np.array(centres, dtype=np.float64).reshape(-1, 3),
        np.cbrt(volumes[visible] * 6 / np.pi),
        signs[visible] > 0,
    )

"""Patches out of annotated fluorescence images: one scale, random pose, random exposure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from skimage.measure import regionprops
from skimage.segmentation import expand_labels

from napari_medai.engine.objectsize import estimate_diameter, rescaled, scale_for
from napari_medai.engine.resample import resample
from training.mnfinder import Slide

LOW, HIGH = 1.0, 99.8
"""Percentiles of an image that become 0 and 1."""


@dataclass(frozen=True)
class Prepared:
    """An annotated image at the network's scale.

    Attributes
    ----------
    planes
        float32, shape (5, y, x): image, nucleus, depth inside the nucleus (0..1), gap between nuclei,
        micronucleus.
    centres, sizes
        Micronuclei in pixels of `planes`, shape (n, 2), (y, x).
    """

    planes: torch.Tensor
    centres: NDArray[np.float64]
    sizes: NDArray[np.float64]


def normalise(image: NDArray[np.generic]) -> NDArray[np.float32]:
    """Bring the percentiles `LOW` and `HIGH` of an image to 0 and 1, without clipping."""
    values = np.asarray(image, dtype=np.float32)
    low, high = np.percentile(values, (LOW, HIGH))
    return np.asarray((values - low) / max(float(high - low), 1e-6), dtype=np.float32)


def depth_map(labels: NDArray[np.int32]) -> NDArray[np.float32]:
    """Distance of each pixel to the rim of its object over the object's greatest distance, 0..1."""
    depth = np.zeros(labels.shape, dtype=np.float32)
    for index, box in enumerate(ndimage.find_objects(labels), start=1):
        inside = np.pad(labels[box] == index, 1)
        # The edge of the image is no rim: a nucleus it cuts goes on beyond.
        for axis, cut in enumerate(box):
            if cut.start == 0:
                inside = _repeat_edge(inside, axis, 0)
            if cut.stop == labels.shape[axis]:
                inside = _repeat_edge(inside, axis, -1)
        distance = ndimage.distance_transform_edt(inside)[1:-1, 1:-1]
        depth[box] = np.maximum(depth[box], distance / distance.max())
    return depth


def _repeat_edge(mask: NDArray[np.bool_], axis: int, end: int) -> NDArray[np.bool_]:
    out = np.moveaxis(mask.copy(), axis, 0)
    out[end] = out[1 if end == 0 else -2]
    return np.moveaxis(out, 0, axis)


def gap_map(labels: NDArray[np.int32], reach: int) -> NDArray[np.bool_]:
    """Background within `reach` pixels of two different objects, and the seams where objects touch."""
    grown = expand_labels(labels, reach)
    most = ndimage.maximum_filter(grown, 3)
    least = ndimage.minimum_filter(np.where(grown > 0, grown, np.iinfo(np.int32).max), 3)
    seam = (most > least) & (grown > 0)
    return np.asarray(ndimage.binary_dilation(seam, iterations=max(1, reach // 2)))


def prepare(slide: Slide, target: float) -> Prepared:
    """Bring an annotated image to the scale at which its typical nucleus is `target` pixels wide.

    The size is estimated from the image alone, as it is when the model is used.
    """
    scale = scale_for(estimate_diameter(slide.image), target)
    shape = rescaled(slide.image.shape, scale)
    reach = max(1, round(3 / scale))
    planes = np.stack(
        [
            normalise(slide.image),
            (slide.nuclei > 0).astype(np.float32),
            depth_map(slide.nuclei),
            gap_map(slide.nuclei, reach).astype(np.float32),
            (slide.micronuclei > 0).astype(np.float32),
        ]
    )
    factor = np.array(shape) / np.array(slide.image.shape)
    objects = regionprops(slide.micronuclei)
    centres = np.array([region.centroid for region in objects]).reshape(-1, 2)
    boxes = np.array([region.bbox for region in objects], dtype=np.float64).reshape(-1, 4)
    return Prepared(
        torch.from_numpy(resample(planes, shape)),
        (centres + 0.5) * factor - 0.5,
        (boxes[:, 2:] - boxes[:, :2]) * factor,
    )


def random_patch(
    slide: Prepared, size: int, middle: NDArray[np.float64], rng: np.random.Generator, zoom: float
) -> tuple[torch.Tensor, NDArray[np.float64], NDArray[np.float64]]:
    """Cut a square patch in a random pose.

    Parameters
    ----------
    slide
        Where from.
    size
        Side of the patch in pixels.
    middle
        Point (y, x) that comes to lie in the middle.
    rng
        Source of chance.
    zoom
        Natural logarithm of the greatest change of scale, up or down.

    Returns
    -------
    planes : Tensor
        Shape (5, size, size); outside the slide the image is reflected.
    centres, sizes : ndarray
        The micronuclei inside the patch, shape (n, 2).
    """
    angle = rng.uniform(0, 2 * np.pi)
    scale = float(np.exp(rng.uniform(-zoom, zoom)))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    if rng.random() < 0.5:
        turn = turn @ np.diag([1.0, -1.0])
    steps = turn / scale  # (y, x) on the slide per pixel of the patch
    half = (size - 1) / 2
    offsets = np.stack(np.meshgrid(np.arange(size) - half, np.arange(size) - half, indexing="ij"), axis=-1)
    places = offsets @ steps.T + middle
    shape = np.array(slide.planes.shape[1:])
    grid = torch.from_numpy(((places + 0.5) / shape * 2 - 1)[..., ::-1].astype(np.float32).copy())
    planes = torch.nn.functional.grid_sample(
        slide.planes[None], grid[None], mode="bilinear", padding_mode="reflection", align_corners=False
    )[0]
    centres = (slide.centres - middle) @ np.linalg.inv(steps).T + half
    inside = ((centres >= 0) & (centres <= size - 1)).all(axis=1)
    # A rotated box has no exact size; the mean of both sides is kept for turned objects.
    mean = np.sqrt(slide.sizes[inside].prod(axis=1, keepdims=True)).repeat(2, axis=1)
    return planes, centres[inside], mean * scale


def random_exposure(image: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Change brightness, contrast curve, haze, blur and noise of patches, shape (n, 1, y, x)."""
    out = []
    for patch in image:
        value = patch * float(np.exp(rng.uniform(-0.5, 0.4))) + float(rng.uniform(-0.03, 0.05))
        if rng.random() < 0.4:
            gamma = float(np.exp(rng.uniform(-0.35, 0.35)))
            value = value.clamp(min=0) ** gamma
        if rng.random() < 0.3:
            value = _blur(value, float(rng.uniform(0.4, 1.2)))
        if rng.random() < 0.5:
            noise = torch.from_numpy(rng.standard_normal(value.shape).astype(np.float32))
            value = value + noise * float(rng.uniform(0.002, 0.05))
        out.append(value)
    return torch.stack(out)


def _blur(image: torch.Tensor, sigma: float) -> torch.Tensor:
    x = torch.arange(-3, 4, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (x / sigma) ** 2)
    kernel = kernel / kernel.sum()
    padded = torch.nn.functional.pad(image[None], (3, 3, 3, 3), mode="reflect")
    padded = torch.nn.functional.conv2d(padded, kernel.view(1, 1, 7, 1))
    return torch.nn.functional.conv2d(padded, kernel.view(1, 1, 1, 7))[0]

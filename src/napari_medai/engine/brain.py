"""Runner of `brain`: the two networks of deepbet on a head in any orientation, spacing and size.

The method is that of Fisch et al., deepbet: Fast brain extraction of T1-weighted MRI using Convolutional Neural
Networks, Computers in Biology and Medicine, 2024: a first network finds the brain's box in the whole image at 128
voxels a side, a second one the brain in that box at 256. Sizes, margins and constants are those its networks
were trained with.
"""

from __future__ import annotations

from functools import partial
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import nn

from napari_medai.core.errors import ModelFitError, ModelNotFoundError
from napari_medai.core.geometry import Reorientation, canonical_reorientation
from napari_medai.core.stage import Params, Part
from napari_medai.core.volume import Volume
from napari_medai.engine.explain import Probe
from napari_medai.engine.prepare import turn
from napari_medai.engine.resample import resample, resample_labels
from napari_medai.engine.run import Run
from napari_medai.engine.weights import load_archive
from napari_medai.models.deepbet import INSTALL, SHA256, weights_folder
from napari_medai.nets.linknet import LinkNet3d

# z, y, x towards superior, posterior, left -> x, y, z towards right, anterior, superior
TO_RAS = Reorientation((2, 1, 0), (True, True, False))

COARSE, FINE = (128, 128, 128), (256, 256, 256)
# The pixels between these quantiles of the coarse image span 0..1 for both networks
QUANTILES = (0.005, 0.995)
# Then mean and deviation become these
MEAN, DEVIATION = 0.449, 0.226
# A plane belongs to the box if more than this share of it is brain; the box is widened by a tenth on every side
PLANE_SHARE, BOX_MARGIN = 0.02, 0.1
# Probability above which a voxel is brain
THRESHOLD = 0.5


class Foreground(nn.Module):
    """The second of two softmax channels: the probability of brain alone.

    Parameters
    ----------
    network : module
        (B, 1, x, y, z) -> (B, 2, x, y, z).
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, 1, x, y, z) of probabilities."""
        out: torch.Tensor = self.network(image)[:, 1:]
        return out


def segment_brain(volume: Volume, run: Run, params: Params) -> NDArray[np.uint8]:
    """Label the brain.

    Parameters
    ----------
    volume : Volume
        Axes ``"zyx"``, any orientation and spacing; T1-weighted MR.
    run : Run
        Device, progress, record.
    params : Params
        ``threshold`` is the probability above which a voxel is brain; 0 takes `THRESHOLD`.

    Returns
    -------
    (z, y, x) uint8 array
        1 is brain. All 0, with a note, where none was found.

    Raises
    ------
    ModelError
        deepbet is not installed or its files are not those that are known.
    """
    run.precision = "float32"  # means over 16 million voxels, and traced networks: no half precision
    if volume.units == "pixel":
        run.note("the image has no place in a patient: taken as z superior, y posterior, x left")
    there = canonical_reorientation(volume.affine)
    head = turn(turn(np.asarray(volume.numpy(), dtype=np.float32), there), TO_RAS)
    mask = find_brain(head, run, float(getattr(params, "threshold", 0.0)) or THRESHOLD)
    return np.ascontiguousarray(turn(turn(mask, TO_RAS.inverse()), there.inverse()))


def find_brain(head: NDArray[np.float32], run: Run, threshold: float = THRESHOLD) -> NDArray[np.uint8]:
    """The brain in an image whose axes run towards right, anterior, superior.

    Parameters
    ----------
    head : (x, y, z) float32 array
        Finite pixels.
    run : Run
        Device, progress, record.
    threshold : float
        Probability above which a voxel is brain. Default `THRESHOLD`.

    Returns
    -------
    (x, y, z) uint8 array
        One connected piece without holes, or all 0.
    """
    empty = np.zeros(head.shape, dtype=np.uint8)
    progress = run.progress
    try:
        # the second network has eight times the voxels of the first
        run.progress = Part(progress, 0.0, 0.12, "looking for the brain")
        found = cut_out(head, run)
        if found is None:
            return empty
        box, image = found
        run.progress = Part(progress, 0.12, 1.0, "outlining the brain")
        probability = _run(run, "model.pt", image)
    finally:
        run.progress = progress
    inside = resample(probability, head[box].shape) > threshold
    empty[box] = ndimage.binary_fill_holes(largest_piece(inside))
    if not empty.any():
        run.note("no voxel reached the threshold; the model needs a T1-weighted MR image of a whole head")
    return empty


def cut_out(head: NDArray[np.float32], run: Run) -> tuple[tuple[slice, ...], NDArray[np.float32]] | None:
    """The box of the brain by the first network, and the second network's input; none, noted, without a brain.

    Returns
    -------
    box : tuple of slice
        In ``head``, axes towards right, anterior, superior.
    image : (256, 256, 256) float32 array
        What lies in the box, as the second network takes it.
    """
    coarse = resample_labels(head, COARSE)
    low, high = (float(q) for q in np.quantile(coarse, QUANTILES))
    if not high > low:  # an object on an empty ground that fills less than half a percent of the image
        low, high = float(head.min()), float(head.max())
    found = _run(run, "bbox_model.pt", normalised(coarse, low, high)) > 0.5
    box = brain_box(largest_piece(found), head.shape)
    if box is None:
        run.note("no brain was found; the model needs a T1-weighted MR image of a whole head")
        return None
    return box, normalised(resample_labels(head[box], FINE), low, high)


def probe_brain(volume: Volume, run: Run) -> Probe:
    """What explains the second network: brain's logit over background's, summed over the voxels that are brain.

    Raises
    ------
    ModelFitError
        The first network found no brain.
    """
    there = canonical_reorientation(volume.affine)
    head = turn(turn(np.asarray(volume.numpy(), dtype=np.float32), there), TO_RAS)
    found = cut_out(head, run)
    if found is None:
        raise ModelFitError("No brain was found in the image: there is nothing to explain.")
    box, image = found
    network = _network(run, "model.pt")

    def score(x: torch.Tensor, _target: int) -> torch.Tensor:
        logits = network.logits(x)
        margin = logits[:, 1] - logits[:, 0]
        return (margin * (margin.detach() > 0)).sum()

    def back(heat: NDArray[np.float32]) -> NDArray[np.float32]:
        full = np.zeros(head.shape, dtype=np.float32)
        full[box] = resample(heat[0], head[box].shape)
        return np.ascontiguousarray(turn(turn(full, TO_RAS.inverse()), there.inverse()))

    return Probe(
        inputs=torch.from_numpy(image)[None, None].to(run.device),
        score=score,
        layer=network.get_submodule(network.cam_layer),
        evidence=np.ones(1),
        attention=None,
        back=back,
    )


def normalised(image: NDArray[np.float32], low: float, high: float) -> NDArray[np.float32]:
    """Clip to ``low`` .. ``high`` and shift to the mean and deviation that the networks were trained with."""
    clipped = np.clip((image - np.float32(low)) / np.float32(high - low), 0, 1)
    deviation = float(clipped.std(ddof=1, dtype=np.float64)) or 1.0
    mean = float(clipped.mean(dtype=np.float64))
    return np.asarray((clipped - np.float32(mean)) * np.float32(DEVIATION / deviation) + np.float32(MEAN))


def largest_piece(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest connected piece (over faces, edges and corners) of a mask; all false if it is empty."""
    pieces, count = ndimage.label(mask, ndimage.generate_binary_structure(mask.ndim, mask.ndim))
    if count == 0:
        return np.zeros_like(mask)
    return np.asarray(pieces == 1 + np.bincount(pieces.ravel())[1:].argmax())


def brain_box(coarse: NDArray[np.bool_], shape: tuple[int, ...]) -> tuple[slice, ...] | None:
    """The box of a coarse mask in an image of ``shape``, widened by `BOX_MARGIN` on every side; none if empty."""
    box = []
    for axis, (small, full) in enumerate(zip(coarse.shape, shape, strict=True)):
        share = coarse.mean(axis=tuple(n for n in range(coarse.ndim) if n != axis))
        planes = np.flatnonzero(share > PLANE_SHARE)
        if len(planes) == 0:
            return None
        start, stop, scale = int(planes[0]), int(planes[-1]) + 1, full / small
        # centre and size are rounded to whole voxels each, halves to even, as the networks were trained
        centre, size = round((start + stop) / 2 * scale), round((stop - start) * scale * (1 + 2 * BOX_MARGIN))
        box.append(slice(max(0, int(centre - size / 2)), min(full, int(centre + size / 2))))
    return tuple(box)


def _run(run: Run, name: str, image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Probability of brain by one of the networks, which take one fixed size each."""
    size = image.shape
    out = run.predict(
        image[np.newaxis], Foreground(_network(run, name)), tile=size, multiple=size, overlap=0.0, batch=1
    )
    return np.asarray(out[0])


def _network(run: Run, name: str) -> LinkNet3d:
    folder = weights_folder()
    if folder is None:
        raise ModelNotFoundError(f"The model 'brain' needs the package deepbet; install it with: {INSTALL}")
    return cast(LinkNet3d, run.load(partial(load_archive, folder / name, SHA256[name], LinkNet3d)))

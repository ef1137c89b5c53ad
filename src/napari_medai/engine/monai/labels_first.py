"""Labels of a bundle without the scores of the whole image: decided row of windows by row of windows.

For images whose scores do not fit into memory. MONAI puts the scores of all classes together, brings them back to the
scan's voxels and decides there; here the same windows, blended by the same weights, are decided on the voxels that the
network saw, and the labels are brought back to the nearest. Where the bundle does not resample, or decides before it
does, the labels are MONAI's.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer, SlidingWindowInfererAdapt
from monai.transforms import Activationsd, AsDiscreted, CastToTyped, EnsureTyped, Invertd, ToDeviced, ToTensord
from monai.utils import fall_back_tuple
from numpy.typing import NDArray
from torch import nn

from napari_medai.engine.asking import First
from napari_medai.engine.planning import Made

if TYPE_CHECKING:
    from napari_medai.engine.run import Run

# Others derived from the first go through a volume in ways of their own
_WINDOWS = (SlidingWindowInferer, SlidingWindowInfererAdapt)
# What changes neither a score nor its place
_PASSING = (CastToTyped, EnsureTyped, ToDeviced, ToTensord)
# Of each voxel of the scan while MONAI resamples labels to it, in double precision; measured: 57
_BACK_BYTES = 60
_MIB = 2**20


@dataclass(frozen=True)
class LabelSteps:
    """A bundle's postprocessing for labels that were decided already.

    Attributes
    ----------
    steps : tuple of transforms
        What is left of it: without softmax and argmax.
    back : tuple of Invertd
        Those among the steps that bring scores back by interpolation, where labels need the nearest.
    key : str
        Of the scores.
    """

    steps: tuple[Any, ...]
    back: tuple[Any, ...]
    key: str

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        """Apply them to data whose ``key`` are labels."""
        for step in self.back:
            near = zip(step.nearest_interp, step.keys, strict=True)
            step.nearest_interp = tuple(own or key == self.key for own, key in near)
        for step in self.steps:
            data = step(data)
        return data


def steps_for_labels(after: Any, key: str) -> LabelSteps | None:
    """The postprocessing ``after``, a `Compose`, for labels; none where it does more with scores than to decide."""
    kept: list[Any] = []
    back: list[Any] = []
    exclusive = decided = False
    for step in getattr(after, "transforms", ()):
        at = step.keys.index(key) if key in getattr(step, "keys", ()) else None
        if decided or at is None:
            kept.append(step)
        elif isinstance(step, Activationsd) and step.softmax[at] and not step.sigmoid[at] and not step.other[at]:
            exclusive = True
        elif isinstance(step, AsDiscreted) and step.argmax[at] and _nothing_else(step, at):
            decided = True
        elif isinstance(step, Invertd):
            back += [] if step.nearest_interp[at] else [step]
            kept.append(step)
        elif isinstance(step, _PASSING):
            kept.append(step)
        else:
            return None
    return LabelSteps(tuple(kept), tuple(back), key) if decided or exclusive else None


def brings_scores_back(after: Any, key: str) -> bool:
    """Whether a postprocessing resamples all scores to the scan's voxels, and not labels."""
    for step in getattr(after, "transforms", ()):
        if key in getattr(step, "keys", ()):
            if isinstance(step, Invertd):
                return True
            if isinstance(step, AsDiscreted) and step.argmax[step.keys.index(key)]:
                return False
    return False


def same_windows(inferer: Any) -> bool:
    """Whether the windows of an inferer are those that a model's tiling can describe."""
    overlap = getattr(inferer, "overlap", None)
    return (
        type(inferer) in _WINDOWS
        and (isinstance(overlap, float | int) or len(set(overlap or ())) == 1)
        and float(np.max(inferer.sigma_scale)) == float(np.min(inferer.sigma_scale)) == 0.125
    )


def labelled(image: MetaTensor, inferer: Any, network: nn.Module, run: Run, back_voxels: int = 0) -> MetaTensor:
    """The number of the winning channel at each voxel of a prepared image.

    Parameters
    ----------
    image : (C, x, y, z) or (C, x, y) tensor
        As the network sees it.
    inferer : SlidingWindowInferer
        See `same_windows`.
    network : Module
        On the device of the run.
    back_voxels : int
        Of the scan, where labels will be resampled to it; for the plan.

    Returns
    -------
    (1, x, y, z) or (1, x, y) uint8 or int16 tensor
        With the image's place in space.

    Raises
    ------
    DeviceError
        There is not enough memory even so.
    """
    shape = tuple(int(n) for n in image.shape[1:])
    roi = fall_back_tuple(inferer.roi_size, shape)
    pixels = image.as_tensor().float().cpu()
    low = [max(0, edge - n) // 2 for edge, n in zip(roi, shape, strict=True)]
    high = [max(0, edge - n) - first for edge, n, first in zip(roi, shape, low, strict=True)]
    if any((*low, *high)):  # as MONAI fills up an image that is smaller than a window
        sides = [n for pair in zip(low[::-1], high[::-1], strict=True) for n in pair]
        mode = str(getattr(inferer.padding_mode, "value", inferer.padding_mode))
        value = {"value": float(inferer.cval)} if mode == "constant" else {}
        pixels = torch.nn.functional.pad(pixels, sides, mode=mode, **value)
    found: NDArray[Any] = np.zeros(pixels.shape[1:], np.uint8)

    def take(first: int, scores: NDArray[np.floating]) -> None:
        nonlocal found
        if len(scores) > 256 and found.dtype == np.uint8:
            found = found.astype(np.int16)
        found[first : first + scores.shape[1]] = scores.argmax(axis=0)

    own = prod(pixels.shape[1:])
    made = Made(kept_mb=2 * own / _MIB, finishing_mb=(own * 8 + back_voxels * _BACK_BYTES) / _MIB)
    run.stream(
        pixels.numpy(), take, First(network), multiple=1, tile=roi, overlap=float(np.max(inferer.overlap)), halo=0,
        batch=int(inferer.sw_batch_size), made=lambda channels: made,
    )  # fmt: skip
    inside = found[tuple(slice(first, first + n) for first, n in zip(low, shape, strict=True))]
    labels = MetaTensor(torch.from_numpy(np.ascontiguousarray(inside))[None])
    labels.copy_meta_from(image)
    return labels


def _nothing_else(step: AsDiscreted, at: int) -> bool:
    return all(other[at] is None for other in (step.to_onehot, step.threshold, step.rounding))

"""Where a network looked: Grad-CAM++ and occlusion, for anything that can be given a score.

Both work on a *score*: a function from the network's input (N, C, *spatial) to one number, the logit of
the class that is explained. They give heat of 0 and above, not yet scaled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from napari_medai.core.errors import ModelError
from napari_medai.core.stage import Progress

Score = Callable[[torch.Tensor], torch.Tensor]


def grad_cam_pp(score: Score, layer: nn.Module, inputs: torch.Tensor) -> NDArray[np.float32]:
    """Grad-CAM++ (Chattopadhay et al., WACV 2018, equations 10 and 19).

    The factor exp(score) of equation 19 is the same for every position and leaves the map after
    scaling; it is left out, because it overflows for the summed scores of segmenters.

    Parameters
    ----------
    score : callable
        Inputs (N, C, *spatial) -> scalar tensor; runs `layer` once.
    layer : nn.Module
        Whose output (N, channels, *small) carries the map.
    inputs : (N, C, *spatial) float tensor
        On the network's device.

    Returns
    -------
    (N, *spatial) float32 array
        The map, enlarged linearly from the layer's size to the input's.

    Raises
    ------
    ModelError
        The score does not depend on the layer.
    """
    kept: list[torch.Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        # the graph starts here; the copy that goes on may be changed in place by the next layer
        kept.append(output.detach().requires_grad_())
        return kept[-1].clone()

    hook = layer.register_forward_hook(keep)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            value = score(inputs.clone())
            if not kept or not value.requires_grad:
                raise ModelError("The class score does not depend on the layer that Grad-CAM++ reads.")
            (gradient,) = torch.autograd.grad(value, kept[-1])
    finally:
        hook.remove()
    activation, space = kept[-1].detach(), tuple(range(2, kept[-1].ndim))
    squared = gradient**2
    below = 2 * squared + activation.sum(dim=space, keepdim=True) * gradient**3
    alpha = squared / torch.where(below != 0, below, torch.ones_like(below))
    weight = (alpha * gradient.clamp(min=0)).sum(dim=space, keepdim=True)
    heat = (weight * activation).sum(dim=1, keepdim=True).clamp(min=0)
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(space)]
    full = nn.functional.interpolate(heat, size=inputs.shape[2:], mode=mode, align_corners=False)
    return np.asarray(full[:, 0].float().cpu().numpy())


def occlusion(
    score: Score, inputs: torch.Tensor, patch: Sequence[int], progress: Progress, slices: int = 1
) -> NDArray[np.float32]:
    """How much the score falls when a patch is covered (Zeiler and Fergus, ECCV 2014).

    A patch is covered with the mean of its image and channel, and moves by half its edge; heat is the
    mean fall over all patches that covered a voxel, and 0 where covering raised the score.

    Parameters
    ----------
    score : callable
        Inputs (N, C, *spatial) -> scalar tensor.
    inputs : (N, C, *spatial) float tensor
        On the network's device.
    patch : sequence of int
        Edges along the spatial axes.
    progress : Progress
        Told after each patch.
    slices : int
        How many neighbours along N are covered together. Default 1.

    Returns
    -------
    (N, *spatial) float32 array

    Raises
    ------
    Cancelled
        The run was stopped.
    """
    shape = tuple(inputs.shape[2:])
    cover = inputs.mean(dim=tuple(range(2, inputs.ndim)), keepdim=True)
    fall = np.zeros((inputs.shape[0], *shape), dtype=np.float32)
    count = np.zeros_like(fall)
    groups = [slice(n, n + slices) for n in range(0, inputs.shape[0], slices)]
    windows = list(product(groups, *(list(_windows(n, p)) for n, p in zip(shape, patch, strict=True))))
    with torch.inference_mode():
        whole = float(score(inputs))
        for done, (group, *window) in enumerate(windows):
            progress.update(done, len(windows), "covering patches")
            covered = inputs.clone()
            covered[(group, slice(None), *window)] = cover[group]
            where = (group, *window)
            fall[where] += whole - float(score(covered))
            count[where] += 1
    progress.update(len(windows), len(windows), "covering patches")
    return np.asarray(np.maximum(fall / count, 0), dtype=np.float32)


def _windows(size: int, patch: int) -> Iterator[slice]:
    patch = min(max(1, patch), size)
    starts = sorted({*range(0, size - patch + 1, max(1, patch // 2)), size - patch})
    return (slice(start, start + patch) for start in starts)

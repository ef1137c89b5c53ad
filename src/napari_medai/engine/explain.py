"""Heat on the scan for a class of a classifier or of a segmenter."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from napari_medai.core.errors import InputError, ModelFitError
from napari_medai.core.stage import Part
from napari_medai.core.volume import Volume
from napari_medai.engine.saliency import grad_cam_pp, occlusion
from napari_medai.engine.sweep import Sweep
from napari_medai.engine.tiling import plan_tiles

if TYPE_CHECKING:
    from napari_medai.engine.run import Run

# `ModelSpec.runner` -> "module:function" of `function(volume, run) -> Probe`
PROBES: Mapping[str, str] = {
    "quality": "napari_medai.engine.quality:probe_slices",
    "nuclei": "napari_medai.engine.nuclei:probe_nuclei",
    "brain": "napari_medai.engine.brain:probe_brain",
}


@dataclass(frozen=True, eq=False)
class Probe:
    """A model opened up for one image.

    Attributes
    ----------
    inputs : (N, C, *spatial) tensor
        What the network is given; N are the slices of a series, else 1.
    score : callable
        ``f(inputs, target) -> scalar tensor``, the logit of class ``target`` (of a segmenter: summed over
        the voxels that it gave to the class).
    layer : nn.Module or None
        What Grad-CAM++ reads; none if the network cannot be opened.
    evidence : (classes,) array
        Logit of each class of the whole image, or number of voxels of each label.
    attention : (N,) array or None
        The network's own attention over N.
    back : callable
        Heat (N, *spatial) -> heat on the image's spatial shape.
    tile : tuple of int
        Inputs larger than this are explained tile by tile; empty if the network needs them whole.
    multiple : int
        Of which the edges of tiles are multiples.
    """

    inputs: torch.Tensor
    score: Callable[[torch.Tensor, int], torch.Tensor]
    layer: nn.Module | None
    evidence: NDArray[np.float64]
    attention: NDArray[np.float32] | None
    back: Callable[[NDArray[np.float32]], NDArray[np.float32]]
    tile: tuple[int, ...] = ()
    multiple: int = 1


def explain(volume: Volume, run: Run, params: Any) -> tuple[NDArray[np.float32], str]:
    """Heat of one class on an image without channels.

    Parameters
    ----------
    volume : Volume
        float32 pixels, axes ``zyx`` or ``yx``.
    run : Run
        Of the model that is explained.
    params : ExplainParams
        Method, class and patch.

    Returns
    -------
    heat : float32 array
        0..1 on the volume's spatial shape.
    target : str
        Name of the class.

    Raises
    ------
    ModelFitError
        The model gives no classes or labels, or has no attention or no layer to read.
    InputError
        The class is not one of the model's; a single slice has no attention over slices.
    Cancelled
        The run was stopped.
    """
    names = [label.name for label in run.spec.gives.labels]
    if run.spec.runner not in PROBES or not names:
        raise ModelFitError(
            f"Model {run.spec.id!r} gives neither classes nor labels; explain works on classifiers and segmenters."
        )
    if params.target and params.target not in names:
        raise InputError(f"Model {run.spec.id!r} has no class {params.target!r}; it has: {', '.join(names)}.")
    if run.goes_elsewhere:
        from napari_medai.engine.isolated import explain_isolated

        heat, target_name = explain_isolated(volume, run, params)
        return heat, target_name
    module, _, function = PROBES[run.spec.runner].partition(":")
    run.progress.update(0, 1, "preparing")
    probe: Probe = getattr(importlib.import_module(module), function)(volume, run)
    target = names.index(params.target) if params.target else _most_probable(names, probe.evidence)
    if not params.target and run.spec.gives.kind == "classes" and probe.evidence[target] < 0:
        run.note(f"no class reaches a probability of 0.5; the heat is that of the most probable one, {names[target]!r}")
    if params.method == "attention":
        heat = _attention(probe, run.spec.id)
    elif params.method == "gradcam++":
        heat = _cam(probe, target, run)
    else:
        heat = _occlusion(probe, target, run, params.patch)
    heat = np.maximum(probe.back(heat), 0)
    top = float(heat.max())
    if top <= 0:
        run.note(f"nothing in the image speaks for {names[target]!r}: the heatmap is empty")
        return heat.astype(np.float32), names[target]
    return (heat / top).astype(np.float32), names[target]


def _most_probable(names: list[str], evidence: NDArray[np.float64]) -> int:
    """Index of the class with the most evidence; "none" is the lack of it and shows nothing."""
    return max((n for n in range(len(names)) if names[n] != "none"), key=lambda n: float(evidence[n]))


def _attention(probe: Probe, model: str) -> NDArray[np.float32]:
    if probe.attention is None:
        raise ModelFitError(f"Model {model!r} has no attention; choose gradcam++ or occlusion.")
    if len(probe.attention) < 2:
        raise InputError("Attention over slices needs several slices; for one image choose gradcam++ or occlusion.")
    shape = tuple(probe.inputs.shape[2:])
    return np.broadcast_to(probe.attention.reshape(-1, *[1] * len(shape)), (len(probe.attention), *shape)).copy()


def _cam(probe: Probe, target: int, run: Run) -> NDArray[np.float32]:
    layer = probe.layer
    if layer is None:
        raise ModelFitError(f"The network of {run.spec.id!r} cannot be opened for Grad-CAM++; choose occlusion.")
    return _over_tiles(probe, run, lambda x, part: grad_cam_pp(lambda y: probe.score(y, target), layer, x))


def _occlusion(probe: Probe, target: int, run: Run, patch: int) -> NDArray[np.float32]:
    space = probe.inputs.ndim - 2
    count = probe.inputs.shape[0]

    def of(x: torch.Tensor, part: Part) -> NDArray[np.float32]:
        # an eighth of the edge in the plane, a quarter in 3-D and for series: some hundred forward passes
        share = 8 if space == 2 and count == 1 else 4
        edges = [patch or max(4, n // share) for n in x.shape[2:]]
        return occlusion(lambda y: probe.score(y, target), x, edges, part, slices=-(-count // 8))

    return _over_tiles(probe, run, of)


def _over_tiles(
    probe: Probe, run: Run, method: Callable[[torch.Tensor, Part], NDArray[np.float32]]
) -> NDArray[np.float32]:
    """Heat of the whole input, tile by tile where it is too large for the network at once."""
    shape = tuple(probe.inputs.shape[2:])
    if not probe.tile or all(n <= t for n, t in zip(shape, probe.tile, strict=True)):
        heat = method(probe.inputs, Part(run.progress, 0, 1, "explaining"))
        run.tiles += 1
        run.progress.update(1, 1, "explaining")
        return heat
    image = probe.inputs[0].cpu().numpy()
    plan = plan_tiles(shape, probe.tile, multiple=probe.multiple)
    run.note(f"explained in {len(plan)} tiles, each for itself: compare heat within a tile only")
    whole = np.empty((1, *shape), np.float32)

    def take(first: int, heat: NDArray[np.floating]) -> None:
        whole[:, first : first + heat.shape[1]] = heat

    sweep = Sweep(plan, take)
    for n, tile in enumerate(sweep):
        run.progress.update(n, len(plan), "explaining")
        part = Part(run.progress, n / len(plan), (n + 1) / len(plan), "explaining")
        cut = torch.from_numpy(plan.cut(image, tile))[None].to(probe.inputs.device)
        sweep.add(tile, torch.from_numpy(method(cut, part)))
        run.tiles += 1
    run.progress.update(len(plan), len(plan), "explaining")
    return whole

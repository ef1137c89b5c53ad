"""Runner of the slice classifier: series of slices in, scores and attention out; and what explains it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from napari_medai.core.errors import ModelFitError
from napari_medai.core.volume import Volume
from napari_medai.engine.explain import Probe
from napari_medai.engine.results import SliceScores
from napari_medai.engine.slices import heat_on_slices, slice_passes, volume_slices
from napari_medai.nets.quality import QualityNet, QualityOutput

if TYPE_CHECKING:
    from napari_medai.engine.run import Run


def classify_slices(volume: Volume, run: Run, params: Any) -> SliceScores:
    """Score a volume (z, y, x), or an image (y, x) as a series of one.

    Every slice is looked at once: a long series takes several passes over interleaved slices, each
    spanning the whole volume. The series' probability is the mean of the passes' logits.
    """
    network = run.network()
    count = volume.size("z")
    passes = slice_passes(count, every=True)
    indices: list[int] = []
    slice_logits, attention, logits = [], [], []
    for n, chosen in enumerate(passes):
        run.progress.update(n, len(passes), "reading slices")
        series = volume_slices(volume.numpy(), chosen)
        out = _forward(network, torch.from_numpy(series.inputs).to(run.device))
        run.tiles += 1
        indices.extend(series.indices)
        logits.append(out.logits[0].double().cpu().numpy())
        slice_logits.append(out.slice_logits[0].double().cpu().numpy())
        # a pass holds its share of the slices, and its attention that share of the whole
        attention.append(out.attention[0].double().cpu().numpy() * len(series.indices) / count)
    run.progress.update(len(passes), len(passes), "reading slices")
    order = np.argsort(indices)
    return SliceScores(
        _sigmoid(np.mean(logits, axis=0)),
        np.array(indices)[order],
        _sigmoid(np.concatenate(slice_logits))[order],
        np.concatenate(attention)[order],
    )


def _forward(network: torch.nn.Module, inputs: torch.Tensor) -> QualityOutput:
    with torch.inference_mode():
        out: QualityOutput = network(inputs[None])
    return out


def _sigmoid(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(1 / (1 + np.exp(-logits)))


def probe_slices(volume: Volume, run: Run) -> Probe:
    """What explains a slice classifier: one pass over evenly spaced slices."""
    network = run.network()
    if not isinstance(network, QualityNet):
        raise ModelFitError(f"Model {run.spec.id!r} is no slice classifier and cannot be explained as one.")
    series = volume_slices(volume.numpy())
    inputs = torch.from_numpy(series.inputs).to(run.device)
    out = _forward(network, inputs)

    def back(heat: NDArray[np.float32]) -> NDArray[np.float32]:
        on_slices = heat_on_slices(heat, series)
        return on_slices[0] if volume.ndim_spatial == 2 else _between(on_slices, series.indices, volume.size("z"))

    return Probe(
        inputs=inputs,
        score=lambda x, target: network(x[None]).logits[0, target],
        layer=network.get_submodule(network.cam_layer),
        evidence=out.logits[0].double().cpu().numpy(),
        attention=out.attention[0].float().cpu().numpy(),
        back=back,
    )


def _between(heat: NDArray[np.float32], indices: tuple[int, ...], count: int) -> NDArray[np.float32]:
    """Heat (n, y, x) of some slices, interpolated linearly to all ``count`` of them."""
    position = np.interp(np.arange(count), indices, np.arange(len(indices)))
    low = np.floor(position).astype(int)
    high = np.minimum(low + 1, len(indices) - 1)
    share = (position - low).astype(np.float32)
    full = np.empty((count, *heat.shape[1:]), dtype=np.float32)
    for k in range(count):
        full[k] = (1 - share[k]) * heat[low[k]] + share[k] * heat[high[k]]
    return full

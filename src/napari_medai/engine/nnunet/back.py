"""The way back: from logits on the network's grid to labels on the image's own voxels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import inf, log
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from napari_medai.engine.nnunet.prepare import Case
from napari_medai.engine.nnunet.resampling import resample
from napari_medai.engine.sink import LabelSink
from napari_medai.engine.slabs import Decide
from napari_medai.models.nnunet_labels import LabelSet

if TYPE_CHECKING:
    from napari_medai.engine.run import Run


def sink_for(case: Case, run: Run, threshold: float, weights: str, on_image: bool) -> LabelSink:
    """Where the labels of a case go.

    Parameters
    ----------
    case : Case
        What they belong to.
    run : Run
        Its progress says where they are written.
    threshold : float
        Probability above which a voxel belongs to a region; of no effect for labels.
    weights : str
        Hashes of the checkpoints.
    on_image : bool
        Whether they are written on the Volume's own axes, and shown; else they stay in the plan's order of axes.
    """
    labels = case.labels
    # nnU-Net counts the labels only; regions may have larger values
    large = len(labels.foreground) >= 255 or max(labels.region_values, default=0) > 255
    return LabelSink(
        run, lambda channels: _decide(labels, threshold), np.uint16 if large else np.uint8, case.grid, case.whole,
        case.turned if on_image else None, on_image=on_image, how=case.how or "linear", box=case.box,
        # by splines nnU-Net comes back to the precision of the sums, and compares in that; by torch it does not
        half=case.plan.probabilities.method == "spline" and case.grid != case.cut, weights=weights,
    )  # fmt: skip


def put_back(
    logits: Iterator[torch.Tensor],
    case: Case,
    sink: LabelSink,
    threshold: float,
    check: Callable[[], None],
    beside: bool = False,
) -> None:
    """Labels on the image's own voxels from a network's output.

    Parameters
    ----------
    logits : iterator of (heads, d, k, j) tensors
        Slabs at the network's spacing, in ascending order; each is used up before the next is asked for.
    case : Case
        What they came from.
    sink : LabelSink
        Where labels are written; of `sink_for`.
    threshold : float
        As `sink_for`.
    check : callable
        Called between slabs, or channels; may raise `Cancelled`.
    beside : bool
        Whether a slab is put back while the next is made; only for slabs that are not written over. Default False.
    """
    if case.how is None:
        sink.put(0, _at_once(torch.cat([slab.clone() for slab in logits], 1), case, threshold, check))
        return

    def take(slab: torch.Tensor) -> None:
        check()
        sink.take(sink.next, slab.numpy())

    if not beside:
        for slab in logits:
            take(slab)
        return
    with ThreadPoolExecutor(1, thread_name_prefix="medai-undo") as thread:
        taken = thread.submit(check)
        try:
            for slab in logits:
                taken.result()  # nothing follows planes that could not be written
                taken = thread.submit(take, slab)
        finally:
            taken.result()


def _decide(labels: LabelSet, threshold: float) -> Decide:
    if not labels.region_values:
        return Decide(tuple(range(labels.heads)))
    limit = log(threshold / (1 - threshold)) if threshold < 1 else inf
    return Decide(labels.region_values, "above", (limit,) * labels.heads)


def _at_once(logits: torch.Tensor, case: Case, threshold: float, check: Callable[[], None]) -> NDArray[Any]:
    """Labels of what was cut out from all logits (heads, k, j, i), a channel at a time."""
    found = np.zeros(case.cut, dtype=np.uint16)
    best: NDArray[Any] | None = None
    limits: Sequence[float] = _decide(case.labels, threshold).thresholds
    for n, channel in enumerate(logits):
        check()
        values = resample(channel.numpy(), case.cut, case.target, case.spacing, case.plan.probabilities)
        if limits:
            found[values > limits[n]] = case.labels.region_values[n]
        elif best is None:
            best = np.array(values)
        else:
            better = values > best
            found[better] = n
            np.copyto(best, values, where=better)
    return found

"""The way back: from logits on the network's grid to labels on the image's own voxels."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from math import inf, log
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from napari_medai.core.stage import Progress
from napari_medai.engine.nnunet.prepare import Case
from napari_medai.engine.nnunet.resampling import resample, streamed
from napari_medai.engine.slabs import Decide, Undo
from napari_medai.models.nnunet_labels import LabelSet
from napari_medai.models.nnunet_stage import StagePlan


class Found:
    """Labels of a case as they are found.

    Parameters
    ----------
    case : Case
        What they belong to.
    plan : StagePlan
        For the order of axes.
    labels : LabelSet
        Decides the type: uint8, or uint16 from 255 labels on and where a region's value needs it.
    undo : callable
        From (z, y, x) to the Volume's spatial axes, as a view.
    progress : Progress
        Shown what is new.

    Attributes
    ----------
    whole : (k, j, i) array
        In the plan's order of axes.
    labels : array
        The same on the Volume's spatial axes, a view.
    """

    def __init__(
        self,
        case: Case,
        plan: StagePlan,
        labels: LabelSet,
        undo: Callable[[NDArray[Any]], NDArray[Any]],
        progress: Progress,
    ) -> None:
        # nnU-Net counts the labels only; regions may have larger values
        large = len(labels.foreground) >= 255 or max(labels.region_values, default=0) > 255
        self.whole = np.zeros(case.whole, dtype=np.uint16 if large else np.uint8)
        self.labels = undo(self.whole.transpose(plan.backward))
        self._box, self._progress = case.box, progress
        # where planes of the case lie in the image: the one axis along which their numbers change
        number = np.broadcast_to(np.arange(case.whole[0])[:, None, None], case.whole)
        places = undo(number.transpose(plan.backward))
        self._axis = next((n for n, stride in enumerate(places.strides) if stride), None)
        self._backwards = self._axis is not None and places.strides[self._axis] < 0

    def write_all(self, pieces: Iterable[tuple[int, NDArray[Any]]]) -> None:
        """Several pieces as `Undo.add` gives them."""
        for first, planes in pieces:
            self.write(first, planes)

    def write(self, first: int, planes: NDArray[Any]) -> None:
        """Planes (e, j, i) of what was cut out, from plane ``first`` on."""
        start = self._box[0].start + first
        self.whole[(slice(start, start + len(planes)), *self._box[1:])] = planes
        where = [slice(0, n) for n in self.labels.shape]
        if self._axis is not None:
            stop = start + len(planes)
            end = len(self.whole)
            where[self._axis] = slice(end - stop, end - start) if self._backwards else slice(start, stop)
        self._progress.partial(self.labels, tuple(where))


def put_back(
    logits: Iterator[torch.Tensor],
    case: Case,
    plan: StagePlan,
    labels: LabelSet,
    threshold: float,
    found: Found,
    check: Callable[[], None],
    ahead: int = 0,
) -> None:
    """Labels on the image's own voxels from a network's output.

    Parameters
    ----------
    logits : iterator of (heads, d, k, j) tensors
        Slabs at the network's spacing, in ascending order; each is used up before the next is asked for.
    case : Case
        What they came from.
    plan : StagePlan
        The configuration.
    labels : LabelSet
        What channels mean.
    threshold : float
        Probability above which a voxel belongs to a region; of no effect for labels.
    found : Found
        Where labels are written.
    check : callable
        Called between slabs, or channels; may raise `Cancelled`.
    ahead : int
        How many slabs may be asked for beyond the one in hand, which is then put back at the same time; only for slabs
        that are not written over. Default 0.
    """
    how = streamed(case.tensor.shape[1:], case.cut, case.target, case.spacing, plan.probabilities)
    if how is None:
        found.write(0, _at_once(torch.cat([slab.clone() for slab in logits], 1), case, plan, labels, threshold, check))
        return
    undo: Undo | None = None
    with ThreadPoolExecutor(1, thread_name_prefix="medai-undo") as pool:
        waiting: deque[Future[list[tuple[int, NDArray[Any]]]]] = deque()
        for slab in logits:
            check()
            if undo is None:
                # by splines nnU-Net comes back to the precision of the sums, and compares in that; by torch it does not
                half = slab.dtype == torch.half and plan.probabilities.method == "spline" and _resized(case)
                undo = Undo(case.tensor.shape[1:], case.cut, _decide(labels, threshold), how=how, half=half)
            waiting.append(pool.submit(_all, undo, slab))
            while len(waiting) > ahead:
                found.write_all(waiting.popleft().result())
        for slabs in waiting:
            found.write_all(slabs.result())
    if undo is not None:
        undo.finish()


def _all(undo: Undo, slab: torch.Tensor) -> list[tuple[int, NDArray[Any]]]:
    return list(undo.add(slab))


def _resized(case: Case) -> bool:
    return tuple(case.tensor.shape[1:]) != case.cut


def _decide(labels: LabelSet, threshold: float) -> Decide:
    if not labels.region_values:
        return Decide(tuple(range(labels.heads)))
    limit = log(threshold / (1 - threshold)) if threshold < 1 else inf
    return Decide(labels.region_values, "above", (limit,) * labels.heads)


def _at_once(
    logits: torch.Tensor,
    case: Case,
    plan: StagePlan,
    labels: LabelSet,
    threshold: float,
    check: Callable[[], None],
) -> NDArray[Any]:
    """Labels of what was cut out from all logits (heads, k, j, i), a channel at a time."""
    found = np.zeros(case.cut, dtype=np.uint16)
    best: NDArray[Any] | None = None
    limits: Sequence[float] = _decide(labels, threshold).thresholds
    for n, channel in enumerate(logits):
        check()
        values = resample(channel.numpy(), case.cut, case.target, case.spacing, plan.probabilities)
        if limits:
            found[values > limits[n]] = labels.region_values[n]
        elif best is None:
            best = np.array(values)
        else:
            better = values > best
            found[better] = n
            np.copyto(best, values, where=better)
    return found

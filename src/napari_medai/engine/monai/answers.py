"""What a bundle gives, as its stage wants it: a label map, scores, boxes or an image, on the scan's voxels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray

from napari_medai.core.errors import ModelError
from napari_medai.engine.monai.images import Handed, on_grid
from napari_medai.engine.results import Found, SliceScores
from napari_medai.models.monai.describe import written_keys
from napari_medai.models.monai.plan import Plan

if TYPE_CHECKING:
    from napari_medai.engine.run import Run


def answer(result: Any, plan: Plan | None, handed: Handed, image: Any, run: Run, params: Any) -> Any:
    """The result of a bundle's postprocessing in the words of the stage.

    Raises
    ------
    ModelError
        It is not what the stage can use.
    """
    if run.stage == "detect":
        return boxes(result, handed, image, run, params.threshold)
    keys = written_keys(plan) if plan is not None else ("pred",)
    found = next((key for key in keys if isinstance(result, dict) and key in result), None)
    if found is None:
        raise ModelError(f"The bundle {run.spec.title!r} gives none of {', '.join(keys)}.")
    if len(keys) > 1:
        run.note(f"of what the bundle gives ({', '.join(keys)}), {found} was taken")
    pred = result[found]
    if run.stage == "classify":
        return scores(pred, run)
    if run.stage == "denoise":
        tensor, note = on_grid(pred, handed, nearest=False)
        if len(tensor) != 1:
            raise ModelError(f"The bundle {run.spec.title!r} gives {len(tensor)} channels; one image was expected.")
        return _noted(np.ascontiguousarray(handed.back(tensor[0].float().cpu().numpy())), note, run)
    return labels(pred, handed, run)


def labels(pred: Any, handed: Handed, run: Run) -> NDArray[Any]:
    """A label map on the scan's voxels from labels (1, …), probabilities, or classes that may overlap (k, …)."""
    tensor = torch.as_tensor(np.asarray(pred)) if not isinstance(pred, torch.Tensor) else pred
    if tensor.ndim == len(handed.shape):  # of instances, without an axis of channels
        tensor = tensor[None]
    if len(tensor) > 1:
        tensor = _one_label(tensor, run)
    elif tensor.is_floating_point() and not torch.equal(tensor, tensor.round()):
        if float(tensor.max()) <= 1:
            run.note("the bundle gives values between 0 and 1: voxels from 0.5 on are the object")
            tensor = tensor >= 0.5
        else:
            run.note("the bundle interpolates between label values on the way back: they were rounded to whole ones")
            tensor = tensor.round()
    tensor, note = on_grid(tensor, handed)
    values = handed.back(tensor[0].cpu().numpy())
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ModelError(f"The bundle {run.spec.title!r} gives values that are not finite.")
    top = int(values.max()) if values.size else 0
    if values.min() < 0 or top > np.iinfo(np.int32).max:
        raise ModelError(f"The bundle {run.spec.title!r} gives label values from {values.min()} to {top}.")
    dtype = np.uint8 if top < 256 else np.uint16 if top < 65536 else np.int32
    return _noted(np.ascontiguousarray(np.rint(values).astype(dtype)), note, run)


def _one_label(tensor: torch.Tensor, run: Run) -> torch.Tensor:
    """One label for each voxel out of several channels."""
    binary = bool(((tensor == 0) | (tensor == 1)).all())
    sums = tensor.sum(dim=0, keepdim=True)
    if not binary and bool((tensor >= 0).all()) and bool((sums - 1).abs().max() < 1e-2):
        run.note("the bundle gives a probability for each label: the most likely one was taken")
        return tensor.argmax(dim=0, keepdim=True)
    if not binary:
        run.note("the bundle gives scores for each label: those from 0.5 on were taken")
        tensor = tensor >= 0.5
        sums = tensor.sum(dim=0, keepdim=True)
    if bool((sums == 1).all()):  # one of each
        return tensor.long().argmax(dim=0, keepdim=True)
    values = [label.value for label in run.spec.gives.labels] or list(range(1, len(tensor) + 1))
    if len(values) == len(tensor) - 1:  # the first channel is the background
        tensor = tensor[1:]
    sizes = tensor.flatten(1).sum(dim=1).tolist()
    merged = torch.zeros_like(sums, dtype=torch.int32)
    order = sorted(range(len(tensor)), key=lambda n: (-sizes[n], n))
    for n in order:
        merged[0][tensor[n] > 0] = values[n] if n < len(values) else n + 1
    names = {label.value: label.name for label in run.spec.gives.labels}
    told = ", ".join(names.get(values[n], str(n + 1)) if n < len(values) else str(n + 1) for n in order[:12])
    run.note(
        f"labels of the bundle overlap: larger ones were drawn first, so that smaller ones within are seen ({told})"
    )
    return merged


def scores(pred: Any, run: Run) -> SliceScores:
    """Scores of one image: probabilities by class."""
    values = np.asarray(pred.cpu() if isinstance(pred, torch.Tensor) else pred, dtype=np.float64).ravel()
    count = len(run.spec.gives.labels)
    if values.size == 1 and count > 1 and values[0] == int(values[0]) and 0 <= values[0] < count:
        values = np.eye(count)[int(values[0])]
        run.note("the bundle gives only the class that it chose, no probabilities")
    elif ((values == 0) | (values == 1)).all() and values.sum() == 1 and values.size > 1:
        run.note("the bundle gives only the class that it chose, no probabilities")
    elif values.min() < 0 or values.max() > 1:
        values = np.exp(values - values.max())
        values /= values.sum()
        run.note("the bundle gives raw scores: they were turned to probabilities that add up to 1 (softmax)")
    if count != values.size:
        raise ModelError(f"The bundle {run.spec.title!r} names {count} classes and gives {values.size} scores.")
    return SliceScores(values, np.zeros(1, np.int64), values[np.newaxis], np.ones(1))


def boxes(result: Any, handed: Handed, image: Any, run: Run, threshold: float) -> Found:
    """Boxes on the scan's voxels, out of corners (x, y, z, x, y, z) in the prepared image."""
    if not isinstance(result, dict) or not {"box", "label", "label_scores"} <= result.keys():
        raise ModelError(f"The bundle {run.spec.title!r} gives no boxes.")
    corners, kinds, points = (
        np.asarray(torch.as_tensor(result[key]).cpu(), dtype=np.float64) for key in ("box", "label", "label_scores")
    )
    kept = points >= threshold
    corners, kinds, points = corners[kept].reshape(-1, 6), kinds[kept], points[kept]
    affine = np.asarray(image.affine.cpu()) if isinstance(image, MetaTensor) else handed.affine
    to_scan = np.linalg.inv(handed.affine) @ affine
    eight = np.stack([corners[:, [x, y, z]] for x in (0, 3) for y in (1, 4) for z in (2, 5)], axis=1).reshape(-1, 3)
    index = handed.index_back(eight @ to_scan[:3, :3].T + to_scan[:3, 3]).reshape(-1, 8, 3)
    low, high = index.min(axis=1), index.max(axis=1)
    names = {label.value: label.name for label in run.spec.gives.labels}
    return Found(
        centres=(low + high) / 2,
        sizes=high - low,
        labels=[names.get(int(kind), f"object {int(kind) + 1}") for kind in kinds],
        scores=points,
    )


def _noted(array: NDArray[Any], note: str, run: Run) -> NDArray[Any]:
    if note:
        run.note(note)
    return array

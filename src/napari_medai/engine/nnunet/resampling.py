"""nnU-Net's ways to bring an image, a network's output or labels to another spacing.

Scans with thick slices are resampled in plane by splines and across by the nearest plane ("separate z"), because
splines across thick slices ring (Isensee et al., nnU-Net, Nature Methods 18, 2021). scipy does the resizing, as in
scikit-image, by which nnU-Net resizes, so that numbers agree to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates, zoom

from napari_medai.engine.slabs import How
from napari_medai.models.nnunet_stage import Resampling

Spacing = Sequence[float]
# torch's names of modes -> this package's
_MODES: dict[str, How] = {"linear": "sampled", "bilinear": "sampled", "nearest-exact": "nearest"}


def new_shape(shape: Sequence[int], spacing: Spacing, wanted: Spacing) -> tuple[int, ...]:
    """The shape at another spacing, rounded to whole voxels (halves to even)."""
    return tuple(round(old / new * count) for old, new, count in zip(spacing, wanted, shape, strict=True))


def separate_axis(spacing: Spacing, wanted: Spacing, how: Resampling) -> int | None:
    """The axis across thick slices that is resampled on its own; None if all axes go together.

    Parameters
    ----------
    spacing, wanted : sequence of 3 floats
        Before and after.
    how : Resampling
        ``separate_z`` and ``threshold``.
    """

    def thick(values: Spacing) -> bool:
        return max(values) / min(values) > how.threshold

    if how.separate_z is not None:
        judged = spacing if how.separate_z else None
    else:
        judged = spacing if thick(spacing) else wanted if thick(wanted) else None
    if judged is None:
        return None
    largest = [axis for axis, value in enumerate(judged) if max(judged) / value == 1]
    # two or three equally large spacings have no axis across
    return largest[0] if len(largest) == 1 else None


def streamed(
    old: Sequence[int], shape: Sequence[int], spacing: Spacing, wanted: Spacing, how: Resampling
) -> tuple[How, How, How] | None:
    """How each axis is resampled by `napari_medai.engine.slabs`; None where that takes the whole array.

    Parameters
    ----------
    old, shape : sequence of 3 ints
        Shape before and after.
    spacing, wanted, how
        As `resample`.
    """
    if how.method == "none" or tuple(old) == tuple(shape):
        return ("sampled",) * 3
    axis = separate_axis(spacing, wanted, how)
    plane, across = "linear", "linear"
    if how.method == "torch" and axis is not None:
        plane, across = how.in_plane, how.across
    elif how.method == "spline":
        if how.order != 1 or (axis is not None and how.order_z > 1):
            return None
        across = "linear" if how.order_z else "nearest-exact"
    first, second, third = (_MODES.get(across if n == axis else plane) for n in range(3))
    return (first, second, third) if first and second and third else None


def resample(
    channel: NDArray[Any], shape: Sequence[int], spacing: Spacing, wanted: Spacing, how: Resampling
) -> NDArray[Any]:
    """One 3-D channel at another shape.

    Parameters
    ----------
    channel : (k, j, i) array
        Values, or labels if ``how.labels``.
    shape : sequence of 3 ints
        Of the result.
    spacing, wanted : sequence of 3 floats
        Spacing before and after; it only decides whether slices count as thick.
    how : Resampling
        The plan's choice.

    Returns
    -------
    (\\*shape) array
        The channel itself if nothing changes; else of its type, for values by ``"torch"`` float32.
    """
    shape = tuple(int(n) for n in shape)
    if how.method == "none" or channel.shape == shape:
        return channel
    axis = separate_axis(spacing, wanted, how)
    if how.method == "torch":
        return _by_torch(channel, shape, axis, how)
    # half precision is none of scipy's types; what is single to begin with loses nothing
    values = channel.astype(np.float32 if channel.dtype.itemsize <= 2 else channel.dtype, copy=False)
    if axis is None:
        return _resize(values, shape, how, values.dtype).astype(channel.dtype, copy=False)
    between = tuple(n if a != axis else values.shape[axis] for a, n in enumerate(shape))
    kind = values.dtype if how.order_z == 0 else np.dtype(float)  # planes that are only chosen from may be rounded
    planes = np.zeros(between, dtype=kind)
    flat = tuple(n for a, n in enumerate(shape) if a != axis)
    for k in range(values.shape[axis]):
        where = (slice(None),) * axis + (k,)
        planes[where] = _resize(values[where], flat, how, kind)
    out: NDArray[Any] = _across(planes, shape, axis, how).astype(channel.dtype, copy=False)
    return out


def _resize(values: NDArray[Any], shape: tuple[int, ...], how: Resampling, kind: np.dtype[Any]) -> NDArray[Any]:
    """Values at another shape, as ``kind``; labels one by one."""
    if not how.labels or how.order == 0:
        return _stretch(values, shape, how.order, kind)
    return _largest(
        values, shape, lambda mask: _stretch(mask, shape, how.order, np.dtype(float)),
        lambda: _stretch(values, shape, 0, kind),
    )  # fmt: skip


def _stretch(values: NDArray[Any], shape: tuple[int, ...], order: int, kind: np.dtype[Any]) -> NDArray[Any]:
    """What scikit-image's ``resize(values, shape, order, mode="edge", anti_aliasing=False)`` gives, as ``kind``.

    Computed in double precision by the same function of scipy, without copies of everything in double precision.
    """
    factors = [1 / f for f in np.divide(values.shape, shape)]
    out: NDArray[Any] = zoom(values, factors, output=kind, order=order, mode="nearest", grid_mode=True)
    return np.clip(out, values.min(), values.max(), out=out)


def _largest(
    values: NDArray[Any],
    shape: tuple[int, ...],
    score: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    nearest: Callable[[], NDArray[Any]],
) -> NDArray[Any]:
    """The label that scores most at each voxel; of equal ones the nearest neighbour's, else the smallest.

    As batchgenerators 0.25.5, by which nnU-Net resizes labels, decides.
    """
    present = np.unique(values)
    if len(present) == 1:
        return np.full(shape, present[0], dtype=values.dtype)
    neighbour = nearest()
    best, winner = np.full(shape, -1.0), np.full(shape, present[0], dtype=values.dtype)
    neighbours_score = np.full(shape, -1.0)
    for label in present:
        scores = score((values == label).astype(float))
        better = scores > best
        winner[better] = label
        np.maximum(best, scores, out=best)
        own = neighbour == label
        neighbours_score[own] = scores[own]
    level = (neighbours_score == best) & (best > 0)
    winner[level] = neighbour[level]
    return winner


def _across(planes: NDArray[Any], shape: tuple[int, ...], axis: int, how: Resampling) -> NDArray[Any]:
    """Planes at other places across: the nearest, or by splines of ``order_z``."""
    count = planes.shape[axis]
    if count == shape[axis]:
        return planes
    places = count / shape[axis] * (np.arange(shape[axis]) + 0.5) - 0.5
    if how.order_z == 0:
        index = np.floor(np.clip(places, 0, count - 1) + 0.5).astype(int)
        nearest: NDArray[Any] = np.take(planes, index, axis=axis)
        return nearest
    grid = np.array(
        np.meshgrid(*(places if a == axis else np.arange(n) for a, n in enumerate(shape)), indexing="ij"), dtype=float
    )
    if not how.labels:
        out: NDArray[np.float64] = map_coordinates(planes, grid, order=how.order_z, mode="nearest")
        return out
    result = np.zeros(shape)
    for label in np.unique(planes):
        mask = map_coordinates((planes == label).astype(float), grid, order=how.order_z, mode="nearest")
        result[np.round(mask) > 0.5] = label
    return result


def _by_torch(channel: NDArray[Any], shape: tuple[int, ...], axis: int | None, how: Resampling) -> NDArray[Any]:
    """nnU-Net's resampling by torch: linear, or linear in plane and nearest across."""
    tensor = torch.from_numpy(np.ascontiguousarray(channel))
    if axis is None:
        return np.asarray(_interpolate(tensor[None], shape, "linear", how)[0].numpy())
    planes = tensor.movedim(axis, 0)
    flat = tuple(n for a, n in enumerate(shape) if a != axis)
    planes = _interpolate(planes, flat, how.in_plane, how)
    return np.asarray(_interpolate(planes.movedim(0, axis)[None], shape, how.across, how)[0].numpy())


def _interpolate(images: torch.Tensor, shape: tuple[int, ...], mode: str, how: Resampling) -> torch.Tensor:
    """(n, \\*spatial) at another shape; 2 or 3 spatial axes."""
    if images.shape[1:] == shape:
        return images
    if mode == "linear":
        mode = "trilinear" if len(shape) == 3 else "bilinear"

    def stretch(values: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.interpolate(values[None].float(), shape, mode=mode)[0]

    if not how.labels:
        return stretch(images)
    present = torch.unique(images)
    kind = torch.int8 if int(present.max()) < 127 else torch.int16
    result = torch.zeros((len(images), *shape), dtype=kind)
    if how.lean:
        for label in present:
            result[stretch(images == label) > 0.5] = int(label)
        return result
    # a thousandfold in half precision, as nnU-Net compares them
    scores = torch.stack([(stretch((images == label).float() * 1000)).half() for label in present])
    done = torch.zeros(result.shape, dtype=torch.bool)
    for label, score in zip(present, scores, strict=True):
        sure = score > 700
        result[sure] = int(label)
        done |= sure
    result[~done] = present[scores[:, ~done].argmax(0)].to(kind)
    return result

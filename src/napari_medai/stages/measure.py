"""Measurements of labelled objects: one row per label and frame."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_medai.core.result import Table, object_table
from napari_medai.core.volume import Volume

# Voxels that are read at once (labels and image), and of these looked at: what fits a cache, in a third of the time
_READ, _AT_ONCE = 2**24, 2**18


def measure(labels: Volume, image: Any, names: Mapping[int, str] | None = None, instances: bool = False) -> Table:
    """Measure every label; labels and image are read in parts, and may be lazy.

    Parameters
    ----------
    labels : Volume
        Integers; axes ``(t)(z)yx``.
    image : array
        The pixels measured, of the same shape: numpy, or anything that is cut like it.
    names : mapping of int to str
        Semantic names; the column ``label`` holds them where there are any, else the label's number.
    instances : bool
        Adds the extent of each object along every axis.

    Returns
    -------
    Table
        ``index, label, score, (z,) y, x, (z_mm,) y_mm, x_mm, (t,) count`` (voxels), ``volume_ml`` for 3-D in mm
        (``volume_um3`` in micrometres, ``volume_px`` without unit), ``area_mm2``, ``area_um2`` or ``area_px`` for
        2-D, and ``mean_intensity``. Centres are the mean of voxel centres.
    """
    names = names or {}
    series = "t" in labels.axes
    ndim, grid = labels.ndim_spatial, labels.grid
    rows: list[_Objects] = []
    for t in range(labels.size("t")):
        mask, pixels = (labels.array[t], image[t]) if series else (labels.array, image)
        rows.append(_measured(mask, pixels, instances))
    value = np.concatenate([row.values for row in rows])
    pad = 3 - ndim
    centres = np.pad(np.concatenate([row.centres for row in rows]), ((0, 0), (pad, 0)))
    sizes = np.pad(np.concatenate([row.extents for row in rows]), ((0, 0), (pad, 0)), constant_values=1.0)
    label = np.array([names.get(n, n) for n in value.tolist()], dtype=object if names else int)
    count = np.concatenate([row.counts for row in rows])
    frame = np.repeat(np.arange(len(rows)), [len(row.values) for row in rows])
    extra: Table = {"t": frame} if series else {}
    extra["count"] = count
    if ndim == 3:
        name, factor = {"mm": ("volume_ml", 1e-3), "um": ("volume_um3", 1.0), "pixel": ("volume_px", 1.0)}[grid.units]
        extra[name] = count * grid.voxel_volume * factor
    else:
        unit = {"mm": "area_mm2", "um": "area_um2", "pixel": "area_px"}[grid.units]
        extra[unit] = count * grid.spacing[1] * grid.spacing[2]
    extra["mean_intensity"] = np.concatenate([row.means for row in rows])
    return object_table(grid, ndim, centres, label, None, sizes if instances else None, extra)


@dataclass(frozen=True, eq=False)
class _Objects:
    """The labels of one frame: values (n,), counts (n,), centres and extents (n, ndim) in voxels, means (n,)."""

    values: NDArray[np.int64]
    counts: NDArray[np.int64]
    centres: NDArray[np.float64]
    extents: NDArray[np.float64]
    means: NDArray[np.float64]


def _measured(labels: Any, image: Any, extents: bool) -> _Objects:
    """Sums over labels, read in parts along the first axis: only what is labelled is looked at."""
    ndim = len(labels.shape)
    voxels = int(np.prod(labels.shape[1:], dtype=np.int64))
    depth = max(1, _READ // max(1, voxels))
    chunks = getattr(labels, "chunks", None)
    if chunks:  # whole chunks, or some would be decoded twice
        depth = max(depth // max(chunks[0]), 1) * max(chunks[0])
    sums = np.zeros((0, ndim + 2))
    low, high = np.zeros((0, ndim), np.int64), np.zeros((0, ndim), np.int64)
    for start in range(0, labels.shape[0], depth):
        part = np.ascontiguousarray(labels[start : start + depth]).ravel()
        if not part.any():
            continue
        pixels = np.ascontiguousarray(image[start : start + depth]).ravel()
        shape = (len(part) // voxels, *labels.shape[1:])
        for first in range(0, len(part), _AT_ONCE):
            at = first + np.flatnonzero(part[first : first + _AT_ONCE] > 0)
            if not len(at):
                continue
            value = part[at].astype(np.int64)
            lowest, highest = int(value.min()), int(value.max()) + 1
            if highest > len(sums):
                grown = max(highest, 2 * len(sums))
                sums = _grown(sums, grown, 0)
                low, high = _grown(low, grown, np.iinfo(np.int64).max), _grown(high, grown, -1)
            near = value - lowest
            sums[lowest:highest, 0] += np.bincount(near)
            sums[lowest:highest, 1] += np.bincount(near, pixels[at].astype(np.float64))
            for axis, index in enumerate(np.unravel_index(at, shape)):
                place = index + start if axis == 0 else index
                sums[lowest:highest, 2 + axis] += np.bincount(near, place)
                if extents:
                    np.minimum.at(low[:, axis], value, place)
                    np.maximum.at(high[:, axis], value, place)
    values = np.flatnonzero(sums[:, 0])
    count = sums[values, 0]
    return _Objects(
        values,
        count.astype(np.int64),
        sums[values, 2:] / count[:, None],
        (high[values] - low[values] + 1).astype(np.float64),
        sums[values, 1] / count,
    )


def _grown(array: NDArray[Any], length: int, value: float) -> NDArray[Any]:
    """With more rows, filled with a value."""
    return np.concatenate([array, np.full((length - len(array), *array.shape[1:]), value, array.dtype)])

"""Measurements of labelled objects: one row per label and frame."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_medai.core.result import Table, object_table
from napari_medai.core.volume import Volume


def measure(
    labels: Volume, image: NDArray[Any], names: Mapping[int, str] | None = None, instances: bool = False
) -> Table:
    """Measure every label.

    Parameters
    ----------
    labels : Volume
        Integers; axes ``(t)(z)yx``.
    image : array
        The pixels measured, of the same shape.
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
    from scipy import ndimage  # on first use: 0.2 s that the list of stages does not need

    series = "t" in labels.axes
    stack_of_labels = labels.numpy() if series else labels.numpy()[np.newaxis]
    stack_of_images = image if series else image[np.newaxis]
    ndim, grid = labels.ndim_spatial, labels.grid
    rows: list[tuple[int, int, int, NDArray[np.float64], NDArray[np.float64], float]] = []
    for t, (mask, pixels) in enumerate(zip(stack_of_labels, stack_of_images, strict=True)):
        for value, box in enumerate(ndimage.find_objects(mask.astype(np.int32, copy=False)), 1):
            if box is None:
                continue
            inside = mask[box] == value
            where = np.nonzero(inside)
            centre = np.array([w.mean() + b.start for w, b in zip(where, box, strict=True)])
            extent = np.array([b.stop - b.start for b in box], dtype=float)
            mean = float(pixels[box][inside].mean(dtype=np.float64))
            rows.append((t, value, int(inside.sum()), centre, extent, mean))
    pad = 3 - ndim
    centres = np.array([np.r_[np.zeros(pad), row[3]] for row in rows]).reshape(-1, 3)
    sizes = np.array([np.r_[np.ones(pad), row[4]] for row in rows]).reshape(-1, 3)
    label = np.array([names.get(row[1], row[1]) for row in rows], dtype=object if names else int)
    count = np.array([row[2] for row in rows], dtype=int)
    extra: Table = {"t": np.array([row[0] for row in rows], dtype=int)} if series else {}
    extra["count"] = count
    if ndim == 3:
        name, factor = {"mm": ("volume_ml", 1e-3), "um": ("volume_um3", 1.0), "pixel": ("volume_px", 1.0)}[grid.units]
        extra[name] = count * grid.voxel_volume * factor
    else:
        unit = {"mm": "area_mm2", "um": "area_um2", "pixel": "area_px"}[grid.units]
        extra[unit] = count * grid.spacing[1] * grid.spacing[2]
    extra["mean_intensity"] = np.array([row[5] for row in rows], dtype=float)
    return object_table(grid, ndim, centres, label, None, sizes if instances else None, extra)

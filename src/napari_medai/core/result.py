"""What stages give back. Each result knows the grid it lives on and how it was made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_medai.core.errors import InputError
from napari_medai.core.geometry import Grid, index_to_world
from napari_medai.core.provenance import Provenance
from napari_medai.core.volume import Volume

# One row per object; every column has the same length.
Table = dict[str, NDArray[Any]]
Color = tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class Denoised:
    """A cleaned image on the grid of its input.

    Attributes
    ----------
    image : Volume
        Same axes, shape, affine and value scale as the input; float32.
    """

    image: Volume
    provenance: Provenance

    @property
    def grid(self) -> Grid:
        """Where the pixels lie."""
        return self.image.grid


@dataclass(frozen=True, eq=False)
class Mask:
    """Labels on the grid of the scan.

    Attributes
    ----------
    labels : Volume
        Integers, 0 is background; the input's axes without ``c`` and ``s``.
    names : mapping of int to str
        What each label value is called; empty for instances, whose names are their numbers.
    colors : mapping of int to (r, g, b)
        Colours in 0..1; empty lets the viewer choose.
    table : Table
        One row per label: ``index, label, score, z, y, x, z_mm …, count, volume_ml`` or
        ``area_um2, mean_intensity``.
    """

    labels: Volume
    provenance: Provenance
    names: Mapping[int, str] = field(default_factory=dict)
    colors: Mapping[int, Color] = field(default_factory=dict)
    table: Table = field(default_factory=dict)

    @property
    def grid(self) -> Grid:
        """Where the labels lie."""
        return self.labels.grid


@dataclass(frozen=True, eq=False)
class Scores:
    """Class probabilities of an image and of its slices.

    Attributes
    ----------
    classes : tuple of str
        Names of the classes.
    probabilities : (classes,) float array
        Of the whole image.
    slice_index : (n,) int array
        Which slices along z the network looked at.
    slice_probabilities : (n, classes) float array
        Of each slice alone.
    attention : (n,) float array
        Weight of each slice in the decision; sums to 1.
    thresholds : (classes,) float array
        Above it a class is called present; chosen on validation data.
    grid : Grid
        Of the image that was classified.
    """

    classes: tuple[str, ...]
    probabilities: NDArray[np.float64]
    slice_index: NDArray[np.int64]
    slice_probabilities: NDArray[np.float64]
    attention: NDArray[np.float64]
    thresholds: NDArray[np.float64]
    grid: Grid
    provenance: Provenance

    @property
    def present(self) -> tuple[str, ...]:
        """Names of the classes above their thresholds, most probable first."""
        above = [n for n in np.argsort(-self.probabilities) if self.probabilities[n] >= self.thresholds[n]]
        return tuple(self.classes[n] for n in above)

    def as_dict(self) -> dict[str, Any]:
        """``{"model", "scores": {class: p}, "present", "slices": [{"index", "attention", "scores"}]}``."""
        return {
            "model": self.provenance.model,
            "scores": {c: float(p) for c, p in zip(self.classes, self.probabilities, strict=True)},
            "present": list(self.present),
            "slices": [
                {
                    "index": int(index),
                    "attention": float(weight),
                    "scores": {c: float(p) for c, p in zip(self.classes, row, strict=True)},
                }
                for index, weight, row in zip(self.slice_index, self.attention, self.slice_probabilities, strict=True)
            ],
        }


@dataclass(frozen=True, eq=False)
class Boxes:
    """Detected objects: centres and sizes.

    Attributes
    ----------
    centres : (n, 3) float array
        Index coordinates (k, j, i) on ``grid``; k is 0 in a 2-D image.
    sizes : (n, 3) float array
        Extent along each array axis in voxels (the diameter of a blob); 1 along the missing axis of 2-D.
    labels : tuple of str
        Kind of each object.
    scores : (n,) float array
        Confidence in 0..1.
    ndim : int
        2 or 3.
    """

    centres: NDArray[np.float64]
    sizes: NDArray[np.float64]
    labels: tuple[str, ...]
    scores: NDArray[np.float64]
    ndim: int
    grid: Grid
    provenance: Provenance

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def table(self) -> Table:
        """One row per object: index, label, score, centre in voxels and world, size per axis."""
        return object_table(
            self.grid, self.ndim, self.centres, np.array(self.labels, dtype=object), self.scores, self.sizes
        )


@dataclass(frozen=True, eq=False)
class Heatmap:
    """Where a network looked, on the grid of the scan.

    Attributes
    ----------
    heat : Volume
        float32 in 0..1, the input's spatial axes.
    target : str
        The class that is explained.
    method : str
        ``"gradcam++"``, ``"occlusion"`` or ``"attention"``.
    """

    heat: Volume
    target: str
    method: str
    provenance: Provenance

    @property
    def grid(self) -> Grid:
        """Where the heat lies."""
        return self.heat.grid


Result = Denoised | Mask | Scores | Boxes | Heatmap


def object_table(
    grid: Grid,
    ndim: int,
    centres: NDArray[np.float64],
    labels: NDArray[Any],
    scores: NDArray[np.float64] | None = None,
    sizes: NDArray[np.float64] | None = None,
    extra: Mapping[str, NDArray[Any]] | None = None,
) -> Table:
    """The columns that every table of objects shares.

    Parameters
    ----------
    grid : Grid
        Where the objects lie.
    ndim : int
        2 leaves the z columns out.
    centres : (n, 3) array
        Index coordinates (k, j, i).
    labels : (n,) array
        Label number or name.
    scores : (n,) array, optional
        Confidence; the column is 1 where a stage has none.
    sizes : (n, 3) array, optional
        Extent in voxels; the columns ``size_z_mm`` … are in world units.
    extra : mapping, optional
        Columns of the stage's own, appended.

    Returns
    -------
    Table
        ``index, label, score, (z,) y, x, (z_mm,) y_mm, x_mm, …``; ``mm`` is the grid's unit.
    """
    if len(centres) != len(labels):
        raise InputError(f"{len(centres)} centres and {len(labels)} labels do not make a table.")
    centres = np.asarray(centres, dtype=float).reshape(-1, 3)
    world = index_to_world(grid.affine, centres)
    axes = list(enumerate("zyx"))[3 - ndim :]
    unit = "px" if grid.units == "pixel" else grid.units
    table: Table = {
        "index": np.arange(len(labels)),
        "label": np.asarray(labels),
        "score": np.ones(len(labels)) if scores is None else np.asarray(scores, dtype=float),
    }
    table |= {name: centres[:, n] for n, name in axes}
    table |= {f"{name}_{unit}": world[:, n] for n, name in axes}
    if sizes is not None:
        step = np.asarray(grid.spacing)
        table |= {f"size_{name}_{unit}": np.asarray(sizes)[:, n] * step[n] for n, name in axes}
    return table | dict(extra or {})


def named(names: Sequence[str], start: int = 1) -> dict[int, str]:
    """Label names from a list, numbered from ``start``."""
    return dict(enumerate(names, start))

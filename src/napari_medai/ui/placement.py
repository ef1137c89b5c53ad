"""Where a layer lies: between napari's transforms and places in the patient.

Three coordinates meet here. *Index* counts voxels. *Displayed* is napari's world while it shows slices: what the
layer's scale, translate and affine lead to. *World* is the patient (or the microscope's stage), as in
`napari_medai.core.geometry`. napari slices along its own axes only, so the first scan of a space lends the display its
axes: it is displayed without its rotation, and scans that are tilted against it through views that are parallel to
them (`napari_medai.ui.reslicing`). The map from displayed to world travels in each layer's metadata, and whatever is
painted or found goes back through it. While napari renders in 3-D its world is the patient's own (`SOLID_KEY`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from napari_medai.core.geometry import Affine, Grid, directions, index_to_world, spacing, without_rotation
from napari_medai.core.volume import KNOWN_AXES, SPATIAL_AXES, Volume

METADATA_KEY = "medai"
# Layers that are in the patient's world for the time being carry the way from the display to it under this key.
SOLID_KEY = "medai 3-D"
# Off-diagonal terms below this share of the spacing are rounding or a tilt of 0.06 degrees: shown straight.
_STRAIGHT = 1e-3
# A scan is shown straight where no corner then lies further from its place than this share of a voxel.
_TURNED_VOXELS = 0.25
# Axes whose cosine is below this stand upright on each other: direction cosines have six digits in many files.
_UPRIGHT = 1e-4


def display_frame(volume: Volume) -> Affine:
    """Displayed -> world of a volume that is shown by itself: its own axes become the display's.

    The volume's centre stays in place. A sheared volume (a tilted gantry) lends the plane of the two axes that
    stand most upright on each other, and the normal of that plane.
    """
    directed = directions(volume.affine)
    first, second = min(((1, 2), (0, 1), (0, 2)), key=lambda pair: abs(directed[:, pair[0]] @ directed[:, pair[1]]))
    third = 3 - first - second
    axes = directed.copy()
    axes[:, second] -= axes[:, first] * (axes[:, first] @ axes[:, second])
    axes[:, second] /= np.linalg.norm(axes[:, second])
    normal = np.cross(axes[:, first], axes[:, second])
    axes[:, third] = normal * np.sign(normal @ directed[:, third])
    frame = np.eye(4)
    frame[:3, :3] = axes
    centre = index_to_world(volume.affine, (np.asarray(volume.grid.shape) - 1) / 2)
    frame[:3, 3] = centre - axes @ centre
    return frame


def is_sheared(affine: Affine) -> bool:
    """Whether the array's axes are not at right angles."""
    directed = directions(affine)
    return bool(np.abs(directed.T @ directed - np.eye(3)).max() > _UPRIGHT)


def display_affine(volume: Volume) -> Affine:
    """Index (k, j, i) -> displayed, for a volume that is shown by itself.

    A volume is shown on `without_rotation` of its affine, a sheared one in its `display_frame`. A 2-D image is
    shown in its own plane: displayed (y, x) are millimetres along its columns and rows from the world's origin, so
    that parallel slices fall on each other and axial ones fall on axial volumes.
    """
    if "z" in volume.axes:
        if is_sheared(volume.affine):
            return np.asarray(np.linalg.solve(display_frame(volume), volume.affine))
        return without_rotation(volume.affine, volume.grid.shape)
    straight = np.diag([*spacing(volume.affine), 1.0])
    straight[:3, 3] = np.linalg.solve(directions(volume.affine), volume.affine[:3, 3])
    straight[0] = (1, 0, 0, 0)  # a 2-D layer keeps nothing along z
    return straight


def straightened(through: Affine, shape: tuple[int, int, int]) -> Affine | None:
    """Index -> displayed without the rest of a rotation or shear; None where voxels would leave their places.

    Parameters
    ----------
    through : (4, 4) array
        Index -> displayed, of axes in the display's order.
    shape : tuple of 3 ints
        Size along z, y, x.
    """
    straight = without_rotation(through, shape)
    away = Grid(shape, straight).corners() - Grid(shape, through).corners()
    near = np.abs(away).max(axis=0) <= _TURNED_VOXELS * np.diag(straight)[:3]
    return straight if near.all() else None


def is_straight(affine: Affine) -> bool:
    """Whether an affine only scales (by positive factors) and shifts."""
    matrix = affine[:3, :3]
    diagonal = np.diag(matrix)
    off = np.abs(matrix - np.diag(diagonal))
    return bool((diagonal > 0).all() and (off <= _STRAIGHT * diagonal).all())


def placing(affine: Affine, axes: str, units: str) -> dict[str, Any]:
    """The keyword arguments that put a layer in its place.

    Parameters
    ----------
    affine : (4, 4) array
        Index (k, j, i) -> displayed.
    axes : str
        Of the array; ``s`` counts as no axis of a layer.
    units : {"mm", "um", "pixel"}
        Of the spatial axes; the others have none and count in ``"pixel"``.

    Returns
    -------
    dict
        ``scale``, ``translate``, ``units``, ``axis_labels``, and ``affine`` in place of the first two where
        the layer is turned or mirrored.
    """
    labels = tuple(axes.removesuffix("s"))
    n = sum(a in SPATIAL_AXES for a in labels)
    lead = len(labels) - n
    keywords: dict[str, Any] = {"units": ("pixel",) * lead + (units,) * n, "axis_labels": labels}
    shift = affine[3 - n : 3, 3]
    if is_straight(affine):
        return keywords | {
            "scale": (1.0,) * lead + tuple(float(affine[a, a]) for a in range(3 - n, 3)),
            "translate": (0.0,) * lead + tuple(map(float, shift)),
        }
    whole = np.eye(len(labels) + 1)
    whole[lead:-1, lead:-1] = affine[3 - n : 3, 3 - n : 3]
    whole[lead:-1, -1] = shift
    return keywords | {"affine": whole}


def spatial_ndim(layer: Any) -> int:
    """2 or 3: how many spatial axes an image or labels layer has, by its axis labels or else its size."""
    labels = named_axes(layer)
    return sum(a in SPATIAL_AXES for a in labels) if labels else min(3, max(2, layer.ndim))


def named_axes(layer: Any) -> str:
    """The layer's axes as letters, without ``s``; empty where its axis labels are not ours."""
    labels = [str(a) for a in layer.axis_labels]
    axes = "".join(labels)
    known = all(a in KNOWN_AXES[:-1] for a in labels) and len(set(labels)) == len(labels)
    return axes if known and axes.endswith(("zyx", "yx")) and axes.count("z") == int(axes.endswith("zyx")) else ""


def layer_affine(layer: Any, ndim: int = 0) -> Affine:
    """Index (k, j, i) -> displayed, read from a layer's transforms, in 3-D rendering too.

    Parameters
    ----------
    layer : napari Layer
        Its last two or three axes are spatial.
    ndim : int
        How many; 0 asks `spatial_ndim`.
    """
    n = ndim or spatial_ndim(layer)
    origin = np.asarray(layer.data_to_world(np.zeros(layer.ndim)), dtype=float)
    affine = np.eye(4)
    for axis in range(n):
        step = np.zeros(layer.ndim)
        step[layer.ndim - n + axis] = 1.0
        end = np.asarray(layer.data_to_world(step), dtype=float)
        affine[3 - n : 3, 3 - n + axis] = (end - origin)[layer.ndim - n :]
    affine[3 - n : 3, 3] = origin[layer.ndim - n :]
    solid = layer.metadata.get(SOLID_KEY)
    return affine if solid is None else np.asarray(np.linalg.solve(solid.to_world, affine))


def embedded(affine: Affine, ndim: int, spatial: int = 3) -> Affine:
    """An affine of z, y, x as one of a layer's axes, the last of which are spatial; the others stay."""
    n = min(spatial, ndim)
    whole = np.eye(ndim + 1)
    whole[ndim - n : -1, ndim - n : -1] = affine[3 - n : 3, 3 - n : 3]
    whole[ndim - n : -1, -1] = affine[3 - n : 3, 3]
    return whole


def moved_by_hand(layer: Any) -> Affine:
    """Displayed -> displayed: where a view of a scan was moved since it was made; else the identity."""
    known = record(layer)
    if "view" not in known:
        return np.eye(4)
    made = known["volume"].affine if SOLID_KEY in layer.metadata else known["to_world"] @ known["view"]
    moved = layer_affine(layer, 3) @ np.linalg.inv(np.linalg.solve(known["to_world"], made))
    return np.eye(4) if np.allclose(moved, np.eye(4), atol=1e-6) else np.asarray(moved)


def layer_units(layer: Any, ndim: int) -> tuple[str, tuple[float, ...]]:
    """The unit of a layer's spatial axes, and the factors that bring its displayed coordinates to it.

    Returns
    -------
    unit : {"mm", "um", "pixel"}
        Lengths of a micrometre and less are given in micrometres, longer ones in millimetres; ``"pixel"`` where
        some axis has no length.
    factors : tuple of 3 floats
        For z, y, x.
    """
    units = layer.units[-ndim:]
    if not all(dict(unit.dimensionality) == {"[length]": 1} for unit in units):
        return "pixel", (1.0, 1.0, 1.0)
    metres = [float((1 * unit).to("meter").magnitude) for unit in units]
    name, size = ("um", 1e-6) if max(metres) <= 1e-6 * 1.001 else ("mm", 1e-3)
    return name, (1.0,) * (3 - ndim) + tuple(round(m / size, 12) for m in metres)


def record(layer: Any) -> Mapping[str, Any]:
    """What we wrote into a layer's metadata; empty for layers that are not ours."""
    found = layer.metadata.get(METADATA_KEY)
    return found if isinstance(found, Mapping) else {}

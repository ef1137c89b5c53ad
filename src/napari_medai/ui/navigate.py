"""Move the viewer to a place in an image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from napari_medai.core.geometry import Affine, index_to_world, world_to_index
from napari_medai.ui.placement import SOLID_KEY, moved_by_hand, record

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Layer


def go_to(viewer: ViewerModel, layer: Layer, axes: str, place: Mapping[str, float], centre: bool = True) -> None:
    """Show a place: sliders to its slice, camera over it, zoom as it is.

    Parameters
    ----------
    viewer : napari Viewer
        The viewer to move.
    layer : napari Layer
        The image the place belongs to; it may have left the viewer.
    axes : str
        Names of the layer's array axes, e.g. ``"tzyx"``; colour samples (``s``) are no axis of a layer.
    place : mapping of str to float
        Index along some of the axes; along the others the viewer stays where it is.
    centre : bool
        Whether the camera moves too. Default True.
    """
    axes = axes.replace("s", "")[-layer.ndim :]
    factors = _to_viewer_units(viewer, layer)
    offset = viewer.dims.ndim - layer.ndim
    here = np.asarray(viewer.dims.point, dtype=float)[-layer.ndim :]
    if offset < 0:  # a layer that left may have had more axes than all that are still there
        here = np.r_[np.zeros(-offset), here]
    index = _index(layer, here / factors)
    for n, axis in enumerate(axes):
        index[n] = place.get(axis, index[n])
    world = _world(layer, index) * factors
    moved = [n for n, axis in enumerate(axes) if axis in place and n + offset >= 0]
    viewer.dims.set_point([n + offset for n in moved], [float(world[n]) for n in moved])
    if centre:
        shown = [world[d - offset] if d >= offset else 0.0 for d in viewer.dims.displayed]
        viewer.scene.camera.center = (0.0,) * (3 - len(shown)) + tuple(float(w) for w in shown)


def current_index(viewer: ViewerModel, layer: Layer, axes: str, axis: str) -> int:
    """The index along one axis of the layer that the sliders of the viewer point at."""
    axes = axes.replace("s", "")[-layer.ndim :]
    here = np.asarray(viewer.dims.point, dtype=float)[-layer.ndim :]
    here = np.r_[np.zeros(layer.ndim - len(here)), here]
    return int(np.round(_index(layer, here / _to_viewer_units(viewer, layer))[axes.index(axis)]))


def _world(layer: Layer, index: np.ndarray) -> np.ndarray:
    """The layer's world of an index of its scan, which a layer that shows a view does not have."""
    scan = _scan_of_view(layer)
    if scan is None:
        return np.asarray(layer.data_to_world(index), dtype=float)
    world = np.asarray(layer.data_to_world(np.r_[index[:-3], 0, 0, 0]), dtype=float)
    world[-3:] = index_to_world(scan, index[-3:])
    return world


def _index(layer: Layer, world: np.ndarray) -> np.ndarray:
    """The inverse of `_world`."""
    index = np.array(layer.world_to_data(world), dtype=float)
    scan = _scan_of_view(layer)
    if scan is not None:
        index[-3:] = world_to_index(scan, world[-3:])
    return index


def _scan_of_view(layer: Layer) -> Affine | None:
    """Index of the scan -> displayed, for a layer that shows it through a view now."""
    known = record(layer)
    if "view" not in known or SOLID_KEY in layer.metadata:
        return None
    return np.asarray(moved_by_hand(layer) @ np.linalg.solve(known["to_world"], known["volume"].affine))


def _to_viewer_units(viewer: ViewerModel, layer: Layer) -> np.ndarray:
    """World of the layer -> world of the viewer, which napari keeps in the smallest unit of all layers."""
    units = viewer.dims.units
    if units is None or len(units) < layer.ndim:
        return np.ones(layer.ndim)
    pairs = zip(layer.units, units[-layer.ndim :], strict=True)
    return np.array([(1 * a).to(b).magnitude if a.dimensionality == b.dimensionality else 1.0 for a, b in pairs])

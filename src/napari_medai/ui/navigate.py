"""Move the viewer to a place in an image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

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
    index = np.array(layer.world_to_data(here / factors), dtype=float)
    for n, axis in enumerate(axes):
        index[n] = place.get(axis, index[n])
    world = np.asarray(layer.data_to_world(index), dtype=float) * factors
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
    return int(np.round(layer.world_to_data(here / _to_viewer_units(viewer, layer))[axes.index(axis)]))


def _to_viewer_units(viewer: ViewerModel, layer: Layer) -> np.ndarray:
    """World of the layer -> world of the viewer, which napari keeps in the smallest unit of all layers."""
    units = viewer.dims.units
    if units is None or len(units) < layer.ndim:
        return np.ones(layer.ndim)
    pairs = zip(layer.units, units[-layer.ndim :], strict=True)
    return np.array([(1 * a).to(b).magnitude if a.dimensionality == b.dimensionality else 1.0 for a, b in pairs])

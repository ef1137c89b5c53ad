"""From slices to 3-D and back: layers leave the display's axes for the patient's own, and return.

Rendering in 3-D takes any affine, so that there every scan is shown as it was acquired: its own voxels, tilted or
sheared, in the patient's world. Slicing takes none but straight ones; see `napari_medai.ui.placement`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from napari_medai.core.geometry import Affine, Grid, index_to_world
from napari_medai.core.volume import Volume
from napari_medai.ui.placement import (
    SOLID_KEY,
    embedded,
    is_straight,
    layer_affine,
    moved_by_hand,
    record,
)
from napari_medai.ui.reslicing import PaintedView
from napari_medai.ui.scans import is_scan, layer_to_volume, place_of

# Further apart than this share of a voxel, an affine was changed while it was in 3-D.
_UNCHANGED = 1e-6


@dataclass(frozen=True, eq=False)
class Solid:
    """What a layer needs to return to the display.

    Attributes
    ----------
    to_world : (4, 4) array
        Displayed -> world.
    flat : dict
        Its data (of views only), scale, translate and affine before; empty if it was made in 3-D.
    made : array
        Its affine in 3-D; another one since then was set by hand.
    """

    to_world: Affine
    flat: dict[str, Any]
    made: Any


def make_solid(layers: Iterable[Any]) -> None:
    """Bring layers into the patient's world; those that are there or have nowhere to go stay as they are."""
    layers = list(layers)
    ways = [(layer, _way(layer, layers)) for layer in layers if SOLID_KEY not in layer.metadata]
    changes = []
    for layer, way in ways:
        if way is None or (np.allclose(way, np.eye(4), atol=1e-9) and "view" not in record(layer)):
            continue
        flat = {"scale": layer.scale, "translate": layer.translate, "affine": layer.affine.affine_matrix.copy()}
        known = record(layer)
        if "view" in known:
            flat["data"] = layer.data
            volume: Volume = known["volume"]
            true = embedded(way @ moved_by_hand(layer) @ np.linalg.solve(way, volume.affine), layer.ndim)
            data = layer.data.source if isinstance(layer.data, PaintedView) else volume.array
            whole = {"data": data, "scale": np.ones(layer.ndim), "translate": np.zeros(layer.ndim)}
            # a series keeps its steps in time
            lead = layer.ndim - 3
            whole["scale"][:lead], whole["translate"][:lead] = layer.scale[:lead], layer.translate[:lead]
            changes.append((layer, whole | {"affine": true}))
        else:
            changes.append((layer, {"affine": embedded(way, layer.ndim) @ flat["affine"]}))
        layer.metadata[SOLID_KEY] = Solid(way, flat, changes[-1][1]["affine"])
    _change(changes)


def adopt_solid(layer: Any, layers: Iterable[Any]) -> None:
    """Note where a layer belongs that was made in the patient's world, so that it can leave it."""
    way = _way(layer, [other for other in layers if other is not layer], in_world=True)
    if way is not None:
        layer.metadata[SOLID_KEY] = Solid(way, {}, None)


def make_flat(layers: Iterable[Any]) -> None:
    """Bring layers back to the display's axes; whatever was painted or moved meanwhile stays so."""
    changes = []
    for layer in layers:
        solid = layer.metadata.get(SOLID_KEY)
        if solid is None:
            continue
        now = layer.affine.affine_matrix
        back = embedded(np.linalg.inv(solid.to_world), layer.ndim)
        if solid.flat and np.allclose(now, solid.made, atol=_UNCHANGED):
            change = dict(solid.flat)
        elif "data" in solid.flat:
            moved = moved_by_hand(layer)
            change = dict(solid.flat)
            change["affine"] = embedded(moved, layer.ndim) @ change["affine"]
        else:
            change = {"affine": back @ now}
            change |= _within_reach(layer, solid.to_world, change["affine"])
        view = change.get("data")
        if isinstance(view, PaintedView) and layer.data is not view.source:  # a copy, or new labels
            change["data"] = view.onto(layer.data)
        changes.append((layer, change))
    for layer, _ in changes:
        del layer.metadata[SOLID_KEY]
    _change(changes)


def _within_reach(layer: Any, way: Affine, affine: Any) -> dict[str, Any]:
    """For a layer that was made in 3-D on a tilted scan: the same places on axes that can be sliced."""
    scale = np.eye(layer.ndim + 1)
    scale[:-1, :-1], scale[:-1, -1] = np.diag(layer.scale), layer.translate
    whole = affine @ scale
    spatial = np.eye(4)
    spatial[:3, :3], spatial[:3, 3] = whole[-4:-1, -4:-1], whole[-4:-1, -1]
    if is_straight(spatial):
        return {}
    if layer._type_string == "points":
        through = np.linalg.solve(scale, whole)
        return {"affine": np.eye(layer.ndim + 1), "data": layer.data @ through[:-1, :-1].T + through[:-1, -1]}
    if layer._type_string not in ("image", "labels") or layer.multiscale:
        return {}
    from napari_medai.ui.layers import volume_to_layer

    volume = layer_to_volume(layer, ()).replace(affine=way @ spatial, units="mm")
    data, keywords, _ = volume_to_layer(volume, to_world=way)
    layer.metadata.update(keywords["metadata"])
    plain = {"scale": np.ones(layer.ndim), "translate": np.zeros(layer.ndim), "affine": np.eye(layer.ndim + 1)}
    return plain | {name: keywords[name] for name in plain if name in keywords} | {"data": data}


def _change(changes: list[tuple[Any, dict[str, Any]]]) -> None:
    """Set the transforms and data of several layers at once: napari must see no layer half-way.

    napari slices all layers again as soon as the extent of one changes, and those still turned would be sliced
    along axes that they do not have.
    """
    for layer, change in changes:
        with layer._block_refresh(), layer.events.blocker_all():
            if "data" in change:
                layer.data = change["data"]
                if layer._type_string == "labels":
                    layer._reset_history()  # its steps are places in the other array
            for name in ("scale", "translate", "affine"):
                if name in change:
                    setattr(layer, name, change[name])
    for layer, _ in changes:
        layer._clear_extent()
    for layer, change in changes:
        for name in ("scale", "translate", "affine"):
            if name in change:
                layer.events[name]()


def _way(layer: Any, layers: list[Any], in_world: bool = False) -> Affine | None:
    """Displayed -> world of a layer: its own, or that of the scan it lies on; None where it has no depth."""
    known = record(layer)
    if layer.ndim < 3 or (is_scan(layer) and known["volume"].ndim_spatial < 3):
        return None
    if "to_world" in known:
        return np.asarray(known["to_world"])
    scans = [s for s in layers if is_scan(s) and record(s)["volume"].ndim_spatial == 3]
    if not scans:
        return None
    if not in_world:
        place = place_of(layer, scans, 3)
        return place.to_world if place.scan is not None else np.asarray(record(scans[0])["to_world"])
    low, high = (np.asarray(e)[-3:] for e in layer.extent.world)
    middle = (low + high) / 2
    grids = [layer_to_volume(s, ()).grid for s in scans]
    own = Grid(tuple(layer.data.shape[-3:]), layer_affine(layer, 3)) if hasattr(layer.data, "shape") else None
    same = [s for s, g in zip(scans, grids, strict=True) if own is not None and own.same_place(Grid(g.shape, g.affine))]
    near = sorted(
        range(len(scans)),
        key=lambda n: float(
            np.linalg.norm(index_to_world(grids[n].affine, (np.array(grids[n].shape) - 1) / 2) - middle)
        ),
    )
    return np.asarray(record(same[0] if same else scans[near[0]])["to_world"])

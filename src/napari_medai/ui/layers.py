"""Volumes and results as napari layers, each in its place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_medai.core.geometry import Affine, Grid, canonical_reorientation, index_to_world
from napari_medai.core.provenance import Provenance
from napari_medai.core.result import Boxes, Color, Denoised, Heatmap, Mask, Result, Scores
from napari_medai.core.volume import Volume
from napari_medai.ui.appearance import heat_colors, image_look, label_colors, label_features
from napari_medai.ui.placement import (
    METADATA_KEY,
    display_affine,
    is_straight,
    moved_by_hand,
    placing,
    record,
    straightened,
)
from napari_medai.ui.reslicing import PaintedView, view_of
from napari_medai.ui.scans import checksum, displayed_to_world, layer_to_volume, place_of

__all__ = ["LayerData", "layer_to_volume", "result_to_layers", "running_layer", "volume_to_layer", "volume_to_layers"]

# what napari's `Layer.create` takes: data, keyword arguments, kind of layer
LayerData = tuple[Any, dict[str, Any], str]

# More labels than these hide the image under them.
_MOST_TEXTS = 40


def volume_to_layer(
    volume: Volume,
    *,
    frame: Volume | Any = None,
    to_world: Affine | None = None,
    look: dict[str, Any] | None = None,
    live: bool = False,
) -> LayerData:
    """One layer that shows a volume; lazy pixels stay lazy.

    Parameters
    ----------
    volume : Volume
        Shown with its axes nearest to +z, +y, +x. Channels become a slider; see `volume_to_layers`.
    frame : Volume or napari Layer, optional
        A scan whose displayed geometry the layer follows, so that both lie on each other. Default: its own.
    to_world : (4, 4) array, optional
        The way from the display to the patient of another scan in the same space, to be shown beside: its axes
        are the display's. A volume that is tilted against them is seen through a lazy view. See `shared_space`.
    look : dict, optional
        Keyword arguments of the layer in place of those chosen here.
    live : bool
        Show labels as they are in ``volume``, also where they change; otherwise a copy, to be painted on.

    Returns
    -------
    tuple
        Data, keyword arguments and ``"image"``, or ``"labels"`` where ``meta["is_labels"]`` says so. The arguments
        hold ``units``, ``axis_labels`` and ``metadata["medai"]`` with the volume, its findings, and the way
        ``to_world`` from the display to the patient.
    """
    is_labels = bool(volume.meta.get("is_labels")) and volume.dtype.kind in "iub"
    if is_labels and not live:
        volume = volume.replace(array=_paintable(volume.array))
    shown = _shown(volume, frame, to_world)
    volume = shown.volume
    keywords: dict[str, Any] = {"name": volume.name, **placing(shown.displayed, volume.axes, volume.units)}
    keywords["metadata"] = _metadata(volume, shown.to_world, tuple(volume.meta.get("findings", ())))
    if shown.is_view:
        keywords["metadata"][METADATA_KEY]["view"] = shown.displayed
    levels = () if is_labels or shown.is_view else _levels(volume)
    if levels:
        keywords["multiscale"] = True
    if is_labels:
        names = dict(volume.meta.get("label_names", {}))
        features = label_features({}, names) if names else {}
        keywords |= {"features": features} if features else {}
        colors = volume.meta.get("label_colors")
        keywords |= {"colormap": label_colors(colors)} if colors else {}
    elif look is None:
        keywords |= image_look(volume.replace(array=levels[-1]) if levels else volume)
    return levels or shown.array, keywords | (look or {}), "labels" if is_labels else "image"


def volume_to_layers(volume: Volume, *, to_world: Affine | None = None) -> list[LayerData]:
    """The layers that show an opened image: one, or one for each channel or segment.

    Channels are shown one layer each, in colours that add up, because each has its own contrast and a stage
    works on one of them. Segments that overlap come as a series of labels and are shown one layer each too.
    ``to_world`` as in `volume_to_layer`.
    """
    if (volume.meta.get("axis_t") or {}).get("name") == "segment" and volume.meta.get("is_labels"):
        segments = [_segment(volume, n) for n in range(volume.size("t"))] if "t" in volume.axes else [volume]
        return [volume_to_layer(one, to_world=to_world) for one in segments]
    if "c" not in volume.axes:
        return [volume_to_layer(volume, to_world=to_world)]
    count = volume.size("c")
    channels = [_channel(volume, n) for n in range(count)]
    if count > 1:
        channels = [one.replace(name=f"{volume.name} c{n}") for n, one in enumerate(channels)]
    looks = [_channel_look(one, n, count) for n, one in enumerate(channels)]
    return [volume_to_layer(one, to_world=to_world, look=look) for one, look in zip(channels, looks, strict=True)]


def _channel(volume: Volume, n: int) -> Volume:
    """One channel, with the levels of its pyramid."""
    one, levels = volume.take("c", n), _levels(volume)
    if not levels:
        return one
    before = (slice(None),) * volume.axes.index("c")
    cut = tuple(level[(*before, n)] for level in levels)
    return one.replace(array=cut[0], meta={**volume.meta, "levels": cut})


def _segment(volume: Volume, n: int) -> Volume:
    """One of overlapping segments, by its own name."""
    values = volume.meta["axis_t"].get("values", ())
    number = int(values[n]) if n < len(values) else n + 1
    names = volume.meta.get("label_names", {})
    meta = {key: value for key, value in volume.meta.items() if key != "axis_t"}
    for key in ("label_names", "label_colors"):
        if number in meta.get(key, {}):
            meta[key] = {number: meta[key][number]}
    meta["findings"] = volume.meta.get("findings", ()) if n == 0 else ()
    return volume.take("t", n).replace(name=f"{volume.name} {names.get(number, number)}", meta=meta)


def result_to_layers(result: Result, scan: Volume | Any) -> list[LayerData]:
    """The layers that show what a stage found, exactly on the scan.

    Parameters
    ----------
    result : Result
        `Scores` have no layer; every other result has one.
    scan : napari Layer or Volume
        What the stage was run on.

    Returns
    -------
    list of tuples
        Denoised: image, with the scan's contrast. Mask: labels with the names' colours and a table. Boxes:
        rectangles in 2-D; in 3-D points whose sizes are the objects' mean diameters in world units, and no less
        than the largest spacing. Heatmap: an image that is clear where nothing is.
    """
    if isinstance(result, Scores):
        return []
    if isinstance(result, Boxes):
        return [_boxes(result, scan)]
    if isinstance(result, Mask):
        layer = _mask(result, scan)
    elif isinstance(result, Heatmap):
        name = f"{result.heat.name} {result.target} ({result.method})"
        # without depth: in 3-D the heatmap and the scan lie in the same planes and would show through in patches
        look = {"rgb": False, "colormap": heat_colors(), "blending": "translucent_no_depth"}
        look |= {"contrast_limits": (0.0, 1.0), "opacity": 0.8}
        layer = volume_to_layer(result.heat.replace(name=name), frame=scan, look=look)
    else:
        layer = volume_to_layer(result.image, frame=scan, look=_like(result, scan))
    layer[1]["metadata"][METADATA_KEY]["provenance"] = result.provenance.as_dict()
    return [layer]


def running_layer(found: Volume, colors: Mapping[int, Color], scan: Any) -> LayerData:
    """The layer that shows labels on a scan while they are found; what is written into them is seen.

    Parameters
    ----------
    found : Volume
        Labels on the scan's voxels.
    colors : mapping of int to (r, g, b)
        As in `Mask`.
    scan : napari Layer
        What the stage runs on.
    """
    meta = {**found.meta} | ({"label_colors": dict(colors)} if colors else {})
    return volume_to_layer(found.replace(meta=meta), frame=scan, look={"opacity": 0.5}, live=True)


@dataclass(frozen=True, eq=False)
class _Shown:
    """What a layer is given: the volume in the order of axes it is shown in, its array or a view of it, and where."""

    volume: Volume
    array: Any
    displayed: Affine
    to_world: Affine
    is_view: bool = False


def _shown(volume: Volume, frame: Volume | Any, to_world: Affine | None) -> _Shown:
    displayed = _on(volume.grid, volume.ndim_spatial, frame) if frame is not None else None
    if "z" not in volume.axes:
        displayed = display_affine(volume) if displayed is None else displayed
        return _Shown(volume, volume.array, displayed, volume.affine @ np.linalg.inv(displayed))
    if displayed is None and to_world is not None:
        displayed = np.asarray(np.linalg.solve(to_world, volume.affine))
    if displayed is None:
        volume = volume.canonical()
        displayed = display_affine(volume)
    else:
        turn = canonical_reorientation(displayed)
        displayed = np.asarray(displayed @ turn.matrix(volume.grid.shape))
        volume = volume.reoriented(turn)
    straight = displayed if is_straight(displayed) else straightened(displayed, volume.grid.shape)
    if straight is not None:
        return _Shown(volume, volume.array, straight, volume.affine @ np.linalg.inv(straight))
    way = volume.affine @ np.linalg.inv(displayed)
    array, displayed = view_of(volume, way)
    return _Shown(volume, array, displayed, way, True)


def _on(grid: Grid, ndim: int, frame: Volume | Any) -> Affine | None:
    """Index -> displayed of a grid shown on a scan; None where it can only be shown by itself.

    Voxels of the scan's own number are the scan's own: results say so, and that makes them lie exactly on it
    whatever was done to the layer since. Other grids go through the patient.
    """
    if isinstance(frame, Volume):
        if grid.shape == frame.grid.shape and not canonical_reorientation(frame.affine).is_identity and ndim == 3:
            return None  # both are brought to the same canonical axes
        displayed, to_world = display_affine(frame), displayed_to_world(frame)
        return displayed if grid.same_place(frame.grid) else np.asarray(np.linalg.solve(to_world, grid.affine))
    known = record(frame)
    if "view" in known and ndim == 3:
        scan = known["volume"]
        own = scan.affine if grid.shape == scan.grid.shape else grid.affine
        return np.asarray(moved_by_hand(frame) @ np.linalg.solve(known["to_world"], own))
    size = tuple(frame.data.shape[: frame.ndim])[-ndim:] if hasattr(frame.data, "shape") else ()
    place = place_of(frame, None, ndim, size) if frame.ndim >= ndim else None
    if place is None:
        return None
    if size == grid.shape[3 - ndim :]:
        return place.displayed
    through = np.asarray(np.linalg.solve(place.to_world, grid.affine))
    return through if ndim == 3 or is_straight(through) else None


def _levels(volume: Volume) -> list[Any]:
    """The levels of a pyramid, finest first; none where the volume is not its finest level."""
    levels = list(volume.meta.get("levels", ()))
    return levels if len(levels) > 1 and levels[0] is volume.array else []


def _metadata(volume: Volume | None, to_world: Affine, findings: tuple[str, ...] = ()) -> dict[str, Any]:
    return {METADATA_KEY: {"volume": volume, "findings": findings, "provenance": {}, "to_world": to_world}}


def _paintable(array: Any) -> NDArray[Any]:
    """Labels in memory of their own: painting writes into them, and results must not change."""
    pixels = np.array(array)
    return pixels.astype(np.uint8) if pixels.dtype == bool else pixels


def _channel_look(volume: Volume, channel: int, channels: int) -> dict[str, Any] | None:
    return None if volume.meta.get("is_labels") else image_look(volume, channel, channels)


def _like(result: Denoised, scan: Volume | Any) -> dict[str, Any]:
    """The look of a cleaned image: the scan's own contrast, so that both can be compared."""
    look = image_look(result.image)
    limits = getattr(scan, "contrast_limits", None)
    if limits is not None and not result.image.is_rgb and not getattr(scan, "rgb", False):
        look["contrast_limits"] = tuple(map(float, limits))
        look["colormap"] = getattr(scan, "colormap", "gray")
    return look


def _mask(result: Mask, scan: Volume | Any) -> LayerData:
    meta = {**result.labels.meta, "is_labels": True}
    meta |= {"label_names": dict(result.names)} if result.names else {}
    meta |= {"label_colors": dict(result.colors)} if result.colors else {}
    features = label_features(result.table, result.names)
    look: dict[str, Any] = {"opacity": 0.5}
    look |= {"features": features} if features else {}
    layer = volume_to_layer(result.labels.replace(meta=meta), frame=scan, look=look)
    layer[1]["metadata"][METADATA_KEY]["table"] = result.table
    painted = layer[0].source if isinstance(layer[0], PaintedView) else layer[0]
    layer[1]["metadata"][METADATA_KEY]["checksum"] = checksum(painted)
    return layer


def _boxes(result: Boxes, scan: Volume | Any) -> LayerData:
    grid, centres, sizes = result.grid, result.centres, result.sizes
    displayed = _on(grid, result.ndim, scan)
    if displayed is None:
        # shown by itself, with the axes that its scan is shown with
        turn = canonical_reorientation(grid.affine)
        centres = index_to_world(np.linalg.inv(turn.matrix(grid.shape)), centres)
        sizes = sizes[:, list(turn.order)]
        grid = grid.reoriented(turn)
        displayed = display_affine(_plain(grid, result.ndim))
    to_world = grid.affine @ np.linalg.inv(displayed)
    record: dict[str, Any] = {
        "volume": None,
        "findings": (),
        "provenance": result.provenance.as_dict(),
        "to_world": to_world,
    }
    record |= {"units": grid.units, "grid": grid, "ndim": result.ndim}
    keywords: dict[str, Any] = {
        "name": _boxes_name(result.provenance),
        "metadata": {METADATA_KEY: record},
        "features": result.table,
        "ndim": result.ndim,
    }
    if result.ndim == 2:
        return _rectangles(centres[:, 1:], sizes[:, 1:], placing(displayed, "yx", grid.units), keywords)
    step = np.linalg.norm(displayed[:3, :3], axis=0)
    # A sphere thinner than a slice could lie between two and show in neither.
    diameters = np.maximum((sizes * step).mean(axis=1), step.max())
    # napari shows a point in the slices within half a data unit of it, and with this projection mode as the circle
    # in which its sphere is cut. With the largest diameter as that unit each shows in all slices that it touches,
    # and the slab of the viewer, which would blur images, stays closed.
    unit = float(diameters.max(initial=step.max()))
    keywords |= placing(np.diag([unit, unit, unit, 1.0]), "zyx", grid.units) | {
        "size": diameters / unit if len(result) else 1.0,
        "face_color": "transparent",
        "border_color": "yellow",
        "border_width": 0.03,
        "projection_mode": "rescale_spherical",
        "blending": "translucent_no_depth",
        "symbol": "disc",
    }
    return index_to_world(displayed, centres) / unit, keywords, "points"


def _rectangles(centres: NDArray[Any], sizes: NDArray[Any], place: dict[str, Any], keywords: Any) -> LayerData:
    half = sizes[:, None, :] / 2 * np.array([(-1, -1), (-1, 1), (1, 1), (1, -1)])
    corners = centres[:, None, :] + half
    # as wide as a pixel, and a twentieth of larger objects
    width = max(1.0, float(np.median(sizes)) / 20) if len(sizes) else 1.0
    keywords |= place | {
        "shape_type": "rectangle",
        "face_color": "transparent",
        "edge_color": "yellow",
        "edge_width": width,
        "text": {
            "string": "{label} {score:.2f}",
            "size": 8,
            "color": "yellow",
            "anchor": "upper_left",
            "visible": 0 < len(centres) <= _MOST_TEXTS,
        },
    }
    return list(corners), keywords, "shapes"


def _boxes_name(provenance: Provenance) -> str:
    return " ".join([*provenance.inputs, provenance.model or provenance.stage])


def _plain(grid: Grid, ndim: int) -> Volume:
    """A volume of no memory on a grid."""
    shape = grid.shape[3 - ndim :]
    array = np.broadcast_to(np.zeros((), np.uint8), shape)
    return Volume(array, "zyx"[3 - ndim :], grid.affine, grid.units)

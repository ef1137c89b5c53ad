"""From a layer back to a volume: what the stages and writers are given."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_medai.core.errors import InputError
from napari_medai.core.geometry import (
    SAME_PLACE_MM,
    Affine,
    Grid,
    canonical_reorientation,
    index_to_world,
    world_to_index,
)
from napari_medai.core.reslice import Resampled
from napari_medai.core.volume import Volume
from napari_medai.ui.placement import (
    display_affine,
    layer_affine,
    layer_units,
    moved_by_hand,
    named_axes,
    record,
    straightened,
)
from napari_medai.ui.reslicing import PaintedView

_DEFAULT_AXES = {2: "yx", 3: "zyx", 4: "tzyx"}


@dataclass(frozen=True, eq=False)
class Place:
    """Where a layer lies.

    Attributes
    ----------
    displayed : (4, 4) array
        Index (k, j, i) -> napari's world.
    to_world : (4, 4) array
        napari's world -> the patient's.
    units : str
        Of both.
    scan : Volume or None
        The image whose place in the patient was taken; None where the viewer's world counts as it is.
    same_grid : bool
        Whether the layer's voxels are the scan's.
    """

    displayed: Affine
    to_world: Affine
    units: str
    scan: Volume | None = None
    same_grid: bool = False

    @property
    def affine(self) -> Affine:
        """Index (k, j, i) -> the patient's world."""
        return np.asarray(self.to_world @ self.displayed)


def is_scan(layer: Any) -> bool:
    """Whether a layer is an image that we placed, and so knows the way from the display to the patient."""
    return isinstance(record(layer).get("volume"), Volume) and "to_world" in record(layer)


def place_of(layer: Any, others: Iterable[Any] | None = None, ndim: int = 0, shape: tuple[int, ...] = ()) -> Place:
    """Find where a layer lies in the patient.

    A layer of ours knows. A layer painted or computed on a scan has the scan's displayed geometry: it takes the
    place of the scan whose voxels it shares, else of the scan that it overlaps most. A layer of a scan's size
    that has no geometry at all (many plugins drop it) counts as that scan's voxels, if only one place fits.

    Parameters
    ----------
    layer : napari Layer
        Any kind.
    others : iterable of napari Layers, optional
        Where scans are looked for. Default: the layers of the current viewer.
    ndim : int
        Number of spatial axes; 0 finds out.
    shape : tuple of int
        Size along the spatial axes; empty for layers without voxels.
    """
    known = record(layer)
    n = ndim or (known["volume"].ndim_spatial if is_scan(layer) else min(3, layer.ndim))
    units, factors = layer_units(layer, n)
    displayed = np.diag([*factors, 1.0]) @ layer_affine(layer, n)
    scan = known.get("volume")
    if "to_world" in known and (scan is None or scan.ndim_spatial == n):
        same = isinstance(scan, Volume) and scan.spatial_shape == shape
        return Place(displayed, np.asarray(known["to_world"]), known.get("units", units), scan, same)
    scans = [s for s in (viewer_layers() if others is None else others) if is_scan(s) and s is not layer]
    scans = [s for s in scans if record(s)["volume"].ndim_spatial == n]
    if shape:
        for scan in scans:
            alike = record(scan)["volume"].spatial_shape == shape and "view" not in record(scan)
            if alike and _close(place_of(scan), displayed, units):
                volume = record(scan)["volume"]
                return Place(displayed, record(scan)["to_world"], volume.units, volume, True)
        adopted = _adopted(layer, scans, displayed, shape)
        if adopted:
            return adopted
    overlapping = [(_overlap(layer, scan, n), layer.name.startswith(scan.name), scan) for scan in scans]
    best = max(overlapping, key=lambda found: found[:2], default=None)
    if best is not None and best[0] > 0 and record(best[2])["volume"].units == units:
        return Place(displayed, record(best[2])["to_world"], units, record(best[2])["volume"])
    return Place(displayed, np.eye(4), units)


def _close(scan: Place, displayed: Affine, units: str) -> bool:
    if scan.scan is None or scan.units != units:
        return False
    shape = scan.scan.grid.shape
    return Grid(shape, scan.displayed, units).same_place(Grid(shape, displayed, units))


def _adopted(layer: Any, scans: list[Any], displayed: Affine, shape: tuple[int, ...]) -> Place | None:
    """The place of the one scan of the same size, for a layer that was given no geometry."""
    bare = np.allclose(displayed, np.eye(4)) and all(str(unit) == "pixel" for unit in layer.units)
    grids = [record(s)["volume"].grid for s in scans if record(s)["volume"].spatial_shape == shape] if bare else []
    if not grids or not all(grid.same_place(grids[0]) for grid in grids):
        return None
    scan = next(s for s in scans if record(s)["volume"].spatial_shape == shape)
    volume: Volume = record(scan)["volume"]
    return Place(displayed, volume.affine @ np.linalg.inv(displayed), volume.units, volume, True)


def _overlap(layer: Any, scan: Any, ndim: int) -> float:
    """Share of the layer's displayed box that lies within the scan's."""
    low, high = (np.asarray(e)[-ndim:] for e in layer.extent.world)
    scan_low, scan_high = (np.asarray(e)[-ndim:] for e in scan.extent.world)
    margin = SAME_PLACE_MM
    width = np.minimum(high, scan_high) - np.maximum(low, scan_low)
    return float(np.prod(np.clip(width + margin, 0, None) / (high - low + margin)))


def viewer_layers() -> list[Any]:
    """The layers of the current viewer; empty without one."""
    import napari

    viewer = napari.current_viewer()
    return list(viewer.layers) if viewer is not None else []


def layer_to_volume(layer: Any, viewer_layers: Iterable[Any] | None = None) -> Volume:
    """The volume that an image or labels layer shows, in its true place.

    Parameters
    ----------
    layer : napari.layers.Image or napari.layers.Labels
        From our readers and stages, from napari's own readers, painted, or made by another plugin.
    viewer_layers : iterable of napari Layers, optional
        Where the scan that a layer lies on is looked for; see `place_of`. Default: the current viewer.

    Returns
    -------
    Volume
        The one that was opened where the layer still shows it (lazy pixels stay lazy); labels keep the
        identity of their array, so that painting reaches the volume.

    Raises
    ------
    InputError
        The layer is of another kind, or has a number of axes that no image has.
    """
    kind = layer._type_string
    if kind not in ("image", "labels"):
        raise InputError(f"{layer.name!r} is a {kind} layer; choose an image or labels layer.")
    data = layer.data[0] if getattr(layer, "multiscale", False) else layer.data
    known = record(layer).get("volume")
    place = None
    if isinstance(known, Volume) and "view" in record(layer) and _shows(data, known):
        moved = moved_by_hand(layer)
        way = np.asarray(record(layer)["to_world"])
        changed = not np.array_equal(moved, np.eye(4))
        if isinstance(data, PaintedView) and data.source is not known.array:
            known = known.replace(array=data.source)  # a copy of the layer
        volume = known.replace(affine=way @ moved @ np.linalg.solve(way, known.affine)) if changed else known
        return _named(volume, layer)
    if isinstance(known, Volume) and known.shape == tuple(data.shape):
        place = place_of(layer, (), known.ndim_spatial, known.spatial_shape)
        if np.allclose(place.affine, known.affine, atol=1e-6):
            volume = known if data is known.array else known.replace(array=data)
            return _named(volume, layer)
    axes = _axes(layer, data, viewer_layers)
    ndim = 3 if "z" in axes else 2
    start = axes.index("z" if ndim == 3 else "y")
    shape = tuple(int(size) for size in data.shape[start : start + ndim])
    place = place or place_of(layer, viewer_layers, ndim, shape)
    scan = place.scan
    meta = {k: v for k, v in (scan.meta if scan else {}).items() if k not in ("is_labels", "label_names", "window")}
    return _named(
        Volume(
            data,
            axes,
            place.affine,
            place.units,
            modality=scan.modality if scan and place.same_grid and kind == "image" and scan.modality != "SEG" else "",
            meta=meta,
            source=scan.source if scan else str(layer.source.path or ""),
        ),
        layer,
    )


def _shows(data: Any, volume: Volume) -> bool:
    """Whether a layer's data are a volume's voxels or our view of them."""
    return data is volume.array or isinstance(data, Resampled | PaintedView)


def _named(volume: Volume, layer: Any) -> Volume:
    """With the layer's name, and marked as labels if it is a labels layer."""
    if layer._type_string == "labels" and not volume.meta.get("is_labels"):
        volume = volume.replace(modality="SEG", meta={**volume.meta, "is_labels": True})
    return volume if volume.name == layer.name else volume.replace(name=layer.name)


def _axes(layer: Any, data: Any, others: Iterable[Any] | None) -> str:
    rgb = bool(getattr(layer, "rgb", False))
    axes = named_axes(layer)
    if not axes:
        scans = [s for s in (viewer_layers() if others is None else others) if is_scan(s) and s.ndim == layer.ndim]
        alike = [record(s)["volume"].axes.removesuffix("s") for s in scans]
        axes = alike[0] if alike else _DEFAULT_AXES.get(layer.ndim, "")
    if not axes:
        raise InputError(
            f"{layer.name!r} has {layer.ndim} axes of size {tuple(data.shape)}; name them by the letters t, c, z, y, x "
            "in the layer's axis labels, or choose an image with 2 to 4 axes."
        )
    return axes + "s" * rgb


def shared_space(volume: Volume, shown: Iterable[Mapping[str, Any]]) -> Affine | None:
    """The way from the display to the world of a scan in whose space a volume lies.

    A volume shown along the same way coincides with the scan, whatever its axes: where they are not parallel to the
    display's, it is seen through a view.

    Parameters
    ----------
    volume : Volume
        To be shown.
    shown : iterable of mappings
        What `record` gives for the layers of scans.

    Returns
    -------
    (4, 4) array or None
        Of the first scan with the same voxels or the same frame of reference; where one of both files does not say
        its frame of reference, as NIfTI never does, of the first scan in whose box the volume's centre lies.
    """
    if volume.ndim_spatial != 3 or volume.units != "mm":
        return None
    scans = [r for r in shown if r["volume"].ndim_spatial == 3 and r["volume"].units == "mm"]
    space = volume.meta.get("frame_of_reference_uid")
    spaces = [r["volume"].meta.get("frame_of_reference_uid") for r in scans]
    same_voxels = [r for r in scans if volume.grid.same_place(r["volume"].grid)]
    same_space = [r for r, other in zip(scans, spaces, strict=True) if space and other == space]
    unsaid = [r for r, other in zip(scans, spaces, strict=True) if not (space and other) and _holds(r, volume)]
    found = (*same_voxels, *same_space, *unsaid)
    return np.asarray(found[0]["to_world"]) if found else None


def on_its_slice(volume: Volume, shown: Iterable[Mapping[str, Any]]) -> Volume:
    """A single slice as a volume of one, if a scan of its frame of reference is shown; else as it is.

    napari draws layers of two axes over all slices. Labels belong to theirs, and so do images that are parallel to
    the display's slices; others, a localizer say, are looked at by themselves.
    """
    space = volume.meta.get("frame_of_reference_uid")
    if volume.ndim_spatial != 2 or volume.units != "mm" or not space or volume.meta.get("levels"):
        return volume
    plane = volume.axes.index("y")
    array = volume.array[(*(slice(None),) * plane, None)]
    deep = volume.replace(array=array, axes=volume.axes.replace("yx", "zyx"))
    scans = [r for r in shown if r["volume"].meta.get("frame_of_reference_uid") == space]
    to_world = shared_space(deep, scans)
    if to_world is None:
        return volume
    through = np.linalg.solve(to_world, deep.affine)
    turn = canonical_reorientation(through)
    grid = deep.grid.reoriented(turn)
    straight = straightened(np.asarray(np.linalg.solve(to_world, grid.affine), dtype=np.float64), grid.shape)
    parallel = straight is not None and turn.order == (0, 1, 2)
    return deep if parallel or volume.meta.get("is_labels") else volume


def on_its_scan(volume: Volume, shown: Iterable[Mapping[str, Any]]) -> Volume:
    """Labels of some slices of a scan as labels of all of them, if the scan is shown; else as they are.

    Segmentations are stored for the slices that they are not empty on. They are corrected on others too.
    """
    space = volume.meta.get("frame_of_reference_uid")
    if not volume.meta.get("is_labels") or volume.ndim_spatial != 3 or not space:
        return volume
    for scan in (r["volume"] for r in shown if r["volume"].meta.get("frame_of_reference_uid") == space):
        if scan.ndim_spatial != 3 or scan.meta.get("is_labels") or scan.grid.same_place(volume.grid):
            continue
        place = volume.grid.place_in(scan.grid)
        if place is not None:
            lead = volume.axes.index("z")
            whole = np.zeros((*volume.shape[:lead], *scan.grid.shape), volume.dtype)
            part = whole.transpose((*range(lead), *(lead + n for n in place[0])))
            part[(..., *place[1])] = volume.array
            return volume.replace(array=whole, affine=scan.affine)
    return volume


def _holds(scan: Mapping[str, Any], volume: Volume) -> bool:
    """Whether a volume's centre lies in the box of a scan."""
    centre = index_to_world(volume.affine, (np.array(volume.grid.shape) - 1) / 2)
    index = world_to_index(scan["volume"].affine, centre)
    return bool((index > -0.5).all() and (index < np.array(scan["volume"].grid.shape) - 0.5).all())


def checksum(labels: NDArray[Any]) -> int:
    """Of an array's bytes: tells whether a mask was painted over."""
    return zlib.crc32(np.ascontiguousarray(labels).tobytes())


def was_edited(layer: Any) -> bool:
    """Whether a result's layer shows other pixels than the run gave."""
    known = record(layer)
    if "checksum" in known:
        painted = layer.data.source if isinstance(layer.data, PaintedView) else layer.data
        return bool(checksum(np.asarray(painted)) != known["checksum"])
    return isinstance(known.get("volume"), Volume) and not _shows(layer.data, known["volume"])


def displayed_to_world(volume: Volume) -> Affine:
    """napari's world -> the patient's, for a volume that is shown by itself."""
    return np.asarray(volume.affine @ np.linalg.inv(display_affine(volume)))

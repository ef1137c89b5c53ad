"""napari's way out: layers become files that know their true place in the patient."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_medai.core.geometry import Grid, world_to_index
from napari_medai.core.provenance import EDITED
from napari_medai.core.result import Table
from napari_medai.core.volume import Volume
from napari_medai.ui.placement import record
from napari_medai.ui.scans import layer_to_volume, place_of, was_edited

_UNIT_SUFFIX = {"mm": "mm", "um": "um", "pixel": "px"}


def write_image(path: str, data: Any, attributes: dict[str, Any]) -> list[str]:
    """napari writer: an image layer as NIfTI or NRRD.

    Parameters
    ----------
    path : str
        Ends in ``.nii``, ``.nii.gz`` or ``.nrrd``.
    data : array
        Pixels of the layer.
    attributes : dict
        Its state, as ``layer.as_layer_data_tuple()`` gives it.

    Returns
    -------
    list of str
        The file written.

    Raises
    ------
    WriteError, InputError
        The system refused, or the layer has axes that no image has; no partial file is left.
    """
    return [save_layer(_layer(data, attributes, "image"), path)]


def write_labels(path: str, data: Any, attributes: dict[str, Any]) -> list[str]:
    """napari writer: a labels layer as NIfTI, NRRD or surfaces, in the place of its scan; see `write_image`."""
    return [save_layer(_layer(data, attributes, "labels"), path)]


def write_dicom_image(path: str, data: Any, attributes: dict[str, Any]) -> list[str]:
    """napari writer: an image layer as a DICOM object of the scan's patient; see `write_image`.

    Heat becomes a parametric map, any other image a derived series: of several slices, in a folder that is named
    as the file, without its suffix.
    """
    layer = _layer(data, attributes, "image")
    volume = layer_to_volume(layer)
    one = volume.size("z") * volume.size("t") == 1 or _is_heat(record(layer).get("provenance") or {})
    return [save_layer(layer, path if one else str(Path(path).with_suffix("")))]


def write_dicom_labels(path: str, data: Any, attributes: dict[str, Any]) -> list[str]:
    """napari writer: a labels layer as a DICOM segmentation of the scan it lies on; see `write_image`."""
    return [save_layer(_layer(data, attributes, "labels"), path)]


def write_points(path: str, data: Any, attributes: dict[str, Any]) -> list[str]:
    """napari writer: points as a CSV table, one row each; see `points_table`."""
    return [_write_table(points_table(_layer(data, attributes, "points")), path)]


def write_shapes(path: str, data: Any, attributes: dict[str, Any]) -> list[str]:
    """napari writer: shapes as a CSV table, one row each, by their bounding boxes; see `shapes_table`."""
    return [_write_table(shapes_table(_layer(data, attributes, "shapes")), path)]


def save_layer(layer: Any, path: str, others: Iterable[Any] | None = None) -> str:
    """Write an image or labels layer to any format of images.

    The record of how a result was made goes into the file with it; where labels were painted over since, the
    record says so.

    Parameters
    ----------
    layer : napari Layer
        Image or Labels.
    path : str
        The suffix picks the writer.
    others : iterable of napari Layers, optional
        Where the scan is looked for that the layer lies on. Default: the current viewer.

    Raises
    ------
    WriteError, InputError
        As `napari_medai.io.save` and `layer_to_volume`.
    """
    from napari_medai.io import find_writer
    from napari_medai.io.results import verified

    volume = layer_to_volume(layer, others)
    provenance = dict(record(layer).get("provenance") or {})
    if provenance and was_edited(layer):
        provenance["notes"] = (*provenance.get("notes", ()), EDITED)
    extra: dict[str, Any] = {"provenance": provenance} if provenance else {}
    if _is_heat(provenance):
        extra["kind"] = "Heatmap"
    target = Path(path).expanduser()
    with verified(volume):
        find_writer(target, "images", folder=True).load().save_volume(volume, target, extra)
    return str(target)


def _is_heat(provenance: Mapping[str, Any]) -> bool:
    return provenance.get("stage") == "explain"


def points_table(layer: Any, others: Iterable[Any] | None = None) -> Table:
    """One row per point.

    Returns
    -------
    Table
        ``index``, the layer's own features, centres in voxels of the scan (``z, y, x``; the layer's own data
        coordinates where it lies on no scan), centres in the world (``z_mm`` …, or ``um``, ``px``), and
        ``diameter_mm``.
    """
    ndim = min(3, layer.ndim)
    centres = np.asarray(layer.data, dtype=float).reshape(-1, layer.ndim)
    table, unit = _centres(layer, centres, ndim, others)
    scale = np.linalg.norm(place_of(layer, others, ndim).displayed[:3, :3], axis=0)[3 - ndim :].mean()
    size = np.broadcast_to(np.asarray(layer.size, dtype=float), (len(centres),))
    return table | {f"diameter_{unit}": size * scale}


def shapes_table(layer: Any, others: Iterable[Any] | None = None) -> Table:
    """One row per shape: its kind, the centre and size of its bounding box, and its features."""
    ndim = min(3, layer.ndim)
    corners = [(np.min(shape, axis=0), np.max(shape, axis=0)) for shape in layer.data]
    low = np.array([c[0] for c in corners], dtype=float).reshape(-1, layer.ndim)
    high = np.array([c[1] for c in corners], dtype=float).reshape(-1, layer.ndim)
    table, unit = _centres(layer, (low + high) / 2, ndim, others)
    scale = np.linalg.norm(place_of(layer, others, ndim).displayed[:3, :3], axis=0)[3 - ndim :]
    kinds = np.array([str(kind) for kind in layer.shape_type], dtype=object)
    sizes = (high - low)[:, layer.ndim - ndim :] * scale
    return table | {"shape": kinds} | {f"size_{a}_{unit}": sizes[:, n] for n, a in enumerate("zyx"[3 - ndim :])}


def _centres(layer: Any, centres: NDArray[Any], ndim: int, others: Iterable[Any] | None) -> tuple[Table, str]:
    """Index, features and both kinds of coordinates; and the world's unit as it stands in column names."""
    place = place_of(layer, others, ndim)
    unit = _UNIT_SUFFIX[place.units]
    spatial = np.zeros((len(centres), 3))
    spatial[:, 3 - ndim :] = centres[:, layer.ndim - ndim :]
    world = spatial @ place.affine[:3, :3].T + place.affine[:3, 3]
    grid = _grid(layer, place.scan)
    voxels = spatial if grid is None else world_to_index(grid.affine, world)
    axes = list(enumerate("zyx"))[3 - ndim :]
    lead = {f"axis_{n}": centres[:, n] for n in range(layer.ndim - ndim)}
    coordinates = {a: voxels[:, n] for n, a in axes} | {f"{a}_{unit}": world[:, n] for n, a in axes}
    features = {str(name): np.asarray(layer.features[name]) for name in layer.features}
    sizes = {f"size_{a}_{unit}" for a in "zyx"}
    kept = {name: v for name, v in features.items() if name not in ("index", *lead, *coordinates, *sizes)}
    return {"index": np.arange(len(centres))} | kept | lead | coordinates, unit


def _grid(layer: Any, scan: Volume | None) -> Grid | None:
    own = record(layer).get("grid")
    return own if isinstance(own, Grid) else scan.grid if scan is not None else None


def _layer(data: Any, attributes: Mapping[str, Any], kind: str) -> Any:
    """A layer of the state that napari hands to writers, never shown."""
    from napari.layers import Layer

    # hidden, it is not sliced: in 3-D its affine may be one that cannot be
    return Layer.create(data, {**attributes, "visible": False}, kind)


def _write_table(table: Table, path: str) -> str:
    from napari_medai.io.atomic import write_bytes
    from napari_medai.io.tables import as_csv

    return str(write_bytes(path, as_csv(table).encode("utf-8")))

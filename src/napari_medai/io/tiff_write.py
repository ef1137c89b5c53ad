"""Writing TIFF: ImageJ hyperstacks where their pixel types allow it, else OME-TIFF."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from napari_medai.core.errors import WriteError
from napari_medai.core.volume import Volume
from napari_medai.io import record as records
from napari_medai.io.atomic import written
from napari_medai.io.nifti_write import slabs, stored_dtype

# Classic TIFF counts bytes in 32 bits; ImageJ has no other.
_CLASSIC_BYTES = 4 * 10**9
_PLANE_BYTES = 128 << 20
_TILE = 1024
_IMAGEJ_TYPES = ("uint8", "uint16", "float32")
_UNIT = {"mm": "mm", "um": "µm", "pixel": "pixel"}


def save_volume(volume: Volume, path: Path, record: Mapping[str, Any] | None = None) -> None:
    """Write a volume as TIFF with axes, pixel size, affine, names and provenance.

    ``.ome.tif`` is OME-TIFF. ``.tif`` is an ImageJ hyperstack for uint8, uint16 and float32 below 4 GB, and
    OME-TIFF for everything else. Pixel types as in NIfTI: labels in the smallest unsigned type, floats as
    float32. The affine, which TIFF has no field for, stands as JSON in the description (OME) or in ``Info`` (ImageJ).

    Parameters
    ----------
    volume : Volume
        Any axes.
    path : Path
        Ends in ``.tif`` or ``.tiff``.
    record : mapping, optional
        Further fields of the record, e.g. ``provenance``.

    Raises
    ------
    WriteError
        The pixels have no TIFF type, or the system refused.
    """
    extra = dict(record or {})
    is_labels = bool(volume.meta.get("is_labels") or extra.get("is_labels"))
    if is_labels:
        extra["is_labels"] = True
    dtype = stored_dtype(volume.array, is_labels)
    if dtype.itemsize > 4:
        raise WriteError(f"{path.name}: TIFF viewers know no {dtype}, and the values need it; use .nii.gz.")
    full = records.record_of(volume, extra) | {"affine": volume.affine.tolist()}
    size = int(np.prod(volume.shape, dtype=np.int64)) * dtype.itemsize
    ome = path.name.lower().endswith((".ome.tif", ".ome.tiff"))
    imagej = not ome and dtype.name in _IMAGEJ_TYPES and size < _CLASSIC_BYTES
    imagej = imagej and (not volume.is_rgb or (dtype == np.uint8 and volume.size("s") == 3))
    # planes that are too large for memory are written in tiles, which ImageJ's kind has not
    tiled = volume.is_lazy and not volume.is_rgb and volume.size("y") * volume.size("x") * dtype.itemsize > _PLANE_BYTES
    imagej = imagej and not tiled
    # both want t, z, c, y, x, s in this order; ImageJ insists
    order = [a for a in "tzcyxs" if a in volume.axes]
    array = volume.array.transpose([volume.axes.index(a) for a in order])
    options = _imagej(volume, full) if imagej else _ome(volume, full, size)
    options["metadata"]["axes"] = "".join(order).upper()
    if volume.is_rgb and volume.size("s") in (3, 4):
        options |= {"photometric": "rgb"}
        if volume.size("s") == 4:
            options |= {"extrasamples": ["unassalpha"]}
    elif not volume.is_rgb:
        options |= {"photometric": "minisblack"}
    if tiled:
        options |= {"tile": (_TILE, _TILE), "buffersize": _PLANE_BYTES}
    content = _tiles(array, dtype) if tiled else _planes(array, dtype, volume.is_rgb)
    with written(path) as file:
        tifffile.imwrite(file, content, shape=array.shape, dtype=dtype, **options)


def _planes(array: Any, dtype: np.dtype[Any], rgb: bool) -> Iterator[NDArray[Any]]:
    """Page by page, so that a lazy volume is never whole in memory."""
    plane = array.shape[-3:] if rgb else array.shape[-2:]
    flat = array.reshape((-1, *plane))
    for slab in slabs(flat, dtype):
        yield from slab


def _tiles(array: Any, dtype: np.dtype[Any]) -> Iterator[NDArray[Any]]:
    """Tile by tile, a row of them in memory at a time; those at the ends are smaller."""
    for plane in np.ndindex(*array.shape[:-2]):
        for top in range(0, array.shape[-2], _TILE):
            band = np.ascontiguousarray(array[(*plane, slice(top, top + _TILE))], dtype=dtype)
            for left in range(0, array.shape[-1], _TILE):
                yield band[:, left : left + _TILE]


def _imagej(volume: Volume, record: Mapping[str, Any]) -> dict[str, Any]:
    z, y, x = volume.spacing
    metadata: dict[str, Any] = {"unit": {"um": "um"}.get(volume.units, volume.units), "Info": records.dump(record)}
    if "z" in volume.axes:
        metadata["spacing"] = z
    if "t" in volume.axes and volume.meta.get("frame_seconds"):
        metadata["finterval"] = float(volume.meta["frame_seconds"])
    return {"imagej": True, "resolution": (1 / x, 1 / y), "metadata": metadata}


def _ome(volume: Volume, record: Mapping[str, Any], size: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {"Name": volume.name, "Description": records.dump(record)}
    for axis, step in zip("ZYX", volume.spacing, strict=True):
        if axis.lower() in volume.axes:
            metadata |= {f"PhysicalSize{axis}": step, f"PhysicalSize{axis}Unit": _UNIT[volume.units]}
    return {"ome": True, "bigtiff": size > _CLASSIC_BYTES, "compression": "zlib", "metadata": metadata}

"""Writing OME-Zarr (NGFF 0.5): chunk by chunk, or around labels that a run has written already."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from itertools import product
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_medai.core.errors import WriteError, reason_of
from napari_medai.io import record as records
from napari_medai.io.atomic import look_at
from napari_medai.io.nifti_write import stored_dtype
from napari_medai.io.tables import clean

if TYPE_CHECKING:
    from napari_medai.core.volume import Volume

_VERSION = "0.5"
_UNITS = {"mm": "millimeter", "um": "micrometer"}
# Voxels of a chunk: about 2**19, thin across planes, as engine/zarr_store.py
_PLANE, _THIN = {3: (256, 256), 2: (512, 1024)}, 8
# Voxels that are moved at a time, where a row of chunks does not hold more
_MOST_VOXELS = 2**23
# Planes with longer edges get coarser copies, until they fit a window.
_WINDOW = 2048


def save_volume(volume: Volume, path: Path, record: Mapping[str, Any] | None = None) -> None:
    """Write a volume as OME-Zarr 0.5 (Zarr 3), a few chunks in memory at a time.

    Scale and translation stand where other programs look for them; they know no rotation, so that the whole affine
    stands beside them, with names and provenance, for `napari_medai.open`. Planes with edges above 2,048 get coarser
    copies, of every second voxel. Pixel types as in NIfTI.

    Parameters
    ----------
    volume : Volume
        Any axes; colour samples become channels.
    path : Path
        The folder, ending in ``.zarr``. An older one is replaced if this program has written it.
    record : mapping, optional
        Further fields of the record, e.g. ``provenance``.

    Raises
    ------
    WriteError
        There is another folder or a file of that name, the pixels have no type, or the system refused.
    """
    import zarr

    path = Path(os.path.abspath(path))
    check_replaceable(path)
    volume = _ordered(volume)
    is_labels = bool(volume.meta.get("is_labels") or (record or {}).get("is_labels"))
    temporary = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with _told(path):
            group = zarr.open_group(temporary, mode="w-")
            level = _level(group, "0", volume.shape, stored_dtype(volume.array, is_labels), volume)
            for where in _blocks(volume.shape, level.chunks):
                level[where] = np.asarray(volume.array[where])
            _finish(group, volume, record)
            look_at(temporary, path.name)
            _into_place(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def adopt(folder: Path, volume: Volume, path: Path, record: Mapping[str, Any] | None = None) -> None:
    """Make an OME-Zarr of a folder whose array ``0`` holds the voxels of a volume already, and give it its name.

    Parameters
    ----------
    folder : Path
        On the file system of ``path``; it is that folder which takes the name, and nothing in it is copied.
    volume, path, record
        As `save_volume`.

    Raises
    ------
    WriteError
        As `save_volume`, or the folder holds another array; it keeps its name and its voxels.
    """
    import zarr

    path = Path(os.path.abspath(path))
    check_replaceable(path)
    with _told(path):
        group = zarr.open_group(folder, mode="r+")
        found = group["0"]
        if tuple(found.shape) != volume.shape or found.dtype != volume.dtype or _ordered(volume).axes != volume.axes:
            raise WriteError(f"{folder.name} holds {found.dtype} {found.shape}, not {volume.dtype} {volume.shape}.")
        _finish(group, volume, record)
        look_at(folder, path.name)
        _into_place(folder, path)


def _ordered(volume: Volume) -> Volume:
    """Axes as OME wants them: t, c, z, y, x; colour samples are channels."""
    axes = volume.axes.replace("s", "c") if "c" not in volume.axes else volume.axes
    if "s" in axes:
        raise WriteError("OME-Zarr holds no channels of colour; take one channel, or write a TIFF.")
    order = [axes.index(a) for a in "tczyx" if a in axes]
    return volume.replace(array=volume.array.transpose(order), axes="".join(axes[n] for n in order))


def _level(group: Any, name: str, shape: tuple[int, ...], dtype: Any, volume: Volume) -> Any:
    ndim = volume.ndim_spatial
    chunks = [1] * (len(shape) - ndim) + ([_THIN] if ndim == 3 else []) + list(_PLANE[ndim])
    return group.create_array(
        name,
        shape=shape,
        dtype=dtype,
        chunks=tuple(min(c, n) for c, n in zip(chunks, shape, strict=True)),
        dimension_names=list(volume.axes),
        fill_value=0,
        config={"write_empty_chunks": False},
    )


def _blocks(shape: tuple[int, ...], chunks: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
    """Regions of whole chunks: of all rows and columns of a few planes, or of some rows of a large one."""
    steps = [*chunks[:-1], shape[-1]]
    if prod(steps[:-2]) * shape[-2] * steps[-1] <= _MOST_VOXELS:
        steps[-2] = shape[-2]
    for start in product(*(range(0, n, step) for n, step in zip(shape, steps, strict=True))):
        yield tuple(slice(s, min(s + step, n)) for s, step, n in zip(start, steps, shape, strict=True))


def _finish(group: Any, volume: Volume, record: Mapping[str, Any] | None) -> None:
    """Coarser copies, and what the group says of itself."""
    extra = dict(record or {})
    is_labels = bool(volume.meta.get("is_labels") or extra.get("is_labels"))
    extra |= {"is_labels": True} if is_labels else {}
    levels, last, factor = [_transforms(volume, 1)], group["0"], 1
    while max(last.shape[-2:]) > _WINDOW:
        factor *= 2
        shape = (*last.shape[:-2], *(-(-n // 2) for n in last.shape[-2:]))
        name = str(len(levels))
        if name in group:
            del group[name]
        level = _level(group, name, shape, last.dtype, volume)
        for where in _blocks(shape, level.chunks):
            finer = (*where[:-2], *(slice(2 * s.start, 2 * s.stop, 2) for s in where[-2:]))
            level[where] = last[finer]
        levels.append(_transforms(volume, factor))
        last = level
    full = records.record_of(volume, extra) | {"affine": volume.affine.tolist()}
    kinds = {"t": "time", "c": "channel"}
    axes = [{"name": a, "type": kinds.get(a, "space")} for a in volume.axes]
    for axis in axes:
        if axis["type"] == "space" and volume.units in _UNITS:
            axis["unit"] = _UNITS[volume.units]
        if axis["type"] == "time" and volume.meta.get("frame_seconds"):
            axis["unit"] = "second"
    datasets = [{"path": str(n), "coordinateTransformations": found} for n, found in enumerate(levels)]
    ome: dict[str, Any] = {
        "version": _VERSION,
        "multiscales": [{"name": volume.name, "axes": axes, "datasets": datasets}],
    }
    if is_labels:
        ome["image-label"] = _image_label(full)
    group.attrs.update({"ome": ome, records.KEY: clean(full)})


def _transforms(volume: Volume, factor: int) -> list[dict[str, Any]]:
    place = dict(zip("zyx", zip(volume.spacing, volume.affine[:3, 3], strict=True), strict=True))
    seconds = float(volume.meta.get("frame_seconds") or 1.0)
    scale = [float(place[a][0]) * (factor if a in "yx" else 1) if a in place else 1.0 for a in volume.axes]
    scale = [seconds if a == "t" else s for a, s in zip(volume.axes, scale, strict=True)]
    # every second voxel begins at the same place
    start = [float(place[a][1]) if a in place else 0.0 for a in volume.axes]
    return [{"type": "scale", "scale": scale}, {"type": "translation", "translation": start}]


def _image_label(record: Mapping[str, Any]) -> dict[str, Any]:
    names, colors = dict(record.get("label_names") or {}), dict(record.get("label_colors") or {})
    found: dict[str, Any] = {"version": _VERSION}
    if colors:
        found["colors"] = [
            {"label-value": int(value), "rgba": [*(round(255 * float(c)) for c in color), 255]}
            for value, color in colors.items()
        ]
    if names:
        found["properties"] = [{"label-value": int(value), "name": name} for value, name in names.items()]
    return found


def check_replaceable(path: Path) -> None:
    """Refuse a target that is not an image of this program."""
    import zarr

    if not path.parent.is_dir():
        raise WriteError(f"{path} was not written: the folder does not exist; make it first.")
    if not path.exists():
        return
    ours = False
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        ours = path.is_dir() and records.KEY in zarr.open_group(path, mode="r").attrs
    if not ours:
        raise WriteError(f"{path} was not written: there is something else of that name; remove it first.")


def _into_place(folder: Path, path: Path) -> None:
    """Give a folder its name once it is on the disk as a whole; an older one of that name goes."""
    for root, _, names in os.walk(folder):
        for name in names:
            descriptor = os.open(os.path.join(root, name), os.O_RDWR)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    old = path.with_name(f".{secrets.token_hex(8)}.old")
    if path.exists():
        os.rename(path, old)
    try:
        os.rename(folder, path)
    except OSError:
        if old.exists():
            os.rename(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise WriteError(f"{path} was not written: {reason_of(error)}. Nothing partial has its name.") from error

"""Overlays: what scanners and workstations draw over an image (PS3.3 C.9.2), as labels on its grid."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread

from napari_medai.core.errors import ReadError
from napari_medai.core.volume import Volume
from napari_medai.io.dicom.decoding import Plane, all_bits
from napari_medai.io.dicom.headers import Header, integers, text, value
from napari_medai.io.dicom.planes import Planes
from napari_medai.io.dicom.quiet import BROKEN_FILE, quietly
from napari_medai.io.dicom.whitelist import OVERLAY_ROWS
from napari_medai.io.lazy import PlanesArray, lazy

_WANTED = (0x10, 0x11, 0x15, 0x40, 0x50, 0x51, 0x100, 0x102, 0x3000)
_LARGEST = 1 << 16


@dataclass(frozen=True, eq=False)
class Overlay:
    """One overlay of a file.

    Attributes
    ----------
    rows, columns, frames : int
        Size.
    origin : tuple of 2 ints
        Row and column of the image, from 0, on which its first pixel lies.
    first : int or None
        First frame of the image, from 0, that it belongs to; None for all of them.
    bit : int
        Bit of the image's pixels that holds it; -1 if it has data of its own.
    data : bytes
        Its pixels, eight in a byte, the first one lowest.
    """

    rows: int
    columns: int
    frames: int
    origin: tuple[int, int]
    first: int | None
    bit: int
    data: bytes

    def mask(self, plane: Plane, rows: int, columns: int) -> NDArray[np.uint8]:
        """Where it lies on a plane of the image; (rows, columns), 0 and 1."""
        found = np.zeros((rows, columns), np.uint8)
        if self.bit >= 0:
            pixels = all_bits(plane.file, plane.frame)
            return found if pixels.shape != found.shape else ((pixels >> self.bit) & 1).astype(np.uint8)
        number = 0 if self.first is None else plane.frame - self.first
        if not 0 <= number < self.frames:
            return found
        count = self.rows * self.columns
        start = number * count
        packed = np.frombuffer(self.data, np.uint8)[start // 8 : (start + count + 7) // 8]
        bits = np.unpackbits(packed, bitorder="little")[start % 8 :][:count]
        if len(bits) < count:
            return found
        drawn = bits.reshape(self.rows, self.columns)
        top, left = self.origin
        y, x = max(0, top), max(0, left)
        part = (
            drawn[y - top : rows - top, x - left : columns - left] if rows > top and columns > left else drawn[:0, :0]
        )
        found[y : y + part.shape[0], x : x + part.shape[1]] = part
        return found


def overlay_groups(headers: Sequence[Header]) -> tuple[int, ...]:
    """The groups (0x6000 …) in which some file has an overlay."""
    return tuple(tag >> 16 for tag in OVERLAY_ROWS if any(header.has(tag) for header in headers))


def overlays_in(path: str) -> dict[int, Overlay]:
    """The overlays of a file by group.

    Raises
    ------
    ReadError
        The file has gone or is damaged.
    """
    try:
        return _overlays(path, os.stat(path).st_mtime_ns)
    except OSError as error:
        raise ReadError(f"{Path(path).name} can no longer be read: {error.strerror}.") from error
    except BROKEN_FILE as error:
        raise ReadError(f"The overlays of {Path(path).name} are damaged ({type(error).__name__}).") from error


@lru_cache(maxsize=64)
def _overlays(path: str, changed: int) -> dict[int, Overlay]:
    groups = range(0x6000, 0x6020, 2)
    tags = [(group << 16) + element for group in groups for element in _WANTED]
    with quietly():
        ds = dcmread(path, stop_before_pixels=True, force=True, specific_tags=tags)
        found = {group: _overlay(ds, group << 16) for group in groups}
    return {group: overlay for group, overlay in found.items() if overlay is not None}


def _overlay(ds: Any, base: int) -> Overlay | None:
    def whole(element: int, default: int) -> int:
        return next(iter(integers(ds, base + element)), default)

    rows, columns = whole(0x10, 0), whole(0x11, 0)
    data = value(ds, base + 0x3000)
    if not (0 < rows < _LARGEST and 0 < columns < _LARGEST) or not text(ds, base + 0x40):
        return None
    top, left = (*integers(ds, base + 0x50), 1, 1)[:2] if len(integers(ds, base + 0x50)) == 2 else (1, 1)
    first = whole(0x51, 0)
    frames = max(1, whole(0x15, 1))
    many = first > 0 or whole(0x15, 0) > 0
    # without data of its own it lies in unused bits of the pixels (retired, PS3.3 C.9.2.1.1, 2004)
    bit = -1 if isinstance(data, bytes) else whole(0x102, -1)
    if not isinstance(data, bytes) and not 0 <= bit < 16:
        return None
    place = None if not many else max(first, 1) - 1
    return Overlay(rows, columns, frames, (top - 1, left - 1), place, bit, data if isinstance(data, bytes) else b"")


class _Masks:
    """An array (t, z, y, x) of one overlay on the planes of an image."""

    def __init__(self, planes: Planes, group: int) -> None:
        self.planes, self.group = planes, group
        self.shape, self.ndim, self.dtype = planes.shape, planes.ndim, np.dtype(np.uint8)

    def plane(self, t: int, z: int) -> NDArray[np.uint8]:
        """The mask of one plane."""
        plane = self.planes.planes[t][z]
        rows, columns = self.shape[2:4]
        overlay = None if plane is None or plane.tile is not None else overlays_in(plane.file.path).get(self.group)
        found = np.zeros((rows, columns), np.uint8) if overlay is None or plane is None else None
        if found is None and overlay is not None and plane is not None:
            found = overlay.mask(plane, rows, columns)
        assert found is not None
        # an image of colours: the same mask for each, so that whatever was done to the image's axes fits
        return np.repeat(found[..., None], self.shape[4], axis=-1) if self.ndim > 4 else found

    def __getitem__(self, key: Any) -> NDArray[Any]:
        key = key if isinstance(key, tuple) else (key,)
        ts, zs = (
            np.arange(size)[k] for size, k in zip(self.shape[:2], (*key, slice(None), slice(None))[:2], strict=True)
        )
        found = np.array([[self.plane(int(t), int(z)) for z in np.atleast_1d(zs)] for t in np.atleast_1d(ts)])
        found = found.reshape(ts.shape + zs.shape + found.shape[2:])
        return np.asarray(found[(*[slice(None)] * (ts.ndim + zs.ndim), *key[2:])])


def overlay_volumes(volume: Volume) -> list[Volume]:
    """The overlays of an opened image, one label volume for each of its overlay groups.

    Parameters
    ----------
    volume : Volume
        As `open_volume` gives it; one whose array was computed or resampled since has none.

    Returns
    -------
    list of Volume
        Lazy, on the image's grid: 1 where something is drawn.
    """
    groups = volume.meta.get("overlays", ())
    if not groups or not isinstance(volume.array, PlanesArray):
        return []
    whole = volume.array.whole
    if not isinstance(whole.source, Planes):
        return []
    found = []
    for n, group in enumerate(groups, 1):
        array: Any = lazy(_Masks(whole.source, group))
        array = array if whole.time is None else array[whole.time]
        for view in whole.views:
            array = view(array)
        array = array[..., 0] if volume.is_rgb else array
        meta = {"is_labels": True, "label_names": {1: f"overlay {n}"}, "findings": ()}
        meta |= {k: volume.meta[k] for k in ("series_uid", "frame_of_reference_uid", "axis_t") if k in volume.meta}
        name = f"{volume.name} overlay {n}"
        found.append(volume.replace(array=array, axes=volume.axes.removesuffix("s"), name=name, meta=meta))
    return found

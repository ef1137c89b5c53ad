"""TIFF, OME-TIFF and ImageJ hyperstacks: opening. Pixel sizes come from whichever metadata there is."""

from __future__ import annotations

import struct
import threading
import weakref
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import tifffile
import zarr
from numpy.typing import NDArray

from napari_medai.core.errors import GeometryError, ReadError, SeriesChoiceError, SeriesInfo, UnsupportedFormatError
from napari_medai.core.geometry import as_affine, scaling
from napari_medai.core.volume import Volume
from napari_medai.io import record as records
from napari_medai.io.pixelsize import PixelSize, imagej_size, ome_size, resolution_size
from napari_medai.io.single import heeding, series_of, stem
from napari_medai.io.tiff_write import save_volume

__all__ = ["list_series", "open_volume", "save_volume", "sniff"]

_SUFFIXES = (".tif", ".tiff", ".ome.tif", ".ome.tiff")
_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Pixels of a chunk along y and x: a screen needs few of them, and a slide is read in rows of them
_CHUNK = 1024
# What tifffile and the libraries below it raise on damaged files; collected, never swallowed.
_BROKEN: tuple[type[Exception], ...] = (
    tifffile.TiffFileError,
    struct.error,
    zlib.error,
    OSError,
    EOFError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    RuntimeError,
    ArithmeticError,
    NotImplementedError,
)


def sniff(head: bytes, path: Path) -> bool:
    """Whether the bytes start a TIFF or BigTIFF."""
    return head.startswith(_MAGIC)


def list_series(path: Path) -> list[SeriesInfo]:
    """The images of a file, in its order; uid is their number, from 0."""
    with heeding([], "tifffile"), _opened(path) as file:
        count = len(file.series)
    if not count:
        raise ReadError(f"{path.name} holds no image that can be read: it is cut off or damaged.")
    return [series_of(open_volume(path, str(n)), str(n)) for n in range(count)]


def open_volume(path: Path, series_uid: str = "") -> Volume:
    """Open a TIFF.

    Parameters
    ----------
    path : Path
        TIFF, BigTIFF, OME-TIFF, ImageJ hyperstack or another kind that tifffile knows.
    series_uid : str
        Number of the image, from 0, where there are several. Empty: the only one; of a plain TIFF the
        largest, the others being thumbnails and the like.

    Returns
    -------
    Volume
        Lazy, full resolution of a pyramid, axes ``(t)(c)(z)yx(s)``, in um where a pixel size is
        known, else in pixels. A file that we wrote gives its affine and unit back. ``meta["levels"]`` are the arrays
        of all resolutions of a 2-D pyramid, the finest first.

    Raises
    ------
    SeriesChoiceError
        An OME-TIFF holds several images.
    ReadError, UnsupportedFormatError
        The file is damaged, or its axes are not those of an image.
    """
    findings: list[str] = []
    with heeding(findings, "tifffile"), _opened(path) as file:
        try:
            index = _choose(path, file, series_uid, findings)
            series = file.series[index]
            axes, shape = str(series.axes), tuple(int(n) for n in series.shape)
            dtype = np.dtype(series.dtype)
            page = series.keyframe
            samples = page.photometric in (2, 6)  # RGB, YCbCr
            if page.photometric == 0:
                findings.append("stored with white as 0; the values were left so")
            size, record = _metadata(file, page, index, findings)
            _check_length(path, series)
            coarser = _levels(series)
            plain = (int(series.dataoffset), str(file.byteorder)) if series.dataoffset is not None else (-1, "=")
            tile = (int(page.tilelength), int(page.tilewidth)) if page.is_tiled else (int(page.rowsperstrip), 1)
        except _BROKEN as error:
            raise _damaged(path, error) from error
    lost = [text for text in findings if "invalid page offset" in text or "truncated" in text]
    if lost:
        raise ReadError(f"{path} is truncated or damaged: {lost[0]}. Copy or export the file again.")
    if dtype.kind not in "biufc" or dtype.itemsize > 16:
        raise UnsupportedFormatError(f"{path} holds pixels of type {dtype}; export whole or real numbers.")
    if 0 in shape:
        raise ReadError(f"{path} holds no pixels: its shape is {shape}.")
    if dtype.kind == "c":
        findings.append("the pixels are complex; their magnitude is shown")
    arrays = []
    for level, extent in enumerate([shape, *coarser]):
        stored = _StoredSeries(path, index, extent, dtype, level, *(plain if level == 0 else (-1, "=")))
        array = da.from_array(stored, chunks=_chunks(extent, axes, tile), name=False)
        # what is found out is told once, of the finest
        told = findings if level == 0 else []
        array, named = _axes(path, array, axes, samples, record.get("axes", ""), told)
        arrays.append(abs(array) if dtype.kind == "c" else array.astype(np.uint8) if dtype.kind == "b" else array)
    axes = named
    affine, units = _place(record, size, axes, findings)
    meta = records.meta_of(record) | {"findings": tuple(findings)}
    return Volume(
        array=arrays[0],
        axes=axes,
        affine=affine,
        units=units,
        modality=record.get("modality", ""),
        name=stem(path, _SUFFIXES),
        meta=meta | ({"levels": tuple(arrays)} if coarser and "z" not in axes else {}),
        source=str(path),
    ).canonical()


@dataclass(eq=False)
class _StoredSeries:
    """An image of a TIFF file with the look of an array for dask; opens the file where it is used."""

    path: Path
    index: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    level: int = 0
    offset: int = -1  # of pixels that lie in the file as they are: only what is asked for is read of them
    byteorder: str = "="
    _array: Any = field(default=None, repr=False)
    _lock: Any = field(default_factory=threading.Lock, repr=False)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_array", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _array=None, _lock=threading.Lock())

    def __getitem__(self, key: Any) -> NDArray[Any]:
        try:
            if self.offset >= 0:
                stored = np.dtype(self.byteorder + self.dtype.str[1:])
                mapped = np.memmap(self.path, stored, "r", self.offset, self.shape)
                return np.array(mapped[key], dtype=self.dtype.newbyteorder("="))
            with self._lock:
                if self._array is None:
                    store = tifffile.imread(self.path, aszarr=True, series=self.index, level=self.level)
                    weakref.finalize(self, store.close)
                    self._array = zarr.open_array(store, mode="r")
                pixels = np.asarray(self._array[key])
        except _BROKEN as error:
            raise _damaged(self.path, error) from error
        return np.asarray(pixels, dtype=self.dtype.newbyteorder("="))


def _opened(path: Path) -> tifffile.TiffFile:
    try:
        return tifffile.TiffFile(path)
    except _BROKEN as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ReadError:
    return ReadError(f"{path} cannot be opened as TIFF: {error or type(error).__name__}")


def _choose(path: Path, file: tifffile.TiffFile, series_uid: str, findings: list[str]) -> int:
    """Number of the image to open."""
    count = len(file.series)
    if not count:
        raise ReadError(f"{path.name} holds no image that can be read: it is cut off or damaged.")
    if series_uid:
        if not series_uid.isdecimal() or int(series_uid) >= count:
            raise ReadError(f"{path} has no image {series_uid!r}; its images are numbered from 0 to {count - 1}.")
        return int(series_uid)
    if count > 1 and file.is_ome:
        raise SeriesChoiceError(path.name, list_series(path))
    largest = max(range(count), key=lambda n: int(np.prod(file.series[n].shape, dtype=np.int64)))
    if count > 1:
        findings.append(f"the file holds {count} images; number {largest}, the largest, was opened")
    return largest


def _check_length(path: Path, series: Any) -> None:
    """Find out now, and not when the last plane is looked at, that the file ends too early."""
    size = path.stat().st_size
    last = series.pages[-1]
    end = max((offset + count for offset, count in zip(last.dataoffsets, last.databytecounts, strict=False)), default=0)
    if series.dataoffset is not None:
        end = max(end, series.dataoffset + series.nbytes)
    if end > size:
        raise ReadError(
            f"{path} is truncated: its pixels end at byte {end}, the file at {size}. Copy or export the file again."
        )


def _levels(series: Any) -> list[tuple[int, ...]]:
    """Shapes of the coarser resolutions that have the finest one's axes and type."""
    finest = series.levels[0]
    return [
        tuple(int(n) for n in level.shape)
        for level in series.levels[1:]
        if level.axes == finest.axes and level.dtype == finest.dtype and min(level.shape) > 0
    ]


def _chunks(shape: tuple[int, ...], axes: str, tile: tuple[int, int]) -> tuple[int, ...]:
    """Of a plane whole tiles, about `_CHUNK` pixels wide; strips go across, and few of them are decoded at once."""
    size = dict(zip("YX", (max(n, _CHUNK // n * n) for n in tile), strict=True))
    if tile[1] == 1:
        size["X"] = max(shape)
    size["S"] = max(shape)
    return tuple(max(1, min(n, size.get(a, 1))) for a, n in zip(axes, shape, strict=True))


def _axes(path: Path, array: Any, axes: str, colour: bool, wanted: str, findings: list[str]) -> tuple[Any, str]:
    """Our axes and the array in their order. tifffile's other letters: I and Q are pages without a meaning."""
    if len(wanted) == array.ndim and wanted.replace("s", "c") == axes.lower().replace("s", "c"):
        return array, wanted
    for position in reversed(range(len(axes))):
        known = axes[position] in "TCZYX" or (axes[position] == "S" and array.shape[position] > 1)
        if array.shape[position] == 1 and (not known or axes[position] in "TCZ"):
            array = array[(slice(None),) * position + (0,)]
            axes = axes[:position] + axes[position + 1 :]
    named = axes.lower()
    if "s" in named and not (colour and array.shape[named.index("s")] in (3, 4)):
        named = named.replace("s", "t" if "c" in named else "c")
    for letter in [a for a in named if a not in "tczyxs"]:
        free = next((a for a in "zt" if a not in named), "")
        if letter in "iq" and free:
            named = named.replace(letter, free, 1)
            findings.append(f"pages without a meaning in the header were taken as the {free} axis")
    if any(a not in "tczyxs" for a in named) or len(set(named)) != len(named) or not {"y", "x"} <= set(named):
        raise UnsupportedFormatError(
            f"{path} has the axes {axes!r} and the shape {tuple(array.shape)}; images with axes out of T, C, Z, Y, "
            "X and colour samples can be opened. Split it first."
        )
    order = [a for a in "tczyxs" if a in named]
    array, named = array.transpose([named.index(a) for a in order]), "".join(order)
    if wanted.replace("z", "") == named:  # a stack of one plane, which TIFF does not tell from an image
        at = wanted.find("z")
        return (array, named) if at < 0 else (array[(slice(None),) * at + (None,)], wanted)
    return array, named


def _metadata(
    file: tifffile.TiffFile, page: Any, index: int, findings: list[str]
) -> tuple[PixelSize | None, dict[str, Any]]:
    """Pixel size and our record, out of OME-XML, ImageJ's description or the resolution tags."""
    if file.is_ome:
        size, description = ome_size(file.ome_metadata or "", index)
        return size, records.load(description)
    resolution = tuple(
        _ratio(page.tags[name].value) if name in page.tags else 0.0 for name in ("YResolution", "XResolution")
    )
    imagej: Mapping[str, Any] = file.imagej_metadata or {}
    if imagej:
        return imagej_size(imagej, resolution[0], resolution[1]), records.load(str(imagej.get("Info", "")))
    unit = int(page.tags["ResolutionUnit"].value) if "ResolutionUnit" in page.tags else 2
    size, finding = resolution_size(resolution[0], resolution[1], unit)
    if finding:
        findings.append(finding)
    return size, {}


def _ratio(value: Any) -> float:
    numerator, denominator = value
    return float(numerator) / float(denominator) if denominator else 0.0


def _place(
    record: Mapping[str, Any], size: PixelSize | None, axes: str, findings: list[str]
) -> tuple[NDArray[np.float64], str]:
    """Affine and unit: the record of a file that we wrote, else the pixel size."""
    if "affine" in record:
        try:
            return as_affine(record["affine"]), record.get("units", "pixel")
        except (GeometryError, ValueError):
            findings.append("the affine in the header is not one and was left out")
    if size is None:
        return np.eye(4), "pixel"
    if "z" in axes and not size.z:
        findings.append("the distance of planes is not in the header; the pixel size along y was taken")
    return scaling((size.z or (size.y if "z" in axes else 1.0), size.y, size.x)), "um"

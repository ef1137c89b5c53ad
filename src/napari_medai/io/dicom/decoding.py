"""Decodes one plane at a time: from the bytes in the file to values."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.encaps import get_frame
from pydicom.pixels import apply_color_lut, get_decoder

from napari_medai.core.errors import ReadError
from napari_medai.io.dicom.codecs import decode_grey
from napari_medai.io.dicom.headers import Header, items, numbers, value
from napari_medai.io.dicom.jpeg import stream_frame
from napari_medai.io.dicom.pixels import FLOAT_BYTES, NATIVE_LITTLE, PARTIAL, PixelFile, syntax_uid
from napari_medai.io.dicom.quiet import BROKEN_FILE, quietly
from napari_medai.io.dicom.remote import on_disk

_JPEG_LS = ("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81")
_END_OF_IMAGE = b"\xff\xd9"  # ITU-T T.81 table B.1
_RLE = "1.2.840.10008.1.2.5"
_JPEG2000 = "1.2.840.10008.1.2.4.9"
_DECODERS = ("pylibjpeg", "pillow", "pydicom", "gdcm", "pyjpegls")


@dataclass(frozen=True, eq=False)
class Plane:
    """One plane to decode, and what turns its stored values into values.

    Attributes
    ----------
    file : PixelFile
        Where it is.
    frame : int
        Frame number, from 0.
    tile : tuple of 4 ints or None
        First row, first column, rows and columns within the frame.
    slope, intercept : float
        Rescale.
    inverted : bool
        Whether small stored values are bright (MONOCHROME1).
    table : tuple (int, array) or None
        Modality lookup table instead of a rescale: its first stored value and its entries.
    segments : tuple of (int, int) or None
        Frame number and label of each mask that the plane is put together from; a later one covers the others.
        Without any the plane is empty.
    """

    file: PixelFile
    frame: int
    tile: tuple[int, int, int, int] | None
    slope: float
    intercept: float
    inverted: bool
    table: tuple[int, NDArray[Any]] | None = None
    segments: tuple[tuple[int, int], ...] | None = None

    @property
    def whole(self) -> bool:
        """Whether values are whole numbers."""
        return (
            self.file.keyword not in FLOAT_BYTES
            and (self.table is None or self.table[1].dtype.kind in "iu")
            and float(self.slope).is_integer()
            and float(self.intercept).is_integer()
        )

    @property
    def limits(self) -> tuple[float, float]:
        """Smallest and largest value that the stored bits can give."""
        if self.table is not None:
            first, last = self.table[1].min(), self.table[1].max()
            ends = [float(v) * self.slope + self.intercept for v in (first, last)]
            return min(ends), max(ends)
        ends = [v * self.slope + self.intercept for v in self.file.limits]
        return min(ends), max(ends)


def decode(plane: Plane, dtype: np.dtype[Any], out: NDArray[Any] | None = None) -> NDArray[Any]:
    """The values of a plane.

    Parameters
    ----------
    plane : Plane
        Which.
    dtype : numpy.dtype
        Type of the result; large enough for the values.
    out : array, optional
        Contiguous memory of the result's shape and type, into which pixels are read where they lie plain in the file;
        it may hold anything then.

    Returns
    -------
    (rows, columns) or (rows, columns, 3) array
        ``out`` itself if the values stand there.

    Raises
    ------
    ReadError
        The pixels are damaged or the file has gone.
    """
    if plane.segments is not None:
        labels = np.zeros((plane.file.rows, plane.file.columns), dtype)
        for frame, number in plane.segments:
            labels[stored_frame(plane.file, frame) != 0] = number
        return labels
    stored = stored_frame(plane.file, plane.frame, None if plane.tile is not None else out)
    values = _values(plane, stored, dtype)
    return out if out is not None and np.may_share_memory(values, out) else values


def _values(plane: Plane, stored: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Values of stored ones; in their memory where that is possible."""
    if plane.tile is not None:
        row, column, rows, columns = plane.tile
        stored = stored[row : row + rows, column : column + columns]
    if plane.file.colour:
        return stored.astype(dtype, copy=False)
    if plane.table is not None:
        first, entries = plane.table
        found = entries[np.clip(stored.astype(np.int64) - first, 0, len(entries) - 1)]
        if plane.inverted:
            found = entries.min() + (entries.max() - found)
        return np.asarray(found * plane.slope + plane.intercept if plane.slope != 1 else found, dtype=dtype)
    if plane.inverted:
        low, high = plane.file.limits
        stored = np.subtract(low + high, stored, dtype=np.int64 if stored.dtype.itemsize < 8 else stored.dtype)
    if plane.slope == 1 and plane.intercept == 0:
        return stored.astype(dtype, copy=False)
    if dtype.kind == "f":
        # in double, so that a large intercept does not cost digits
        return (stored * plane.slope + plane.intercept).astype(dtype)
    smallest, largest = plane.limits
    ends = np.iinfo(dtype)
    if ends.min <= smallest and largest <= ends.max:
        low, high = plane.file.limits
        same = stored.flags.writeable and stored.dtype.itemsize == dtype.itemsize and stored.dtype.isnative
        # a view where every stored value means the same in both types: no second copy of the plane
        values = stored.view(dtype) if same and ends.min <= low and high <= ends.max else stored.astype(dtype)
        if plane.slope != 1:
            values *= dtype.type(plane.slope)
        values += dtype.type(plane.intercept)
        return values
    wide = stored.astype(np.int64) * int(plane.slope) + int(plane.intercept)
    return np.asarray(np.clip(wide, ends.min, ends.max), dtype=dtype)


def stored_frame(file: PixelFile, frame: int, out: NDArray[Any] | None = None) -> NDArray[Any]:
    """The stored values of a frame, before any rescale: (rows, columns) or, in colour, (rows, columns, samples).

    Plain pixels are read into ``out`` if it is contiguous and as large as they are; the result is a view of it then.

    Raises
    ------
    ReadError
        The pixels are damaged or the file has gone.
    """
    pixels = all_bits(file, frame, out)
    return pixels if file.colour else _used_bits(file, pixels)


def all_bits(file: PixelFile, frame: int, out: NDArray[Any] | None = None) -> NDArray[Any]:
    """As `stored_frame`, with the bits that are not part of the pixels: old overlays lie there.

    Raises
    ------
    ReadError
        The pixels are damaged or the file has gone.
    """
    name = os.path.basename(file.path)
    file = on_disk(file)
    try:
        if _is_plain(file):
            pixels = _plain(file, frame, name, out)
        elif file.syntax in NATIVE_LITTLE and file.offset >= 0 and file.allocated == 1 and file.samples == 1:
            pixels = _bits(file, frame, name)
        else:
            with quietly():
                pixels = _decompressed(file, frame)
                if file.photometric == PARTIAL:
                    pixels = _from_partial(pixels)
                elif "PALETTE" in file.photometric:
                    pixels = _through_palette(file, pixels)
    except OSError as error:
        raise ReadError(f"{name} can no longer be read: {error.strerror or error}.") from error
    except BROKEN_FILE as error:
        said = " ".join(str(error).split())[:200]
        raise ReadError(
            f"Frame {frame} of {name} ({syntax_uid(file.syntax).name}) cannot be decoded: its pixels are damaged, "
            f"or none of the decoders installed knows this kind of them ({said})."
        ) from error
    return pixels


def _is_plain(file: PixelFile) -> bool:
    return (
        file.syntax in NATIVE_LITTLE
        and file.offset >= 0
        and file.allocated >= 8
        and (
            (file.photometric.startswith("MONOCHROME") and file.samples == 1)
            or (file.photometric == "RGB" and file.options["planar_configuration"] == 0)
        )
    )


def _plain(file: PixelFile, frame: int, name: str, out: NDArray[Any] | None) -> NDArray[Any]:
    dtype = file.dtype
    shape = (file.rows, file.columns, file.samples) if file.samples > 1 else (file.rows, file.columns)
    if out is not None and out.shape == shape and out.itemsize == dtype.itemsize and out.flags.c_contiguous:
        pixels = out.view(dtype)
    else:
        pixels = np.empty(shape, dtype)
    left = pixels.reshape(-1).view(np.uint8).data
    # np.fromfile opens the file a second time and reads through a buffer: a quarter longer for 512 x 512 pixels
    with open(file.path, "rb", buffering=0) as stream:
        stream.seek(file.offset + frame * pixels.nbytes)
        while left:
            count = stream.readinto(left)
            if not count:
                raise ReadError(f"Frame {frame} of {name} is cut off.")
            left = left[count:]
    return pixels


def _bits(file: PixelFile, frame: int, name: str) -> NDArray[np.uint8]:
    # PS3.5 8.1.1: the first pixel is the lowest bit, and frames follow each other without filling up bytes.
    count = file.rows * file.columns
    first = frame * count
    start, skip = first // 8, first % 8
    packed = np.fromfile(file.path, np.uint8, (skip + count + 7) // 8, offset=file.offset + start)
    if len(packed) * 8 < skip + count:
        raise ReadError(f"Frame {frame} of {name} is cut off.")
    return np.unpackbits(packed, count=skip + count, bitorder="little")[skip:].reshape(file.rows, file.columns)


def _decompressed(file: PixelFile, frame: int) -> NDArray[Any]:
    decoder = get_decoder(syntax_uid(file.syntax))
    index = frame if file.frames > 1 else 0
    plugin = _plugin(file.syntax)
    if file.offset < 0:
        array, _ = decoder.as_array(_inflated(file.path), index=index, **file.options)
    else:
        with open(file.path, "rb") as stream:
            if plugin and file.syntax != _RLE:
                data = _checked_stream(file, stream, index)
                grey = decode_grey(data, file)
                if grey is not None:
                    return grey
            stream.seek(file.offset)
            try:
                array, _ = decoder.as_array(stream, index=index, decoding_plugin=plugin, **file.options)
            except BaseException as error:
                # a decoder written in Rust gives up past every handler of Exception
                if type(error).__module__ == "pyo3_runtime":
                    raise ValueError("the decoder gave up") from error
                raise
    result: NDArray[Any] = np.asarray(array)
    return result


@lru_cache(maxsize=64)
def _plugin(syntax: str) -> str:
    """The decoder to use for a transfer syntax; empty for uncompressed pixels.

    GDCM ends the whole process on some damaged JPEG streams (version 3.2.6, found by fuzzing), so it only
    decodes what the others cannot: lossless JPEG, and JPEG-LS, where pyjpegls takes 8 s over a damaged byte.
    """
    available = get_decoder(syntax_uid(syntax)).available_plugins
    return next((name for name in _DECODERS if name in available), "")


def _checked_stream(file: PixelFile, stream: Any, index: int) -> bytes:
    # Decoders believe the stream: GDCM ends the process over a contradiction, others work for minutes on
    # the 65535 x 65535 pixels that a damaged byte claims.
    stream.seek(file.offset)
    offsets = file.options.get("extended_offsets")
    data: bytes = get_frame(stream, index, number_of_frames=file.frames, extended_offsets=offsets)
    if data[4:8] == b"jP  ":
        return data  # a JP2 file in place of a codestream, against the standard; the decoders read it
    found = stream_frame(data)
    if found is None or found[1:] != (file.rows, file.columns, file.samples) or not 2 <= found[0] <= file.allocated:
        raise ValueError("the compressed stream is not of the size that the header states")
    if file.syntax in _JPEG_LS and not data.rstrip(b"\0").endswith(_END_OF_IMAGE):
        # CharLS looks for the end of a stream of 6 kB that has none for 7 s, and refuses it then
        raise ValueError("the compressed stream is cut off")
    return data


def stream_signed(file: PixelFile) -> bool | None:
    """Whether the first frame's JPEG 2000 stream says that its values are signed; None for other kinds of pixels."""
    if not file.syntax.startswith(_JPEG2000) or file.samples > 1 or file.offset < 0:
        return None
    try:
        with open(file.path, "rb") as stream:
            stream.seek(file.offset)
            offsets = file.options.get("extended_offsets")
            data = get_frame(stream, 0, number_of_frames=file.frames, extended_offsets=offsets)
    except (OSError, *BROKEN_FILE):
        return None
    # SIZ marker, Ssiz of the first component (ITU-T T.800 A.5.1)
    return bool(data[42] & 0x80) if data[:4] == b"\xff\x4f\xff\x51" and len(data) > 42 else None


@lru_cache(maxsize=2)
def _inflated(path: str) -> Any:
    return dcmread(path)


def _from_partial(ybr: NDArray[Any]) -> NDArray[np.uint8]:
    # PS3.3 C.7.6.3.1.2 (2004; retired): Y from 16 to 235, Cb and Cr from 16 to 240, after ITU-R BT.601
    y, b, r = ((ybr[..., n] - low) for n, low in enumerate((16.0, 128.0, 128.0)))
    y = y * (255 / 219)
    rgb = np.stack([y + 1.596027 * r, y - 0.391762 * b - 0.812968 * r, y + 2.017232 * b], axis=-1)
    return np.clip(np.rint(rgb), 0, 255).astype(np.uint8)


def _through_palette(file: PixelFile, pixels: NDArray[Any]) -> NDArray[np.uint8]:
    coloured = apply_color_lut(pixels, _palette(file.path))
    # Entries of 16 bits are shown with their upper 8 (PS3.3 C.7.6.3.1.6).
    if coloured.dtype.itemsize == 2:
        coloured = coloured >> 8
    return np.asarray(coloured[..., :3], dtype=np.uint8)


def palette_colors(path: str, values: NDArray[Any]) -> NDArray[np.float64]:
    """Red, green and blue (0 to 1) that the palette of a file gives to values; (n, 3).

    Raises
    ------
    ReadError
        The file has no palette, or it is damaged.
    """
    try:
        with quietly():
            coloured = apply_color_lut(values, _palette(path))
    except (OSError, *BROKEN_FILE) as error:
        raise ReadError(f"The palette of {Path(path).name} cannot be read ({type(error).__name__}).") from error
    return np.asarray(coloured[..., :3] / float(np.iinfo(coloured.dtype).max))


@lru_cache(maxsize=8)
def _palette(path: str) -> Any:
    tags = [
        f"{prefix}{colour}PaletteColorLookupTable{suffix}"
        for colour in ("Red", "Green", "Blue")
        for prefix, suffix in (("", "Descriptor"), ("", "Data"), ("Segmented", "Data"))
    ]
    return dcmread(path, stop_before_pixels=True, force=True, specific_tags=tags)


def _used_bits(file: PixelFile, pixels: NDArray[Any]) -> NDArray[Any]:
    # Bits outside the used ones can hold overlays, and a narrow sign need not be extended (PS3.5 8.1.1, 8.1.2).
    spare = pixels.dtype.itemsize * 8 - file.stored
    if pixels.dtype.kind == "f" or spare <= 0 or file.allocated == 1:
        return pixels
    low = file.high + 1 - file.stored
    kind = pixels.dtype.newbyteorder("=")
    if kind.kind == "u" and low == 0:
        used = kind.type((1 << file.stored) - 1)
        masked: NDArray[Any] = np.bitwise_and(pixels, used, out=pixels if pixels.flags.writeable else None)
        return masked
    shifted = pixels.astype(kind, copy=not pixels.flags.writeable)
    shifted <<= kind.type(spare - low)
    shifted >>= kind.type(spare)
    return shifted


def modality_table(header: Header) -> tuple[int, NDArray[Any]] | None:
    """First stored value and entries of a modality lookup table (PS3.3 C.11.1), if there is one."""
    found = next(iter(items(header.fields, "ModalityLUTSequence")), None)
    if found is None:
        return None
    descriptor = numbers(found, "LUTDescriptor")
    data = value(found, "LUTData")
    if len(descriptor) != 3 or data is None:
        return None
    entries = np.frombuffer(data, "<u2") if isinstance(data, bytes) else np.asarray(data)
    return (int(descriptor[1]), entries.astype(np.uint16)) if len(entries) else None

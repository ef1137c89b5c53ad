"""How the pixels lie in a file, and whether they can be decoded at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.pixels import get_decoder
from pydicom.uid import UID

from napari_medai.core.errors import DependencyError, ReadError, UnsupportedFormatError
from napari_medai.io.dicom.headers import DEFLATED, Header, frame_count, value
from napari_medai.io.dicom.quiet import quietly

NATIVE_LITTLE = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1")
_NATIVE = (*NATIVE_LITTLE, "1.2.840.10008.1.2.2", DEFLATED)
# Retired, and not known to pydicom: stored as YBR_FULL_422 is, with a narrower range
PARTIAL = "YBR_PARTIAL_422"
FLOAT_BYTES = {"FloatPixelData": 4, "DoubleFloatPixelData": 8}
_CODECS = 'pip install "napari-medai[codecs]"'


@dataclass(frozen=True, eq=False)
class PixelFile:
    """How the pixels lie in a file; small enough to send to a worker.

    Attributes
    ----------
    path, syntax, keyword : str
        The file, its transfer syntax UID, the keyword of its pixels.
    offset : int
        Where their value begins; -1 in deflated files.
    frames, rows, columns, samples : int
        Size.
    allocated, stored, high : int
        Bits per sample, bits used, highest bit used.
    signed : bool
        Whether stored values are signed.
    photometric : str
        Photometric Interpretation (0028,0004).
    options : mapping
        What pydicom's decoders need.
    """

    path: str
    syntax: str
    keyword: str
    offset: int
    frames: int
    rows: int
    columns: int
    samples: int
    allocated: int
    stored: int
    high: int
    signed: bool
    photometric: str
    options: Mapping[str, Any]

    def of(self, path: str) -> PixelFile:
        """The same of another file."""
        # dataclasses.replace takes five times as long, and a series has hundreds of files
        other = object.__new__(PixelFile)
        other.__dict__.update(self.__dict__, path=path)
        return other

    @property
    def colour(self) -> bool:
        """Whether a plane has red, green and blue."""
        return self.samples > 1 or "PALETTE" in self.photometric

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the stored values."""
        if self.keyword in FLOAT_BYTES:
            return np.dtype(f"<f{FLOAT_BYTES[self.keyword]}")
        size = max(1, self.allocated // 8)
        return np.dtype(f"<{'i' if self.signed else 'u'}{size}")

    @property
    def limits(self) -> tuple[int, int]:
        """Smallest and largest value that the used bits can hold."""
        bits = self.stored if self.allocated > 1 else 1
        return (-(1 << bits - 1), (1 << bits - 1) - 1) if self.signed else (0, (1 << bits) - 1)


def pixel_file(header: Header) -> PixelFile:
    """Check that the pixels can be decoded and say how they lie.

    Raises
    ------
    UnsupportedFormatError
        There are no pixels, or they are a video.
    ReadError
        The header contradicts itself or the file is cut off.
    DependencyError
        No decoder for the compression is installed.
    """
    name = os.path.basename(header.path)
    if not header.pixel_keyword:
        raise no_pixels(header)
    shared = header.shared
    if shared is not None and "pixel_file" in shared:
        alike: PixelFile = shared["pixel_file"]
        found = alike.of(header.path)
        _check_length(header, found, name)
        return found
    rows, columns = header.integer("Rows"), header.integer("Columns")
    samples = header.integer("SamplesPerPixel", 1)
    allocated = header.integer("BitsAllocated", 8 * FLOAT_BYTES.get(header.pixel_keyword, 0))
    stored = header.integer("BitsStored", allocated)
    high = header.integer("HighBit", stored - 1)
    if rows < 1 or columns < 1 or samples not in (1, 3, 4) or allocated not in (1, 8, 16, 32, 64):
        raise ReadError(
            f"{name} describes an image of {rows} x {columns} pixels, {samples} samples and {allocated} bits, "
            "which cannot be; the header is damaged."
        )
    if not 1 <= stored <= allocated:
        stored = allocated
    if not stored - 1 <= high < allocated:
        high = stored - 1
    photometric = header.text("PhotometricInterpretation").upper()
    if "PALETTE" in photometric and header.text("Modality") == "SEG":
        photometric = "MONOCHROME2"  # a label map's palette only colours its labels
    options: dict[str, Any] = {
        "pixel_keyword": header.pixel_keyword,
        "transfer_syntax_uid": syntax_uid(header.syntax),
        "rows": rows,
        "columns": columns,
        "samples_per_pixel": samples,
        "bits_allocated": allocated,
        "bits_stored": stored,
        "pixel_representation": int(header.integer("PixelRepresentation") == 1),
        "photometric_interpretation": photometric or ("RGB" if samples > 1 else "MONOCHROME2"),
        "number_of_frames": frame_count(header),
        "planar_configuration": header.integer("PlanarConfiguration"),
    }
    offsets = [value(header.fields, key) for key in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")]
    if all(isinstance(table, bytes) for table in offsets):
        options["extended_offsets"] = tuple(offsets)
    if photometric == PARTIAL:
        options |= {"photometric_interpretation": "YBR_FULL_422", "raw": True}
    if header.pixel_vr:
        options["pixel_vr"] = header.pixel_vr
    found = PixelFile(
        header.path, header.syntax, header.pixel_keyword, header.pixel_offset, options["number_of_frames"],
        rows, columns, samples, allocated, stored, high, options["pixel_representation"] == 1,
        photometric or options["photometric_interpretation"], options,
    )  # fmt: skip
    _check_length(header, found, name)
    _check_decoder(found, name)
    if shared is not None:
        shared["pixel_file"] = found
    return found


def no_pixels(header: Header) -> ReadError:
    """The error for a file without pixels: cut off, or an object that is not an image."""
    name, kind = Path(header.path).name, what_it_is(header)
    if header.integer("Rows") and header.integer("Columns"):
        return ReadError(f"{name} describes an image ({kind}) but holds no pixels; the file may be cut off.")
    return UnsupportedFormatError(f"{name} holds no image: {kind}.")


@lru_cache(maxsize=64)
def syntax_uid(text: str) -> Any:
    # pydicom checks a UID by a regular expression each time it makes one
    with quietly():
        return UID(text)


def what_it_is(header: Header) -> str:
    """What a file without pixels is, by its SOP class: a name out of the standard."""
    uid = header.text("SOPClassUID")
    return syntax_uid(uid).name if uid and syntax_uid(uid).name != uid else "its kind of object is not known"


def _check_length(header: Header, file: PixelFile, name: str) -> None:
    if header.pixel_offset < 0:
        return
    there = header.size - header.pixel_offset
    if file.syntax not in _NATIVE:
        # each frame is a fragment of its own at least, with 8 bytes before it (PS3.5 A.4)
        if there < 8 * (file.frames + 1):
            raise ReadError(
                f"{name} is cut off: {file.frames} compressed frames do not fit into {max(0, there)} bytes."
            )
        return
    bits = file.frames * file.rows * file.columns * file.samples * file.allocated
    if file.photometric in ("YBR_FULL_422", PARTIAL):
        bits = bits * 2 // 3
    needed = (bits + 7) // 8
    if header.pixel_length >= 0:
        there = min(there, header.pixel_length)
    if there < needed:
        raise ReadError(
            f"{name} is cut off or damaged: {file.frames} x {file.rows} x {file.columns} pixels need {needed} bytes, "
            f"{max(0, there)} are there."
        )


def _check_decoder(file: PixelFile, name: str) -> None:
    title, known, missing = _decoder(file.syntax)
    if not known:
        raise UnsupportedFormatError(f"The pixels of {name} are stored as {title}, which cannot be read as an image.")
    if missing:
        raise DependencyError(
            f"The pixels of {name} are compressed as {title}, and none of its decoders is installed "
            f"({'; '.join(missing)}). Install one with {_CODECS}."
        )


@lru_cache(maxsize=64)
def _decoder(syntax: str) -> tuple[str, bool, tuple[str, ...]]:
    """Name of a transfer syntax, whether it holds images, and what is missing to decode it."""
    uid = syntax_uid(syntax)
    try:
        with quietly():
            decoder = get_decoder(uid)
    except NotImplementedError:
        return uid.name, False, ()
    if decoder.is_available:
        return uid.name, True, ()
    return uid.name, True, tuple(decoder.missing_dependencies) or ("none is known",)

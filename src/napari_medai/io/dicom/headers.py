"""Reads the headers of DICOM files: a whitelist of elements, and where the pixels begin.

Nothing that identifies a patient is read at all, so nothing of it can leak further on.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.datadict import tag_for_keyword
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from napari_medai.core.errors import ReadError
from napari_medai.io.dicom.quiet import BROKEN_FILE, quietly

PREAMBLE = 128
DEFLATED = "1.2.840.10008.1.2.1.99"
DICOMDIR_CLASS = "1.2.840.10008.1.3.10"

_KEYWORDS = """
SpecificCharacterSet ImageType SOPClassUID SOPInstanceUID AcquisitionDate ContentDate AcquisitionTime ContentTime
AcquisitionDateTime Modality Manufacturer SeriesDescription BodyPartExamined SliceThickness SpacingBetweenSlices
EchoTime EchoNumbers InversionTime TriggerTime FlipAngle FrameTime FrameTimeVector ImagerPixelSpacing
NominalScannedPixelSpacing DiffusionBValue DiffusionGradientOrientation
SeriesInstanceUID SeriesNumber AcquisitionNumber InstanceNumber ImagePositionPatient
ImageOrientationPatient FrameOfReferenceUID TemporalPositionIdentifier TemporalPositionIndex SliceLocation
ComplexImageComponent SamplesPerPixel PhotometricInterpretation PlanarConfiguration NumberOfFrames
FrameIncrementPointer Rows Columns PixelSpacing PixelAspectRatio BitsAllocated BitsStored HighBit PixelRepresentation
SmallestImagePixelValue LargestImagePixelValue PixelPaddingValue WindowCenter WindowWidth RescaleIntercept RescaleSlope
RescaleType ModalityLUTSequence LossyImageCompression
RedPaletteColorLookupTableDescriptor GreenPaletteColorLookupTableDescriptor BluePaletteColorLookupTableDescriptor
RedPaletteColorLookupTableData GreenPaletteColorLookupTableData BluePaletteColorLookupTableData
SegmentedRedPaletteColorLookupTableData SegmentedGreenPaletteColorLookupTableData
SegmentedBluePaletteColorLookupTableData AlphaPaletteColorLookupTableDescriptor AlphaPaletteColorLookupTableData
SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence DetectorInformationSequence GridFrameOffsetVector
DoseGridScaling SegmentationType SegmentSequence ExtendedOffsetTable ExtendedOffsetTableLengths
TotalPixelMatrixColumns
""".split()

# Siemens: number of images in a mosaic, b value, CSA image and series headers, acquisition matrix. GE: b value.
_PRIVATE = (0x0019100A, 0x0019100C, 0x00291010, 0x00291020, 0x0051100B, 0x00431039)

TAGS = tuple(tag_for_keyword(word) for word in _KEYWORDS) + _PRIVATE
_PIXEL_KEYWORDS = {0x7FE00008: "FloatPixelData", 0x7FE00009: "DoubleFloatPixelData", 0x7FE00010: "PixelData"}
_LONG_VRS = (b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"UN", b"SQ", b"UT", b"UC", b"UR", b"SV", b"UV")


@dataclass(frozen=True, eq=False)
class Header:
    """One file's header.

    Attributes
    ----------
    path : str
        The file.
    fields : pydicom.Dataset
        The elements of the whitelist that it has.
    syntax : str
        Transfer syntax UID; guessed from the encoding where the file does not say it.
    pixel_keyword : str
        ``"PixelData"``, ``"FloatPixelData"``, ``"DoubleFloatPixelData"``, or empty without pixels.
    pixel_offset : int
        Where their value begins in the file; -1 if the file is deflated.
    pixel_length : int
        Length of the value in bytes; -1 if it is encapsulated or the file is deflated.
    pixel_vr : str
        Value representation of the pixels, empty in implicit encoding.
    size : int
        Length of the file in bytes.
    repaired : bool
        Whether pydicom warned about the header.
    """

    path: str
    fields: Any
    syntax: str
    pixel_keyword: str
    pixel_offset: int
    pixel_length: int
    pixel_vr: str
    size: int
    repaired: bool

    def text(self, keyword: str) -> str:
        """An element as text, empty if absent or unreadable."""
        return text(self.fields, keyword)

    def number(self, keyword: str) -> float | None:
        """The first value of a numeric element, None if absent or unreadable."""
        return number(self.fields, keyword)

    def integer(self, keyword: str, default: int = 0) -> int:
        """As `number`, rounded towards zero."""
        value = self.number(keyword)
        return default if value is None or not math.isfinite(value) else int(value)

    def numbers(self, keyword: str) -> tuple[float, ...]:
        """All values of a numeric element, empty if absent or unreadable."""
        return numbers(self.fields, keyword)

    def items(self, keyword: str) -> Sequence[Any]:
        """The items of a sequence."""
        return items(self.fields, keyword)

    def texts(self, keyword: str) -> tuple[str, ...]:
        """All values of a text element in upper case."""
        return tuple(part.strip().upper() for part in self.text(keyword).split("\\"))


def value(fields: Any, key: Any) -> Any:
    """The value of an element, or None if it is absent, empty or unreadable."""
    try:
        found = fields[key].value
    except BROKEN_FILE:
        return None
    return None if isinstance(found, str) and not found else found


def text(fields: Any, key: Any) -> str:
    """An element as text, several values joined by a backslash."""
    found = value(fields, key)
    if found is None:
        return ""
    if isinstance(found, bytes):
        return found.decode("latin-1").strip("\0 ")
    if isinstance(found, str):
        return found.strip("\0 ")
    try:
        return "\\".join(str(part) for part in found)
    except TypeError:
        return str(found)


def numbers(fields: Any, key: Any) -> tuple[float, ...]:
    """All values of a numeric element."""
    found = value(fields, key)
    if found is None or isinstance(found, bytes):
        return ()
    if isinstance(found, str) or not hasattr(found, "__iter__"):
        found = (found,)
    try:
        return tuple(float(part) for part in found)
    except BROKEN_FILE:
        return ()


def number(fields: Any, key: Any) -> float | None:
    """The first value of a numeric element."""
    found = numbers(fields, key)
    return found[0] if found else None


def items(fields: Any, key: Any) -> Sequence[Any]:
    """The items of a sequence, empty if absent or not one."""
    found = value(fields, key)
    return found if found is not None and not isinstance(found, str | bytes) and hasattr(found, "__len__") else ()


def looks_like_dicom(head: bytes) -> bool:
    """Whether the first bytes are those of a DICOM file, with or without preamble.

    Parameters
    ----------
    head : bytes
        The first 132 bytes or more.
    """
    if head[PREAMBLE : PREAMBLE + 4] == b"DICM":
        return True
    if len(head) < 16:
        return False
    for order in "<>":
        group, element = struct.unpack(f"{order}HH", head[:4])
        # PS3.10 7.1 and files older than it: the data set begins with group 2 or 8
        if group not in (0x0002, 0x0008) or element > 0x0070:
            continue
        explicit = head[4:6].isalpha() and head[4:6].isupper()
        if explicit or 0 < struct.unpack(f"{order}I", head[4:8])[0] < 256:
            return True
    return False


def is_dicom(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as DICOM does; False if it cannot be opened."""
    try:
        with open(path, "rb") as file:
            return looks_like_dicom(file.read(PREAMBLE + 4))
    except OSError:
        return False


def read_header(path: str | os.PathLike[str]) -> Header:
    """The header of a file, from memory if the file has not changed since it was last read.

    Raises
    ------
    ReadError
        The file cannot be opened or is not DICOM.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise ReadError(f"{path} cannot be opened: {error.strerror}.") from error
    return _read_header(os.fspath(path), status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=4096)
def _read_header(path: str, changed: int, size: int) -> Header:
    try:
        with quietly() as heard, open(path, "rb") as file:
            if not looks_like_dicom(file.read(PREAMBLE + 4)):
                raise ReadError(f"{Path(path).name} is not a DICOM file: it does not begin as one.")
            file.seek(0)
            fields = dcmread(file, stop_before_pixels=True, specific_tags=list(TAGS), force=True)
            meta = getattr(fields, "file_meta", None)
            syntax = text(meta, "TransferSyntaxUID") if meta is not None else ""
            if not syntax:
                implicit, little = fields.original_encoding
                syntax = str(
                    ImplicitVRLittleEndian
                    if implicit
                    else ExplicitVRLittleEndian
                    if little is not False
                    else ExplicitVRBigEndian
                )
            implicit = fields.original_encoding[0]
            if syntax == DEFLATED:
                keyword, offset, length, vr = "PixelData", -1, -1, "OW"
            else:
                keyword, offset, length, vr = _find_pixels(
                    file, bool(implicit), fields.original_encoding[1] is not False
                )
            _decode(fields)
    except OSError as error:
        raise ReadError(f"{path} cannot be read: {error.strerror or error}.") from error
    except BROKEN_FILE as error:
        raise ReadError(
            f"The header of {Path(path).name} is broken ({type(error).__name__}); the file may be cut off or damaged."
        ) from error
    if meta is not None and text(meta, "MediaStorageSOPClassUID") == DICOMDIR_CLASS:
        keyword = ""
    return Header(path, fields, syntax, keyword, offset, length, vr, size, bool(heard))


def _decode(fields: Any) -> None:
    # Raw elements become values here, while warnings are collected; the unreadable ones are left out.
    for tag in list(fields.keys()):
        try:
            fields[tag]
        except BROKEN_FILE:
            del fields._dict[tag]


def _find_pixels(file: Any, implicit: bool, little: bool) -> tuple[str, int, int, str]:
    # pydicom stops at the tag of the pixels; PS3.5 7.1 gives the layout of what follows.
    order = "<" if little else ">"
    head = file.read(8)
    if len(head) < 8:
        return "", 0, 0, ""
    group, element = struct.unpack(f"{order}HH", head[:4])
    keyword = _PIXEL_KEYWORDS.get((group << 16) + element, "")
    if not keyword:
        return "", 0, 0, ""
    vr = b""
    if implicit:
        length = struct.unpack(f"{order}I", head[4:])[0]
    else:
        vr = head[4:6]
        if vr in _LONG_VRS:
            rest = file.read(4)
            length = struct.unpack(f"{order}I", rest)[0] if len(rest) == 4 else 0
        else:
            length = struct.unpack(f"{order}H", head[6:])[0]
    return keyword, file.tell(), -1 if length == 0xFFFFFFFF else length, vr.decode("latin-1")


def read_headers(paths: Sequence[str]) -> tuple[list[Header], list[tuple[str, ReadError]]]:
    """The headers of many files, read on threads.

    Returns
    -------
    list of Header
        In the order of ``paths``.
    list of (path, ReadError)
        The files that could not be read.
    """

    def attempt(path: str) -> Header | ReadError:
        try:
            return read_header(path)
        except ReadError as error:
            return error

    with quietly(), ThreadPoolExecutor(max_workers=min(8, max(1, len(paths)))) as pool:
        answers = list(pool.map(attempt, paths))
    headers = [a for a in answers if isinstance(a, Header)]
    failed = [(p, a) for p, a in zip(paths, answers, strict=True) if isinstance(a, ReadError)]
    return headers, failed

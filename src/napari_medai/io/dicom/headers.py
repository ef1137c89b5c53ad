"""Reads the headers of DICOM files: a whitelist of elements, and where the pixels begin.

Nothing that identifies a patient is read at all, so nothing of it can leak further on.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, BinaryIO

from pydicom import dcmread
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from napari_medai.core.errors import ReadError
from napari_medai.io.dicom.bulk import Kin
from napari_medai.io.dicom.elements import CHUNK, Found, read_elements
from napari_medai.io.dicom.quiet import BROKEN_FILE, quietly
from napari_medai.io.dicom.remote import as_if_whole
from napari_medai.io.dicom.whitelist import OF_EACH_SLICE, TAGS, WANTED

PREAMBLE = 128
DEFLATED = "1.2.840.10008.1.2.1.99"
DICOMDIR_CLASS = "1.2.840.10008.1.3.10"

# At most as many frames as a header may claim; above it a count is taken for damage.
MOST_FRAMES = 1_000_000
_PIXEL_KEYWORDS = {0x7FE00008: "FloatPixelData", 0x7FE00009: "DoubleFloatPixelData", 0x7FE00010: "PixelData"}
_LONG_VRS = (b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"UN")


class NotDicomError(ReadError):
    """The file does not begin as DICOM does."""


@dataclass(frozen=True, eq=False)
class Header:
    """One file's header.

    Attributes
    ----------
    path : str
        The file.
    fields : dict
        The elements of the whitelist that it has: text, numbers, bytes or sequences by tag.
    media_class : str
        Media Storage SOP Class UID.
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
    kin : Kin or None
        What it shares with the files that were read together with it.
    """

    path: str
    fields: dict[int, Any]
    media_class: str
    syntax: str
    pixel_keyword: str
    pixel_offset: int
    pixel_length: int
    pixel_vr: str
    size: int
    repaired: bool
    kin: Kin | None = None

    @property
    def shared(self) -> dict[str, Any] | None:
        """What was derived from a file that differs from this one in number, place and time alone; None without one."""
        return None if self.kin is None else derived(self.kin)

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

    def has(self, key: str | int) -> bool:
        """Whether there is an element, whatever it holds."""
        return (TAGS[key] if isinstance(key, str) else key) in self.fields

    def texts(self, keyword: str) -> tuple[str, ...]:
        """All values of a text element in upper case."""
        return tuple(part.strip().upper() for part in self.text(keyword).split("\\"))


def derived(kin: Kin) -> dict[str, Any] | None:
    """What follows for all files that differ in number, place and time alone; None if these differ in more."""
    return kin.derived if kin.varying <= OF_EACH_SLICE else None


def frame_count(header: Header) -> int:
    """Number of frames in the file; at least 1."""
    return min(max(1, header.integer("NumberOfFrames", 1)), MOST_FRAMES)


def value(fields: Any, key: str | int) -> Any:
    """The value of an element of a header's fields or of a sequence's item, None if absent, empty or unreadable.

    Parameters
    ----------
    fields : dict or pydicom.Dataset
        Values by tag, or an item.
    key : str or int
        Keyword or tag.
    """
    if isinstance(fields, dict):
        found = fields.get(TAGS[key] if isinstance(key, str) else key)
    else:
        try:
            found = fields[key].value
        except BROKEN_FILE:
            return None
    return None if isinstance(found, str | tuple) and not found else found


def text(fields: Any, key: str | int) -> str:
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


def numbers(fields: Any, key: str | int) -> tuple[float, ...]:
    """All values of a numeric element, empty if it is absent or not numeric."""
    found = value(fields, key)
    if found is None or isinstance(found, bytes):
        return ()
    if isinstance(found, str):
        found = found.split("\\")
    elif not hasattr(found, "__iter__"):
        found = (found,)
    try:
        return tuple(map(float, found))
    except BROKEN_FILE:
        return ()


def integers(fields: Any, key: str | int) -> tuple[int, ...]:
    """As `numbers`, rounded towards zero; empty if one is not finite."""
    found = numbers(fields, key)
    return tuple(int(v) for v in found) if all(map(math.isfinite, found)) else ()


def number(fields: Any, key: str | int) -> float | None:
    """The first value of a numeric element."""
    found = numbers(fields, key)
    return found[0] if found else None


def items(fields: Any, key: str | int) -> Sequence[Any]:
    """The items of a sequence, empty if absent or not one."""
    found = value(fields, key)
    return found if isinstance(found, Sequence) and not isinstance(found, str | bytes | tuple) else ()


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
        raise ReadError(f"{os.path.basename(path)} cannot be opened: {error.strerror}.") from error
    return as_if_whole(_read_header(os.fspath(path), status.st_mtime_ns, status.st_size))


@lru_cache(maxsize=4096)
def _read_header(path: str, changed: int, size: int) -> Header:
    name = os.path.basename(path)
    try:
        with open(path, "rb", buffering=0) as raw:
            head = raw.read(CHUNK)
            if not looks_like_dicom(head):
                raise NotDicomError(f"{name} is not a DICOM file: it does not begin as one.")
            found = read_elements(raw, head, size, WANTED)
        if found is None:
            with open(path, "rb") as file:
                return _through_pydicom(path, file, size)
    except OSError as error:
        raise ReadError(f"{name} cannot be read: {error.strerror or error}.") from error
    except BROKEN_FILE as error:
        raise ReadError(
            f"The header of {name} is broken ({type(error).__name__}); the file may be cut off or damaged."
        ) from error
    return header_of(path, found, size)


def header_of(path: str, found: Found, size: int, kin: Kin | None = None) -> Header:
    """The header of a file whose elements were found."""
    keyword = _PIXEL_KEYWORDS.get(found.pixel_tag, "")
    offset, length, vr = found.pixel_offset, found.pixel_length, found.pixel_vr
    return Header(path, found.values, found.media_class, found.syntax, keyword, offset, length, vr, size, False, kin)


def _through_pydicom(path: str, file: BinaryIO, size: int) -> Header:
    """Read what is not plain: sequences, big-endian and deflated files, and those that need repair."""
    with quietly() as heard:
        dataset = dcmread(file, stop_before_pixels=True, specific_tags=list(WANTED), force=True)
        meta = getattr(dataset, "file_meta", None)
        syntax = text(meta, "TransferSyntaxUID") if meta is not None else ""
        implicit, little = dataset.original_encoding
        little = little is not False
        if not syntax:
            native = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
            syntax = str(ImplicitVRLittleEndian if implicit else native)
        if syntax == DEFLATED:
            pixels = ("PixelData", -1, -1, "OW") if dataset.get("Rows") else ("", 0, 0, "")
        else:
            pixels = _find_pixels(file, bool(implicit), little)
        # Raw elements become values here, while warnings are collected; the unreadable ones are left out.
        fields = {int(tag): value(dataset, int(tag)) for tag in list(dataset.keys())}
        media_class = text(meta, "MediaStorageSOPClassUID") if meta is not None else ""
    if media_class == DICOMDIR_CLASS:
        pixels = ("", 0, 0, "")
    return Header(path, fields, media_class, syntax, *pixels, size, bool(heard))


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

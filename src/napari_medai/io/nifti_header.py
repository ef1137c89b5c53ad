"""The header of a NIfTI file: which files it describes, its sizes, where the pixels begin, our record in it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from napari_medai.core.errors import ReadError, UnsupportedFormatError
from napari_medai.io import record as records
from napari_medai.io.nifti_pixels import read_head, stated_length

SUFFIXES = (".nii", ".nii.gz", ".hdr", ".img", ".hdr.gz", ".img.gz")
# "n+" is a single file, "ni" the header of a pair; the version follows.
_SINGLE, _PAIR = (b"n+1\0", b"n+2\0"), (b"ni1\0", b"ni2\0")
_ANALYZE_SIZES = (b"\x5c\x01\0\0", b"\0\0\x01\x5c")  # 348 in either byte order
_LONGEST_HEADER = 544
_COMMENT = 6  # NIFTI_ECODE_COMMENT
_CIFTI = range(3000, 3100)
# An extension that tells more than this is not read for our record: ours takes a few kilobytes.
_RECORD_BYTES = 1 << 24
# Analyze 7.5: its fields mean what NIfTI's do up to the scale, but for these (units and names).
_ANALYZE_OTHERS = (slice(56, 70), slice(74, 76), slice(116, 348))
# SPM's origin in an Analyze header: 16-bit numbers, counted from 1
_ORIGIN = slice(253, 259)


def magic_of(head: bytes) -> bytes:
    """NIfTI's magic word, of version 1 or 2; empty if there is none."""
    for word, version in ((head[344:348], b"1"), (head[4:8], b"2")):
        if word in (*_SINGLE, *_PAIR) and word[2:3] == version:
            return word
    return b""


def is_header(head: bytes, path: Path) -> bool:
    """Whether bytes of a file, decoded, begin as a NIfTI header does, or as Analyze's beside an image."""
    if magic_of(head):
        return True
    return _suffix(path) == ".hdr" and head[:4] in _ANALYZE_SIZES and _beside(path, ".img") is not None


def header_beside(path: Path) -> Path | None:
    """The header of an ``.img`` file; None for files of other names."""
    return _beside(path, ".hdr") if _suffix(path) == ".img" else None


def files_of(path: Path) -> tuple[Path, Path]:
    """Header file and image file; the same one where a file holds both.

    Raises
    ------
    ReadError
        The other file of a pair is missing.
    """
    suffix = _suffix(path)
    if suffix not in (".hdr", ".img") or magic_of(read_head(path, _LONGEST_HEADER)) in _SINGLE:
        return path, path
    other = _beside(path, ".img" if suffix == ".hdr" else ".hdr")
    if other is None:
        missing = _stem(path) + (".img" if suffix == ".hdr" else ".hdr")
        raise ReadError(f"{path} is one half of a pair; {missing} is missing beside it.")
    return (path, other) if suffix == ".hdr" else (other, path)


def read_header(path: Path, findings: list[str]) -> Any:
    """nibabel's header, unchecked: what is wrong is said in our words. Its ``dim`` has at most 5 sizes, c last.

    Raises
    ------
    ReadError
        There is no header, it is cut off, or its sizes are damaged.
    UnsupportedFormatError
        It describes no image.
    """
    head = read_head(path, _LONGEST_HEADER)
    word = magic_of(head)
    if not word and head[:4] in _ANALYZE_SIZES and _suffix(path) == ".hdr":
        header = _analyze(path, head, findings)
    elif not word:
        analyze = " (nor is it the .hdr of an Analyze pair)" if head[:4] in _ANALYZE_SIZES else ""
        raise UnsupportedFormatError(
            f"{path} has no NIfTI header: 'n+1', 'ni1' or 'n+2' was not found in its first 348 bytes{analyze}. "
            "Export it again as NIfTI."
        )
    else:
        second = word[2:3] == b"2"
        size = 540 if second else 348
        if len(head) < size:
            raise ReadError(f"{path} is truncated: {len(head)} bytes, where the header alone takes {size}.")
        header = (nibabel.nifti2.Nifti2Header if second else nibabel.nifti1.Nifti1Header)(head[:size], check=False)
        if int(header["sizeof_hdr"]) != size:
            findings.append(f"the header says that it takes {int(header['sizeof_hdr'])} bytes; {size} were taken")
    _set_sizes(path, header)
    return header


def header_size(header: Any) -> int:
    """Bytes of the header itself."""
    return int(header.template_dtype.itemsize)


def _analyze(path: Path, head: bytes, findings: list[str]) -> Any:
    """An Analyze header as a NIfTI one: the same sizes, type and scale, SPM's origin, no transform."""
    if len(head) < 348:
        raise ReadError(f"{path} is truncated: {len(head)} bytes, where the header alone takes 348.")
    content = bytearray(head[:348])
    for part in _ANALYZE_OTHERS:
        content[part] = bytes(part.stop - part.start)
    header = nibabel.nifti1.Nifti1Header(bytes(content), check=False)
    header["xyzt_units"] = 2
    header["magic"] = b"ni1"
    findings.append("this is Analyze 7.5, which does not tell left from right: the first axis was taken to run left")
    origin = np.frombuffer(head[_ORIGIN], f"{header.endianness}i2").astype(float)
    sizes = np.asarray(header["dim"][1:4], dtype=float)
    if origin.any() and (origin > -sizes).all() and (origin < 2 * sizes).all():
        steps = np.asarray(header["pixdim"][1:4], dtype=float) * (-1, 1, 1)
        if np.isfinite(steps).all() and steps.all():
            affine = np.diag([*steps, 1.0])
            affine[:3, 3] = -(origin - 1) * steps
            for row, name in enumerate(("srow_x", "srow_y", "srow_z")):
                header[name] = affine[row]
            header["sform_code"] = 2
            findings.append("the origin is the one that SPM wrote into the header")
    return header


def _set_sizes(path: Path, header: Any) -> None:
    """Bring the sizes into (x, y, z, t, c): trailing ones go, and so do those before the values of a voxel."""
    count = int(header["dim"][0])
    sizes = [int(n) for n in header["dim"][1 : count + 1]] if 1 <= count <= 7 else []
    if not sizes or min(sizes) < 1:
        raise ReadError(f"{path} has a damaged header: its dimensions are {[int(n) for n in header['dim']]}.")
    while len(sizes) > 3 and sizes[-1] == 1:
        sizes.pop()
    channels = [n for n in sizes[4:] if n > 1]
    if len(sizes) < 2 or len(channels) > 1 or int(header["intent_code"]) in _CIFTI:
        raise UnsupportedFormatError(
            f"{path} has the dimensions {sizes}: not an image of 2 to 5 dimensions. Surfaces and connectivity "
            "(CIFTI) have to be turned into a volume first."
        )
    sizes = [*sizes[:4], *channels]
    header["dim"][:] = [len(sizes), *sizes, *[1] * (7 - len(sizes))]


def pixel_offset(path: Path, header: Any, single: bool, pixel_bytes: int, findings: list[str]) -> int:
    """The byte of the image file, decoded, where the pixels begin; counted from its start in pairs too.

    Where the header's own number cannot be right and the file is exactly as long as header and pixels, the
    pixels are taken from behind the header.

    Parameters
    ----------
    path : Path
        The image file.
    header : nibabel header
        As read.
    single : bool
        Whether header and pixels share the file.
    pixel_bytes : int
        Of all pixels, as stored.
    findings : list of str
        Added to.

    Raises
    ------
    ReadError
        The number cannot be right, and the length of the file tells nothing.
    """
    offset, size = float(header["vox_offset"]), header_size(header)
    behind = size + 4 if single else 0
    if offset == 0:  # some writers leave it out
        return behind
    sound = math.isfinite(offset) and behind <= offset < 2**40
    length, modulus = stated_length(path)
    if sound and not (modulus == 0 and int(offset) + pixel_bytes > length):
        return int(offset)
    for start in (behind, size if single else 0):
        wanted = start + pixel_bytes
        if length == (wanted % modulus if modulus else wanted):
            findings.append(f"the header puts the pixels at byte {offset:g}, which cannot be; byte {start} was taken")
            return start
    if sound:
        return int(offset)  # whoever compares the lengths says what is wrong
    raise ReadError(f"{path} has a damaged header: its pixels start at byte {offset:g}. Export the file again.")


def record_in(path: Path, header: Any, end: int) -> dict[str, Any]:
    """Our record out of the extensions between a header and ``end``: after 4 bytes, each its size, code and text."""
    start = header_size(header)
    if end <= start + 12:
        return {}
    block = read_head(path, min(end, _RECORD_BYTES))
    if block[start : start + 1] in (b"", b"\0"):
        return {}
    order = "<" if header.endianness == "<" else ">"
    at = start + 4
    while at + 8 <= len(block):
        size, code = (int(n) for n in np.frombuffer(block, f"{order}i4", 2, at))
        if size < 16:
            break
        if code == _COMMENT:
            found = records.load(block[at + 8 : at + size].rstrip(b"\0").decode("utf-8", "replace"))
            if found:
                return found
        at += size
    return {}


def _suffix(path: Path) -> str:
    """The lower suffix without ``.gz``."""
    name = path.name.lower().removesuffix(".gz")
    return name[name.rfind(".") :] if "." in name[1:] else ""


def _stem(path: Path) -> str:
    name = path.name[:-3] if path.name.lower().endswith(".gz") else path.name
    return name[: name.rfind(".")]


def _beside(path: Path, suffix: str) -> Path | None:
    """The other file of a pair, compressed or not, in the same letter case first."""
    stem = _stem(path)
    upper = path.name.removeprefix(stem).isupper()
    same = path.name.lower().endswith(".gz")
    for packed in (same, not same):
        name = suffix + (".gz" if packed else "")
        for other in dict.fromkeys((name.upper() if upper else name, name)):
            candidate = path.with_name(stem + other)
            if candidate.is_file():
                return candidate
    return None

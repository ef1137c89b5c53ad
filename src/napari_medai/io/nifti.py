"""NIfTI-1 and NIfTI-2, single files and pairs, plain and gzip.

The headers are read as the NIfTI-1.1 standard (nifti1.h) describes them. Pixels stay on the disk;
world coordinates are turned from RAS into zyx-LPS-backwards here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from napari_medai.core.errors import GeometryError, ReadError, SeriesInfo, UnsupportedFormatError
from napari_medai.core.geometry import SAME_PLACE_MM, as_affine, from_ras
from napari_medai.core.volume import Volume
from napari_medai.io import record as records
from napari_medai.io.nifti_labels import holds_labels
from napari_medai.io.nifti_pixels import GZIP_MAGIC, StoredPixels, check_length, lazy, read_head
from napari_medai.io.nifti_write import save_volume
from napari_medai.io.single import heeding, only_series, series_of, stem

__all__ = ["list_series", "open_volume", "save_volume", "sniff"]

_SUFFIXES = (".nii", ".nii.gz", ".hdr", ".img")
_MAGIC_1, _MAGIC_2 = (b"n+1\0", b"ni1\0"), (b"n+2\0", b"ni2\0")
# NIFTI_UNITS_METER, _MM, _MICRON (xyzt_units, three lowest bits) -> unit of the world, factor
_UNITS = {1: ("mm", 1e3), 2: ("mm", 1.0), 3: ("um", 1.0)}
# NIFTI_UNITS_SEC, _MSEC, _USEC
_SECONDS = {8: 1.0, 16: 1e-3, 24: 1e-6}
_COMMENT = 6  # NIFTI_ECODE_COMMENT
_LABEL = 1002  # NIFTI_INTENT_LABEL
_COLOUR = {128: 3, 2304: 4}  # DT_RGB24, DT_RGBA32


def sniff(head: bytes, path: Path) -> bool:
    """Whether the bytes start a NIfTI header, behind gzip too; ``.img`` is known by the header beside it."""
    if path.suffix.lower() == ".img":
        beside = _beside(path, ".hdr")
        return beside is not None and sniff(read_head(beside, 540), beside)
    if head.startswith(GZIP_MAGIC):
        try:
            head = read_head(path, 540)
        except ReadError:
            return False
    return head[344:348] in _MAGIC_1 or head[4:8] in _MAGIC_2


def list_series(path: Path) -> list[SeriesInfo]:
    """The one image of a file; reads its header only."""
    return [series_of(open_volume(path, labels=False))]


def open_volume(path: Path, series_uid: str = "", *, labels: bool | None = None) -> Volume:
    """Open a NIfTI file.

    Parameters
    ----------
    path : Path
        ``.nii``, ``.nii.gz``, or either file of a pair.
    series_uid : str
        Must be empty: a file holds one image.
    labels : bool, optional
        Whether whole numbers are labels. Default: what the header says (intent code, or the record of a file
        we wrote), else the file's name, else a look at three planes (see `holds_labels`).

    Returns
    -------
    Volume
        Lazy, canonical axes ``(t)(c)zyx(s)``, in mm; in um where the header says micrometres. The position
        is the sform if its code is set, else the qform, else what Analyze did. Complex pixels are given
        as magnitude. ``meta`` may hold ``is_labels``, ``label_names``, ``label_colors``, ``provenance``,
        ``frame_seconds`` (distance of time points), ``nifti_xform`` (code of the position) and ``findings``.

    Raises
    ------
    ReadError
        The header is damaged or the file shorter than it says.
    UnsupportedFormatError
        Analyze, surfaces and connectivity (CIFTI), and pixel types without a number.
    """
    only_series(path, series_uid)
    findings: list[str] = []
    with heeding(findings):
        header_path, image_path = _pair(path)
        head = read_head(header_path, 544)
        header = _header(header_path, head)
        # the standard counts vox_offset from the start of the image file, pairs too
        offset = _offset(header_path, header, single=header_path == image_path)
        record = _record(header_path, header, head, offset if header_path == image_path else 0)
        pixels = _pixels(image_path, header, offset, findings)
        check_length(pixels)
        array, axes = _axes(pixels, header, record)
        affine, code = _position(header_path, header, findings)
        units, affine = _units(header, record, affine, findings)
    meta: dict[str, Any] = records.meta_of(record) | {"nifti_xform": code}
    meta["is_labels"] = labels if labels is not None else _labels(path, header, meta, pixels)
    seconds = _SECONDS.get(int(header["xyzt_units"]) & 0x38, 0.0) * float(header["pixdim"][4])
    if "t" in axes and np.isfinite(seconds) and seconds > 0:
        meta["frame_seconds"] = seconds
    if not meta["is_labels"]:
        del meta["is_labels"]
    meta["findings"] = tuple(findings)
    volume = Volume(
        array=array,
        axes=axes,
        affine=affine,
        units=units,
        modality=record.get("modality", ""),
        name=stem(path, _SUFFIXES),
        meta=meta,
        source=str(path),
    )
    return volume.canonical()


def _beside(path: Path, suffix: str) -> Path | None:
    """The other file of a pair, in the same letter case."""
    other = path.with_suffix(suffix.upper() if path.suffix.isupper() else suffix)
    return other if other.is_file() else None


def _pair(path: Path) -> tuple[Path, Path]:
    """Header file and image file."""
    suffix = path.suffix.lower()
    if suffix not in (".hdr", ".img"):
        return path, path
    other = _beside(path, ".img" if suffix == ".hdr" else ".hdr")
    if other is None:
        missing = path.with_suffix(".img" if suffix == ".hdr" else ".hdr").name
        raise ReadError(f"{path} is one half of a pair; {missing} is missing beside it.")
    return (path, other) if suffix == ".hdr" else (other, path)


def _header(path: Path, head: bytes) -> Any:
    """nibabel's header, unchecked: what is wrong is said in our words."""
    if head[344:348] in _MAGIC_1:
        kind, size = nibabel.nifti1.Nifti1Header, 348
    elif head[4:8] in _MAGIC_2:
        kind, size = nibabel.nifti2.Nifti2Header, 540
    elif head[:4] in (b"\x5c\x01\0\0", b"\0\0\x01\x5c"):
        raise UnsupportedFormatError(
            f"{path} is an Analyze 7.5 header, which does not say where left and right are; convert it to NIfTI."
        )
    else:
        raise ReadError(f"{path} has no NIfTI header: 'n+1', 'ni1' or 'n+2' was not found in its first 348 bytes.")
    if len(head) < size:
        raise ReadError(f"{path} is truncated: {len(head)} bytes, where the header alone takes {size}.")
    header = kind(head[:size], check=False)
    count = int(header["dim"][0])
    sizes = [int(n) for n in header["dim"][1 : count + 1]]
    if not 1 <= count <= 7 or min(sizes) < 1:
        raise ReadError(f"{path} has a damaged header: its dimensions are {[int(n) for n in header['dim']]}.")
    while len(sizes) > 3 and sizes[-1] == 1:
        sizes.pop()
    if len(sizes) < 2 or len(sizes) > 5 or 3000 <= int(header["intent_code"]) < 3100:
        raise UnsupportedFormatError(
            f"{path} has the dimensions {sizes}: not an image of 2 to 5 dimensions. Surfaces and connectivity "
            "(CIFTI) have to be turned into a volume first."
        )
    header["dim"][:] = [len(sizes), *sizes, *[1] * (7 - len(sizes))]
    return header


def _offset(path: Path, header: Any, single: bool) -> int:
    offset = float(header["vox_offset"])
    size = 352 if header["sizeof_hdr"] == 348 else 544
    if single and offset == 0:  # some writers leave it out; the pixels then follow the header
        return size
    if not np.isfinite(offset) or offset < 0 or (single and offset < size) or offset > 2**40:
        raise ReadError(f"{path} has a damaged header: its pixels start at byte {offset}.")
    return int(offset)


def _record(path: Path, header: Any, head: bytes, end: int) -> dict[str, Any]:
    """Our record out of the header's extensions: after 4 bytes, each its size, code and text."""
    start = int(header["sizeof_hdr"])
    if start not in (348, 540):
        start = 348 if head[344:348] in _MAGIC_1 else 540
    if end <= start + 12 or head[start : start + 1] in (b"", b"\0"):
        return {}
    block = read_head(path, min(end, 1 << 24))
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


def _pixels(path: Path, header: Any, offset: int, findings: list[str]) -> StoredPixels:
    code = int(header["datatype"])
    shape = tuple(int(n) for n in header["dim"][1 : int(header["dim"][0]) + 1])[::-1]
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if not np.isfinite(slope) or slope == 0:  # the standard: 0 means no scaling
        slope, inter = 1.0, 0.0
    if not np.isfinite(inter):
        findings.append("the header's intercept is not a number; 0 was taken")
        inter = 0.0
    if code in _COLOUR:
        stored, shape, slope, inter = np.dtype(np.uint8), (*shape, _COLOUR[code]), 1.0, 0.0
    else:
        try:
            stored = header.get_data_dtype()
        except (HeaderDataError, KeyError):
            stored = np.dtype("V1")
        if stored.kind not in "iufc" or stored.itemsize > 16:
            raise UnsupportedFormatError(
                f"{path} holds pixels of NIfTI datatype {code}, which cannot be opened; export whole or real numbers."
            )
    dtype = _opened_dtype(stored, slope, inter)
    if stored.kind == "c":
        findings.append("the pixels are complex; their magnitude is shown, without the header's scaling")
        slope, inter = 1.0, 0.0
    compressed = read_magic(path) == GZIP_MAGIC
    return StoredPixels(path, offset, stored, shape, slope, inter, dtype, compressed)


def read_magic(path: Path) -> bytes:
    """The first two bytes."""
    with path.open("rb") as file:
        return file.read(2)


def _opened_dtype(stored: np.dtype[Any], slope: float, inter: float) -> np.dtype[Any]:
    """Whole numbers stay whole if the scaling is; else float32 where it holds what was stored, or float64."""
    if stored.kind == "c":
        return np.dtype(np.float32 if stored.itemsize == 8 else np.float64)
    if stored.kind == "f":
        single = stored.itemsize <= 4
        return np.dtype(np.float32 if single else np.float64)
    if slope == 1 and inter == 0:
        return stored.newbyteorder("=")
    if slope.is_integer() and inter.is_integer():
        info = np.iinfo(stored)
        ends = [int(end) * int(slope) + int(inter) for end in (info.min, info.max)]
        for kind in (np.int16, np.int32):
            if np.iinfo(kind).min <= min(ends) and max(ends) <= np.iinfo(kind).max:
                return np.dtype(kind)
    return np.dtype(np.float32 if stored.itemsize <= 2 else np.float64)


def _axes(pixels: StoredPixels, header: Any, record: Mapping[str, Any]) -> tuple[Any, str]:
    """The lazy array and its axes. NIfTI's fifth dimension holds the values per voxel: channels."""
    array = lazy(pixels)
    colour = "s" if int(header["datatype"]) in _COLOUR else ""
    axes = {2: "yx", 3: "zyx", 4: "tzyx", 5: "ctzyx"}[pixels.ndim - len(colour)] + colour
    if axes.startswith("ct"):
        if array.shape[1] == 1:
            array, axes = array[:, 0], axes.replace("t", "")
        else:
            array, axes = array.swapaxes(0, 1), "tc" + axes[2:]
    if "z" in axes and array.shape[axes.index("z")] == 1 and "z" not in record.get("axes", "z"):
        array, axes = array[(slice(None),) * axes.index("z") + (0,)], axes.replace("z", "")
    return array, axes


def _position(path: Path, header: Any, findings: list[str]) -> tuple[NDArray[np.float64], int]:
    """The affine (zyx-LPS-backwards) and the code of the transform it was taken from."""
    sizes = np.array([int(n) for n in header["dim"][1:4]])
    steps = np.abs(np.asarray(header["pixdim"][1:4], dtype=float))
    if not np.isfinite(steps).all() or (steps[: min(3, int(header["dim"][0]))] == 0).any():
        findings.append("a voxel size in the header is 0 or not a number; 1 was taken")
    steps = np.where(np.isfinite(steps) & (steps > 0), steps, 1.0)
    header["pixdim"][1:4] = steps
    found: list[tuple[str, NDArray[np.float64], int]] = []
    for name in ("sform", "qform"):
        code = int(header[f"{name}_code"])
        if code <= 0:
            continue
        try:
            affine = header.get_sform() if name == "sform" else header.get_qform()
            found.append((name, as_affine(affine), code))
        except (GeometryError, HeaderDataError, ValueError, np.linalg.LinAlgError):
            findings.append(f"the header's {name} is not a transform and was left out")
    if not found:
        # METHOD 1 of nifti1.h names no directions; first axis to the left is what Analyze, SPM, FSL and nibabel take
        affine = np.diag([-steps[0], steps[1], steps[2], 1.0])
        affine[:3, 3] = -affine[:3, :3] @ ((sizes - 1) / 2)
        findings.append("the header names no position: left and right are a guess (first axis towards the left)")
        return from_ras(affine), 0
    if len(found) == 2:
        ends = np.array(np.meshgrid(*[(0, n - 1) for n in sizes], indexing="ij")).reshape(3, -1)
        ends = np.vstack([ends, np.ones(8)])
        apart = float(np.linalg.norm((found[0][1] @ ends - found[1][1] @ ends)[:3], axis=0).max())
        if apart > SAME_PLACE_MM:
            findings.append(f"sform and qform differ by up to {apart:.2f} in world units; the sform was taken")
    return from_ras(found[0][1]), found[0][2]


def _units(
    header: Any, record: Mapping[str, Any], affine: NDArray[np.float64], findings: list[str]
) -> tuple[str, NDArray[np.float64]]:
    code = int(header["xyzt_units"]) & 0x07
    units, factor = _UNITS.get(code, ("mm", 1.0))
    if factor != 1:
        findings.append("the header gives metres; turned into mm")
        affine = np.diag([factor, factor, factor, 1.0]) @ affine
    return record.get("units", units) if code == 0 else units, affine


def _labels(path: Path, header: Any, meta: Mapping[str, Any], pixels: StoredPixels) -> bool:
    if pixels.dtype.kind not in "iu" or int(header["datatype"]) in _COLOUR:
        return False
    if "is_labels" in meta:
        return bool(meta["is_labels"])
    intent = int(header["intent_code"])
    if intent or pixels.slope != 1 or pixels.inter != 0:
        return intent == _LABEL
    return holds_labels(path, pixels)

"""NIfTI-1 and NIfTI-2, single files and pairs, plain and gzip; Analyze 7.5 pairs.

The headers are read as the NIfTI-1.1 standard (nifti1.h) describes them. Pixels stay on the disk; world
coordinates are turned from RAS into zyx-LPS-backwards in `nifti_position` and nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.nifti1 import intent_codes
from nibabel.spatialimages import HeaderDataError

from napari_medai.core.errors import ParamsError, ReadError, SeriesInfo, UnsupportedFormatError
from napari_medai.core.volume import Volume
from napari_medai.io import record as records
from napari_medai.io.nifti_header import (
    SUFFIXES,
    files_of,
    header_beside,
    is_header,
    pixel_offset,
    read_header,
    record_in,
)
from napari_medai.io.nifti_labels import holds_labels
from napari_medai.io.nifti_pixels import GZIP_MAGIC, PARTS, Part, StoredPixels, check_length, lazy, read_head
from napari_medai.io.nifti_position import Transform, position, time_axis
from napari_medai.io.nifti_wide import WIDE_BYTES
from napari_medai.io.nifti_write import save_volume
from napari_medai.io.single import heeding, only_series, series_of, stem

__all__ = ["list_series", "open_volume", "save_volume", "sniff"]

_HEAD_BYTES = 540
_LABEL = 1002  # NIFTI_INTENT_LABEL
_COLOUR = {128: 3, 2304: 4}  # DT_RGB24, DT_RGBA32
_WIDE = {1536: 1, 2048: 2}  # DT_FLOAT128, DT_COMPLEX256: numbers of 16 bytes
# NIFTI_INTENT_GENMATRIX, _SYMMATRIX, _DISPVECT, _VECTOR, _QUATERNION: several values for each voxel
_VECTORS = frozenset({1004, 1005, 1006, 1007, 1010})
# those whose values are directions in space
_DIRECTED = frozenset({1005, 1006, 1007})
_RGB_VECTORS = {2003: 3, 2004: 4}  # NIFTI_INTENT_RGB_VECTOR, _RGBA_VECTOR


def sniff(head: bytes, path: Path) -> bool:
    """Whether the bytes start a NIfTI header, behind gzip too; ``.img`` is known by the header beside it."""
    try:
        beside = header_beside(path)
        if beside is not None:
            return is_header(read_head(beside, _HEAD_BYTES), beside)
        if head.startswith(GZIP_MAGIC):
            head = read_head(path, _HEAD_BYTES)
    except ReadError:
        return False
    return is_header(head, path)


def list_series(path: Path) -> list[SeriesInfo]:
    """The one image of a file; reads its header only."""
    return [series_of(open_volume(path, labels=False))]


def open_volume(
    path: Path,
    series_uid: str = "",
    *,
    labels: bool | None = None,
    affine: Transform = "sform",
    part: Part = "magnitude",
) -> Volume:
    """Open a NIfTI file.

    Parameters
    ----------
    path : Path
        ``.nii``, ``.nii.gz``, or either file of a pair, each plain or gzip.
    series_uid : str
        Must be empty: a file holds one image.
    labels : bool, optional
        Whether whole numbers are labels. Default: what the header says (intent code, or the record of a file
        we wrote), else the file's name, else a look at three planes (see `holds_labels`).
    affine : {"sform", "qform"}
        Which transform gives the position, where the header holds both.
    part : {"magnitude", "phase", "real", "imaginary"}
        What is taken of complex pixels; phase in radians.

    Returns
    -------
    Volume
        Lazy, canonical axes ``(t)(c)zyx(s)``, in mm; in um where the header counts in micrometres and voxels are
        smaller than 0.1 mm. The position is the sform if its code is set, else the qform, else what Analyze did.
        ``meta`` may hold ``is_labels``, ``label_names``, ``label_colors``, ``provenance``, ``axis_t`` and
        ``frame_seconds`` (distance of time points), ``nifti_xform`` (code of the position), ``nifti_intent`` (name
        of what the values are), ``stored_affine`` (of the axes as the file has them, where they were turned: models
        that never turn an image see it as their own framework reads it) and ``findings``.

    Raises
    ------
    ReadError
        The header is damaged or the file shorter than it says.
    UnsupportedFormatError
        Surfaces and connectivity (CIFTI), and pixel types without a number.
    ParamsError
        ``affine`` or ``part`` is none of those above.
    """
    only_series(path, series_uid)
    if affine not in ("sform", "qform"):
        raise ParamsError(f'affine={affine!r} was given; use "sform" or "qform".')
    if part not in PARTS:
        raise ParamsError(f"part={part!r} was given; use one of {', '.join(PARTS)}.")
    findings: list[str] = []
    try:
        with heeding(findings):
            header_path, image_path = files_of(path)
            header = read_header(header_path, findings)
            pixels = _pixels(image_path, header, part, findings)
            single = header_path == image_path
            pixels.offset = pixel_offset(image_path, header, single, pixels.nbytes_stored, findings)
            record = record_in(header_path, header, pixels.offset if single else 0)
            check_length(pixels, findings)
            array, axes = _axes(pixels, header, record, findings)
            place, units, code = position(header, record, affine, findings)
            meta: dict[str, Any] = records.meta_of(record) | {"nifti_xform": code}
            if "t" in axes:
                meta |= time_axis(header, array.shape[axes.index("t")], findings)
            meta["is_labels"] = labels if labels is not None else _labels(path, header, meta, pixels)
    except OSError as error:
        raise ReadError(f"{path} cannot be read: {error.strerror or error}.") from error
    intent = int(header["intent_code"])
    if intent and intent in intent_codes.label:
        meta["nifti_intent"] = intent_codes.label[intent]
    if not meta["is_labels"]:
        del meta["is_labels"]
    meta["findings"] = tuple(dict.fromkeys(findings))
    volume = Volume(
        array=array,
        axes=axes,
        affine=place,
        units=units,
        modality=record.get("modality", ""),
        name=stem(path, SUFFIXES),
        meta=meta,
        source=str(path),
    )
    turned = volume.canonical()
    if turned is volume:
        return volume
    return turned.replace(meta={**meta, "stored_affine": tuple(map(tuple, volume.affine.tolist()))})


def _pixels(path: Path, header: Any, part: Part, findings: list[str]) -> StoredPixels:
    """The stored array, slowest axis first; where it begins is still to be found."""
    code = int(header["datatype"])
    shape = tuple(int(n) for n in header["dim"][1 : int(header["dim"][0]) + 1])[::-1]
    slope, inter = _scaling(header, findings)
    big = header.endianness == ">"
    if code in _COLOUR:
        stored, shape, slope, inter = np.dtype(np.uint8), (*shape, _COLOUR[code]), 1.0, 0.0
    elif code in _WIDE:
        stored = np.dtype(f"V{WIDE_BYTES * _WIDE[code]}")
        findings.append("the pixels are numbers of 128 bits; they were rounded to 64")
    else:
        try:
            stored = header.get_data_dtype()
        except (HeaderDataError, KeyError):
            stored = np.dtype("V1")
        if stored.kind not in "iufc" or stored.itemsize > 16:
            raise UnsupportedFormatError(
                f"{path} holds pixels of NIfTI datatype {code}, which cannot be opened; export whole or real numbers."
            )
    if stored.kind == "c" or _WIDE.get(code) == 2:
        others = ", ".join(f'part="{name}"' for name in PARTS if name != part)
        findings.append(f"the pixels are complex; their {part} is shown ({others} show the rest)")
    with path.open("rb") as file:
        compressed = file.read(2) == GZIP_MAGIC
    return StoredPixels(
        path, 0, stored, shape, slope, inter, opened_dtype(stored, slope, inter), compressed, part, big=big
    )


def _scaling(header: Any, findings: list[str]) -> tuple[float, float]:
    """Slope and intercept; the standard: a slope of 0 means no scaling."""
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if math.isinf(slope):
        findings.append("the header's slope is infinite; no scaling was done")
    if not math.isfinite(slope) or slope == 0:  # not a number is how nibabel writes none
        return 1.0, 0.0
    if not math.isfinite(inter):
        findings.append("the header's intercept is not a number; 0 was taken")
        inter = 0.0
    return slope, inter


def opened_dtype(stored: np.dtype[Any], slope: float, inter: float) -> np.dtype[Any]:
    """Whole numbers stay whole if the scaling is; else float32 where it holds what was stored, or float64."""
    if stored.kind == "V":
        return np.dtype(np.float64)
    if stored.kind in "cf":
        single = stored.itemsize <= (8 if stored.kind == "c" else 4)
    elif slope == 1 and inter == 0:
        return stored.newbyteorder("=")
    else:
        info = np.iinfo(stored)
        if slope.is_integer() and inter.is_integer():
            ends = [int(end) * int(slope) + int(inter) for end in (info.min, info.max)]
            for kind in (np.int16, np.int32):
                if np.iinfo(kind).min <= min(ends) and max(ends) <= np.iinfo(kind).max and abs(slope) < 2**31:
                    return np.dtype(kind)
        largest = max(-info.min, info.max) * abs(slope) + abs(inter)
        # an absurd slope must not make infinities
        single = stored.itemsize <= 2 and largest <= float(np.finfo(np.float32).max)
    return np.dtype(np.float32 if single else np.float64)


def _axes(pixels: StoredPixels, header: Any, record: Mapping[str, Any], findings: list[str]) -> tuple[Any, str]:
    """The lazy array and its axes. NIfTI's fifth dimension holds the values per voxel: channels."""
    array = lazy(pixels)
    colour = "s" if int(header["datatype"]) in _COLOUR else ""
    intent = int(header["intent_code"])
    axes = {2: "yx", 3: "zyx", 4: "tzyx", 5: "ctzyx"}[pixels.ndim - len(colour)] + colour
    if axes.startswith("tz") and intent in (*_VECTORS, *_RGB_VECTORS):
        findings.append("the header calls the values vectors; the fourth dimension was taken for their components")
        axes = "c" + axes[1:]
    elif axes.startswith("ct") and array.shape[1] == 1:
        array, axes = array[:, 0], axes.replace("t", "")
    if axes.startswith("c") and not colour and array.shape[0] == _RGB_VECTORS.get(intent) and array.dtype == np.uint8:
        array, axes = array.transpose([*range(1, array.ndim), 0]), axes[1:] + "s"
    elif axes.startswith("ct"):
        array, axes = array.swapaxes(0, 1), "tc" + axes[2:]
    if "c" in axes and intent in _DIRECTED:
        findings.append("the values are directions in space; they stand in the file's own coordinates, as stored")
    if "z" in axes and array.shape[axes.index("z")] == 1 and "z" not in record.get("axes", "z"):
        array, axes = array[(slice(None),) * axes.index("z") + (0,)], axes.replace("z", "")
    return array, axes


def _labels(path: Path, header: Any, meta: Mapping[str, Any], pixels: StoredPixels) -> bool:
    if pixels.dtype.kind not in "iu" or int(header["datatype"]) in _COLOUR:
        return False
    if "is_labels" in meta:
        return bool(meta["is_labels"])
    intent = int(header["intent_code"])
    if intent or pixels.slope != 1 or pixels.inter != 0:
        return intent == _LABEL
    return holds_labels(path, pixels)

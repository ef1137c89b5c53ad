"""Makes the Volume of a stack: lazy pixels, window, and the header fields worth keeping."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from napari_medai.core.volume import Volume
from napari_medai.io.dicom.decoding import Plane, modality_table
from napari_medai.io.dicom.frames import Frame
from napari_medai.io.dicom.pixels import PixelFile
from napari_medai.io.dicom.planes import Planes, common_dtype
from napari_medai.io.dicom.segments import segment_meta
from napari_medai.io.dicom.stacks import Stack

# Hounsfield units of air, what is around a patient.
_AIR = -1000


def volume_of(
    stack: Stack, files: dict[str, PixelFile], uid: str, findings: tuple[str, ...] = (), source: str = ""
) -> Volume:
    """The Volume of a stack.

    Parameters
    ----------
    stack : Stack
        Planes and place.
    files : dict of str to PixelFile
        By path.
    uid : str
        Of the series.
    findings : tuple of str
        What is unusual about the series.
    source : str
        Where it was opened.

    Returns
    -------
    Volume
        Axes ``"zyx"``, ``"tzyx"``, ``"tyx"`` or ``"yx"``, with ``s`` for colour.
    """
    lead = stack.frames[0]
    header = lead.header
    tables: dict[str, Any] = {}
    planes = [[None if f is None else _plane(f, files, tables) for f in row] for row in stack.planes]
    real = [p for row in planes for p in row if p is not None]
    colour = real[0].file.colour
    dtype = common_dtype(real, hounsfield=header.text("Modality") == "CT")
    array = Planes(planes, lead.rows, lead.columns, dtype, colour, _blank(lead, dtype)).lazy()
    axes = ("t" if stack.has_time else "") + ("z" if stack.has_depth else "") + "yx" + ("s" if colour else "")
    array = array[(slice(None) if stack.has_time else 0, slice(None) if stack.has_depth else 0)]
    notes = [*findings, *stack.findings]
    if real[0].inverted:
        notes.append("MONOCHROME1: the stored values were reversed, so that bright is bright.")
    if header.text("LossyImageCompression") == "01":
        notes.append("The pixels were compressed with loss.")
    meta: dict[str, Any] = {"findings": tuple(notes), "series_uid": uid, "photometric": real[0].file.photometric}
    window = _window(lead, real[0])
    if window is not None and not colour:
        meta["window"] = window
    if stack.axis is not None:
        meta["axis_t"] = {"name": stack.axis[0], "unit": stack.axis[1], "values": stack.axis[2]}
    if lead.thickness is not None and header.number("SliceThickness"):
        meta["slice_thickness_mm"] = header.number("SliceThickness")
    for key, keyword in (
        ("frame_of_reference_uid", "FrameOfReferenceUID"),
        ("series_description", "SeriesDescription"),
        ("body_part", "BodyPartExamined"),
        ("manufacturer", "Manufacturer"),
    ):
        if header.text(keyword):
            meta[key] = re.sub(r"[\x00-\x1f\x7f]+", " ", header.text(keyword)).strip()[:64]
    if header.number("SeriesNumber") is not None:
        meta["series_number"] = header.integer("SeriesNumber")
    if header.text("Modality") == "SEG":
        found, unusual = segment_meta(header)
        meta |= found
        meta["findings"] += tuple(unusual)
    return Volume(array, axes, stack.affine, stack.units, header.text("Modality"), _name(lead), meta, source)


def _plane(frame: Frame, files: dict[str, PixelFile], tables: dict[str, Any]) -> Plane:
    file = files[frame.header.path]
    if frame.header.path not in tables:
        tables[frame.header.path] = modality_table(frame.header)
    tile = None if frame.tile is None else (*frame.tile, frame.rows, frame.columns)
    inverted = file.photometric == "MONOCHROME1" and file.keyword == "PixelData"
    table = tables[frame.header.path]
    return Plane(file, frame.index, tile, frame.slope, frame.intercept, inverted, table, frame.segments)


def _window(frame: Frame, plane: Plane) -> tuple[float, float] | None:
    if frame.window is None:
        return None
    low, high = frame.window
    if plane.inverted:
        low, high = sum(plane.limits) - high, sum(plane.limits) - low
    return low, high


def _blank(frame: Frame, dtype: np.dtype[Any]) -> float:
    header = frame.header
    padding = header.number("PixelPaddingValue")
    if padding is not None and padding > 32767 and header.integer("PixelRepresentation") == 1:
        padding -= 65536  # implicit files do not say that the value is signed
    if padding is not None and np.isfinite(padding):
        value = padding * frame.slope + frame.intercept
    else:
        value = float(_AIR) if header.text("Modality") == "CT" else 0.0
    if dtype.kind == "f":
        return value
    limits = np.iinfo(dtype)
    return float(min(max(value, limits.min), limits.max))


def _name(frame: Frame) -> str:
    header = frame.header
    number = header.number("SeriesNumber")
    title = header.text("SeriesDescription") or header.text("Modality") or "image"
    parts = [title] if number is None or not np.isfinite(number) else [str(int(number)), title]
    return "_".join(re.sub(r"[^\w.+-]+", "_", part).strip("_.") for part in parts)[:64] or "image"

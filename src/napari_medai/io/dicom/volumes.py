"""Makes the Volume of a stack: lazy pixels, window, and the header fields worth keeping."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from napari_medai.core.volume import Volume
from napari_medai.io.dicom.decoding import Plane
from napari_medai.io.dicom.frames import Frame
from napari_medai.io.dicom.headers import Header
from napari_medai.io.dicom.overlays import overlay_groups
from napari_medai.io.dicom.pixels import PixelFile
from napari_medai.io.dicom.planes import Planes, common_dtype
from napari_medai.io.dicom.quiet import quietly
from napari_medai.io.dicom.segments import label_table, segment_meta
from napari_medai.io.dicom.slides import slide_affine, slide_array
from napari_medai.io.dicom.stacks import Stack
from napari_medai.io.dicom.unusual import pixel_findings
from napari_medai.io.dicom.values import Scale, choose

# Hounsfield units of air, what is around a patient.
_AIR = -1000


def volume_of(
    stack: Stack,
    files: Mapping[str, PixelFile],
    uid: str,
    findings: tuple[str, ...] = (),
    source: str = "",
    values: str = "",
) -> Volume:
    """The Volume of a stack.

    Parameters
    ----------
    stack : Stack
        Planes and place.
    files : mapping of str to PixelFile
        By path.
    uid : str
        Of the series.
    findings : tuple of str
        What is unusual about the series.
    source : str
        Where it was opened.
    values : str
        Which values the pixels get, a name of `VALUES`.

    Returns
    -------
    Volume
        Axes ``"zyx"``, ``"tzyx"``, ``"tyx"`` or ``"yx"``, with ``s`` for colour.

    Raises
    ------
    InputError, ParamsError
        These values cannot be given.
    """
    # elements of sequences are converted, and complained of, when they are looked at
    with quietly():
        return _volume(stack, files, uid, findings, source, values)


def _volume(
    stack: Stack, files: Mapping[str, PixelFile], uid: str, findings: tuple[str, ...], source: str, values: str
) -> Volume:
    lead = stack.lead
    header = lead.header
    if lead.levels:
        return _slide(lead, files, uid, findings, source)
    choice = choose(stack.frames, values)
    scales = iter(choice.scales)
    shown = choice.meta["values"]
    planes = [[None if f is None else _plane(f, files, next(scales), shown) for f in row] for row in stack.planes]
    real = [p for row in planes for p in row if p is not None]
    colour = real[0].file.colour
    dtype = common_dtype(real, hounsfield=header.text("Modality") == "CT" and shown in ("rescale", "display"))
    array = Planes(planes, lead.rows, lead.columns, dtype, colour, _blank(lead, real[0], dtype)).lazy()
    axes = ("t" if stack.has_time else "") + ("z" if stack.has_depth else "") + "yx" + ("s" if colour else "")
    array = array[(slice(None) if stack.has_time else 0, slice(None) if stack.has_depth else 0)]
    notes = [*findings, *stack.findings, *choice.findings]
    notes += pixel_findings([f.header for f in stack.frames], real[0])
    meta: dict[str, Any] = {"findings": tuple(notes), "series_uid": uid, "photometric": real[0].file.photometric}
    missing = sum(plane is None for plane in planes[0])
    meta |= {"missing_slices": missing} if missing else {}
    if not colour:
        meta |= choice.meta
        window, padding = _window(lead, real[0]), _padding(header, real[0])
        meta |= {"window": window} if window is not None else {}
        meta |= {"padding": padding} if padding is not None else {}
    if stack.axis is not None:
        meta["axis_t"] = {"name": stack.axis[0], "unit": stack.axis[1], "values": stack.axis[2]}
    meta |= _described(lead)
    groups = overlay_groups([f.header for f in stack.frames])
    meta |= {"overlays": groups} if groups else {}
    if header.text("Modality") == "RTDOSE":
        for key, keyword in (("dose_type", "DoseType"), ("dose_summation", "DoseSummationType")):
            meta |= {key: header.text(keyword).lower()[:16]} if header.text(keyword) else {}
        if header.number("DoseGridScaling") is None:
            meta["findings"] += ("The dose has no Dose Grid Scaling; the values are those stored, not a dose.",)
    if header.text("Modality") == "SEG":
        found, unusual = segment_meta(header)
        meta |= found
        meta["findings"] += tuple(unusual)
    return Volume(array, axes, stack.affine, stack.units, header.text("Modality"), _name(lead), meta, source)


def _slide(frame: Frame, files: Mapping[str, PixelFile], uid: str, findings: tuple[str, ...], source: str) -> Volume:
    array, axes, meta, notes = slide_array(frame, files)
    affine, units = slide_affine(frame)
    file = files[frame.header.path]
    lead = Plane(file, 0, None, 1.0, 0.0, False)
    notes = [*findings, *notes, *pixel_findings([frame.header], lead)]
    meta |= {"findings": tuple(notes), "series_uid": uid, "photometric": file.photometric, **_described(frame)}
    return Volume(array, axes, affine, units, frame.header.text("Modality"), _name(frame), meta, source)


def _described(lead: Frame) -> dict[str, Any]:
    """The header fields that say what the image is."""
    header = lead.header
    found: dict[str, Any] = {}
    if lead.thickness is not None and header.number("SliceThickness"):
        found["slice_thickness_mm"] = header.number("SliceThickness")
    for key, keyword in (
        ("frame_of_reference_uid", "FrameOfReferenceUID"),
        ("series_description", "SeriesDescription"),
        ("body_part", "BodyPartExamined"),
        ("manufacturer", "Manufacturer"),
    ):
        if header.text(keyword):
            found[key] = re.sub(r"[\x00-\x1f\x7f]+", " ", header.text(keyword)).strip()[:64]
    if header.number("SeriesNumber") is not None:
        found["series_number"] = header.integer("SeriesNumber")
    return found


def _plane(frame: Frame, files: Mapping[str, PixelFile], scale: Scale, values: str) -> Plane:
    file = files[frame.header.path]
    tile = None if frame.tile is None else (*frame.tile, frame.rows, frame.columns)
    table = scale.table if scale.table is not None else label_table(frame.header)
    inverted = file.photometric == "MONOCHROME1" and file.keyword == "PixelData" and values != "stored"
    return Plane(file, frame.index, tile, scale.slope, scale.intercept, inverted, table, frame.segments)


def _window(frame: Frame, plane: Plane) -> tuple[float, float] | None:
    """The header's window, which is for rescaled values, in the values of the plane."""
    if frame.window is None:
        return None
    low, high = frame.window
    if plane.segments is None and (plane.slope, plane.intercept) != (frame.slope, frame.intercept):
        if plane.table is not None:
            return None
        stored = ((end - frame.intercept) / frame.slope for end in (low, high))
        low, high = sorted(end * plane.slope + plane.intercept for end in stored)
        if not math.isfinite(high - low):
            return None
    if plane.inverted:
        low, high = sum(plane.limits) - high, sum(plane.limits) - low
    return low, high


def _padding(header: Header, plane: Plane) -> tuple[float, float] | None:
    """Lowest and highest value that stand for no measurement (PS3.3 C.7.5.1.1.2), as shown."""
    stored = [header.number("PixelPaddingValue"), header.number("PixelPaddingRangeLimit")]
    if stored[0] is None or plane.file.dtype.kind == "f" or plane.segments is not None:
        return None
    # implicit files do not say that the value is signed
    signs = [v - 65536 if v > 32767 and plane.file.signed else v for v in stored if v is not None and math.isfinite(v)]
    if plane.table is not None or not signs:
        return None
    ends = [v * plane.slope + plane.intercept for v in signs]
    if plane.inverted:
        ends = [sum(plane.limits) - end for end in ends]
    return min(ends), max(ends)


def _blank(frame: Frame, plane: Plane, dtype: np.dtype[Any]) -> float:
    padding = _padding(frame.header, plane)
    air = frame.header.text("Modality") == "CT" and plane.limits[0] <= _AIR  # not where stored values are wanted
    nothing = float(_AIR) if air else 0.0
    value = nothing if padding is None else padding[0]
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

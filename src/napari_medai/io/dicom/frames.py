"""One image plane as the header describes it, whatever kind of file it sits in.

Classic files hold one plane each, enhanced ones describe each frame in functional groups
(PS3.3 C.7.6.16), doses and tomograms by an offset, Siemens mosaics by a private header.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_medai.core.errors import GeometryError
from napari_medai.io.dicom.films import counted, ultrasound_spacing
from napari_medai.io.dicom.headers import Header, frame_count, number, numbers
from napari_medai.io.dicom.marks import OwnMarks, kind_of, macro, marks_of
from napari_medai.io.dicom.mosaic import mosaic_of
from napari_medai.io.dicom.quiet import quietly
from napari_medai.io.dicom.realworld import RealWorld, frame_mapping
from napari_medai.io.dicom.segments import segmentation_frames
from napari_medai.io.dicom.slides import Level, flavour, is_slide, level_of
from napari_medai.io.dicom.whitelist import SHOWN

# Directions that are shorter, longer or less perpendicular than this are not rounding but nonsense.
DIRECTION_TOLERANCE = 0.02

Vector = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Place:
    """Where a plane lies in the patient.

    Attributes
    ----------
    position : (3,) array
        Centre of the first pixel, (x, y, z) in mm, LPS.
    orientation : (2, 3) array
        Unit vectors along a row and along a column, (x, y, z).
    spacing : tuple of 2 floats
        Distance of rows and of columns in mm.
    """

    position: Vector
    orientation: Vector
    spacing: tuple[float, float]

    @property
    def normal(self) -> Vector:
        """Unit vector (x, y, z) across the plane: row direction x column direction."""
        (a, b, c), (d, e, f) = self.orientation.tolist()  # np.cross takes ten times as long
        return np.array([b * f - c * e, c * d - a * f, a * e - b * d])

    def moved(self, way: Vector) -> Place:
        """The place of a parallel plane."""
        return replace(self, position=self.position + way)


@dataclass(frozen=True, eq=False)
class Frame:
    """One plane.

    Attributes
    ----------
    header : Header
        Of the file.
    index : int
        Frame number in the file, from 0.
    rows, columns : int
        Size.
    place : Place or None
        Where it lies, if the header says so.
    spacing : tuple of 2 floats or None
        Distance of rows and of columns in mm.
    thickness : float or None
        Distance to the next slice, or the slice's thickness, in mm.
    slope, intercept : float
        Stored value -> value.
    window : tuple of 2 floats or None
        Lowest and highest value to show.
    kind : str
        What sort of image it is, by the later values of Image Type, e.g. magnitude or phase.
    marks : mapping of str to float
        What may tell images of one place apart: ``"b"``, ``"echo"``, ``"time"`` …
    tile : tuple of 2 ints or None
        First row and column of the plane within the frame, for mosaics.
    segments : tuple of (int, int) or None
        Frame number and segment number of each mask that the plane is put together from, for segmentations; none
        on a slice without any.
    real : RealWorld or None
        Stored value -> real-world value, if the frame's functional groups say it.
    levels : tuple of Level
        Of a whole slide, whose tiles are one frame here: its resolutions, the finest first.
    """

    header: Header
    index: int
    rows: int
    columns: int
    place: Place | None
    spacing: tuple[float, float] | None
    thickness: float | None
    slope: float = 1.0
    intercept: float = 0.0
    window: tuple[float, float] | None = None
    kind: str = ""
    marks: Mapping[str, float] = field(default_factory=dict)
    tile: tuple[int, int] | None = None
    segments: tuple[tuple[int, int], ...] | None = None
    real: RealWorld | None = None
    levels: tuple[Level, ...] = ()

    @property
    def paths(self) -> set[str]:
        """The files that hold its pixels."""
        return {self.header.path, *(path for level in self.levels for path, _ in level.tiles.values())}


def frames_of(header: Header, protocol: bool = False) -> list[Frame]:
    """All planes of a file.

    Parameters
    ----------
    header : Header
        Of the file.
    protocol : bool
        Whether a mosaic's tiles lie where the scan protocol has its slices, see `mosaic_of`.

    Raises
    ------
    GeometryError
        A position, direction or spacing is not a finite number.
    """
    alike = header.shared
    if alike is not None and "frame" in alike:
        slice_frame = _like(alike["frame"], header)
        if slice_frame is not None:
            return [slice_frame]
    mosaic = mosaic_of(header, protocol)
    if mosaic is not None:
        whole = _frame(header, 0, None, None)
        return [
            replace(
                whole,
                place=None if whole.place is None else replace(whole.place, position=position),
                tile=tile,
                rows=mosaic.rows,
                columns=mosaic.columns,
            )
            for position, tile in zip(mosaic.positions, mosaic.tiles, strict=True)
        ]
    count = frame_count(header)
    shared = next(iter(header.items("SharedFunctionalGroupsSequence")), None)
    groups = header.items("PerFrameFunctionalGroupsSequence")
    plain = shared is None and not groups and not header.items("DetectorInformationSequence")
    # the elements of a sequence's items are converted, and complained of, when they are looked at
    with nullcontext() if plain else quietly():
        frames = _listed(header, count, shared, groups)
    if alike is not None and count == 1 and not groups and not frames[0].levels and header.text("Modality") != "SEG":
        alike["frame"] = frames[0]
    return frames


def _listed(header: Header, count: int, shared: Any, groups: Sequence[Any]) -> list[Frame]:
    if is_slide(header):
        return [_slide(header, shared, groups)]
    frames = [_frame(header, n, groups[n] if n < len(groups) else None, shared) for n in range(count)]
    if count > 1 and not groups:
        frames = _offset_frames(header, frames)
    return segmentation_frames(header, frames) if header.text("Modality") == "SEG" else frames


def _slide(header: Header, shared: Any, groups: Sequence[Any]) -> Frame:
    measures = macro(None, shared, "PixelMeasuresSequence") or header.fields
    level = level_of(header, shared, groups, measures)
    thickness = number(measures, "SliceThickness")
    thickness = thickness if thickness is not None and math.isfinite(thickness) and thickness > 0 else None
    return Frame(
        header, 0, level.rows, level.columns, None, level.spacing_mm, thickness, kind=flavour(header), levels=(level,)
    )


def _like(other: Frame, header: Header) -> Frame | None:
    """The plane of a file that differs from another's in `OF_EACH_SLICE` alone; None if it has no position."""
    position = header.numbers("ImagePositionPatient")
    if other.place is None or len(position) != 3:
        return None
    place = Place(_finite(position, "position"), other.place.orientation, other.place.spacing)
    # dataclasses.replace takes five times as long, and a series has hundreds of slices
    found = object.__new__(Frame)
    found.__dict__.update(other.__dict__, header=header, place=place, marks=OwnMarks(header, other.marks))
    if header.kin is not None and not SHOWN.isdisjoint(header.kin.varying):
        slope, intercept = _rescale(header, header.fields)
        found.__dict__.update(slope=slope, intercept=intercept, window=_window(header.fields))
    return found


def _frame(header: Header, index: int, group: Any, shared: Any) -> Frame:
    fields = header.fields
    measures = macro(group, shared, "PixelMeasuresSequence") or fields
    position = numbers(macro(group, shared, "PlanePositionSequence") or fields, "ImagePositionPatient")
    orientation = numbers(macro(group, shared, "PlaneOrientationSequence") or fields, "ImageOrientationPatient")
    values = macro(group, shared, "PixelValueTransformationSequence") or fields
    window = macro(group, shared, "FrameVOILUTSequence") or fields
    spacing = _spacing(header, numbers(measures, "PixelSpacing"))
    slope, intercept = _rescale(header, values)
    return Frame(
        header,
        index,
        header.integer("Rows"),
        header.integer("Columns"),
        _place(position, orientation, spacing),
        spacing,
        _thickness(measures, fields),
        slope,
        intercept,
        _window(window),
        kind_of(header, group, shared),
        marks_of(header, index, group, shared),
        real=None if group is shared is None else frame_mapping(group, shared, (slope, intercept)),
    )


def _rescale(header: Header, values: Any) -> tuple[float, float]:
    slope = number(values, "RescaleSlope")
    if slope is None and header.text("Modality") == "RTDOSE":
        slope = header.number("DoseGridScaling")
    intercept = number(values, "RescaleIntercept")
    return (
        slope if slope is not None and math.isfinite(slope) and slope != 0 else 1.0,
        intercept if intercept is not None and math.isfinite(intercept) else 0.0,
    )


def _place(
    position: tuple[float, ...], orientation: tuple[float, ...], spacing: tuple[float, float] | None
) -> Place | None:
    start = _finite(position, "position") if len(position) == 3 else None
    directions = _directions(_finite(orientation, "orientation")) if len(orientation) == 6 else None
    return None if start is None or directions is None or spacing is None else Place(start, directions, spacing)


def _finite(values: tuple[float, ...], what: str) -> Vector:
    if not all(math.isfinite(v) for v in values):
        raise GeometryError(f"The image {what} in the header is not a finite number; the place is unknown.")
    return np.array(values)


def _directions(values: Vector) -> Vector | None:
    vectors = values.reshape(2, 3)
    lengths = np.sqrt((vectors**2).sum(axis=1))
    if np.abs(lengths - 1).max() > DIRECTION_TOLERANCE:
        return None
    vectors = vectors / lengths[:, None]
    return vectors if abs(float(vectors[0] @ vectors[1])) <= DIRECTION_TOLERANCE else None


def _spacing(header: Header, spacing: tuple[float, ...]) -> tuple[float, float] | None:
    for candidate in (spacing, header.numbers("ImagerPixelSpacing"), header.numbers("NominalScannedPixelSpacing")):
        if len(candidate) == 1:  # one number for both, against the standard but met in scanned films
            candidate = (candidate[0], candidate[0])
        if len(candidate) == 2:
            rows, columns = _finite(candidate, "pixel spacing")
            if rows > 0 and columns > 0:
                return float(rows), float(columns)
    return ultrasound_spacing(header)


def _thickness(measures: Any, fields: Any) -> float | None:
    for source, keyword in (
        (measures, "SpacingBetweenSlices"),
        (fields, "SpacingBetweenSlices"),
        (measures, "SliceThickness"),
        (fields, "SliceThickness"),
    ):
        found = number(source, keyword)
        if found is not None:
            if not math.isfinite(found):
                raise GeometryError("The slice spacing in the header is not a finite number; the place is unknown.")
            if found != 0:
                return abs(found)
    return None


def _window(fields: Any) -> tuple[float, float] | None:
    centre, width = number(fields, "WindowCenter"), number(fields, "WindowWidth")
    if centre is None or width is None or not math.isfinite(centre + width) or width < 1:
        return None
    # PS3.3 C.11.2.1.2.1
    return centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2


def _offset_frames(header: Header, frames: list[Frame]) -> list[Frame]:
    # RT Dose (PS3.3 C.8.8.3.2) and reconstructed NM tomograms (C.8.4.11, C.8.4.15) give one place and offsets.
    first = frames[0].place
    offsets = header.numbers("GridFrameOffsetVector")
    step = header.number("SpacingBetweenSlices") or header.number("SliceThickness")
    detector = next(iter(header.items("DetectorInformationSequence")), None)
    tomogram = {"TOMO", "RECON TOMO", "RECON GATED TOMO"} & set(header.texts("ImageType"))
    way = None if first is None else first.normal
    if first is not None and len(offsets) == len(frames):
        along = np.asarray(_finite(offsets, "frame offset") - offsets[0], dtype=np.float64)
        if offsets[0] != 0 and abs(first.normal[2]) > 1 - DIRECTION_TOLERANCE:
            way = np.array([0.0, 0.0, 1.0])  # not offsets but the z coordinates of axial planes
    elif detector is not None and tomogram and step is not None and math.isfinite(step) and step != 0:
        position, orientation = numbers(detector, "ImagePositionPatient"), numbers(detector, "ImageOrientationPatient")
        first = _place(position, orientation, frames[0].spacing)
        ranks = np.arange(len(frames))
        order = counted(header, len(frames))
        if order is not None:  # gated: the slices of one time slot after those of another
            ranks = np.array(order.slices)
            frames = [replace(f, marks={**f.marks, "t": float(n)}) for f, n in zip(frames, order.steps, strict=True)]
        along = np.asarray(step * ranks, dtype=np.float64)
        way = None if first is None else first.normal
    else:
        first = None
    if first is None or way is None:
        # One position for all frames says nothing of where each of them lies.
        return [replace(f, place=None) for f in frames]
    return [replace(f, place=first.moved(way * far)) for f, far in zip(frames, along, strict=True)]

"""Where the planes of a result lie, and which instances of the scan each of them comes from."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_medai.core.errors import WriteError
from napari_medai.core.geometry import directions
from napari_medai.core.volume import Volume
from napari_medai.io.dicom.write.source import Source, SourcePlane

if TYPE_CHECKING:
    from pydicom import Dataset

# The directions of rows and columns are perpendicular to this cosine; DICOM has no other planes (PS3.3 C.7.6.2.1.1).
PERPENDICULAR = 1e-3

Vector = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Placed:
    """A result as a stack of DICOM planes.

    Attributes
    ----------
    volume : Volume
        The result with its axes in the order of the planes: of the scan's own planes where it shares its voxels.
    positions : (z, 3) array or None
        Centre of the first pixel of each plane, (x, y, z) in mm, LPS; None where the scan has no positions.
    orientation : (6,) array
        Unit vectors along a row and along a column.
    spacing : tuple of 2 floats
        Distance of rows and of columns in mm.
    step : float
        Distance of neighbouring planes in mm, along their normal.
    sources : tuple of tuples of SourcePlane
        For each ``[t][z]`` the plane of the scan that it is, none where it was interpolated or lies elsewhere.
    own_grid : bool
        Whether the voxels are those of the scan.
    """

    volume: Volume
    positions: Vector | None
    orientation: Vector
    spacing: tuple[float, float]
    step: float
    sources: tuple[tuple[SourcePlane | None, ...], ...]
    own_grid: bool


def place(volume: Volume, source: Source) -> Placed:
    """Find the planes of a result on a scan.

    Parameters
    ----------
    volume : Volume
        Axes ``zyx`` or ``yx``, with ``t`` and ``s``.
    source : Source
        The scan.

    Raises
    ------
    WriteError
        The result lies in another space than the scan, outside of it, or in no plane at all.
    """
    _check_space(volume, source)
    repaired = volume.meta.get("repaired", ())
    # slices that were made even have the scan's mean distance, but lie where no slice of the scan does
    own = source.shares_grid(volume) and "spacing" not in repaired
    stack = source.in_stack_order(volume) if own or repaired else volume
    count, times = stack.size("z"), stack.size("t")
    affine = np.asarray(stack.affine)
    way = directions(affine)[::-1]  # rows are now x, y, z
    row, column = way[:, 2], way[:, 1]
    if abs(float(row @ column)) > PERPENDICULAR:
        raise WriteError(
            "The rows and columns of this grid are not perpendicular, which no DICOM image can say; resample it first, "
            "or save it as .nii.gz."
        )
    starts = np.array([affine[:3, 3] + k * affine[:3, 0] for k in range(count)])[:, ::-1]
    known = [p for planes in source.planes for p in planes if p is not None and p.place is not None]
    sources: list[tuple[SourcePlane | None, ...]] = []
    for t in range(times):
        series = source.planes[t] if len(source.planes) == times else source.planes[0]
        if own and len(series) == count:
            sources.append(tuple(series))
        elif known and _parallel(known[0], row, column) and stack.spatial_shape[-2:] == _size(source):
            sources.append(tuple(source.plane_at(start, min(t, len(source.planes) - 1)) for start in starts))
        else:
            sources.append((None,) * count)
    if own:
        # unevenly spaced slices lie where their headers say
        for k, plane in enumerate(sources[0]):
            if plane is not None and plane.place is not None:
                starts[k] = plane.place.position
        first = next((p.place for p in sources[0] if p is not None and p.place is not None), None)
        if first is not None:
            row, column = first.orientation
    elif not known:
        raise WriteError(
            "The scan does not say where it lies in the patient, so that only a result on its own pixels can be placed "
            "on it; save this one as .nii.gz."
        )
    else:
        _check_overlap(volume, source)
    _, down, across = stack.spacing
    step = float(abs(np.cross(row, column) @ affine[:3, 0][::-1]))
    return Placed(
        stack,
        starts if known else None,
        np.concatenate([row, column]),
        (down, across),
        step,
        tuple(sources),
        own,
    )


def refuse_series(volume: Volume, holder: str) -> None:
    """Refuse images along t, where segments that overlap are none.

    Parameters
    ----------
    volume : Volume
        Labels or heat.
    holder : str
        What holds one image only, with its article.

    Raises
    ------
    WriteError
        There are several.
    """
    if "t" in volume.axes and dict(volume.meta.get("axis_t") or {}).get("name") != "segment":
        raise WriteError(
            f"These are {volume.size('t')} images along t, and {holder} holds one. Take the one you need with "
            "take('t', n) in Python, or save all of them as .nii.gz."
        )


def refuse_nowhere(source: Source, what: str, instead: str) -> None:
    """Refuse a scan that does not say where it lies for what consists of points in the patient.

    Parameters
    ----------
    source : Source
        The scan.
    what : str
        Of points, in the plural.
    instead : str
        What can be saved.

    Raises
    ------
    WriteError
        The headers have no frame of reference, or no positions in it.
    """
    if source.is_placed:
        return
    lack = "positions of the slices" if source.frame_of_reference_uid else "Frame of Reference UID"
    raise WriteError(f"The scan's headers have no {lack}, and {what} are points in the patient. {instead}")


def header_like(source: Source, placed: Placed) -> Dataset:
    """A header of one plane at the place of the result, with patient, study and frame of reference of the scan.

    highdicom takes everything that a new object shares with its source from such a header; it knows neither sources of
    several multi-frame instances nor mosaics, which this is independent of. `refer` puts the true references in.
    """
    from pydicom import Dataset
    from pydicom.uid import SecondaryCaptureImageStorage, generate_uid

    header = Dataset()
    for element in source.lead:
        group = element.tag.group
        if (
            element.VR != "SQ"
            and group not in (0x0028, 0x5200, 0x7FE0)
            and not group % 2
            and not 0x6000 <= group < 0x6100
        ):
            header.add(deepcopy(element))  # a data set changes its elements in place
    for keyword in ("NumberOfFrames", "ImagePositionPatient", "ImageOrientationPatient", "FrameOfReferenceUID"):
        if keyword in header:
            delattr(header, keyword)
    nameless(header)
    header.SOPClassUID = SecondaryCaptureImageStorage  # of one frame, whatever the scan is
    header.Rows, header.Columns = placed.volume.spatial_shape[-2:]
    if placed.positions is not None:
        # positions without a frame of reference are those of the series alone
        header.FrameOfReferenceUID = source.frame_of_reference_uid or generate_uid(entropy_srcs=[source.series_uid])
        header.PositionReferenceIndicator = source.lead.get("PositionReferenceIndicator", "")
        header.ImagePositionPatient = placed.positions[0].tolist()
        header.ImageOrientationPatient = placed.orientation.tolist()
        header.PixelSpacing = list(placed.spacing)
        header.SliceThickness = header.SpacingBetweenSlices = placed.step
    if "SeriesInstanceUID" not in header:
        header.SeriesInstanceUID = generate_uid()
    return header


def nameless(header: Dataset) -> Dataset:
    """A header without names of persons, of which highdicom warns, and shows them; `finish` puts them in."""
    header.PatientName = header.ReferringPhysicianName = ""
    return header


def geometry_of(placed: Placed, thickness: float = 0.0) -> dict[str, Any]:
    """What highdicom's constructors call the place of a result: measures, orientation and positions."""
    from highdicom import CoordinateSystemNames, PixelMeasuresSequence, PlaneOrientationSequence, PlanePositionSequence

    if placed.positions is None:
        return {}
    patient = CoordinateSystemNames.PATIENT
    return {
        "pixel_measures": PixelMeasuresSequence(placed.spacing, thickness or placed.step, placed.step),
        "plane_orientation": PlaneOrientationSequence(patient, placed.orientation.tolist()),
        "plane_positions": [PlanePositionSequence(patient, position.tolist()) for position in placed.positions],
    }


def refer(dataset: Dataset, source: Source, placed: Placed, derivation: Any, description: str = "") -> None:
    """Put the references to the scan's instances into a multi-frame object that was made with `header_like`.

    Each frame refers to the plane of the scan that it lies on, and the object to all instances of the scan.
    """
    from pydicom import Dataset
    from pydicom.sr.codedict import codes

    if placed.positions is None and placed.volume.units == "mm":
        from highdicom import PixelMeasuresSequence

        measures = PixelMeasuresSequence(placed.spacing, placed.step, placed.step)
        dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence = measures
    frames = getattr(dataset, "PerFrameFunctionalGroupsSequence", ())
    purpose = _code(codes.cid7202.SourceImageForImageProcessingOperation)
    for frame in frames:
        plane = _plane_of(frame, placed)
        frame.DerivationImageSequence = []
        if plane is None:
            continue
        item = reference(plane)
        item.PurposeOfReferenceCodeSequence = [purpose]
        item.SpatialLocationsPreserved = "YES"
        derived = Dataset()
        derived.DerivationCodeSequence = [_code(derivation)]
        derived.SourceImageSequence = [item]
        if description:
            derived.DerivationDescription = description
        frame.DerivationImageSequence = [derived]
    whole = [_instance(header) for header in source.datasets]
    dataset.SourceImageSequence = [_with_purpose(item, purpose) for item in whole]
    series = Dataset()
    series.SeriesInstanceUID = source.series_uid
    series.ReferencedInstanceSequence = [_instance(header) for header in source.datasets]
    dataset.ReferencedSeriesSequence = [series] if source.series_uid else []


def reference(plane: SourcePlane) -> Dataset:
    """The item that refers to a plane: class and instance UID, and the frame of a multi-frame instance."""
    item = _instance(plane.dataset)
    if plane.frame:
        item.ReferencedFrameNumber = plane.frame
    return item


def _plane_of(frame: Dataset, placed: Placed) -> SourcePlane | None:
    if placed.positions is None:
        return placed.sources[0][0]
    where = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, dtype=float)
    return placed.sources[0][int(np.argmin(np.abs(placed.positions - where).sum(axis=1)))]


def _instance(header: Dataset) -> Dataset:
    from pydicom import Dataset

    item = Dataset()
    item.ReferencedSOPClassUID = header.SOPClassUID
    item.ReferencedSOPInstanceUID = header.SOPInstanceUID
    return item


def _with_purpose(item: Dataset, purpose: Dataset) -> Dataset:
    item.PurposeOfReferenceCodeSequence = [purpose]
    return item


def _code(code: Any) -> Dataset:
    from highdicom.sr import CodedConcept

    return CodedConcept(code.value, code.scheme_designator, code.meaning, code.scheme_version)


def _size(source: Source) -> tuple[int, ...]:
    header = source.lead
    return int(header.get("Rows", 0)), int(header.get("Columns", 0))


def _parallel(plane: SourcePlane, row: Vector, column: Vector) -> bool:
    return plane.place is not None and bool(
        np.abs(plane.place.orientation - np.stack([row, column])).max() <= PERPENDICULAR
    )


def _check_space(volume: Volume, source: Source) -> None:
    own = str(volume.meta.get("frame_of_reference_uid", ""))
    if own and source.frame_of_reference_uid and own != source.frame_of_reference_uid:
        raise WriteError(
            "This result lies in another frame of reference than the scan; give the scan that it was made on, or one "
            "of the same study position."
        )
    if volume.units != source.volume.units:
        raise WriteError(f"This result is placed in {volume.units}, and the scan in {source.volume.units}.")
    unknown: Sequence[str] = [axis for axis in volume.axes if axis not in "tzyxs"]
    if unknown:
        raise WriteError("A DICOM object takes one channel; choose it with volume.take('c', n).")


def _check_overlap(volume: Volume, source: Source) -> None:
    low, high = _box(volume)
    first, last = _box(source.volume)
    if (np.minimum(high, last) < np.maximum(low, first)).any():
        raise WriteError("This result lies outside of the scan; give the scan that it was made on.")


def _box(volume: Volume) -> tuple[Vector, Vector]:
    corners = volume.grid.corners()
    margin = max(volume.spacing)
    return corners.min(axis=0) - margin, corners.max(axis=0) + margin

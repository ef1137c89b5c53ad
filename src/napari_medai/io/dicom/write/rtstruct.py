"""Labels or contours -> RT Structure Set (PS3.3, A.19)."""

from __future__ import annotations

import colorsys
import datetime
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_medai import __version__
from napari_medai.core.contours import Contour, Contours, Region
from napari_medai.core.errors import WriteError
from napari_medai.core.volume import Volume
from napari_medai.io.atomic import written
from napari_medai.io.contours import trace
from napari_medai.io.dicom.rtstruct import STORAGE
from napari_medai.io.dicom.write.equipment import MAKER, RESEARCH, finish, series_number
from napari_medai.io.dicom.write.placing import refuse_nowhere, refuse_series
from napari_medai.io.dicom.write.source import Source, source_of

if TYPE_CHECKING:
    from pydicom import Dataset

_TYPES = {
    "closed": "CLOSED_PLANAR", "xor": "CLOSEDPLANAR_XOR", "open": "OPEN_PLANAR", "open-nonplanar": "OPEN_NONPLANAR",
    "point": "POINT",
}  # fmt: skip
_GOLDEN = 0.618033988749895
# A retired class that RT objects refer to studies by (PS3.3, C.8.8.5, Table C.8-41).
_STUDY_CLASS = "1.2.840.10008.3.1.2.3.1"
# What the object shares with the scan's patient and study (PS3.3, C.7.1.1, C.7.2.1).
_SHARED = (
    "SpecificCharacterSet", "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex",
    "PatientAge", "PatientWeight", "StudyInstanceUID", "StudyDate", "StudyTime", "ReferringPhysicianName", "StudyID",
    "AccessionNumber", "StudyDescription",
)  # fmt: skip


def save_volume(
    what: Volume | Contours, path: Path, record: Mapping[str, Any] | None = None, *, against: Any = None
) -> None:
    """Write labels, or contours, of a scan; see `save_structures`.

    Parameters
    ----------
    what : Volume or Contours
        Labels on the scan's voxels, or contours.
    path : Path
        Ends in ``.rtstruct.dcm``.
    record : mapping, optional
        Of the result.
    against : Volume or path, optional
        The scan, where labels or contours do not know it.

    Raises
    ------
    WriteError
        As `save_structures`; or these are no labels.
    """
    extra = dict(record or {})
    if isinstance(what, Contours):
        meta = {"series_uid": what.series_uid} if what.series_uid else {}
        place = Volume(np.zeros((1, 1), np.uint8), "yx", units="mm", meta=meta, source=what.source)
        scan = against if against is not None or what.series_uid else what.source or None
        save_structures(what, source_of(place, scan), path, extra)
        return
    if not (what.meta.get("is_labels") or extra.get("is_labels")):
        raise WriteError(f"{path.name} holds outlines of labels; segment the image first, or save it as .dcm.")
    save_structures(what, source_of(what, against), path, extra)


def save_structures(
    what: Volume | Contours, source: Source, path: Path, record: Mapping[str, Any] | None = None
) -> None:
    """Write an RT Structure Set.

    Parameters
    ----------
    what : Volume or Contours
        Labels on the scan's own voxels, traced on its slices; or contours in its frame of reference.
    source : Source
        The scan.
    path : Path
        The file.
    record : mapping, optional
        Of the result: ``label_names``, ``label_colors``, ``provenance``.

    Raises
    ------
    WriteError
        The labels lie on other voxels or form a series in time, the contours belong to another frame of reference, or
        the system refused.
    """
    dataset = structure_set(what, source, record)
    with written(path) as file:
        dataset.save_as(file, enforce_file_format=True)


def structure_set(what: Volume | Contours, source: Source, record: Mapping[str, Any] | None = None) -> Dataset:
    """The data set that `save_structures` writes."""
    from pydicom import Dataset
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    kept = dict(record or {})
    frame = source.frame_of_reference_uid
    instead = "Save labels as .dcm, which refers to the images themselves, as .seg.nrrd or as .nii.gz."
    refuse_nowhere(source, "contours", instead)
    if isinstance(what, Contours) and what.frame_of_reference_uid not in ("", frame):
        raise WriteError("The contours belong to another frame of reference than the scan; give the scan they lie on.")
    regions = list(what.regions) if isinstance(what, Contours) else _traced(what, source, kept)
    if not regions:
        raise WriteError("There is no region to write: no voxel is labelled.")
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = STORAGE
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    for keyword in _SHARED:
        if keyword in source.lead:
            setattr(dataset, keyword, source.lead.get(keyword))
    now = datetime.datetime.now()
    dataset.Modality = "RTSTRUCT"
    dataset.SeriesInstanceUID = generate_uid()
    dataset.SeriesNumber = series_number(source, "contours")
    dataset.InstanceNumber = 1
    dataset.OperatorsName = ""
    dataset.Manufacturer = dataset.ManufacturerModelName = MAKER
    dataset.SoftwareVersions = dataset.DeviceSerialNumber = __version__
    dataset.StructureSetLabel = "CONTOURS"
    dataset.StructureSetDescription = RESEARCH
    dataset.StructureSetDate = dataset.InstanceCreationDate = dataset.SeriesDate = now.strftime("%Y%m%d")
    dataset.StructureSetTime = dataset.InstanceCreationTime = dataset.SeriesTime = now.strftime("%H%M%S")
    dataset.ApprovalStatus = "UNAPPROVED"
    dataset.FrameOfReferenceUID = frame
    dataset.PositionReferenceIndicator = str(source.lead.get("PositionReferenceIndicator", "") or "")
    dataset.ReferencedFrameOfReferenceSequence = [_frame_of_reference(source)]
    provenance = dict(kept.get("provenance") or {})
    dataset.StructureSetROISequence = [_named(region, frame, provenance) for region in regions]
    dataset.ROIContourSequence = [_drawn(region, n, source) for n, region in enumerate(regions)]
    dataset.RTROIObservationsSequence = [_observed(region, n) for n, region in enumerate(regions, 1)]
    finish(dataset, source, f"Contours {provenance.get('model', '')}".strip())
    return dataset


def _traced(labels: Volume, source: Source, record: Mapping[str, Any]) -> list[Region]:
    """The outlines of labels on the slices of the scan, each with the instance it lies on."""
    refuse_series(labels, "a structure set")
    labels = source.on_own_voxels(labels)
    if not source.shares_grid(labels):
        raise WriteError(
            "These labels do not lie on the scan's own voxels; contours are drawn on its slices. Resample the labels "
            "onto the scan first, or save them as .seg.dcm."
        )
    names = _by_value(record.get("label_names") or labels.meta.get("label_names"))
    colors = _by_value(record.get("label_colors") or labels.meta.get("label_colors"))
    placed = source.in_stack_order(labels)
    regions = []
    for _, region in trace(placed, names, colors):
        lines = tuple(_on_instance(line, source.planes[0]) for line in region.contours)
        regions.append(Region(region.number, region.name, lines, region.color))
    return regions


def _by_value(found: Any) -> dict[int, Any]:
    return {int(value): item for value, item in dict(found or {}).items()}


def _on_instance(line: Contour, planes: Sequence[Any]) -> Contour:
    """A contour that was traced on slice ``frame - 1`` of the stack, with the instance that the slice is."""
    at = line.frame - 1
    plane = planes[at] if at < len(planes) else None
    uid = "" if plane is None else str(plane.dataset.SOPInstanceUID)
    return Contour(line.points, line.kind, uid, 0 if plane is None else plane.frame)


def _frame_of_reference(source: Source) -> Dataset:
    from pydicom import Dataset

    series, study, frame = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = source.series_uid
    series.ContourImageSequence = [_reference(header) for header in source.datasets]
    study.ReferencedSOPClassUID = _STUDY_CLASS
    study.ReferencedSOPInstanceUID = source.lead.StudyInstanceUID
    study.RTReferencedSeriesSequence = [series]
    frame.FrameOfReferenceUID = source.frame_of_reference_uid
    frame.RTReferencedStudySequence = [study]
    return frame


def _reference(header: Any, frame: int = 0) -> Dataset:
    from pydicom import Dataset

    item = Dataset()
    item.ReferencedSOPClassUID = header.SOPClassUID
    item.ReferencedSOPInstanceUID = header.SOPInstanceUID
    if frame:
        item.ReferencedFrameNumber = frame
    return item


def _named(region: Region, frame: str, provenance: Mapping[str, Any]) -> Dataset:
    from pydicom import Dataset

    item = Dataset()
    item.ROINumber = region.number
    item.ReferencedFrameOfReferenceUID = frame
    item.ROIName = region.name[:64]
    model = str(provenance.get("model", ""))
    item.ROIGenerationAlgorithm = "AUTOMATIC" if model else ""
    if model:
        item.ROIGenerationDescription = model[:64]
    return item


def _drawn(region: Region, n: int, source: Source) -> Dataset:
    from pydicom import Dataset

    item = Dataset()
    color = region.color or colorsys.hsv_to_rgb(n * _GOLDEN % 1.0, 0.7, 0.95)
    item.ROIDisplayColor = [round(255 * min(max(float(v), 0.0), 1.0)) for v in color[:3]]
    item.ReferencedROINumber = region.number
    headers = {str(header.SOPInstanceUID): header for header in source.datasets}
    if region.contours:
        item.ContourSequence = [_line(contour, k, headers) for k, contour in enumerate(region.contours, 1)]
    return item


def _line(contour: Contour, k: int, headers: Mapping[str, Any]) -> Dataset:
    from pydicom import Dataset

    item = Dataset()
    if contour.image_uid in headers:
        item.ContourImageSequence = [_reference(headers[contour.image_uid], contour.frame)]
    item.ContourGeometricType = _TYPES[contour.kind]
    item.NumberOfContourPoints = len(contour.points)
    item.ContourNumber = k
    item.ContourData = list(_decimals(contour.points[:, ::-1].ravel()))
    return item


def _decimals(values: Iterable[float]) -> Iterable[str]:
    """Decimal strings of at most 16 characters, to a ten-thousandth of a millimetre."""
    for value in np.round(np.asarray(list(values)), 4) + 0.0:  # no minus zero
        yield f"{value:.4f}".rstrip("0").rstrip(".")


def _observed(region: Region, n: int) -> Dataset:
    from pydicom import Dataset

    item = Dataset()
    item.ObservationNumber = n
    item.ReferencedROINumber = region.number
    item.ROIObservationLabel = region.name[:16]
    item.RTROIInterpretedType = region.kind
    item.ROIInterpreter = ""
    return item

"""What a DICOM object says that it belongs to: patient, frame of reference, series and instances."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from napari_medai.core.errors import ReadError
from napari_medai.io.dicom.quiet import BROKEN_FILE, quietly

# What two objects of one patient share (PS3.3, C.7.1.1). The values are compared and forgotten.
_IDENTITY = ("PatientID", "PatientName", "PatientBirthDate")
# Objects that refer to nothing but what they were made of.
_MADE = ("SEG", "RTSTRUCT", "SR")


@dataclass(frozen=True)
class References:
    """What an object refers to.

    Attributes
    ----------
    modality : str
        Modality (0008,0060).
    frame_of_reference_uid : str
        Empty if the object has none.
    series : frozenset of str
        Series Instance UIDs that it refers to.
    instances : frozenset of str
        SOP Instance UIDs that it refers to.
    """

    modality: str
    frame_of_reference_uid: str
    series: frozenset[str]
    instances: frozenset[str]


def modality_of(path: Path) -> str:
    """The modality of an object, without reading what it refers to; empty if it does not say.

    Raises
    ------
    ReadError
        The file is not DICOM or is damaged.
    """
    return str(_dataset(path).get("Modality", "") or "")


def references_of(path: Path) -> References:
    """Read what an object refers to, anywhere in it.

    Raises
    ------
    ReadError
        The file is not DICOM or is damaged.
    """
    dataset = _dataset(path)
    series, instances = set[str](), set[str]()
    frames = {str(dataset.get("FrameOfReferenceUID", "") or "")}
    try:
        with quietly():
            for element in dataset.iterall():
                if element.keyword == "ReferencedSOPInstanceUID":
                    instances.add(str(element.value))
                elif element.keyword == "ReferencedFrameOfReferenceUID" or (
                    # in structure sets the frame of reference stands with the series (PS3.3, C.8.8.5)
                    element.keyword == "FrameOfReferenceUID" and dataset.get("Modality") == "RTSTRUCT"
                ):
                    frames.add(str(element.value))
            series = _series(dataset)
            if dataset.get("Modality") not in _MADE:
                # a derived image keeps what its source refers to beside it: requests, localizers, other images
                instances = _sources(dataset) or instances
    except BROKEN_FILE as error:
        raise ReadError(f"The references in {path.name} cannot be read: {type(error).__name__}.") from error
    frame = sorted(frames - {""})
    # structure sets refer to the study as if it were an instance (PS3.3, C.8.8.5)
    instances.discard(str(dataset.get("StudyInstanceUID", "")))
    return References(
        str(dataset.get("Modality", "")), frame[0] if frame else "", frozenset(series), frozenset(instances)
    )


def same_patient(path: Path, header: Any) -> bool:
    """Whether an object and the header of a scan (a pydicom Dataset) are of one patient; nothing of it is shown.

    Raises
    ------
    ReadError
        The file is not DICOM or is damaged.
    """
    dataset = _dataset(path)
    return all(str(dataset.get(key, "") or "") == str(header.get(key, "") or "") for key in _IDENTITY)


def _dataset(path: Path) -> Any:
    from pydicom import dcmread

    try:
        with quietly():
            return dcmread(path, stop_before_pixels=True, force=True)
    except (OSError, *BROKEN_FILE) as error:
        raise ReadError(f"{path.name} cannot be read as DICOM: {type(error).__name__}.") from error


def _sources(dataset: Any) -> set[str]:
    """UIDs of the instances that an image was derived from (PS3.3, C.7.6.1.1.4 and C.8.13.2)."""
    found = set[str]()
    for element in dataset.iterall():
        if element.keyword in ("SourceImageSequence", "SourceImageEvidenceSequence"):
            for item in element.value:
                found |= {str(e.value) for e in item.iterall() if e.keyword == "ReferencedSOPInstanceUID"}
    return found


def _series(dataset: Any) -> set[str]:
    """UIDs of referenced series: items of any sequence that also list instances."""
    found: set[str] = set()

    def visit(item: Any) -> None:
        for element in item:
            if element.VR != "SQ":
                continue
            for inner in element.value:
                if element.keyword in ("ReferencedSeriesSequence", "RTReferencedSeriesSequence"):
                    found.add(str(inner.get("SeriesInstanceUID", "")))
                visit(inner)

    visit(dataset)
    return found - {""}

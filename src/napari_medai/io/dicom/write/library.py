"""What a report says of the images that it is about: its image library (PS3.16 TID 1600) and its evidence."""

from __future__ import annotations

from collections.abc import MutableSequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from napari_medai.io.dicom.write.header import MAY_BE_EMPTY
from napari_medai.io.dicom.write.placing import nameless
from napari_medai.io.dicom.write.source import Source

if TYPE_CHECKING:
    from pydicom import Dataset

_REFERENCE = ("SpecificCharacterSet", "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
_COMMON = ("SOPClassUID", "SOPInstanceUID", "Modality", "Rows", "Columns")
# What the templates for cross-sections (TID 1604) and projections (TID 1603) ask for, with the number of values.
_CROSS_SECTION = {"PixelSpacing": 2, "SliceThickness": 1, "ImagePositionPatient": 3, "ImageOrientationPatient": 6}
_PROJECTION = {"PatientOrientation": 2, "ImagerPixelSpacing": 2}
_CROSS_SECTIONAL = ("CT", "MR", "PT")


def library(source: Source) -> list[Dataset]:
    """Headers for highdicom's library of images: of what it knows, with what it asks for.

    Multi-frame images, whose place stands with each frame, and those that lack what their template asks for have the
    description that all images have in common (TID 1602).

    Parameters
    ----------
    source : Source
        The scan.

    Returns
    -------
    list of Dataset
        Without anything of the patient; empty if the kind of image is none that reports know.
    """
    from highdicom.sr import ImageLibraryEntryDescriptors

    found = []
    for header in source.datasets:
        entry = _entry(header)
        try:
            ImageLibraryEntryDescriptors(entry)
        except ValueError:  # a class that highdicom knows no modality of
            continue
        found.append(entry)
    return found


def evident(header: Dataset) -> Dataset:
    """What a report takes over from an instance that it refers to, without names of persons; `finish` puts them in."""
    from pydicom import Dataset

    evidence = Dataset()
    for keyword in (*_REFERENCE, *MAY_BE_EMPTY):
        if keyword in header:
            evidence.add(deepcopy(header[keyword]))
    return nameless(evidence)


def _entry(header: Dataset) -> Dataset:
    from pydicom import Dataset

    entry = Dataset()
    wanted = _CROSS_SECTION if header.get("Modality") in _CROSS_SECTIONAL else _PROJECTION
    whole = all(_count(header.get(keyword)) == count for keyword, count in wanted.items())
    keywords = [*_COMMON, *wanted] if whole else list(_COMMON)
    if header.get("FrameOfReferenceUID"):
        keywords.append("FrameOfReferenceUID")
    if whole and _count(header.get("SpacingBetweenSlices")) == 1:
        keywords.append("SpacingBetweenSlices")
    for keyword in keywords:
        if keyword in header:
            entry.add(header[keyword])
    if not whole:  # a modality without a template of its own
        entry.Modality = "OT"
    return entry


def _count(value: Any) -> int:
    """The number of values of an element."""
    if value is None or value == "":
        return 0
    return len(value) if isinstance(value, MutableSequence) else 1

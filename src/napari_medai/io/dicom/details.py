"""Elements that are read only when they are asked for, out of one file of a series.

Sequences that every slice repeats would slow the reading of headers; most images never need them. As in
`headers`, what is not listed here is not read: nothing that identifies a patient. (Weight, and the times
between an injection and a scan, are wanted for uptake values and leave as numbers only.)
"""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Any

from pydicom import dcmread
from pydicom.datadict import tag_for_keyword

from napari_medai.core.errors import ReadError
from napari_medai.io.dicom.headers import Header
from napari_medai.io.dicom.quiet import BROKEN_FILE, quietly

_KEYWORDS = (
    "ReferencedSeriesSequence", "RealWorldValueMappingSequence", "SequenceOfUltrasoundRegions",
    "SmallestImagePixelValue", "LossyImageCompressionRatio",
    # uptake values
    "PatientWeight", "RadiopharmaceuticalInformationSequence", "DecayCorrection", "DecayFactor", "CorrectedImage",
    "SeriesDate", "SeriesTime", "AcquisitionDate", "AcquisitionTime", "FrameReferenceTime", "ActualFrameDuration",
    "SUVType",
)  # fmt: skip
# GE: begin of a PET scan
_TAGS = (*(int(tag_for_keyword(word) or 0) for word in _KEYWORDS), 0x0009100D)


def details(header: Header) -> Any:
    """The further elements of a file, as a pydicom Dataset.

    Parameters
    ----------
    header : Header
        Of the file.

    Raises
    ------
    ReadError
        The file has gone or its header is damaged.
    """
    try:
        changed = os.stat(header.path).st_mtime_ns
        return _details(header.path, changed)
    except OSError as error:
        raise ReadError(f"{os.path.basename(header.path)} can no longer be read: {error.strerror}.") from error
    except BROKEN_FILE as error:
        raise ReadError(f"The header of {os.path.basename(header.path)} is broken ({type(error).__name__}).") from error


@lru_cache(maxsize=512)
def _details(path: str, changed: int) -> Any:
    with quietly():
        found = dcmread(path, stop_before_pixels=True, force=True, specific_tags=list(_TAGS))
        _convert(found)
    return found


def _convert(dataset: Any) -> None:
    """Turn raw elements into values while warnings are collected; the unreadable ones are taken out."""
    for tag in list(dataset.keys()):
        try:
            element = dataset[tag]
            for item in element.value if element.VR == "SQ" else ():
                _convert(item)
        except BROKEN_FILE:
            del dataset[tag]

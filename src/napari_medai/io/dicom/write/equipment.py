"""What every object written here says about who made it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from napari_medai import __version__
from napari_medai.io.dicom.write.source import Source

if TYPE_CHECKING:
    from highdicom import AlgorithmIdentificationSequence
    from pydicom import Dataset

_log = logging.getLogger(__name__)

MAKER = "napari-medai"
RESEARCH = "Research use only; not a medical device."
# Later than the numbers of a scanner's own series, with room for one series of each kind.
_SERIES_STEP = 100
_KINDS = {"segmentation": 1, "map": 2, "derived": 3, "report": 4, "contours": 5}


def equipment(source: Source, kind: str) -> dict[str, Any]:
    """Maker, software and the new series, as highdicom's constructors call them.

    Parameters
    ----------
    source : Source
        The scan.
    kind : str
        ``"segmentation"``, ``"map"``, ``"derived"``, ``"report"`` or ``"contours"``.
    """
    from highdicom import UID

    return {
        "series_instance_uid": UID(),
        "series_number": series_number(source, kind),
        "sop_instance_uid": UID(),
        "instance_number": 1,
        "manufacturer": MAKER,
        "manufacturer_model_name": MAKER,
        "software_versions": __version__,
        "device_serial_number": __version__,
    }


def series_number(source: Source, kind: str) -> int:
    """100 times the number of the scan's series, plus one for a segmentation, two for a map …"""
    number = source.lead.get("SeriesNumber")
    return (int(number) if number is not None else 0) % 10**6 * _SERIES_STEP + _KINDS[kind]


def algorithm(provenance: Mapping[str, Any]) -> AlgorithmIdentificationSequence | None:
    """The algorithm of a run: the model, the sha256 of its weights as its version, and what it was given.

    Parameters
    ----------
    provenance : mapping
        As `Provenance.as_dict` gives it.

    Returns
    -------
    AlgorithmIdentificationSequence or None
        None where no model took part.
    """
    from highdicom import AlgorithmIdentificationSequence
    from pydicom.sr.codedict import codes

    model = str(provenance.get("model", ""))
    if not model:
        return None
    parameters = {str(k): str(v) for k, v in dict(provenance.get("params") or {}).items() if v not in (None, "")}
    return AlgorithmIdentificationSequence(
        model[:64],
        codes.cid7162.ArtificialIntelligence,
        (str(provenance.get("model_sha256", "")) or __version__)[:64],
        f"{MAKER} {__version__}"[:64],
        parameters or None,
    )


def made_by(record: Mapping[str, Any]) -> str:
    """One line on how a result was made: stage, method and class, model and its hash; empty if nothing is known.

    Parameters
    ----------
    record : mapping
        Of the result, with its ``provenance``.
    """
    known = dict(record.get("provenance") or {})
    words = [str(known.get("stage", "")), str(record.get("method", ""))]
    if record.get("target"):
        words.append(f"of {record['target']}")
    if known.get("model"):
        words.append(f"by {known['model']}")
    if known.get("model_sha256"):
        words.append(f"sha256 {known['model_sha256']}")
    return " ".join(word for word in words if word)[:1024]


def finish(dataset: Dataset, source: Source, title: str) -> None:
    """Names of the patient and physician, description of the series, and what DICOM wants even where it is empty."""
    tell(source)
    dataset.PatientName = source.lead.PatientName
    dataset.ReferringPhysicianName = source.lead.ReferringPhysicianName
    if "FrameOfReferenceUID" not in dataset:  # then the image says how the patient lies in it (PS3.3 C.7.6.1.1.1)
        dataset.PatientOrientation = source.lead.get("PatientOrientation", "")
    dataset.SeriesDescription = title[:64]
    body = str(source.lead.get("BodyPartExamined", "") or "")
    if body:
        dataset.BodyPartExamined = body
    if "ContentLabel" in dataset and "ContentCreatorName" not in dataset:
        dataset.ContentCreatorName = ""


def tell(source: Source) -> None:
    """Log what of the scan's headers was not valid and is written otherwise; nothing of its values."""
    for note in source.notes:
        _log.warning(note)


def say_side(dataset: Dataset, source: Source) -> None:
    """Laterality, which may be empty but not absent where nobody said which part of the body it is (PS3.3 C.7.3.1)."""
    if source.lead.get("ImageLaterality"):
        return
    side = str(source.lead.get("Laterality", "") or "")
    if side or not source.lead.get("BodyPartExamined"):
        dataset.Laterality = side

"""The header of an instance of the scan, with what the standard asks of patient and study in a valid form.

Some scanners and anonymisers write times as ``11:20:00`` or ages as ``42``. What can be said in the standard's own form
is; what cannot, and may be empty or absent, becomes so. The notes on that name the attribute and never its value.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

from napari_medai.core.errors import WriteError
from napari_medai.io.dicom.quiet import BROKEN_FILE, quietly

if TYPE_CHECKING:
    from pydicom import Dataset

# Type 2 attributes of the patient and study modules (PS3.3 C.7.1.1, C.7.2.1): they may be empty, but not absent.
MAY_BE_EMPTY = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "ReferringPhysicianName",
    "StudyID", "AccessionNumber",
)  # fmt: skip
# Of the patient, study and patient study modules; the others that are not of group 0010.
_OF_STUDY = ("StudyDate", "StudyTime", "StudyID", "AccessionNumber", "StudyDescription")
# Text that says who it is stays as it is: software finds the patient by it.
_IDENTITY = ("PatientName", "PatientID", "ReferringPhysicianName", "IssuerOfPatientID", "OtherPatientIDs")
_CHECKED = ("DA", "TM", "DT", "AS", "CS", "DS", "IS", "LO", "SH", "PN")
_DATE = re.compile(r"(\d{4})[.\-/](\d\d)[.\-/](\d\d)")
_TIME = re.compile(r"(\d\d):(\d\d)(?::(\d\d(?:\.\d{1,6})?))?")
# These have several bytes for a letter and stand beside another set in any case.
_EXTENDED_ONLY = ("ISO 2022 IR 87", "ISO 2022 IR 159", "ISO 2022 IR 149", "ISO 2022 IR 58")
_SEXES = ("M", "F", "O")


def read(path: str) -> tuple[Dataset, tuple[str, ...]]:
    """The header of a file, valid as far as patient and study go, and what was changed for that.

    Parameters
    ----------
    path : str
        A DICOM file.

    Returns
    -------
    Dataset
        Without pixels.
    tuple of str
        A sentence for each attribute that was changed; nothing of its value.

    Raises
    ------
    WriteError
        It cannot be read, or nothing can refer to it because it has no identifiers.
    """
    from pydicom import dcmread

    name = os.path.basename(path)
    try:
        with quietly():
            dataset = dcmread(path, stop_before_pixels=True, force=True)
            dataset.decode()
            notes = conform(dataset)
            missing = [k for k in ("StudyInstanceUID", "SOPClassUID", "SOPInstanceUID") if not dataset.get(k)]
    except OSError as error:
        raise WriteError(f"{name} cannot be read again: {error.strerror or error}.") from error
    except BROKEN_FILE as error:
        raise WriteError(f"The header of {name} cannot be read ({type(error).__name__}).") from error
    if missing:
        raise WriteError(
            f"{name} has no {', '.join(missing)}: nothing in DICOM can refer to it. Save as .nii.gz instead."
        )
    return dataset, notes


def conform(dataset: Dataset) -> tuple[str, ...]:
    """Put attributes of patient and study into valid form, empty those that have none, drop the optional ones.

    Parameters
    ----------
    dataset : Dataset
        Is changed.

    Returns
    -------
    tuple of str
        A sentence for each change; nothing of its value.
    """
    from pydicom.datadict import keyword_for_tag

    notes = []
    tags = [t for t in dataset.keys() if t.group == 0x0010 or keyword_for_tag(t) in _OF_STUDY]  # noqa: SIM118
    for tag in tags:
        keyword = keyword_for_tag(tag)
        if not keyword or keyword in _IDENTITY:
            continue
        try:
            element = dataset[tag]
            value, vr = element.value, element.VR
            if vr not in _CHECKED or _valid(keyword, vr, value):
                continue
            better = _better(vr, value)
        except BROKEN_FILE:
            better = ""
        if better:
            setattr(dataset, keyword, better)
            notes.append(f"{keyword} of the scan was put into the form of the standard.")
        elif keyword in MAY_BE_EMPTY:
            del dataset[tag]
            notes.append(f"{keyword} of the scan is not valid and was left empty.")
        else:
            del dataset[tag]
            notes.append(f"{keyword} of the scan is not valid and was left out.")
    sets = dataset.get("SpecificCharacterSet")
    if sets == "ISO 2022 IR 6":
        del dataset.SpecificCharacterSet  # the default, which has no name of its own
    elif isinstance(sets, str) and sets.startswith("ISO 2022 IR ") and sets not in _EXTENDED_ONLY:
        # PS3.3 C.12.1.1.2: a single set has no code extensions, and is called otherwise
        dataset.SpecificCharacterSet = sets.replace("ISO 2022 IR ", "ISO_IR ")
    for keyword in MAY_BE_EMPTY:
        if keyword not in dataset:
            setattr(dataset, keyword, "")
    return tuple(notes)


def _valid(keyword: str, vr: str, value: Any) -> bool:
    from pydicom.config import RAISE
    from pydicom.multival import MultiValue
    from pydicom.valuerep import DA, TM, validate_value

    if value in (None, ""):
        return True
    if keyword == "PatientSex":
        return value in _SEXES
    try:
        for one in value if isinstance(value, MultiValue | list) else [value]:
            if vr != "PN":
                validate_value(vr, str(getattr(one, "original_string", one)), RAISE)
            if vr == "DA":
                DA(str(one))
            if vr == "TM":
                TM(str(one))
    except (ValueError, TypeError):
        return False
    return True


def _better(vr: str, value: Any) -> str:
    """The date or time that was meant, in the form of the standard; empty if that is not clear."""
    known = {"DA": _DATE, "TM": _TIME}.get(vr)
    found = known.fullmatch(str(value).strip()) if known else None
    text = "".join(part for part in found.groups() if part) if found else ""
    return text if text and _valid("", vr, text) else ""

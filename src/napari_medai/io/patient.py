"""Who a study is of: the one place where the reading of images looks at the identity of patients.

`identity` reads it for the eyes of a person who asked. `patient_key` tells patients apart by a digest under a key that
is made anew in every process: it shows which files are of one patient, and nothing else.
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from pydicom import dcmread

from napari_medai.core.errors import ReadError
from napari_medai.io.dicom.quiet import BROKEN_FILE, quietly
from napari_medai.io.dicom.series import clean

__all__ = ["Identity", "identity", "patient_key"]

PathLike = str | os.PathLike[str]

_KEY = secrets.token_bytes(32)
_PATIENT = ("PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "StudyDate")


@dataclass(frozen=True, repr=False)
class Identity:
    """Who a study is of; empty where the header does not say. Never to be logged, stored or written to a file.

    Attributes
    ----------
    name, patient_id : str
        ``"Doe, Jane"``; Patient ID (0010,0020).
    birth_date, study_date : str
        ``"1961-01-01"``.
    """

    name: str
    patient_id: str
    birth_date: str
    study_date: str

    def __repr__(self) -> str:
        return "Identity(hidden)"


def identity(path: PathLike) -> Identity:
    """Who a study is of, read from one of its files; for the eyes of the person who asked.

    Raises
    ------
    ReadError
        The file cannot be read.
    """
    dataset = _patient_module(path)
    return Identity(
        _person(dataset.get("PatientName")),
        _plain(dataset.get("PatientID")),
        _date(dataset.get("PatientBirthDate")),
        _date(dataset.get("StudyDate")),
    )


def patient_key(path: str, study: str) -> str:
    """Equal for files of one patient, in this process; where they do not say whose they are, of one study."""
    try:
        dataset = _patient_module(path)
    except ReadError:
        parts = []
    else:
        # a Patient ID is unique within its issuer (PS3.3 C.7.1.1, C.2.2); without one, the name and the date of birth
        parts = [_plain(dataset.get("PatientID")), _plain(dataset.get("IssuerOfPatientID"))]
        if not parts[0]:
            parts = ["", _person(dataset.get("PatientName")).casefold(), _plain(dataset.get("PatientBirthDate"))]
    if not any(parts):
        parts = ["?", study or os.path.dirname(path)]
    return blake2b("\0".join(parts).encode("utf-8", "replace"), key=_KEY, digest_size=16).hexdigest()


def _patient_module(path: PathLike) -> Any:
    name = os.path.basename(path)
    try:
        with quietly():
            tags = ["SpecificCharacterSet", *_PATIENT]
            dataset = dcmread(path, stop_before_pixels=True, force=True, specific_tags=tags)
            for keyword in tags:
                try:
                    dataset.get(keyword)
                except BROKEN_FILE:
                    delattr(dataset, keyword)
            return dataset
    except OSError as error:
        raise ReadError(f"{name} cannot be read: {error.strerror or 'the system refused'}.") from error
    except BROKEN_FILE:
        # not chained: the text of the cause can quote the header
        raise ReadError(f"The header of {name} is damaged.") from None


def _plain(value: Any) -> str:
    return clean("" if value is None else str(value))


def _person(value: Any) -> str:
    """A person's name as people read it, in the first way of writing it that is not empty (PS3.5 6.2.1)."""
    groups = [part for part in _plain(value).split("=") if part.strip(" ^")]
    family, _, rest = (groups[0] if groups else "").partition("^")
    given = " ".join(part for part in rest.split("^") if part.strip())
    return ", ".join(part.strip() for part in (family, given) if part.strip())


def _date(value: Any) -> str:
    digits = _plain(value).replace(".", "").replace("-", "")
    return f"{digits[:4]}-{digits[4:6]}-{digits[6:8]}" if len(digits) == 8 and digits.isdigit() else ""

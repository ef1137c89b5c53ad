"""What every archive can do, and what it answers with."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from napari_medai.core.errors import ArchiveError, ParamsError
from napari_medai.core.stage import Progress

if TYPE_CHECKING:
    from napari_medai.pacs.node import Node

_UID = re.compile(r"[0-9.]{1,64}")
_DATE = re.compile(r"(\d{8})?(-(\d{8})?)?")


@dataclass(frozen=True)
class Query:
    """What to look for; an empty field matches everything.

    Attributes
    ----------
    patient_id, accession_number : str
        Patient ID (0010,0020) and Accession Number (0008,0050); not part of its text.
    study_uid, series_uid : str
        Study and Series Instance UID.
    modality : str
        Of a series, e.g. ``"CT"``.
    date : str
        Study date, ``YYYYMMDD`` or a range ``YYYYMMDD-YYYYMMDD`` open at either end.
    """

    patient_id: str = field(default="", repr=False)
    accession_number: str = field(default="", repr=False)
    study_uid: str = ""
    series_uid: str = ""
    modality: str = ""
    date: str = ""

    def __post_init__(self) -> None:
        for uid in (self.study_uid, self.series_uid):
            if uid and not is_uid(uid):
                raise ParamsError(f"{uid[:80]!r} is no UID: up to 64 digits and dots.")
        if not _DATE.fullmatch(self.date) or self.date == "-":
            raise ParamsError(f"{self.date[:40]!r} is no date: write YYYYMMDD, or a range YYYYMMDD-YYYYMMDD.")

    @property
    def is_empty(self) -> bool:
        """Whether it matches everything."""
        return self == Query()


def is_uid(text: str) -> bool:
    """Whether a text can be a UID, and so a part of a path or a URL."""
    return bool(_UID.fullmatch(text)) and ".." not in text


@dataclass(frozen=True)
class Identity:
    """Whom a study is of; shown only on request."""

    patient_id: str = field(default="", repr=False)
    patient_name: str = field(default="", repr=False)
    birth_date: str = field(default="", repr=False)
    accession_number: str = field(default="", repr=False)


@dataclass(frozen=True)
class StudyEntry:
    """A study in an archive.

    Attributes
    ----------
    uid, date, description : str
        Study Instance UID, date (``YYYYMMDD``) and description.
    modalities : tuple of str
        Of its series.
    series, instances : int or None
        How many, if the archive says it.
    identity : Identity
        Whom it is of.
    """

    uid: str
    date: str = ""
    description: str = ""
    modalities: tuple[str, ...] = ()
    series: int | None = None
    instances: int | None = None
    identity: Identity = field(default_factory=Identity, repr=False)


@dataclass(frozen=True)
class SeriesEntry:
    """A series in an archive."""

    study_uid: str
    uid: str
    modality: str = ""
    number: int | None = None
    description: str = ""
    instances: int | None = None


@dataclass(frozen=True)
class InstanceEntry:
    """An instance in an archive: SOP Instance UID, and SOP Class UID if the archive says it."""

    uid: str
    sop_class: str = ""


@dataclass
class Outcome:
    """What became of a transfer.

    Attributes
    ----------
    folder : Path or None
        Where a pulled series lies.
    done, skipped : int
        Instances that were moved, and those that were there already.
    failed : dict of str to str
        File name or SOP Instance UID -> why.
    """

    folder: Path | None = None
    done: int = 0
    skipped: int = 0
    failed: dict[str, str] = field(default_factory=dict)

    def check(self, verb: str, where: object) -> None:
        """Raise if something failed.

        Raises
        ------
        ArchiveError
            With the first three failures.
        """
        if self.failed:
            shown = "; ".join(f"{name}: {why}" for name, why in list(self.failed.items())[:3])
            rest = f"; and {len(self.failed) - 3} more" if len(self.failed) > 3 else ""
            total = self.done + self.skipped + len(self.failed)
            raise ArchiveError(
                f"{len(self.failed)} of {total} instances were not {verb} {where} ({shown}{rest}); run the same again "
                "to go on with those."
            )


class Archive(Protocol):
    """An archive; safe to use from one thread at a time."""

    @property
    def node(self) -> Node:
        """Its address."""

    def echo(self) -> str:
        """Ask whether it is there and lets us in; what it is, in words.

        Raises
        ------
        ArchiveError
            It cannot be reached or refuses; as do all the others below.
        """

    def find_studies(self, query: Query) -> list[StudyEntry]:
        """The studies that match, newest first."""

    def find_series(self, query: Query) -> list[SeriesEntry]:
        """The series that match, by study and number."""

    def find_instances(self, study_uid: str, series_uid: str) -> list[InstanceEntry]:
        """The instances of a series; empty if there is no such series."""

    def pull(self, series: SeriesEntry, folder: Path, progress: Progress) -> Outcome:
        """Fetch a series into a folder of its own below ``folder``; what is there already is not fetched again."""

    def push(self, paths: Sequence[Path], progress: Progress, *, again: bool = False) -> Outcome:
        """Send files; those that the archive has already are left out unless ``again``."""

    def close(self) -> None:
        """Give back connections."""


def series_of(archive: Archive, query: Query) -> list[SeriesEntry]:
    """The series that match a query, through the studies that match where it names none.

    Raises
    ------
    ArchiveError
        There is none; what to change is said.
    """
    found = archive.find_series(query)
    if not found:
        asked = [w for w, v in (("study", query.study_uid), ("series", query.series_uid)) if v]
        what = f"no such {' and '.join(asked)}" if asked else "nothing that matches"
        raise ArchiveError(f"{archive.node} has {what}; look with --list, or ask for less.")
    return found


def study_entry(dataset: Any) -> StudyEntry:
    """From a pydicom Dataset of the study level."""
    return StudyEntry(
        plain(dataset, "StudyInstanceUID"),
        plain(dataset, "StudyDate"),
        plain(dataset, "StudyDescription"),
        tuple(sorted(filter(None, plain(dataset, "ModalitiesInStudy").split("\\")))),
        whole(dataset, "NumberOfStudyRelatedSeries"),
        whole(dataset, "NumberOfStudyRelatedInstances"),
        Identity(
            plain(dataset, "PatientID"),
            plain(dataset, "PatientName"),
            plain(dataset, "PatientBirthDate"),
            plain(dataset, "AccessionNumber"),
        ),
    )


def series_entry(dataset: Any, study_uid: str) -> SeriesEntry:
    """From a pydicom Dataset of the series level."""
    return SeriesEntry(
        plain(dataset, "StudyInstanceUID") or study_uid,
        plain(dataset, "SeriesInstanceUID"),
        plain(dataset, "Modality"),
        whole(dataset, "SeriesNumber"),
        plain(dataset, "SeriesDescription"),
        whole(dataset, "NumberOfSeriesRelatedInstances"),
    )


def newest_first(found: Sequence[StudyEntry]) -> list[StudyEntry]:
    """Studies by date; entries without a UID that can be one are left out."""
    return sorted((s for s in found if is_uid(s.uid)), key=lambda s: (s.date, s.uid), reverse=True)


def by_number(found: Sequence[SeriesEntry]) -> list[SeriesEntry]:
    """Series by number; entries without a UID that can be one are left out."""
    known = (s for s in found if is_uid(s.uid) and is_uid(s.study_uid))
    return sorted(known, key=lambda s: (s.number if s.number is not None else 1 << 31, s.uid))


def plain(dataset: Any, keyword: str) -> str:
    """An element as one line of text; empty if it is absent or cannot be read."""
    try:
        value = dataset.get(keyword, "")
    except (ValueError, TypeError, LookupError):
        return ""
    if value is None:
        return ""
    if not isinstance(value, str) and hasattr(value, "__iter__") and not hasattr(value, "components"):
        value = "\\".join(map(str, value))
    return re.sub(r"[\x00-\x1f\x7f]+", " ", str(value)).strip()[:128]


def whole(dataset: Any, keyword: str) -> int | None:
    """An element as a whole number; None if it is none."""
    text = plain(dataset, keyword)
    return int(text) if re.fullmatch(r"[+-]?\d{1,12}", text) else None

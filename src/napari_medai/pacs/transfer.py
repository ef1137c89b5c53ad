"""Files on this side: where a pulled instance lies, what is missing, what is to be pushed."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pydicom import dcmread
from pydicom.uid import UID

from napari_medai.core.errors import ArchiveError, NoImagesError, ReadError
from napari_medai.core.stage import Progress
from napari_medai.io.atomic import write_error
from napari_medai.io.dicom.headers import looks_like_dicom
from napari_medai.io.dicom.quiet import BROKEN_FILE, quietly
from napari_medai.pacs.archive import InstanceEntry, is_uid
from napari_medai.pacs.node import PAUSE_S

_LONGEST_PAUSE_S = 20.0
_TAGS = ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"]


@dataclass(frozen=True)
class Item:
    """A file to be pushed."""

    path: Path
    study_uid: str
    series_uid: str
    uid: str
    sop_class: str
    syntax: str
    size: int


def uid_name(uid: str) -> str:
    """A UID as a name on the disk; what is no UID becomes a hash, so that no name leads out of the folder."""
    return uid if is_uid(uid) and uid.strip(".") else "x" + hashlib.sha256(uid.encode()).hexdigest()[:32]


def instance_path(folder: Path, series_uid: str, uid: str) -> Path:
    """Where an instance lies: ``folder/SERIES-UID/INSTANCE-UID.dcm``. Files have their names only when whole."""
    return folder / uid_name(series_uid) / f"{uid_name(uid)}.dcm"


def series_folder(folder: Path, series_uid: str) -> Path:
    """The folder of a series; made if need be.

    Raises
    ------
    WriteError
        It cannot be made.
    """
    found = folder.expanduser() / uid_name(series_uid)
    try:
        found.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(found, error) from error
    return found


def missing(folder: Path, series_uid: str, instances: Iterable[InstanceEntry]) -> list[InstanceEntry]:
    """The instances that are not there yet, each once."""
    seen = {e.uid: e for e in instances if e.uid}
    return [e for e in seen.values() if not instance_path(folder, series_uid, e.uid).is_file()]


def check_instance(file: BinaryIO, uid: str) -> None:
    """Refuse what an archive sent in place of the instance that was asked for.

    Raises
    ------
    ArchiveError
        It is not DICOM, or another instance.
    """
    file.seek(0)
    if not looks_like_dicom(file.read(132)):
        raise ArchiveError(f"The archive sent something that is no DICOM file for instance {uid}.")
    file.seek(0)
    try:
        with quietly():
            found = str(dcmread(file, stop_before_pixels=True, specific_tags=_TAGS).get("SOPInstanceUID", ""))
    except BROKEN_FILE as error:
        raise ArchiveError(f"The archive sent a damaged file for instance {uid}.") from error
    if found != uid:
        raise ArchiveError(f"The archive sent another instance than {uid}, which was asked for.")
    file.seek(0, os.SEEK_END)


def items_of(paths: Sequence[Path]) -> list[Item]:
    """The DICOM files among files and folders, by series.

    Raises
    ------
    ReadError
        A named file is missing or not DICOM; `NoImagesError` if there is none in the folders.
    """
    found: dict[str, Item] = {}
    for path in paths:
        path = path.expanduser()
        if not path.exists():
            raise ReadError(f"{path} does not exist; check the path.")
        if path.is_dir():
            files = sorted(Path(parent) / name for parent, _, names in os.walk(path) for name in names)
            for one in files:
                item = _item(one) if one.name.upper() != "DICOMDIR" and not one.name.startswith(".") else None
                if item is not None:
                    found.setdefault(item.uid, item)
        else:
            item = _item(path)
            if item is None:
                raise ReadError(f"{path.name} is no DICOM file with an instance UID; an archive takes nothing else.")
            found.setdefault(item.uid, item)
    if not found:
        raise NoImagesError("There is no DICOM file to push; give DICOM files or folders with some.")
    return sorted(found.values(), key=lambda i: (i.study_uid, i.series_uid))


def _item(path: Path) -> Item | None:
    try:
        with path.open("rb") as file:
            if not looks_like_dicom(file.read(132)):
                return None
            file.seek(0)
            with quietly():
                dataset = dcmread(file, stop_before_pixels=True, specific_tags=_TAGS)
                study, series = (str(dataset.get(f"{level}InstanceUID", "") or "") for level in ("Study", "Series"))
                uid, sop_class = str(dataset.get("SOPInstanceUID", "")), str(dataset.get("SOPClassUID", ""))
                syntax = str(dataset.file_meta.get("TransferSyntaxUID", ""))
        size = path.stat().st_size
    except OSError as error:
        raise ReadError(f"{path.name} cannot be read: {error.strerror or error}.") from error
    except BROKEN_FILE:
        return None
    return Item(path, study, series, uid, sop_class, syntax, size) if uid and sop_class and syntax else None


def kind(uid: str) -> str:
    """The name of a SOP class or transfer syntax."""
    return str(UID(uid).name)


def pause(attempt: int, progress: Progress, at_least: float = 0.0) -> None:
    """Pause before the next try, longer each time; ends early when cancelled."""
    until = time.monotonic() + min(max(PAUSE_S * 2 ** (attempt - 1), at_least), _LONGEST_PAUSE_S)
    while time.monotonic() < until:
        progress.check()
        time.sleep(0.05)

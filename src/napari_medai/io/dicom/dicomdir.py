"""Follows a DICOMDIR to the files it lists."""

from __future__ import annotations

import os
from pathlib import Path

from pydicom import dcmread

from napari_medai.core.errors import ReadError
from napari_medai.io.dicom.headers import DICOMDIR_CLASS, Header, items, text
from napari_medai.io.dicom.quiet import BROKEN_FILE, quietly


def is_dicomdir(header: Header) -> bool:
    """Whether a header is that of a DICOMDIR."""
    return header.media_class == DICOMDIR_CLASS


def referenced_files(path: Path) -> tuple[list[str], int]:
    """The files that a DICOMDIR lists (PS3.3 F.3) and that exist.

    Returns
    -------
    list of str
        Paths.
    int
        How many are listed but not there.

    Raises
    ------
    ReadError
        The directory records cannot be read.
    """
    try:
        with quietly():
            directory = dcmread(path, force=True, specific_tags=["DirectoryRecordSequence"])
            names = [text(record, "ReferencedFileID") for record in items(directory, "DirectoryRecordSequence")]
    except OSError as error:
        raise ReadError(f"{path.name} cannot be read: {error.strerror or error}.") from error
    except BROKEN_FILE as error:
        raise ReadError(f"The directory in {path.name} is damaged.") from error
    found, missing = [], 0
    for name in names:
        parts = [part for part in name.replace("/", "\\").split("\\") if part]
        # A file ID never leaves its medium (PS3.10 8.2).
        if not parts or ".." in parts:
            continue
        there = _existing(path.parent, parts)
        if there is None:
            missing += 1
        else:
            found.append(os.fspath(there))
    return list(dict.fromkeys(found)), missing


def _existing(folder: Path, parts: list[str]) -> Path | None:
    for kind in (str, str.lower, str.upper):
        candidate = folder.joinpath(*map(kind, parts))
        if candidate.is_file():
            return candidate
    return None

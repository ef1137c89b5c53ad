"""Where a file is to be written: looked at before anything is computed for it, or read."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from napari_medai.core.errors import ReadError, WriteError, reason_of
from napari_medai.io import FORMATS, find_format, find_writer


def check_target(target: Path, kind: str = "", *sources: Path) -> None:
    """Refuse what could not be written at the end, or would overwrite what is read.

    Parameters
    ----------
    target : Path
        The file or folder to be.
    kind : {"", "images", "tables"}
        See `napari_medai.io.find_writer`.
    *sources : Path
        What is read; see `check_apart`.

    Raises
    ------
    WriteError
        The name does not say how to write it, there is something else of that name, it is one of the sources, or
        its folder is missing or takes no files.
    """
    writer = find_writer(target, kind, folder=True)
    target = target.expanduser()
    check_apart(target, *sources)
    for source in sources:
        read = source.expanduser().resolve()
        folder = read.parent if read.name.upper() == "DICOMDIR" else read
        if target.is_file() and folder in target.resolve().parents and _is_dicom(target):
            raise WriteError(f"{target} is one of the DICOM files in {source}, which is read; give another name.")
    # a link keeps being one, but for folders
    place = target.absolute() if writer.name == "omezarr" else target.resolve()
    if not place.parent.is_dir():
        raise WriteError(f"The folder of {target.name} does not exist; make it first.")
    if writer.name == "omezarr":
        from napari_medai.io.omezarr_write import check_replaceable

        check_replaceable(place)
    elif place.is_dir() and ("." in target.name or any(place.iterdir())):
        raise WriteError(f"{target} cannot be written: a folder has that name; give another.")
    elif place.is_file() and "." not in target.name:
        raise WriteError(f"{target} cannot be written: a file has the name of that folder; give another.")
    trial = place.with_name(f".{secrets.token_hex(8)}.part")
    try:
        os.close(os.open(trial, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        trial.unlink()
    except OSError as error:
        raise WriteError(f"{target} cannot be written: {reason_of(error)}.") from error


def check_apart(target: Path, *sources: Path) -> None:
    """Refuse a target that is what is read, by whatever name, lies in an OME-Zarr that is read, or holds what is read.

    Raises
    ------
    WriteError
        It is so.
    """
    wanted = target.expanduser().resolve()
    for source in sources:
        read = source.expanduser().resolve()
        if wanted == read or (wanted.exists() and read.exists() and wanted.samefile(read)):
            raise WriteError(f"{target} is what is read; give another name.")
        if read in wanted.parents and _is_zarr(read):
            raise WriteError(f"{target} lies inside of {source}, which is read; give a name outside of it.")
        if wanted in read.parents and _is_zarr(wanted):
            raise WriteError(f"{target} holds {source.name}, which is read; give another name.")


def _is_zarr(path: Path) -> bool:
    found: bool = FORMATS["omezarr"].load().sniff(b"", path)
    return found


def _is_dicom(path: Path) -> bool:
    try:
        return find_format(path).name == "dicom"
    except ReadError:
        return False

"""Archives of studies: ZIP and plain tar, unpacked into a private folder that goes when the program ends.

What stands in an archive decides nothing about where files are written: they get names of our own. Archives in
archives are not opened.
"""

from __future__ import annotations

import atexit
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from napari_medai.core.errors import MedaiError, NoImagesError, ReadError, SeriesChoiceError, SeriesInfo
from napari_medai.core.volume import Volume
from napari_medai.io.archive_members import BROKEN, HEAD_BYTES, Listing, Member, is_archive, opened

__all__ = ["folder_of", "holds_images", "list_series", "open_volume", "sniff"]

# An archive may unpack to this many times its size, or to the bytes below where that is more: DICOM shrinks to a
# third, sparse masks to a hundredth, and what shrinks further was made to fill a disk.
MOST_RATIO = 200
ALWAYS_BYTES = 256 << 20
# Left free on the disk that it is unpacked to.
_SPARE_BYTES = 1 << 30
_PIECE_BYTES = 1 << 20
# No image with the header it needs is shorter; files cost time each, and an archive may hold any number of empty ones.
_SMALLEST_BYTES = 200
_PREFIX = "medai-archive-"
_NIFTI = re.compile(r"\.(nii|hdr|img)(\.gz)?$", re.IGNORECASE)
# Looked at before a reader of the viewer says that an archive is none of its business.
_LOOKED_AT = 200
_LOCK = threading.Lock()


@dataclass(frozen=True)
class Unpacked:
    """An archive on the disk.

    Attributes
    ----------
    dicom : Path
        Folder with its DICOM files.
    nifti : mapping of str to Path
        Its NIfTI files by the name that `list_series` gives them.
    findings : tuple of str
        What was left out.
    """

    dicom: Path
    nifti: dict[str, Path]
    findings: tuple[str, ...]


# by path, time of change, size and inode
_UNPACKED: dict[tuple[str, int, int, int], Unpacked] = {}
_FOLDERS: list[tuple[int, Path]] = []


def sniff(head: bytes, path: Path) -> bool:
    """Whether a file is a ZIP or a plain tar archive."""
    return is_archive(head)


def holds_images(path: Path) -> bool:
    """Whether an archive holds DICOM or NIfTI, by its first members; False if it cannot be read.

    Parameters
    ----------
    path : Path
        Any file.
    """
    try:
        with opened(path) as listing:
            for member in listing.members[:_LOOKED_AT]:
                try:
                    with member.open() as file:
                        if _kind(member, file.read(HEAD_BYTES)):
                            return True
                except BROKEN:
                    continue
            return bool(listing.encrypted) and not listing.members
    except MedaiError:
        return False


def folder_of(path: Path) -> Path:
    """The folder with an archive's DICOM files; any other path is returned as it is.

    Parameters
    ----------
    path : Path
        A file or folder.

    Raises
    ------
    ReadError
        It is an archive that cannot be unpacked.
    """
    try:
        with path.open("rb") as file:
            if not is_archive(file.read(HEAD_BYTES)):
                return path
    except OSError:
        return path  # whoever opens it says what is wrong
    return unpacked(path).dicom


def list_series(path: Path) -> list[SeriesInfo]:
    """What an archive holds: its DICOM series, then its NIfTI images, whose ``uid`` is a number and their name.

    Raises
    ------
    ReadError
        The archive is damaged, encrypted or too large.
    NoImagesError
        It holds no DICOM and no NIfTI image that can be opened.
    """
    from napari_medai.io import dicom, nifti
    from napari_medai.io.single import series_of

    content = unpacked(path)
    found: list[SeriesInfo] = []
    failed: list[MedaiError] = []
    with _told_as(path, content):
        if any(content.dicom.iterdir()):
            try:
                found += dicom.list_series(content.dicom)
            except MedaiError as error:
                failed.append(error)
        for uid, file in content.nifti.items():
            try:
                found.append(series_of(nifti.open_volume(file, labels=False), uid))
            except MedaiError as error:
                failed.append(error)
        if not found and failed:
            raise failed[0]
    return found


def open_volume(path: Path, series_uid: str = "", **options: Any) -> Volume:
    """Open an image of an archive.

    Parameters
    ----------
    path : Path
        The archive; it becomes the volume's ``source``.
    series_uid : str
        Which image, as `list_series` gives it. Default: the only one.
    **options
        Of the reader of DICOM or NIfTI.

    Raises
    ------
    SeriesChoiceError
        There are several and none was named.
    ReadError
        As `list_series`, or the image is damaged.
    """
    from napari_medai.io import dicom, nifti

    if not series_uid:
        series = list_series(path)
        if len(series) > 1:
            raise SeriesChoiceError(path.name, series)
        series_uid = series[0].uid
    content = unpacked(path)
    with _told_as(path, content):
        if series_uid in content.nifti:
            volume = nifti.open_volume(content.nifti[series_uid], **options)
            meta = {**volume.meta, "series_uid": series_uid}
        else:
            volume = dicom.open_volume(content.dicom, series_uid, **options)
            meta = dict(volume.meta)
    meta["findings"] = (*meta.get("findings", ()), *content.findings)
    return volume.replace(source=os.fspath(path), meta=meta)


def unpacked(path: Path) -> Unpacked:
    """The archive on the disk; it is unpacked once in the life of the program, and again if it changes.

    Raises
    ------
    ReadError, NoImagesError
        As `list_series`.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise ReadError(f"{path.name} cannot be read: {error.strerror}.") from error
    key = (os.path.abspath(path), status.st_mtime_ns, status.st_size, status.st_ino)
    with _LOCK:
        if key not in _UNPACKED:
            _UNPACKED[key] = _unpack(path, status.st_size)
        return _UNPACKED[key]


def _unpack(path: Path, packed: int) -> Unpacked:
    root = _private_folder()
    try:
        with opened(path) as listing:
            _check_sizes(path, packed, listing)
            content = _write(root, listing)
        if not content.nifti and not any(content.dicom.iterdir()):
            if listing.encrypted:
                raise ReadError(f"{path.name} is encrypted; unpack it with its password and open the folder.")
            raise NoImagesError(" ".join([f"{path.name} holds no DICOM and no NIfTI image.", *content.findings]))
    except BaseException:
        shutil.rmtree(root, ignore_errors=True)
        raise
    return content


def _check_sizes(path: Path, packed: int, listing: Listing) -> None:
    total = sum(member.size for member in listing.members)
    if total > max(ALWAYS_BYTES, MOST_RATIO * packed):
        raise ReadError(
            f"{path.name} would unpack from {packed / 1e6:.1f} MB to {total / 1e6:.0f} MB, which no scan does; "
            "if you trust it, unpack it yourself and open the folder."
        )
    free = shutil.disk_usage(tempfile.gettempdir()).free
    if total > free - _SPARE_BYTES:
        raise ReadError(
            f"{path.name} unpacks to {total / 1e6:.0f} MB, but {free / 1e6:.0f} MB are free in the temporary folder; "
            "make room, or name another folder in the environment variable TMPDIR."
        )


def _write(root: Path, listing: Listing) -> Unpacked:
    dicom = root / "dicom"
    dicom.mkdir()
    nifti: dict[str, Path] = {}
    folders: dict[str, int] = {}
    others = damaged = 0
    for number, member in enumerate(listing.members, 1):
        try:
            with member.open() as file:
                head = file.read(HEAD_BYTES)
                kind = _kind(member, head)
                if kind == "nifti":
                    # both files of a pair keep their names, side by side
                    at = folders.setdefault(member.folder, len(folders) + 1)
                    target = root / str(at) / _harmless(member.name)
                    target.parent.mkdir(exist_ok=True)
                elif kind == "dicom":
                    target = dicom / f"{number:06d}"
                else:
                    listing.nested += kind == "archive"
                    others += not kind
                    continue
                _copy(head, file, target, member)
        except BROKEN as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise ReadError(f"The archive cannot be unpacked: {error.strerror}.") from error
            damaged += 1
            continue
        if kind == "nifti":
            nifti[f"{at}/{target.name}"] = target
    # the image file of a pair is opened by its header
    for uid in list(nifti):
        header = re.sub(r"\.img(\.gz)?$", ".hdr", uid, flags=re.IGNORECASE)
        if header != uid and any(other.lower().removesuffix(".gz") == header.lower() for other in nifti):
            del nifti[uid]
    findings = listing.findings()
    if damaged:
        findings.append(f"{damaged} files in the archive are damaged and were left out.")
    if others:
        findings.append(f"{others} files in the archive are neither DICOM nor NIfTI and were left out.")
    return Unpacked(dicom, nifti, tuple(findings))


def _kind(member: Member, head: bytes) -> str:
    """``"dicom"``, ``"nifti"``, ``"archive"`` or empty."""
    from napari_medai.io.dicom.headers import looks_like_dicom

    if len(head) < _SMALLEST_BYTES and not _NIFTI.search(member.name):
        return ""
    if looks_like_dicom(head):
        return "dicom"
    if is_archive(head):
        return "archive"
    return "nifti" if _NIFTI.search(member.name) else ""


def _copy(head: bytes, file: IO[bytes], target: Path, member: Member) -> None:
    """Write a member; one that holds more or less than the archive says is damaged."""
    left = member.size - len(head)
    with target.open("xb") as out:
        try:
            out.write(head)
            while left > 0 and (piece := file.read(min(_PIECE_BYTES, left))):
                out.write(piece)
                left -= len(piece)
            # ZIP compares the checksum when the end is reached
            if left or file.read(1):
                raise EOFError("the member is not as long as the archive says")
        except BaseException:
            target.unlink(missing_ok=True)
            raise


def _harmless(name: str) -> str:
    """A file name for every system, with its suffix; letters of all scripts stay."""
    suffix = _NIFTI.search(name)
    end = suffix[0] if suffix else ""
    stem = re.sub(r"[^\w.+-]+", "_", name[: len(name) - len(end)]).strip("._")[:80]
    return f"{stem or 'image'}{end}"


@contextmanager
def _told_as(path: Path, content: Unpacked) -> Iterator[None]:
    """Errors name the archive, not the folder that it was unpacked to."""
    try:
        yield
    except SeriesChoiceError as error:
        raise SeriesChoiceError(path.name, error.series) from None
    except MedaiError as error:
        text = str(error).replace(os.fspath(content.dicom.parent), path.name)
        error.args = (text.replace(f"in {content.dicom.name}", f"in {path.name}"),)
        raise


def _private_folder() -> Path:
    """A folder that only this user can enter; goes when the program ends, at the latest when the next one starts."""
    _sweep()
    root = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))
    if not _FOLDERS:
        atexit.register(_remove_all)
    _FOLDERS.append((os.getpid(), root))
    return root


def _remove_all() -> None:
    for owner, folder in _FOLDERS:
        if owner == os.getpid():  # not in a fork
            shutil.rmtree(folder, ignore_errors=True)


def _sweep() -> None:
    """Remove what programs that were killed have left."""
    import psutil

    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*-*"):
        owner = folder.name[len(_PREFIX) :].partition("-")[0]
        if owner.isdecimal() and not psutil.pid_exists(int(owner)):
            shutil.rmtree(folder, ignore_errors=True)

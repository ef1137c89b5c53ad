"""Packages on the disk: their fingerprint, a private copy to run, and ZIP archives unpacked without surprises.

The fingerprint is what a permission is given for (see `napari_medai.models.trust`): every file counts, with its place
in the package. What is run under a permission is never the package itself but a copy that was hashed while it was
made, so that whoever can change the package changes nothing that runs.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from napari_medai.core.errors import ModelError, UntrustedError
from napari_medai.models.archive import unpacked

__all__ = ["MOST_FILES", "package_sha256", "private_copy", "unpacked"]

# nnU-Net folders with all their plots have some hundred files; a home folder that was named by mistake has more.
MOST_FILES = 50_000
_PIECE_BYTES = 1 << 20
_BEGINNING = b"napari-medai package 1\n"
_PREFIX = "medai-copy-"


def package_sha256(path: str | Path) -> str:
    """The fingerprint of a package: over every file's place in it, size and bytes.

    Parameters
    ----------
    path : str or Path
        A folder, or a package that is a single file (then over its name and bytes). A ZIP archive counts as the
        folder it unpacks to.

    Returns
    -------
    str
        64 hexadecimal digits. The same for a folder and for every copy of it, wherever it lies and whatever the
        folder is called.

    Raises
    ------
    ModelError
        It holds links or other things that are no plain files, more than `MOST_FILES`, or cannot be read.
    """
    return _digest(unpacked(Path(path)), None)


@contextmanager
def private_copy(path: str | Path, sha256: str) -> Iterator[Path]:
    """A read-only copy of a package that nobody else can reach, known to have a fingerprint; removed at the end.

    The bytes that are hashed are the bytes that are written: a package that changes meanwhile is refused.

    Parameters
    ----------
    path : str or Path
        The package.
    sha256 : str
        Its `package_sha256`.

    Yields
    ------
    Path
        The copy: a folder or a file, called as the package is.

    Raises
    ------
    UntrustedError
        The package has another fingerprint.
    ModelError
        As `package_sha256`, or the copy cannot be written.
    """
    place = unpacked(Path(path))
    # 0700, and a name that cannot be guessed
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    try:
        copy = folder / place.name
        try:
            found = _digest(place, copy)
        except OSError as error:
            raise ModelError(
                f"{place.name} cannot be copied to {folder} ({error.strerror}); it needs as much room as it has bytes."
            ) from error
        if found != sha256:
            raise UntrustedError(
                f"{place.name} is not what was allowed: its fingerprint is {found[:16]}…, allowed was {sha256[:16]}…. "
                "Somebody changed it. Look at it, and allow it again if you trust who made it."
            )
        _read_only(folder, copy)
        yield copy
    finally:
        remove(folder)


def remove(folder: Path) -> None:
    """Delete a folder of ours with all in it, read-only or not. Follows no link."""
    for place, folders, files in os.walk(folder):
        os.chmod(place, 0o700)
        if os.name != "posix":  # Windows deletes no read-only file
            for name in (*folders, *files):
                os.chmod(Path(place, name), 0o700)
    shutil.rmtree(folder, ignore_errors=True)


def _read_only(folder: Path, copy: Path) -> None:
    for place, _, files in os.walk(folder, topdown=False):
        for name in files:
            os.chmod(Path(place, name), 0o400)
        if Path(place) != folder or copy.is_file():
            os.chmod(place, 0o500)


def _digest(package: Path, copy: Path | None) -> str:
    """The fingerprint; with ``copy``, of what was written there."""
    whole = hashlib.sha256(_BEGINNING)
    for name, path in _files(package):
        target = None if copy is None else copy / name if package.is_dir() else copy
        if target is not None:
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            size, content = _read(path, target)
        except OSError as error:
            if target is not None and error.filename in (None, os.fspath(target)):
                raise
            raise ModelError(f"{package.name}/{name} cannot be read ({error.strerror}).") from error
        spelled = os.fsencode(name)
        whole.update(b"%d %d " % (len(spelled), size) + spelled + content)
    return whole.hexdigest()


def _files(package: Path) -> list[tuple[str, Path]]:
    """Relative names, with ``/`` on every system and in the order of their bytes, and where they are."""
    if not package.is_dir():
        return [(package.name, package)]
    found: list[tuple[str, Path]] = []
    folders = [("", package)]
    while folders:
        prefix, folder = folders.pop()
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    name = prefix + entry.name
                    if entry.is_symlink():
                        raise ModelError(f"{package.name}/{name} is a link; a package holds plain files only.")
                    if entry.is_dir(follow_symlinks=False):
                        folders.append((name + "/", Path(entry.path)))
                    else:
                        found.append((name, Path(entry.path)))
        except OSError as error:
            raise ModelError(f"{package.name}/{prefix} cannot be read ({error.strerror}).") from error
        if len(found) > MOST_FILES:
            raise ModelError(f"{package.name} has more than {MOST_FILES} files; name the folder of one model.")
    return sorted(found, key=lambda pair: os.fsencode(pair[0]))


def _read(path: Path, target: Path | None) -> tuple[int, bytes]:
    """Size and sha256 of a file; its bytes go to ``target`` on the way."""
    content, size = hashlib.sha256(), 0
    with open_plain(path) as file:
        out = None if target is None else target.open("xb")
        try:
            while piece := file.read(_PIECE_BYTES):
                content.update(piece)
                size += len(piece)
                if out is not None:
                    out.write(piece)
        finally:
            if out is not None:
                out.close()
    return size, content.digest()


def open_plain(path: Path) -> BinaryIO:
    """Open a plain file to read; a link, a pipe or a device is refused and not waited for.

    Raises
    ------
    ModelError
        It is no plain file.
    OSError
        It cannot be opened.
    """
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    if path.is_symlink():
        raise ModelError(f"{path.name} is a link; a package holds plain files only.")
    if path.exists() and not path.is_file():  # opening a device can do things by itself
        raise ModelError(f"{path.name} is no plain file; a package holds nothing else.")
    descriptor = os.open(path, flags)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ModelError(f"{path.name} is no plain file; a package holds nothing else.")
    return os.fdopen(descriptor, "rb")

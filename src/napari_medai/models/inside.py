"""Files of a package: by the names that the package gives them, and by their bytes."""

from __future__ import annotations

import hashlib
from pathlib import Path, PurePosixPath

from napari_medai.core.errors import ModelError


def file_inside(folder: Path, name: str) -> Path:
    """A file of a package that the package names.

    Parameters
    ----------
    folder : Path
        The package.
    name : str
        A relative path with forward slashes.

    Raises
    ------
    ModelError
        It is an address, an absolute path, leads out of the package, is or passes a link, or is not there.
    """
    place = PurePosixPath(name)
    if not name or "://" in name or place.is_absolute() or ".." in place.parts or "\\" in name or ":" in name:
        raise ModelError(f"{name[:120]!r} is no file inside the package; only files of the package are used.")
    if any(ord(letter) < 32 for letter in name) or len(name) > 1024:
        raise ModelError("a file of the package has a name that no file has.")
    file = folder
    for part in place.parts:
        file = file / part
        if file.is_symlink():
            raise ModelError(f"{name!r} is a link; put the file itself into the package.")
    if not file.is_file():
        raise ModelError(f"{name!r} is not in the package; put it there.")
    return file


def file_sha256(path: Path) -> str:
    """The sha256 over a file, 64 hexadecimal digits; it is read in pieces.

    Raises
    ------
    ModelError
        It cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"{path.name} cannot be read ({error.strerror}); copy it again.") from error

"""Folders and files of this account alone: made so, and refused where somebody else could have put something in."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from napari_medai.core.errors import ModelError

# Others may read what is not secret; none may write.
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def private_folder(path: Path) -> Path:
    """The folder, made if it is missing, known to be this account's own and writable by nobody else.

    On Windows, where a folder's rights are inherited from the profile, only its kind is looked at.

    Raises
    ------
    ModelError
        It cannot be made, is a link, belongs to somebody else, or others may write into it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
        found = path.lstat()
    except OSError as error:
        raise ModelError(f"The folder {path} cannot be made ({error.strerror}); make room for it.") from error
    if not stat.S_ISDIR(found.st_mode):
        raise ModelError(f"{path} is no folder, or a link to one; remove it.")
    check_owner(found, path)
    return path


def check_owner(found: os.stat_result, path: Path) -> None:
    """Refuse what belongs to another account, or what others may write.

    Raises
    ------
    ModelError
        With what to type to put it right.
    """
    if os.name != "posix":
        return
    if found.st_uid != os.geteuid():
        raise ModelError(f"{path} belongs to another account; it is not used. Remove it, or give it back: chown.")
    if found.st_mode & _OTHERS_WRITE:
        raise ModelError(f"Others may write to {path}; it is not used. Look at what it holds, then: chmod go-w {path}")

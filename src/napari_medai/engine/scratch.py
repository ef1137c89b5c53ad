"""Temporary folders on a disk with room, which go with whoever needed them; and who else is in a folder."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import weakref
from pathlib import Path

from napari_medai.core.errors import WriteError

_PREFIX = "napari-medai-"


class Scratch:
    """A new folder for large temporary files; it goes with the last one who holds on to it, or with the program.

    What programs that were killed have left is removed before.

    Parameters
    ----------
    size : float
        Bytes that must be free.
    what : str
        What lies there, for the message: ``"The labels take 30 GiB"``.

    Attributes
    ----------
    path : Path
        The folder.

    Raises
    ------
    WriteError
        No disk has room.
    """

    def __init__(self, size: float, what: str) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=roomy(size, what)))
        self._remove = weakref.finalize(self, _remove, self.path, lock(self.path))
        _OWN[self.path] = self


_OWN: weakref.WeakValueDictionary[Path, Scratch] = weakref.WeakValueDictionary()


def owner(path: Path) -> Scratch | None:
    """The temporary folder of this program that a path lies in."""
    return next((scratch for folder, scratch in list(_OWN.items()) if path.is_relative_to(folder)), None)


def _remove(path: Path, descriptor: int) -> None:
    shutil.rmtree(path, ignore_errors=True)
    unlock(descriptor)


def roomy(size: float, what: str) -> Path:
    """A folder for temporary files on a disk (not in memory) that has room."""
    import platformdirs

    tried, cache = [], platformdirs.user_cache_dir("napari-medai", False)
    for folder in map(Path, dict.fromkeys((tempfile.gettempdir(), "/var/tmp", cache))):
        try:
            if folder == Path(cache):
                folder.mkdir(parents=True, exist_ok=True)
            sweep(folder, _PREFIX)
            free = shutil.disk_usage(folder).free
        except OSError:  # there is none of this name
            continue
        if _in_memory(folder):
            tried.append(f"{folder} lies in memory itself")
        elif free < size:
            tried.append(f"{folder} has {gib(free)} free")
        else:
            return folder
    raise WriteError(
        f"{what}, for which there is neither memory nor a temporary folder: {'; '.join(tried) or 'there is none'}. "
        "Free a disk, or name a folder on one with room in TMPDIR."
    )


def sweep(folder: Path, prefix: str) -> None:
    """Remove what programs that were killed have left: folders named by a prefix, their process's number and more."""
    import psutil

    for left in folder.glob(f"{prefix}[0-9]*-*"):
        owner = left.name[len(prefix) :].partition("-")[0]
        # the number may be of another container's process, which the lock shows; only the account's own can be removed
        if owner.isdecimal() and not psutil.pid_exists(int(owner)):
            with contextlib.suppress(OSError):
                _remove(left, lock(left))


def _in_memory(folder: Path) -> bool:
    """Whether the files of a folder take memory (tmpfs)."""
    import psutil

    above = {os.fspath(folder.resolve()), *map(os.fspath, folder.resolve().parents)}
    mounts = [part for part in psutil.disk_partitions(all=True) if part.mountpoint in above]
    nearest = max(mounts, key=lambda part: len(part.mountpoint), default=None)
    return nearest is not None and nearest.fstype in ("tmpfs", "ramfs")


def lock(folder: Path) -> int:
    """Be alone in a folder until `unlock`, or until this process ends; a descriptor, -1 where there are no such locks.

    Raises
    ------
    BlockingIOError
        Another process is there, or another part of this one.
    """
    if sys.platform == "win32":
        return -1
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError:  # a network folder that knows no locks
        pass
    return descriptor


def unlock(descriptor: int) -> None:
    """Let others into the folder that `lock` took."""
    if descriptor >= 0:
        os.close(descriptor)


def gib(size: float) -> str:
    """Bytes as people read them."""
    return f"{size / 2**30:.1f} GiB"

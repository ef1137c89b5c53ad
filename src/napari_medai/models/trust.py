"""Who allowed what: permissions to run what a package carries, keyed by the sha256 over every byte of it.

They lie in one file of the account that runs this program. Where that file is comes from the system's own database of
accounts, never from the environment, and nothing that stands in a package is ever taken for a permission.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_medai.core.errors import ModelError
from napari_medai.models.private import check_owner, private_folder

if TYPE_CHECKING:
    from napari_medai.models.spec import ModelSpec

__all__ = ["CAPABILITIES", "Grant", "find_grant", "give", "grants", "revoke", "store_path"]

CAPABILITIES = {
    "torchscript": "run the TorchScript program that the file holds; it can read and write files",
    "pt2": "run the exported program that the file holds, and unpickle what lies beside it",
    "python": "run Python code: the package's own files, or any function that its description names",
    "pickle": "unpickle a file, which runs whatever Python code it names",
}

_VERSION = 1
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MOST_BYTES = 4 << 20


@dataclass(frozen=True)
class Grant:
    """A permission that the owner of this machine gave.

    Attributes
    ----------
    sha256 : str
        Over every file of the package (see `napari_medai.models.package.package_sha256`); any changed byte ends it.
    capabilities : frozenset of str
        What may be run: out of ``"torchscript"``, ``"pt2"``, ``"python"``, ``"pickle"``.
    given : str
        When, ISO 8601.
    title : str
        What the package called itself then.
    """

    sha256: str
    capabilities: frozenset[str]
    given: str = ""
    title: str = ""


def store_path() -> Path:
    """The file of permissions, in the home folder that the system's database of accounts names.

    Raises
    ------
    ModelError
        The account has no home folder there.
    """
    return _home() / "napari-medai" / "trust.json"


def grants() -> list[Grant]:
    """Every permission, the oldest first.

    Raises
    ------
    ModelError
        The file belongs to somebody else, others may write it, or it is damaged; nothing is taken from it then.
    """
    try:
        path = store_path()
    except ModelError:
        return []  # an account without a home folder was never asked
    return _read(path)


def find_grant(sha256: str) -> Grant | None:
    """The permission for a package, if its owner gave one.

    Parameters
    ----------
    sha256 : str
        The package's `napari_medai.models.package.package_sha256`.

    Raises
    ------
    ModelError
        As `grants`.
    """
    return next((grant for grant in grants() if grant.sha256 == sha256), None)


def give(path: str | Path, spec: ModelSpec, capabilities: Iterable[str]) -> Grant:
    """Allow a package, as it is now, to run what it carries. Only a person may decide on this.

    Parameters
    ----------
    path : str or Path
        The package.
    spec : ModelSpec
        What `napari_medai.models.probe` said of it, and the person saw.
    capabilities : iterable of str
        What is allowed; all that the package needs.

    Returns
    -------
    Grant
        As it was kept; it takes the place of an earlier one for the same bytes.

    Raises
    ------
    ModelError
        The package needs nothing, or more than is allowed, or what no permission helps with; it changed since it was
        shown; or the permission cannot be kept.
    """
    from napari_medai.models import probe
    from napari_medai.models.package import package_sha256, private_copy

    allowed = frozenset(capabilities)
    _check_asked(spec, allowed)
    sha256 = package_sha256(path)
    with private_copy(path, sha256) as copy:
        # what the person saw must be true of the very bytes that are allowed
        if _places(probe(copy)) != _places(spec):
            raise ModelError(f"{spec.title!r} changed while you looked at it; look at it again.")
    grant = Grant(sha256, allowed, datetime.now(UTC).isoformat(timespec="seconds"), spec.title[:200])
    with _changing() as kept:
        kept[:] = [other for other in kept if other.sha256 != sha256]
        kept.append(grant)
    return grant


def revoke(sha256: str) -> bool:
    """Take a permission back.

    Parameters
    ----------
    sha256 : str
        Of the package; the first 12 digits or more are enough.

    Returns
    -------
    bool
        Whether there was one.

    Raises
    ------
    ModelError
        Fewer digits were given, or as `grants`.
    """
    if len(sha256) < 12:
        raise ModelError(f"{sha256!r} is too short; give the first 12 digits of the sha256 or more.")
    with _changing() as kept:
        left = [grant for grant in kept if not grant.sha256.startswith(sha256)]
        gone = len(left) < len(kept)
        kept[:] = left
    return gone


def _places(spec: ModelSpec) -> set[tuple[str, str]]:
    return {(need.capability, need.where) for need in spec.needs}


def _check_asked(spec: ModelSpec, allowed: frozenset[str]) -> None:
    unknown = sorted(allowed - CAPABILITIES.keys())
    if unknown:
        raise ModelError(f"{', '.join(unknown)} cannot be allowed; there are: {', '.join(CAPABILITIES)}.")
    if not spec.needs:
        raise ModelError(f"{spec.title!r} runs without any permission; there is nothing to allow.")
    hopeless = [f"{need.where}: {need.why}" for need in spec.needs if not need.capability]
    if hopeless:
        raise ModelError(f"{spec.title!r} cannot be run here, whatever is allowed:\n  " + "\n  ".join(hopeless))
    missing = sorted(spec.capabilities - allowed)
    if missing:
        raise ModelError(f"{spec.title!r} also needs {', '.join(missing)}; allow all that it needs, or nothing.")


if sys.platform == "win32":

    def _home() -> Path:
        """FOLDERID_LocalAppData, from Windows itself and not from %LOCALAPPDATA%."""
        import ctypes
        from ctypes import wintypes
        from uuid import UUID

        folder = (ctypes.c_byte * 16).from_buffer_copy(UUID("{F1B32785-6FBA-4FCF-9D55-7B8E7F157091}").bytes_le)
        found = wintypes.LPWSTR()
        failed = ctypes.windll.shell32.SHGetKnownFolderPath(ctypes.byref(folder), 0, None, ctypes.byref(found))
        try:
            if failed or not found.value:
                raise ModelError("Windows names no folder for this account's settings; no permission can be kept.")
            return Path(found.value)
        finally:
            ctypes.windll.ole32.CoTaskMemFree(found)

else:

    def _home() -> Path:
        """Where programs keep their settings, by the account and not by the environment."""
        import pwd

        try:
            home = Path(pwd.getpwuid(os.geteuid()).pw_dir)
        except KeyError:
            home = Path()
        if not home.is_absolute() or not home.is_dir():
            raise ModelError(
                "This account has no home folder in the system's database of accounts, so that no permission can be "
                "kept; use an account of a person."
            )
        return home / ("Library/Application Support" if sys.platform == "darwin" else ".config")


def _read(path: Path) -> list[Grant]:
    """The permissions in a file; none if there is no file."""
    try:
        if path.is_symlink():
            raise ModelError(f"The file of permissions {path} is a link; it is not used. Remove it.")
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ModelError(f"The file of permissions {path} cannot be read ({error.strerror}).") from error
    # of the file that was opened, not of whatever has its name by now
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or (os.name == "posix" and found.st_nlink != 1):
        os.close(descriptor)
        raise ModelError(f"The file of permissions {path} is no plain file, or has a second name; remove it.")
    with os.fdopen(descriptor, "rb") as file:
        check_owner(found, path)
        check_owner(path.parent.stat(), path.parent)
        content = file.read(_MOST_BYTES)
    try:
        record = json.loads(content)
        if record["version"] != _VERSION:
            raise ValueError("version")
        return [_grant(entry) for entry in record["grants"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"The file of permissions {path} is damaged or of another version; nothing in it counts. Remove it, and "
            "allow again what you trust."
        ) from error


def _grant(entry: Any) -> Grant:
    sha256, capabilities, given, title = (entry[key] for key in ("sha256", "capabilities", "given", "title"))
    if not all(isinstance(text, str) for text in (sha256, given, title)) or not _SHA256.fullmatch(sha256):
        raise ValueError("sha256")
    if not isinstance(capabilities, list) or not all(name in CAPABILITIES for name in capabilities):
        raise ValueError("capabilities")
    return Grant(sha256, frozenset(capabilities), given, title)


@contextlib.contextmanager
def _changing() -> Iterator[list[Grant]]:
    """The permissions, to be changed in the block and written at its end; one program at a time."""
    path = store_path()
    folder = private_folder(path.parent)
    with _alone(folder):
        kept = _read(path)
        before = list(kept)
        yield kept
        if kept == before:
            return
        record = {
            "version": _VERSION,
            "grants": [
                {"sha256": g.sha256, "capabilities": sorted(g.capabilities), "given": g.given, "title": g.title}
                for g in kept
            ],
        }
        # mkstemp makes it readable and writable by the account alone
        descriptor, temporary = tempfile.mkstemp(prefix=".trust-", dir=folder)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump(record, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError as error:
            raise ModelError(f"The permission was not kept in {path} ({error.strerror}); nothing changed.") from error
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other programs of this account from changing the permissions meanwhile."""
    if sys.platform == "win32":
        yield  # replacing the file is still whole or not at all
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)

"""ZIP archives of models, unpacked into a private cache: no way out of it, no links, bounded sizes.

What looks wrong makes the whole archive be refused, not the one member: an archive with a name such as
``../../.bashrc`` was made by somebody with a plan. Of all archive formats only ZIP is opened.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import stat
import struct
import unicodedata
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from napari_medai.core.errors import ModelError
from napari_medai.models.private import private_folder

__all__ = ["unpacked"]

MOST_MEMBERS = 20_000
MOST_BYTES = 64 << 30
# Weights hardly shrink and configurations do tenfold: what shrinks two-hundredfold was made to fill a disk.
MOST_RATIO = 200
ALWAYS_BYTES = 256 << 20
LONGEST_NAME = 200
DEEPEST = 20
# Left free on the disk.
_SPARE_BYTES = 1 << 30
# A directory of `MOST_MEMBERS` long names; reading one of 100 MB takes minutes.
_DIRECTORY_BYTES = 8 << 20
_PIECE_BYTES = 1 << 20
_ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")
_ENCRYPTED = 0x1 | 0x40 | 0x2000  # general purpose bit flags: encryption, strong encryption, masked headers
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# Names that Windows gives to devices, whatever follows the dot
_DEVICES = re.compile(r"^(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³]|conin\$|conout\$|clock\$)(\.|$)", re.IGNORECASE)
_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f<>:"|?*\\]')
# How torch's own files, which are ZIP archives too, say what they are: torch.save, TorchScript, torch.export
_TORCH = ("data.pkl", "constants.pkl", "archive_format", "version", "byteorder", "archive_version")
_BROKEN: tuple[type[Exception], ...] = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    ValueError,
    RuntimeError,
    NotImplementedError,
    OverflowError,
)


@dataclass(frozen=True)
class _Member:
    info: zipfile.ZipInfo
    path: PurePosixPath


def cache_folder() -> Path:
    """Where archives are unpacked to; may be deleted at any time."""
    import pooch  # takes a while

    return Path(pooch.os_cache("napari-medai")) / "unpacked"


def unpacked(path: Path) -> Path:
    """The package as its source reads it: a ZIP archive becomes a folder, anything else stays.

    The folder lies in a private cache under the sha256 of the archive, so that an archive is unpacked once. torch's own
    files (``.pt``, ``.pth``, ``.pt2``), ZIP archives inside, stay files. Archives in archives are not opened.

    Parameters
    ----------
    path : Path
        A file or folder.

    Returns
    -------
    Path
        A folder (if the archive holds one folder and nothing else beside it, that folder), or ``path``.

    Raises
    ------
    ModelError
        The archive is damaged, encrypted, too large, or holds what no honest archive of a model does: names that lead
        out of it, links, two files of one name.
    """
    if path.is_dir():
        return path
    try:
        with path.open("rb") as file:
            if file.read(4) not in _ZIP_MAGIC:
                return path
            return _unpack(file, path)
    except _BROKEN as error:
        raise ModelError(f"The archive {path.name} is damaged ({type(error).__name__}); copy it again.") from error
    except OSError as error:
        raise ModelError(f"{path.name} cannot be read or unpacked ({error.strerror}).") from error


def _unpack(file: BinaryIO, path: Path) -> Path:
    size = os.fstat(file.fileno()).st_size
    if _directory_bytes(file, size) > _DIRECTORY_BYTES:
        raise _refused(path, f"has more than {MOST_MEMBERS} files")
    with zipfile.ZipFile(file) as archive:
        if _is_torch(archive):
            return path
        members = _members(archive, path)
        _check_sizes(members, size, path)
        file.seek(0)
        digest = hashlib.sha256()
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
        key = digest.hexdigest()
        home = private_folder(private_folder(cache_folder()) / key)
        target = home / (_harmless(path.stem) or "model")
        if not _is_whole(target, members):
            _extract(archive, members, target, path)
    return _top(target)


def _extract(archive: zipfile.ZipFile, members: list[_Member], target: Path, path: Path) -> None:
    """Write all members, and give the folder its name when it is whole."""
    needed = sum(member.info.file_size for member in members)
    free = shutil.disk_usage(target.parent).free - _SPARE_BYTES
    if needed > free:
        raise ModelError(
            f"{path.name} unpacks to {needed >> 20} MB; {max(free, 0) >> 20} MB may be used in {target.parent}."
        )
    part = target.parent / f".{secrets.token_hex(8)}.part"
    part.mkdir(mode=0o700)
    try:
        for member in members:
            place = part.joinpath(*member.path.parts)
            place.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member.info) as content, place.open("xb") as out:
                shutil.copyfileobj(content, out, _PIECE_BYTES)
        if target.exists():
            shutil.rmtree(target)
        try:
            part.rename(target)
        except OSError:
            if not _is_whole(target, members):  # else another process was faster
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _members(archive: zipfile.ZipFile, path: Path) -> list[_Member]:
    """The files of an archive; the whole archive is refused for one that is not as it should be."""
    infos = archive.infolist()
    if len(infos) > MOST_MEMBERS:
        raise _refused(path, f"has {len(infos)} files; {MOST_MEMBERS} are the most")
    members: list[_Member] = []
    files: set[str] = set()
    folders: set[str] = set()
    for info in infos:
        why = _suspect(info)
        if why:
            raise _refused(path, f"holds {_shown(info.filename)}, which {why}")
        member = PurePosixPath(info.filename)
        # what macOS and Windows add to archives
        if member.parts[0] == "__MACOSX" or member.name.startswith("._") or member.name in (".DS_Store", "Thumbs.db"):
            continue
        # one name for all systems: most tell neither case nor Unicode's spellings apart
        names = ["/".join(member.parts[:n]) for n in range(1, len(member.parts) + 1)]
        plain = [unicodedata.normalize("NFKC", name).casefold() for name in names]
        if info.is_dir():
            folders.update(plain)
            continue
        if plain[-1] in files:
            raise _refused(path, f"holds {_shown(info.filename)} twice")
        files.add(plain[-1])
        folders.update(plain[:-1])
        members.append(_Member(info, member))
    both = files & folders
    if both:
        raise _refused(path, f"holds {_shown(min(both))} as a file and as a folder")
    if not members:
        raise _refused(path, "is empty")
    return members


def _suspect(info: zipfile.ZipInfo) -> str:
    """Why a member is refused, or nothing."""
    # both what the archive says and what Python made of it (cut at a NUL, or taken from an extra field)
    return _suspect_name(info.orig_filename) or _suspect_name(info.filename) or _suspect_kind(info)


def _suspect_name(spelled: str) -> str:
    name = spelled.removesuffix("/")
    parts = name.split("/")
    if not name or spelled.startswith("/") or ".." in parts or name[1:2] == ":":
        return "leads out of the archive"
    if _FORBIDDEN.search(spelled):
        return "has a name that not every system takes for what it says"
    if any(part in ("", ".") or part != part.rstrip(" .") or _DEVICES.match(part) for part in parts):
        return "has a name that not every system takes for what it says"
    if len(parts) > DEEPEST or any(len(os.fsencode(part)) > LONGEST_NAME for part in parts):
        return "has too long a name"
    return ""


def _suspect_kind(info: zipfile.ZipInfo) -> str:
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR) or (kind == stat.S_IFDIR) > info.is_dir():
        return "is a link or a device"
    if info.flag_bits & _ENCRYPTED:
        return "is encrypted"
    if info.compress_type not in _COMPRESSIONS:
        return "is compressed in a way that is not supported (deflate is)"
    if info.is_dir() and info.file_size:
        return "is a folder with bytes of its own"
    return ""


def _check_sizes(members: list[_Member], size: int, path: Path) -> None:
    whole = sum(member.info.file_size for member in members)
    if whole > MOST_BYTES or (whole > ALWAYS_BYTES and whole > MOST_RATIO * size):
        raise _refused(path, f"of {size >> 10} KB unpacks to {whole >> 20} MB")
    # members that share their bytes unpack to more than the ratio above allows for
    if sum(member.info.compress_size for member in members) > size:
        raise _refused(path, "has members that overlap")


def _is_torch(archive: zipfile.ZipFile) -> bool:
    """Whether it is a file of torch: one folder, in it torch's marks."""
    names = archive.namelist()
    if "serialized_exported_program.json" in names:  # torch.export before torch 2.7
        return True
    top = names[0].split("/")[0] if names else ""
    if not top or not all(name.startswith(top + "/") for name in names):
        return False
    inside = {name[len(top) + 1 :] for name in names}
    return sum(mark in inside for mark in _TORCH) >= 2


def _is_whole(target: Path, members: list[_Member]) -> bool:
    """Whether the archive was unpacked there already, and nothing was added or cut since."""
    if target.is_symlink() or not target.is_dir():
        return False
    expected = {member.path.as_posix(): member.info.file_size for member in members}
    found: dict[str, int] = {}
    for place, folders, files in os.walk(target):
        for name in files + [folder for folder in folders if Path(place, folder).is_symlink()]:
            entry = Path(place, name)
            found[entry.relative_to(target).as_posix()] = -1 if entry.is_symlink() else entry.stat().st_size
    return found == expected


def _top(folder: Path) -> Path:
    """The one folder in a folder, if there is nothing beside it."""
    inside = list(folder.iterdir())
    return inside[0] if len(inside) == 1 and inside[0].is_dir() else folder


def _directory_bytes(file: BinaryIO, size: int) -> int:
    """Length of the archive's directory as its end says, before anything reads it (APPNOTE 4.3.14 to 4.3.16)."""
    tail = min(size, 22 + 65535)
    file.seek(size - tail)
    end = file.read(tail)
    at = end.rfind(b"PK\x05\x06")
    if at < 0 or at + 22 > len(end):
        raise zipfile.BadZipFile("no end of the directory")
    length = int(struct.unpack_from("<L", end, at + 12)[0])
    if at >= 20 and end[at - 20 : at - 16] == b"PK\x06\x07":  # ZIP64: the true length stands in a record of its own
        (offset,) = struct.unpack_from("<Q", end, at - 12)
        if offset + 56 > size:
            raise zipfile.BadZipFile("no ZIP64 record")
        file.seek(offset)
        length = max(length if length != 0xFFFFFFFF else 0, struct.unpack_from("<Q", file.read(56), 40)[0])
    return length


def _harmless(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", name).strip(".")[:80]


def _shown(name: str) -> str:
    return repr(name[:80])


def _refused(path: Path, why: str) -> ModelError:
    return ModelError(f"The archive {path.name} {why}; it is not opened. Ask who made it for a plain ZIP archive.")

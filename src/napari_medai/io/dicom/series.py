"""Finds the series in a file, a folder or a DICOMDIR and opens one of them."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from napari_medai.core.errors import (
    MedaiError,
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
from napari_medai.io.dicom.frames import frames_of
from napari_medai.io.dicom.headers import Header, read_header, read_headers
from napari_medai.io.dicom.mosaic import mosaic_findings
from napari_medai.io.dicom.pixels import PixelFile, no_pixels, pixel_file, what_it_is
from napari_medai.io.dicom.repair import checked
from napari_medai.io.dicom.stacks import Stack, stacks_of
from napari_medai.io.dicom.volumes import volume_of

PathLike = str | os.PathLike[str]


@dataclass(eq=False)
class Series:
    """The files of one series, and the images they form.

    Attributes
    ----------
    uid : str
        Series Instance UID, or a made-up one where the header has none.
    headers : list of Header
        Of the files that hold pixels.
    findings : list of str
        What was left out.
    """

    uid: str
    headers: list[Header]
    findings: list[str] = field(default_factory=list)

    def images(self, repair: Sequence[str] = ()) -> list[Image]:
        """The images of the series.

        Parameters
        ----------
        repair : sequence of str
            What is to be repaired, see `REPAIRS`.

        Raises
        ------
        MedaiError
            Not one of its files can be opened.
        """
        frames, files, failed = [], {}, list[MedaiError]()
        seen: set[str] = set()
        copies = 0
        for header in self.headers:
            instance = header.text("SOPInstanceUID")
            if instance and instance in seen:
                copies += 1
                continue
            try:
                file = pixel_file(header)
                found = frames_of(header, "mosaic" in repair)
            except MedaiError as error:
                failed.append(error)
                continue
            seen.add(instance)
            files[header.path] = file
            frames += found
        if not frames:
            raise failed[0] if failed else NoImagesError("The series holds no image.")
        findings = list(self.findings)
        if copies:
            findings.append(f"{copies} files are copies of others (same instance UID) and were left out.")
        if failed:
            findings.append(f"{len(failed)} files cannot be opened and were left out; the first: {failed[0]}")
        if any(header.repaired for header in self.headers):
            findings.append("Some header elements do not follow the standard.")
        findings += mosaic_findings(self.headers, "mosaic" in repair)
        stacks = stacks_of(frames)
        several = len(stacks) > 1
        return [
            Image(f"{self.uid}#{n}" if several else self.uid, stack, files, (*findings, *_split_note(n, len(stacks))))
            for n, stack in enumerate(stacks, 1)
        ]


def _split_note(n: int, count: int) -> tuple[str, ...]:
    return (f"The series holds {count} images that do not form one stack; this is number {n}.",) if count > 1 else ()


@dataclass(frozen=True, eq=False)
class Image:
    """One image of a series: what opens as a Volume."""

    uid: str
    stack: Stack
    files: dict[str, PixelFile]
    findings: tuple[str, ...]

    def volume(self, source: str = "") -> Volume:
        """The lazy Volume, in the axes as stored."""
        return volume_of(self.stack, self.files, self.uid, self.findings, source)

    def info(self) -> SeriesInfo:
        """What a person chooses it by."""
        volume = self.volume().canonical()
        header = self.stack.frames[0].header
        number = header.number("SeriesNumber")
        return SeriesInfo(
            self.uid,
            volume.modality,
            clean(header.text("SeriesDescription")),
            None if number is None else int(number),
            volume.shape,
            volume.spacing[3 - volume.ndim_spatial :],
            len({frame.header.path for frame in self.stack.frames}),
        )


def clean(text: str) -> str:
    """A header's text on one line without control characters."""
    return re.sub(r"[\x00-\x1f\x7f]+", " ", text).strip()[:64]


def scan(path: PathLike, progress: Progress | None = None) -> list[Series]:
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
        paths = _files_below(here)
        if not paths and directory is not None:
            return scan(directory, progress)
        return _series(here, paths, False, progress)
    header = read_header(here)
    if is_dicomdir(header):
        paths, missing = referenced_files(here)
        found = _series(here, paths, True, progress)
        if missing:
            for series in found:
                series.findings.append(f"{missing} files that the DICOMDIR lists are not there.")
        return found
    if not header.pixel_keyword:
        raise no_pixels(header)
    uid = header.text("SeriesInstanceUID")
    pixel_file(header)  # a broken file says so itself, however many good ones lie beside it
    if not uid:
        return [Series(_made_up(header), [header])]
    headers, _ = read_headers(_siblings(here), progress)
    mine = [h for h in headers if h.pixel_keyword and h.text("SeriesInstanceUID") == uid and h.path != os.fspath(here)]
    return [Series(uid, [header, *mine])]


def _siblings(path: Path) -> list[str]:
    try:
        with os.scandir(path.parent) as entries:
            names = sorted(e.name for e in entries if e.is_file() and e.name != path.name)
    except OSError:
        return []
    return [os.path.join(path.parent, name) for name in names]


def _files_below(folder: Path) -> list[str]:
    found = []
    for parent, folders, names in os.walk(folder):
        folders.sort()
        found += [os.path.join(parent, name) for name in sorted(names) if name.upper() != "DICOMDIR"]
    return found


def _series(where: Path, paths: Sequence[str], listed: bool, progress: Progress | None = None) -> list[Series]:
    headers, failed = read_headers(paths, progress)
    images = [h for h in headers if h.pixel_keyword]
    others = [h for h in headers if not h.pixel_keyword and not is_dicomdir(h)]
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
    groups: dict[str, list[Header]] = {}
    for header in images:
        groups.setdefault(header.text("SeriesInstanceUID") or _made_up(header), []).append(header)
    found = [Series(uid, group) for uid, group in groups.items()]
    notes = [f"{len(failed)} files beside it cannot be read."] if failed else []
    if others:
        notes.append(f"{len(others)} files beside it hold no pixels (e.g. {what_it_is(others[0])}).")
    for series in found:
        series.findings += notes
    return sorted(found, key=lambda s: (s.headers[0].integer("SeriesNumber", 1 << 31), s.uid))


def _made_up(header: Header) -> str:
    # Stable for one file, and nothing of its name can be read from it.
    return f"unknown.{zlib.crc32(os.path.basename(header.path).encode())}"


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
    return [image.info() for image in _images(scan(path))]


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
        Which values the pixels have. Default: what the series' own header says first.

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
        images = _images(chosen, repair) if chosen else []
        images = [i for i in images if i.uid == series_uid or (i.uid.partition("#")[0] == series_uid)]
        if not images:
            raise ReadError(f"No series {series_uid} in {where}; use list_series to see what is there.")
    else:
        images = _images(series, repair)
        if len(images) > 1 and os.path.isfile(path):
            images = [i for i in images if _holds(i, path)] or images
    if len(images) > 1:
        raise SeriesChoiceError(where, [i.info() for i in images])
    return images[0].volume(os.fspath(path)).canonical()


def _holds(image: Image, path: PathLike) -> bool:
    return any(frame.header.path == os.path.abspath(path) for frame in image.stack.frames)


def _images(series: Iterable[Series], repair: Sequence[str] = ()) -> list[Image]:
    found: list[Image] = []
    failed: list[MedaiError] = []
    for one in series:
        try:
            found += one.images(repair)
        except MedaiError as error:
            failed.append(error)
    if not found:
        raise failed[0] if failed else NoImagesError("There is no such image.")
    if failed:
        note = f"{len(failed)} other series cannot be opened; the first: {failed[0]}"
        found = [Image(i.uid, i.stack, i.files, (*i.findings, note)) for i in found]
    return found

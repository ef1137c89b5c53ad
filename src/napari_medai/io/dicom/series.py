"""Finds the series in a file, a folder or a DICOMDIR and opens one of them."""

from __future__ import annotations

import math
import os
import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from napari_medai.core.errors import (
    MedaiError,
    NoImagesError,
    ReadError,
    SeriesChoiceError,
    SeriesInfo,
    UnsupportedFormatError,
)
from napari_medai.core.geometry import Grid, canonical_reorientation
from napari_medai.core.stage import Progress
from napari_medai.core.volume import Volume
from napari_medai.io.archive import folder_of
from napari_medai.io.dicom.dicomdir import is_dicomdir, referenced_files
from napari_medai.io.dicom.frames import Frame, frames_of
from napari_medai.io.dicom.headers import Header, read_header, read_headers
from napari_medai.io.dicom.mosaic import mosaic_findings
from napari_medai.io.dicom.pixels import PixelFile, no_pixels, pixel_file, what_it_is
from napari_medai.io.dicom.repair import canonical, checked, repaired
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
        frames: list[Frame] = []
        files, failed = {}, list[MedaiError]()
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
        stacks = stacks_of(frames, "duplicates" in repair)
        several = len(stacks) > 1
        notes = _split_notes(stacks)
        return [
            Image(f"{self.uid}#{n}" if several else self.uid, stack, files, (*findings, *note), tuple(repair))
            for n, (stack, note) in enumerate(zip(stacks, notes, strict=True), 1)
        ]


def _split_notes(stacks: Sequence[Stack]) -> list[tuple[str, ...]]:
    """For each image of a series, that there are others and what they differ in."""
    if len(stacks) < 2:
        return [()] * len(stacks)
    leads = [stack.frames[0] for stack in stacks]
    differ: dict[str, set[object]] = {
        "size": {(f.rows, f.columns) for f in leads},
        "orientation": {None if f.place is None else f.place.orientation.round(3).tobytes() for f in leads},
        "pixel spacing": {None if f.spacing is None else tuple(round(s, 4) for s in f.spacing) for f in leads},
        "kind of image": {f.kind for f in leads},
    }
    why = ", ".join(name for name, values in differ.items() if len(values) > 1)
    count = len(stacks)
    note = f"The series holds {count} images that do not form one stack{f' (different {why})' if why else ''}"
    return [(f"{note}; this is number {n}.",) for n in range(1, count + 1)]


@dataclass(frozen=True, eq=False)
class Image:
    """One image of a series: what opens as a Volume.

    Attributes
    ----------
    uid : str
        Of the series, with ``#n`` where it holds several images.
    stack : Stack
        Planes and where they lie.
    files : dict of str to PixelFile
        Where the pixels are, by path.
    findings : tuple of str
        What is unusual about the series.
    repair : tuple of str
        What is repaired in its Volume.
    """

    uid: str
    stack: Stack
    files: dict[str, PixelFile]
    findings: tuple[str, ...]
    repair: tuple[str, ...] = ()

    def volume(self, source: str = "", values: str = "") -> Volume:
        """The lazy Volume, in the axes as stored; ``values`` as in `open_volume`."""
        volume = volume_of(self.stack, self.files, self.uid, self.findings, source, values)
        if self.stack.directions is not None and "axis_t" in volume.meta:
            axis = {**volume.meta["axis_t"], "directions": self.stack.directions}
            volume = volume.replace(meta={**volume.meta, "axis_t": axis})
        return repaired(volume, self.stack, self.repair)

    def info(self) -> SeriesInfo:
        """What a person chooses it by; no Volume is built for it."""
        lead = self.stack.frames[0]
        header = lead.header
        number = header.number("SeriesNumber")
        depth = len(self.stack.planes[0])
        grid = Grid((depth, lead.rows, lead.columns), self.stack.affine, self.stack.units)
        if self.stack.has_depth:
            grid = grid.reoriented(canonical_reorientation(self.stack.affine))
        spatial, spacing = (grid.shape, grid.spacing) if self.stack.has_depth else (grid.shape[1:], grid.spacing[1:])
        time = (len(self.stack.planes),) if self.stack.has_time else ()
        colour = (3,) if self.files[header.path].colour else ()
        return SeriesInfo(
            self.uid,
            header.text("Modality"),
            clean(header.text("SeriesDescription")),
            None if number is None or not math.isfinite(number) else int(number),
            (*time, *spatial, *colour),
            tuple(spacing),
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
    return canonical(images[0].volume(os.fspath(path), values))


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
        found = [replace(image, findings=(*image.findings, note)) for image in found]
    return found

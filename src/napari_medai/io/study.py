"""Lists what folders, DICOMDIRs and archives hold as patients, studies and series, with who they are hidden."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from napari_medai.core.errors import MedaiError, NoImagesError, ReadError, SeriesInfo
from napari_medai.core.geometry import Reorientation
from napari_medai.core.stage import Cancelled, Part, Progress
from napari_medai.core.volume import Volume
from napari_medai.io.archive import folder_of, unpacked
from napari_medai.io.dicom.dicomdir import is_dicomdir, referenced_files
from napari_medai.io.dicom.gathered import Headers, read_headers
from napari_medai.io.dicom.headers import Header, NotDicomError, read_header
from napari_medai.io.dicom.pixels import what_it_is
from napari_medai.io.dicom.rtstruct import is_structure_set, structure_info
from napari_medai.io.dicom.series import Image, Series, clean, scan
from napari_medai.io.patient import Identity, identity, patient_key
from napari_medai.io.single import series_of
from napari_medai.io.structures import Outlines, count_regions

__all__ = ["Identity", "Listing", "Study", "StudySeries", "identity", "list_studies", "studies"]

PathLike = str | os.PathLike[str]

_NIFTI = (".nii", ".nii.gz", ".hdr")
# The share of the time that reading headers takes; sorting them into images is the rest.
_HEADERS = 0.7


class Openable(Protocol):
    """An image that is known from its headers."""

    def volume(self, source: str = "") -> Volume:
        """The lazy Volume, in the axes as stored."""


@dataclass(frozen=True, eq=False)
class StudySeries:
    """One image of a study; a series that holds several is listed once for each.

    Attributes
    ----------
    info : SeriesInfo
        What a person chooses it by.
    axes : str
        Of the Volume that opens, e.g. ``"tzyx"``.
    units : {"mm", "um", "pixel"}
        Of the Volume; ``"pixel"`` means that the spacing is not known.
    findings : tuple of str
        What is unusual about it.
    path : str
        What to open it from, with ``series_uid=series_uid``.
    series_uid : str
        Empty where a file holds one image.
    file, frame : str, int
        The first of its files and the frame in it, from 0.
    image : Openable
        The image itself, for its thumbnail.
    regions : int or None
        How many regions a structure set names; None for images. A structure set has no axes and no size.
    """

    info: SeriesInfo
    axes: str
    units: str
    findings: tuple[str, ...]
    path: str
    series_uid: str
    file: str
    frame: int
    image: Openable = field(repr=False)
    regions: int | None = None

    @property
    def key(self) -> tuple[str, str, int]:
        """Equal for one image that is listed from several places."""
        return self.series_uid.partition("#")[0], self.file, self.frame

    @property
    def is_dicom(self) -> bool:
        """Whether it can be opened with the options of DICOM: repaired, in other values."""
        return isinstance(self.image, Image)


@dataclass(frozen=True, eq=False)
class Study:
    """A study: the series of one visit.

    Attributes
    ----------
    patient, name : str
        Pseudonyms, ``"Patient 1"`` and ``"Study 1"``, numbered within a listing in the order of their appearance;
        ``patient`` is empty for files that know no patient.
    description : str
        Study Description (0008,1030).
    series : tuple of StudySeries
        By series number.
    file : str
        One of its DICOM files, for `identity`; empty if there is none.
    """

    patient: str
    name: str
    description: str
    series: tuple[StudySeries, ...]
    file: str
    patient_key: str = field(repr=False)
    study_key: str = field(repr=False)

    @property
    def key(self) -> tuple[str, str]:
        """Tells studies apart, in this process."""
        return self.patient_key, self.study_key


@dataclass(frozen=True, eq=False)
class Listing:
    """What lies in one or several places.

    Attributes
    ----------
    studies : tuple of Study
        The studies of one patient stand together.
    findings : tuple of str
        What concerns no series that is listed: files that are broken, hold no pixels or are of another kind.
    unread : int
        Number of those files.
    """

    studies: tuple[Study, ...] = ()
    findings: tuple[str, ...] = ()
    unread: int = 0

    @property
    def series(self) -> tuple[StudySeries, ...]:
        """Of all studies."""
        return tuple(one for study in self.studies for one in study.series)

    def with_more(self, other: Listing) -> Listing:
        """Both together, numbered anew; patients and studies that are here already keep their numbers.

        A study found in both is one. A series found in both is listed once.
        """
        merged = {s.key: s for s in self.studies}
        known = {one.key for one in self.series}
        for study in other.studies:
            fresh = tuple(one for one in study.series if one.key not in known)
            if study.key in merged:
                known_one = merged[study.key]
                merged[study.key] = replace(known_one, series=_ordered((*known_one.series, *fresh)))
            elif fresh:
                merged[study.key] = replace(study, series=fresh)
        findings = tuple(dict.fromkeys((*self.findings, *other.findings)))
        repeated = other.findings and set(other.findings) <= set(self.findings)
        return Listing(_numbered(merged.values()), findings, self.unread + (0 if repeated else other.unread))


def studies(path: PathLike, progress: Progress | None = None) -> list[Study]:
    """The studies at a path; see `list_studies`.

    Raises
    ------
    NoImagesError
        Nothing there can be opened; the message says what there is instead.
    """
    found = list_studies(path, progress)
    if not found.studies:
        said = " ".join(found.findings) or "It is empty."
        raise NoImagesError(f"{Path(path).name} holds no image that can be opened. {said}")
    return list(found.studies)


def list_studies(path: PathLike, progress: Progress | None = None) -> Listing:
    """What lies in a folder and below, in a DICOMDIR or archive, or in a file and beside it: DICOM and NIfTI.

    Structure sets are listed like images.

    Only headers are read. What cannot be read is a finding, never an error.

    Parameters
    ----------
    path : path
        A folder, a DICOMDIR, an archive, or a file: of DICOM, its whole series is listed.
    progress : Progress, optional
        Told how far it is.

    Returns
    -------
    Listing

    Raises
    ------
    Cancelled
        ``progress`` stopped it.
    """
    progress = progress or Progress()
    here = Path(os.path.abspath(path))
    try:
        place = _place(here)
        found, problem = scan(place.folder, Part(progress, 0.0, _HEADERS)), ""
    except Cancelled:
        raise
    except MedaiError as error:
        place, found = _Place(here, here), []
        problem = "" if isinstance(error, NotDicomError) and _is_nifti(here) else str(error)
    files, missing = _files_of(place.folder)
    findings = list(place.findings)
    if missing:
        findings.append(_count(missing, "that the DICOMDIR lists is", "that the DICOMDIR lists are") + " not there.")
    series: list[tuple[str, str, str, StudySeries]] = []
    beside = _shared(found)
    used: set[str] = set()
    for n, one in enumerate(found):
        progress.update(_HEADERS + (1 - _HEADERS) * n / len(found), 1.0, "Sorting series")
        study, description = one.headers[0].text("StudyInstanceUID"), clean(one.headers[0].text("StudyDescription"))
        try:
            listed = [_listed(image, place, beside) for image in one.images()]
        except MedaiError as error:
            findings.append(_count(len(one.headers), "of a series", "of a series") + f" cannot be opened: {error}")
            continue
        used.update(one.headers.paths if isinstance(one.headers, Headers) else [h.path for h in one.headers])
        series += [(patient_key(entry.file, study), study, description, entry) for entry in listed]
    rest = [file for file in files if file not in used]
    nifti, failed = _nifti(place, [file for file in rest if _is_nifti(Path(file))], progress)
    series += [("", "", "", one) for one in nifti]
    findings += failed
    headers, broken = read_headers([file for file in rest if not _is_nifti(Path(file))])
    structures = [header for header in headers if is_structure_set(header)]
    for header in structures:
        study, description = header.text("StudyInstanceUID"), clean(header.text("StudyDescription"))
        series.append((patient_key(header.path, study), study, description, _structures(header, place)))
    if problem and not nifti and not structures:
        findings.append(problem)
    done = {one.file for one in nifti} | {header.path for header in structures}
    rest = [f for f in rest if f not in done and not (f.lower().endswith(".img") and f"{f[:-4]}.hdr" in done)]
    others = [header for header in headers if header.path not in done]
    foreign = sum(not _is_nifti(Path(file)) for file in rest) - len(others) - len(broken)
    findings += _what_else(others, broken, foreign, bool(problem))
    return Listing(_studies(series), tuple(place.told(text) for text in findings), len(rest))


@dataclass(frozen=True)
class _Place:
    """A path, and where its files lie: of an archive, in the folder that it is unpacked to."""

    path: Path
    folder: Path
    nifti: Mapping[str, Path] = field(default_factory=dict)
    findings: tuple[str, ...] = ()

    def told(self, text: str) -> str:
        """A sentence that names the archive and not the folder."""
        if self.path == self.folder:
            return text
        return text.replace(os.fspath(self.folder.parent), self.path.name)


def _place(here: Path) -> _Place:
    folder = folder_of(here)
    if folder == here:
        return _Place(here, here)
    content = unpacked(here)
    return _Place(here, folder, content.nifti, content.findings)


def _files_of(here: Path) -> tuple[list[str], int]:
    """The files that a path leads to, itself if it is one, and how many that a DICOMDIR lists are not there."""
    if here.is_dir():
        found = []
        for parent, folders, names in os.walk(here):
            folders.sort()
            found += [os.path.join(parent, name) for name in sorted(names) if name.upper() != "DICOMDIR"]
        return found, 0
    try:
        return referenced_files(here) if is_dicomdir(read_header(here)) else ([os.fspath(here)], 0)
    except ReadError:
        return [os.fspath(here)], 0


def _shared(found: Sequence[Series]) -> set[str]:
    """What `scan` says to every series of a place: it concerns none of them."""
    return set.intersection(*(set(one.findings) for one in found)) if len(found) > 1 else set()


def _is_nifti(path: Path) -> bool:
    return path.name.lower().endswith(_NIFTI)


@dataclass(frozen=True)
class _Nifti:
    """A NIfTI file; its values are shown as an image here, even if they turn out to be labels."""

    path: Path

    def volume(self, source: str = "") -> Volume:
        """With the axis of the fewest slices first, as it was most likely acquired; superior is up."""
        from napari_medai.io import nifti

        volume = nifti.open_volume(self.path, labels=False)
        if "z" not in volume.axes:
            return volume
        thin = int(np.argmin([volume.size(axis) for axis in "zyx"]))
        first, second = (axis for axis in range(3) if axis != thin)
        return volume.reoriented(Reorientation((thin, first, second), (False, thin != 0, False)))


def _nifti(place: _Place, paths: Sequence[str], progress: Progress) -> tuple[list[StudySeries], list[str]]:
    found, failed = [], []
    entries = [(path, "", path) for path in paths]
    entries += [(os.fspath(place.path), uid, os.fspath(file)) for uid, file in place.nifti.items()]
    for path, uid, file in entries:
        progress.check()
        image = _Nifti(Path(file))
        try:
            volume = image.volume().canonical()
        except MedaiError as error:
            failed.append(str(error).replace(file, os.path.basename(file)))
            continue
        notes = tuple(volume.meta.get("findings", ()))
        found.append(StudySeries(series_of(volume, uid), volume.axes, volume.units, notes, path, uid, file, 0, image))
    return found, failed


def _listed(image: Image, place: _Place, beside: set[str]) -> StudySeries:
    volume = image.volume().canonical()
    frames = image.stack.frames
    files = [frame.header.path for frame in frames]
    path = os.fspath(place.path)
    if place.path.is_dir():
        # the smallest folder that holds the series: less to look through when it is opened
        path = os.path.commonpath([os.path.dirname(file) for file in files])
    notes = tuple(note for note in volume.meta.get("findings", image.findings) if note not in beside)
    return StudySeries(
        image.info(), volume.axes, volume.units, notes, path, image.uid, files[0], frames[0].index, image
    )


def _structures(header: Header, place: _Place) -> StudySeries:
    """A structure set, by its own file; in an archive by its series."""
    packed = place.path != place.folder
    path, uid = (os.fspath(place.path), header.text("SeriesInstanceUID")) if packed else (header.path, "")
    outlines, regions = Outlines(header.path), count_regions(header.path)
    return StudySeries(structure_info(header), "", "mm", (), path, uid, header.path, 0, outlines, regions)


def _what_else(headers: Sequence[Header], broken: Sequence[ReadError], others: int, said: bool) -> list[str]:
    """Sentences on files that are neither of a series that is listed nor NIfTI."""
    plain = Counter(what_it_is(h) for h in headers if not h.pixel_keyword and not is_dicomdir(h))
    left = sum(1 for h in headers if h.pixel_keyword)
    found = [_count(n, "holds no pixels", "hold no pixels") + f" ({kind})." for kind, n in sorted(plain.items())]
    if left and not said:
        found.append(_count(left, "holds pixels", "hold pixels") + " that cannot be opened.")
    if broken and not said:
        found.append(_count(len(broken), "cannot be read", "cannot be read") + f"; the first: {broken[0]}")
    if others and not said:
        found.append(_count(others, "is", "are") + " neither DICOM nor NIfTI.")
    return found


def _count(n: int, one: str, many: str) -> str:
    return f"1 file {one}" if n == 1 else f"{n} files {many}"


def _ordered(series: Iterable[StudySeries]) -> tuple[StudySeries, ...]:
    far = 1 << 31
    return tuple(sorted(series, key=lambda one: (far if one.info.number is None else one.info.number, one.info.uid)))


def _studies(series: Iterable[tuple[str, str, str, StudySeries]]) -> tuple[Study, ...]:
    groups: dict[tuple[str, str], list[tuple[str, StudySeries]]] = {}
    for patient, study, description, one in sorted(series, key=lambda entry: entry[3].file):
        groups.setdefault((patient, study), []).append((description, one))
    found = []
    for (patient, study), entries in groups.items():
        ordered = _ordered(one for _, one in entries)
        description = next((text for text, _ in entries if text), "")
        found.append(Study("", "", description, ordered, entries[0][1].file if patient else "", patient, study))
    return _numbered(found)


def _numbered(found: Iterable[Study]) -> tuple[Study, ...]:
    patients: dict[str, list[Study]] = {}
    for study in found:
        patients.setdefault(study.patient_key, []).append(study)
    numbered = []
    for n, key in enumerate((key for key in patients if key), 1):
        numbered += [
            replace(s, patient=f"Patient {n}", name=f"Study {number}") for number, s in enumerate(patients[key], 1)
        ]
    # files that know no patient come last
    numbered += [replace(s, patient="", name="Files without a patient") for s in patients.get("", [])]
    return tuple(numbered)

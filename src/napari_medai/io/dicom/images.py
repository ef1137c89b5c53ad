"""The images that the files of a series form, and what opens as a Volume."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from napari_medai.core.errors import MedaiError, NoImagesError, SeriesInfo
from napari_medai.core.geometry import Grid, canonical_reorientation
from napari_medai.core.volume import Volume
from napari_medai.io.dicom.frames import Frame, frames_of
from napari_medai.io.dicom.gathered import Headers
from napari_medai.io.dicom.headers import Header
from napari_medai.io.dicom.mosaic import mosaic_findings
from napari_medai.io.dicom.pixels import PixelFile, pixel_file
from napari_medai.io.dicom.plain import PixelFiles, plain_stack
from napari_medai.io.dicom.repair import canonical, repaired
from napari_medai.io.dicom.slides import pyramids
from napari_medai.io.dicom.stacks import Stack, stacks_of
from napari_medai.io.dicom.volumes import volume_of


@dataclass(eq=False)
class Series:
    """The files of one series, and the images they form.

    Attributes
    ----------
    uid : str
        Series Instance UID, or a made-up one where the header has none.
    headers : sequence of Header
        Of the files that hold pixels.
    findings : list of str
        What was left out.
    beside : list of Header
        Of the files without pixels in the same place.
    """

    uid: str
    headers: Sequence[Header]
    findings: list[str] = field(default_factory=list)
    beside: list[Header] = field(default_factory=list)

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
        if isinstance(self.headers, Headers) and (plain := plain_stack(self.headers)) is not None:
            return [Image(self.uid, plain, PixelFiles(self.headers), tuple(self.findings), tuple(repair))]
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
            what = "file is a copy of another" if copies == 1 else "files are copies of others"
            left_out = "was" if copies == 1 else "were"
            findings.append(f"{copies} {what} (same instance UID) and {left_out} left out.")
        if failed:
            what = "file cannot be opened and was" if len(failed) == 1 else "files cannot be opened and were"
            findings.append(f"{len(failed)} {what} left out; the first: {failed[0]}")
        if any(header.repaired for header in self.headers):
            findings.append("Some header elements do not follow the standard.")
        findings += mosaic_findings(self.headers, "mosaic" in repair)
        stacks = stacks_of(pyramids(frames), "duplicates" in repair)
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
    files : mapping of str to PixelFile
        Where the pixels are, by path.
    findings : tuple of str
        What is unusual about the series.
    repair : tuple of str
        What is repaired in its Volume.
    """

    uid: str
    stack: Stack
    files: Mapping[str, PixelFile]
    findings: tuple[str, ...]
    repair: tuple[str, ...] = ()

    def volume(self, source: str = "", values: str = "") -> Volume:
        """The lazy Volume, in the axes as stored; ``values`` as in `open_volume`."""
        volume = volume_of(self.stack, self.files, self.uid, self.findings, source, values)
        if self.stack.directions is not None and "axis_t" in volume.meta:
            axis = {**volume.meta["axis_t"], "directions": self.stack.directions}
            volume = volume.replace(meta={**volume.meta, "axis_t": axis})
        lead = self.stack.lead
        if lead.place is None and not lead.levels:
            volume = volume.replace(meta={**volume.meta, "oriented": False})
        return repaired(volume, self.stack, self.repair)

    def opened(self, source: str = "", values: str = "") -> Volume:
        """The lazy Volume in canonical axes."""
        return canonical(self.volume(source, values))

    def info(self) -> SeriesInfo:
        """What a person chooses it by; no Volume is built for it."""
        lead = self.stack.lead
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
            self.stack.file_count,
        )


def clean(text: str) -> str:
    """A header's text on one line without control characters."""
    return re.sub(r"[\x00-\x1f\x7f]+", " ", text).strip()[:64]


def images_of(series: Iterable[Series], repair: Sequence[str] = ()) -> list[Image]:
    """The images of several series; what cannot be opened is a finding of the others.

    Raises
    ------
    MedaiError
        Not one of them can be opened.
    """
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

"""RT Structure Sets (PS3.3, A.19, C.8.8.5 and C.8.8.6): contours placed on the scan that they were drawn on."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_medai.core.contours import PLANAR_TOLERANCE_MM, Contour, Contours, Kind, Region
from napari_medai.core.errors import MedaiError, ReadError, SeriesInfo
from napari_medai.core.geometry import Grid, world_to_index
from napari_medai.core.volume import Volume
from napari_medai.io.contours import Drawn, own_grid, rasterise
from napari_medai.io.dicom.gathered import read_headers
from napari_medai.io.dicom.headers import Header, items, number, numbers, read_header, text
from napari_medai.io.dicom.quiet import BROKEN_FILE, quietly

if TYPE_CHECKING:
    from napari_medai.io.readback import Labels, Patch

STORAGE = "1.2.840.10008.5.1.4.1.1.481.3"
# So many files beside a structure set are looked at for its scan.
MOST_FILES = 20_000
# In voxels, far below what coordinates are rounded to.
_HAIR = 1e-6
# Coordinates are written to 0.0001 mm.
_ROUNDED_MM = 1e-3
_KINDS: dict[str, Kind] = {
    "CLOSED_PLANAR": "closed", "CLOSEDPLANAR_XOR": "xor", "OPEN_PLANAR": "open", "OPEN_NONPLANAR": "open-nonplanar",
    "POINT": "point",
}  # fmt: skip


def is_structure_set(header: Header) -> bool:
    """Whether a file is an RT Structure Set."""
    return header.text("SOPClassUID") == STORAGE


def structure_info(header: Header) -> SeriesInfo:
    """The entry of a structure set in the list of what can be opened."""
    series = header.number("SeriesNumber")
    described = " ".join(header.text("SeriesDescription").split())[:64]
    return SeriesInfo(
        header.text("SeriesInstanceUID"), "RTSTRUCT", described, None if series is None else int(series), (), (), 1
    )


def structure_sets(path: str | os.PathLike[str]) -> list[Header]:
    """The structure sets that a file is or a folder holds."""
    here = Path(path)
    if here.is_dir():
        paths = [os.path.join(parent, name) for parent, _, names in os.walk(here) for name in sorted(names)]
        return [header for header in read_headers(paths)[0] if is_structure_set(header)]
    try:
        header = read_header(here)
    except ReadError:
        return []  # whoever opens it says what is wrong
    return [header] if is_structure_set(header) else []


def read_contours(path: str | os.PathLike[str]) -> Contours:
    """The regions of an RT Structure Set.

    Parameters
    ----------
    path : path
        The file.

    Returns
    -------
    Contours
        Every ROI of the set, those without contours too; with findings.

    Raises
    ------
    ReadError
        The file is no structure set or is damaged.
    """
    from pydicom import dcmread

    path = Path(path)
    try:
        with quietly():
            dataset = dcmread(path, stop_before_pixels=True, force=True)
            if text(dataset, "SOPClassUID") != STORAGE:
                raise ReadError(f"{path.name} is no RT Structure Set.")
            dataset.decode()
            return _contours(dataset, path)
    except OSError as error:
        raise ReadError(f"{path.name} cannot be read: {error.strerror or error}.") from error
    except (*BROKEN_FILE, RecursionError) as error:
        raise ReadError(f"The structure set {path.name} is damaged ({type(error).__name__}).") from error


def _contours(dataset: Any, path: Path) -> Contours:
    drawn = {int(number(item, "ReferencedROINumber") or 0): item for item in items(dataset, "ROIContourSequence")}
    kinds = {
        int(number(item, "ReferencedROINumber") or 0): text(item, "RTROIInterpretedType")
        for item in items(dataset, "RTROIObservationsSequence")
    }
    findings: list[str] = []
    regions: dict[int, Region] = {}
    for item in items(dataset, "StructureSetROISequence"):
        roi = int(number(item, "ROINumber") or 0)
        name = " ".join(text(item, "ROIName").split())[:64] or f"ROI {roi}"
        contours, unusual = _lines(drawn[roi]) if roi in drawn else ((), [])
        findings += [f"{name}: {what}" for what in unusual]
        if not contours:
            findings.append(f"{name} has no contours.")
        free = roi if roi > 0 and roi not in regions else max(regions, default=0) + 1
        regions[free] = Region(free, name, contours, _color(drawn.get(roi)), kinds.get(roi, ""))
    lost = len(set(drawn) - {int(number(i, "ROINumber") or 0) for i in items(dataset, "StructureSetROISequence")})
    if lost:
        findings.append(f"{lost} sets of contours belong to no named region and were left out.")
    frame, series = _referenced(dataset)
    title = text(dataset, "SeriesDescription") or "contours"
    name = "_".join(part for part in "".join(c if c.isalnum() else " " for c in title).split())[:64] or "contours"
    return Contours(tuple(regions.values()), frame, series, str(path), name, tuple(findings))


def _lines(item: Any) -> tuple[tuple[Contour, ...], list[str]]:
    found: list[Contour] = []
    unreadable = bent = 0
    for line in items(item, "ContourSequence"):
        kind = _KINDS.get(text(line, "ContourGeometricType").upper())
        values = numbers(line, "ContourData")
        if kind is None or not values or len(values) % 3 or not np.isfinite(values).all():
            unreadable += 1
            continue
        points = np.array(values).reshape(-1, 3)[:, ::-1]  # (x, y, z) -> (z, y, x)
        if len(points) > 1 and kind in ("closed", "xor") and np.array_equal(points[0], points[-1]):
            points = points[:-1]
        image = next(iter(items(line, "ContourImageSequence")), None)
        contour = Contour(points, kind, text(image, "ReferencedSOPInstanceUID") if image is not None else "")
        if contour.encloses and contour.plane()[2] > PLANAR_TOLERANCE_MM:
            bent += 1
        found.append(contour)
    notes = [f"{unreadable} contours cannot be read and were left out."] if unreadable else []
    notes += [f"{bent} closed contours do not lie in a plane."] if bent else []
    return tuple(found), notes


def _color(item: Any) -> tuple[float, float, float] | None:
    values = numbers(item, "ROIDisplayColor") if item is not None else ()
    if len(values) != 3:
        return None
    red, green, blue = (min(max(v, 0.0), 255.0) / 255 for v in values)
    return red, green, blue


def _referenced(dataset: Any) -> tuple[str, str]:
    """Frame of reference and series that the contours were drawn in."""
    frame, series = "", ""
    for reference in items(dataset, "ReferencedFrameOfReferenceSequence"):
        frame = frame or text(reference, "FrameOfReferenceUID")
        for study in items(reference, "RTReferencedStudySequence"):
            for one in items(study, "RTReferencedSeriesSequence"):
                series = series or text(one, "SeriesInstanceUID")
    for roi in items(dataset, "StructureSetROISequence"):
        frame = frame or text(roi, "ReferencedFrameOfReferenceUID")
    return frame or text(dataset, "FrameOfReferenceUID"), series


def open_structures(path: str | os.PathLike[str]) -> Volume:
    """A structure set as labels on the scan that it was drawn on.

    The scan is looked for beside the file, and in the folders beside its folder; where it is not there, the labels lie
    on a grid made from the contours.

    Parameters
    ----------
    path : path
        The file.

    Returns
    -------
    Volume
        Labels (z, y, x) whose values are the ROI numbers; where regions overlap, (t, z, y, x) with a region at each t
        and ``meta["axis_t"]["name"] == "segment"``.

    Raises
    ------
    ReadError
        The file is damaged, or there is neither a scan nor a closed contour.
    """
    contours = read_contours(path)
    scan, note = _scan_of(contours, Path(path))
    try:
        grid = scan.grid if scan is not None else own_grid(contours)
    except MedaiError as error:
        raise ReadError(f"{Path(path).name}: {error}") from error
    return labels_on(contours, grid, (note,) if note else (), scan)


def labels_on(contours: Contours, grid: Grid, findings: Sequence[str] = (), scan: Volume | None = None) -> Volume:
    """Contours as labels on a grid; see `open_structures`."""
    kind = np.uint8 if max((r.number for r in contours.regions), default=0) < 256 else np.int32
    labels: NDArray[Any] = np.zeros(grid.shape, kind)
    notes = [*contours.findings, *findings]
    overlap = False
    for region in contours.regions:
        drawn = rasterise(region, grid)
        notes += _named(drawn, region) if region.contours else []
        overlap = overlap or bool(labels[drawn.mask].any())
        labels[drawn.mask] = region.number
    meta: dict[str, Any] = {
        "is_labels": True,
        "label_names": contours.names,
        "label_colors": contours.colors,
        "frame_of_reference_uid": contours.frame_of_reference_uid,
    }
    if scan is not None:
        meta["referenced_series_uid"] = str(scan.meta.get("series_uid", ""))
    array: Any = labels
    if overlap:
        notes.append("Regions overlap; each is shown on its own.")
        meta["axis_t"] = {"name": "segment", "unit": "", "values": tuple(r.number for r in contours.regions)}
        array = _each(contours.regions, grid, np.dtype(kind))
    meta["findings"] = tuple(notes)
    axes = "tzyx" if overlap else "zyx"
    return Volume(array, axes, grid.affine, "mm", "RTSTRUCT", contours.name, meta, contours.source)


def _named(drawn: Drawn, region: Region) -> list[str]:
    return [note.replace(f"Region {region.number}", region.name, 1) for note in drawn.findings]


def _each(regions: Sequence[Region], grid: Grid, dtype: np.dtype[Any]) -> Any:
    """A region at each t, drawn when it is looked at."""
    import dask
    import dask.array as da

    def draw(region: Region) -> NDArray[Any]:
        return np.asarray(rasterise(region, grid).mask * dtype.type(region.number), dtype=dtype)

    planes = [da.from_delayed(dask.delayed(draw)(region), grid.shape, dtype) for region in regions]
    return da.stack(planes)


def _scan_of(contours: Contours, path: Path) -> tuple[Volume | None, str]:
    """The scan, and what is unusual about it."""
    from napari_medai.io.dicom.series import open_volume

    headers, _ = read_headers(_files_near(path))
    images = [h for h in headers if h.pixel_keyword]
    mine = [h for h in images if contours.series_uid and h.text("SeriesInstanceUID") == contours.series_uid]
    note = ""
    if not mine and contours.frame_of_reference_uid:
        mine = [h for h in images if h.text("FrameOfReferenceUID") == contours.frame_of_reference_uid]
        note = "The series that the contours refer to is not here; another one of the same frame of reference is used."
    if mine:
        try:
            scan = open_volume(mine[0].path)
            if scan.units == "mm" and "z" in scan.axes:
                return scan, note
        except MedaiError as error:
            return None, f"The scan of these contours cannot be opened ({error}); they lie on a grid of their own."
    return None, "The scan that the contours were drawn on is not beside them; they lie on a grid of their own."


def _files_near(path: Path) -> list[str]:
    """Files in the folder of a file, then in the folders beside it."""

    def listed(folder: Path) -> Iterator[os.DirEntry[str]]:
        try:
            with os.scandir(folder) as entries:
                yield from sorted(entries, key=lambda e: e.name)
        except OSError:
            return

    here = path.resolve().parent
    found = [e.path for e in listed(here) if e.is_file() and not os.path.samefile(e.path, path)]
    for folder in [*(e for e in listed(here) if e.is_dir()), *(e for e in listed(here.parent) if e.is_dir())]:
        if len(found) < MOST_FILES and Path(folder.path) != here:
            found += [e.path for e in listed(Path(folder.path)) if e.is_file()]
    return found[:MOST_FILES]


def drawn_labels(path: Path, grid: Grid | None = None) -> Labels:
    """A structure set as our own reader gives it, on a grid where one is given."""
    from napari_medai.io.readback import of_volume

    volume = open_structures(path) if grid is None else labels_on(read_contours(path), grid)
    return of_volume(volume, "napari-medai")


def read_independently(path: Path, grid: Grid | None = None) -> Labels:
    """A structure set as pydicom reads it and scikit-image draws it, for comparison with our own reader.

    Raises
    ------
    ReadError
        The file is damaged.
    """
    from pydicom import dcmread
    from skimage.draw import polygon

    from napari_medai.io.readback import Labels, Patch

    where = grid if grid is not None else open_structures(path).grid
    try:
        with quietly():
            dataset = dcmread(path)
            names = {int(roi.ROINumber): str(roi.ROIName) for roi in dataset.StructureSetROISequence}
            lines = {
                int(roi.ReferencedROINumber): [
                    np.array([float(v) for v in line.ContourData]).reshape(-1, 3)[:, ::-1]
                    for line in roi.get("ContourSequence", ())
                    if str(line.ContourGeometricType).startswith("CLOSED")
                ]
                for roi in dataset.ROIContourSequence
            }
            frame = str(dataset.ReferencedFrameOfReferenceSequence[0].FrameOfReferenceUID)
    except BROKEN_FILE as error:
        raise ReadError(f"pydicom cannot read the structure set: {type(error).__name__}.") from error

    def patches() -> Iterator[Patch]:
        for value, outlines in lines.items():
            drawn = np.zeros(where.shape, np.int32)
            for points in outlines:
                index = world_to_index(where.affine, points)
                axis = int(np.argmin(np.ptp(index, axis=0)))
                level = round(float(index[:, axis].mean()))
                if 0 <= level < where.shape[axis]:
                    plane = np.moveaxis(drawn, axis, 0)[level]
                    flat = np.delete(index, axis, axis=1)
                    # scikit-image counts all edges as inside; a hair to the upper left, the right and lower are not
                    plane[polygon(*(flat - _HAIR).T, plane.shape)] ^= value
            yield Patch(drawn, where.affine)

    return Labels("pydicom and scikit-image", patches, names, frame)


def verify_contours(path: Path, expected: Contours) -> Iterator[tuple[str, bool, str]]:
    """Whether a structure set holds the points of the contours that were saved, as pydicom reads it.

    Yields
    ------
    tuple of str, bool, str
        What was asked, the answer, and what was found.
    """
    from pydicom import dcmread

    with quietly():
        dataset = dcmread(path)
        names = {int(roi.ROINumber): str(roi.ROIName) for roi in dataset.StructureSetROISequence}
        lines = {int(i.ReferencedROINumber): list(i.get("ContourSequence", ())) for i in dataset.ROIContourSequence}
    yield "a region for each", set(names) == set(expected.names), f"{len(names)} regions for {len(expected.names)}"
    for region in expected.regions:
        found = lines.get(region.number, [])
        points = [np.array([float(v) for v in line.ContourData]).reshape(-1, 3)[:, ::-1] for line in found]
        same = len(found) == len(region.contours) and all(
            a.shape == b.points.shape and np.abs(a - b.points).max() <= _ROUNDED_MM
            for a, b in zip(points, region.contours, strict=True)
        )
        named = names.get(region.number, "") == region.name[:64]
        yield f"points of region {region.number}", same and named, f"{len(found)} of {len(region.contours)} contours"

"""Reads a written file back by another path and compares it with what was saved, or with the scan it lies on."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from napari_medai.core.contours import Contours
from napari_medai.core.errors import MedaiError, ReadError, UnsupportedFormatError, WriteError
from napari_medai.core.geometry import Grid
from napari_medai.core.result import Boxes, Denoised, Heatmap, Mask, Result, Scores
from napari_medai.core.volume import Volume
from napari_medai.io import find_format, readback
from napari_medai.io import open as open_volume
from napari_medai.io.agreement import Agreement, compare, in_mm, of_image, same_image, sizes
from napari_medai.io.readback import Labels
from napari_medai.io.readback_images import files_of, verify_images
from napari_medai.io.readback_pieces import in_pieces, verify_pieces
from napari_medai.io.verify_scan import holds_labels, in_units_of, is_zarr, modality, on_scan, says_where, scan_of

Saved = Volume | Result | Contours
PathLike = str | os.PathLike[str]
_SURFACES = (".stl", ".obj")


@dataclass(frozen=True)
class Check:
    """One question about a file.

    Attributes
    ----------
    what : str
        The question.
    ok : bool
        Whether the answer is as it should be.
    detail : str
        What was found; never patient identity.
    """

    what: str
    ok: bool
    detail: str = ""


@dataclass(frozen=True)
class Report:
    """What came out of verifying a file.

    Attributes
    ----------
    path : str
        The file's name.
    labels : tuple of Agreement
        One row for each label and reader.
    checks : tuple of Check
        Everything else that was asked.
    skipped : str
        Why nothing could be compared; empty if something was.
    """

    path: str
    labels: tuple[Agreement, ...] = ()
    checks: tuple[Check, ...] = ()
    skipped: str = ""

    @property
    def faults(self) -> tuple[str, ...]:
        """What is wrong, a sentence each."""
        rows = [f"label {r.value}{f' ({r.name})' if r.name else ''} as read by {r.by}: {', '.join(r.faults)}"
                for r in self.labels if r.faults]  # fmt: skip
        return (*rows, *(f"{c.what}: {c.detail or 'no'}" for c in self.checks if not c.ok))

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.faults


def verify(
    result: PathLike, against: PathLike | Volume | None = None, expected: Saved | None = None, *, series_uid: str = ""
) -> Report:
    """Compare a written file with the scan it lies on, with another result, or with what was saved.

    Labels are read by two readers that share no code, and each label's count of voxels, centroid (mm) and Dice are
    compared in patient space with what was saved; where that is not at hand, with one another. Of images the place and
    the values are compared.

    Parameters
    ----------
    result : path
        A DICOM SEG, RTSTRUCT, SR, Parametric Map or image, the folder of a derived series, NIfTI, NRRD, OME-Zarr or a
        surface.
    against : path or Volume, optional
        The scan, or another file of labels on the same scan.
    expected : Volume, Result or Contours, optional
        What was saved.
    series_uid : str
        Of the scan, where ``against`` holds several; by default the one that the result refers to.

    Returns
    -------
    Report
        Formats that do not say where in the patient they lie (TIFF, PNG, tables) are skipped, with the reason.

    Raises
    ------
    ReadError
        A file cannot be read at all.
    """
    path = Path(result).expanduser()
    if not path.exists():
        raise ReadError(f"{path} does not exist; check the path.")
    if not path.is_file() and not (path.is_dir() and (files_of(path) or is_zarr(path))):
        raise ReadError(f"{path.name} is neither a file to verify nor a folder of DICOM files nor an OME-Zarr.")
    report = _compare(path, expected)
    if against is None or report.skipped:
        return report
    scan = in_units_of(path, against if isinstance(against, Volume) else scan_of(path, against, series_uid))
    if path.suffix.lower() in _SURFACES:
        from napari_medai.io.surface import verify_on

        return Report(path.name, checks=tuple(Check(*row) for row in verify_on(path, scan)))
    labels, checks = list(report.labels), list(report.checks)
    readers = _readers(path, scan.grid if scan.units == "mm" else None)
    if scan.meta.get("is_labels"):
        labels = [row for read in readers for row in compare(readback.of_volume(scan), read(path))]
        labels = in_mm(labels, scan.units)
    else:
        checks += [Check(*row) for row in on_scan(path, scan, readers)]
    return Report(path.name, tuple(labels), tuple(checks))


def check(what: Saved, path: Path, name: str = "") -> None:
    """Refuse a file that does not hold what was saved.

    Parameters
    ----------
    what : Volume, Result or Contours
        What was saved.
    path : Path
        The file, or the folder of a series, perhaps under a temporary name.
    name : str
        The name it will have.

    Raises
    ------
    WriteError
        A label has other voxels or another place than what was saved, or the file cannot be read back.
    """
    with _under(path, name or path.name) as there:
        try:
            faults = verify(there, expected=what).faults
        except MedaiError as error:
            faults = (str(error),)
    if faults:
        listing = "\n".join(f"  {fault}" for fault in faults)
        raise WriteError(f"{name or path.name} was not written: read back, it is not what was saved:\n{listing}")


@contextmanager
def _under(path: Path, name: str) -> Iterator[Path]:
    """A file under another name in a folder of its own: readers look at suffixes, and at what lies beside."""
    if path.name == name or path.is_dir():
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="medai-", dir=None) as folder:
        there = Path(folder) / name
        try:
            there.symlink_to(path.resolve())
        except OSError:  # Windows lets few people make links
            there.write_bytes(path.read_bytes())
        yield there


def _compare(path: Path, expected: Saved | None) -> Report:
    """The file against what was saved, or its readers against one another."""
    suffix = path.suffix.lower()
    if suffix in _SURFACES:
        from napari_medai.io.surface import verify_surface

        return Report(path.name, checks=tuple(Check(*row) for row in verify_surface(path, expected)))
    if modality(path) == "SR":
        from napari_medai.io.dicom.write.report import verify_report

        return Report(path.name, checks=tuple(Check(*row) for row in verify_report(path, expected)))
    if isinstance(expected, Contours):
        from napari_medai.io.dicom.rtstruct import verify_contours

        return Report(path.name, checks=tuple(Check(*row) for row in verify_contours(path, expected)))
    image = _image_of(expected)
    if is_zarr(path):
        return _compare_omezarr(path, image, _names_of(expected))
    if modality(path) not in ("", "SEG", "RTSTRUCT"):
        return _compare_dicom_image(path, image)
    readers = _readers(path, None if image is None else image.grid)
    if not readers:
        return Report(path.name, skipped=f"{suffix or 'this format'} does not say where in the patient it lies")
    if isinstance(expected, Boxes | Scores):
        return Report(path.name, skipped="a table lies on no grid")
    if image is not None and in_pieces(path, image):
        return Report(path.name, checks=tuple(Check(*row) for row in verify_pieces(path, image, _names_of(expected))))
    if image is not None and not (isinstance(expected, Mask) or image.meta.get("is_labels")):
        rows = [(found.by, same_image(of_image(image), found)) for found in (read(path) for read in readers)]
        return Report(path.name, checks=tuple(Check(f"image as read by {by}", not f, ", ".join(f)) for by, f in rows))
    if image is None:
        found = [read(path) for read in readers]
        if not holds_labels(path):
            return Report(path.name, checks=(Check("readers agree on the image", *_alike(found)),))
        truth, found = found[0], found[1:]
    else:
        truth, found = readback.of_volume(image, "memory", _names_of(expected)), [read(path) for read in readers]
    rows_of = tuple(row for labels in found for row in compare(truth, labels))
    return Report(path.name, rows_of, _names_kept(truth, found) if expected is not None else ())


def _compare_omezarr(path: Path, image: Volume | None, names: dict[int, str] | None) -> Report:
    from napari_medai.io.readback_omezarr import verify_alone, verify_saved

    try:
        labels, rows = verify_alone(path) if image is None else ([], verify_saved(path, image, names))
    except UnsupportedFormatError as error:
        return Report(path.name, skipped=str(error))
    return Report(path.name, tuple(labels), tuple(Check(*row) for row in rows))


def _compare_dicom_image(path: Path, image: Volume | None) -> Report:
    try:
        return Report(path.name, checks=tuple(Check(*row) for row in verify_images(path, image)))
    except UnsupportedFormatError as error:
        return Report(path.name, skipped=str(error))


def _alike(found: list[Labels]) -> tuple[bool, str]:
    faults = same_image(found[0], found[1])
    return not faults, ", ".join(faults)


def _names_kept(truth: Labels, found: list[Labels]) -> tuple[Check, ...]:
    """Labels keep their names; nibabel knows none, and those without a name may be given one."""
    present = sizes(truth)
    rows = []
    for labels in found:
        wrong = [v for v in present if truth.names.get(v) and labels.names and labels.names.get(v) != truth.names[v]]
        detail = f"label {wrong[0]} is not called {truth.names[wrong[0]]!r}" if wrong else ""
        rows.append(Check(f"names as read by {labels.by}", not wrong, detail))
    return tuple(rows)


def _image_of(expected: Saved | None) -> Volume | None:
    match expected:
        case Volume():
            return expected
        case Mask():
            return expected.labels
        case Denoised():
            return expected.image
        case Heatmap():
            return expected.heat
    return None


def _names_of(expected: Saved | None) -> dict[int, str] | None:
    return dict(expected.names) if isinstance(expected, Mask) else None


def _own(path: Path) -> Labels:
    """The file as `medai.open` gives it."""
    volume = open_volume(path)
    return (readback.of_volume if volume.meta.get("is_labels") else of_image)(volume, "napari-medai")


def _readers(path: Path, grid: Grid | None = None) -> list[Callable[[Path], Labels]]:
    """An independent reader and our own; none for formats without a place in the patient."""
    kind = modality(path)
    if kind == "RTSTRUCT":
        from napari_medai.io.dicom.rtstruct import drawn_labels, read_independently

        return [lambda p: read_independently(p, grid), lambda p: drawn_labels(p, grid)]
    if kind:
        if kind == "SEG" and not says_where(path):  # of a single picture, on its own pixels
            return [_own]
        return [readback.segmentation, _own] if kind == "SEG" else []
    format = find_format(path).name
    if format == "omezarr":
        from napari_medai.io.readback_omezarr import by_open, by_zarr

        return [by_zarr, by_open]
    independent = {"nifti": readback.nifti, "nrrd": readback.nrrd}.get(format)
    return [independent, _own] if independent else []


def as_dict(report: Report) -> dict[str, Any]:
    """Plain values, ready for JSON."""
    rows = [
        {
            "label": row.value,
            "name": row.name,
            "reader": row.by,
            "count_expected": row.expected.count if row.expected else 0,
            "count": row.found.count if row.found else 0,
            "volume_ml": round(row.found.volume_mm3 / 1000, 6) if row.found else 0.0,
            "centroid_mm_zyx": list(row.found.centroid) if row.found else None,
            "distance_mm": row.distance_mm if np.isfinite(row.distance_mm) else None,
            "dice": row.dice,
            "faults": list(row.faults),
        }
        for row in report.labels
    ]
    checks = [{"what": c.what, "ok": c.ok, "detail": c.detail} for c in report.checks]
    return {"file": report.path, "ok": report.ok, "skipped": report.skipped, "labels": rows, "checks": checks}

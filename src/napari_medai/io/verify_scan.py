"""Whether a result belongs to a scan: found by what it refers to, in its field of view, of its patient."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from napari_medai.core.errors import ReadError, WriteError
from napari_medai.core.volume import Volume
from napari_medai.io import find_format
from napari_medai.io import open as open_volume
from napari_medai.io.agreement import share_inside
from napari_medai.io.readback import Labels
from napari_medai.io.readback_images import Row, files_of

if TYPE_CHECKING:
    from napari_medai.io.dicom.references import References
    from napari_medai.io.dicom.write.source import Source

PathLike = str | os.PathLike[str]
_DICM = slice(128, 132)


def scan_of(path: Path, against: PathLike, series_uid: str) -> Volume:
    """The scan, by the series that the result refers to where there are several."""
    from napari_medai.io import list_series

    if not series_uid and modality(path):
        refers = _references(path)
        wanted = refers.series or _series_of(against, refers.instances)
        found = [s.uid for s in list_series(against) if s.uid.partition("#")[0] in wanted]
        series_uid = found[0] if len(found) == 1 else ""
    return open_volume(against, series_uid=series_uid)


def in_units_of(path: Path, scan: Volume) -> Volume:
    """The scan in the unit of length of a result: OME-Zarr of other programs is in micrometres."""
    units = open_volume(path).units if is_zarr(path) else scan.units
    factor = {("mm", "um"): 1e3, ("um", "mm"): 1e-3}.get((scan.units, units))
    if factor is None:
        return scan
    return scan.replace(affine=np.diag([factor, factor, factor, 1.0]) @ scan.affine, units=units)


def on_scan(path: Path, scan: Volume, readers: list[Callable[[Path], Labels]]) -> Iterator[Row]:
    """Questions whether a result belongs to a scan, as (question, answer, detail).

    Parameters
    ----------
    path : Path
        The result.
    scan : Volume
        In the result's unit of length, see `in_units_of`.
    readers : list of function
        Of the result's labels; the first is asked.
    """
    if readers and (not modality(path) or modality(path) in ("SEG", "RTSTRUCT")):
        labels = readers[0](path)
        if modality(path) or holds_labels(path):
            share = share_inside(labels, scan.grid)
            yield ("inside the scan's field of view", share == 1, f"{share:.1%} of the voxels")
    if not modality(path):
        return
    from napari_medai.io.dicom.references import same_patient

    refers = _references(path)
    own = str(scan.meta.get("frame_of_reference_uid", ""))
    # a report of planar regions has none of its own
    if not own:
        yield ("frame of reference of the scan", True, "the scan names none, so that one was made up")
    elif refers.frame_of_reference_uid or refers.modality != "SR":
        same = refers.frame_of_reference_uid == own
        yield ("frame of reference of the scan", same, "yes" if same else "another one")
    source = _source(scan)
    if source is None:
        return
    same = all(same_patient(file, source.lead) for file in files_of(path))
    yield ("patient of the scan", same, "yes" if same else "no")
    there = {str(header.SOPInstanceUID) for header in source.datasets}
    missing = len(refers.instances - there) if refers.instances else 0
    detail = f"{len(refers.instances) - missing} of {len(refers.instances)} instances it refers to are there"
    yield ("refers to the scan's instances", not missing and bool(refers.instances), detail)


def modality(path: Path) -> str:
    """Of a DICOM file or of the first one in a folder, ``"OT"`` (other) if it does not say; empty for all else."""
    from napari_medai.io.dicom.references import modality_of

    if is_zarr(path):
        return ""
    lead = files_of(path)[0]
    with lead.open("rb") as file:
        if file.read(132)[_DICM] != b"DICM":
            return ""
    return modality_of(lead) or "OT"


def is_zarr(path: Path) -> bool:
    """Whether it is the folder of an OME-Zarr."""
    return path.is_dir() and find_format(path).name == "omezarr"


def holds_labels(path: Path) -> bool:
    """Whether a file opens as labels."""
    return bool(open_volume(path).meta.get("is_labels"))


def says_where(path: Path) -> bool:
    """Whether a DICOM file names a frame of reference."""
    from napari_medai.io.dicom.references import references_of

    return bool(references_of(path).frame_of_reference_uid)


def _series_of(where: PathLike, instances: frozenset[str]) -> set[str]:
    """The series that hold instances: derived images refer to instances alone."""
    from napari_medai.io.dicom.series import scan

    try:
        return {s.uid for s in scan(where) if any(h.text("SOPInstanceUID") in instances for h in s.headers)}
    except ReadError:
        return set()


def _references(path: Path) -> References:
    """What a file, or all files of a folder together, refer to."""
    from napari_medai.io.dicom.references import references_of

    every = [references_of(file) for file in files_of(path)]
    lead = every[0]
    return replace(
        lead,
        series=lead.series.union(*(r.series for r in every)),
        instances=lead.instances.union(*(r.instances for r in every)),
    )


def _source(scan: Volume) -> Source | None:
    """The instances of a scan; None if it is not DICOM."""
    from napari_medai.io.dicom.write.source import source_of

    try:
        return source_of(scan)
    except WriteError:
        return None

"""The DICOM instances that an image was opened from.

Only here and in `header`, which this calls, is the identity of a patient read: it is copied into objects of the same
patient, and goes nowhere else. Nothing here prints it, logs it or puts it into a name.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from napari_medai.core.errors import MedaiError, SeriesChoiceError, WriteError
from napari_medai.core.geometry import SAME_PLACE_MM, Grid, Reorientation, canonical_reorientation
from napari_medai.core.volume import Volume
from napari_medai.io.dicom.frames import Place
from napari_medai.io.dicom.series import Image, scan
from napari_medai.io.dicom.write.header import read

if TYPE_CHECKING:
    from pydicom import Dataset

    from napari_medai.io.dicom.stacks import Stack

PathLike = str | os.PathLike[str]

_NO_SOURCE = (
    "This result does not say which DICOM series it lies on, and a DICOM object has to: open the DICOM series "
    "itself, or give it with --against (against=… in Python)."
)


@dataclass(frozen=True, eq=False)
class SourcePlane:
    """One plane of the scan, and the instance that holds it.

    Attributes
    ----------
    dataset : pydicom.Dataset
        Header of the instance, without pixels; holds the patient's identity.
    frame : int
        Frame number from 1; 0 if the instance is not a multi-frame one.
    place : Place or None
        Where it lies: (x, y, z) in mm, LPS; None if the header does not say.
    """

    dataset: Dataset = field(repr=False)
    frame: int
    place: Place | None


@dataclass(frozen=True, eq=False)
class Source:
    """The instances of an image in stack order, and the image.

    Attributes
    ----------
    volume : Volume
        The image, lazily, in canonical axes as `napari_medai.open` gives it.
    planes : tuple of tuples of (SourcePlane or None)
        ``planes[t][z]`` in the order of the stack, which is not the order of ``volume`` where its axes were permuted
        or flipped; see `in_stack_order`. None is a missing slice.
    reorientation : Reorientation
        From the axes of the stack to those of ``volume``.
    notes : tuple of str
        What of the headers was not valid and is written otherwise; nothing of the values.
    """

    volume: Volume
    planes: tuple[tuple[SourcePlane | None, ...], ...] = field(repr=False)
    reorientation: Reorientation
    notes: tuple[str, ...] = ()

    @property
    def series_uid(self) -> str:
        """Series Instance UID, without the number of the image."""
        return str(self.lead.get("SeriesInstanceUID", ""))

    @property
    def frame_of_reference_uid(self) -> str:
        """UID of the space that positions are given in; empty if the header does not say."""
        return str(self.lead.get("FrameOfReferenceUID", "") or "")

    @property
    def lead(self) -> Dataset:
        """Header of the first instance: patient, study, series and frame of reference are those of all."""
        return self.datasets[0]

    @cached_property
    def datasets(self) -> tuple[Dataset, ...]:
        """Headers of the instances, each once, in the order of the stack."""
        found = {id(plane.dataset): plane.dataset for row in self.planes for plane in row if plane is not None}
        return tuple(found.values())

    @property
    def is_multiframe(self) -> bool:
        """Whether the planes are frames of multi-frame instances."""
        return any(plane is not None and plane.frame for row in self.planes for plane in row)

    @property
    def is_placed(self) -> bool:
        """Whether every plane says where in the frame of reference it lies."""
        planes = [plane for row in self.planes for plane in row if plane is not None]
        return bool(self.frame_of_reference_uid) and all(plane.place is not None for plane in planes)

    def in_stack_order(self, volume: Volume) -> Volume:
        """A volume on the grid of ``self.volume``, with its axes as those of the stack; a view.

        Index z of what is returned belongs to ``planes[t][z]``.
        """
        return volume.reoriented(self.reorientation.inverse()) if "z" in volume.axes else volume

    def shares_grid(self, volume: Volume) -> bool:
        """Whether the voxels of a volume are the voxels of the scan."""
        return volume.ndim_spatial == self.volume.ndim_spatial and volume.grid.same_place(self.volume.grid)

    def on_own_voxels(self, labels: Volume) -> Volume:
        """Labels that lie on some of the scan's voxels, on all of them; other labels are returned as they are.

        A segmentation that was opened holds the slices that are not empty; nothing is resampled.
        """
        if self.shares_grid(labels) or labels.units != self.volume.units or labels.ndim_spatial != 3:
            return labels
        if self.volume.ndim_spatial != 3 or not set(labels.axes) <= set("tzyx"):
            return labels
        matrix = np.linalg.solve(self.volume.affine, labels.affine)
        first = np.rint(matrix[:3, 3]).astype(int)
        last = first + labels.spatial_shape
        affine = self.volume.affine.copy()
        affine[:3, 3] += affine[:3, :3] @ first
        there = Grid(labels.grid.shape, affine, labels.units)
        if (first < 0).any() or (last > self.volume.spatial_shape).any() or not labels.grid.same_place(there):
            return labels
        array = np.zeros((*labels.shape[:-3], *self.volume.spatial_shape), labels.dtype)
        (z, y, x), (z_end, y_end, x_end) = first, last
        array[..., z:z_end, y:y_end, x:x_end] = labels.numpy()
        return labels.replace(array=array, affine=self.volume.affine)

    def plane_at(self, position: Iterable[float], t: int = 0) -> SourcePlane | None:
        """The plane whose first pixel has its centre at a position, (x, y, z) in mm, LPS; None if there is none."""
        where = np.asarray(tuple(position), dtype=float)
        for plane in self.planes[t]:
            if (
                plane is not None
                and plane.place is not None
                and np.abs(plane.place.position - where).max() <= SAME_PLACE_MM
            ):
                return plane
        return None


def source_of(volume: Volume, scan: Volume | PathLike | None = None) -> Source:
    """Find the DICOM instances that a volume, or the scan that it lies on, was opened from.

    Parameters
    ----------
    volume : Volume
        An opened image, or the labels, heat or pixels of a result on it.
    scan : Volume or path, optional
        The scan that it lies on, where the volume does not know: one painted elsewhere, or opened from NIfTI.

    Returns
    -------
    Source
        With the headers of the instances.

    Raises
    ------
    WriteError
        The image did not come from DICOM, or its files are no longer there.
    SeriesChoiceError
        The path of the scan holds several series and none has the volume's place.
    """
    if isinstance(scan, Volume):
        where, uid = scan.source, str(scan.meta.get("series_uid", ""))
    elif scan is not None:
        where, uid = os.fspath(scan), ""
    else:
        where, uid = volume.source, str(volume.meta.get("series_uid", ""))
    if not where or not (uid or isinstance(scan, str | os.PathLike)):
        raise WriteError(_NO_SOURCE)
    images = _images(where, uid)
    if len(images) > 1:
        images = _fitting(images, volume) or images
    if len(images) > 1:
        raise SeriesChoiceError(Path(where).name, [image.info() for image in images])
    return _source(images[0], where)


def _images(where: str, uid: str) -> list[Image]:
    base = uid.partition("#")[0]
    try:
        images = [i for series in scan(where) if base in ("", series.uid) for i in series.images()]
    except MedaiError as error:
        raise WriteError(
            f"The DICOM series that this result lies on cannot be read again: {error} Give the place that it has now "
            "with --against (against=… in Python)."
        ) from error
    found = [i for i in images if uid in ("", i.uid, i.uid.partition("#")[0])]
    if not found:
        raise WriteError(
            f"The DICOM series that this result lies on is no longer in {Path(where).name}; give the folder that it "
            "lies in now with --against (against=… in Python)."
        )
    return found


def _fitting(images: list[Image], volume: Volume) -> list[Image]:
    """The images that have the volume's series, else those with its voxels."""
    uid = str(volume.meta.get("series_uid", ""))
    return [i for i in images if uid and i.uid == uid] or [
        i for i in images if i.volume().canonical().grid.same_place(volume.grid)
    ]


def _source(image: Image, where: str) -> Source:
    stack: Stack = image.stack
    datasets: dict[str, Dataset] = {}
    notes: dict[str, None] = {}
    for frame in stack.frames:
        path = frame.header.path
        if path not in datasets:
            datasets[path], found = read(path)
            notes.update(dict.fromkeys(found))
    several = {path for path, header in datasets.items() if _has_frames(header)}
    planes = tuple(
        tuple(
            None
            if frame is None
            else SourcePlane(
                datasets[frame.header.path],
                frame.index + 1 if frame.header.path in several else 0,
                frame.place,
            )
            for frame in row
        )
        for row in stack.planes
    )
    stored = image.volume(where)
    same = Reorientation((0, 1, 2), (False, False, False))
    turn = canonical_reorientation(stack.affine) if stack.has_depth else same
    return Source(stored.canonical(), planes, turn, tuple(notes))


def _has_frames(header: Dataset) -> bool:
    """Whether references name frames; a class of single frames may say that it has one (PS3.3 C.7.6.6)."""
    return "PerFrameFunctionalGroupsSequence" in header or int(header.get("NumberOfFrames") or 1) > 1

"""Structure sets in a list of studies: how many regions they name, and a drawing to know them by."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image as Picture
from PIL import ImageDraw

from napari_medai.core.contours import Contour
from napari_medai.core.errors import ReadError
from napari_medai.core.geometry import scaling
from napari_medai.core.volume import Volume
from napari_medai.io.dicom.quiet import BROKEN_FILE, quietly
from napari_medai.io.dicom.rtstruct import read_contours

# Of the longer edge of the drawing, in pixels, and what is left free around it.
_SIZE, _MARGIN = 92, 2
# Contours of one slice lie as near as this.
_SAME_SLICE_DIGITS = 1


@dataclass(frozen=True)
class Outlines:
    """A structure set that is drawn without its scan."""

    path: str

    def volume(self, source: str = "") -> Volume:
        """The contours of the slice with most regions, filled, as labels (y, x); anterior or superior is up.

        Raises
        ------
        ReadError
            The file is damaged or holds no closed contour.
        """
        found = read_contours(self.path)
        closed = [(r.number, c) for r in found.regions for c in r.contours if c.encloses]
        if not closed:
            raise ReadError(f"{os.path.basename(self.path)} holds no closed contour.")
        axis = int(np.argmin(np.ptp(closed[0][1].points, axis=0)))
        slices: dict[float, list[tuple[int, Contour]]] = {}
        for number, contour in closed:
            level = round(float(contour.points[:, axis].mean()), _SAME_SLICE_DIGITS)
            slices.setdefault(level, []).append((number, contour))
        most = max(slices.values(), key=lambda there: len({number for number, _ in there}))
        step, pixels = _drawn(most, axis, closed)
        meta = {"is_labels": True, "label_colors": found.colors}
        return Volume(pixels, "yx", scaling((1.0, step, step)), "mm", "RTSTRUCT", found.name, meta, self.path)


def _drawn(
    slice_: Sequence[tuple[int, Contour]], axis: int, every: Sequence[tuple[int, Contour]]
) -> tuple[float, np.ndarray[tuple[int, ...], np.dtype[np.int32]]]:
    """Size of a pixel in mm, and the regions of a slice, the largest below."""
    down, across = (n for n in range(3) if n != axis)
    flip = np.where(np.array([down, across]) == 0, -1.0, 1.0)  # superior is up
    corners = np.concatenate([c.points[:, [down, across]] * flip for _, c in every])
    low, size = corners.min(axis=0), np.ptp(corners, axis=0)
    step = float(max(size.max(), 1.0)) / _SIZE
    edges = np.ceil(size / step).astype(int) + 2 * _MARGIN + 1
    picture = Picture.new("I", (int(edges[1]), int(edges[0])))
    pen = ImageDraw.Draw(picture)
    shapes = [(number, (c.points[:, [down, across]] * flip - low) / step + _MARGIN) for number, c in slice_]
    for number, points in sorted(shapes, key=lambda shape: -float(np.prod(np.ptp(shape[1], axis=0)))):
        pen.polygon([(float(x), float(y)) for y, x in points], fill=number)
    return step, np.asarray(picture, dtype=np.int32)


def count_regions(path: str) -> int:
    """How many regions a structure set names; 0 if its list is damaged, which opening it says."""
    from pydicom import dcmread

    with quietly():
        try:
            dataset = dcmread(path, stop_before_pixels=True, force=True, specific_tags=["StructureSetROISequence"])
            return len(dataset.get("StructureSetROISequence") or ())
        except (OSError, *BROKEN_FILE):
            return 0

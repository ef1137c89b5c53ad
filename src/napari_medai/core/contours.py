"""Contours: regions drawn as planar polygons in the patient, as radiotherapy plans them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from napari_medai.core.errors import GeometryError, InputError
from napari_medai.core.provenance import Provenance
from napari_medai.core.result import Color

# What DICOM calls closed planar (or its exclusive-or variant), open planar, open non-planar and point
# (0006,0042 Contour Geometric Type; PS3.3, C.8.8.6).
Kind = Literal["closed", "xor", "open", "open-nonplanar", "point"]
KINDS: tuple[Kind, ...] = ("closed", "xor", "open", "open-nonplanar", "point")
# Points of one contour lie in a plane to this distance: contours are stored as decimal strings of at most
# 16 characters, often rounded to 0.01 mm, and a tenth of a millimetre is far below any slice spacing.
PLANAR_TOLERANCE_MM = 0.1


@dataclass(frozen=True, eq=False)
class Contour:
    """One line in the patient.

    Attributes
    ----------
    points : (n, 3) float64 array
        World (z, y, x) in mm; a closed contour does not repeat its first point.
    kind : {"closed", "xor", "open", "open-nonplanar", "point"}
        ``"xor"`` contours of one plane are combined by exclusive or, ``"closed"`` ones by union except that a
        contour which runs back along a line to itself (a keyhole) leaves out what it encloses twice.
    image_uid : str
        SOP Instance UID of the image it was drawn on, if one is named.
    frame : int
        Number (from 1) of the frame of that image; 0 where it has one frame only.
    """

    points: NDArray[np.float64]
    kind: Kind = "closed"
    image_uid: str = ""
    frame: int = 0

    def __post_init__(self) -> None:
        points = np.array(self.points, dtype=np.float64)
        if points.ndim != 2 or points.shape[1] != 3 or not len(points):
            raise GeometryError(f"A contour of shape {points.shape} was given; (n, 3) points with n > 0 are needed.")
        if not np.isfinite(points).all():
            raise GeometryError("A contour holds coordinates that are not finite.")
        if self.kind not in KINDS:
            raise InputError(f"A contour of kind {self.kind!r} was given; use one of {', '.join(KINDS)}.")
        points.setflags(write=False)
        object.__setattr__(self, "points", points)

    @property
    def encloses(self) -> bool:
        """Whether it has an inside: a closed line of three points or more."""
        return self.kind in ("closed", "xor") and len(self.points) >= 3

    def plane(self) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
        """The plane nearest to the points: a point in it, its unit normal (z, y, x), and the largest distance, mm."""
        return fit_plane(self.points)

    def area_mm2(self) -> float:
        """Area enclosed in square millimetres, 0 if the contour has no inside."""
        if not self.encloses:
            return 0.0
        offsets = self.points - self.points.mean(axis=0)
        return float(np.linalg.norm(np.cross(offsets, np.roll(offsets, -1, axis=0)).sum(axis=0)) / 2)


@dataclass(frozen=True, eq=False)
class Region:
    """A named region of interest.

    Attributes
    ----------
    number : int
        ROI Number, 1 or more; becomes the label value.
    name : str
        What it is called.
    contours : tuple of Contour
        In any order.
    color : (r, g, b) or None
        In 0..1; None lets the viewer choose.
    kind : str
        RT ROI Interpreted Type (3006,00A4), e.g. ``"ORGAN"``; empty if not known.
    """

    number: int
    name: str
    contours: tuple[Contour, ...] = ()
    color: Color | None = None
    kind: str = ""


@dataclass(frozen=True, eq=False)
class Contours:
    """Regions of interest in one frame of reference. No `Result` of a stage: it lies on no grid of its own.

    Attributes
    ----------
    regions : tuple of Region
        Numbers are unique.
    frame_of_reference_uid : str
        The patient coordinate system they are drawn in.
    series_uid : str
        Series Instance UID of the images they were drawn on, if one is named.
    source : str
        Path from which those images can be opened (the scan, when contours are to be saved), or of the file.
    name : str
        What the layer or file is called; never patient identity.
    findings : tuple of str
        What is unusual.
    provenance : Provenance, optional
        How they were made.

    Raises
    ------
    InputError
        Two regions have one number, or a number is below 1.
    """

    regions: tuple[Region, ...]
    frame_of_reference_uid: str = ""
    series_uid: str = ""
    source: str = ""
    name: str = "contours"
    findings: tuple[str, ...] = ()
    provenance: Provenance | None = None

    def __post_init__(self) -> None:
        numbers = [region.number for region in self.regions]
        if len(set(numbers)) != len(numbers) or any(n < 1 for n in numbers):
            raise InputError(f"Regions are numbered {numbers}; each needs a number of its own, 1 or more.")

    @property
    def names(self) -> dict[int, str]:
        """Name of each region by its number."""
        return {region.number: region.name for region in self.regions}

    @property
    def colors(self) -> dict[int, Color]:
        """Colour of each region that has one, by its number."""
        return {region.number: region.color for region in self.regions if region.color is not None}


def fit_plane(points: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """The plane of least squares through points (n, 3).

    Returns
    -------
    centre : (3,) array
        Mean of the points.
    normal : (3,) array
        Unit vector; its largest component is positive. For fewer than three points, or points on a line, one of
        the directions that fit.
    distance : float
        Largest distance of a point from the plane.
    """
    points = np.asarray(points, dtype=np.float64)
    centre = points.mean(axis=0)
    _, _, axes = np.linalg.svd(points - centre, full_matrices=True)
    normal = axes[2] * (1 if axes[2][np.argmax(np.abs(axes[2]))] > 0 else -1)
    return centre, normal, float(np.abs((points - centre) @ normal).max())


def common_normal(contours: Sequence[Contour]) -> NDArray[np.float64] | None:
    """The unit normal (z, y, x) that closed contours share, weighted by their areas; None without any."""
    total = np.zeros(3)
    for contour in contours:
        if contour.encloses:
            offsets = contour.points - contour.points.mean(axis=0)
            normal = np.cross(offsets, np.roll(offsets, -1, axis=0)).sum(axis=0)
            total += normal if normal @ total >= 0 else -normal
    length = float(np.linalg.norm(total))
    return total / length if length > 0 else None

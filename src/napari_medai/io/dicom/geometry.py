"""From the positions of parallel planes to one affine, with everything unusual said.

Pure functions on arrays; positions are DICOM's (x, y, z) in mm, LPS.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from napari_medai.core.geometry import SAME_PLACE_MM, Affine, as_affine

Vector = NDArray[np.float64]

# Two planes lie at one place below this distance: positions carry four decimals or more.
SAME_SLICE_MM = 0.01
# Slice distances are equal to this fraction of the distance (or SAME_SLICE_MM, if larger).
SPACING_TOLERANCE = 0.01
# Distances are multiples of a smallest one, with slices missing, to this fraction of it.
MULTIPLE_TOLERANCE = 0.1
# A stack counts as tilted above this angle between its axis and the planes' normal, in degrees …
TILT_DEGREES = 0.2
# … if its last plane is also shifted sideways by this much, in pixels.
TILT_PIXELS = 0.5
# Directions of planes of one stack agree to this (0.06 degrees).
SAME_DIRECTION = 1e-3

# What is done about an unusual stack that is not repaired; a repair puts its own words in their place.
LEFT_BLANK = "they are left blank."
UNEVEN = "their mean is used,"
SHEARED = "every voxel is where it was measured, on a sheared grid."


@dataclass(frozen=True, eq=False)
class Arrangement:
    """How planes at sorted positions form a regular stack.

    Attributes
    ----------
    slots : tuple of int
        Slice number of each plane; numbers left out are missing slices.
    count : int
        Number of slices, the missing ones included.
    step : (3,) array
        From one slice to the next, (x, y, z) in mm.
    origin : (3,) array
        Position of slice 0.
    findings : tuple of str
        What is unusual.
    distances : tuple of float
        Of each slice from the first one along the stack, as measured, in mm.
    irregular : bool
        Whether the distances do not fit a regular stack, with or without missing slices.
    tilted : bool
        Whether the stack's axis and the planes' normal differ.
    """

    slots: tuple[int, ...]
    count: int
    step: Vector
    origin: Vector
    findings: tuple[str, ...]
    distances: tuple[float, ...] = (0.0,)
    irregular: bool = False
    tilted: bool = False

    @property
    def missing(self) -> tuple[int, ...]:
        """Numbers of the missing slices."""
        return tuple(sorted(set(range(self.count)) - set(self.slots)))


def places_of(distances: Vector) -> NDArray[np.int64]:
    """Number of the place, from 0 upwards, of each distance along the normal.

    Distances closer than `SAME_SLICE_MM` to their lower neighbour share its place.
    """
    order = np.argsort(distances, kind="stable")
    steps = np.diff(distances[order]) > SAME_SLICE_MM
    numbers = np.concatenate([[0], np.cumsum(steps)])
    places = np.empty(len(distances), dtype=np.int64)
    places[order] = numbers
    return places


def runs_of(distances: Vector) -> list[slice]:
    """Cut sorted distances where so many slices are missing that the parts are images of their own."""
    if len(distances) < 3:
        return [slice(0, len(distances))]
    gaps = np.diff(distances)
    typical = _median(gaps)
    cuts = [int(n) + 1 for n in np.flatnonzero(gaps > typical * (len(distances) + 1.5))]
    return [slice(a, b) for a, b in zip([0, *cuts], [*cuts, len(distances)], strict=True)]


def arrange(positions: Vector, normal: Vector, thickness: float | None, pixel_mm: float) -> Arrangement:
    """Fit a regular stack to planes sorted along their normal.

    Parameters
    ----------
    positions : (n, 3) array
        Of the planes' first pixels, along the normal in rising order.
    normal : (3,) array
        Unit vector across the planes.
    thickness : float or None
        Slice distance that the header states, for a single plane.
    pixel_mm : float
        Size of a pixel, the measure for a sideways shift.
    """
    distances = positions @ normal
    n = len(positions)
    if n == 1:
        return Arrangement((0,), 1, normal * (thickness or 1.0), positions[0], ())
    findings: list[str] = []
    gaps = np.diff(distances)
    slots, irregular = _slots(gaps)
    count = slots[-1] + 1
    step = (positions[-1] - positions[0]) / (count - 1)
    fitted = positions[0] + np.outer(slots, step)
    off = float(np.sqrt(((positions - fitted) ** 2).sum(axis=1)).max())
    if irregular:
        findings.append(
            f"The distance of slices varies from {gaps.min():.3f} to {gaps.max():.3f} mm; {UNEVEN} "
            f"and slices lie up to {off:.3f} mm from where they are shown."
        )
    elif count > n:
        missing = sorted(set(range(count)) - set(slots))
        findings.append(
            f"{len(missing)} of {count} slices are missing (counted from 0: {ranges(missing)}); {LEFT_BLANK}"
        )
    if not irregular and off > SAME_PLACE_MM:
        findings.append(f"Slices are shifted by up to {off:.3f} mm from a regular stack.")
    sideways = step - normal * float(step @ normal)
    angle = float(np.degrees(np.arctan2(np.linalg.norm(sideways), abs(float(step @ normal)))))
    tilted = angle > TILT_DEGREES and np.linalg.norm(sideways) * (count - 1) > TILT_PIXELS * pixel_mm
    if tilted:
        findings.append(
            f"The slices are tilted by {angle:.1f} degrees against the axis of the stack (gantry tilt); {SHEARED}"
        )
    along = np.arange(count) * float(np.linalg.norm(step))
    if irregular:
        along = (distances - distances[0]) * float(np.linalg.norm(step)) / float(step @ normal)
    return Arrangement(
        slots, count, step, positions[0], tuple(findings), tuple(along.tolist()), irregular, bool(tilted)
    )


def _slots(gaps: Vector) -> tuple[tuple[int, ...], bool]:
    typical = _median(gaps)
    tolerance = max(SAME_SLICE_MM, SPACING_TOLERANCE * typical)
    plain = tuple(range(len(gaps) + 1))
    if np.abs(gaps - typical).max() <= tolerance:
        return plain, False
    base = float(gaps.min())
    multiples = np.round(gaps / base)
    if np.abs(gaps / base - multiples).max() <= MULTIPLE_TOLERANCE and multiples.sum() <= 2 * len(gaps) + 1:
        base = float(gaps.sum() / multiples.sum())
        if np.abs(gaps - multiples * base).max() <= max(SAME_SLICE_MM, MULTIPLE_TOLERANCE * base):
            return (0, *(int(n) for n in np.cumsum(multiples))), False
    return plain, True


def _median(values: Vector) -> float:
    """As numpy's, which takes ten times as long for a few hundred values."""
    ordered, half = np.sort(values), len(values) // 2
    return float(ordered[half] if len(values) % 2 else (ordered[half - 1] + ordered[half]) / 2)


def ranges(numbers: list[int], most: int = 8) -> str:
    """Numbers in rising order as text: ``"1-3, 7"``."""
    parts: list[str] = []
    start = previous = numbers[0]
    for n in [*numbers[1:], None]:
        if n is not None and n == previous + 1:
            previous = n
            continue
        parts.append(str(start) if start == previous else f"{start}-{previous}")
        if n is not None:
            start = previous = n
    return ", ".join(parts[:most]) + (" …" if len(parts) > most else "")


def stack_affine(origin: Vector, step: Vector, orientation: Vector, spacing: tuple[float, float]) -> Affine:
    """Affine (k, j, i) -> world (z, y, x) of a stack of planes.

    PS3.3 C.7.6.2.1.1 equation C.7.6.2.1-1, read backwards.

    Parameters
    ----------
    origin, step : (3,) arrays
        Position of the first slice and the way to the next, (x, y, z).
    orientation : (2, 3) array
        Unit vectors along a row and along a column.
    spacing : tuple of 2 floats
        Distance of rows and of columns in mm.

    Raises
    ------
    GeometryError
        The affine has no inverse.
    """
    affine = np.eye(4)
    affine[:3, 0] = step[::-1]
    affine[:3, 1] = orientation[1][::-1] * spacing[0]
    affine[:3, 2] = orientation[0][::-1] * spacing[1]
    affine[:3, 3] = origin[::-1]
    return as_affine(affine)

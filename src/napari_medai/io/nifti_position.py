"""Where a NIfTI image lies: sform, qform and units of its header, turned from RAS into zyx-LPS-backwards.

Clauses are those of the NIfTI-1.1 header, nifti1.h. This is the only place where the two worlds meet.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from napari_medai.core.errors import GeometryError
from napari_medai.core.geometry import SAME_PLACE_MM, Affine, as_affine, directions, from_ras

Transform = Literal["sform", "qform"]
# NIFTI_UNITS_METER, _MM, _MICRON (xyzt_units, three lowest bits) -> mm
_TO_MM = {1: 1e3, 2: 1.0, 3: 1e-3}
_MICRON = 3
# NIFTI_UNITS_SEC, _MSEC, _USEC -> s; _HZ, _PPM, _RADS
_SECONDS = {8: 1.0, 16: 1e-3, 24: 1e-6}
_SPECTRAL = {32: ("frequency", "Hz"), 40: ("shift", "ppm"), 48: ("angular frequency", "rad/s")}
# A voxel of a tenth of a millimetre or more is a scan of a body, whatever unit its header counts in.
_SMALLEST_SCAN_MM = 0.1
# Sizes of voxels that disagree by less are rounding.
_SIZE_TOLERANCE = 0.01
# nifti1.h rounds a quaternion whose b, c, d are longer than 1; up to here it is rounding, which is not told.
_LONGEST_QUATERNION = 1 + 1e-4


def position(header: Any, record: Mapping[str, Any], choice: Transform, findings: list[str]) -> tuple[Affine, str, int]:
    """The affine of the array with its axes reversed, its unit, and the code of the transform it was taken from.

    Parameters
    ----------
    header : nibabel header
        With the sizes of an image.
    record : mapping
        What we wrote into the file, if we did.
    choice : {"sform", "qform"}
        Which transform, where the header holds both; the other one is taken where it is missing or no transform.
    findings : list of str
        Added to.

    Returns
    -------
    affine : (4, 4) array
        (k, j, i) -> world (z, y, x).
    units : {"mm", "um", "pixel"}
        Of the world. Micrometres stay where voxels are smaller than 0.1 mm; all else is turned into mm.
    code : int
        1 scanner, 2 aligned, 3 Talairach, 4 MNI 152, 5 template; 0 where the place is a guess.
    """
    steps = _steps(header, findings)
    found = [(name, affine, code) for name, affine, code in _transforms(header, steps, findings)]
    guess = not found
    if guess:
        found = [("size", _centred(header, steps), 0)]
    unit, factor = _units(header, record, found[0][1], findings)
    scale = np.diag([factor, factor, factor, 1.0])
    placed = {name: (scale @ affine, code) for name, affine, code in found}
    chosen = choice if choice in placed else found[0][0]
    if guess:
        findings.append("the header names no position: left and right are a guess (first axis towards the left)")
    elif chosen != choice and choice == "qform":
        findings.append("the header has no qform; the sform was taken")
    if len(placed) == 2:
        findings += _differences(header, placed["sform"][0], placed["qform"][0], chosen, unit)
    affine, code = placed[chosen]
    columns = np.sqrt((affine[:3, :3] ** 2).sum(axis=0)) / factor
    used = min(3, int(header["dim"][0]))
    if (np.abs(columns - steps) > _SIZE_TOLERANCE * steps)[:used].any():
        findings.append(
            f"the {chosen} gives voxels of {_sizes(columns * factor)} {unit}, the header's pixdim "
            f"{_sizes(steps * factor)} {unit}; the {chosen} was taken"
        )
    return from_ras(affine), unit, code


def time_axis(header: Any, count: int, findings: list[str]) -> dict[str, Any]:
    """What meta says of the fourth dimension: ``axis_t``, and ``frame_seconds`` where it is time.

    Parameters
    ----------
    header : nibabel header
        As read.
    count : int
        Number of time points.
    findings : list of str
        Added to.
    """
    code = int(header["xyzt_units"]) & 0x38
    step, start = float(header["pixdim"][4]), float(header["toffset"])
    start = start if math.isfinite(start) else 0.0
    if code in _SECONDS:
        name, unit, factor = "t", "s", _SECONDS[code]
    elif code in _SPECTRAL:
        (name, unit), factor = _SPECTRAL[code], 1.0
    else:
        if math.isfinite(step) and step > 0 and step != 1:
            findings.append(f"the header gives {step:g} between time points without a unit; it was left out")
        return {}
    if not math.isfinite(step * factor) or step <= 0:
        findings.append("the distance of time points in the header is not a positive number; it was left out")
        return {}
    values = tuple(round((start + n * step) * factor, 9) for n in range(count))
    meta: dict[str, Any] = {"axis_t": {"name": name, "unit": unit, "values": values}}
    if name == "t":
        meta["frame_seconds"] = step * factor
    return meta


def _steps(header: Any, findings: list[str]) -> NDArray[np.float64]:
    """pixdim of x, y, z, each positive."""
    steps = np.asarray(header["pixdim"][1:4], dtype=float)
    used = min(3, int(header["dim"][0]))
    if (np.isfinite(steps) & (steps < 0))[:used].any():
        findings.append("a voxel size in the header is negative; its magnitude was taken")
    steps = np.abs(steps)
    sound = np.isfinite(steps) & (steps > 0)
    if not sound[:used].all():
        findings.append("a voxel size in the header is 0 or not a number; 1 was taken")
    return np.where(sound, steps, 1.0)


def _transforms(
    header: Any, steps: NDArray[np.float64], findings: list[str]
) -> list[tuple[str, NDArray[np.float64], int]]:
    found = []
    for name in ("sform", "qform"):
        code = int(header[f"{name}_code"])
        if code <= 0:
            continue
        affine = _sform(header) if name == "sform" else _qform(header, steps, findings)
        try:
            as_affine(affine)
        except GeometryError:
            findings.append(f"the header's {name} is not a transform and was left out")
            continue
        found.append((name, affine, code))
    return found


def _sform(header: Any) -> NDArray[np.float64]:
    return np.array([*(header[f"srow_{axis}"] for axis in "xyz"), (0, 0, 0, 1)], dtype=float)


def _qform(header: Any, steps: NDArray[np.float64], findings: list[str]) -> NDArray[np.float64]:
    """METHOD 2 of nifti1.h: a rotation from three parts of a unit quaternion, sizes, a flip and an offset."""
    b, c, d = (float(header[f"quatern_{part}"]) for part in "bcd")
    length = b * b + c * c + d * d
    if not math.isfinite(length):
        return np.full((4, 4), np.nan)
    a = math.sqrt(max(0.0, 1 - length))
    if length > 1:
        b, c, d = (part / math.sqrt(length) for part in (b, c, d))
        if length > _LONGEST_QUATERNION:
            findings.append("the rotation of the qform is not a unit quaternion (b² + c² + d² > 1); it was made one")
    turn = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    flip = -1.0 if float(header["pixdim"][0]) < 0 else 1.0  # 0 counts as 1
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag(steps * (1, 1, flip))
    affine[:3, 3] = [float(header[f"qoffset_{axis}"]) for axis in "xyz"]
    return affine


def _centred(header: Any, steps: NDArray[np.float64]) -> NDArray[np.float64]:
    # METHOD 1 of nifti1.h names no directions; first axis to the left is what Analyze, SPM, FSL and nibabel take
    affine = np.diag([-steps[0], steps[1], steps[2], 1.0])
    affine[:3, 3] = -affine[:3, :3] @ ((np.array([int(n) for n in header["dim"][1:4]]) - 1) / 2)
    return affine


def _units(
    header: Any, record: Mapping[str, Any], affine: NDArray[np.float64], findings: list[str]
) -> tuple[str, float]:
    """The unit of the world, and the factor that turns the header's numbers into it."""
    code = int(header["xyzt_units"]) & 0x07
    if code not in _TO_MM:
        if "units" in record:
            return str(record["units"]), 1.0
        findings.append("the header names no unit of length; millimetres were taken")
        return "mm", 1.0
    factor = _TO_MM[code]
    if code == _MICRON:
        sizes = np.sqrt((affine[:3, :3] ** 2).sum(axis=0)) * factor
        if record.get("units") == "um" or sizes.min() < _SMALLEST_SCAN_MM:
            return "um", 1.0
    if factor != 1:
        findings.append(f"the header gives {'micrometres' if code == _MICRON else 'metres'}; turned into mm")
    return "mm", factor


def _differences(header: Any, sform: Affine, qform: Affine, chosen: str, unit: str) -> list[str]:
    sizes = [int(n) for n in header["dim"][1:4]]
    ends = np.array(np.meshgrid(*[(0, n - 1) for n in sizes], indexing="ij")).reshape(3, -1)
    ends = np.vstack([ends, np.ones(8)])
    apart = float(np.linalg.norm(((sform - qform) @ ends)[:3], axis=0).max())
    if apart <= SAME_PLACE_MM:
        return []
    cosines = (directions(sform) * directions(qform)).sum(axis=0)
    turned = float(np.degrees(np.arccos(np.clip(cosines, -1, 1))).max())
    other = "qform" if chosen == "sform" else "sform"
    return [
        f"sform and qform differ by up to {apart:.2f} {unit} and {turned:.1f} degrees; the {chosen} was taken "
        f'(affine="{other}" takes the other)'
    ]


def _sizes(steps: NDArray[np.float64]) -> str:
    return " x ".join(f"{step:.4g}" for step in steps)

"""Frames without functional groups: what runs along a film, scintigram or tomogram, and how large pixels are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from napari_medai.core.errors import MedaiError
from napari_medai.io.dicom.details import details
from napari_medai.io.dicom.headers import Header, integers, items, number

# What the frames of a scintigram are counted by (PS3.3 C.8.4.8), and what each is called.
_VECTORS = {
    "EnergyWindowVector": "energy window",
    "DetectorVector": "detector",
    "PhaseVector": "phase",
    "RotationVector": "rotation",
    "RRIntervalVector": "R-R interval",
    "TimeSlotVector": "time slot",
    "AngularViewVector": "view",
}
_SLICES = "SliceVector"
# Ultrasound regions: a two-dimensional picture of tissue, measured in cm (PS3.3 C.8.5.5)
_PICTURE, _CENTIMETRES = 1, 3
_SAME = 1e-3

Axis = tuple[str, str, tuple[float, ...]]


@dataclass(frozen=True)
class Counted:
    """How the frames of a scintigram are counted.

    Attributes
    ----------
    steps : tuple of int
        For each frame, which image of its place it is, from 0.
    slices : tuple of int
        For each frame, which slice it is, from 0; all 0 if the frames are no slices.
    axis : Axis
        What the steps are: name, unit, values.
    """

    steps: tuple[int, ...]
    slices: tuple[int, ...]
    axis: Axis


def counted(header: Header, count: int) -> Counted | None:
    """What the vectors of a scintigram say of its frames; None if there is none, or they leave frames the same.

    Parameters
    ----------
    header : Header
        Of the file.
    count : int
        Number of frames.
    """
    vectors = {keyword: integers(header.fields, keyword) for keyword in (*_VECTORS, _SLICES)}
    varying = {k: v for k, v in vectors.items() if len(v) == count and len(set(v)) > 1}
    if not varying:
        return None
    ranked = varying.pop(_SLICES, (1,) * count)
    low = min(ranked)
    slices = tuple(n - low for n in ranked)
    keys = list(zip(*varying.values(), strict=True)) if varying else [()] * count
    order = sorted(set(keys))
    steps = tuple(order.index(key) for key in keys)
    if len(set(zip(steps, slices, strict=True))) < count:
        return None
    names = [_VECTORS[k] for k in varying]
    values = tuple(float(key[0]) for key in order) if len(names) == 1 else tuple(float(n) for n in range(len(order)))
    return Counted(steps, slices, (" and ".join(names), "", values))


def film_times(header: Header, count: int) -> Axis | None:
    """When the frames of a film were taken, in seconds from the first; None if the header does not say.

    Frame Time Vector (0018,1065), Frame Time (0018,1063), then the rates at which it is to be shown.
    """
    steps = header.numbers("FrameTimeVector")
    if len(steps) == count and all(math.isfinite(s) and s >= 0 for s in steps) and sum(steps[1:]) > 0:
        return "t", "s", tuple(moment / 1000 for moment in accumulate((0.0, *steps[1:])))
    step = _positive(header.number("FrameTime"))
    if step is None:
        rate = _positive(header.number("CineRate")) or _positive(header.number("RecommendedDisplayFrameRate"))
        step = None if rate is None else 1000 / rate
    return None if step is None else ("t", "s", tuple(n * step / 1000 for n in range(count)))


def _positive(found: float | None) -> float | None:
    return found if found is not None and math.isfinite(found) and found > 0 else None


def ultrasound_spacing(header: Header) -> tuple[float, float] | None:
    """Distance of rows and of columns in mm by the calibrated regions, if all pictures of tissue agree on it."""
    if not header.has("SequenceOfUltrasoundRegions"):
        return None
    try:
        regions = items(details(header), "SequenceOfUltrasoundRegions")
    except MedaiError:
        return None
    found = {_region(region) for region in regions if number(region, "RegionSpatialFormat") == _PICTURE}
    if not found or None in found:
        return None
    sizes = [size for size in found if size is not None]
    rows, columns = sizes[0]
    alike = all(abs(r / rows - 1) < _SAME and abs(c / columns - 1) < _SAME for r, c in sizes)
    return (rows, columns) if alike else None


def _region(region: Any) -> tuple[float, float] | None:
    sizes = []
    for axis in "YX":
        step = number(region, f"PhysicalDelta{axis}")
        unit = number(region, f"PhysicalUnits{axis}Direction")
        if unit != _CENTIMETRES or step is None or not math.isfinite(step) or step == 0:
            return None
        sizes.append(abs(step) * 10)
    return sizes[0], sizes[1]


def size_findings(header: Header) -> tuple[str, ...]:
    """What is to be known of the size of the pixels of an image that is no slice."""
    if header.numbers("PixelSpacing"):
        return ()
    if header.numbers("ImagerPixelSpacing"):
        factor = _positive(header.number("EstimatedRadiographicMagnificationFactor"))
        known = f" by an estimated factor of {factor:g}" if factor is not None else ""
        return (f"The pixel size is that at the detector; the patient is magnified on it{known}.",)
    if header.has("SequenceOfUltrasoundRegions") and ultrasound_spacing(header) is None:
        return ("The regions of the ultrasound image are not calibrated alike; its pixels have no size.",)
    return ()

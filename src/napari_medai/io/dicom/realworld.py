"""Real-world values: the mapping from stored values to quantities (PS3.3 C.7.6.16.2.11), and Philips' own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_medai.core.errors import MedaiError
from napari_medai.io.dicom.details import details
from napari_medai.io.dicom.headers import Header, items, number, numbers, text

# Philips MR (private creator "Philips MR Imaging DD 001"): scale slope, and where enhanced files keep it for a frame
_SCALE_SLOPE, _FRAME_GROUP = 0x2005100E, 0x2005140F
# Some units in words that do not say more than the number itself.
_NO_UNITS = ("1", "{ratio}", "no units")


@dataclass(frozen=True, eq=False)
class RealWorld:
    """Stored value -> quantity.

    Attributes
    ----------
    slope, intercept : float
        quantity = stored * slope + intercept.
    unit : str
        UCUM code, empty without a unit.
    name : str
        What the quantity is, where the header says so.
    table : tuple (int, array) or None
        First stored value and entries, in place of slope and intercept.
    others : int
        Number of further mappings of the same values, to other units.
    """

    slope: float
    intercept: float
    unit: str
    name: str = ""
    table: tuple[int, NDArray[np.float64]] | None = None
    others: int = 0


def frame_mapping(group: Any, shared: Any, rescale: tuple[float, float]) -> RealWorld | None:
    """The mapping in the functional groups of a frame, if there is one.

    Parameters
    ----------
    group, shared : item or None
        Functional groups of the frame, and of all frames.
    rescale : tuple of 2 floats
        Slope and intercept of the frame, for Philips' scale.
    """
    for source in (group, shared):
        if source is not None:
            found = _mapping(items(source, "RealWorldValueMappingSequence"))
            if found is not None:
                return found
    if group is not None:
        private = next(iter(items(group, _FRAME_GROUP)), None)
        if private is not None:
            return _philips(number(private, _SCALE_SLOPE), rescale)
    return None


def file_mapping(header: Header, rescale: tuple[float, float]) -> RealWorld | None:
    """The mapping of a classic file, if there is one; its elements are read only now."""
    if header.has("RealWorldValueMappingSequence"):
        try:
            found = _mapping(items(details(header), "RealWorldValueMappingSequence"))
        except MedaiError:
            found = None
        if found is not None:
            return found
    creator = text(header.fields, 0x20050010).upper()
    return _philips(number(header.fields, _SCALE_SLOPE), rescale) if creator.startswith("PHILIPS MR IMAGING") else None


def _philips(scale: float | None, rescale: tuple[float, float]) -> RealWorld | None:
    # Chenevert et al., "Errors in Quantitative Image Analysis due to Platform-Dependent Image Scaling",
    # Transl Oncol 2014;7:65-71: FP = DV / (RS * SS), DV = PV * RS + RI
    if scale is None or not math.isfinite(scale) or scale == 0:
        return None
    slope, intercept = rescale
    both = slope * scale
    if both == 0 or not all(map(math.isfinite, (1 / scale, intercept / both))):
        return None
    return RealWorld(1 / scale, intercept / both, "", "Philips floating point value")


def _mapping(found: Any) -> RealWorld | None:
    mappings = [m for m in map(_one, found) if m is not None]
    if not mappings:
        return None
    first = mappings[0]
    return RealWorld(first.slope, first.intercept, first.unit, first.name, first.table, len(mappings) - 1)


def _one(item: Any) -> RealWorld | None:
    unit_item = next(iter(items(item, "MeasurementUnitsCodeSequence")), None)
    unit = "" if unit_item is None else text(unit_item, "CodeValue")
    name = text(item, "LUTExplanation") or text(item, "LUTLabel")
    name = " ".join(name.split())[:64]
    unit = "" if unit in _NO_UNITS else unit[:16]
    table = numbers(item, "RealWorldValueLUTData")
    first = number(item, "RealWorldValueFirstValueMapped")
    if table and first is not None and math.isfinite(first) and all(map(math.isfinite, table)):
        return RealWorld(1.0, 0.0, unit, name, (int(first), np.array(table)))
    slope, intercept = number(item, "RealWorldValueSlope"), number(item, "RealWorldValueIntercept")
    if slope is None or not math.isfinite(slope) or slope == 0:
        return None
    return RealWorld(slope, intercept if intercept is not None and math.isfinite(intercept) else 0.0, unit, name)

"""The numbers in a structured report, read with pydicom alone (PS3.3, C.17.3; PS3.16, TID 1500)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from napari_medai.core.errors import ReadError
from napari_medai.io.dicom.quiet import BROKEN_FILE, quietly

# Measurement Group, Tracking Identifier (PS3.16, DCM)
_GROUP, _TRACKING = "125007", "112039"


@dataclass(frozen=True)
class Group:
    """A group of measurements.

    Attributes
    ----------
    tracking : str
        Tracking Identifier.
    numbers : dict of str to float
        By the meaning of their concept names.
    verdicts : dict of str to str
        Qualitative evaluations, by the meaning of their concept names.
    """

    tracking: str
    numbers: dict[str, float]
    verdicts: dict[str, str]


def reported(path: Path) -> list[Group]:
    """The groups of measurements of a report, in its order.

    Raises
    ------
    ReadError
        The file is damaged.
    """
    from pydicom import dcmread

    try:
        with quietly():
            return list(_groups(dcmread(path)))
    except (OSError, RecursionError, *BROKEN_FILE) as error:
        raise ReadError(f"pydicom cannot read the report {path.name}: {type(error).__name__}.") from error


def _groups(item: Any) -> list[Group]:
    found: list[Group] = []
    for child in item.get("ContentSequence", ()):
        if child.ValueType == "CONTAINER" and _name(child).CodeValue == _GROUP:
            found.append(_group(child))
        else:
            found += _groups(child)
    return found


def _name(item: Any) -> Any:
    return item.ConceptNameCodeSequence[0]


def _group(item: Any) -> Group:
    tracking, numbers, verdicts = "", {}, {}
    for child in item.ContentSequence:
        meaning = str(_name(child).CodeMeaning) if "ConceptNameCodeSequence" in child else ""
        if child.ValueType == "TEXT" and _name(child).CodeValue == _TRACKING:
            tracking = str(child.TextValue)
        elif child.ValueType == "NUM":
            numbers[meaning] = float(child.MeasuredValueSequence[0].NumericValue)
        elif child.ValueType == "CODE":
            verdicts[meaning] = str(child.ConceptCodeSequence[0].CodeMeaning)
    return Group(tracking, numbers, verdicts)

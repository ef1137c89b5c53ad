"""The record that goes into the header of a file we write: what the format itself has no field for."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from napari_medai.core.volume import UNITS, Volume

# the key by which a reader knows the record; the number is its version
KEY = "napari_medai"
VERSION = 1
# what is read back into Volume.meta
_FLAGS = ("is_labels", "label_names", "label_colors", "provenance", "window", "frame_seconds")


def record_of(volume: Volume, extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What a file has to remember of a volume beyond pixels and position.

    Parameters
    ----------
    volume : Volume
        To be written.
    extra : mapping, optional
        Of a result: ``label_names``, ``label_colors``, ``provenance`` …

    Returns
    -------
    dict
        Plain values, ready for JSON; no field of it can name a patient.
    """
    record: dict[str, Any] = {KEY: VERSION, "axes": volume.axes, "units": volume.units}
    if volume.modality:
        record["modality"] = volume.modality
    for key in ("is_labels", "label_names", "label_colors", "window", "frame_seconds"):
        if volume.meta.get(key):
            record[key] = volume.meta[key]
    record |= {key: value for key, value in (extra or {}).items() if value not in (None, "", {}, ())}
    for key in ("label_names", "label_colors"):
        if key in record:
            record[key] = {str(int(value)): item for value, item in dict(record[key]).items()}
    return record


def dump(record: Mapping[str, Any]) -> str:
    """JSON on one line, ASCII only, so that it fits any header."""
    return json.dumps(record, default=_plain)


def load(text: str) -> dict[str, Any]:
    """A record out of a header; empty if the text is not one. Values of a wrong kind are left out."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    if not isinstance(found, dict) or found.get(KEY) != VERSION:
        return {}
    checks: dict[str, Callable[[Any], bool]] = {
        "axes": lambda v: isinstance(v, str),
        "units": lambda v: v in UNITS,
        "modality": lambda v: isinstance(v, str) and len(v) <= 16,
        "is_labels": lambda v: isinstance(v, bool),
        "provenance": lambda v: isinstance(v, dict),
        "affine": lambda v: isinstance(v, list),
        "window": lambda v: _numbers(v, 2),
        "frame_seconds": lambda v: _numbers([v], 1),
    }
    record = {key: found[key] for key, fits in checks.items() if key in found and fits(found[key])}
    names, colors = found.get("label_names"), found.get("label_colors")
    if isinstance(names, dict):
        record["label_names"] = {int(k): v for k, v in names.items() if _whole(k) and isinstance(v, str)}
    if isinstance(colors, dict):
        record["label_colors"] = {int(k): tuple(v) for k, v in colors.items() if _whole(k) and _numbers(v, 3)}
    if "window" in record:
        record["window"] = tuple(record["window"])
    return record


def meta_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a record that goes into `Volume.meta`."""
    return {key: record[key] for key in _FLAGS if key in record}


def _whole(text: str) -> bool:
    return text.lstrip("-").isdecimal()


def _numbers(value: Any, count: int) -> bool:
    return isinstance(value, list) and len(value) == count and all(isinstance(v, int | float) for v in value)


def _plain(value: Any) -> Any:
    """numpy scalars and arrays, tuples inside mappings and the like."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    return str(value)

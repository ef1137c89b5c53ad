"""What may be repaired when a series is opened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from napari_medai.core.errors import ParamsError

# What `repair=` and `--repair` take.
REPAIRS: Mapping[str, str] = MappingProxyType(
    {
        "tilt": "shift the slices of a tilted gantry into an upright stack",
        "missing": "interpolate missing slices between their neighbours",
        "spacing": "resample slices at irregular distances to their median distance",
        "duplicates": "of slices at one place that nothing but their time tells apart, keep the latest",
        "mosaic": "lay out the slices of a mosaic as the scan protocol has them",
    }
)


def checked(names: Sequence[str]) -> tuple[str, ...]:
    """The names of repairs, each once.

    Raises
    ------
    ParamsError
        A name is not in `REPAIRS`.
    """
    names = (names,) if isinstance(names, str) else tuple(names)
    unknown = sorted(set(names) - set(REPAIRS))
    if unknown:
        known = "\n".join(f"  {name}: {what}" for name, what in REPAIRS.items())
        raise ParamsError(f"There is no repair {', '.join(map(repr, unknown))}. Known are:\n{known}")
    return tuple(dict.fromkeys(names))

"""Values -> whole numbers of at most 16 bits, with the slope and intercept that give the values back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_medai.core.errors import NotFiniteError, WriteError

_SIGNED, _UNSIGNED = np.iinfo(np.int16), np.iinfo(np.uint16)


@dataclass(frozen=True, eq=False)
class Stored:
    """Pixels as they go into the file.

    Attributes
    ----------
    pixels : array of int16, uint16 or uint8
        Stored values.
    slope, intercept : float
        Value = slope * stored + intercept; both fit into 16 characters.
    error : float
        The largest difference that rounding makes; 0 if the values survive exactly.
    """

    pixels: NDArray[Any]
    slope: float = 1.0
    intercept: float = 0.0
    error: float = 0.0


def stored(values: NDArray[Any], *, rescales: bool = True, through_zero: bool = False) -> Stored:
    """Store values exactly where they are whole numbers of 16 bits, else in 65,535 even steps.

    Parameters
    ----------
    values : array
        Any numbers.
    rescales : bool
        Whether the object may have a slope and an intercept; if not, values are rounded to whole numbers.
    through_zero : bool
        Whether the intercept has to be 0, as in PET (PS3.3 C.8.9.4).

    Raises
    ------
    NotFiniteError
        A value is NaN or infinite.
    WriteError
        Without a slope, the values do not fit into 16 bits.
    """
    if values.dtype.kind not in "biuf":
        raise WriteError(f"Pixels of type {values.dtype} cannot be stored in a DICOM image.")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise NotFiniteError("The image holds values that are not finite, which DICOM cannot store; nothing was saved.")
    low, high = float(values.min()), float(values.max())
    whole = values if values.dtype.kind in "biu" else np.rint(values)
    exact = values.dtype.kind in "biu" or bool((whole == values).all())
    if exact or not rescales:
        for limits in (_UNSIGNED, _SIGNED):
            if round(low) >= limits.min and round(high) <= limits.max:
                return Stored(whole.astype(limits.dtype), error=0.0 if exact else 0.5)
        if exact and rescales and not through_zero and high - low <= _UNSIGNED.max:
            return Stored((whole.astype(np.int64) - int(low)).astype(np.uint16), 1.0, low)
    if not rescales:
        raise WriteError(
            f"Values from {low:g} to {high:g} do not fit into the 16 bits of this kind of image; save it as .nii.gz."
        )
    if through_zero:
        limits = _SIGNED if low < 0 else _UNSIGNED
        slope = _short(max(abs(low), abs(high)) / limits.max or 1.0, up=True)
        pixels = np.rint(values.astype(np.float64) / slope).astype(limits.dtype)
        return Stored(pixels, slope, 0.0, slope / 2)
    intercept = _short(low, up=False)
    slope = _short((high - intercept) / _UNSIGNED.max or 1.0, up=True)
    pixels = np.clip(np.rint((values.astype(np.float64) - intercept) / slope), 0, _UNSIGNED.max).astype(np.uint16)
    return Stored(pixels, slope, intercept, slope / 2)


def _short(value: float, *, up: bool) -> float:
    """The number that a decimal string of 16 characters holds, not below the value, or not above it."""
    rounded = float(f"{value:.9e}")
    if (rounded < value) if up else (rounded > value):
        rounded = float(f"{value + (1 if up else -1) * abs(value) * 1e-9:.9e}")
    return rounded

"""Numbers of 128 bits, which few machines compute with, as double precision.

NIfTI's DT_FLOAT128 does not say which. Both kinds that files hold are understood: IEEE 754 binary128 (PowerPC, ARM),
and the 80 bits of x86 in 16 bytes, of which the six highest mean nothing. They are told apart by which of the two
gives more numbers that double precision can hold.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

WIDE_BYTES = 16
_BIAS, _SPECIAL = 16383, 0x7FFF
_DOUBLE = 1075  # largest power of two in double precision, smallest ones included


def from_wide(block: NDArray[Any], parts: int, big: bool = False) -> NDArray[Any]:
    """Double precision of 128-bit numbers.

    Parameters
    ----------
    block : array of void
        Items of 16 bytes, or 32 for complex numbers.
    parts : {1, 2}
        Whether an item is one real number or a pair.
    big : bool
        Whether the highest byte comes first.

    Returns
    -------
    array of float64 or complex128
        Of the same shape; numbers too large for it are infinite.
    """
    octets = np.ascontiguousarray(block).view(np.uint8).reshape(*block.shape, parts, WIDE_BYTES)
    words = np.ascontiguousarray(octets[..., ::-1] if big else octets).view("<u8")
    low, high = words[..., 0], words[..., 1]
    written, hidden = high & np.uint64(0xFFFF), high >> np.uint64(48)
    # x86 writes the bit before the binary point out: it is set in every number but 0
    likely = _plausible(written) & (low >> np.uint64(63) == 1)
    short = int(likely.sum()) >= int(_plausible(hidden).sum())
    exponent = (written if short else hidden).astype(np.int64)
    sign = np.where(exponent & 0x8000, -1.0, 1.0)
    exponent &= _SPECIAL
    if short:
        fraction = low.astype(np.float64) * 2.0**-63
        whole = low << np.uint64(1) == 0
    else:
        upper = high & np.uint64((1 << 48) - 1)
        fraction = 1 + (upper.astype(np.float64) * 2.0**-48 + low.astype(np.float64) * 2.0**-112)
        whole = (upper == 0) & (low == 0)
    with np.errstate(over="ignore", under="ignore"):
        values = sign * np.ldexp(fraction, exponent - _BIAS)
    values[exponent == 0] = 0
    values[exponent == _SPECIAL] = np.nan
    infinite = (exponent == _SPECIAL) & whole
    values[infinite] = sign[infinite] * np.inf
    return values[..., 0] if parts == 1 else values[..., 0] + 1j * values[..., 1]


def _plausible(exponent: NDArray[np.uint64]) -> NDArray[np.bool_]:
    power = exponent.astype(np.int64) & _SPECIAL
    return np.asarray((np.abs(power - _BIAS) <= _DOUBLE) | (power == _SPECIAL))

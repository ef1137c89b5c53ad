"""A 2-D image of any size, read in rows: its grey levels and the size of its objects, as the whole image gives them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_medai.engine.objectsize import estimate_diameter, foreground_of, object_diameters, typical_diameter

# Rows that are read at once: chunks are no higher as a rule, and 30,000 columns of float32 are 120 MB
MOST_ROWS = 1024
# Edge of the windows that the typical diameter of a larger image is taken from, and how many there are: as a whole it
# would be thinned more than they are, and touching objects would run into one
_WINDOW, _WINDOWS = 2048, 9
# Longest side of the thinned image that tells where there are objects
_COARSE = 2048
# A window is looked at if it has at least this share of the objects of the fullest
_FULL_ENOUGH = 0.25
_PIECE_ROWS = 64


class SlideRows:
    """An image as one channel, (1, y, x), whose rows are asked for from its top to its end: each is decoded once.

    Parameters
    ----------
    array : (y, x) array
        numpy, dask or Zarr.
    """

    def __init__(self, array: Any) -> None:
        self.array = array
        self.shape = (1, int(array.shape[0]), int(array.shape[1]))
        chunks = getattr(array, "chunks", None)
        tall = np.max(chunks[0]) if chunks else MOST_ROWS
        self.height = int(np.clip(tall, min(256, self.shape[1]), MOST_ROWS))
        self._kept: dict[int, NDArray[np.float32]] = {}

    def __getitem__(self, key: tuple[slice, slice, slice]) -> NDArray[np.float32]:
        """A part of it, float32; slices without steps."""
        _, rows, columns = key
        start, stop, _ = rows.indices(self.shape[1])
        return self._rows(start, stop)[None, :, columns]

    def _rows(self, start: int, stop: int) -> NDArray[np.float32]:
        if isinstance(self.array, np.ndarray):
            return self.array[start:stop].astype(np.float32, copy=False)
        bands = range(start // self.height, (stop - 1) // self.height + 1)
        for old in [n for n in self._kept if n < bands[0] or n > bands[-1]]:
            del self._kept[old]
        for n in bands:
            if n not in self._kept:
                some = slice(n * self.height, (n + 1) * self.height)
                self._kept[n] = np.asarray(self.array[some], dtype=np.float32)
        parts = []
        for n in bands:
            first = n * self.height
            parts.append(self._kept[n][max(0, start - first) : stop - first])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def bands(self, check: Callable[[], None]) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """First row and rows of one band after the other; ``check`` may stop it."""
        for start in range(0, self.shape[1], self.height):
            check()
            yield start, self._rows(start, min(self.shape[1], start + self.height))

    def window(self, rows: slice, columns: slice) -> NDArray[np.float32]:
        """A part of the image, read on its own."""
        return np.asarray(self.array[rows, columns], dtype=np.float32)

    def clear(self) -> None:
        """Let go of what is kept."""
        self._kept.clear()


@dataclass(frozen=True)
class Survey:
    """What the whole image says of how it is to be prepared.

    Attributes
    ----------
    low, high : float
        Grey levels that become 0 and 1.
    diameter : float or None
        Typical diameter of its objects in pixels; none if nothing stands out.
    """

    low: float
    high: float
    diameter: float | None


def survey(
    rows: SlideRows, low: float, high: float, diameter: float = 0.0, check: Callable[[], None] = lambda: None
) -> Survey:
    """Grey levels at two percentiles, and the typical diameter, of an image that is read once or twice.

    Whole numbers of 16 bits are counted in one pass, other values in two (by the halves of their bits).

    Parameters
    ----------
    rows : SlideRows
        The image.
    low, high : float
        Percentiles in 0..100.
    diameter : float
        Typical diameter where it is known; 0 has it estimated.
    check : callable
        Called for every band; may raise `Cancelled`.
    """
    step = max(1, -(-max(rows.shape) // _COARSE))
    windows = not diameter and max(rows.shape) > _WINDOW
    coarse: list[NDArray[np.float32]] = []
    count: NDArray[np.int64] | None = np.zeros(1 << 16, np.int64)
    upper = np.zeros(1 << 16, np.int64)
    for start, band in rows.bands(check):
        if windows:
            coarse.append(band[(step // 2 - start) % step :: step, step // 2 :: step].copy())
        for piece in _pieces(band):
            count = _counted(count, piece) if count is not None else None
            upper += np.bincount(_ordered(piece) >> 16, minlength=1 << 16)
    size = rows.shape[1] * rows.shape[2]
    places = [(size - 1) * (q / 100) for q in (low, high)]
    ranks = sorted({rank for place in places for rank in (int(place), min(int(place) + 1, size - 1))})
    values = _of_whole_numbers(count, ranks) if count is not None else _of_bits(rows, upper, ranks, check)
    found = [_between(values, place, size) for place in places]
    if windows:
        diameter = _from_windows(rows, np.concatenate(coarse), step, check) or 0.0
    elif not diameter:
        diameter = estimate_diameter(rows.window(slice(None), slice(None))) or 0.0
    rows.clear()
    return Survey(found[0], found[1], diameter or None)


def _pieces(band: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    for start in range(0, len(band), _PIECE_ROWS):
        yield np.ascontiguousarray(band[start : start + _PIECE_ROWS]).ravel()


def _counted(count: NDArray[np.int64], piece: NDArray[np.float32]) -> NDArray[np.int64] | None:
    """With one more piece; none if it has values other than whole numbers of 16 bits."""
    if piece.min() < 0 or piece.max() > 65535:
        return None
    whole = piece.astype(np.uint16)
    if not np.array_equal(whole, piece):
        return None
    return np.asarray(count + np.bincount(whole, minlength=1 << 16))


def _ordered(values: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Bits of float32 as whole numbers in the order of the values."""
    bits = (values + np.float32(0)).view(np.uint32)  # -0 becomes 0
    return np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31)).astype(np.uint32, copy=False)


def _of_whole_numbers(count: NDArray[np.int64], ranks: list[int]) -> dict[int, np.float32]:
    upto = np.cumsum(count)
    return {rank: np.float32(np.searchsorted(upto, rank, side="right")) for rank in ranks}


def _of_bits(
    rows: SlideRows, upper: NDArray[np.int64], ranks: list[int], check: Callable[[], None]
) -> dict[int, np.float32]:
    """Values of given ranks; the upper halves of all values are counted, the lower ones of those that matter are."""
    upto = np.cumsum(upper)
    half = {rank: int(np.searchsorted(upto, rank, side="right")) for rank in ranks}
    lower = {n: np.zeros(1 << 16, np.int64) for n in set(half.values())}
    for _, band in rows.bands(check):
        for piece in _pieces(band):
            ordered = _ordered(piece)
            for n, counts in lower.items():
                counts += np.bincount(ordered[ordered >> 16 == n] & 0xFFFF, minlength=1 << 16)
    found: dict[int, np.float32] = {}
    for rank, n in half.items():
        before = int(upto[n] - upper[n])
        bits = (n << 16) | int(np.searchsorted(np.cumsum(lower[n]), rank - before, side="right"))
        plain = bits ^ (1 << 31) if bits >> 31 else bits ^ 0xFFFFFFFF
        found[rank] = np.array([plain], np.uint32).view(np.float32)[0]
    return found


def _between(values: dict[int, np.float32], place: float, size: int) -> float:
    """Linear interpolation between two ranks, in the precision of `numpy.percentile`."""
    below = int(place)
    a, b, share = values[below], values[min(below + 1, size - 1)], place - below
    step = np.float64(b - a)
    return float(b - step * (1 - share)) if share >= 0.5 else float(a + step * share)


def _from_windows(rows: SlideRows, coarse: NDArray[np.float32], step: int, check: Callable[[], None]) -> float | None:
    """Typical diameter out of windows that have objects; of a thinned slide single objects could not be told."""
    mask = foreground_of(coarse)
    if mask is None:
        return None
    edge = max(1, _WINDOW // step)
    down, across = -(-mask.shape[0] // edge), -(-mask.shape[1] // edge)
    shares = np.zeros((down, across))
    for n, m in np.ndindex(down, across):
        shares[n, m] = mask[n * edge : (n + 1) * edge, m * edge : (m + 1) * edge].sum() / edge**2
    order = np.argsort(-shares.ravel(), kind="stable")
    full = order[shares.ravel()[order] >= _FULL_ENOUGH * max(shares.max(), 1e-12)]
    chosen = full[np.unique(np.linspace(0, len(full) - 1, min(_WINDOWS, len(full))).round().astype(int))]
    found = []
    for cell in chosen:
        check()
        y, x = (int(n) * edge * step for n in np.unravel_index(cell, shares.shape))
        y, x = min(y, max(0, rows.shape[1] - _WINDOW)), min(x, max(0, rows.shape[2] - _WINDOW))
        found.append(object_diameters(rows.window(slice(y, y + _WINDOW), slice(x, x + _WINDOW))))
    diameters = np.concatenate(found) if found else np.zeros(0)
    return typical_diameter(diameters) if len(diameters) else None

"""From a network's scores to labels on the image's voxels, slab by slab.

Scores come plane after plane along the first axis of the network's grid; labels go out as soon as no later plane can
change them. Linear interpolation weighs with numbers that are not below zero, so where all voxels around a point say
the same class, that class wins there: only around borders between classes are scores interpolated at all. What is
held is the planes of scores that the next output plane still needs, never classes x volume.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from napari_medai.engine.resample import nearest_index, weights

How = Literal["linear", "sampled", "nearest"]
# Output voxels looked at in one go, and how many of them are interpolated in one go: what fits a core's cache
_VOXELS, _POINTS, _BLOCK = 2**18, 2**13, 2**14
# Scores that are interpolated in one go, at most
_SCORES = 2**21


@dataclass(frozen=True)
class Decide:
    """How labels come out of scores.

    Attributes
    ----------
    values : tuple of int
        Label of each channel.
    kind : {"argmax", "above"}
        The largest channel wins, of equal ones the first; or each channel counts where it is above its threshold,
        later ones lie on earlier ones, and where none is, the label is 0.
    thresholds : tuple of float
        In the scores' own scale. ``"above"``: one for each channel. ``"argmax"`` of two channels: one number, the
        second wins where it exceeds the first by more than that. Default: none, 0.
    """

    values: tuple[int, ...]
    kind: Literal["argmax", "above"] = "argmax"
    thresholds: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        wanted = (len(self.values),) if self.kind == "above" else ((0, 1) if len(self.values) == 2 else (0,))
        if not self.values or len(self.thresholds) not in wanted:
            raise ValueError(
                f"{len(self.thresholds)} thresholds for {len(self.values)} channels that are decided by {self.kind!r}"
            )

    def winners(self, scores: torch.Tensor) -> torch.Tensor:
        """What decides on labels, of scores (K, \\*spatial): the winning channel, or which channels count."""
        if self.kind == "above":
            limits = scores.new_tensor(self.thresholds)
            return scores > limits.reshape(-1, *(1,) * (scores.ndim - 1))
        return scores[1] - scores[0] > self.thresholds[0] if self.thresholds else scores.argmax(0)

    @property
    def table(self) -> NDArray[Any]:
        """Label of each winner, (channels + 1,): of the smallest type that holds all; the last is for none."""
        kind: Any = np.uint8 if max(self.values) < 256 else np.uint16 if max(self.values) < 2**16 else np.int32
        return np.array([*self.values, 0], dtype=kind if min(self.values) >= 0 else np.int32)


class Undo:
    """Undoes the resampling of an image on the scores of a network, and decides, slab by slab.

    Parameters
    ----------
    shape : sequence of 2 or 3 ints
        Of the network's grid. Slabs go along its first axis.
    out_shape : sequence of int
        Of the labels' grid; both grids cover the same box.
    decide : Decide
        How labels come out of scores.
    how : str or sequence of str
        For each axis ``"linear"`` (as `resample.resample`: averaging where the axis shrinks), ``"sampled"`` (linear
        without averaging, as nnU-Net) or ``"nearest"``. Default ``"linear"``.
    begin : int
        First plane of labels that is wanted; the first slab then begins at ``first_needed(begin)``. Default 0.
    half : bool
        Whether interpolated scores are rounded to half precision before they are compared, as nnU-Net does.

    Attributes
    ----------
    next : int
        Plane of scores with which the next slab begins.
    """

    def __init__(
        self,
        shape: Sequence[int],
        out_shape: Sequence[int],
        decide: Decide,
        *,
        how: How | Sequence[How] = "linear",
        begin: int = 0,
        half: bool = False,
    ) -> None:
        if len(shape) != len(out_shape) or len(shape) not in (2, 3):
            raise ValueError(f"{tuple(shape)} to {tuple(out_shape)}: two or three axes each are needed")
        ways: tuple[How, ...] = (how,) * len(shape) if isinstance(how, str) else tuple(how)
        self.shape, self.out_shape = tuple(int(n) for n in shape), tuple(int(n) for n in out_shape)
        self.decide, self.half = decide, half
        self._first, *planar = [_taps(*axis) for axis in zip(self.shape, self.out_shape, ways, strict=True)]
        # a plane of a 2-D image is a row
        self._rows, self._columns = planar if len(planar) == 2 else (_taps(1, 1, "nearest"), planar[0])
        self._plane = prod(self.shape[1:])
        self._done = begin
        self.next = self.first_needed(begin) if begin else 0
        self._held: list[tuple[int, NDArray[Any], NDArray[Any]]] = []  # first plane, scores (K, p, N), winners (p, N)

    def first_needed(self, plane: int) -> int:
        """The first plane of scores that a plane of labels and those after it need."""
        return int(self._first.index[plane:].min(initial=self.shape[0]))

    def add(self, scores: NDArray[Any] | torch.Tensor) -> Iterator[tuple[int, NDArray[Any]]]:
        """Take the next slab of scores and give the labels that are final with it.

        Parameters
        ----------
        scores : (K, d, \\*plane) float16 or float32 array or tensor
            The planes that follow those of the slab before. What is still needed of it is copied: it may be
            written over as soon as the labels have been taken.

        Yields
        ------
        (int, (e, \\*out_plane) integer array)
            First plane and labels, in ascending order.

        Raises
        ------
        ValueError
            The slab does not fit the grid or the number of channels.
        """
        array = scores.numpy(force=True) if isinstance(scores, torch.Tensor) else scores
        channels, depth = len(self.decide.values), array.shape[1]
        if array.shape != (channels, depth, *self.shape[1:]) or self.next + depth > self.shape[0]:
            raise ValueError(
                f"scores {array.shape} at plane {self.next} of {self.shape}; {channels} channels are decided on"
            )
        array = array.reshape(channels, depth, self._plane)
        if channels == 2 and self.decide.kind == "argmax" and not self.half:
            array = np.subtract(array[1:], array[:1], dtype=np.float32)
        self._held.append((self.next, array, self._winners(array)))
        self.next += depth
        chunk = max(1, _VOXELS // prod(self.out_shape[1:]))
        while (stop := min(self._final(), self._done + chunk)) > self._done:
            first, self._done = self._done, stop
            yield first, self._labels(first, stop)
        self._keep()

    def memory(self) -> tuple[int, int]:
        """Bytes that it holds between two slabs at most, and that it takes for a moment while it is given one."""
        channels = len(self.decide.values)
        channels = 1 if channels == 2 and self.decide.kind == "argmax" else channels
        taps = self._first.index.shape[1]
        planes = 0 if self.shape[0] == self.out_shape[0] else min(self.shape[0], taps + 1)
        held = planes * channels * self._plane * 4
        # scores of the voxels around, once more with channels last, and what becomes of them
        between = 12 * self._points(channels) * channels * self._taps if self._taps > 1 else 0
        return held, held + between

    @property
    def _taps(self) -> int:
        """Voxels that one is made of."""
        return prod(axis.index.shape[1] for axis in (self._first, self._rows, self._columns))

    def _points(self, channels: int) -> int:
        """How many voxels are interpolated in one go."""
        return max(_POINTS // 16, min(_POINTS, _SCORES // (channels * self._taps)))

    def finish(self) -> None:
        """Say that no slab is left.

        Raises
        ------
        ValueError
            Planes are missing.
        """
        if self._done < self.out_shape[0]:
            raise ValueError(f"{self.next} of {self.shape[0]} planes of scores came; labels end at plane {self._done}")
        self._held.clear()

    def _final(self) -> int:
        """Planes of labels before this one need no further scores."""
        return int(np.searchsorted(self._first.last, self.next))

    def _keep(self) -> None:
        """Copy the planes that are still needed, and let go of the rest."""
        needed = self.first_needed(self._done)
        held = [
            (max(first, needed), scores[:, max(0, needed - first) :], winners[max(0, needed - first) :])
            for first, scores, winners in self._held
            if first + scores.shape[1] > needed
        ]
        if held:  # a new array, also of one part: the slab is written over
            scores = np.concatenate([part for _, part, _ in held], axis=1)
            held = [(held[0][0], scores, np.concatenate([part for _, _, part in held]))]
        self._held = held

    def _winners(self, scores: NDArray[Any]) -> NDArray[Any]:
        """Number of the winning channel of (K, p, N) scores, (p, N)."""
        flat = scores.reshape(len(scores), -1)
        out = np.empty(flat.shape[1], dtype=np.uint8 if len(self.decide.values) < 255 else np.uint16)
        for start in range(0, flat.shape[1], _BLOCK):
            self._decide(flat[:, start : start + _BLOCK], out[start : start + _BLOCK])
        return out.reshape(scores.shape[1:])

    def _decide(self, scores: NDArray[Any], out: NDArray[Any]) -> None:
        """Winners (n,) of scores (K, n)."""
        over = np.empty_like(out)
        flags = over.view(bool) if over.itemsize == 1 else np.empty(out.shape, dtype=bool)
        if self.decide.kind == "above":
            out.fill(0)
            for n, threshold in enumerate(self.decide.thresholds):
                np.greater(scores[n].astype(np.float32, copy=False), threshold, out=flags)
                np.multiply(flags, n + 1, out=over, casting="unsafe")
                np.maximum(out, over, out=out)
            none = len(self.decide.values)
            out[...] = np.where(out == 0, none, out - 1)
            return
        if len(scores) < len(self.decide.values):  # the difference of two channels
            np.greater(scores[0], self._margin, out=flags)
            out[...] = flags
            return
        out.fill(0)
        half = scores.dtype == np.float16
        best = _order(scores[0]) if half else scores[0].copy()
        for n in range(1, len(scores)):
            channel = _order(scores[n]) if half else scores[n]
            np.greater(channel, best, out=flags)
            np.maximum(best, channel, out=best)
            np.multiply(flags, n, out=over, casting="unsafe")
            np.maximum(out, over, out=out)

    @property
    def _margin(self) -> float:
        return self.decide.thresholds[0] if self.decide.thresholds else 0.0

    def _labels(self, start: int, stop: int) -> NDArray[Any]:
        """Planes of labels, (stop - start, \\*out_plane)."""
        index, weight = self._first.index[start:stop], self._first.weight[start:stop]
        low, high = int(index.min()), int(index.max()) + 1
        rows, columns = self._rows, self._columns
        parts = [(first, scores, winners) for first, scores, winners in self._held if first < high]
        winners = np.concatenate([w[max(0, low - f) : high - f] for f, _, w in parts])
        winners = winners.reshape(high - low, len(rows.seen), len(columns.seen))
        smallest, largest = winners, winners
        for axis, taps in enumerate((index - low, rows.index, columns.index)):
            smallest, largest = _spread(smallest, taps, axis, np.minimum), _spread(largest, taps, axis, np.maximum)
        found = smallest if smallest.base is None else smallest.copy()
        points = np.flatnonzero(smallest != largest)
        flat = found.reshape(-1)
        slabs = [s[:, max(0, low - f) : high - f].reshape(len(s), -1) for f, s, _ in parts]
        lookup = np.empty((high - low) * self._plane, dtype=np.int32)
        count = self._points(len(slabs[0]))
        for begin in range(0, len(points), count):
            some = points[begin : begin + count]
            k, j, i = np.unravel_index(some, found.shape)
            planes, row, column = index[k] - low, rows.index[j], columns.index[i]
            at = (planes[:, :, None] * len(rows.seen) + row[:, None, :]).reshape(len(some), -1)
            at = (at[:, :, None] * len(columns.seen) + column[:, None, :]).reshape(len(some), -1)
            share = (weight[k][:, :, None] * rows.weight[j][:, None, :]).reshape(len(some), -1)
            share = (share[:, :, None] * columns.weight[i][:, None, :]).reshape(len(some), -1)
            flat[some] = self._between(slabs, at, share, lookup)
        labels: NDArray[Any] = self.decide.table[found.reshape(stop - start, *self.out_shape[1:])]
        return labels

    def _between(
        self, slabs: list[NDArray[Any]], at: NDArray[Any], share: NDArray[np.float32], lookup: NDArray[np.int32]
    ) -> NDArray[Any]:
        """Winners (n,) at points between voxels ``at`` (n, t) of slabs (K, voxels), weighed by ``share``."""
        marked = np.zeros(len(lookup), dtype=bool)
        marked[at.ravel()] = True
        needed = np.flatnonzero(marked)
        lookup[needed] = np.arange(len(needed), dtype=np.int32)
        values = np.empty((len(slabs[0]), len(needed)), dtype=slabs[0].dtype)
        first, filled = 0, 0
        for slab in slabs:
            here = needed[filled : np.searchsorted(needed, first + slab.shape[1])] - first
            for n, channel in enumerate(slab):
                np.take(channel, here, out=values[n, filled : filled + len(here)], mode="clip")
            first, filled = first + slab.shape[1], filled + len(here)
        matrix = sparse.csr_matrix(
            (share.ravel(), lookup[at.ravel()], np.arange(0, at.size + 1, at.shape[1], dtype=np.int32)),
            shape=(len(at), len(needed)),
        )
        scores = matrix @ np.ascontiguousarray(values.astype(np.float32, copy=False).T)
        if self.half:
            _round_to_half(scores)
        if self.decide.kind == "argmax" and scores.shape[1] == len(self.decide.values):
            if not self.decide.thresholds:
                return np.asarray(scores.argmax(axis=1))
            return np.asarray((scores[:, 1] - scores[:, 0] > self._margin).astype(np.intp))
        out = np.empty(len(at), dtype=np.uint8 if len(self.decide.values) < 255 else np.uint16)
        self._decide(np.ascontiguousarray(scores.T), out)
        return out


def _order(half: NDArray[np.float16]) -> NDArray[np.int16]:
    """Whole numbers in the order of numbers of half precision: numpy compares these many at a time."""
    bits = half.view(np.int16)
    key: NDArray[np.int16] = bits >> 15
    key &= 0x7FFF
    key ^= bits  # a number below zero grows with its bits
    return key


def _round_to_half(scores: NDArray[np.float32]) -> None:
    """To eleven digits of the binary system, in place; halves to even. (Numbers below 6e-5 keep more than half has.)"""
    bits = scores.view(np.uint32)
    more = bits >> 13
    more &= 1
    more += 0xFFF
    bits += more
    bits &= 0xFFFFE000


@dataclass(frozen=True, eq=False)
class _Taps:
    """Which old voxels each new one along an axis is made of: indices and weights (new, t)."""

    index: NDArray[np.intp]
    weight: NDArray[np.float32]
    old: int

    @property
    def seen(self) -> range:
        """The old voxels."""
        return range(self.old)

    @property
    def last(self) -> NDArray[np.intp]:
        """The last plane that each new plane and those before it need, (new,)."""
        return np.maximum.accumulate(self.index.max(axis=1))


@lru_cache(maxsize=64)
def _taps(old: int, new: int, how: How) -> _Taps:
    if old == new:
        return _Taps(np.arange(old)[:, None], np.ones((old, 1), np.float32), old)
    if how == "nearest":
        return _Taps(nearest_index(old, new)[:, None], np.ones((new, 1), np.float32), old)
    matrix = weights(old, new, averaging=how == "linear")
    count = np.diff(matrix.indptr)
    index = np.repeat(matrix.indices[matrix.indptr[:-1]][:, None].astype(np.intp), count.max(), axis=1)
    weight = np.zeros(index.shape, dtype=np.float32)
    inside = np.arange(index.shape[1]) < count[:, None]
    index[inside], weight[inside] = matrix.indices, matrix.data
    return _Taps(index, weight, old)


def _spread(array: NDArray[Any], index: NDArray[np.intp], axis: int, how: np.ufunc) -> NDArray[Any]:
    """For each new voxel along an axis the smallest or largest of those it is made of."""
    if index.shape == (array.shape[axis], 1) and (index[:, 0] == np.arange(len(index))).all():
        return array
    out: NDArray[Any] = np.take(array, index[:, 0], axis=axis)
    for n in range(1, index.shape[1]):
        how(out, np.take(array, index[:, n], axis=axis), out=out)
    return out

"""Where labels go while a run finds them: into memory, or into a folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from napari_medai.engine.scratch import Scratch, gib
from napari_medai.engine.zarr_store import ZarrStore, region_of

_MIB = 2**20
# Labels are stretches of one number: maps of a hundred organs took 1/100 of their size. Where less than this share of
# it is free nothing is begun.
_LEAST_SHARE = 0.25


class Store(Protocol):
    """Takes labels as they are found.

    Attributes
    ----------
    shape : tuple of int
        Of the labels.
    dtype : numpy dtype
        Of the labels, an unsigned or signed integer.
    finished : int
        Planes along the sweep that are done, those of an earlier run too.
    array : array
        What was written so far, zero elsewhere: numpy or Zarr; every index reads anew.
    held_bytes : int
        What it takes of memory once everything is written.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def finished(self) -> int: ...

    @property
    def array(self) -> Any: ...

    @property
    def held_bytes(self) -> int: ...

    def write(self, where: tuple[slice, ...], labels: NDArray[Any]) -> None:
        """Put labels into a region; slices have no steps, axes left out at the end are whole."""

    def mark(self, planes: int) -> None:
        """Say that this many planes are finished: every voxel of them was written."""

    def labels(self) -> Any:
        """What a `Volume` takes: a numpy array, or a dask array that keeps a temporary folder alive."""

    def close(self) -> None:
        """Nothing more is written; what is marked as finished can be gone on with where the store lies in a folder."""


class MemoryStore:
    """Labels in memory; pages that are never written take none."""

    def __init__(self, shape: Sequence[int], dtype: DTypeLike) -> None:
        self.shape, self.dtype = tuple(shape), np.dtype(dtype)
        self.finished = 0
        self.array: NDArray[Any] = np.zeros(self.shape, self.dtype)
        self.held_bytes = self.array.nbytes

    def write(self, where: tuple[slice, ...], labels: NDArray[Any]) -> None:
        """See `Store.write`."""
        self.array[region_of(where, labels, self.shape, self.dtype)] = labels

    def mark(self, planes: int) -> None:
        """See `Store.mark`."""
        self.finished = max(self.finished, planes)

    def labels(self) -> NDArray[Any]:
        """See `Store.labels`."""
        return self.array

    def close(self) -> None:
        """See `Store.close`."""


def choose_store(
    shape: Sequence[int],
    dtype: DTypeLike,
    path: str | os.PathLike[str] | None = None,
    identity: Mapping[str, str] | None = None,
    free_mb: float = float("inf"),
    note: Callable[[str], None] = lambda message: None,
    *,
    sweep: int = 0,
) -> MemoryStore | ZarrStore:
    """Memory, unless a folder is named or the labels would not fit: then a temporary folder, for as long as they live.

    Parameters
    ----------
    shape, dtype
        Of the labels.
    path : path, optional
        Where labels are to be written.
    identity : mapping, optional
        See `ZarrStore`.
    free_mb : float
        What the labels may take of memory, MiB.
    note : callable
        Told that a temporary folder was taken, or that an earlier run had finished nothing.
    sweep : int
        See `ZarrStore`.

    Raises
    ------
    WriteError
        The folder cannot be written, or no disk has room for what does not fit into memory.
    """
    if path is not None:
        kept = ZarrStore(path, shape, dtype, identity, sweep=sweep)
        if kept.begun_anew:
            note("an earlier run had finished nothing yet: it begins anew")
        return kept
    size = prod(int(n) for n in shape) * np.dtype(dtype).itemsize
    if size <= free_mb * _MIB:
        return MemoryStore(shape, dtype)
    scratch = Scratch(size * _LEAST_SHARE, f"The labels take up to {gib(size)}")
    store = ZarrStore(scratch.path / "labels", shape, dtype, sweep=sweep, keeps=scratch)
    note(f"the labels take {gib(size)} and memory has {gib(free_mb * _MIB)}: they lie in a temporary folder")
    return store

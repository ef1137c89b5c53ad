"""Logits of one fold after the other where they do not fit in memory together: a temporary file of half precision."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from typing import IO

import numpy as np
import torch

from napari_medai.core.errors import DeviceError


class Spool:
    """Sums of slabs, written and read in the order in which slabs come.

    Parameters
    ----------
    file : binary file
        Open for writing and reading.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def keep(self, slabs: Iterable[torch.Tensor]) -> None:
        """Write the slabs of the first fold.

        Raises
        ------
        DeviceError
            The disk is full.
        """
        self._file.seek(0)
        for slab in slabs:
            self._write(slab)

    def add(self, slabs: Iterable[torch.Tensor]) -> None:
        """Add those of another to what is there."""
        place = 0
        for slab in slabs:
            total = self._read(place, slab).add_(slab)
            self._file.seek(place)
            self._write(total)
            place += total.nbytes

    def mean(self, slabs: Iterable[torch.Tensor], folds: int) -> Iterator[torch.Tensor]:
        """Add those of the last, and give the means."""
        place = 0
        for slab in slabs:
            total = self._read(place, slab)
            place += total.nbytes
            yield total.add_(slab).div_(folds)

    def _read(self, place: int, like: torch.Tensor) -> torch.Tensor:
        self._file.seek(place)
        content = bytearray(self._file.read(like.nbytes))
        return torch.frombuffer(content, dtype=like.dtype).reshape(like.shape)

    def _write(self, slab: torch.Tensor) -> None:
        try:
            self._file.write(np.ascontiguousarray(slab.numpy()).data)
        except OSError as error:
            raise DeviceError(
                f"The folds' logits could not be written to {tempfile.gettempdir()}: {error.strerror}. Free some space "
                "there, name another folder in TMPDIR, or run one fold."
            ) from error

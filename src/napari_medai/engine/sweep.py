"""Blend tiles to an image from its one end to the other, holding no more of it than one row of tiles is deep.

Tiles come row after row along one axis. As soon as no further tile reaches a plane across that axis its scores are
final; they are handed over and their place is used again. Memory is channels x depth of a tile x the image's
cross-section, not channels x image.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Callable, Iterator
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray

from napari_medai.core.errors import ModelError, WriteError, reason_of
from napari_medai.core.plan import Accumulator
from napari_medai.engine.memory import Sums
from napari_medai.engine.scratch import gib, roomy
from napari_medai.engine.tiling import Tile, TilePlan

# Told of final planes: the first one's number, and (K, planes, \*rest) scores, valid only during the call
Take = Callable[[int, NDArray[np.floating]], None]

# Of sums on disk so much is in memory at once
DISK_BYTES = 2**24
# Sums of float16 stay finite below
_LARGEST_HALF = 65000.0
# Planes are handed over in pieces of about so many bytes
PIECE_BYTES = 2**27


class Sweep:
    """Adds the weighted tiles of a plan up, row after row along an axis.

    Parameters
    ----------
    plan : TilePlan
        How the image is cut.
    take : callable
        Gets each piece of final planes, in order: ``take(first, scores)`` with the axis of the sweep first among the
        axes of space: (K, planes, \\*rest).
    axis : int
        Along which the sweep goes.
    begin : int
        First plane that is wanted; rows that reach no plane from there on are left out.
    sums : {"float32", "float16"}
        Type of the sums.
    keep : {"device", "host", "disk"}
        Where the sums are kept.
    device : torch.device
        Of the network.

    Attributes
    ----------
    finished : int
        Planes before this one have been handed over.
    """

    def __init__(
        self,
        plan: TilePlan,
        take: Take,
        *,
        axis: int = 0,
        begin: int = 0,
        sums: Sums = "float32",
        keep: Accumulator = "host",
        device: torch.device | None = None,
    ) -> None:
        self.plan, self.axis, self.finished = plan, axis, begin
        self._take, self._sums, self._keep = take, sums, keep
        self._device = device if device is not None and keep == "device" else torch.device("cpu")
        line = plan.axes[axis]
        rows = range(len(line.starts))
        self._rows = [n for n in rows if min(line.size, line.starts[n] + line.tile) > begin]
        self._depth = min(line.size, line.tile)
        self._rest = tuple(a.size for n, a in enumerate(plan.axes) if n != axis)
        self._total: torch.Tensor | None = None
        self._counts: torch.Tensor | None = None  # sums of weights, where those are not one
        self._file: _File | None = None
        self._left = self._in_row()

    def __len__(self) -> int:
        return len(self._rows) * self._in_row()

    def __iter__(self) -> Iterator[Tile]:
        others = [len(a.starts) for n, a in enumerate(self.plan.axes) if n != self.axis]
        for row in self._rows:
            for rest in np.ndindex(*others):
                yield (*rest[: self.axis], row, *rest[self.axis :])

    def _in_row(self) -> int:
        return prod(len(a.starts) for n, a in enumerate(self.plan.axes) if n != self.axis)

    def add(self, tile: Tile, values: torch.Tensor) -> None:
        """Add the output (K, \\*tile) of one tile; weights are applied here.

        Tiles are given in the order of iteration.

        Raises
        ------
        ModelError
            The number of channels differs from the first tile's, or the size from the tile's.
        """
        if tuple(values.shape[1:]) != self.plan.tile:
            raise ModelError(
                f"The network made {tuple(values.shape[1:])} out of a tile of {self.plan.tile}; they must agree."
            )
        if len(self.plan) == 1:  # nothing is added up
            _, part = self.plan.place(tile)
            self._total = values[(slice(None), *part)].movedim(self.axis + 1, 1)
            self._hand_over(tile[self.axis])
            return
        if self._total is None:
            self._total = self._room(len(values))
        if len(values) != len(self._total):
            raise ModelError(
                f"The network gave {len(values)} channels after {len(self._total)} in the tile before; "
                "it has to give the same number for every tile."
            )
        self._blend(tile, values)
        self._left -= 1
        if self._left == 0:
            self._left = self._in_row()
            self._hand_over(tile[self.axis])

    def _room(self, channels: int) -> torch.Tensor:
        shape, dtype = (channels, self._depth, *self._rest), getattr(torch, self._sums)
        if self._keep == "disk":
            self._file = _File(shape, np.dtype(self._sums))
            return torch.from_numpy(self._file.array)
        return torch.zeros(shape, dtype=dtype, device=self._device)

    def _blend(self, tile: Tile, values: torch.Tensor) -> None:
        assert self._total is not None
        inside, part = self.plan.place(tile)
        planes = inside[self.axis]
        rest = tuple(where for n, where in enumerate(inside) if n != self.axis)
        weight = torch.from_numpy(self.plan.weight(tile))[part].movedim(self.axis, 0).to(self._device)
        if self.plan.counted:
            if self._counts is None:
                self._counts = torch.zeros((self._depth, *self._rest), device=self._device)
            for ring, here in _in_ring(planes.start, planes.stop, self._depth):
                self._counts[(ring, *rest)] += weight[here]
        values = values[(slice(None), *part)].movedim(self.axis + 1, 1).to(self._device)
        if self._sums == "float16" and (largest := max(abs(float(end)) for end in values.aminmax())) > _LARGEST_HALF:
            raise ModelError(
                f"The network gave values up to {largest:.3g}, and there is memory for sums in half "
                f"precision only, which end at {_LARGEST_HALF:g}. Allow more memory, or use a smaller tile."
            )
        # what is converted, or read from the disk, goes a few channels at a time
        whole = self._file is None and values.dtype == self._total.dtype
        count = len(values) if whole else max(1, DISK_BYTES // max(1, values[0].nbytes))
        for first in range(0, len(values), count):
            some = slice(first, first + count)
            for ring, here in _in_ring(planes.start, planes.stop, self._depth):
                room = self._total[(some, ring, *rest)]
                room.addcmul_(values[some, here].to(room.dtype), weight[here].to(room.dtype))
            if self._file is not None:
                self._file.drop()

    def _hand_over(self, row: int) -> None:
        """The planes that no later row reaches; their place is emptied."""
        assert self._total is not None
        line = self.plan.axes[self.axis]
        last = row == self._rows[-1]
        stop = line.size if last else line.starts[row + 1]
        # planes before the first that is wanted are emptied and handed over to nobody
        for start, end, wanted in ((line.starts[row], min(stop, self.finished), False), (self.finished, stop, True)):
            most = PIECE_BYTES if self._file is None else DISK_BYTES
            size = max(1, most // max(1, self._total[:, 0].nbytes))
            for low in range(start, end, size):
                for ring, _ in _in_ring(low, min(end, low + size), self._depth):
                    piece = self._total[:, ring]
                    if wanted:
                        scores = piece if self._counts is None else piece / self._counts[ring]
                        self._take(self.finished, scores.cpu().numpy())
                        self.finished += piece.shape[1]
                    if not last:
                        piece.zero_()
                        if self._counts is not None:
                            self._counts[ring].zero_()
                    if self._file is not None:
                        self._file.drop()
        if last:
            self.close()

    def close(self) -> None:
        """Give the memory of the sums back."""
        self._total = self._counts = None
        if self._file is not None:
            self._file.close()
            self._file = None


def _in_ring(start: int, stop: int, depth: int) -> Iterator[tuple[slice, slice]]:
    """Where planes start..stop lie in a ring of so many, and which of them: one piece, or two around its end."""
    at_plane = start
    while at_plane < stop:
        at = at_plane % depth
        count = min(stop - at_plane, depth - at)
        yield slice(at, at + count), slice(at_plane - start, at_plane - start + count)
        at_plane += count


class _File:
    """An array of zeros in a nameless temporary file, which is in memory only as far as it was just touched.

    Raises
    ------
    WriteError
        No disk has room for it.
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[np.floating]) -> None:
        size = prod(shape) * dtype.itemsize
        what = f"The sums of tiles take {gib(size)}"
        self._file = tempfile.TemporaryFile(dir=roomy(size, what))  # noqa: SIM115  # closed by `close`
        try:
            # a page of a file that the disk has no room for would end the program when it is written
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self._file.fileno(), 0, size)
            else:
                self._file.truncate(size)
        except OSError as error:
            self._file.close()
            raise WriteError(f"{what}, and there is no room for them: {reason_of(error)}.") from error
        self._map = mmap.mmap(self._file.fileno(), size)
        self.array: NDArray[np.floating] = np.frombuffer(self._map, dtype).reshape(shape)

    def drop(self) -> None:
        """Let the system have the pages back; what they hold is on the disk or on the way there."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Forget the array."""
        del self.array
        self._file.close()

"""How logits are summed up, and what is tried when memory runs out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from napari_medai.core.errors import DeviceError
from napari_medai.engine.device import free_memory_mb, release_memory
from napari_medai.engine.nnunet.prepare import Case
from napari_medai.engine.nnunet.sliding import held_bytes
from napari_medai.engine.weights import forget

if TYPE_CHECKING:
    from napari_medai.engine.run import Run

_MIB = 2**20


@dataclass(frozen=True)
class Way:
    """How logits are summed up.

    Attributes
    ----------
    keep_on : torch.device
        Where the sums are.
    sums : torch.dtype
        Their type.
    together : int
        Folds that see a tile one after the other: all; or 1, each goes over the whole image by itself.
    """

    keep_on: torch.device
    sums: torch.dtype
    together: int

    def held_mb(self, case: Case) -> float:
        """Memory of the sums, MiB."""
        return self.together * held_bytes(case.labels.heads, case.grid, case.plan.patch, self.sums.itemsize) / _MIB


def first_way(case: Case, folds: int, run: Run) -> Way:
    """In half precision, as nnU-Net; all folds together where half of what is free holds their sums."""
    way = Way(run.device, torch.half, folds)
    free = run.room().free_mb if run.device.type == "cpu" else free_memory_mb(run.device)
    return way if way.held_mb(case) <= free / 2 else replace(way, together=1)


def leaner(way: Way, case: Case, run: Run) -> Way:
    """The next way after memory ran out: one fold after the other, sums in the machine's memory, the CPU.

    Raises
    ------
    DeviceError
        There is none.
    """
    name = run.device.type
    if way.together > 1:
        run.note(f"{name} ran out of memory: one fold after the other")
        return replace(way, together=1)
    if name == "cpu":
        raise DeviceError(
            f"There is not enough memory for {case.labels.heads} channels of a tile of "
            f"{' x '.join(map(str, case.plan.patch))} in {' x '.join(map(str, case.grid))} voxels; close other "
            "programs, or cut the image."
        )
    if way.keep_on.type != "cpu":
        run.note(f"{name} has no memory for the sums: kept in the machine's memory")
        return replace(way, keep_on=torch.device("cpu"))
    forget()
    release_memory(run.device)
    run.use_cpu(f"{name} has no memory for a tile of {case.plan.patch}: running on the CPU instead")
    return way

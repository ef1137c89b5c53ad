"""Networks that misbehave, as real modules: rows of the table of networks while a test needs them.

Each keeps weak references to what it was given and to what it gave: whatever is alive after a run is a leak.
"""

from __future__ import annotations

import gc
import weakref
from typing import ClassVar

import torch
from torch import nn

SEEN: list[weakref.ref[torch.Tensor]] = []


def alive() -> int:
    """Tensors of the passes so far that something still holds."""
    gc.collect()
    return sum(reference() is not None for reference in SEEN)


class Well(nn.Module):
    """Two channels: what is darker than the bias, and what is brighter. The others misbehave from a pass on."""

    after: ClassVar[int] = 2

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.tensor([0.0]))
        self.passes = 0

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, 1, \\*spatial) -> (B, 2, \\*spatial)."""
        self.passes += 1
        brighter = image - self.bias
        out = torch.cat([-brighter, brighter], dim=1)
        if self.passes > self.after:
            out = self.sick(out)
        SEEN.extend(map(weakref.ref, (image, out)))
        return out

    def sick(self, out: torch.Tensor) -> torch.Tensor:
        """What becomes of the output."""
        return out


class NotANumber(Well):
    """One voxel of one tile."""

    def sick(self, out: torch.Tensor) -> torch.Tensor:
        out[(0, 0, *[0] * (out.ndim - 2))] = torch.nan
        return out


class AlwaysNotANumber(NotANumber):
    after = 0


class MoreChannels(Well):
    def sick(self, out: torch.Tensor) -> torch.Tensor:
        return torch.cat([out, out[:, :1]], dim=1)


class Smaller(Well):
    """The output lacks a voxel on each side, as without padding."""

    after = 0

    def sick(self, out: torch.Tensor) -> torch.Tensor:
        return out[(..., *[slice(1, -1)] * (out.ndim - 2))]


class Gone(Well):
    """The device disappears."""

    def sick(self, out: torch.Tensor) -> torch.Tensor:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might …")


class NoMemory(Well):
    """Nothing is small enough."""

    def sick(self, out: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


class Fixed(Well):
    """Takes 24 voxels along each axis and nothing else, as networks with positions do."""

    after = 0

    def sick(self, out: torch.Tensor) -> torch.Tensor:
        if set(out.shape[2:]) != {24}:
            raise RuntimeError(f"expected 24 voxels, got {tuple(out.shape[2:])}")
        return out

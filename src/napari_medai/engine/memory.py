"""What to do when memory runs out: which errors mean it, and the next smaller way to run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

# What torch says where it has no class of its own for lack of memory (CPU allocator, Apple, cuBLAS, cuDNN).
_PHRASES = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
)

# Below this edge in voxels a tile is all border
SMALLEST_EDGE = 8


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that a device or the machine had no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(phrase in text for phrase in _PHRASES)


@dataclass(frozen=True)
class Setting:
    """One way to run a network over an image.

    Attributes
    ----------
    device : torch.device
        Where.
    tile : tuple of int
        Largest edges of a tile in voxels.
    batch : int
        Tiles per forward pass.
    """

    device: torch.device
    tile: tuple[int, ...]
    batch: int


def smaller(setting: Setting, first: Setting, multiple: Sequence[int]) -> tuple[Setting, str] | None:
    """The next way that needs less memory: a smaller batch, then a smaller tile, then the CPU.

    Parameters
    ----------
    setting : Setting
        What has just run out of memory.
    first : Setting
        What the run began with; the CPU starts again with its tile.
    multiple : sequence of int
        Of which the edges of a tile are multiples; halving stops at two of them, so that
        tiles can still overlap, and at `SMALLEST_EDGE`.

    Returns
    -------
    (Setting, str) or None
        The next setting and a sentence for the user; none if nothing smaller is left.
    """
    name = setting.device.type
    if setting.batch > 1:
        batch = setting.batch // 2
        return replace(
            setting, batch=batch
        ), f"{name} ran out of memory: {batch} instead of {setting.batch} tiles at once"
    tile = list(setting.tile)
    # the longest edge that can still be halved
    for n in sorted(range(len(tile)), key=lambda n: -tile[n]):
        half = tile[n] // 2 // multiple[n] * multiple[n]
        if half >= max(SMALLEST_EDGE, 2 * multiple[n]):
            tile[n] = half
            return replace(setting, tile=tuple(tile)), (
                f"{name} ran out of memory: tiles of {_size(tile)} instead of {_size(setting.tile)} voxels"
            )
    if name != "cpu":
        return Setting(torch.device("cpu"), first.tile, 1), f"{name} ran out of memory: running on the CPU instead"
    return None


def _size(edges: Sequence[int]) -> str:
    return " x ".join(map(str, edges))

"""What to do when memory runs out: which errors mean it, and the next smaller way to run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from napari_medai.core.plan import Accumulator

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
# Type of the sums of overlapping tiles
Sums = Literal["float32", "float16"]


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
    sums : {"float32", "float16"}
        Type of the sums of overlapping tiles.
    keep : {"device", "host", "disk"}
        Where those sums are kept; on the CPU ``"host"`` from the beginning.
    """

    device: torch.device
    tile: tuple[int, ...]
    batch: int
    sums: Sums = "float32"
    keep: Accumulator = "host"


def smaller(
    setting: Setting, first: Setting, multiple: Sequence[int], halo: Sequence[int] = ()
) -> tuple[Setting, str] | None:
    """The next way that needs less memory: smaller batch, smaller tile, sums in half precision, then elsewhere, CPU.

    Parameters
    ----------
    setting : Setting
        What has just run out of memory.
    first : Setting
        What the run began with; the CPU starts again with its tile.
    multiple : sequence of int
        Of which the edges of a tile are multiples; halving stops at two of them, so that
        tiles can still overlap, and at `SMALLEST_EDGE`.
    halo : sequence of int, optional
        Reach of the network; a tile stays larger than twice that.

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
    tile = smaller_tile(setting.tile, multiple, halo)
    if tile is not None:
        return replace(setting, tile=tile), (
            f"{name} ran out of memory: tiles of {size_text(tile)} instead of {size_text(setting.tile)} voxels"
        )
    if setting.sums == "float32":
        return replace(setting, sums="float16"), f"{name} ran out of memory: sums of tiles in half precision"
    if setting.keep == "device":
        return replace(setting, keep="host"), f"{name} ran out of memory: sums of tiles in the machine's memory"
    if name != "cpu":
        return (
            Setting(torch.device("cpu"), first.tile, 1),
            f"{name} ran out of memory: running on the CPU instead",
        )
    if setting.keep == "host":
        return replace(setting, keep="disk"), f"{name} ran out of memory: sums of tiles in a temporary file"
    return None


def smaller_tile(tile: Sequence[int], multiple: Sequence[int], halo: Sequence[int] = ()) -> tuple[int, ...] | None:
    """A tile with its longest edge halved that can be; none if every edge is as short as it may be."""
    edges = list(tile)
    for n in sorted(range(len(edges)), key=lambda n: -edges[n]):
        half = edges[n] // 2 // multiple[n] * multiple[n]
        reach = halo[n] if halo else 0
        if half >= max(SMALLEST_EDGE, 2 * multiple[n], 2 * reach + multiple[n]):
            edges[n] = half
            return tuple(edges)
    return None


def size_text(edges: Sequence[int]) -> str:
    """``"96 x 96 x 96"``."""
    return " x ".join(map(str, edges))

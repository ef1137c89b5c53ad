"""Plan: what a run will take, said before it begins."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

# Where the sums of overlapping tiles are kept: on the device, in the machine's memory, or in a temporary file
Accumulator = Literal["device", "host", "disk"]


@dataclass(frozen=True)
class Plan:
    """How a network will go over an image, and what memory that takes.

    Attributes
    ----------
    device : str
        ``"cpu"``, ``"cuda:0"``, ``"mps"``.
    tile : tuple of int
        Edges of a tile in voxels of what the network sees.
    batch : int
        Tiles in one pass.
    tiles : int
        Tiles in all.
    precision : str
        Of the passes: ``"float32"`` or ``"float16 (autocast)"``.
    accumulator : {"device", "host", "disk"}
        Where the sums of overlapping tiles are kept.
    sums : str
        Type of those sums: ``"float32"`` or ``"float16"``.
    channels : int
        Of the network's output.
    host_mb : float
        Predicted peak resident size of the process, MiB, with what it holds already.
    device_mb : float
        Predicted peak memory of the accelerator, MiB; 0 on the CPU.
    free_host_mb, free_device_mb : float
        What could be used at most when the plan was made, MiB, with what the process holds already.
    seconds : float
        Predicted time of the passes, from the one that was measured.
    fits : bool
        Whether the predictions stay below what is free.
    advice : str
        What would make it fit; empty if it does.
    """

    device: str
    tile: tuple[int, ...]
    batch: int
    tiles: int
    precision: str
    accumulator: Accumulator
    sums: str
    channels: int
    host_mb: float
    device_mb: float
    free_host_mb: float
    free_device_mb: float
    seconds: float
    fits: bool
    advice: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        size = f"{' x '.join(map(str, self.tile))} {'pixels' if len(self.tile) == 2 else 'voxels'}"
        tiles = f"{self.tiles:,} tile{'' if self.tiles == 1 else 's'} of {size}"
        device = "CPU" if self.device == "cpu" else self.device
        memory = f"{self.host_mb / 1024:.1f} of {self.free_host_mb / 1024:.1f} GiB"
        if self.device_mb:
            memory += f", {self.device_mb / 1024:.1f} of {self.free_device_mb / 1024:.1f} GiB on {device}"
        return f"{tiles} on {device}, about {_duration(self.seconds)}; memory {memory}"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"

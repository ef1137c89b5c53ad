"""Plan a run: from one tile that was measured, what the whole image takes, and the way to run that fits.

Predicted is the peak resident size of the process (and of the accelerator): what it holds after the first tile, the
sums of overlapping tiles, one pass, and what is made of the scores. docs/engine.md says how near that comes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import torch

from napari_medai.core.plan import Plan
from napari_medai.engine.device import free_memory_mb
from napari_medai.engine.memory import Setting, size_text, smaller_tile
from napari_medai.engine.peak import resident_mb
from napari_medai.engine.sweep import PIECE_BYTES
from napari_medai.engine.tiling import TilePlan

_MIB = 2**20
_BYTES = {"float32": 4, "float16": 2}
# Share of what is free that a plan may take: other programs and the allocator want some
USABLE = 0.92


@dataclass(frozen=True)
class Cost:
    """What one pass took.

    Attributes
    ----------
    tile : tuple of int
        Its edges.
    batch : int
        Tiles in it.
    channels : int
        Of the output.
    host_mb, device_mb : float
        Memory above what was held before, MiB, the output included.
    seconds : float
        Wall time.
    """

    tile: tuple[int, ...]
    batch: int
    channels: int
    host_mb: float
    device_mb: float
    seconds: float

    def scaled(self, tile: Sequence[int], batch: int) -> float:
        """How many times as large a pass of another tile and batch is."""
        return prod(tile) * batch / (prod(self.tile) * self.batch)


@dataclass(frozen=True)
class Room:
    """What is held and what is free, MiB.

    Attributes
    ----------
    held_mb : float
        Resident size of the process now.
    limit_mb : float
        Largest resident size that it may come to.
    held_device_mb, limit_device_mb : float
        The same of the accelerator; 0 on the CPU.
    """

    held_mb: float
    limit_mb: float
    held_device_mb: float = 0.0
    limit_device_mb: float = 0.0


def room(device: torch.device, most_mb: float = 0.0) -> Room:
    """What there is now; with ``most_mb`` the process is to stay below that."""
    held = resident_mb()
    limit = most_mb or held + USABLE * free_memory_mb(torch.device("cpu"))
    if device.type != "cuda":
        return Room(held, limit)
    on_device = torch.cuda.memory_allocated(device) / _MIB
    reserved = torch.cuda.memory_reserved(device) / _MIB
    return Room(held, limit, on_device, reserved + USABLE * free_memory_mb(device))


def predict_memory(
    setting: Setting, tiles: TilePlan, axis: int, cost: Cost, after_mb: float, now: Room
) -> tuple[float, float]:
    """Peak memory of a run in MiB: of the process, and of the accelerator.

    Parameters
    ----------
    setting : Setting
        How it would run.
    tiles : TilePlan
        How the image would be cut then.
    axis : int
        Along which rows of tiles follow each other.
    cost : Cost
        Of a pass on the same device.
    after_mb : float
        What is made of the scores: labels, or the whole output.
    now : Room
        What is held.
    """
    cross = prod(n for m, n in enumerate(tiles.shape) if m != axis)
    depth = min(tiles.shape[axis], tiles.tile[axis])
    sums = 0.0 if len(tiles) == 1 else cost.channels * depth * cross * _BYTES[setting.sums] / _MIB
    share = cost.scaled(tiles.tile, setting.batch)
    output = cost.channels * prod(tiles.tile) * setting.batch * 4 / _MIB
    piece = min(PIECE_BYTES / _MIB, cost.channels * depth * cross * 4 / _MIB)
    on_device = 0.0
    host = now.held_mb + after_mb
    own = setting.device.type == "cuda"  # Apple's GPUs share the machine's memory
    if own:
        on_device = now.held_device_mb + share * cost.device_mb
        host += max(output, piece)
    else:
        host += max(share * cost.host_mb, piece)
    if own and setting.keep == "device":
        on_device += sums
    elif setting.keep != "disk":
        host += sums
    return host, on_device


def make_plan(
    setting: Setting,
    tiles: TilePlan,
    axis: int,
    cost: Cost,
    after_mb: float,
    now: Room,
    precision: str,
    so_far_mb: float = 0.0,
) -> Plan:
    """The plan of a run; ``so_far_mb`` is the process's peak until now; see `predict_memory` for the others."""
    host, on_device = predict_memory(setting, tiles, axis, cost, after_mb, now)
    host = max(host, so_far_mb)
    fits = host <= now.limit_mb and on_device <= now.limit_device_mb + 1e-6
    advice = ""
    if not fits:
        advice = (
            f"{host / 1024:.1f} GiB of memory would do, {now.limit_mb / 1024:.1f} can be had; close other programs, "
            "cut the image or lower its resolution, or use a machine with more memory"
        )
        if on_device > now.limit_device_mb:
            advice = f"{on_device / 1024:.1f} GiB on the {setting.device.type} would do; choose the CPU"
    return Plan(
        device=str(setting.device),
        tile=tiles.tile,
        batch=setting.batch,
        tiles=len(tiles),
        precision=precision,
        accumulator=setting.keep,
        sums=setting.sums,
        channels=cost.channels,
        host_mb=host,
        device_mb=on_device,
        free_host_mb=now.limit_mb,
        free_device_mb=now.limit_device_mb,
        seconds=cost.seconds / cost.batch * len(tiles),
        fits=fits,
        advice=advice,
    )


def next_that_may_fit(
    setting: Setting, plan: Plan, multiple: Sequence[int], halo: Sequence[int]
) -> tuple[Setting, str] | None:
    """The next way to run where a plan does not fit: first what costs neither speed nor exactness.

    A smaller batch, the sums in the machine's memory, the sums in half precision, a smaller tile, the sums on disk.
    """
    why = f"{plan.host_mb / 1024:.1f} GiB would be needed, {plan.free_host_mb / 1024:.1f} can be had"
    if plan.device_mb > plan.free_device_mb:
        why = f"{plan.device_mb / 1024:.1f} GiB would be needed on the {setting.device.type}"
    if setting.batch > 1:
        batch = setting.batch // 2
        return replace(setting, batch=batch), f"{why}: {batch} instead of {setting.batch} tiles at once"
    if setting.keep == "device" and plan.device_mb > plan.free_device_mb:
        return replace(setting, keep="host"), f"{why}: sums of tiles in the machine's memory"
    if setting.sums == "float32":
        return replace(setting, sums="float16"), f"{why}: sums of tiles in half precision"
    tile = smaller_tile(setting.tile, multiple, halo)
    if tile is not None and prod(setting.tile) > 2**15:
        return replace(setting, tile=tile), f"{why}: tiles of {size_text(tile)} voxels"
    if setting.keep == "host" and setting.device.type == "cpu":
        return replace(setting, keep="disk"), f"{why}: sums of tiles in a temporary file"
    return None

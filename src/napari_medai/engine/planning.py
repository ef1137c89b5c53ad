"""Plan a run: from one tile that was measured, what the whole image takes, and the way to run that fits.

Predicted is the peak resident size of the process (and of the accelerator): what it holds between two tiles, the sums
of overlapping tiles, one pass, and what is made of the scores. docs/engine.md says how near that comes.
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
from napari_medai.engine.sweep import DISK_BYTES, PIECE_BYTES
from napari_medai.engine.tiling import TilePlan

_MIB = 2**20
_BYTES = {"float32": 4, "float16": 2}
# Share of what is free that a plan may take: other programs and the allocator want some
USABLE = 0.92
# Weights, winners, indices, stacks of threads: what goes by in small pieces
SMALL_MB = 20.0
# The output of the last tile of one value alone is remembered up to so many bytes, see `predict`
REMEMBERED_BYTES = 2**26


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
    held_mb, held_device_mb : float
        What the process, and what torch on the accelerator, holds between two passes, MiB.
    host_mb, device_mb : float
        What a pass takes above that, the output included.
    reading_mb : float
        What reading the next row of tiles takes above that.
    seconds : float
        Wall time.
    """

    tile: tuple[int, ...]
    batch: int
    channels: int
    held_mb: float
    host_mb: float
    seconds: float
    reading_mb: float = 0.0
    held_device_mb: float = 0.0
    device_mb: float = 0.0

    def scaled(self, tile: Sequence[int], batch: int) -> float:
        """How many times as large a pass of another tile and batch is."""
        return prod(tile) * batch / (prod(self.tile) * self.batch)


@dataclass(frozen=True)
class Made:
    """What is made of the scores, MiB of the machine's memory.

    Attributes
    ----------
    kept_mb : float
        Grows with the run and stays: labels, or all scores.
    between_mb : float
        Held from one slab of scores to the next.
    taking_mb : float
        Taken for a moment, while a slab of scores is taken.
    finishing_mb : float
        Taken for a moment when all is found, and neither sums nor a pass are there any more.
    """

    kept_mb: float = 0.0
    between_mb: float = 0.0
    taking_mb: float = 0.0
    finishing_mb: float = 0.0


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
    given : bool
        Whether a person set the limit.
    """

    held_mb: float
    limit_mb: float
    held_device_mb: float = 0.0
    limit_device_mb: float = 0.0
    given: bool = False

    @property
    def free_mb(self) -> float:
        """What may still be taken of the machine's memory."""
        return max(0.0, self.limit_mb - self.held_mb)


def room(device: torch.device, most_mb: float = 0.0) -> Room:
    """What there is now; with ``most_mb`` the process is to stay below that."""
    held = resident_mb()
    limit = most_mb or held + USABLE * free_memory_mb(torch.device("cpu"))
    if device.type != "cuda":
        return Room(held, limit, given=most_mb > 0)
    on_device = torch.cuda.memory_allocated(device) / _MIB
    reserved = torch.cuda.memory_reserved(device) / _MIB
    return Room(held, limit, on_device, reserved + USABLE * free_memory_mb(device), most_mb > 0)


def predict_memory(setting: Setting, tiles: TilePlan, axis: int, cost: Cost, made: Made) -> tuple[float, float]:
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
    made : Made
        What becomes of the scores.
    """
    cross = prod(n for m, n in enumerate(tiles.shape) if m != axis)
    depth = min(tiles.shape[axis], tiles.tile[axis])
    row = cost.channels * depth * cross / _MIB
    # a single tile is handed over as it is
    sums = 0.0 if len(tiles) == 1 else row * _BYTES[setting.sums]
    if tiles.counted:
        sums += depth * cross * 4 / _MIB
    one = cost.channels * prod(tiles.tile) * 4 / _MIB
    remembered = one if one * _MIB <= REMEMBERED_BYTES and len(tiles) > 1 else 0.0
    share = cost.scaled(tiles.tile, setting.batch)
    piece = min(PIECE_BYTES / _MIB, row * 4)
    own = setting.device.type == "cuda"  # Apple's GPUs share the machine's memory
    if own:
        there = sums if setting.keep == "device" else 0.0
        on_device = cost.held_device_mb + there + remembered + share * cost.device_mb
        busy = max(cost.host_mb + one, cost.reading_mb, piece + made.taking_mb)
    else:
        on_device = 0.0
        # while a slab is taken, the output that completed it is there; a mean is a copy of the slab
        taking = made.taking_mb + (piece if tiles.counted else 0.0)
        busy = max(share * cost.host_mb, cost.reading_mb, one * setting.batch + taking) + remembered
    if setting.keep == "disk":
        busy += min(sums, max(DISK_BYTES / _MIB, sums / depth))
    elif setting.keep == "host" or not own:
        busy += sums
    return cost.held_mb + SMALL_MB + made.kept_mb + max(busy + made.between_mb, made.finishing_mb), on_device


def make_plan(
    setting: Setting,
    tiles: TilePlan,
    axis: int,
    cost: Cost,
    made: Made,
    now: Room,
    precision: str,
) -> Plan:
    """The plan of a run; see `predict_memory`."""
    host, on_device = predict_memory(setting, tiles, axis, cost, made)
    fits = host <= now.limit_mb and on_device <= now.limit_device_mb + 1e-6
    advice = ""
    if not fits:
        advice = (
            f"{_text(host)} of memory would do, {_text(now.limit_mb)} can be had; close other programs, "
            "cut the image or lower its resolution, or use a machine with more memory"
        )
        if now.given:
            advice = f"{_text(host)} of memory would do, {_text(now.limit_mb)} are allowed (memory=…, medai: --memory)"
        if on_device > now.limit_device_mb:
            advice = f"{_text(on_device)} on the {setting.device.type} would do; choose the CPU"
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
    why = f"{_text(plan.host_mb)} would be needed, {_text(plan.free_host_mb)} can be had"
    if plan.device_mb > plan.free_device_mb:
        why = f"{_text(plan.device_mb)} would be needed on the {setting.device.type}"
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


def _text(mb: float) -> str:
    """``"860 MiB"``, ``"12.5 GiB"``."""
    return f"{mb:,.0f} MiB" if mb < 10 * 1024 else f"{mb / 1024:.1f} GiB"

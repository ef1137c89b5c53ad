"""The tiles of an image through a network, in the way that memory allows: planned first, smaller when it runs out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from torch import nn

from napari_medai.core.errors import DeviceError, ModelError
from napari_medai.core.plan import Accumulator
from napari_medai.engine.device import release_memory
from napari_medai.engine.faster import Compiled, compiled
from napari_medai.engine.memory import Setting, is_out_of_memory, size_text, smaller
from napari_medai.engine.planning import Cost, Made, make_plan, next_that_may_fit
from napari_medai.engine.predict import Known, Rows, first_pass, predict
from napari_medai.engine.sweep import Sweep, Take
from napari_medai.engine.tiling import TilePlan, plan_tiles
from napari_medai.engine.weights import forget

if TYPE_CHECKING:
    from napari_medai.engine.run import Run
    from napari_medai.models.spec import Tiling

# A network, or what stands for one: (B, C, \*tile) -> (B, K, \*tile)
Asked = nn.Module | Callable[[torch.Tensor], torch.Tensor]
# Edge of a tile where neither the user nor the model says one: a few hundred MB for a U-Net
DEFAULT_TILE = {1: 16384, 2: 512, 3: 96}
# Voxels per forward pass of an accelerator: more brings no speed and needs memory
VOXELS_PER_PASS = 2**21


class Cutting(TypedDict, total=False):
    """How an image is cut for a network; what is not said is as the model's description has it.

    Attributes
    ----------
    multiple : int or sequence of int
        The network's total stride. A network that needs one fixed size has that size as its multiple.
    tile : sequence of int
        Default: the user's, else the description's, else `DEFAULT_TILE`.
    overlap : float
        Share of a tile that it shares with its neighbour.
    halo : int or sequence of int
        Reach of the network in voxels, see `plan_tiles`.
    batch : int
        Default: the user's, else 1 on the CPU and by size on an accelerator.
    empty : float or None
        Tiles in which no pixel is above this are background; see `Tiling.empty`. Default: no tile is.
    """

    multiple: int | Sequence[int]
    tile: Sequence[int]
    overlap: float
    halo: int | Sequence[int]
    batch: int
    empty: float | None


@dataclass(frozen=True)
class _Cuts:
    """How an image of one shape is cut, whatever the tile: strides and reach along each axis."""

    shape: tuple[int, ...]
    overlap: float
    steps: tuple[int, ...]
    reach: tuple[int, ...]
    tiling: Tiling

    def plan(self, tile: Sequence[int]) -> TilePlan:
        how = self.tiling
        return plan_tiles(self.shape, tile, self.overlap, self.steps, self.reach, how.places, how.blend)


def stream(
    run: Run,
    array: Any,
    take: Take,
    network: Asked | None,
    cutting: Cutting,
    *,
    axis: int,
    begin: int,
    again: Callable[[], int] | None,
    made: Callable[[int], Made],
) -> None:
    """See `napari_medai.engine.run.Run.stream`."""
    ndim = len(array.shape) - 1
    tiling = run.spec.tiling
    multiple, halo = cutting.get("multiple", tiling.multiple), cutting.get("halo", tiling.halo)
    steps = (multiple,) * ndim if isinstance(multiple, int) else tuple(multiple)
    reach = (halo,) * ndim if isinstance(halo, int) else tuple(halo)
    cuts = _Cuts(tuple(array.shape[1:]), cutting.get("overlap", tiling.overlap), steps, reach, tiling)
    # the plan rounds and shrinks the tile; fallbacks begin from what is really used
    tiles = cuts.plan(tuple(cutting.get("tile", ())) or _tile(run, ndim))
    _check_reach(tiles, reach)
    network = run.network(fast=True) if network is None else network
    keep: Accumulator = "host" if run.device.type == "cpu" else "device"
    first = setting = Setting(run.device, tiles.tile, _batch(run, cutting.get("batch", 0), tiles.tile), keep=keep)
    cost: Cost | None = None
    known: Known = {}
    while True:
        if setting.device != run.device:  # while the network was loaded
            first = setting = Setting(run.device, setting.tile, 1)
        tiles = cuts.plan(setting.tile)
        sweep = Sweep(tiles, take, axis=axis, begin=begin, sums=setting.sums, keep=setting.keep, device=run.device)
        rows = Rows(array, tiles, axis)
        try:
            if cost is None or cost.tile != tiles.tile:
                known = {}  # of larger tiles
                known, cost = first_pass(rows, network, sweep, setting, run)
            lighter = _plan(run, setting, tiles, axis, cost, made(cost.channels), cuts)
            if lighter is None:
                if isinstance(network, nn.Module) and not isinstance(network, Compiled):
                    network = compiled(network, run.device, len(sweep) // setting.batch, cost.seconds, run.note)
                predict(rows, network, sweep, setting, run, known, cutting.get("empty"))
                return
            setting, note = lighter
            run.note(note)
            continue
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        finally:
            sweep.close()  # also where somebody keeps the error, and with it what the frames hold
        # Outside of the except block, whose traceback holds the tensors of the failed pass
        begin, known = again() if again is not None else sweep.finished, {}
        release_memory(run.device)
        following = smaller(setting, first, steps, reach)
        if following is None:
            raise DeviceError(
                f"There is not enough memory on the {run.device.type} for a tile of "
                f"{size_text(setting.tile)} voxels; close other programs, or use a smaller image."
            )
        setting, note = following
        run.note(note)
        if setting.device != run.device:
            cost = None
            if isinstance(network, Compiled):
                network = network.network
            if isinstance(network, nn.Module):
                forget()
                network.to(setting.device)
            release_memory(run.device)
            run.use_cpu(note)


def _plan(
    run: Run, setting: Setting, tiles: TilePlan, axis: int, cost: Cost, made: Made, cuts: _Cuts
) -> tuple[Setting, str] | None:
    """Tell the plan; or the next way to run, if this one would not fit.

    Raises
    ------
    DeviceError
        Nothing fits.
    """
    if not run.planned:  # labels of all frames are kept; what those before took is held already
        made = replace(made, kept_mb=made.kept_mb * run.frames)
    plan = make_plan(setting, tiles, axis, cost, made, run.room(), run.precision)
    lighter = None if plan.fits else next_that_may_fit(setting, plan, cuts.steps, cuts.reach)
    if lighter is not None:
        return lighter
    if not run.planned:
        run.planned = True
        run.progress.planned(
            replace(
                plan,
                tiles=plan.tiles * run.frames,
                seconds=plan.seconds * run.frames,
                host_mb=max(plan.host_mb, run.memory.host_mb()),
            )
        )
    if not plan.fits:
        raise DeviceError(f"This run does not fit into memory: {plan.advice}.")
    return None


def _tile(run: Run, ndim: int) -> tuple[int, ...]:
    if run.params.tile:
        return (run.params.tile,) * ndim
    size = run.spec.tiling.size
    if size and len(size) != ndim:
        raise ModelError(f"Model {run.spec.id!r} has tiles of {len(size)} axes; its input has {ndim}.")
    return size or (DEFAULT_TILE.get(ndim, 32),) * ndim


def _batch(run: Run, batch: int, tile: Sequence[int]) -> int:
    wanted = batch or run.params.batch
    if wanted:
        return wanted
    return 1 if run.device.type == "cpu" else max(1, min(32, VOXELS_PER_PASS // prod(tile)))


def _check_reach(tiles: TilePlan, reach: Sequence[int]) -> None:
    """Refuse tiles that a network reaches across: nothing in them would have seen all of its surroundings.

    Raises
    ------
    ModelError
        Along an axis with several tiles.
    """
    for axis, far in zip(tiles.axes, reach, strict=True):
        if len(axis.starts) > 1 and axis.tile <= 2 * far:
            raise ModelError(
                f"The network looks {far} voxels far to each side; in tiles of {axis.tile} voxels nothing would see "
                f"all of its surroundings. Use tiles of more than {2 * far} voxels (tile=…, medai: --tile), at least "
                f"{4 * far} to be quick."
            )

"""A network over the tiles of an image, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from napari_medai.core.errors import ModelError
from napari_medai.core.stage import Progress
from napari_medai.engine.memory import Setting, is_out_of_memory
from napari_medai.engine.tiling import Stitcher, Tile, TilePlan

Network = Callable[[torch.Tensor], torch.Tensor]


class Observer(Protocol):
    """Who is told what happens (a `napari_medai.engine.run.Run`)."""

    progress: Progress
    precision: str

    def tile_done(self, count: int) -> None:
        """Tiles went through the network."""

    def use_float32(self, note: str) -> None:
        """Half precision overflowed."""


def predict(
    array: NDArray[np.float32], network: Network, stitcher: Stitcher, setting: Setting, observer: Observer
) -> NDArray[np.float32]:
    """Run a network over an image, tile by tile, and blend the results.

    Parameters
    ----------
    array : (C, \\*shape) float32 array
        The image.
    network : callable
        (B, C, \\*tile) -> (B, K, \\*tile); on the setting's device.
    stitcher : Stitcher
        Knows how the image is cut; tiles that it already has are not run again.
    setting : Setting
        Device and tiles per pass.
    observer : Observer
        Told of every pass; its progress may stop the run.

    Returns
    -------
    (K, \\*shape) float32 array

    Raises
    ------
    ModelError
        The network fails, or its output has another size than the tile, is not finite, or changes its number of
        channels.
    Cancelled
        The run was stopped.
    """
    plan, total = stitcher.plan, len(stitcher.plan)
    tiles = islice(plan, stitcher.done, None)
    observer.progress.check()
    while batch := list(islice(tiles, setting.batch)):
        pixels = torch.from_numpy(np.stack([plan.cut(array, tile) for tile in batch])).to(setting.device)
        with torch.inference_mode():
            out = _forward(network, pixels, setting.device, observer)
            for tile, values in _weighted(out, batch, plan):
                stitcher.add(tile, values)
        observer.tile_done(len(batch))
        observer.progress.update(stitcher.done, total, f"tile {stitcher.done} of {total}")
    return stitcher.result()


def _forward(network: Network, pixels: torch.Tensor, device: torch.device, observer: Observer) -> torch.Tensor:
    """One pass, checked; in half precision if the observer says so, and again in float32 if that overflows."""
    half = observer.precision != "float32"
    try:
        with _autocast(device, half):
            out = network(pixels)
    except RuntimeError as error:
        if is_out_of_memory(error) or isinstance(error, torch.AcceleratorError):
            raise
        reason = str(error).partition("\n")[0]
        raise ModelError(f"The network failed on an input of {tuple(pixels.shape)}: {reason}.") from error
    if not isinstance(out, torch.Tensor) or out.ndim != pixels.ndim or len(out) != len(pixels):
        what = tuple(out.shape) if isinstance(out, torch.Tensor) else type(out).__name__
        raise ModelError(
            f"The network gave {what} for an input of {tuple(pixels.shape)}; "
            "one tensor of (tiles, channels, voxels …) is needed."
        )
    if out.shape[2:] != pixels.shape[2:]:
        raise ModelError(
            f"The network made {tuple(out.shape[2:])} out of a tile of {tuple(pixels.shape[2:])}; they must agree."
        )
    out = out.float()
    if bool(torch.isfinite(out).all()):
        return out
    if half:
        observer.use_float32("half precision overflowed: running in float32 instead")
        return _forward(network, pixels, device, observer)
    raise ModelError("The network gave values that are not finite; its weights or its input do not fit it.")


def _autocast(device: torch.device, half: bool) -> AbstractContextManager[object]:
    # float16 keeps three bits more than bfloat16; where it overflows the pass is repeated in float32
    return torch.autocast(device.type, dtype=torch.float16) if half else nullcontext()


def _weighted(out: torch.Tensor, batch: list[Tile], plan: TilePlan) -> Iterator[tuple[Tile, NDArray[np.float32]]]:
    """Each tile's output times its weights, in the machine's memory."""
    for tile, values in zip(batch, out, strict=True):
        if len(plan) > 1:
            values = values * torch.from_numpy(plan.weight(tile)).to(values.device)
        yield tile, values.cpu().numpy()

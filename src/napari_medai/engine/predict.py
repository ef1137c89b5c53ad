"""A network over the tiles of an image, batch by batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from napari_medai.core.errors import ModelError
from napari_medai.core.stage import Progress
from napari_medai.engine.device import release_host_memory
from napari_medai.engine.memory import Setting, is_out_of_memory
from napari_medai.engine.peak import Peak, resident_mb
from napari_medai.engine.planning import REMEMBERED_BYTES, Cost
from napari_medai.engine.sweep import Sweep
from napari_medai.engine.tiling import Tile, TilePlan

Network = Callable[[torch.Tensor], torch.Tensor]
# Outputs of tiles that are known already
Known = MutableMapping[Tile, torch.Tensor]

# Types of half precision, by the name that the record has of them
HALF = {"float16 (autocast)": torch.float16, "bfloat16 (autocast)": torch.bfloat16}
# Half precision is kept if so large a share of the first tile's voxels gets the same label as in float32
AGREEMENT = 0.999
_MIB = 2**20


class Observer(Protocol):
    """Who is told what happens (a `napari_medai.engine.run.Run`)."""

    progress: Progress
    precision: str
    # (K, \*tile) scores -> what is made of them: labels that have to stay the same
    decided: Callable[[torch.Tensor], torch.Tensor]

    def tile_done(self, count: int) -> None:
        """Tiles went through the network."""

    def note(self, message: str) -> None:
        """Something was done in the user's place."""

    def lower_precision_failed(self, note: str) -> None:
        """Half precision overflowed, or gives other labels: another type from here on."""


class Rows:
    """An image that is read a row of tiles at a time: what is in memory is as deep as a tile.

    Parameters
    ----------
    array : array
        (C, \\*shape): numpy, or anything that is cut like it (dask, Zarr).
    plan : TilePlan
        How it is cut.
    axis : int
        Along which the rows follow each other.
    """

    def __init__(self, array: Any, plan: TilePlan, axis: int) -> None:
        self._array, self._plan, self._axis = array, plan, axis
        self._row, self._begin = -1, 0
        self._pixels: NDArray[np.float32] | None = array if isinstance(array, np.ndarray) else None

    def cut(self, tile: Tile) -> NDArray[np.float32]:
        """The pixels of a tile, (C, \\*tile)."""
        if isinstance(self._array, np.ndarray):
            return self._plan.cut(self._array, tile)
        if self._row != tile[self._axis] or self._pixels is None:
            self._row = tile[self._axis]
            index = self._plan.axes[self._axis].indices(self._row)
            self._begin = int(index.min())
            where = [slice(None)] * (len(self._plan.axes) + 1)
            where[self._axis + 1] = slice(self._begin, int(index.max()) + 1)
            self._pixels = None  # first, or two rows would be in memory
            self._pixels = np.asarray(self._array[tuple(where)], dtype=np.float32)
        origin = [0] * len(self._plan.axes)
        origin[self._axis] = self._begin
        return self._plan.cut(self._pixels, tile, origin)


def predict(
    rows: Rows,
    network: Network,
    sweep: Sweep,
    setting: Setting,
    observer: Observer,
    known: Known | None = None,
    empty: float | None = None,
) -> None:
    """Run a network over an image, tile by tile; the sweep blends and hands over what is final.

    A tile in which every pixel of a channel has one value (air that was clipped, padding) gives what another such tile
    gave: the network is asked once.

    Parameters
    ----------
    rows : Rows
        The image.
    network : callable
        (B, C, \\*tile) -> (B, K, \\*tile); on the setting's device.
    sweep : Sweep
        Says which tiles, in which order.
    setting : Setting
        Device and tiles per pass.
    observer : Observer
        Told of every pass; its progress may stop the run.
    known : mapping, optional
        Outputs of tiles, each (K, \\*tile), that went through the network already; emptied.
    empty : float, optional
        A tile in which no pixel is above this is taken for one of this value alone, as far as the network's answer to
        the brightest of them so far was the same; see `Tiling.empty`.

    Raises
    ------
    ModelError
        The network fails, or its output has another size than the tile, is not finite, or changes its number of
        channels.
    Cancelled
        The run was stopped.
    """
    total, done = len(sweep), 0
    known = {} if known is None else known
    flat: dict[tuple[float, ...], torch.Tensor] = {}
    ground = Ground(empty, network, observer)
    observer.progress.check()
    for batch in _ahead(_batches(rows, sweep, setting.batch, known, ground), setting.device):
        # a function of its own: what it made is gone before the next pass
        observer.tile_done(_add(batch, network, sweep, setting.device, observer, known, flat, ground))
        done += len(batch)
        observer.progress.update(done, total, f"tile {done} of {total}")


def _add(
    batch: list[_Cut],
    network: Network,
    sweep: Sweep,
    device: torch.device,
    observer: Observer,
    known: Known,
    flat: dict[tuple[float, ...], torch.Tensor],
    ground: Ground,
) -> int:
    """Add a batch of tiles to the sweep; how many outputs the network made for it, those known before too."""
    remembered = dict(flat)
    # of tiles with the same one value only the first is asked for
    asked: dict[tuple[float, ...] | int, int] = {}
    for n, one in enumerate(batch):
        if one.tile not in known and one.value not in remembered:
            asked.setdefault(one.value or n, n)
    place = {key: at for at, key in enumerate(asked)}
    passed = len(asked)
    with torch.inference_mode():
        if asked:
            cuts = [batch[n] for n in asked.values()]
            # what stands for a dark tile is asked for in its place
            filled = [np.broadcast_to(_column(c), c.pixels.shape) if c.value else c.pixels for c in cuts]
            pixels = _stacked(filled, device)
            if any(c.dark is not None for c in cuts):
                ground.ask(pixels[0])
            out = forward(network, pixels, observer)
        for n, one in enumerate(batch):
            if one.tile in known:
                values = known.pop(one.tile)
                passed += 1
            elif one.value in remembered:
                values = remembered[one.value]
            else:
                values = out[place[one.value or n]]
                if one.dark is not None:
                    ground.compare(one.dark, values)
                if one.value and values.nbytes <= REMEMBERED_BYTES:
                    flat.clear()
                    flat[one.value] = values.clone()
            sweep.add(one.tile, values)
    return passed


def first_pass(rows: Rows, network: Network, sweep: Sweep, setting: Setting, observer: Observer) -> tuple[Known, Cost]:
    """Run one tile, measure what it takes, and check half precision against float32.

    Returns
    -------
    mapping, Cost
        The tile's output, for `predict`; what a pass takes.
    """
    observer.progress.check()
    tile = next(iter(sweep))
    device, cuda = setting.device, setting.device.type == "cuda"
    # what earlier work freed and the C library keeps would hide what this takes
    release_host_memory()
    with torch.inference_mode():
        with Peak() as peak:
            pixels = _stacked([rows.cut(tile)], device)
        reading = peak.mb() - resident_mb()
        if cuda:
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
        began = time.perf_counter()
        with Peak() as peak:
            out = forward(network, pixels, observer)
            if cuda:
                torch.cuda.synchronize(device)
        highest, seconds = peak.mb(), time.perf_counter() - began
        highest_on_device = torch.cuda.max_memory_allocated(device) / _MIB if cuda else 0.0
        out = _agreed(network, pixels, out, observer)
    release_host_memory()
    output = out.nbytes / _MIB
    held = resident_mb() - (0.0 if cuda else output)
    held_on_device = torch.cuda.memory_allocated(device) / _MIB - output if cuda else 0.0
    cost = Cost(
        tile=tuple(pixels.shape[2:]), batch=1, channels=out.shape[1], held_mb=held, reading_mb=max(reading, 0.0),
        host_mb=max(highest - held, 0.0 if cuda else output), seconds=seconds,
        held_device_mb=held_on_device, device_mb=highest_on_device - held_on_device if cuda else 0.0,
    )  # fmt: skip
    return {tile: out[0]}, cost


def forward(network: Network, pixels: torch.Tensor, observer: Observer) -> torch.Tensor:
    """One pass, checked; float32 (B, K, \\*tile). In half precision if the observer says so, else if that overflows.

    Raises
    ------
    ModelError
        As `predict`.
    """
    device, half = pixels.device, HALF.get(observer.precision)
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
    # a sum is finite only if what it is of is, and needs no memory; a sum can overflow where nothing else did
    if bool(torch.isfinite(out.sum())) or bool(torch.isfinite(out).all()):
        return out
    if half is not None:
        observer.lower_precision_failed("half precision overflowed")
        return forward(network, pixels, observer)
    raise ModelError("The network gave values that are not finite; its weights or its input do not fit it.")


def _agreed(network: Network, pixels: torch.Tensor, out: torch.Tensor, observer: Observer) -> torch.Tensor:
    """The output in a precision in which the labels are those of float32."""
    while observer.precision in HALF and out.shape[1] > 1:
        with _autocast(pixels.device, None):
            exact = network(pixels).float()
        share = float((observer.decided(exact[0]) == observer.decided(out[0])).float().mean())
        if share >= AGREEMENT:
            return out
        observer.lower_precision_failed(f"half precision changed {1 - share:.2%} of the first tile's labels")
        out = exact if observer.precision not in HALF else forward(network, pixels, observer)
    return out


def _autocast(device: torch.device, half: torch.dtype | None) -> AbstractContextManager[object]:
    return torch.autocast(device.type, dtype=half) if half is not None else nullcontext()


@dataclass(frozen=True, eq=False)
class _Cut:
    """A tile with its pixels, the value of each channel where it has only one, and how bright it is if it is dark."""

    tile: Tile
    pixels: NDArray[np.float32]
    value: tuple[float, ...]
    dark: float | None = None


class Ground:
    """Which tiles hold nothing but background, and whether the network says so, too.

    Parameters
    ----------
    empty : float or None
        See `predict`; none: nothing is taken for background.
    network, observer
        As `predict`.
    """

    def __init__(self, empty: float | None, network: Network, observer: Observer) -> None:
        self._empty, self._network, self._observer = empty, network, observer
        self._level = -np.inf
        self._labels: torch.Tensor | None = None

    def brightness(self, pixels: NDArray[np.float32]) -> float | None:
        """The brightest pixel of a tile that is dark enough to be background; none of others."""
        if self._empty is None:
            return None
        brightest = float(pixels.max())
        return brightest if brightest <= self._empty else None

    def stands_for(self, brightness: float, pixels: NDArray[np.float32]) -> tuple[float, ...]:
        """The value that a dark tile is taken to have throughout; empty if brighter ones were not compared yet."""
        return (float(self._empty or 0.0),) * len(pixels) if brightness <= self._level else ()

    def ask(self, like: torch.Tensor) -> None:
        """Ask the network, once, for the labels of a tile (C, \\*tile) of one value alone."""
        if self._empty is None or self._labels is not None:
            return
        flat = torch.full_like(like[None], self._empty)
        self._labels = self._observer.decided(forward(self._network, flat, self._observer)[0])
        self._observer.tile_done(1)

    def compare(self, brightness: float, values: torch.Tensor) -> None:
        """Look whether a dark tile's labels are those of a tile of one value alone."""
        if self._empty is None or self._labels is None:
            return
        if torch.equal(self._observer.decided(values), self._labels):
            self._level = max(self._level, brightness)
            return
        # the level first: the thread that cuts the next tiles looks at both
        self._level, self._empty = -np.inf, None
        self._observer.note("dark tiles are not all background to this network: none is left out from here on")


def winning(values: torch.Tensor) -> torch.Tensor:
    """The winning class of (K, \\*tile); one channel holds it already."""
    return values.argmax(0) if len(values) > 1 else values[0]


def _batches(rows: Rows, sweep: Sweep, size: int, known: Known, ground: Ground) -> Iterator[list[_Cut]]:
    """Tiles with their pixels, so many at a time."""
    tiles = iter(sweep)
    while batch := list(islice(tiles, size)):
        cuts = []
        for tile in batch:
            if tile in known:
                cuts.append(_Cut(tile, np.zeros(0, np.float32), ()))
                continue
            pixels = rows.cut(tile)
            value, dark = _value(pixels), ground.brightness(pixels)
            if dark is not None and not value:
                value = ground.stands_for(dark, pixels)
            cuts.append(_Cut(tile, pixels, value, dark if not value else None))
        yield cuts


def _ahead(batches: Iterator[list[_Cut]], device: torch.device) -> Iterator[list[_Cut]]:
    """The same; for an accelerator the next batch is cut while the one in hand is computed."""
    if device.type == "cpu":
        yield from batches
        return
    with ThreadPoolExecutor(1, "medai-tiles") as thread:
        coming = thread.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = thread.submit(next, batches, None)
            yield batch


def _stacked(pixels: list[NDArray[np.float32]], device: torch.device) -> torch.Tensor:
    """(B, C, \\*tile) on the device."""
    tensor = torch.from_numpy(np.stack(pixels))
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def _column(cut: _Cut) -> NDArray[np.float32]:
    return np.reshape(np.asarray(cut.value, np.float32), (-1, *(1,) * (cut.pixels.ndim - 1)))


def _value(pixels: NDArray[np.float32]) -> tuple[float, ...]:
    """The value of each channel where it has only one; else empty."""
    flat = pixels.reshape(len(pixels), -1)
    first = flat[:, 0]
    # most tiles are told by their middle already
    if (flat[:, flat.shape[1] // 2] != first).any() or (flat != first[:, None]).any():
        return ()
    return tuple(map(float, first))

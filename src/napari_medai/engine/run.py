"""One run of one model: its device, its network, tiled prediction with fallbacks, and the record of it all."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from math import prod
from typing import Any

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import nn

from napari_medai.core.errors import DeviceError, ModelError, UntrustedError
from napari_medai.core.provenance import Provenance
from napari_medai.core.stage import Params, Progress
from napari_medai.core.volume import Volume
from napari_medai.engine import load_runner
from napari_medai.engine.device import choose_device, release_memory
from napari_medai.engine.isolated_limits import inside
from napari_medai.engine.memory import Setting, is_out_of_memory, smaller
from napari_medai.engine.predict import predict
from napari_medai.engine.tiling import Stitcher, plan_tiles
from napari_medai.engine.weights import forget, load_network
from napari_medai.models.spec import Model, ModelSpec

# Edge of a tile where neither the user nor the model says one: a few hundred MB for a U-Net
DEFAULT_TILE = {1: 16384, 2: 512, 3: 96}
# Voxels per forward pass of an accelerator: more brings no speed and needs memory
VOXELS_PER_PASS = 2**21

_SOFTWARE = ("napari-medai", "torch", "monai", "numpy")
_MIB = 2**20


class Run:
    """A model on a device, for the time of one stage; made by `start`.

    Attributes
    ----------
    stage : str
        Name of the stage.
    volume : Volume
        What the stage was given.
    model : Model
        What is run.
    params : Params
        The stage's parameters.
    progress : Progress
        Told how far it is; may be replaced, e.g. by a `Part` for each frame.
    notes : list of str
        What was changed on the way.
    device : torch.device
        Where it runs; becomes the CPU if the accelerator runs out of memory.
    precision : str
        ``"float32"`` or ``"float16 (autocast)"``, the default on CUDA; a runner whose network needs it sets
        ``"float32"`` before it predicts.
    tiles : int
        Number of tiles that went through a network.
    """

    def __init__(
        self, stage: str, volume: Volume, model: Model, params: Params, progress: Progress, notes: Sequence[str] = ()
    ) -> None:
        self.stage, self.volume, self.model, self.params, self.progress = stage, volume, model, params, progress
        self.notes: list[str] = []
        self.device = choose_device(params.device)
        self.precision = "float16 (autocast)" if self.device.type == "cuda" else "float32"
        self.tiles = 0
        self._started = time.perf_counter()
        self._memory = _Memory(self.device)
        for note in notes:
            self.note(note)

    @property
    def spec(self) -> ModelSpec:
        """The model's description."""
        return self.model.spec

    @property
    def runner(self) -> Callable[..., Any]:
        """The code that prepares the model's input and decodes its output: ``runner(volume, run, params)``.

        What its owner allowed to run is run in a process of its own.

        Raises
        ------
        UntrustedError
            The model needs what nobody allowed.
        """
        return load_runner("isolated" if self.goes_elsewhere else self.spec.runner)

    @property
    def goes_elsewhere(self) -> bool:
        """Whether the model is run in a process of its own, and this is not that process.

        Raises
        ------
        UntrustedError
            The model needs what nobody allowed.
        """
        allowed = self.model.grant.capabilities if self.model.grant else frozenset()
        if not self.spec.capabilities <= allowed:
            missing = ", ".join(sorted(self.spec.capabilities - allowed))
            raise UntrustedError(
                f"{self.spec.title!r} carries what is not run unless you allow it: {missing}.", self.spec.needs
            )
        return self.model.grant is not None and not inside()

    def note(self, message: str) -> None:
        """Keep in the record, and tell the user, what was done in their place; once for each message."""
        if message not in self.notes:
            self.notes.append(message)
            self.progress.note(message)

    def network(self) -> nn.Module:
        """The model's network: on `device`, in evaluation mode, without gradients of its parameters.

        Raises
        ------
        ModelError
            There is no such network, or its weights do not fit.
        DeviceError
            There is no memory for it.
        """
        return self.load(partial(load_network, self.spec, self.model.weights))

    def load(self, loader: Callable[[torch.device], nn.Module]) -> nn.Module:
        """A network by ``loader(device)``, on the CPU if the accelerator has no memory for it."""
        try:
            return loader(self.device)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or self.device.type == "cpu":
                raise
        forget()
        release_memory(self.device)
        self.use_cpu(f"{self.device.type} has no memory for the network: running on the CPU instead")
        return loader(self.device)

    def predict(
        self,
        array: NDArray[np.float32],
        network: nn.Module | Callable[[torch.Tensor], torch.Tensor] | None = None,
        *,
        multiple: int | Sequence[int] | None = None,
        tile: Sequence[int] = (),
        overlap: float | None = None,
        halo: int | Sequence[int] | None = None,
        batch: int = 0,
    ) -> NDArray[np.float32]:
        """Run a network over an image of any size: tiles, blended without seams.

        Parameters
        ----------
        array : (C, \\*spatial) float32 array
            Prepared pixels.
        network : module or function, optional
            (B, C, \\*tile) -> (B, K, \\*tile). Default: the model's.
        multiple : int or sequence of int, optional
            The network's total stride. Default: the description's. A network that needs one fixed size has that
            size as its multiple.
        tile : sequence of int, optional
            Default: the user's, else the description's, else `DEFAULT_TILE`.
        overlap : float, optional
            Default: the description's.
        halo : int or sequence of int, optional
            Reach of the network in voxels, see `plan_tiles`. Default: the description's.
        batch : int
            Default: the user's, else 1 on the CPU and by size on an accelerator.

        Returns
        -------
        (K, \\*spatial) float32 array

        Raises
        ------
        ModelError
            The output has another size, is not finite, or changes its number of channels.
        DeviceError
            There is not enough memory even for the smallest tile on the CPU.
        Cancelled
            The run was stopped; it takes effect after the tile in hand.
        """
        ndim = array.ndim - 1
        tiling = self.spec.tiling
        multiple = tiling.multiple if multiple is None else multiple
        steps = (multiple,) * ndim if isinstance(multiple, int) else tuple(multiple)
        overlap = tiling.overlap if overlap is None else overlap
        halo = tiling.halo if halo is None else halo
        edges = tuple(tile) or self._tile(ndim)
        # the plan rounds and shrinks the tile; fallbacks begin from what is really used
        edges = plan_tiles(array.shape[1:], edges, overlap, steps, halo).tile
        first = setting = Setting(self.device, edges, self._batch(batch, edges))
        network = self.network() if network is None else network
        stitcher: Stitcher | None = None
        while True:
            if setting.device != self.device:  # while the network was loaded
                first = setting = replace(setting, device=self.device, batch=1)
            plan = plan_tiles(array.shape[1:], setting.tile, overlap, steps, halo)
            if stitcher is None or stitcher.plan != plan:
                stitcher = Stitcher(plan)
            try:
                return predict(array, network, stitcher, setting, self)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            # Outside of the except block, whose traceback holds the tensors of the failed pass
            release_memory(self.device)
            following = smaller(setting, first, steps)
            if following is None:
                raise DeviceError(
                    f"There is not enough memory on the {self.device.type} for a tile of "
                    f"{' x '.join(map(str, setting.tile))} voxels; close other programs, or use a smaller image."
                )
            setting, note = following
            self.note(note)
            if setting.device != self.device:
                if isinstance(network, nn.Module):
                    forget()
                    network.to(setting.device)
                release_memory(self.device)
                self.use_cpu(note)

    def provenance(self) -> Provenance:
        """The record of the run so far."""
        return Provenance(
            stage=self.stage,
            inputs=(self.volume.name,),
            model=self.spec.id,
            model_sha256=self.spec.sha256,
            params=self.params.as_dict(),
            device=str(self.device),
            precision=self.precision,
            tiles=self.tiles,
            notes=tuple(self.notes),
            versions={name: _version(name) for name in _SOFTWARE},
            seconds=time.perf_counter() - self._started,
            peak_memory_mb=self._memory.peak_mb(),
        )

    def tile_done(self, count: int) -> None:
        """Count tiles that went through a network, and look at the memory; called by the engine."""
        self.tiles += count
        self._memory.look()

    def ran_elsewhere(self, device: str = "", precision: str = "", tiles: int = 0, peak_memory_mb: float = 0.0) -> None:
        """Keep in the record what another process said of itself; called by the engine."""
        self.device = torch.device(device) if device else self.device
        self.precision = precision or self.precision
        self.tiles = tiles or self.tiles
        self._memory.seen = max(self._memory.seen, peak_memory_mb)

    def use_float32(self, note: str) -> None:
        """Give up half precision, with a note; called by the engine."""
        self.precision = "float32"
        self.note(note)

    def use_cpu(self, note: str) -> None:
        """Give up the accelerator, with a note; called by the engine."""
        self.device, self.precision = torch.device("cpu"), "float32"
        self.note(note)

    def _tile(self, ndim: int) -> tuple[int, ...]:
        if self.params.tile:
            return (self.params.tile,) * ndim
        size = self.spec.tiling.size
        if size and len(size) != ndim:
            raise ModelError(f"Model {self.spec.id!r} has tiles of {len(size)} axes; its input has {ndim}.")
        return size or (DEFAULT_TILE.get(ndim, 32),) * ndim

    def _batch(self, batch: int, tile: Sequence[int]) -> int:
        wanted = batch or self.params.batch
        if wanted:
            return wanted
        return 1 if self.device.type == "cpu" else max(1, min(32, VOXELS_PER_PASS // prod(tile)))


@contextmanager
def start(
    stage: str, volume: Volume, model: Model, params: Params, progress: Progress, notes: Sequence[str] = ()
) -> Iterator[Run]:
    """A `Run` for the time of a ``with`` block; memory is given back at its end, whatever happens.

    Raises
    ------
    DeviceError
        The device asked for is absent, or memory ran out where nothing smaller could be tried.
    """
    run = Run(stage, volume, model, params, progress, notes)
    first = run.device
    try:
        yield run
    except torch.AcceleratorError as error:
        raise DeviceError(
            f"The {run.device.type} device stopped during {stage}: {str(error).partition(chr(10))[0]}. "
            "Choose another device, or start the program again."
        ) from error
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise DeviceError(
            f"Memory ran out on the {run.device.type} during {stage}; close other programs, or use a smaller image."
        ) from None
    finally:
        release_memory(first)


@dataclass
class _Memory:
    """Peak memory of a run: the accelerator's own count, or the process's resident size."""

    device: torch.device
    seen: float = 0.0

    def __post_init__(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self.high_water = _high_water_mb()
        self.look()

    def look(self) -> None:
        """Take a sample."""
        if self.device.type == "mps":
            now = torch.mps.driver_allocated_memory() / _MIB
        else:
            now = psutil.Process().memory_info().rss / _MIB
        self.seen = max(self.seen, now)

    def peak_mb(self) -> float:
        """MiB since the run began."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / _MIB
        self.look()
        high = _high_water_mb()
        # The system's mark is of the whole life of the process: it tells of this run only if it rose in it.
        return max(self.seen, high) if self.device.type == "cpu" and high > self.high_water else self.seen


def _high_water_mb() -> float:
    """Largest resident size of the process so far in MiB; 0 where the system does not tell."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return float(getattr(psutil.Process().memory_info(), "peak_wset", 0) / _MIB)
    import sys

    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB elsewhere
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / _MIB)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""

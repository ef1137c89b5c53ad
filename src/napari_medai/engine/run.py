"""One run of one model: its device, its network, tiled prediction with fallbacks, and the record of it all."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from math import prod
from typing import Any, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from napari_medai.core.errors import DeviceError, ModelError, UntrustedError
from napari_medai.core.provenance import Provenance
from napari_medai.core.stage import Params, Progress
from napari_medai.core.volume import Volume
from napari_medai.engine import load_runner
from napari_medai.engine.device import choose_device, release_memory
from napari_medai.engine.faster import faster
from napari_medai.engine.isolated_limits import inside
from napari_medai.engine.memory import is_out_of_memory
from napari_medai.engine.peak import RunMemory
from napari_medai.engine.planning import Made, Room, room
from napari_medai.engine.predict import winning
from napari_medai.engine.streaming import Asked, Cutting, stream
from napari_medai.engine.sweep import Take
from napari_medai.engine.weights import forget, load_network
from napari_medai.models.spec import Model, ModelSpec

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
        ``"float32"``; on CUDA ``"float16 (autocast)"``, the default there, or ``"bfloat16 (autocast)"``. A runner whose
        network needs it sets ``"float32"`` before it predicts.
    decided : callable
        What comes out of a tile's scores (K, \\*tile), in which half precision must agree with float32, and background
        that is left out with background that is not. Default: the class of the largest score. A runner whose network's
        channels are no classes sets another before it predicts.
    tiles : int
        Number of tiles that went through a network.
    frames : int
        Images of a series that go through one after the other; set by the stage, for the plan.
    planned : bool
        Whether its plan was told.
    memory : RunMemory
        What it took so far.
    """

    def __init__(
        self, stage: str, volume: Volume, model: Model, params: Params, progress: Progress, notes: Sequence[str] = ()
    ) -> None:
        self.stage, self.volume, self.model, self.params, self.progress = stage, volume, model, params, progress
        self.notes: list[str] = []
        self.device = choose_device(params.device)
        self.precision = "float16 (autocast)" if self.device.type == "cuda" else "float32"
        self.decided: Callable[[torch.Tensor], torch.Tensor] = winning
        self.tiles, self.frames = 0, 1
        self.planned = False
        self._started = time.perf_counter()
        self.memory = RunMemory(self.device)
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

    def room(self) -> Room:
        """What there is of memory now, and what the run may take of it."""
        return room(self.device, float(self.params.memory))

    def note(self, message: str) -> None:
        """Keep in the record, and tell the user, what was done in their place; once for each message."""
        if message not in self.notes:
            self.notes.append(message)
            self.progress.note(message)

    def network(self, fast: bool = False) -> nn.Module:
        """The model's network: on `device`, in evaluation mode, without gradients of its parameters.

        Parameters
        ----------
        fast : bool
            As `faster` gives it, for inference alone: nothing of it can be looked into. Default False.

        Raises
        ------
        ModelError
            There is no such network, or its weights do not fit.
        DeviceError
            There is no memory for it.
        """
        network = self.load(partial(load_network, self.spec, self.model.weights))
        return faster(network, self.device, self.note) if fast else network

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
        self, array: NDArray[np.float32], network: Asked | None = None, **cutting: Unpack[Cutting]
    ) -> NDArray[np.float32]:
        """Run a network over an image of any size: tiles, blended without seams.

        Parameters
        ----------
        array : (C, \\*spatial) float32 array
            Prepared pixels.
        network : module or function, optional
            (B, C, \\*tile) -> (B, K, \\*tile). Default: the model's. A module is moved when the run falls back to the
            CPU; a function takes tensors of any device.
        **cutting
            See `Cutting`.

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
        whole: NDArray[np.float32] | None = None

        def take(first: int, scores: NDArray[np.floating]) -> None:
            nonlocal whole
            if whole is None:
                whole = np.empty((len(scores), *array.shape[1:]), np.float32)
            whole[:, first : first + scores.shape[1]] = scores

        def made(channels: int) -> Made:
            return Made(kept_mb=channels * prod(array.shape[1:]) * 4 / _MIB)

        self.stream(array, take, network, made=made, **cutting)
        if whole is None:
            raise ModelError(f"An image of {' x '.join(map(str, array.shape))} has no voxel to predict.")
        return whole

    def stream(
        self,
        array: Any,
        take: Take,
        network: Asked | None = None,
        *,
        axis: int = 0,
        begin: int = 0,
        again: Callable[[], int] | None = None,
        made: Callable[[int], Made] = lambda channels: Made(),
        **cutting: Unpack[Cutting],
    ) -> None:
        """Run a network over an image and hand its scores over plane by plane, as soon as they are final.

        Memory is that of the tiles in one row across the image, not of the image times its channels.

        Parameters
        ----------
        array : (C, \\*spatial) array
            Prepared pixels: numpy, or anything that is cut like it and read a row of tiles at a time (dask, Zarr).
        take : callable
            ``take(first, scores)``: planes ``first``, ``first + 1``, … along ``axis``, which comes first among the axes
            of space: (K, planes, \\*rest), valid only during the call.
        network
            As `predict`.
        axis : int
            Along which planes are handed over. Default 0.
        begin : int
            First plane that is wanted. Default 0.
        again : callable, optional
            The first plane that is wanted after memory ran out, perhaps while planes were taken. Default: the one
            after those that were taken.
        made : callable
            What ``take`` and its like make of so many channels, for the plan.
        **cutting
            See `Cutting`.

        Raises
        ------
        ModelError, DeviceError, Cancelled
            As `predict`.
        """
        stream(self, array, take, network, cutting, axis=axis, begin=begin, again=again, made=made)

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
            peak_memory_mb=self.memory.peak_mb(),
        )

    def tile_done(self, count: int) -> None:
        """Count tiles that went through a network, and look at the memory; called by the engine."""
        self.tiles += count
        self.memory.look()

    def ran_elsewhere(self, device: str = "", precision: str = "", tiles: int = 0, peak_memory_mb: float = 0.0) -> None:
        """Keep in the record what another process said of itself; called by the engine."""
        self.device = torch.device(device) if device else self.device
        self.precision = precision or self.precision
        self.tiles = tiles or self.tiles
        self.memory.seen = max(self.memory.seen, peak_memory_mb)

    def lower_precision_failed(self, note: str) -> None:
        """Take the next more exact type of half precision, or give it up, with a note; called by the engine."""
        cuda = self.device.type == "cuda" and torch.cuda.is_bf16_supported()
        if cuda and self.precision == "float16 (autocast)":  # bfloat16 has the range of float32
            self.precision = "bfloat16 (autocast)"
            self.note(f"{note}: running in bfloat16 instead")
        else:
            self.use_float32(f"{note}: running in float32 instead")

    def use_float32(self, note: str) -> None:
        """Give up half precision, with a note; called by the engine."""
        self.precision = "float32"
        self.note(note)

    def use_cpu(self, note: str) -> None:
        """Give up the accelerator, with a note; called by the engine."""
        self.device, self.precision = torch.device("cpu"), "float32"
        self.note(note)


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
        forget()  # what is kept warm is gone with it
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
        run.memory.close()
        with suppress(torch.AcceleratorError):  # of a device that stopped
            release_memory(first)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""

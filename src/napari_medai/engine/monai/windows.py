"""A network that says how far a sliding window is, and stops between two batches of windows."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from math import ceil
from typing import TYPE_CHECKING, Any

import torch
from monai.data.utils import dense_patch_slices
from monai.inferers import Inferer, SlidingWindowInferer
from monai.inferers.utils import _get_scan_interval
from monai.utils import ensure_tuple_rep, fall_back_tuple
from torch import nn

from napari_medai.core.errors import DeviceError
from napari_medai.core.plan import Plan
from napari_medai.engine.peak import Peak
from napari_medai.engine.planning import room

if TYPE_CHECKING:
    from napari_medai.engine.run import Run

# Of each channel for each voxel of either side while MONAI resamples; measured: 11.5
_BACK_BYTES = 12


class ScoresError(DeviceError):
    """The scores of the whole image, as MONAI holds them, do not fit into memory."""


class Counted(nn.Module):
    """Calls a network, counts, and asks before each call whether to go on.

    Parameters
    ----------
    network : Module
        On the device of the run.
    run : Run
        Told of each batch of windows.
    calls : int
        How many there will be.
    half : bool
        Whether to compute in half precision where the device can.
    voxels : int
        Of the image, for the plan; 0: there is none to tell.
    back_voxels : int
        Of the scan, where scores are brought back to it.
    other_way : bool
        Whether there is one, for scores that do not fit.
    """

    def __init__(
        self,
        network: nn.Module,
        run: Run,
        calls: int,
        half: bool,
        voxels: int = 0,
        back_voxels: int = 0,
        other_way: bool = False,
    ) -> None:
        super().__init__()
        self._voxels, self._back_voxels, self._other_way = voxels, back_voxels, other_way
        self._network: Callable[..., Any] = network
        self._run, self._calls, self._done = run, calls, 0
        self._half = half
        self.eval()

    def forward(self, inputs: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """The network's answer."""
        self._run.progress.update(min(self._done, self._calls), self._calls, "looking")
        context = torch.autocast("cuda") if self._half and inputs.device.type == "cuda" else nullcontext()
        first = self._done == 0 and self._voxels and not self._run.planned
        peak, began = Peak() if first else None, time.perf_counter()
        with context:
            out = self._network(inputs, *args, **kwargs)
        if peak is not None and isinstance(out, torch.Tensor):
            self._plan(inputs, out, peak.close() - peak.before, time.perf_counter() - began)
        self._done += 1
        self._run.tile_done(len(inputs))
        return out

    def _plan(self, inputs: torch.Tensor, out: torch.Tensor, pass_mb: float, seconds: float) -> None:
        """Tell what MONAI's way takes: the scores of the whole image, and what its transforms make of them.

        Raises
        ------
        ScoresError
            The scores alone do not fit; or all of it, and there is another way.
        """
        run, device = self._run, inputs.device
        now = room(device, float(run.params.memory))
        scores = out.shape[1] * self._voxels * out.element_size() / 2**20
        weights = self._voxels * 4 / 2**20
        on_device = scores + weights if device.type == "cuda" else 0.0
        # MONAI's sums, and the probabilities that are made of them; then both sides of bringing them back
        back = out.shape[1] * (self._voxels + self._back_voxels) * _BACK_BYTES / 2**20 if self._back_voxels else 0.0
        sums = max(pass_mb, scores) + weights + scores if device.type == "cpu" else scores
        host = now.held_mb + max(sums, back)
        fits = host <= now.limit_mb and now.held_device_mb + on_device <= now.limit_device_mb + 1e-6
        plan = Plan(
            device=str(device),
            tile=tuple(inputs.shape[2:]),
            batch=len(inputs),
            tiles=self._calls * len(inputs),
            precision=run.precision,
            accumulator="host" if device.type == "cpu" else "device",
            sums="float32",
            channels=out.shape[1],
            host_mb=host,
            device_mb=now.held_device_mb + on_device,
            free_host_mb=now.limit_mb,
            free_device_mb=now.limit_device_mb,
            seconds=seconds * self._calls,
            fits=fits,
            advice="" if fits else f"{host / 1024:.1f} GiB of memory would do; cut the image or lower its resolution",
        )
        if self._other_way and not fits:
            raise ScoresError("The scores of the whole image do not fit.")
        run.planned = True
        run.progress.planned(plan)
        if now.held_mb + scores + weights > now.limit_mb:
            raise ScoresError(
                f"The scores of the whole image, {out.shape[1]} classes, take {scores / 1024:.1f} GiB in this bundle; "
                f"{now.limit_mb / 1024:.1f} GiB can be had. Cut the image, lower its resolution, or use a machine with "
                "more memory."
            )


def count_calls(inferer: Inferer, shape: tuple[int, ...]) -> int:
    """How often an inferer will call the network for an image of a shape (x, y, z) or (x, y)."""
    slices = 1
    axis = getattr(inferer, "spatial_dim", None)
    if isinstance(axis, int) and len(shape) == 3:
        slices = shape[axis]
        shape = tuple(n for i, n in enumerate(shape) if i != axis)
    if not isinstance(inferer, SlidingWindowInferer):
        return slices
    roi = fall_back_tuple(inferer.roi_size, shape) if not isinstance(inferer.roi_size, int) else (inferer.roi_size,) * 9
    size = tuple(max(n, r) for n, r in zip(shape, roi, strict=False))
    roi = tuple(roi[: len(size)])
    interval = _get_scan_interval(size, roi, len(size), ensure_tuple_rep(inferer.overlap, len(size)))
    windows = len(dense_patch_slices(size, roi, interval))
    return slices * max(1, ceil(windows / max(1, int(inferer.sw_batch_size))))

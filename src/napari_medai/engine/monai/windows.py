"""A network that says how far a sliding window is, and stops between two batches of windows."""

from __future__ import annotations

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

if TYPE_CHECKING:
    from napari_medai.engine.run import Run


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
    """

    def __init__(self, network: nn.Module, run: Run, calls: int, half: bool) -> None:
        super().__init__()
        self._network: Callable[..., Any] = network
        self._run, self._calls, self._done = run, calls, 0
        self._half = half
        self.eval()

    def forward(self, inputs: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """The network's answer."""
        self._run.progress.update(min(self._done, self._calls), self._calls, "looking")
        context = torch.autocast("cuda") if self._half and inputs.device.type == "cuda" else nullcontext()
        with context:
            out = self._network(inputs, *args, **kwargs)
        self._done += 1
        self._run.tile_done(len(inputs))
        return out


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

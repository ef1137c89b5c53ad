"""What the tests of tiling share: networks whose reach is known, runs of any module, and where tiles end."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from napari_medai.core.stage import Params, Progress
from napari_medai.core.volume import from_array
from napari_medai.engine.run import start
from napari_medai.engine.tiling import plan_tiles
from napari_medai.models.spec import Accepts, Gives, Model, ModelSpec, Tiling
from napari_medai.nets import build

MODEL = Model(
    spec=ModelSpec(
        id="any", title="Any", summary="For tests.", stage="segment", accepts=Accepts(ndim=(2, 3)),
        gives=Gives(kind="image"), tiling=Tiling(multiple=1), runner="network",
    ),
    folder=Path("nowhere"),
    source="test",
)  # fmt: skip


def predicted(network: nn.Module, image: np.ndarray, **how: Any) -> np.ndarray:
    """Scores (K, \\*spatial) of an image (C, \\*spatial) on the CPU, by the engine."""
    with start("segment", from_array(image[0]), MODEL, Params(device="cpu"), Progress()) as run:
        return run.predict(image, network, **how)


def untiled(network: nn.Module, image: np.ndarray, multiple: int | Sequence[int] = 1) -> np.ndarray:
    """The same by torch alone: one pass over the image, filled up to a multiple by reflection as the engine does."""
    steps = (multiple,) * (image.ndim - 1) if isinstance(multiple, int) else multiple
    padding = [(0, 0)] + [(0, -n % step) for n, step in zip(image.shape[1:], steps, strict=True)]
    filled = np.pad(image, padding, mode="reflect")
    with torch.inference_mode():
        out = network(torch.from_numpy(filled)[None])[0].numpy()
    return out[(slice(None), *(slice(0, n) for n in image.shape[1:]))]


def reach_of(network: nn.Module, ndim: int, multiple: Sequence[int], edge: int) -> tuple[int, ...]:
    """How far a voxel is felt along each axis, found by a voxel that is not a number: no weight can hide it.

    At every phase of the network's strides; ``edge`` voxels have to hold twice the reach.
    """
    far = [0] * ndim
    for phase in range(max(multiple)):
        at = [edge // 2 // step * step + min(phase, step - 1) for step in multiple]
        image = torch.zeros((1, 1, *(edge,) * ndim))
        image[(0, 0, *at)] = torch.nan
        with torch.inference_mode():
            felt = torch.isnan(network(image)).any(1)[0].numpy()
        for axis in range(ndim):
            where = np.flatnonzero(felt.any(axis=tuple(n for n in range(ndim) if n != axis)))
            assert where[0] > 0
            assert where[-1] < edge - 1
            far[axis] = max(far[axis], at[axis] - where[0], where[-1] - at[axis])
    return tuple(int(n) for n in far)


def borders(shape: Sequence[int], axis: int, **how: Any) -> list[int]:
    """Along one axis the planes at which what is used of a tile begins, or ends before; without the image's ends."""
    line = plan_tiles(shape, **how).axes[axis]
    if line.hard:
        found = {(a + line.tile + b) // 2 for a, b in pairwise(line.starts)}
    else:
        found = {start + line.margin for start in line.starts[1:]}
        found |= {start + line.tile - line.margin for start in line.starts[:-1]}
    return sorted(n for n in found if 0 < n < line.size)


class UNetWithPooling(nn.Module):
    """A small U-Net: two poolings, a skip at each level, batch normalisation with moving means of its own."""

    def __init__(self, ndim: int, pool: int | Sequence[int] = 2) -> None:
        super().__init__()
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[ndim - 1]
        norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[ndim - 1]
        most = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[ndim - 1]
        steps = tuple(pool) if not isinstance(pool, int) else (pool,) * ndim
        self.first = nn.Sequential(conv(1, 4, 3, padding=1), norm(4), nn.LeakyReLU())
        self.second = nn.Sequential(most(steps), conv(4, 6, 3, padding=1), norm(6), nn.LeakyReLU())
        self.up = nn.Upsample(scale_factor=tuple(float(n) for n in steps), mode="nearest")
        self.last = conv(10, 3, 3, padding=1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, 1, \\*spatial) -> (B, 3, \\*spatial)."""
        fine = self.first(image)
        return self.last(torch.cat([fine, self.up(self.second(fine))], dim=1))


def trained(network: nn.Module, seed: int = 0) -> nn.Module:
    """Random parameters, and means and deviations as if it had been trained."""
    torch.manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    return network.eval()


def convolutions(ndim: int, dilations: Sequence[int]) -> nn.Module:
    """A stack of dilated convolutions: it reaches the sum of the dilations."""
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[ndim - 1]
    layers: list[nn.Module] = []
    for n, dilation in enumerate(dilations):
        layers += [conv(1 if n == 0 else 4, 4, 3, padding=dilation, dilation=dilation), nn.ReLU()]
    return nn.Sequential(*layers, conv(4, 3, 1))


def monai_unet(ndim: int, norm: str = "batch") -> nn.Module:
    """MONAI's U-Net with two strided convolutions and residual units."""
    return build(
        "UNet", spatial_dims=ndim, in_channels=1, out_channels=3, channels=[4, 6, 8], strides=[2, 2], num_res_units=1,
        norm=norm,
    )  # fmt: skip

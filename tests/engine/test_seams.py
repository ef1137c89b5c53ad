"""No seams: where one tile ends and the next begins, the result is as smooth as anywhere else.

A seam is a step between two planes. Its energy is the mean square of the difference between neighbouring planes, of the
scores themselves or of how far they are off the untiled ones; planes at which a tile begins or ends are compared with
all others. Each test is made once more on tiles that are cut hard, without overlap or halo, and must find those.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.engine.carving import UNetWithPooling, borders, convolutions, monai_unet, predicted, trained, untiled

# for images whose edges are multiples of the tile's
HARD: dict[str, Any] = {"overlap": 0.0, "halo": 0}
# Planes beside a border that count as it, and beside a hard cut: the zeros beyond it are felt as far as the reach
NEAR, FAR = 1, 4
# A step of a hundredth of the steps that are in the result anyway, as energy
VISIBLE = 1e-4


def energies(scores: np.ndarray, axis: int) -> np.ndarray:
    """Mean square of the step onto each plane but the first of (K, \\*spatial), (size - 1,)."""
    square = np.diff(scores.astype(np.float64), axis=axis + 1) ** 2
    return square.mean(axis=tuple(n for n in range(scores.ndim) if n != axis + 1))


def seams(scores: np.ndarray, near: int = NEAR, **how: Any) -> list[tuple[float, float]]:
    """Along each axis the energy of the strongest step at a border and of the strongest elsewhere.

    Parameters
    ----------
    scores : (K, \\*spatial) array
        The image's own ends are left out.
    near : int
        So many planes before and after a border belong to it.
    how
        As the image was cut.
    """
    found = []
    for axis in range(scores.ndim - 1):
        energy, at = energies(scores, axis), borders(scores.shape[1:], axis, **how)
        onto = np.arange(1, len(energy) + 1)
        inside = (onto > FAR) & (onto < len(energy) - FAR)
        border = (np.abs(onto[:, None] - np.asarray(at)) <= near).any(axis=1)
        found.append((float(energy[inside & border].max()), float(energy[inside & ~border].max())))
    return found


def worst(scores: np.ndarray, near: int = NEAR, **how: Any) -> float:
    """The strongest step at a border as a multiple of the strongest elsewhere."""
    return max(border / elsewhere for border, elsewhere in seams(scores, near, **how))


def smooth(*shape: int) -> np.ndarray:
    """A ramp along each axis and a little noise, (1, \\*shape)."""
    ramp = sum(grid / size for grid, size in zip(np.indices(shape), shape, strict=True))
    noise = np.random.default_rng(0).normal(size=shape)
    return (10 + ramp + 0.01 * noise)[None].astype(np.float32)


class Blur(nn.Module):
    """A mean over 7 voxels along each axis, zeros beyond the edge: near it everything is darker."""

    def __init__(self, ndim: int) -> None:
        super().__init__()
        self.conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[ndim - 1](1, 1, 7, padding=3, bias=False)
        nn.init.constant_(self.conv.weight, 7.0**-ndim)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """The same shape."""
        return self.conv(image)


class Average(nn.Module):
    """Adds the mean of the whole tile, as normalisation by instance does: its reach has no bound."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """The same shape."""
        return image + image.mean(dim=tuple(range(2, image.ndim)), keepdim=True)


# what is shared leaves at least the reach of the blur, 3 voxels, without weight
WAYS = ({"overlap": 0.25, "halo": 3}, {"overlap": 0.5, "halo": 0}, {"overlap": 0.0, "halo": 3})


@pytest.mark.parametrize("how", WAYS, ids=str)
@pytest.mark.parametrize(("shape", "tile"), [((144, 96), 48), ((48, 48, 72), 24)], ids=["2-D", "3-D"])
def test_a_ramp_through_tiles_is_a_ramp(shape: tuple[int, ...], tile: int, how: dict[str, Any]) -> None:
    network, plan = Blur(len(shape)), {"tile": (tile,) * len(shape)}
    found = predicted(network, smooth(*shape), **plan, **how)
    assert worst(found, **plan, **how) < 1.2
    hard = predicted(network, smooth(*shape), **plan, **HARD)
    assert worst(hard, FAR, **plan, **HARD) > 100


@pytest.mark.parametrize("overlap", [0.25, 0.5])
def test_a_network_without_bounds_is_blended_smoothly(overlap: float) -> None:
    """Neighbouring tiles disagree about what they share; no plane between them may show it."""
    shape, plan = (160, 96), {"tile": (32, 32)}
    image = smooth(*shape)
    found = predicted(Average(), image, **plan, overlap=overlap)
    off = found - untiled(Average(), image)
    assert np.abs(off).max() > 0.1
    assert worst(off, **plan, overlap=overlap) < 1.1
    hard = predicted(Average(), image, **plan, **HARD) - untiled(Average(), image)
    assert worst(hard, FAR, **plan, **HARD) > 100


# reach, stride and tile: the smallest tiles that leave as much as they throw away
NETWORKS = {
    "convolutions": (lambda: convolutions(2, [1, 2, 2]), 1, (128, 96), 32),
    "pooling": (lambda: UNetWithPooling(2), 2, (128, 96), 32),
    "strides": (lambda: monai_unet(2), 4, (144, 96), 48),
    "normalised by instance": (lambda: monai_unet(2, "instance"), 4, (144, 96), 48),
    "in 3-D": (lambda: convolutions(3, [1, 2]), 1, (48, 48, 48), 24),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("overlap", [0.25, 0.5])
def test_what_tiles_get_wrong_does_not_lie_at_their_borders(name: str, overlap: float) -> None:
    make, multiple, shape, edge = NETWORKS[name]
    torch.manual_seed(3)
    network = trained(make())
    image = np.random.default_rng(1).normal(size=(1, *shape)).astype(np.float32)
    plan = {"tile": (edge,) * len(shape), "multiple": multiple}
    expected = untiled(network, image, multiple)
    off = predicted(network, image, **plan, overlap=overlap) - expected
    hard = predicted(network, image, **plan, **HARD) - expected
    for axis, (border, elsewhere) in enumerate(seams(off, **plan, overlap=overlap)):
        assert border < 2 * elsewhere + VISIBLE * np.median(energies(expected, axis))
    for axis, (border, elsewhere) in enumerate(seams(hard, FAR, **plan, **HARD)):
        assert border > 3 * elsewhere + 10 * VISIBLE * np.median(energies(expected, axis))

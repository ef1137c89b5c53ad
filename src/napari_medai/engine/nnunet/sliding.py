"""nnU-Net's sliding window: half-overlapping tiles under a Gaussian, mirrored where the training was.

Sums are kept in half precision, on the CPU too, because nnU-Net keeps them so: labels are to be the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import combinations, product
from math import ceil

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

# Value at the middle of the Gaussian, and its deviation as a share of the tile's edge
PEAK, SIGMA = 10.0, 1 / 8

Network = Callable[[torch.Tensor], torch.Tensor]
Window = tuple[slice | int, ...]


@lru_cache(maxsize=4)
def importance(tile: tuple[int, ...]) -> torch.Tensor:
    """Weight of each voxel of a tile: a Gaussian in half precision, nowhere zero."""
    point = np.zeros(tile)
    point[tuple(n // 2 for n in tile)] = 1
    bell = gaussian_filter(point, [n * SIGMA for n in tile], 0, mode="constant", cval=0)
    weights = torch.from_numpy(bell / (bell.max() / PEAK)).half()
    weights[weights == 0] = weights[weights != 0].min()
    return weights


def starts(size: int, tile: int, step: float) -> list[int]:
    """Where tiles begin along one axis: evenly spread, at most ``step`` of a tile apart."""
    count = ceil((size - tile) / (tile * step)) + 1
    if count == 1:
        return [0]
    return [round((size - tile) / (count - 1) * n) for n in range(count)]


def windows(shape: Sequence[int], tile: Sequence[int], step: float) -> list[Window]:
    """Every tile of (k, j, i); for tiles of two axes those of every plane k."""
    planar = len(tile) < len(shape)
    rows = [starts(n, edge, step) for n, edge in zip(shape[-len(tile) :], tile, strict=True)]
    placed = [tuple(slice(a, a + edge) for a, edge in zip(first, tile, strict=True)) for first in product(*rows)]
    if planar:
        return [(k, *window) for k in range(shape[0]) for window in placed]
    return [tuple(window) for window in placed]


def padded(data: torch.Tensor, tile: Sequence[int]) -> tuple[torch.Tensor, tuple[slice, ...]]:
    """An image (c, k, j, i) with zeros around it where it is smaller than a tile, and where it lies in that."""
    least = [*data.shape[: data.ndim - len(tile)], *tile]
    more = [max(0, wanted - n) for n, wanted in zip(data.shape, least, strict=True)]
    inner = tuple(slice(m // 2, m // 2 + n) for n, m in zip(data.shape, more, strict=True))
    if not any(more):
        return data, inner
    sides = [side for m in reversed(more) for side in (m // 2, m - m // 2)]
    return torch.nn.functional.pad(data, sides), inner


def mirrored(network: Network, image: torch.Tensor, axes: Sequence[int], check: Callable[[], None]) -> torch.Tensor:
    """Mean of what a network says to an image and to its mirror images along every combination of axes."""
    total = network(image)
    flips = [tuple(a + 2 for a in some) for n in range(len(axes)) for some in combinations(axes, n + 1)]
    for flip in flips:
        check()
        total += torch.flip(network(torch.flip(image, flip)), flip)
    return total / (len(flips) + 1) if flips else total


def slide(
    data: torch.Tensor,
    network: Network,
    tile: tuple[int, ...],
    heads: int,
    *,
    axes: Sequence[int] = (),
    step: float = 0.5,
    device: torch.device,
    keep_on: torch.device,
    precision: torch.dtype = torch.half,
    done: Callable[[int, int], None],
    check: Callable[[], None],
) -> torch.Tensor:
    """A network's logits over a whole image.

    Parameters
    ----------
    data : (c, k, j, i) float32 tensor
        Prepared image.
    network : callable
        (1, c, \\*tile) -> (1, heads, \\*tile) on ``device``.
    tile : tuple of int
        Two or three axes.
    heads : int
        Channels of the output.
    axes : sequence of int
        Spatial axes of the tile along which to mirror.
    step : float
        Largest distance of tiles as a share of their edge.
    device, keep_on : torch.device
        Where the network is, and where the sums are kept.
    precision : dtype
        Of the sums.
    done : callable
        Called with the number of tiles done and of all.
    check : callable
        Called before each pass; may raise `Cancelled`.

    Returns
    -------
    (heads, k, j, i) tensor
        On the CPU. It holds infinities where the sums overflowed.
    """
    image, inner = padded(data, tile)
    places = windows(image.shape[1:], tile, step)
    image = image.to(keep_on)
    total = torch.zeros((heads, *image.shape[1:]), dtype=precision, device=keep_on)
    weight = torch.zeros(image.shape[1:], dtype=precision, device=keep_on)
    bell = importance(tile).to(keep_on)
    for n, window in enumerate(places, 1):
        check()
        seen = image[(slice(None), *window)][None].contiguous().to(device)
        out = mirrored(network, seen, axes, check)[0].to(keep_on)
        out *= bell
        total[(slice(None), *window)] += out
        weight[window] += bell
        done(n, len(places))
    torch.div(total, weight, out=total)
    return total[(slice(None), *inner[1:])].cpu()


def tiles(shape: Sequence[int], tile: Sequence[int], step: float) -> int:
    """Number of tiles of an image (k, j, i)."""
    large = [max(n, edge) for n, edge in zip(shape[-len(tile) :], tile, strict=True)]
    planes = shape[0] if len(tile) < len(shape) else 1
    return int(planes * np.prod([len(starts(n, edge, step)) for n, edge in zip(large, tile, strict=True)]))

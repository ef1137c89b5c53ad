"""nnU-Net's sliding window: half-overlapping tiles under a Gaussian, mirrored where the training was.

Sums are kept in half precision, on the CPU too, because nnU-Net keeps them so: labels are to be the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import combinations, product
from math import ceil, prod

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

# Value at the middle of the Gaussian, and its deviation as a share of the tile's edge
PEAK, SIGMA = 10.0, 1 / 8

# Numbers in a slab that is handed on
SLAB = 2**25

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
    networks: Sequence[Network],
    tile: tuple[int, ...],
    heads: int,
    *,
    step: float = 0.5,
    begin: int = 0,
    device: torch.device,
    keep_on: torch.device,
    precision: torch.dtype = torch.half,
    done: Callable[[], None],
    check: Callable[[], None],
) -> Iterator[torch.Tensor]:
    """Networks' logits over a whole image, slab by slab along its first axis.

    Tiles follow each other with the first axis outermost, so that behind the tiles in hand planes are final: sums are
    held for as many planes as a tile is deep. Every sum is made in nnU-Net's order, and comes out the same to the bit.

    Parameters
    ----------
    data : (c, k, j, i) float32 tensor
        Prepared image.
    networks : sequence of callable
        (1, c, \\*tile) -> (1, heads, \\*tile) on ``device``; the logits of several are averaged.
    tile : tuple of int
        Two or three axes.
    heads : int
        Channels of the output.
    step : float
        Largest distance of tiles as a share of their edge.
    begin : int
        First plane that is wanted: tiles that reach none from there on are left out. Default 0.
    device, keep_on : torch.device
        Where the networks are, and where the sums are kept.
    precision : dtype
        Of the sums.
    done : callable
        Called after each pass.
    check : callable
        Called before each pass; may raise `Cancelled`.

    Yields
    ------
    (heads, d, j, i) tensor
        On the CPU, planes in ascending order, written over later. It holds infinities where the sums overflowed.
    """
    image, inner = padded(data, tile)
    size, *plane = image.shape[1:]
    deep = _depth(tile)
    wanted = range(inner[1].start + begin, inner[1].stop)
    image = image.to(keep_on)
    total = [torch.zeros((heads, deep, *plane), dtype=precision, device=keep_on) for _ in networks]
    weight = torch.zeros((deep, *plane), dtype=precision, device=keep_on)
    bell = importance(tile).to(keep_on)
    flat = windows(plane, tile[-2:], step)
    firsts = _rows(size, tile, step, wanted.start)
    for first, following in zip(firsts, [*firsts[1:], size], strict=True):
        for window in flat:
            depth = slice(first, first + deep)
            seen = image[(slice(None), depth, *window)]
            # a planar network sees no depth
            seen = seen.reshape(1, len(image), *tile).contiguous().to(device)
            for sums, network in zip(total, networks, strict=True):
                check()
                out = network(seen)[0].to(keep_on)
                out *= bell
                sums[(slice(None), slice(None), *window)] += out.reshape(heads, deep, *tile[-2:])
                del out
                done()
            weight[(slice(None), *window)] += bell.reshape(deep, *tile[-2:])
        for planes in _pieces(range(max(first, wanted.start), min(following, wanted.stop)), slab(heads, plane)):
            mean = _mean(total, weight, slice(planes.start - first, planes.stop - first))
            yield mean[(slice(None), slice(None), *inner[2:])].cpu()
        if first < following < size:
            for sums in (*total, weight[None]):
                _shift(sums, following - first)


def held_bytes(heads: int, shape: Sequence[int], tile: Sequence[int], size: int = 2) -> int:
    """Bytes that the sums of an image (k, j, i) take, with numbers of ``size`` bytes."""
    plane = prod(max(n, edge) for n, edge in zip(shape[-2:], tile[-2:], strict=True))
    return (heads + 1) * _depth(tile) * plane * size


def slab(heads: int, plane: Sequence[int]) -> int:
    """Planes of logits that are handed on at once."""
    return max(1, SLAB // (heads * prod(plane)))


def _pieces(planes: range, deep: int) -> Iterator[range]:
    for start in planes[::deep]:
        yield range(start, min(start + deep, planes.stop))


def _mean(total: Sequence[torch.Tensor], weight: torch.Tensor, planes: slice) -> torch.Tensor:
    """Some planes of the sums divided by the weights, in their place; of several networks the mean."""
    mean = total[0][:, planes].div_(weight[planes])
    for sums in total[1:]:
        mean.add_(sums[:, planes].div_(weight[planes]))
    return mean.div_(len(total)) if len(total) > 1 else mean


def _shift(sums: torch.Tensor, by: int) -> None:
    """Move planes (n, k, j, i) to the front, and let zeros follow."""
    deep = sums.shape[1]
    for start in range(0, deep - by, by):
        stop = min(start + by, deep - by)
        sums[:, start:stop] = sums[:, start + by : stop + by]
    sums[:, deep - by :] = 0


def tiles(shape: Sequence[int], tile: Sequence[int], step: float, begin: int = 0) -> int:
    """Number of tiles of an image (k, j, i) that reach a plane from ``begin`` on."""
    size = shape[0] if len(tile) < len(shape) else max(shape[0], tile[0])
    plane = zip(shape[-2:], tile[-2:], strict=True)
    rows = _rows(size, tile, step, (size - shape[0]) // 2 + begin)
    return len(rows) * prod(len(starts(max(n, edge), edge, step)) for n, edge in plane)


def _rows(size: int, tile: Sequence[int], step: float, begin: int) -> list[int]:
    """First planes of the tiles that reach a plane from ``begin`` on."""
    places = starts(size, tile[0], step) if len(tile) == 3 else range(size)
    return [first for first in places if first + _depth(tile) > begin]


def _depth(tile: Sequence[int]) -> int:
    """Planes of a tile."""
    return tile[0] if len(tile) == 3 else 1

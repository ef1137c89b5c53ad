"""Tiles of an image in any number of dimensions, and their seamless sum.

Tiles begin at multiples of the network's total stride (`multiple`), also where the image ends, so that a network
with pooling sees every voxel at the same phase whatever the tile: with a bounded receptive field, tiled equals
untiled. The weights of a voxel over all tiles add up to exactly one, axis by axis, so that no map of weights is kept
and nothing is divided at the end; except where tiles are to be those of MONAI's sliding window.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from math import ceil, prod
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from napari_medai.core.errors import ModelError

# Standard deviation of the Gaussian as a share of the tile's edge (Isensee et al., nnU-Net, Nature Methods 18, 2021)
GAUSSIAN_SIGMA = 0.125
# Where tiles begin and how they are blended; see `plan_tiles`
Places = Literal["even", "stepped"]
Blend = Literal["gaussian", "constant"]
# A voxel deep in a tile never gets less than this share of the weight at the tile's centre
SMALLEST_WEIGHT = 1e-3


@dataclass(frozen=True)
class Axis:
    """Tiles along one axis.

    Attributes
    ----------
    size : int
        Of the image.
    tile : int
        Edge of a tile; the last tile reaches over the image's end where ``size`` is no multiple.
    starts : tuple of int
        First index of each tile.
    margin : int
        Voxels at each inner edge of a tile that get no weight: they saw the network's own padding.
    hard : bool
        Neighbours meet in the middle of what they share and are not blended.
    flat : bool
        Every voxel of a tile weighs the same; otherwise a Gaussian.
    """

    size: int
    tile: int
    starts: tuple[int, ...]
    margin: int
    hard: bool = False
    flat: bool = False

    @cached_property
    def weights(self) -> NDArray[np.float32]:
        """Weight of each tile's voxels, (tiles, tile); at each index of the image they add up to one."""
        if self.hard:
            cuts = [0, *((a + self.tile + b) // 2 for a, b in pairwise(self.starts)), self.starts[-1] + self.tile]
            index = np.asarray(self.starts)[:, None] + np.arange(self.tile)
            low, high = np.asarray(cuts[:-1])[:, None], np.asarray(cuts[1:])[:, None]
            return np.asarray((index >= low) & (index < high), dtype=np.float32)
        weights: NDArray[np.float64] = np.maximum(self.bells, SMALLEST_WEIGHT * (self.bells > 0))
        total = np.zeros(self.starts[-1] + self.tile)
        for start, row in zip(self.starts, weights, strict=True):
            total[start : start + self.tile] += row
        for start, row in zip(self.starts, weights, strict=True):
            row /= total[start : start + self.tile]
        return weights.astype(np.float32)

    @cached_property
    def bells(self) -> NDArray[np.float64]:
        """Weight of each tile's voxels before neighbours are looked at, (tiles, tile)."""
        position = (np.arange(self.tile) - (self.tile - 1) / 2) / (GAUSSIAN_SIGMA * self.tile)
        bells = np.tile(np.ones(self.tile) if self.flat else np.exp(-0.5 * position**2), (len(self.starts), 1))
        if self.margin:
            bells[1:, : self.margin] = 0
            bells[:-1, -self.margin :] = 0
        return bells

    def indices(self, number: int) -> NDArray[np.intp]:
        """Where tile ``number`` reads the image, (tile,): beyond its end the image is reflected."""
        index = np.arange(self.starts[number], self.starts[number] + self.tile)
        if self.size == 1:
            return np.zeros_like(index)
        index = index % (2 * self.size - 2)
        return np.minimum(index, 2 * self.size - 2 - index)


# A tile is its number along each axis.
Tile = tuple[int, ...]


@dataclass(frozen=True)
class TilePlan:
    """How an image is cut into tiles.

    Attributes
    ----------
    axes : tuple of Axis
        One per spatial axis of the image.
    multiple : tuple of int
        Of which tiles are multiples.
    counted : bool
        Whether the weights of a voxel do not add up to one, and its sum is to be divided by theirs.
    """

    axes: tuple[Axis, ...]
    multiple: tuple[int, ...]
    counted: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the image."""
        return tuple(axis.size for axis in self.axes)

    @property
    def tile(self) -> tuple[int, ...]:
        """Edges of a tile in voxels."""
        return tuple(axis.tile for axis in self.axes)

    def __len__(self) -> int:
        return prod(len(axis.starts) for axis in self.axes)

    def __iter__(self) -> Iterator[Tile]:
        return iter(np.ndindex(*(len(axis.starts) for axis in self.axes)))

    def cut(self, array: NDArray[np.float32], tile: Tile, origin: Sequence[int] = ()) -> NDArray[np.float32]:
        """The pixels of one tile, (C, \\*tile), of an image (C, \\*shape) or a part of it that begins at ``origin``."""
        cut: NDArray[np.float32] = array
        for n, axis in enumerate(self.axes):
            index = axis.indices(tile[n]) - (origin[n] if origin else 0)
            low, high = int(index.min()), int(index.max()) + 1
            cut = cut[(slice(None),) * (n + 1) + (slice(low, high),)]
            if high - low != axis.tile or index[0] > index[-1]:
                cut = np.take(cut, index - low, axis=n + 1)
        return np.ascontiguousarray(cut)

    def weight(self, tile: Tile) -> NDArray[np.float32]:
        """What each voxel of a tile weighs, (\\*tile)."""
        if not self.counted:
            return _product([axis.weights[number] for axis, number in zip(self.axes, tile, strict=True)])
        # which edges of a tile weigh nothing differs from tile to tile; without margins one is as the other
        key = tile if any(axis.margin for axis in self.axes) else (0,) * len(tile)
        if key not in self._last:
            self._last.clear()
            bells = [axis.bells[number].astype(np.float32) for axis, number in zip(self.axes, key, strict=True)]
            product = _product(bells)
            self._last[key] = np.where(product > 0, np.maximum(product, np.float32(SMALLEST_WEIGHT)), product)
        return self._last[key]

    @cached_property
    def _last(self) -> dict[Tile, NDArray[np.float32]]:
        return {}

    def place(self, tile: Tile) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """Where a tile lies in the image, and the part of the tile that lies there."""
        inside, part = [], []
        for axis, number in zip(self.axes, tile, strict=True):
            start = axis.starts[number]
            stop = min(axis.size, start + axis.tile)
            inside.append(slice(start, stop))
            part.append(slice(0, stop - start))
        return tuple(inside), tuple(part)


def _product(rows: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """The outer product of a row along each axis."""
    whole = np.ones((1,) * len(rows), np.float32)
    for n, row in enumerate(rows):
        whole = whole * row.reshape([-1 if m == n else 1 for m in range(len(rows))])
    return whole


def plan_tiles(
    shape: Sequence[int],
    tile: Sequence[int],
    overlap: float = 0.25,
    multiple: int | Sequence[int] = 1,
    halo: int | Sequence[int] = 0,
    places: Places = "even",
    blend: Blend = "gaussian",
) -> TilePlan:
    """Cut an image into tiles that overlap.

    Parameters
    ----------
    shape : sequence of int
        Of the image's spatial axes.
    tile : sequence of int
        Largest edges; rounded down to a multiple, and shrunk where the image is smaller, to the smallest
        multiple that holds it (the image is reflected to fill it).
    overlap : float
        Smallest share of a tile that it shares with its neighbour, in 0..1. Default 0.25.
    multiple : int or sequence of int
        The network's total stride. Default 1. A network that needs one fixed size has that size as multiple.
    halo : int or sequence of int
        Reach of the network in voxels: at least so many at each inner edge of a tile get no weight, as far as the
        tile is large enough for it. With an ``overlap`` of 0 each voxel is taken from one tile alone. Default 0.
    places : {"even", "stepped"}
        Where tiles begin. ``"even"``: spread evenly, at multiples. ``"stepped"``: one whole step after the other from
        the first voxel on, the last drawn back to the end of the image, and blended up to their edges: where MONAI's
        ``SlidingWindowInferer`` puts them, for networks whose answer depends on where a tile begins (instance norm).
    blend : {"gaussian", "constant"}
        What the voxels of a tile weigh: more in its middle, or all the same.

    Raises
    ------
    ModelError
        The numbers of axes differ, or a number is out of range.
    """
    sizes, edges = tuple(int(n) for n in shape), tuple(int(n) for n in tile)
    steps = (int(multiple),) * len(sizes) if isinstance(multiple, int) else tuple(int(n) for n in multiple)
    halos = (int(halo),) * len(sizes) if isinstance(halo, int) else tuple(int(n) for n in halo)
    if len(edges) != len(sizes) or len(steps) != len(sizes) or len(halos) != len(sizes):
        raise ModelError(f"Tiles of {len(edges)} axes in multiples of {len(steps)} do not cut {len(sizes)} axes.")
    if not 0 <= overlap < 1 or min((*sizes, *edges, *steps)) < 1 or min(halos) < 0:
        raise ModelError(f"No tiles of {edges} in multiples of {steps} with an overlap of {overlap} cut {sizes}.")
    lay = _stepped if places == "stepped" else _spread
    axes = [lay(*axis, overlap) for axis in zip(sizes, edges, steps, halos, strict=True)]
    # MONAI bounds the product of the axes' weights from below, which is no product any more
    counted = places == "stepped" and blend == "gaussian" and len(axes) > 1
    return TilePlan(tuple(replace(axis, flat=blend == "constant") for axis in axes), steps, counted)


def _stepped(size: int, edge: int, multiple: int, halo: int, overlap: float) -> Axis:
    _, edge = _edges(size, edge, multiple)
    step = max(1, min(int(edge * (1 - overlap)), edge - 2 * halo))
    end = max(size, edge) - edge
    starts = (*range(0, end, step), end)
    return Axis(size, edge, starts, min(halo, (edge - step) // 2) if len(starts) > 1 else 0)


def _edges(size: int, edge: int, multiple: int) -> tuple[int, int]:
    """Of the image, made larger to a multiple, and of a tile."""
    padded = ceil(size / multiple) * multiple
    return padded, min(padded, max(multiple, edge // multiple * multiple))


def _spread(size: int, edge: int, multiple: int, halo: int, overlap: float) -> Axis:
    padded, edge = _edges(size, edge, multiple)
    step = max(multiple, min(int(edge * (1 - overlap)), edge - 2 * halo) // multiple * multiple)
    count = ceil((padded - edge) / step) + 1
    # Spread evenly. Rounded to a multiple no gap grows beyond the step, which is a multiple itself.
    last = (padded - edge) // multiple
    starts = tuple(multiple * (n * last // max(1, count - 1)) for n in range(count))
    margin = max((edge - step) // 4, min(halo, (edge - step) // 2))
    return Axis(size, edge, starts, margin if count > 1 else 0, hard=count > 1 and halo > 0 and overlap == 0)

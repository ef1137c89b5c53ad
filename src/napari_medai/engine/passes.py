"""A network of another framework over an image: sizes that it takes, tiles, and its output on the image's grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import gcd
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from napari_medai.core.errors import DeviceError, ModelError
from napari_medai.engine.resample import resample
from napari_medai.models.sizes import Size

if TYPE_CHECKING:
    from napari_medai.engine.run import Run

# Edge of a tile where nobody says one
TILE = {2: 512, 3: 96}
# Most networks pool at most five times: tiles of a fixed size begin at multiples of this, if the size is one
MOST_STRIDE = 32

# (C, *tile) -> (K, *tile)
Forward = Callable[[NDArray[np.float32]], NDArray[np.float32]]


@dataclass(frozen=True)
class Passes:
    """How an image is brought to sizes that a network takes.

    Attributes
    ----------
    shape : tuple of int
        Of the image along its axes of space.
    before, after : tuple of int
        Voxels that are put at each axis's beginning and end.
    tile : tuple of int
        Edges of a tile, each a size that the network takes.
    multiple : tuple of int
        Of which tiles begin at multiples.
    """

    shape: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    tile: tuple[int, ...]
    multiple: tuple[int, ...]

    def pad(self, array: NDArray[Any], mode: str = "symmetric") -> NDArray[Any]:
        """An image (C, \\*shape) with what is put at its ends; ``mode`` as for `numpy.pad`."""
        width = [(0, 0), *zip(self.before, self.after, strict=True)]
        if not any(map(any, width)):
            return array
        if mode == "reflect" and any(n < 2 for n in self.shape):
            mode = "symmetric"  # one voxel has no reflection
        return np.pad(array, width, mode=mode)  # type: ignore[call-overload,no-any-return]

    def crop(self, array: NDArray[Any]) -> NDArray[Any]:
        """The image (K, \\*shape) without what was put at its ends."""
        inside = tuple(slice(low, low + n) for low, n in zip(self.before, self.shape, strict=True))
        return np.ascontiguousarray(array[(slice(None), *inside)])


def plan_passes(
    shape: Sequence[int], sizes: Sequence[Size], halo: Sequence[int], tile: int = 0, whole: bool = False
) -> Passes:
    """Plan how an image of any size goes through a network that takes certain sizes.

    Parameters
    ----------
    shape : sequence of int
        Of the image along its axes of space.
    sizes : sequence of Size
        What the network takes along each.
    halo : sequence of int
        Voxels at each end whose output does not count: so many are put at each end of the image.
    tile : int
        Edge of a tile that is wanted; 0 takes `TILE`. Ignored where the size is fixed.
    whole : bool
        In one pass, because what the network gives cannot be put together from tiles.

    Raises
    ------
    ModelError
        The image has to go through in one pass and is larger than the network's one size.
    """
    before, after, edges, multiples = [], [], [], []
    for n, size, rim in zip(shape, sizes, halo, strict=True):
        wanted = n + 2 * rim
        largest = max(tile or TILE.get(len(shape), 512), 4 * rim + 1)
        if size.kind == "fixed":
            edge, multiple = size.least, gcd(size.least, MOST_STRIDE)
            while multiple > 1 and multiple > min(edge // 4, edge - 2 * rim):  # or tiles could not overlap
                multiple //= 2
            if whole and wanted > edge:
                raise ModelError(
                    f"The model takes images of {edge} pixels along an axis and gives objects, which cannot be put "
                    f"together from tiles; this image has {n}. Cut it, or resample it to a lower resolution."
                )
        elif size.kind == "step":
            multiple = gcd(size.least, size.step)
            edge = size.holds(wanted if whole else min(wanted, max(largest, 2 * multiple, multiple + 2 * rim)))
        else:
            edge, multiple = wanted if whole else min(wanted, largest), 1
        total = max(edge, wanted)
        before.append(rim)
        after.append(total - n - rim)
        edges.append(edge)
        multiples.append(multiple)
    return Passes(tuple(shape), tuple(before), tuple(after), tuple(edges), tuple(multiples))


def over_image(
    array: NDArray[np.float32],
    forward: Forward,
    sizes: Sequence[Size],
    halo: Sequence[int],
    run: Run,
    *,
    mode: str = "symmetric",
    whole: bool = False,
) -> NDArray[np.float32]:
    """Run a network over a prepared image in tiles that it takes, without seams; on the image's grid.

    Parameters
    ----------
    array : (C, \\*spatial) float32 array
        The image.
    forward : callable
        (C, \\*tile) -> (K, \\*tile), both float32 in the machine's memory.
    sizes, halo, whole
        As `plan_passes`.
    run : Run
        Its tile, its progress and its memory count.
    mode : str
        How the image's ends are continued, as for `numpy.pad`.

    Raises
    ------
    ModelError, DeviceError, Cancelled
        As `Run.predict`.
    """
    wanted = int(run.params.tile)
    passes = plan_passes(array.shape[1:], sizes, halo, wanted, whole)
    fixed = any(size.kind == "fixed" for size in sizes)
    if wanted and fixed:
        run.note("the model has a size of its own: the tile that was asked for is not used")

    def network(batch: torch.Tensor) -> torch.Tensor:
        out = []
        for pixels in batch.cpu().numpy():
            fits = all(n == size.holds(n) for n, size in zip(pixels.shape[1:], sizes, strict=True))
            if not fits:  # after memory ran out, with a smaller tile than the network takes
                raise DeviceError(
                    f"Not enough memory for tiles of {' x '.join(map(str, passes.tile))} voxels, and the model "
                    "takes no smaller one; close other programs."
                )
            out.append(torch.from_numpy(np.ascontiguousarray(forward(pixels), dtype=np.float32)))
        return torch.stack(out).to(batch.device)

    values = run.predict(
        passes.pad(array, mode), network, multiple=passes.multiple, tile=passes.tile, halo=tuple(halo), batch=1
    )
    return passes.crop(values)


def onto_tile(
    values: NDArray[Any], tile: Sequence[int], scale: Sequence[float], offset: Sequence[int]
) -> NDArray[np.float32]:
    """An output on the grid of the tile that it was made of.

    Parameters
    ----------
    values : (K, \\*spatial) array
        What the network gave: ``tile * scale + offset`` voxels along each axis.
    tile : sequence of int
        Of the input.
    scale, offset : sequence of numbers
        An output that is smaller by ``offset`` lies in the middle and is continued by its rim.

    Raises
    ------
    ModelError
        It has another size.
    """
    found = values.shape[1:]
    expected = tuple(int(n * s) + o for n, s, o in zip(tile, scale, offset, strict=True))
    if found != expected:
        raise ModelError(
            f"The network made {' x '.join(map(str, found))} out of a tile of {' x '.join(map(str, tile))}; its "
            f"description says {' x '.join(map(str, expected))}."
        )
    values = np.asarray(values, dtype=np.float32)
    for axis, (n, s) in enumerate(zip(tile, scale, strict=True), start=1):
        missing = int(n * s) - values.shape[axis]
        if missing > 0:
            width = [(0, 0)] * values.ndim
            width[axis] = (missing // 2, missing - missing // 2)
            values = np.pad(values, width, mode="edge")
        elif missing < 0:
            values = np.take(values, range(-missing // 2, -missing // 2 + int(n * s)), axis=axis)
    if values.shape[1:] == tuple(tile):
        return values
    factors = [m // n for n, m in zip(tile, values.shape[1:], strict=True)]
    if all(n * factor == m for n, m, factor in zip(tile, values.shape[1:], factors, strict=True)):
        blocks = [size for n, factor in zip(tile, factors, strict=True) for size in (n, factor)]
        means = values.reshape(len(values), *blocks).mean(axis=tuple(range(2, 2 * len(tile) + 1, 2)))
        return np.asarray(means, dtype=np.float32)
    return resample(values, tuple(tile))

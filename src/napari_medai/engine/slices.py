"""From a volume or an image to what a slice classifier sees, and from its heatmaps back to the slices.

A network that judges image quality must not have the defects normalised away: shrinking a slice removes noise,
a percentile window removes clipping, enlarging looks like blur. Each slice therefore becomes six aligned maps
on a small square grid:

0. brightness, scaled by the 1st and 99.5th percentile of the series and averaged over the area of a cell,
1. faint brightness: the same on a logarithmic scale, which shows ghosts in the background and makes the
   factor of a bias field a difference,
2. fine detail: the mean absolute response to Immerkaer's noise mask (Computer Vision and Image Understanding
   64:300, 1996), on a logarithmic scale, taken before shrinking,
3. and 4. coarse detail along y and along x: the same of the difference between box means 3 and 7 pixels long;
   noise raises map 2 against these, blur lowers it, motion and ghosts set the two apart,
5. saturation: the fraction of a cell's pixels that lie at the highest value of the series, on a logarithmic scale.

Slices are never enlarged: small ones are continued by mirroring at their borders. Very large ones are first
averaged down to `ANALYSIS_SIZE` pixels on the long side, where the detail maps are taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from napari_medai.core.errors import MedaiError

GRID_SIZE = 96
"""Side of the network's input in cells."""

ANALYSIS_SIZE = 512
"""Longest side in pixels at which fine and coarse detail are measured."""

CHANNELS = ("brightness", "faint brightness", "fine detail", "coarse detail y", "coarse detail x", "saturation")

MAX_SLICES = 24
"""Slices the network looks at in one pass."""

SATURATION_MARGIN = 0.004
"""A pixel this close to the highest value, as a share of the series' full range, counts as saturated."""

LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
"""Weights of red, green and blue in brightness (ITU-R BT.601)."""

DETAIL_FLOOR = 1e-3
"""Detail below a thousandth of the brightness range is quantisation and counts as none."""

FAINT_GAIN = 50.0
SATURATION_GAIN = 100.0
"""Logarithmic maps are log10(gain x value + 1): 0 for nothing, near 2 for the full range or a full cell."""


class SliceInputError(MedaiError):
    """An array cannot be turned into slices for a classifier."""


class _Sliceable(Protocol):
    """What `volume_slices` needs of numpy and dask arrays."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, index: Any, /) -> Any: ...


@dataclass(frozen=True)
class SliceSeries:
    """Network input for some slices of one volume or image, and how to get back.

    Attributes
    ----------
    inputs : float32 (slice, channel, GRID_SIZE, GRID_SIZE)
        Channels as in `CHANNELS`.
    indices : tuple of int
        Index of each slice along the volume's first axis; ``(0,)`` for an image.
    window : tuple of int
        Top, left, height and width of the cells that show the slice itself; the rest is mirrored.
    slice_shape : tuple of int
        Size of a slice in pixels, (y, x).
    """

    inputs: NDArray[np.float32]
    indices: tuple[int, ...]
    window: tuple[int, int, int, int]
    slice_shape: tuple[int, int]


def slice_passes(count: int, *, every: bool = False, max_slices: int = MAX_SLICES) -> list[tuple[int, ...]]:
    """Choose which slices the network looks at together.

    Parameters
    ----------
    count : int
        Slices in the volume, 1 or more.
    every : bool, default False
        False: one pass over at most ``max_slices`` evenly spaced slices. True: as many passes as are needed to
        see each slice once; the passes are interleaved, so that each spans the whole volume.
    max_slices : int, default `MAX_SLICES`

    Returns
    -------
    list of tuple of int
        Indices of each pass in ascending order.

    Raises
    ------
    SliceInputError
        If there is no slice.

    Examples
    --------
    >>> slice_passes(5, max_slices=3)
    [(0, 2, 4)]
    >>> slice_passes(5, every=True, max_slices=3)
    [(0, 2, 4), (1, 3)]
    """
    if count < 1 or max_slices < 1:
        raise SliceInputError(f"{count} slices, {max_slices} in a pass; both must be 1 or more")
    if count <= max_slices:
        return [tuple(range(count))]
    if every:
        passes = -(-count // max_slices)
        return [tuple(range(first, count, passes)) for first in range(passes)]
    return [tuple(int(i) for i in np.linspace(0, count - 1, max_slices).round())]


def to_grey(array: NDArray[Any], channel_axis: int) -> NDArray[np.float32]:
    """Brightness of a colour image: the weights of ITU-R BT.601 for three or four channels, else the mean.

    Parameters
    ----------
    array : array with a channel axis of any length
    channel_axis : int
        The channel axis. A fourth channel (opacity) is ignored.

    Returns
    -------
    float32 array without the channel axis
    """
    channels = np.moveaxis(np.asarray(array, dtype=np.float32), channel_axis, 0)
    if channels.shape[0] in (3, 4):
        return np.asarray(np.tensordot(LUMA, channels[:3], axes=1), np.float32)
    return np.asarray(channels.mean(axis=0), np.float32)


def volume_slices(
    array: _Sliceable, indices: Sequence[int] | None = None, *, max_slices: int = MAX_SLICES
) -> SliceSeries:
    """Network input from a volume or an image.

    Parameters
    ----------
    array : array (z, y, x) or (y, x), numpy or dask, any real dtype and range
        Only the chosen slices are read. Colour goes through `to_grey` first.
    indices : sequence of int, optional
        Slices along the first axis; by default one pass of `slice_passes`.
    max_slices : int, default `MAX_SLICES`
        Used where ``indices`` is not given.

    Raises
    ------
    SliceInputError
        If the array has not 2 or 3 axes, has an axis of length 0, or complex values.
    """
    shape = tuple(array.shape)
    if len(shape) not in (2, 3) or min(shape, default=0) < 1:
        raise SliceInputError(f"an array of shape {shape}; expected (y, x) or (z, y, x) without empty axes")
    if len(shape) == 2:
        chosen: tuple[int, ...] = (0,)
        pixels = np.asarray(array)[None]
    else:
        chosen = tuple(indices) if indices is not None else slice_passes(shape[0], max_slices=max_slices)[0]
        pixels = np.stack([np.asarray(array[k]) for k in chosen])
    if np.iscomplexobj(pixels):
        raise SliceInputError("complex values; pass the magnitude instead")
    inputs, window = network_input(pixels)
    return SliceSeries(inputs, chosen, window, (shape[-2], shape[-1]))


def network_input(slices: NDArray[Any]) -> tuple[NDArray[np.float32], tuple[int, int, int, int]]:
    """The six maps of each slice; the one preparation used by training, evaluation and the product.

    Parameters
    ----------
    slices : array (slice, y, x), any real dtype and range
        NaN and infinite values count as the lowest finite value.

    Returns
    -------
    inputs : float32 (slice, channel, GRID_SIZE, GRID_SIZE)
    window : tuple of int
        See `SliceSeries`.
    """
    pixels = torch.from_numpy(np.array(slices, dtype=np.float32, order="C"))[:, None]
    finite = torch.isfinite(pixels)
    if not bool(finite.all()):
        lowest = float(pixels[finite].min()) if bool(finite.any()) else 0.0
        pixels = torch.where(finite, pixels, torch.tensor(lowest))
    lowest, highest = float(pixels.min()), float(pixels.max())
    if highest <= lowest:  # a constant series: nothing to see, and no range to scale by
        pixels = torch.zeros_like(pixels)
        lowest, highest, low, high = 0.0, 1.0, 0.0, 1.0
    else:
        low, high = _robust_range(pixels)
    margin = SATURATION_MARGIN * (highest - lowest)
    saturated = (pixels >= highest - margin).to(torch.float32)

    scale = min(1.0, ANALYSIS_SIZE / max(pixels.shape[-2:]))
    size = _scaled(pixels.shape[-2:], scale)
    brightness = _shrink((pixels - low) / (high - low), size)
    detail = _detail(brightness)

    grid = _scaled(pixels.shape[-2:], min(1.0, GRID_SIZE / max(pixels.shape[-2:])))
    cells = _shrink(brightness, grid)
    maps = torch.cat(
        [
            cells.clamp(-0.5, 2.0),
            torch.log10(FAINT_GAIN * cells.clamp(0.0, 2.0) + 1),
            *(_logarithm(_shrink(part, grid)) for part in detail),
            torch.log10(SATURATION_GAIN * _shrink(saturated, grid) + 1),
        ],
        dim=1,
    )
    top, left = (GRID_SIZE - grid[0]) // 2, (GRID_SIZE - grid[1]) // 2
    margins = ((0, 0), (0, 0), (top, GRID_SIZE - grid[0] - top), (left, GRID_SIZE - grid[1] - left))
    padded = np.pad(maps.numpy(), margins, mode="symmetric")
    return np.ascontiguousarray(padded), (top, left, grid[0], grid[1])


def _robust_range(pixels: torch.Tensor) -> tuple[float, float]:
    """1st and 99.5th percentile (nearest rank), or the full range where those coincide."""
    values = pixels.numpy().ravel()
    full = float(values.max()) - float(values.min())
    values = values[:: max(1, values.size // 500_000)]
    first, last = int(0.01 * (values.size - 1)), int(0.995 * (values.size - 1))
    ranked = np.partition(values, (first, last))  # five times as fast as a quantile by sorting
    low, high = float(ranked[first]), float(ranked[last])
    if high - low < 1e-3 * full:
        return float(pixels.min()), float(pixels.max())
    return low, high


def _scaled(shape: Sequence[int], scale: float) -> tuple[int, int]:
    return max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))


def _shrink(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Average over the area of each cell; nothing is done where the size is the same already."""
    if tuple(maps.shape[-2:]) == size:
        return maps
    return functional.interpolate(maps, size=size, mode="area")


def _detail(brightness: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Fine detail, and coarse detail along y and x, per pixel in units of the brightness range."""
    padded = functional.pad(brightness, (1, 1, 1, 1), mode="replicate")
    rows = padded[..., :-2, :] - 2 * padded[..., 1:-1, :] + padded[..., 2:, :]
    # Immerkaer's mask is the product of two second differences; divided by 6 it leaves white noise as it is.
    fine = (rows[..., :-2] - 2 * rows[..., 1:-1] + rows[..., 2:]).abs_().div_(6)
    small = _box(_box(padded, 3, -2), 3, -1)
    tall = _box(functional.pad(small, (0, 0, 3, 3), mode="replicate"), 7, -2)
    wide = _box(functional.pad(small, (3, 3, 0, 0), mode="replicate"), 7, -1)
    return fine, tall.sub_(small).abs_(), wide.sub_(small).abs_()


def _box(maps: torch.Tensor, width: int, axis: int) -> torch.Tensor:
    """Mean over ``width`` pixels along an axis, without padding; sums of shifted views beat pooling on a CPU."""
    length = maps.shape[axis] - width + 1
    out = maps.narrow(axis, 0, length).clone()
    for k in range(1, width):
        out += maps.narrow(axis, k, length)
    return out.div_(width)


def _logarithm(detail: torch.Tensor) -> torch.Tensor:
    """Decades above `DETAIL_FLOOR`: 0 for none, 2 for a tenth of the brightness range."""
    return torch.log10(detail.clamp(min=0) / DETAIL_FLOOR + 1)


def heat_on_slices(heat: NDArray[np.float32], series: SliceSeries) -> NDArray[np.float32]:
    """Bring maps of the network's grid back onto the slices.

    Parameters
    ----------
    heat : float32 (slice, rows, columns)
        Maps that cover the whole input, at any resolution (a saliency map of a deeper layer, for example).
    series : SliceSeries
        What the network was given.

    Returns
    -------
    float32 (slice, y, x)
        The mirrored continuation cut away, interpolated linearly to the slices' pixels.
    """
    maps = torch.from_numpy(np.ascontiguousarray(heat, dtype=np.float32))[:, None]
    grid = functional.interpolate(maps, size=(GRID_SIZE, GRID_SIZE), mode="bilinear", align_corners=False)
    top, left, height, width = series.window
    own = grid[:, :, top : top + height, left : left + width]
    out = functional.interpolate(own, size=series.slice_shape, mode="bilinear", align_corners=False)
    return out[:, 0].numpy()

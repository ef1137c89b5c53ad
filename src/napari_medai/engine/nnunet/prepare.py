"""What nnU-Net does to an image before its network, and what is needed to undo it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import binary_fill_holes

from napari_medai.core.errors import DeviceError, InputError, ModelError
from napari_medai.core.geometry import Reorientation, canonical_reorientation, orientation_code
from napari_medai.core.volume import Volume
from napari_medai.engine.device import free_memory_mb
from napari_medai.engine.nnunet.resampling import new_shape, resample, streamed
from napari_medai.engine.nnunet.sliding import held_bytes
from napari_medai.engine.prepare import turn
from napari_medai.engine.slabs import How
from napari_medai.models.nnunet_labels import LabelSet
from napari_medai.models.nnunet_stage import Channel, StagePlan

# nnU-Net's reader of natural images, and of single slices, gives them a third axis of such a spacing
SINGLE_SLICE = 999.0
_SMALLEST_DEVIATION = 1e-8
_AXES = ("SI", "PA", "LR")
_MM = {"mm": 1.0, "um": 1e-3, "pixel": 1.0}
_AS_IT_IS = Reorientation((0, 1, 2), (False, False, False))


@dataclass(frozen=True, eq=False)
class Image:
    """An image as nnU-Net's readers give it.

    Attributes
    ----------
    array : (c, z, y, x) float32 array
        Pixels, a copy; a 2-D image has one plane.
    spacing : tuple of 3 floats
        Along z, y, x.
    turned : Reorientation
        How the Volume's axes z, y, x were brought into this order; a 2-D image has one plane for z.
    """

    array: NDArray[np.float32]
    spacing: tuple[float, float, float]
    turned: Reorientation


def read(volume: Volume, reader: str, orientation: str = "") -> Image:
    """A Volume as one of nnU-Net's readers would give it.

    Parameters
    ----------
    volume : Volume
        Axes ``(c)zyx`` or ``(c)yx`` in memory.
    reader : str
        nnU-Net's name of the reader. Those that turn no image see its axes as the file stores them.
    orientation : str
        Three letters for the directions in which x, y, z are to grow, e.g. ``"RAS"``; empty: as they are stored, which
        `as_stored` tells.
    """
    pixels = np.asarray(volume.numpy())
    pixels = pixels if "c" in volume.axes else pixels[None]
    scale = _MM[volume.units] if reader not in ("Tiff3DIO", "NaturalImage2DIO") else 1.0
    # the headers that nnU-Net reads hold float32; beyond it there is the noise of an affine
    z, y, x = (float(np.float32(s * scale)) for s in volume.spacing)
    if "z" not in volume.axes:
        spacing = (max(y, x) * SINGLE_SLICE, y, x) if reader != "NaturalImage2DIO" else (SINGLE_SLICE, 1.0, 1.0)
        return Image(_copy(pixels[:, None]), spacing, _AS_IT_IS)
    orientation = orientation or as_stored(volume)
    there = _towards(volume, orientation) if orientation else _AS_IT_IS
    spacing = ((z, y, x)[there.order[0]], (z, y, x)[there.order[1]], (z, y, x)[there.order[2]])
    return Image(_copy(turn(pixels, there)), spacing, there)


def _copy(pixels: NDArray[Any]) -> NDArray[np.float32]:
    return np.array(pixels, dtype=np.float32, order="C")


def as_stored(volume: Volume) -> str:
    """Directions in which x, y, z grow in the file, e.g. ``"LAS"``; empty if they are the volume's own."""
    stored = volume.meta.get("stored_affine")
    code = orientation_code(np.asarray(stored, dtype=float))[::-1] if stored is not None else ""
    return "" if code == orientation_code(volume.affine)[::-1] else code


def _towards(volume: Volume, orientation: str) -> Reorientation:
    """The permutation and flips of the volume's axes after which (x, y, z) grow in the directions of three letters."""
    letters = orientation.upper()[::-1]  # of z, y, x
    worlds = [next((w for w, pair in enumerate(_AXES) if letter in pair), None) for letter in letters]
    if len(letters) != 3 or sorted(w for w in worlds if w is not None) != [0, 1, 2]:
        raise ModelError(f"The orientation {orientation!r} is none; three letters such as RAS or LPS are needed.")
    canonical = canonical_reorientation(volume.affine)
    order = [canonical.order[w] for w in worlds if w is not None]
    flips = [
        canonical.flips[w] != (letter == _AXES[w][1])
        for w, letter in zip(worlds, letters, strict=True)
        if w is not None
    ]
    return Reorientation((order[0], order[1], order[2]), (flips[0], flips[1], flips[2]))


@dataclass(frozen=True, eq=False)
class Case:
    """An image ready for a network, and what its labels go back through.

    Attributes
    ----------
    plan : StagePlan
        The configuration that it was made ready for.
    labels : LabelSet
        What that tells apart.
    tensor : (channels, k, j, i) float32 tensor
        Resampled and normalised; with the previous stage's labels, a channel for each.
    turned : Reorientation
        How the Volume's axes z, y, x were brought into the plan's order.
    whole : tuple of 3 ints
        Shape before it was cut out, in the plan's order of axes.
    box : tuple of 3 slices
        Where it was cut out.
    cut : tuple of 3 ints
        Shape of what was cut out.
    spacing, target : tuple of 3 floats
        Of the image and of the tensor.
    """

    plan: StagePlan
    labels: LabelSet
    tensor: torch.Tensor
    turned: Reorientation
    whole: tuple[int, ...]
    box: tuple[slice, ...]
    cut: tuple[int, ...]
    spacing: tuple[float, ...]
    target: tuple[float, ...]

    @property
    def grid(self) -> tuple[int, ...]:
        """Shape at the network's spacing."""
        return tuple(self.tensor.shape[1:])

    @property
    def how(self) -> tuple[How, How, How] | None:
        """How scores go back along each axis; none where that takes all of them, see `streamed`."""
        return streamed(self.grid, self.cut, self.target, self.spacing, self.plan.probabilities)


def prepare(
    image: Image, plan: StagePlan, labels: LabelSet, previous: NDArray[Any] | None, check: Callable[[], None]
) -> Case:
    """Order of axes, cut to what is not zero, normalisation, spacing: in this order, as nnU-Net does.

    Parameters
    ----------
    image : Image
        As `read` gave it; its pixels are written over.
    plan : StagePlan
        The configuration.
    labels : LabelSet
        For the channels of ``previous``.
    previous : (z, y, x) integer array, optional
        What the stage before found.
    check : callable
        Called between channels; may raise `Cancelled`.
    """
    data = image.array.transpose(0, *(n + 1 for n in plan.forward))  # it is written into
    spacing = tuple(image.spacing[n] for n in plan.forward)
    whole = tuple(data.shape[1:])
    inside = nonzero(data)
    box = bounding_box(inside)
    # holes change no box, and nothing within it unless a mask is asked for
    masked = previous is not None or any(how.masked for how in plan.channels)
    data, inside = data[(slice(None), *box)], binary_fill_holes(inside[box]) if masked else inside[box]
    cut = tuple(data.shape[1:])
    # a 2-D network keeps the distance of slices
    target = plan.spacing if len(plan.spacing) == 3 else (spacing[0], *plan.spacing)
    shape = new_shape(cut, spacing, target) if plan.data.method != "none" else cut
    if min(shape) < 1:
        raise InputError(
            f"At the model's spacing of {' x '.join(f'{s:g}' for s in target)} mm the image has no voxel along an "
            "axis; it is too small, or its spacing is wrong."
        )
    inputs = len(plan.channels) + (len(labels.foreground) if previous is not None else 0)
    _check_memory(shape, cut, inputs, spacing, target, plan, labels)
    seen = None
    if previous is not None:
        seen = previous.astype(np.float32).transpose(plan.forward)[box].copy()
        seen[(seen == 0) & ~inside] = -1
        inside = seen >= 0
    stacked = np.empty((inputs, *shape), dtype=np.float32)
    for n, (values, how) in enumerate(zip(data, plan.channels, strict=True)):
        check()
        stacked[n] = resample(normalise(values, how, inside), shape, spacing, target, plan.data)
    if seen is not None:
        check()
        found = resample(seen, shape, spacing, target, plan.labels)
        for n, value in enumerate(labels.foreground, len(plan.channels)):
            stacked[n] = found == value
    order = [image.turned.order[n] for n in plan.forward]
    flips = [image.turned.flips[n] for n in plan.forward]
    turned = Reorientation((order[0], order[1], order[2]), (flips[0], flips[1], flips[2]))
    return Case(plan, labels, torch.from_numpy(stacked), turned, whole, box, cut, spacing, target)


def _check_memory(
    shape: tuple[int, ...],
    cut: tuple[int, ...],
    inputs: int,
    spacing: tuple[float, ...],
    target: tuple[float, ...],
    plan: StagePlan,
    labels: LabelSet,
) -> None:
    """Refuse what cannot fit, before hours are spent on it."""
    if streamed(shape, cut, target, spacing, plan.probabilities) is None:
        sums = 2 * labels.heads * prod(shape) + 16 * prod(cut)
    else:
        sums = held_bytes(labels.heads, shape, plan.patch) + prod(cut)
    # the image, and then: one channel in double precision before and after, or the sums of the output
    needed = (4 * inputs * prod(shape) + max(sums, 8 * (prod(cut) + prod(shape)))) / 2**20
    if needed > free_memory_mb(torch.device("cpu")):
        raise DeviceError(
            f"At the model's spacing of {' x '.join(f'{s:g}' for s in target)} mm the image has "
            f"{' x '.join(map(str, shape))} voxels; with {labels.heads} channels of output they need {needed:,.0f} "
            "MiB, which are not free. Close other programs, cut the image, or take a configuration of larger voxels."
        )


def nonzero(data: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Where any channel of (c, k, j, i) is not zero."""
    mask: NDArray[np.bool_] = data[0] != 0
    for channel in data[1:]:
        mask |= channel != 0
    return mask


def bounding_box(mask: NDArray[np.bool_]) -> tuple[slice, ...]:
    """The smallest box around a mask; everything if it is empty."""
    box = []
    for axis in range(mask.ndim):
        (places,) = np.nonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        box.append(slice(int(places[0]), int(places[-1]) + 1) if len(places) else slice(0, mask.shape[axis]))
    return tuple(box)


def normalise(values: NDArray[np.float32], how: Channel, inside: NDArray[np.bool_]) -> NDArray[np.float32]:
    """One channel, in place, by nnU-Net's scheme.

    Raises
    ------
    InputError
        The scheme is that of 8-bit colours and the values go beyond 0..255.
    """
    if how.scheme == "CTNormalization":
        np.clip(values, how.low, how.high, out=values)
        values -= how.mean
        values /= max(how.std, _SMALLEST_DEVIATION)
    elif how.scheme == "ZScoreNormalization" and how.masked:
        seen = values[inside]
        values[inside] = (seen - seen.mean()) / max(seen.std(), _SMALLEST_DEVIATION)
    elif how.scheme == "ZScoreNormalization":
        mean, deviation = values.mean(), values.std()
        values -= mean
        values /= max(deviation, _SMALLEST_DEVIATION)
    elif how.scheme == "RescaleTo01Normalization":
        values -= values.min()
        values /= np.clip(values.max(), a_min=_SMALLEST_DEVIATION, a_max=None)
    elif how.scheme == "RGBTo01Normalization":
        if values.min() < 0 or values.max() > 255:
            raise InputError(
                f"The model takes colours from 0 to 255; this image goes from {values.min():g} to {values.max():g}."
            )
        values /= 255.0
    return values

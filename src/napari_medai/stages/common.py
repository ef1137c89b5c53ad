"""What every stage does before and after its model: check the image, choose pixels, keep the record."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_medai.core.errors import InputError, ModelFitError, NotFiniteError
from napari_medai.core.volume import Volume
from napari_medai.models.spec import Model

# Rec. 709 luminance of linear-light red, green, blue
_LUMINANCE = np.array([0.2126, 0.7152, 0.0722], dtype=np.float32)


def check_fit(volume: Volume, model: Model, stage: str) -> list[str]:
    """Compare an image with what the model accepts, before anything is computed.

    Returns
    -------
    list of str
        Notes for the user: what is unusual and yet accepted.

    Raises
    ------
    ModelFitError
        The model belongs to another stage, or the number of dimensions, size or modality does not fit.
    """
    spec, accepts = model.spec, model.spec.accepts
    if stage not in (spec.stage, "explain"):
        raise ModelFitError(f"Model {spec.id!r} is made for {spec.stage!r}, not {stage!r}; choose another model.")
    if volume.ndim_spatial not in accepts.ndim:
        wanted = " or ".join(f"{n}-D" for n in accepts.ndim)
        raise ModelFitError(
            f"Model {spec.id!r} works on {wanted} images; this one is {volume.ndim_spatial}-D with the axes "
            f"{volume.axes!r}. Choose a model for {volume.ndim_spatial}-D images"
            + ("" if volume.ndim_spatial == 2 else ", or take one slice with volume.take('z', index)")
            + "."
        )
    small = min(volume.spatial_shape[-2:])
    if small < accepts.min_size:
        raise ModelFitError(
            f"The image is {' x '.join(map(str, volume.spatial_shape))}; model {spec.id!r} needs at least "
            f"{accepts.min_size} pixels along y and x."
        )
    if accepts.modality and volume.modality and volume.modality not in accepts.modality:
        raise ModelFitError(
            f"Model {spec.id!r} was made for {', '.join(accepts.modality)}; this image is {volume.modality}. "
            "Choose another model. If the header is wrong, clear the modality: volume.replace(modality='')."
        )
    notes = []
    if accepts.modality and not volume.modality:
        notes.append(f"modality unknown; the model was made for {', '.join(accepts.modality)}")
    if volume.is_rgb and not accepts.rgb:
        notes.append("colour turned to luminance")
    return notes


def one_channel(volume: Volume, channel: int) -> Volume:
    """The image without its channel axis: the chosen channel, or the luminance of a colour image.

    Raises
    ------
    InputError
        There is no such channel.
    """
    if "c" in volume.axes:
        if channel >= volume.size("c"):
            raise InputError(f"Channel {channel} was asked for; the image has {volume.size('c')}, numbered from 0.")
        return volume.take("c", channel)
    if channel:
        raise InputError(f"Channel {channel} was asked for; the image has no channels (colours count together).")
    if volume.is_rgb:
        rgb = np.asarray(volume.array)[..., :3].astype(np.float32)
        weights = _LUMINANCE if rgb.shape[-1] == 3 else np.ones(1, np.float32)
        return volume.replace(array=rgb @ weights, axes=volume.axes[:-1])
    return volume


def for_network(volume: Volume, model: Model, channel: int) -> Volume:
    """What a model's network takes: one channel, or as many as it wants along a first axis ``c`` (after ``t``).

    Raises
    ------
    InputError
        There is no such channel, or there are more or fewer than the model takes.
    """
    wanted = model.spec.accepts.channels
    if wanted == 1:
        return one_channel(volume, channel)
    axis = "c" if "c" in volume.axes else "s" if volume.is_rgb and model.spec.accepts.rgb else ""
    # the alpha of RGBA is no colour
    found = min(volume.size("s"), 3) if axis == "s" else volume.size("c")
    if found != wanted:
        names = f" ({', '.join(model.spec.accepts.channel_names)})" if model.spec.accepts.channel_names else ""
        raise InputError(f"Model {model.id!r} takes {wanted} channels{names}; the image has {found}.")
    first = 1 if volume.axes.startswith("t") else 0
    position = volume.axes.index(axis)
    array = np.moveaxis(np.asarray(volume.array), position, first)
    rest = volume.axes[:position] + volume.axes[position + 1 :]
    return volume.replace(array=array[(slice(None),) * first + (slice(wanted),)], axes=f"{rest[:first]}c{rest[first:]}")


def frames(volume: Volume) -> list[Volume]:
    """One volume per index of the leading axis ``t``; the volume itself if it has none."""
    return [volume.take("t", n) for n in range(volume.size("t"))] if "t" in volume.axes else [volume]


def pixels(volume: Volume) -> NDArray[np.float32]:
    """The pixels as float32 in memory, known to be finite and not all the same.

    Raises
    ------
    NotFiniteError
        Some pixel is NaN or infinite; the message says how many.
    InputError
        All pixels are the same.
    """
    array = volume.numpy()
    if array.dtype.kind not in "biuf":
        raise InputError(f"Pixels of type {array.dtype} cannot be computed on; convert them to real numbers.")
    bad = array.size - int(np.isfinite(array).sum()) if array.dtype.kind == "f" else 0
    if bad:
        raise NotFiniteError(
            f"{bad} of {array.size} pixels are NaN or infinite; replace them first, e.g. with numpy.nan_to_num."
        )
    if array.min() == array.max():
        raise InputError(f"Every pixel has the value {array.flat[0]}: there is nothing to look at.")
    return np.ascontiguousarray(array, dtype=np.float32)


def stack(arrays: list[NDArray[Any]], like: Volume) -> NDArray[Any]:
    """Put the results of `frames` back together: along a first axis if there is ``t``."""
    return np.stack(arrays) if "t" in like.axes else arrays[0]

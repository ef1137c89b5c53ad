"""What every stage does before and after its model: check the image, choose pixels, keep the record."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_medai.core.errors import InputError, ModelFitError, NotFiniteError
from napari_medai.core.stage import Params
from napari_medai.core.volume import Volume
from napari_medai.engine import ANY_TYPE
from napari_medai.models.gate import gate
from napari_medai.models.spec import Model

# Rec. 709 luminance of linear-light red, green, blue
_LUMINANCE = np.array([0.2126, 0.7152, 0.0722], dtype=np.float32)


def check_fit(volume: Volume, model: Model, stage: str, params: Params | None = None) -> list[str]:
    """Compare an image with what the model accepts, before anything is computed; see `napari_medai.models.gate`.

    Parameters
    ----------
    params : Params, optional
        Of the stage: its channel and time point; with ``override`` what could be computed is let through.

    Returns
    -------
    list of str
        Notes for the record: what is put right, what is unusual and yet accepted, and what was overridden.

    Raises
    ------
    ModelFitError
        Something blocks the run; the message has everything that does.
    """
    findings = gate(
        volume, model.spec, stage, channel=getattr(params, "channel", 0), frame=getattr(params, "frame", None)
    )
    override = params is not None and params.override
    blocks = [finding for finding in findings if finding.severity == "block"]
    hard = [finding for finding in blocks if finding.final]
    if hard or (blocks and not override):
        how = "" if hard else " To run all the same: override=True (medai: --override); it is recorded."
        raise ModelFitError(" ".join(finding.text for finding in hard or blocks) + how)
    notes = [f"overridden: {finding.text}" for finding in blocks]
    return notes + [finding.text for finding in findings if finding.severity != "block"]


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
        last = len(volume.axes) - 1
        array: Any = volume.array
        if volume.is_lazy:
            grey = array.rechunk({last: -1}).map_blocks(_luminance, drop_axis=last, dtype=np.float32)
        else:
            grey = _luminance(array)
        return volume.replace(array=grey, axes=volume.axes[:-1])
    return volume


def _luminance(colours: NDArray[Any]) -> NDArray[np.float32]:
    rgb = colours[..., :3].astype(np.float32)
    weights = _LUMINANCE if rgb.shape[-1] == 3 else np.ones(1, np.float32)
    return np.asarray(rgb @ weights)


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


def channel_of(volume: Volume, seen: Volume, channel: int) -> str:
    """Which channel of an image was taken, for messages; empty if there was nothing to choose."""
    return (
        f"channel {channel} of {volume.size('c')} (numbered from 0)"
        if "c" in volume.axes and "c" not in seen.axes
        else ""
    )


def pixels(volume: Volume, of: str = "") -> NDArray[np.float32]:
    """The pixels as float32 in memory, known to be finite and not all the same.

    Parameters
    ----------
    of : str
        See `channel_of`.

    Raises
    ------
    NotFiniteError
        Some pixel is NaN or infinite; the message says how many.
    InputError
        All pixels are the same.
    """
    return np.ascontiguousarray(as_stored(volume.replace(array=volume.numpy()), of), dtype=np.float32)


def as_stored(volume: Volume, of: str = "") -> Any:
    """The pixels in the type and the place that they have, known to be finite and not all the same.

    Raises
    ------
    NotFiniteError, InputError
        As `pixels`.
    """
    _check_type(volume.dtype)
    _check_parts(volume.array, of)
    return volume.array


def for_runner(volume: Volume, model: Model, of: str = "") -> Any:
    """The pixels as the model's runner takes them: `as_stored` or as `pixels`."""
    return as_stored(volume, of) if model.spec.runner in ANY_TYPE else pixels(volume, of)


def _check_type(dtype: np.dtype[Any]) -> None:
    if dtype.kind not in "biuf":
        raise InputError(f"Pixels of type {dtype} cannot be computed on; convert them to real numbers.")


def _check_parts(array: Any, of: str = "") -> None:
    """Raise `NotFiniteError` or `InputError`; of a lazy array whole rows of chunks are read, as many as are needed."""
    size = int(np.prod(array.shape, dtype=np.int64))
    height = max(array.chunks[0]) if hasattr(array, "chunks") else array.shape[0]
    bad, low, high = 0, np.inf, -np.inf
    for start in range(0, array.shape[0], height):
        part = np.asarray(array[start : start + height])
        if part.dtype.kind == "f":
            bad += part.size - int(np.isfinite(part).sum())
        low, high = min(low, part.min()), max(high, part.max())
        if part.dtype.kind != "f" and low != high:
            return
    if bad:
        raise NotFiniteError(
            f"{bad} of {size} pixels are NaN or infinite; replace them first, e.g. with numpy.nan_to_num."
        )
    if low == high:
        where = f" of {of}" if of else ""
        how = " Choose another with channel=… (medai: --channel …)." if of else ""
        raise InputError(f"Every pixel{where} has the value {low}: there is nothing to look at.{how}")


def stack(arrays: list[NDArray[Any]], like: Volume) -> NDArray[Any]:
    """Put the results of `frames` back together: along a first axis if there is ``t``."""
    return np.stack(arrays) if "t" in like.axes else arrays[0]

"""How layers look: contrast, colours, names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dask.array as da
import numpy as np

from napari_medai.core.result import Color, Table
from napari_medai.core.volume import Volume

# What lies outside these percentiles of the pixels is black or white: the bright 0.2 % are enough for
# the nuclei of a sparse fluorescence image to count.
_PERCENTILES = (0.5, 99.8)
_SAMPLE_PIXELS = 200_000
_CHANNEL_COLORS = ("magenta", "green", "cyan", "yellow", "red", "blue")
_HEAT_STEPS = 64


def contrast_limits(volume: Volume) -> tuple[float, float]:
    """Black and white of an image: the window of its header, else percentiles of a few pixels.

    Of a lazy volume three planes are decoded, at a quarter, half and three quarters of each leading axis; of one
    in memory, every n-th pixel is looked at.
    """
    window = volume.meta.get("window")
    if window is not None and np.isfinite(window).all() and window[0] < window[1]:
        return float(window[0]), float(window[1])
    array = volume.array
    if volume.is_lazy:
        # one computation, so that pixels stored as one block are decoded once
        array = sampled(array)
    stride = max(1, int(np.ceil((np.prod(array.shape) / _SAMPLE_PIXELS) ** (1 / array.ndim))))
    pixels = np.asarray(array[(slice(None, None, stride),) * array.ndim]).astype(np.float64).ravel()
    pixels = pixels[np.isfinite(pixels)]
    if not pixels.size:
        return 0.0, 1.0
    low, high = (float(value) for value in np.percentile(pixels, _PERCENTILES))
    if low == high:
        low, high = float(pixels.min()), float(pixels.max())
    return (low, high) if low < high else (low, low + 1.0)


def sampled(array: Any) -> Any:
    """The planes of a lazy array that its contrast is taken from, lazily."""
    places = {tuple(size * n // 4 for size in array.shape[:-2]) for n in (1, 2, 3)}
    return da.stack([array[place] for place in sorted(places)])


def image_look(volume: Volume, channel: int | None = None, channels: int = 1) -> dict[str, Any]:
    """Keyword arguments of an image layer: contrast and colours.

    Parameters
    ----------
    volume : Volume
        One channel, or RGB(A).
    channel, channels : int
        Which of how many, where an image with channels is shown one layer each.
    """
    if volume.is_rgb:
        return {"rgb": True}
    # without being told, napari takes a volume of three or four sagittal slices for colour
    look: dict[str, Any] = {"rgb": False, "contrast_limits": contrast_limits(volume), "colormap": "gray"}
    if channel is not None and channels > 1:
        look |= {"colormap": _CHANNEL_COLORS[channel % len(_CHANNEL_COLORS)], "blending": "additive"}
    return look


def label_colors(colors: Mapping[int, Color]) -> Any:
    """A colormap with the colours of a mask; labels without one are grey, the background is clear."""
    from napari.utils.colormaps import DirectLabelColormap

    table: dict[int | None, Any] = {None: (0.6, 0.6, 0.6, 1.0), 0: (0.0, 0.0, 0.0, 0.0)}
    return DirectLabelColormap(color_dict=table | {value: (*color, 1.0) for value, color in colors.items()})


def label_features(table: Table, names: Mapping[int, str]) -> Table:
    """A mask's table as napari wants it: one row per label, whose number stands in ``index``."""
    if "label" not in table or "t" in table:
        # labels are numbered anew in each frame of a series: no row belongs to a number
        return {"index": np.array(sorted(names)), "name": np.array([names[n] for n in sorted(names)])} if names else {}
    numbers = {name: value for value, name in names.items()}
    values = [int(numbers.get(label, label)) for label in table["label"].tolist()]
    rest = {column: values for column, values in table.items() if column not in ("index", "label", "score")}
    named = {"name": np.array([names[v] for v in values], dtype=object)} if names else {}
    return {"index": np.array(values, dtype=int), **named, **rest}


def heat_colors() -> Any:
    """From clear to opaque along matplotlib's inferno, so that a heatmap hides only what it points at."""
    from napari.utils.colormaps import Colormap, ensure_colormap

    rising = np.linspace(0, 1, _HEAT_STEPS)
    colors = np.array(ensure_colormap("inferno").map(rising))
    colors[:, 3] = rising
    return Colormap(colors, name="heat")

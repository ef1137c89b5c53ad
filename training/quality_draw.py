"""Examples for the classifier ``quality``: views of sources, spoiled, stored and prepared for the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.ndimage as ndi
import torch
from numpy.typing import NDArray
from torch.nn import functional

from napari_medai.engine.slices import network_input
from training.defects import DEFECTS, Series, bias_map, spoil
from training.quality_data import Source

KIND_SHARES = {"MR": 0.42, "CT": 0.16, "microscopy": 0.20, "other": 0.10, "phantom": 0.12}
DEFECT_COUNT_SHARES = (0.28, 0.40, 0.22, 0.10)


@dataclass(frozen=True)
class Example:
    """One spoiled or clean series, ready for the network.

    Attributes
    ----------
    inputs : float16 (slice, channel, rows, columns)
    slice_labels : float32 (slice, defect)
    labels : float32 (defect,)
        1 present, 0 absent, nan unknown.
    severities : dict
        Defect -> severity that was asked for.
    """

    inputs: NDArray[np.float16]
    slice_labels: NDArray[np.float32]
    labels: NDArray[np.float32]
    severities: dict[str, float]


def _resize(series: Series, size: tuple[int, int], mode: str) -> Series:
    tensor = torch.from_numpy(np.array(series, order="C", copy=True))[:, None]
    return functional.interpolate(tensor, size=size, mode=mode, align_corners=False, antialias=True)[:, 0].numpy()


def _view(source: Source, count: int, rng: np.random.Generator) -> Series:
    """Slices of a source as acquired, cropped at random."""
    axis = int(rng.integers(3)) if source.every_axis else 0
    volume = np.moveaxis(source.pixels, axis, 0)
    if len(volume) >= count:
        span = int(rng.integers(count, len(volume) + 1))
        first = int(rng.integers(0, len(volume) - span + 1))
        picked = np.linspace(first, first + span - 1, count).round().astype(int)
        series = np.stack([volume[k] for k in picked]).astype(np.float32)
    else:
        image = volume[int(rng.integers(len(volume)))].astype(np.float32)
        low = float(image.min())
        views = [np.roll(image - low, tuple(rng.integers(-6, 7, 2)), (0, 1)) for _ in range(count)]
        series = np.stack([view * np.float32(rng.uniform(0.8, 1.0)) + low for view in views])
    if rng.random() < 0.4:
        height, width = (max(min(40, n), int(n * rng.uniform(0.45, 1))) for n in series.shape[1:])
        top = int(rng.integers(0, series.shape[1] - height + 1))
        left = int(rng.integers(0, series.shape[2] - width + 1))
        series = series[:, top : top + height, left : left + width]
    return series


def clean_series(source: Source, count: int, rng: np.random.Generator) -> Series:
    """Draw evenly spaced slices along one axis, cropped, turned, shrunk and shaded at random, still without defects.

    An image gives a pseudo-stack if more than one slice is asked for: shifted and dimmed views of itself.

    Returns
    -------
    float32 (slice, y, x)
        The 0.5th and 99.5th percentile lie at 0 and 1 before mild changes.
    """
    whole = source.pixels[:: max(1, len(source.pixels) // 8), ::4, ::4].astype(np.float32)
    least = 0.15 * float(np.quantile(whole, 0.99) - np.quantile(whole, 0.01))
    for _ in range(8):  # a view of nothing but background says nothing about quality
        series = _view(source, count, rng)
        sample = series[:, ::2, ::2]
        if float(np.quantile(sample, 0.99) - np.quantile(sample, 0.01)) >= least:
            break
    for flip in (0, 1, 2):
        if rng.random() < 0.5:
            series = np.flip(series, flip)
    if rng.random() < 0.5:
        series = series.swapaxes(1, 2)
    longest = max(series.shape[1:])
    factor = min(float(np.exp(rng.uniform(np.log(72), np.log(448)))) / longest, 1.35, 1 / source.shrink)
    size = (max(16, round(series.shape[1] * factor)), max(16, round(series.shape[2] * factor)))
    series = _resize(series, size, "bilinear" if factor < 1 else "bicubic")

    low, high = np.quantile(series.ravel()[:: max(1, series.size // 200_000)], [0.005, 0.995])
    if high - low < 1e-6:
        low, high = series.min(), max(series.max(), series.min() + 1e-6)
    series = (series - low) / (high - low)
    bottom, top_value = float(series.min()), float(series.max())
    if top_value > bottom:
        unit = (series - bottom) / (top_value - bottom)
        if rng.random() < 0.4:
            series = unit ** rng.uniform(0.7, 1.45) * (top_value - bottom) + bottom
        if rng.random() < 0.08:
            series = top_value + bottom - series
    return _mild_changes(series.astype(np.float32), rng)


def _mild_changes(series: Series, rng: np.random.Generator) -> Series:
    """What sound images have too: a little noise, shading and softness."""
    if rng.random() < 0.3:
        series = series * bias_map(series.shape, rng.uniform(1.0, 1.3), rng)
    if rng.random() < 0.25:
        series = ndi.gaussian_filter(series, (0, *rng.uniform(0.2, 0.75, 2)))
    if rng.random() < 0.4:
        series = series + rng.uniform(0, 0.015) * rng.standard_normal(series.shape, dtype=np.float32)
    return np.asarray(series, np.float32)


def saturated_share(series: Series) -> float:
    """Fraction of pixels within 0.4 % of the highest value."""
    low, high = float(series.min()), float(series.max())
    return float((series >= high - 0.004 * (high - low)).mean())


def stored(series: Series, rng: np.random.Generator) -> NDArray[np.generic]:
    """The series in a random number format and range, as a file would hold it."""
    low, high = float(series.min()), float(series.max())
    unit = (series - low) / max(high - low, 1e-6)
    kind = rng.choice(["uint8", "int16", "uint16", "float32"], p=[0.3, 0.25, 0.15, 0.3])
    if kind == "uint8":
        return np.asarray((unit * rng.integers(150, 256)).round().astype(np.uint8))
    if kind == "int16":
        return np.asarray((unit * rng.integers(400, 4000) - rng.integers(0, 1100)).round().astype(np.int16))
    if kind == "uint16":
        return np.asarray((unit * rng.integers(400, 60000)).round().astype(np.uint16))
    return np.asarray((unit * 10 ** rng.uniform(-3, 4) + rng.choice([0.0, -1.0, 5.0])).astype(np.float32))


def make_example(
    source: Source,
    count: int,
    rng: np.random.Generator,
    severities: dict[str, float] | None = None,
    mildest: float = 0.0,
) -> Example:
    """Draw a clean series from a source and spoil it.

    Parameters
    ----------
    source : Source
    count : int
        Number of slices.
    rng : numpy.random.Generator
    severities : dict, optional
        Defect -> severity; by default none to three defects of any severity, two times in five (in series of four
        and more) only in a part of the slices.
    mildest : float, default 0
        Least severity where ``severities`` is not given.
    """
    series = clean_series(source, count, rng)
    affected: NDArray[np.int_] | None = None
    if severities is None:
        chosen = rng.permutation(DEFECTS)[: rng.choice(len(DEFECT_COUNT_SHARES), p=DEFECT_COUNT_SHARES)]
        severities = {str(name): float(rng.uniform(mildest, 1)) for name in chosen}
        if count >= 4 and rng.random() < 0.4:
            some = int(rng.integers(max(1, count // 4), max(2, round(count * 0.7)) + 1))
            first = int(rng.integers(0, count - some + 1))
            affected = np.arange(first, first + some) if rng.random() < 0.6 else rng.permutation(count)[:some]
    smear = source.kind != "MR" and rng.random() < 0.5
    unclear = {DEFECTS.index(name) for name in source.unknown}
    if "clipping" not in severities and saturated_share(series) > 0.003:
        unclear.add(DEFECTS.index("clipping"))
    spoiled = spoil(series, severities, rng, affected=None if affected is None else affected.tolist(), smear=smear)
    slice_labels, labels = spoiled.labels.copy(), spoiled.series_labels()
    for column in unclear:
        slice_labels[slice_labels[:, column] == 0, column] = np.nan
        labels[column] = np.nan if labels[column] == 0 else labels[column]
    inputs, _ = network_input(stored(spoiled.slices, rng))
    return Example(inputs.astype(np.float16), slice_labels, labels, severities)


class Draw:
    """Draws sources of a split: first a kind by its share, then one source of that kind."""

    def __init__(self, images: Sequence[Source], phantoms: Sequence[Source]) -> None:
        self.by_kind = {kind: [s for s in images if s.kind == kind] for kind in KIND_SHARES}
        self.by_kind["phantom"] = list(phantoms)
        self.kinds = [kind for kind in KIND_SHARES if self.by_kind[kind]]
        shares = np.array([KIND_SHARES[kind] for kind in self.kinds])
        self.shares = shares / shares.sum()

    def __call__(self, count: int, rng: np.random.Generator) -> Source:
        """A source for a series of ``count`` slices; images only sometimes stand in for stacks."""
        while True:
            pool = self.by_kind[str(rng.choice(self.kinds, p=self.shares))]
            deep = [s for s in pool if len(s.pixels) >= count]
            if count > 1 and (not deep or rng.random() < 0.1):
                deep = [s for s in pool if len(s.pixels) == 1] if rng.random() < 0.4 else deep
            if deep:
                return deep[int(rng.integers(len(deep)))]

"""Simulated image defects with known labels, in plain numpy.

Every function takes a series of slices as floats of shape (slice, y, x), scaled so that the 0.5th and 99.5th
percentile of the series lie near 0 and 1, and a severity from 0 (hardly visible) to 1 (gross). It returns the
spoiled series and does not change its input. Defects of acquisition (bias field, motion, ghosting) act in the
order of the physics: `spoil` applies bias field, motion, ghosting, blur, noise, clipping.

A label is only given where the defect can be seen: a slice whose content hardly changed (an empty slice, for
example) gets ``nan``, which means "unknown" and is left out of the loss and of every figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.ndimage as ndi
from numpy.typing import NDArray

Series = NDArray[np.float32]
DEFECTS = ("noise", "blur", "motion", "ghosting", "bias field", "clipping")
"""Classes in the order of the network's outputs."""

APPLY_ORDER = ("bias field", "motion", "ghosting", "blur", "noise", "clipping")
VISIBLE_CHANGE = {"noise": 0.02, "blur": 0.008, "motion": 0.012, "ghosting": 0.012}
"""Least root-mean-square change of a slice, in units of the series' range, that counts as visible."""

VISIBLE_BIAS_RATIO = 1.6
"""Least ratio between the 95th and 5th percentile of the field over the object."""

VISIBLE_CLIPPED = 0.004
"""Least fraction of a slice's pixels at the saturation level."""


@dataclass(frozen=True)
class Spoiled:
    """A spoiled series and what is true of it.

    Attributes
    ----------
    slices : float32 (slice, y, x)
    labels : float32 (slice, defect)
        1 present, 0 absent, nan unknown; columns as in `DEFECTS`.
    """

    slices: Series
    labels: NDArray[np.float32]

    def series_labels(self) -> NDArray[np.float32]:
        """Label of the whole series per defect: present if any slice has it, unknown before absent."""
        known = np.nan_to_num(self.labels, nan=0.0).max(axis=0)
        unknown = np.isnan(self.labels).any(axis=0) & (known == 0)
        return np.where(unknown, np.nan, known).astype(np.float32)


def _log_between(low: float, high: float, severity: float) -> float:
    return float(low * (high / low) ** severity)


def add_noise(series: Series, severity: float, rng: np.random.Generator, kind: str = "any") -> Series:
    """Gaussian, Rician or Poisson noise with a standard deviation of 4.5 % to 22 % of the series' range.

    Rician noise is the magnitude of a complex signal with Gaussian noise in both channels (Gudbjartsson and Patz,
    Magn Reson Med 1995); Poisson noise scales with the square root of the signal. One time in four the noise is
    correlated between neighbours, as after reconstruction filters or resampling.

    Parameters
    ----------
    series : float32 (slice, y, x)
    severity : float in 0..1
    rng : numpy.random.Generator
    kind : {"any", "gaussian", "rician", "poisson"}
    """
    sigma = _log_between(0.045, 0.22, severity)
    if kind == "any":
        kind = str(rng.choice(["gaussian", "rician", "poisson"]))
    if kind == "poisson":
        signal = np.clip(series, 0, None)
        peak = max(float(np.quantile(signal, 0.9)), 0.2)
        photons = peak / sigma**2  # the standard deviation at the 90th percentile is sigma
        return (rng.poisson(signal * photons) / photons).astype(np.float32)

    def draw() -> Series:
        noise = rng.standard_normal(series.shape, dtype=np.float32)
        if correlation:
            noise = ndi.gaussian_filter(noise, (0, correlation, correlation), mode="wrap")
            noise /= noise.std() + 1e-9
        return sigma * noise

    correlation = float(rng.uniform(0.4, 0.75)) if rng.random() < 0.25 else 0.0
    if kind == "rician":
        floor = float(series.min())
        return (np.hypot(series - floor + draw(), draw()) + floor).astype(np.float32)
    return series + draw()


def add_blur(series: Series, severity: float, rng: np.random.Generator) -> Series:
    """Blur in the plane: a Gaussian of standard deviation 1.5 to 4.5 pixels, or a defocus disc of the same variance."""
    sigma = _log_between(1.5, 4.5, severity)
    if rng.random() < 0.7:
        other = sigma * float(rng.uniform(0.8, 1.25))
        return np.asarray(ndi.gaussian_filter(series, (0, sigma, other), mode="nearest"), np.float32)
    radius = 2 * sigma  # a uniform disc of radius r has variance r**2 / 4 along each axis
    reach = int(np.ceil(radius))
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disc = np.clip(radius + 0.5 - np.hypot(y, x), 0, 1).astype(np.float32)
    return _convolve(series, disc / disc.sum())


def _convolve(series: Series, kernel: NDArray[np.float32]) -> Series:
    """Convolve each slice with one kernel through the Fourier transform, with mirrored borders."""
    reach = kernel.shape[0] // 2
    padded = np.pad(series, ((0, 0), (reach, reach), (reach, reach)), mode="symmetric")
    size = padded.shape[1:]
    transfer = np.fft.rfft2(kernel, size)
    out = np.fft.irfft2(np.fft.rfft2(padded) * transfer, size)
    return out[:, 2 * reach :, 2 * reach :].astype(np.float32)


def add_motion(series: Series, severity: float, rng: np.random.Generator) -> Series:
    """Rigid motion during the acquisition of k-space, lines of which see the object at different places.

    Either the object jumps 1 to 5 times (translation of 1 % to 4 % of the field of view and, half the time, a
    rotation of up to 5 degrees), or it swings to and fro along the phase-encoding axis as in breathing. The middle
    lines always see the object at rest.
    """
    swapped = rng.random() < 0.5
    slices = np.ascontiguousarray(series.swapaxes(1, 2) if swapped else series)
    lines, columns = slices.shape[1:]
    ky = np.fft.fftfreq(lines)[:, None]
    kx = np.fft.fftfreq(columns)[None, :]
    reach = _log_between(0.010, 0.040, severity)
    floor = float(np.median(np.concatenate([slices[:, 0].ravel(), slices[:, -1].ravel()])))
    spectrum = np.fft.fft2(slices - floor)
    order = np.argsort(np.fft.fftfreq(lines), kind="stable")  # acquisition runs from -ky to +ky
    if rng.random() < 0.35:
        cycles = rng.uniform(4, 16)
        time = np.empty(lines)
        time[order] = np.linspace(0, 1, lines)
        swing = reach * lines * 0.8 * np.sin(2 * np.pi * (cycles * time + rng.random()))
        swing -= swing[0]
        spectrum = spectrum * np.exp(-2j * np.pi * ky * swing[:, None])[None]
    else:
        events = int(rng.integers(1, 2 + round(4 * severity)))
        starts = np.sort(rng.uniform(0.02, 0.98, events)) * lines
        rest = 0.06 * lines
        angle_limit = 5 * (0.4 + 0.6 * severity) if rng.random() < 0.5 else 0.0
        moved = spectrum.copy()
        for n, start in enumerate(starts):
            end = starts[n + 1] if n + 1 < events else lines
            shift = reach * rng.uniform(0.5, 1, 2) * rng.choice([-1, 1], 2) * (lines, columns)
            source = spectrum
            if angle_limit and n < 2:
                angle = float(rng.uniform(0.4, 1) * angle_limit * rng.choice([-1, 1]))
                turned = ndi.rotate(slices, angle, axes=(1, 2), reshape=False, order=1, mode="nearest")
                source = np.fft.fft2(turned - floor)
            picked = order[int(start) : int(end)]
            picked = picked[np.abs(np.fft.fftfreq(lines)[picked]) * lines > rest]
            ramp = np.exp(-2j * np.pi * (ky[picked] * shift[0] + kx * shift[1]))
            moved[:, picked] = source[:, picked] * ramp[None]
        spectrum = moved
    out = np.abs(np.fft.ifft2(spectrum)) if floor <= slices.min() + 0.15 else np.fft.ifft2(spectrum).real
    out = (out + floor).astype(np.float32)
    return np.ascontiguousarray(out.swapaxes(1, 2)) if swapped else out


def add_smear(series: Series, severity: float, rng: np.random.Generator) -> Series:
    """Motion of a camera or stage during one exposure: a straight smear of 6 to 22 pixels in any direction."""
    length = _log_between(6, 22, severity)
    angle = float(rng.uniform(0, np.pi))
    reach = int(np.ceil(length / 2)) + 1
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1), np.float32)
    for t in np.linspace(-length / 2, length / 2, int(length * 4)):
        kernel[round(reach + t * np.sin(angle)), round(reach + t * np.cos(angle))] += 1
    kernel = ndi.gaussian_filter(kernel, 0.5)
    return _convolve(series, kernel / kernel.sum())


def add_ghosting(series: Series, severity: float, rng: np.random.Generator) -> Series:
    """Ghosts along one axis: k-space lines are modulated with a period of 2 to 7 lines.

    Each of the two ghosts, at plus and minus one period's share of the field of view, has 7 % to 35 % of the
    object's brightness; with a period of two they fall on each other (the N/2 ghost of echo-planar images).
    """
    axis = int(rng.integers(1, 3))
    count = series.shape[axis]
    strength = _log_between(0.07, 0.35, severity)
    period = 2.0 if rng.random() < 0.4 else float(rng.uniform(2.2, 7.0))
    phase = rng.uniform(0, 2 * np.pi)
    k = np.fft.fftfreq(count) * count
    if period == 2.0:
        modulation = 1 + strength * np.cos(np.pi * k) * np.exp(1j * phase)
    else:
        modulation = 1 + strength * (
            np.exp(1j * (2 * np.pi * k / period + phase)) + np.exp(-1j * (2 * np.pi * k / period - phase))
        )
    shape = [1, 1, 1]
    shape[axis] = count
    floor = float(min(series.min(), 0.0))
    spectrum = np.fft.fft(series - floor, axis=axis) * modulation.reshape(shape)
    return (np.abs(np.fft.ifft(spectrum, axis=axis)) + floor).astype(np.float32)


def bias_map(shape: tuple[int, ...], ratio: float, rng: np.random.Generator) -> Series:
    """A smooth positive field over (slice, y, x) whose largest value is ``ratio`` times its smallest.

    Either the falloff of a surface coil outside one border, or a polynomial of second order in the coordinates,
    as the fields of volume coils and of uneven illumination are modelled.
    """
    axes = [np.linspace(-1, 1, n, dtype=np.float32) if n > 1 else np.zeros(1, np.float32) for n in shape]
    z, y, x = np.meshgrid(*axes, indexing="ij")
    if rng.random() < 0.4:
        angle = rng.uniform(0, 2 * np.pi)
        reach = rng.uniform(1.0, 1.8)
        distance = np.hypot(y - reach * np.sin(angle), x - reach * np.cos(angle)) + 0.3 * np.abs(z)
        field = -distance
    else:
        w = rng.normal(size=8)
        field = w[0] * y + w[1] * x + 0.5 * w[2] * z + w[3] * y * x + 0.8 * (w[4] * y * y + w[5] * x * x)
        field = field + 0.5 * (w[6] * y * z + w[7] * x * z)
    field = (field - field.min()) / max(float(np.ptp(field)), 1e-6)
    return np.exp(np.log(ratio) * (field - 1)).astype(np.float32)


def add_bias_field(series: Series, severity: float, rng: np.random.Generator) -> tuple[Series, Series]:
    """Multiply by a smooth field whose extremes differ 2.5 to 8 times; returns the series and the field."""
    field = bias_map(series.shape, _log_between(2.5, 8.0, severity), rng)
    floor = float(min(series.min(), 0.0))
    return ((series - floor) * field + floor).astype(np.float32), field


def add_clipping(series: Series, severity: float, rng: np.random.Generator) -> Series:
    """Cut off the top of the range so that 1 % to 25 % of the object's pixels saturate at one value."""
    del rng  # same signature as the others
    floor, top = float(series.min()), float(series.max())
    values = series[series > floor + 0.08 * (top - floor)]
    if values.size == 0:
        return series.copy()
    level = float(np.quantile(values, 1 - _log_between(0.01, 0.25, severity)))
    return np.minimum(series, np.float32(level))


def object_mask(series: Series) -> NDArray[np.bool_]:
    """Pixels that are not background: brighter than a tenth of the 99th percentile above the lowest value."""
    low, high = float(series.min()), float(np.quantile(series, 0.99))
    return np.asarray(series > low + 0.1 * (high - low))


def _visible(name: str, before: Series, after: Series, field: Series | None) -> NDArray[np.bool_]:
    if name == "bias field":
        assert field is not None
        seen = []
        for shade, mask in zip(field, object_mask(before), strict=True):
            inside = shade[mask]
            enough = inside.size > 0.02 * shade.size
            seen.append(enough and np.quantile(inside, 0.95) / np.quantile(inside, 0.05) >= VISIBLE_BIAS_RATIO)
        return np.array(seen)
    if name == "clipping":
        return np.asarray((before > after).mean(axis=(1, 2)) >= VISIBLE_CLIPPED)
    change = np.sqrt(((after - before) ** 2).mean(axis=(1, 2)))
    return np.asarray(change >= VISIBLE_CHANGE[name])


def spoil(
    series: Series,
    severities: dict[str, float],
    rng: np.random.Generator,
    *,
    affected: Sequence[int] | None = None,
    smear: bool = False,
) -> Spoiled:
    """Apply several defects in the order of the physics and label each slice.

    Parameters
    ----------
    series : float32 (slice, y, x), robust range near 0..1
    severities : dict
        Defect -> severity in 0..1, keys out of `DEFECTS`.
    rng : numpy.random.Generator
    affected : sequence of int, optional
        Slices that noise, blur, motion and ghosting act on; all by default. Bias field and clipping
        belong to the receiver and always act on the series.
    smear : bool
        Motion is `add_smear` instead of `add_motion`; blur is then unknown unless it is asked for too.

    Raises
    ------
    KeyError
        If a key is not a defect.
    """
    unknown = set(severities) - set(DEFECTS)
    if unknown:
        raise KeyError(f"no defect {sorted(unknown)}; known defects: {', '.join(DEFECTS)}")
    picked = np.arange(len(series)) if affected is None else np.asarray(affected)
    out = Spoiled(series.astype(np.float32), np.zeros((len(series), len(DEFECTS)), np.float32))
    for name in APPLY_ORDER:
        if name in severities:
            out = _apply(out, name, severities[name], rng, picked, smear)
    if smear and "motion" in severities and "blur" not in severities:
        labels = out.labels.copy()
        labels[labels[:, DEFECTS.index("motion")] != 0, DEFECTS.index("blur")] = np.nan
        out = replace(out, labels=labels)
    return out


def _apply(
    state: Spoiled, name: str, severity: float, rng: np.random.Generator, picked: NDArray[np.int_], smear: bool
) -> Spoiled:
    before = state.slices
    labels = state.labels.copy()
    column = DEFECTS.index(name)
    field: Series | None = None
    if name == "bias field":
        after, field = add_bias_field(before, severity, rng)
        picked = np.arange(len(before))
    elif name == "clipping":
        after = add_clipping(before, severity, rng)
        picked = np.arange(len(before))
    else:
        act = {"noise": add_noise, "blur": add_blur, "motion": add_motion, "ghosting": add_ghosting}[name]
        if name == "motion" and smear:
            act = add_smear
        after = before.copy()
        after[picked] = act(before[picked], severity, rng)
    seen = _visible(name, before, after, field)
    labels[picked, column] = np.where(seen[picked], 1.0, np.nan)
    return Spoiled(after, labels)

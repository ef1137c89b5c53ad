"""The gate: does this image fit this model? Asked before anything is computed.

Every finding either blocks the run, is fixed on the way (and recorded), or is a warning. A person may override a block
that is a matter of judgement (another modality); not one that is a matter of shape (a volume for a model of slides).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from napari_medai.core.geometry import orientation_code
from napari_medai.core.volume import Volume
from napari_medai.models.spec import Accepts, ModelSpec, Range

Severity = Literal["block", "fix", "warn"]

# Spacing and extent may be this share beyond the range on which a model was tested before it is said.
_SLACK = 0.05
# Planes, and pixels along each axis, that are looked at where the values of an image matter.
_PLANES, _EDGE = 3, 128
# Less than this share of the pixels between the values that a model expects: they are in another unit.
_SHARE_INSIDE = 0.01
# The ground of a stained slide is bright: the median of its luminance stands above this share of white.
_BRIGHT_GROUND = 0.6
# What explains a network's answer takes its classes, or the labels of a segmenter.
_EXPLAINED = ("classes", "labels", "instances")


@dataclass(frozen=True)
class GateFinding:
    """One thing that was found.

    Attributes
    ----------
    severity : {"block", "fix", "warn"}
        Whether it stops the run, is put right on the way, or is said.
    about : str
        ``"stage"``, ``"axes"``, ``"size"``, ``"channels"``, ``"time"``, ``"modality"``, ``"body part"``, ``"spacing"``,
        ``"field of view"``, ``"orientation"``, ``"units"``, ``"values"`` or ``"gaps"``.
    text : str
        What was found, what was expected, and what to do or what is done.
    final : bool
        A block that no override opens: there is no way to compute it.
    """

    severity: Severity
    about: str
    text: str
    final: bool = False


def gate(
    volume: Volume, spec: ModelSpec, stage: str, channel: int = 0, frame: int | None = None, look: bool = True
) -> list[GateFinding]:
    """Compare an image with what a model accepts.

    Parameters
    ----------
    volume : Volume
        May be lazy: a few planes are decoded where values matter.
    spec : ModelSpec
        The model's description.
    stage : str
        Which stage is to run it.
    channel : int
        The channel that would be taken, for models of one.
    frame : int, optional
        The time point that would be taken; None for stages that run all of them.
    look : bool
        Whether pixels are looked at, where values matter; without it only what the header says counts, at once.

    Returns
    -------
    list of GateFinding
        Blocks first, then fixes, then warnings. Empty if the image is as the model expects it.
    """
    found = [*_shape(volume, spec, stage), *_channels(volume, spec, channel), *_time(volume, frame)]
    if not any(finding.final for finding in found):
        found += [
            *_subject(volume, spec.accepts, look),
            *_spacing(volume, spec),
            *_extent(volume, spec.accepts),
            *_orientation(volume, spec.accepts),
            *_values(volume, spec.accepts, look),
            *_gaps(volume),
        ]
    order = ("block", "fix", "warn")
    return sorted(found, key=lambda finding: order.index(finding.severity))


def to_expected_units(volume: Volume, spec: ModelSpec) -> Volume:
    """The image in the units that the model expects, if the header says how to get there; else as it is.

    PET in Bq/ml becomes SUV by body weight with the factor that was computed when the series was read.
    """
    factor = _suv_factor(volume, spec.accepts)
    if factor is None:
        return volume
    meta = {**volume.meta, "values": "suv", "value_unit": "g/ml"}
    return volume.replace(array=volume.array * np.float32(factor), meta=meta)


def _shape(volume: Volume, spec: ModelSpec, stage: str) -> Iterator[GateFinding]:
    accepts, ndim = spec.accepts, volume.ndim_spatial
    if stage != spec.stage and not (stage == "explain" and spec.gives.kind in _EXPLAINED):
        why = f"is made for {spec.stage!r}, not {stage!r}"
        if stage == "explain":
            why = f"gives neither classes nor labels but {spec.gives.kind}: there is nothing to explain"
        yield GateFinding("block", "stage", f"Model {spec.id!r} {why}; choose another model.", final=True)
    if ndim not in accepts.ndim:
        wanted = " or ".join(f"{n}-D" for n in accepts.ndim)
        slice_it = "" if ndim == 2 else ", or take one slice with volume.take('z', index)"
        yield GateFinding(
            "block",
            "axes",
            f"Model {spec.id!r} works on {wanted} images; this one is {ndim}-D with the axes {volume.axes!r}. "
            f"Choose a model for {ndim}-D images{slice_it}.",
            final=True,
        )
    if min(volume.spatial_shape[-2:]) < accepts.min_size:
        yield GateFinding(
            "block",
            "size",
            f"The image is {_times(volume.spatial_shape)}; model {spec.id!r} needs at least {accepts.min_size} pixels "
            "along y and x.",
            final=True,
        )
    if volume.dtype.kind not in "biuf":
        yield GateFinding(
            "block", "values", f"Pixels of type {volume.dtype} cannot be computed on; convert them.", final=True
        )


def _channels(volume: Volume, spec: ModelSpec, channel: int) -> Iterator[GateFinding]:
    accepts, count = spec.accepts, volume.size("c")
    names = f" ({', '.join(accepts.channel_names)})" if accepts.channel_names else ""
    if accepts.channels > 1:
        colours = min(volume.size("s"), 3) if volume.is_rgb and accepts.rgb and "c" not in volume.axes else 0
        if (colours or count) != accepts.channels:
            yield GateFinding(
                "block",
                "channels",
                f"Model {spec.id!r} takes {accepts.channels} channels at once{names}; this image has "
                f"{colours or count}. Put them together along a channel axis, in this order.",
                final=True,
            )
        elif accepts.channel_names and not colours:
            yield GateFinding("warn", "channels", f"The channels are taken to be, in this order:{names}.")
        return
    if count > 1:
        taken = f"channel {channel} of {count}"
        yield GateFinding("fix", "channels", f"{taken} is taken{f', as {accepts.channel_names[0]}' if names else ''}")
    if volume.is_rgb and not accepts.rgb:
        yield GateFinding("fix", "channels", "colour turned to luminance")


def _time(volume: Volume, frame: int | None) -> Iterator[GateFinding]:
    if volume.size("t") > 1 and frame is not None:
        name = dict(volume.meta.get("axis_t") or {}).get("name") or "time point"
        yield GateFinding("fix", "time", f"{name} {frame} of {volume.size('t')} is taken")


def _subject(volume: Volume, accepts: Accepts, look: bool) -> Iterator[GateFinding]:
    wanted = ", ".join(accepts.modality)
    if accepts.modality and volume.modality and volume.modality not in accepts.modality:
        yield GateFinding(
            "block",
            "modality",
            f"The model was made for {wanted}; this image is {volume.modality}. Choose another model. "
            "If the header is wrong, clear the modality: volume.replace(modality='').",
        )
    elif "fluorescence" in accepts.modality and not volume.modality and look and _bright_ground(volume):
        yield GateFinding(
            "block",
            "modality",
            "The model was made for fluorescence, bright objects on a dark ground; this colour image has a bright "
            "ground, as stained slides in transmitted light have. Choose another model, or invert the image.",
        )
    elif accepts.modality and not volume.modality:
        yield GateFinding("warn", "modality", f"modality unknown; the model was made for {wanted}")
    part = str(volume.meta.get("body_part", "")).upper()
    if accepts.body_part and part and part not in accepts.body_part:
        # said, not blocked: about one header in seven names the wrong part (Gueld et al., SPIE Medical Imaging 2002)
        made_for = ", ".join(accepts.body_part).lower()
        yield GateFinding("warn", "body part", f"the header says {part.lower()}; the model was made for {made_for}")


def _spacing(volume: Volume, spec: ModelSpec) -> Iterator[GateFinding]:
    tested, prepare = spec.accepts.spacing_mm, spec.prepare
    resamples = prepare.spacing_mm is not None or bool(spec.details.get("resamples"))
    if not (tested or resamples):
        return
    if volume.units == "pixel":
        yield GateFinding("warn", "spacing", "voxel size unknown: not resampled to what the model was trained on")
        return
    spacing = _in_mm(volume, volume.spacing)
    outside = _outside(spacing, tested, volume.ndim_spatial) if tested else ""
    if outside:
        yield GateFinding("warn", "spacing", f"voxels of {_mm(spacing)}; the model was tested on {outside}")
    if prepare.spacing_mm is not None and not np.allclose(spacing, prepare.spacing_mm, rtol=_SLACK / 10):
        yield GateFinding("fix", "spacing", f"resampled from {_mm(spacing)} to {_mm(prepare.spacing_mm)}, and back")


def _extent(volume: Volume, accepts: Accepts) -> Iterator[GateFinding]:
    if accepts.field_of_view_mm is None or volume.units == "pixel":
        return
    extent = [s * n for s, n in zip(_in_mm(volume, volume.spacing), volume.grid.shape, strict=True)]
    outside = _outside(extent, accepts.field_of_view_mm, volume.ndim_spatial)
    if outside:
        yield GateFinding("warn", "field of view", f"it covers {_mm(extent)}; the model was tested on {outside}")


def _orientation(volume: Volume, accepts: Accepts) -> Iterator[GateFinding]:
    if not accepts.orientation or volume.ndim_spatial != 3:
        return
    if volume.units == "pixel":
        yield GateFinding(
            "warn", "orientation", "orientation unknown: the axes are taken as superior, posterior, left, as they come"
        )
        return
    found = orientation_code(volume.affine)[::-1]  # x first, as frameworks write it
    if found != accepts.orientation:
        yield GateFinding("fix", "orientation", f"turned from {found} to {accepts.orientation}, and back")


def _values(volume: Volume, accepts: Accepts, look: bool) -> Iterator[GateFinding]:
    wanted, unit = accepts.intensity_units, str(volume.meta.get("value_unit", ""))
    stored = volume.meta.get("values") == "stored"
    if wanted == "SUV" and unit not in ("g/ml", "SUV"):
        factor = _suv_factor(volume, accepts)
        if factor is not None:
            yield GateFinding("fix", "units", f"{unit} turned to SUV by body weight, factor {factor:.4g}")
            return
        yield GateFinding(
            "block",
            "units",
            f"The model expects SUV; the values are {unit or 'in an unknown unit'} and the header does not say enough "
            "to convert them. Open the series with values='suv', which says what is missing.",
        )
        return
    if wanted == "HU" and (stored or (unit and unit != "HU")):
        what = "as stored, not rescaled" if stored else f"in {unit}"
        yield GateFinding(
            "block", "units", f"The model expects Hounsfield units; the values are {what}. Open the series as it comes."
        )
        return
    if not (look and (wanted == "HU" or accepts.intensity)):
        return
    sample = _sample(volume)
    if not sample.size:
        return
    if wanted == "HU" and not unit and sample.min() >= 0 and sample.max() > 255:
        yield GateFinding(
            "warn", "values", "no value below 0, though air has -1000 HU: the values may be shifted or stored ones"
        )
    elif accepts.intensity is not None:
        low, high = accepts.intensity
        inside = float(((sample >= low) & (sample <= high)).mean())
        if inside < _SHARE_INSIDE:
            found = f"values from {sample.min():.4g} to {sample.max():.4g}"
            expected = f"the model expects {low:g} to {high:g} {wanted}".rstrip()
            yield GateFinding("warn", "values", f"{found}; {expected}")


def _gaps(volume: Volume) -> Iterator[GateFinding]:
    missing = volume.meta.get("missing_slices")
    if missing:
        yield GateFinding("warn", "gaps", f"{missing} slices are missing and were left blank; repair them first")


def _suv_factor(volume: Volume, accepts: Accepts) -> float | None:
    factor = volume.meta.get("suv_factor")
    given = accepts.intensity_units == "SUV" and volume.meta.get("values") == "rescale"
    return float(factor) if given and factor else None


def _bright_ground(volume: Volume) -> bool:
    if not volume.is_rgb:
        return False
    sample = _sample(volume)
    white = 255.0 if volume.dtype == np.uint8 else float(sample.max() or 1)
    return bool(np.median(sample) > _BRIGHT_GROUND * white)


def _sample(volume: Volume) -> NDArray[Any]:
    """Finite values of a few planes, thinned: enough to tell one unit from another, cheap on a lazy series."""
    array = volume.array[tuple(0 if axis in "tc" else slice(None) for axis in volume.axes)]
    if "z" in volume.axes:
        planes = np.unique(np.linspace(0, volume.size("z") - 1, _PLANES + 2).astype(int)[1:-1])
        array = np.stack([np.asarray(array[int(n)]) for n in planes])
    else:
        array = array[np.newaxis]
    y, x = (max(1, n // _EDGE) for n in array.shape[1:3])
    # thinned first: a slide is never in memory as a whole
    thin = np.asarray(array[:, ::y, ::x]).astype(np.float64, copy=False).ravel()
    finite: NDArray[Any] = thin[np.isfinite(thin)]
    return finite


def _in_mm(volume: Volume, lengths: Sequence[float]) -> list[float]:
    return [float(n) * (1e-3 if volume.units == "um" else 1.0) for n in lengths]


def _outside(values: Sequence[float], tested: Sequence[Range], ndim: int) -> str:
    """The tested ranges in words, if some value lies beyond them."""
    pairs = list(zip(values, tested, strict=True))[3 - ndim :]
    if all(low * (1 - _SLACK) <= value <= high * (1 + _SLACK) for value, (low, high) in pairs):
        return ""
    return " x ".join(f"{low:g} to {high:g}" if low != high else f"{low:g}" for _, (low, high) in pairs) + " mm"


def _mm(lengths: Sequence[float]) -> str:
    return " x ".join(f"{length:.3g}" for length in lengths) + " mm"


def _times(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))

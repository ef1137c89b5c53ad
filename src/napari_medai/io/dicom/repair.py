"""What may be repaired when a series is opened, a plane at a time.

Nothing is resampled unless it was asked for. A repaired plane is put together from the one or two planes that it lies
between, when it is looked at; values are linear between voxels, labels take the nearest one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_medai.core.errors import ParamsError
from napari_medai.core.geometry import Affine, canonical_reorientation
from napari_medai.core.volume import Volume
from napari_medai.io.dicom.geometry import LEFT_BLANK, SHEARED, UNEVEN
from napari_medai.io.dicom.stacks import Stack
from napari_medai.io.lazy import PlanesArray, Source, lazy, spread

# What `repair=` and `--repair` take.
REPAIRS: Mapping[str, str] = MappingProxyType(
    {
        "tilt": "shift the slices of a tilted gantry into an upright stack",
        "missing": "interpolate missing slices between their neighbours",
        "spacing": "resample slices at irregular distances to their median distance",
        "duplicates": "of slices at one place that nothing but their time tells apart, keep the latest",
        "mosaic": "lay out the slices of a mosaic as the scan protocol has them",
    }
)
# A slice counts as interpolated if it lies further from a measured one than this part of the slice distance.
ON_SLICE = 1e-3
# Sums of shifts that are whole numbers but for rounding do not enlarge a slice.
_WHOLE = 1e-6
_AIR = -1000.0


def checked(names: Sequence[str]) -> tuple[str, ...]:
    """The names of repairs, each once.

    Raises
    ------
    ParamsError
        A name is not in `REPAIRS`.
    """
    names = (names,) if isinstance(names, str) else tuple(names)
    unknown = sorted(set(names) - set(REPAIRS))
    if unknown:
        known = "\n".join(f"  {name}: {what}" for name, what in REPAIRS.items())
        raise ParamsError(f"There is no repair {', '.join(map(repr, unknown))}. Known are:\n{known}")
    return tuple(dict.fromkeys(names))


@dataclass(frozen=True)
class Blend:
    """A slice between two others: ``(1 - weight) * low + weight * high``."""

    low: int
    high: int
    weight: float = 0.0


class Resampled:
    """Planes (t, z) that are put together from those of another source.

    Parameters
    ----------
    source : Source
        The planes as read, (t, z, y, x) or (t, z, y, x, s).
    blends : sequence of sequences of (Blend or None)
        ``blends[t][z]``; None is a blank slice.
    shifts : (z, 2) array
        By how many pixels along y and x the content of each slice moves.
    size : tuple of 2 ints
        Rows and columns of the new planes.
    nearest : bool
        Whether values must not be mixed.
    blank : float
        Value where nothing was measured.
    """

    def __init__(
        self,
        source: Source,
        blends: Sequence[Sequence[Blend | None]],
        shifts: NDArray[np.float64],
        size: tuple[int, int],
        nearest: bool,
        blank: float,
    ) -> None:
        self.source, self.blends, self.shifts = source, blends, shifts
        self.nearest, self.blank = nearest, blank
        self.dtype = source.dtype
        self.shape = (len(blends), len(blends[0]), *size, *source.shape[4:])
        self.ndim = len(self.shape)

    def plane(self, t: int, z: int) -> NDArray[Any]:
        """Put one plane together."""
        blend = self.blends[t][z]
        if blend is None:
            return np.full(self.shape[2:], self.blank, self.dtype)
        plane = self.source.plane(t, blend.low)
        if blend.weight:
            if self.nearest:
                plane = plane if blend.weight < 0.5 else self.source.plane(t, blend.high)
            else:
                plane = (1 - blend.weight) * plane + blend.weight * self.source.plane(t, blend.high)
        down, right = self.shifts[z]
        plane = _moved(plane, 0, float(down), self.shape[2], self.nearest, self.blank)
        return self._typed(_moved(plane, 1, float(right), self.shape[3], self.nearest, self.blank))

    def _typed(self, plane: NDArray[Any]) -> NDArray[Any]:
        if plane.dtype == self.dtype:
            return plane
        return (np.rint(plane) if self.dtype.kind in "iu" else plane).astype(self.dtype)

    def __getitem__(self, key: Any) -> NDArray[Any]:
        key = spread(key, self.ndim)
        ts, zs = (np.arange(size)[index] for size, index in zip(self.shape[:2], key[:2], strict=True))
        planes = [self.plane(int(t), int(z))[key[2:]] for t in ts.flat for z in zs.flat]
        found: NDArray[Any] = np.stack(planes)
        return found.reshape(ts.shape + zs.shape + found.shape[1:])


def _moved(plane: NDArray[Any], axis: int, shift: float, size: int, nearest: bool, blank: float) -> NDArray[Any]:
    """A plane moved along an axis by a part of a pixel; blank where it was not measured."""
    length = plane.shape[axis]
    whole = round(shift)
    if abs(shift - whole) < _WHOLE:
        shift = float(whole)
        if not whole and size == length:
            return plane
    at = np.arange(size) - shift
    inside = np.flatnonzero((at >= -_WHOLE) & (at <= length - 1 + _WHOLE))
    at = np.clip(at[inside], 0, length - 1)
    shape = list(plane.shape)
    shape[axis] = size
    exact = nearest or shift == whole
    made = np.full(shape, blank, plane.dtype if exact else np.result_type(plane.dtype, np.float32))
    target = [slice(None)] * plane.ndim
    target[axis] = slice(inside[0], inside[-1] + 1) if inside.size else slice(0)
    if exact:
        made[tuple(target)] = plane.take(np.floor(at + 0.5).astype(int), axis)
        return made
    low = np.minimum(np.floor(at).astype(int), max(length - 2, 0))
    weight = (at - low).reshape([-1 if n == axis else 1 for n in range(plane.ndim)])
    first = plane.take(low, axis)
    made[tuple(target)] = first + weight * (plane.take(np.minimum(low + 1, length - 1), axis).astype(float) - first)
    return made


def repaired(volume: Volume, stack: Stack, names: Sequence[str]) -> Volume:
    """A volume with what was asked for repaired, in the axes as stored.

    Parameters
    ----------
    volume : Volume
        Of the stack, lazy.
    stack : Stack
        Planes and where they lie.
    names : sequence of str
        Of `REPAIRS`. What is not out of order stays as it is.

    Returns
    -------
    Volume
        With ``meta["repaired"]``, the names of what was repaired; ``meta["interpolated"]``, the numbers of slices that
        were interpolated; the findings say what was done.
    """
    array = volume.array
    if not stack.has_depth or stack.units != "mm" or not isinstance(array, PlanesArray):
        return volume
    holes = any(plane is None for row in stack.planes for plane in row)
    missing = "missing" in names and holes
    spacing = "spacing" in names and stack.irregular
    tilt = "tilt" in names and stack.tilted
    if not (missing or spacing or tilt):
        return volume
    blends: list[list[Blend | None]] = [
        [_between(n, row) if missing else (None if row[n] is None else Blend(n, n)) for n in range(len(row))]
        for row in stack.planes
    ]
    words: dict[str, str] = {}
    affine = np.array(volume.affine)
    if spacing:
        distances = np.array(stack.distances)
        step = float(np.median(np.diff(distances)))
        levels = np.arange(int(np.floor(distances[-1] / step + _WHOLE)) + 1) * step
        blends = [[_at(level, distances, row, missing) for level in levels] for row in stack.planes]
        affine[:3, 0] *= step / float(np.linalg.norm(affine[:3, 0]))
        words[UNEVEN] = f"they were resampled to {len(levels)} slices {step:.3f} mm apart."
    made = sorted({n for row in blends for n, blend in enumerate(row) if blend is not None and blend.weight})
    if missing:
        words[LEFT_BLANK] = "they were interpolated between their neighbours."
    size, shifts = (volume.size("y"), volume.size("x")), np.zeros((len(blends[0]), 2))
    if tilt:
        affine, size, shifts = upright(affine, (len(blends[0]), *size))
        words[SHEARED] = f"each was shifted in its plane into an upright stack of {size[0]} x {size[1]} pixels."
    source = array.whole.source
    labels = bool(volume.meta.get("is_labels"))
    blank = 0.0 if labels else _blank(volume)
    resampled = lazy(Resampled(source, blends, shifts, size, labels, blank))
    view = resampled[(slice(None) if "t" in volume.axes else 0, slice(None))]
    meta = dict(volume.meta)
    if missing:
        meta.pop("missing_slices", None)
    meta["findings"] = tuple(_said(finding, words) for finding in volume.meta["findings"])
    meta["repaired"] = tuple(n for n, done in (("tilt", tilt), ("missing", missing), ("spacing", spacing)) if done)
    if made:
        meta["interpolated"] = tuple(made)
        meta["interpolated_axis"] = "z"
    return volume.replace(array=view, affine=affine, meta=meta)


def _between(n: int, row: Sequence[Any]) -> Blend | None:
    """The slice, or the nearest ones on either side of a missing one."""
    if row[n] is not None:
        return Blend(n, n)
    below = next((m for m in range(n - 1, -1, -1) if row[m] is not None), None)
    above = next((m for m in range(n + 1, len(row)) if row[m] is not None), None)
    if below is None or above is None:
        return None  # nothing is known beyond the last slice of a volume
    return Blend(below, above, (n - below) / (above - below))


def _at(level: float, distances: NDArray[np.float64], row: Sequence[Any], missing: bool) -> Blend | None:
    """A level between measured slices; those that a single volume lacks are passed over if that is asked for."""
    slots = [n for n, plane in enumerate(row) if plane is not None or not missing]
    there = distances[slots]
    if len(slots) < 2 or not there[0] - _WHOLE <= level <= there[-1] + _WHOLE:
        return None
    high = int(np.clip(np.searchsorted(there, level), 1, len(slots) - 1))
    weight = float((level - there[high - 1]) / (there[high] - there[high - 1]))
    low, up = slots[high - 1], slots[high]
    if weight < ON_SLICE or weight > 1 - ON_SLICE:
        low = up = low if weight < ON_SLICE else up
        weight = 0.0
    return None if row[low] is None or row[up] is None else Blend(low, up, weight)


def upright(affine: Affine, shape: tuple[int, ...]) -> tuple[Affine, tuple[int, int], NDArray[np.float64]]:
    """The upright grid that holds a sheared one.

    Parameters
    ----------
    affine : (4, 4) array
        (k, j, i) -> (z, y, x), with slices that are shifted sideways from one to the next.
    shape : tuple of 3 ints
        Slices, rows, columns.

    Returns
    -------
    (4, 4) array
        Of the same slices, one above the other.
    tuple of 2 ints
        Rows and columns, so many more that nothing is cut off.
    (slices, 2) array
        By how many pixels each slice's content moves along rows and columns of the new grid.
    """
    step, plane = affine[:3, 0], affine[:3, 1:3]
    sideways, *_ = np.linalg.lstsq(plane, step, rcond=None)
    moves = np.outer(np.arange(shape[0]), sideways)
    first = np.floor(moves.min(axis=0) + _WHOLE)
    more = np.ceil(moves.max(axis=0) - _WHOLE) - first
    made = np.array(affine)
    made[:3, 0] = step - plane @ sideways
    made[:3, 3] = affine[:3, 3] + plane @ first
    return made, (int(shape[1] + more[0]), int(shape[2] + more[1])), moves - first


def _blank(volume: Volume) -> float:
    value = _AIR if volume.modality == "CT" and not volume.is_rgb else 0.0
    if volume.dtype.kind == "f":
        return value
    limits = np.iinfo(volume.dtype)
    return float(min(max(value, limits.min), limits.max))


def _said(finding: str, words: Mapping[str, str]) -> str:
    for left, done in words.items():
        if f"; {left}" in finding:
            return f"{finding.partition(f'; {left}')[0]}; {done}"
    return finding


def canonical(volume: Volume) -> Volume:
    """`Volume.canonical`, and the numbers of interpolated slices in its axes."""
    turned = volume.canonical()
    made = volume.meta.get("interpolated")
    if not made:
        return turned
    turn = canonical_reorientation(volume.affine)
    axis = turn.order.index(0)
    last = volume.size("z") - 1
    numbers = tuple(sorted(last - n if turn.flips[axis] else n for n in made))
    return turned.replace(meta={**volume.meta, "interpolated": numbers, "interpolated_axis": "zyx"[axis]})


def interpolated_mask(volume: Volume) -> Volume:
    """Where a volume was interpolated.

    Parameters
    ----------
    volume : Volume
        As opened with a repair.

    Returns
    -------
    Volume
        Labels on the spatial axes of the volume, uint8: 1 on slices that were interpolated, in at least one t, and 0
        on those that were measured.
    """
    shape = volume.spatial_shape
    mask = np.zeros(shape, np.uint8)
    axis = str(volume.meta.get("interpolated_axis", "z"))
    if axis in volume.spatial_axes:
        at = [slice(None)] * len(shape)
        for n in volume.meta.get("interpolated", ()):
            at[volume.spatial_axes.index(axis)] = n
            mask[tuple(at)] = 1
    meta = {name: volume.meta[name] for name in ("series_uid", "frame_of_reference_uid") if name in volume.meta}
    meta |= {"is_labels": True, "label_names": {1: "interpolated"}, "findings": ()}
    name = f"{volume.name}_interpolated"
    return Volume(mask, volume.spatial_axes, volume.affine, volume.units, volume.modality, name, meta, volume.source)

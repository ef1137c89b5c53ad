"""Several images of one place: which quantity tells them apart, and which volumes they form.

Images of different kinds (magnitude and phase, water and fat, kernels) are images of their own. Of one kind, what
varies becomes the axis t of one image: echo, b-value, energy, time. Where two quantities vary at once, the series is
split by the one that is a kind of image, and the other one becomes the axis.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_medai.io.dicom.frames import Frame
from napari_medai.io.dicom.geometry import LEFT_BLANK

# Values of one quantity are equal to this fraction: scanners round them differently from slice to slice.
SAME_VALUE = 1e-3
# Times of a day further apart than this lie on either side of midnight.
MIDNIGHT_S = 43200.0
# A volume with less than this part of the slices is an image of its own.
HALF = 0.5

# Quantities that can be the axis, in the order in which they are asked whether they tell all images of a place apart.
_QUANTITIES = ("segment", "b", "echo", "kvp", "kev", "inversion", "flip")
_PHASES = ("trigger", "t", "offset", "reference")
# Quantities that are kinds of image; a series is split by them where something else varies as well.
_SPLITS = ("kvp", "kev", "echo", "inversion", "flip", "thickness")
_TIMES = ("t", "offset", "reference")
# Quantities whose values are measured or set; times and numbers are compared as they are.
_ROUNDED = ("b", "echo", "kvp", "kev", "inversion", "flip", "thickness")
# What orders the images of a place that no quantity tells apart.
_ORDER = ("stack", "acquisition", "when", "instance", "frame")
UNITS = {
    "segment": "", "b": "s/mm2", "echo": "ms", "kvp": "kV", "kev": "keV", "inversion": "ms", "trigger": "ms",
    "flip": "degrees", "t": "s", "thickness": "mm", "index": "",
}  # fmt: skip
_NAMES = {
    "kvp": "tube voltages", "kev": "photon energies", "echo": "echo times", "inversion": "inversion times",
    "flip": "flip angles", "thickness": "slice thicknesses", "t": "time points", "b": "b-values",
    "trigger": "trigger times", "segment": "segments",
}  # fmt: skip

Axis = tuple[str, str, tuple[float, ...]]


@dataclass(frozen=True, eq=False)
class Repeated:
    """One image out of the planes of parallel places.

    Attributes
    ----------
    rows : tuple of dict of int to Frame
        For each t, the planes by number of their place.
    axis : tuple (str, str, tuple of float) or None
        What runs along t: name, unit, values.
    directions : tuple of (float, float, float) or None
        Unit vectors (z, y, x) of the diffusion gradient of each t; zeros where there is none.
    findings : tuple of str
        What was split or left out.
    """

    rows: tuple[dict[int, Frame], ...]
    axis: Axis | None = None
    directions: tuple[tuple[float, ...], ...] | None = None
    findings: tuple[str, ...] = ()


class _Group:
    """Planes with the numbers of their places."""

    def __init__(self, frames: Sequence[Frame], numbers: Sequence[int], when: Sequence[float] | None = None) -> None:
        self.frames, self.numbers = list(frames), list(numbers)
        self._when = when
        self.by_place: dict[int, list[int]] = {}
        for n, place in enumerate(self.numbers):
            self.by_place.setdefault(place, []).append(n)
        self.most = max(map(len, self.by_place.values()))

    @cached_property
    def when(self) -> list[float]:
        # most groups have one plane at each place, and nobody asks
        return list(clock(self.frames) if self._when is None else self._when)

    def part(self, members: Sequence[int]) -> _Group:
        return _Group(
            [self.frames[n] for n in members], [self.numbers[n] for n in members], [self.when[n] for n in members]
        )

    def values(self, name: str) -> list[float] | None:
        """Of a quantity, rounded to what is the same; None unless all planes have it and it varies."""
        if name == "when":
            return self.when if np.isfinite(self.when).all() else None
        raw = [frame.marks.get(name) for frame in self.frames]
        if any(v is None for v in raw):
            return None
        found = (
            _clustered(np.array(raw, dtype=np.float64))
            if name in _ROUNDED
            else [float(v) for v in raw if v is not None]
        )
        return found if len(set(found)) > 1 else None

    def partition(self, keys: Sequence[Hashable]) -> dict[Any, list[int]]:
        found: dict[Any, list[int]] = {}
        for n, key in enumerate(keys):
            found.setdefault(key, []).append(n)
        return found

    def distinct(self, keys: Sequence[Hashable]) -> bool:
        """Whether no place has two planes of one key."""
        return all(len({keys[n] for n in members}) == len(members) for members in self.by_place.values())

    def order(self) -> list[tuple[float, ...]]:
        """What sorts planes by when they were made."""
        when = self.when if np.isfinite(self.when).all() else [0.0] * len(self.when)
        return [
            (w, *(f.marks.get(name, 0.0) for name in ("acquisition", "instance", "frame")))
            for w, f in zip(when, self.frames, strict=True)
        ]


def clock(frames: Sequence[Frame]) -> list[float]:
    """Seconds at which planes were acquired; those after midnight count on. NaN where it is not known."""
    moments = [f.marks.get("moment", np.nan) for f in frames]
    if np.isfinite(moments).all():
        return moments
    times = np.array([f.marks.get("time", np.nan) for f in frames])
    if np.isfinite(times).any() and np.nanmax(times) - np.nanmin(times) > MIDNIGHT_S:
        times[times < MIDNIGHT_S] += 86400
    return [float(t) for t in times]


def _clustered(values: NDArray[np.float64]) -> list[float]:
    distinct, where = np.unique(values, return_inverse=True)
    gaps = np.diff(distinct) > SAME_VALUE * np.maximum(np.abs(distinct[1:]), 1e-3)
    cluster = np.concatenate([[0], np.cumsum(gaps)]).astype(int)
    first = distinct[np.concatenate([[True], gaps])]
    return [float(v) for v in first[cluster[where]]]


def repeats_of(frames: Sequence[Frame], numbers: Sequence[int], latest: bool = False) -> list[Repeated]:
    """The images that planes at numbered places form.

    Parameters
    ----------
    frames : sequence of Frame
        Of one size and direction.
    numbers : sequence of int
        The place of each along the normal.
    latest : bool
        Whether planes of one place that only their time tells apart are duplicates, of which the latest counts.
    """
    return _images(_Group(frames, numbers), latest)


def _images(group: _Group, latest: bool) -> list[Repeated]:
    if group.most == 1:
        return [Repeated((dict(zip(group.numbers, group.frames, strict=True)),))]
    return (
        _by_text(group, [f.kind for f in group.frames], "kinds of image", latest)
        or _by_quantity(group, _QUANTITIES)
        or _by_split(group, latest)
        or _by_text(group, [f.header.text("ConvolutionKernel") for f in group.frames], "reconstruction kernels", latest)
        or _by_diffusion(group)
        or _by_quantity(group, _PHASES)
        or _by_time_points(group)
        or _by_order(group, latest)
    )


def _noted(images: list[Repeated], note: str) -> list[Repeated]:
    return [replace(image, findings=(note, *image.findings)) for image in images]


def _by_text(group: _Group, words: Sequence[str], what: str, latest: bool) -> list[Repeated]:
    parts = group.partition(words)
    shared = any(len({words[n] for n in members}) > 1 for members in group.by_place.values())
    if not shared or not 1 < len(parts) < len(group.frames):
        return []
    named = ", ".join(word or "not named" for word in sorted(parts))
    return [
        image
        for word in sorted(parts)
        for image in _noted(
            _images(group.part(parts[word]), latest),
            f"The series holds {len(parts)} {what} ({named}); this is {word or 'the one not named'}.",
        )
    ]


def _by_quantity(group: _Group, names: Sequence[str]) -> list[Repeated]:
    """One image, if one quantity tells all planes of each place apart."""
    for name in names:
        values = group.values(name)
        if values is None:
            continue
        if group.distinct(values):
            rows = {v: {group.numbers[n]: group.frames[n] for n in some} for v, some in group.partition(values).items()}
            found = _volumes([rows[v] for v in sorted(rows)], len(group.by_place), group, name, sorted(rows))
            if found:
                return found
        if name == "trigger":
            # slices are triggered by beats of their own, so that their delays differ a little
            ranked = _ranked(group, lambda n, delays=values: delays[n])  # type: ignore[misc]
            if ranked is not None and group.distinct(values):
                delays = [float(np.median([f.marks["trigger"] for f in row.values()])) for row in ranked]
                if (np.diff(delays) > 0).all():
                    return _volumes(ranked, len(group.by_place), group, name, delays)
    return []


def _ranked(group: _Group, key: Callable[[int], Any]) -> list[dict[int, Frame]] | None:
    """Planes by their rank at each place, if all places have the same number of them."""
    if any(len(members) != group.most for members in group.by_place.values()):
        return None
    rows: list[dict[int, Frame]] = [{} for _ in range(group.most)]
    for place, members in group.by_place.items():
        for row, n in zip(rows, sorted(members, key=key), strict=True):
            row[place] = group.frames[n]
    return rows


def _volumes(
    rows: list[dict[int, Frame]], places: int, group: _Group, name: str, values: Sequence[float]
) -> list[Repeated]:
    """One image of the volumes that are whole or lack a few slices, and one of each that lacks most."""
    whole = [n for n, row in enumerate(rows) if len(row) >= HALF * places]
    apart = [n for n in range(len(rows)) if n not in whole]
    if len(whole) < 1 or sum(len(rows[n]) for n in apart) * 4 > len(group.frames):
        return []
    kept = [rows[n] for n in whole]
    union = len(set().union(*kept))
    holes = sum(union - len(row) for row in kept)
    notes = (f"{holes} slices are missing in some of the {len(kept)} volumes; {LEFT_BLANK}",) if holes else ()
    axis = _axis(kept, group, name, [values[n] for n in whole]) if len(kept) > 1 else None
    found = [Repeated(tuple(kept), axis, _directions(kept) if axis and axis[0] == "b" else None, notes)]
    found += [Repeated((rows[n],)) for n in apart]
    if apart:
        kinds = "; ".join(_value(name, values[n]) for n in apart)
        found = _noted(found, f"{len(apart)} volumes with less than half of the slices were kept apart ({kinds}).")
    return found


def _value(name: str, value: float) -> str:
    return f"{name} {value:g} {UNITS.get(name, '')}".strip()


def _by_split(group: _Group, latest: bool) -> list[Repeated]:
    """Images of their own by the first kind-like quantity that every place has all values of, equally often."""
    for name in _SPLITS:
        values = group.values(name)
        if values is None:
            continue
        parts = group.partition(values)
        share = group.most / len(parts)
        even = sum(
            all(sum(values[n] == v for n in members) == share for v in parts) for members in group.by_place.values()
        )
        if even < 0.9 * len(group.by_place):
            continue
        all_values = ", ".join(f"{v:g}" for v in sorted(parts))
        unit, more = UNITS[name], " of several images each" if share > 1 else ""
        return [
            image
            for v in sorted(parts)
            for image in _noted(
                _images(group.part(parts[v]), latest),
                f"The series holds {len(parts)} {_NAMES[name]} ({all_values} {unit}){more}; it was split, and this is "
                f"{_value(name, v)}.",
            )
        ]
    return []


def _by_diffusion(group: _Group) -> list[Repeated]:
    """Several gradients, and perhaps averages, at one b-value: one image in the order of acquisition."""
    b, directed = group.values("b"), [f.marks.get("gz") is not None for f in group.frames]
    if b is None and not any(directed):
        return []
    if any("b" not in f.marks for f in group.frames):
        return []
    b = b or [f.marks["b"] for f in group.frames]
    gradients = [tuple(round(f.marks.get(g, 0.0), 3) for g in ("gz", "gy", "gx")) for f in group.frames]
    order = group.order()
    rows: dict[Any, dict[int, Frame]] = {}
    turns: dict[Any, list[int]] = {}
    for place, members in group.by_place.items():
        seen: dict[Any, int] = {}
        for turn, n in enumerate(sorted(members, key=order.__getitem__)):
            key = (b[n], gradients[n])
            seen[key] = seen.get(key, 0) + 1
            rows.setdefault((key, seen[key]), {})[place] = group.frames[n]
            turns.setdefault((key, seen[key]), []).append(turn)
    keys = sorted(rows, key=lambda k: float(np.median(turns[k])))
    return _volumes([rows[k] for k in keys], len(group.by_place), group, "b", [k[0][0] for k in keys])


def _by_time_points(group: _Group) -> list[Repeated]:
    """Heart phases at several time points: an image for each time point."""
    t = group.values("t")
    if t is None or group.values("trigger") is None:
        return []
    parts = group.partition(t)
    images = [(v, _by_quantity(group.part(parts[v]), _PHASES)) for v in sorted(parts)]
    if not all(found for _, found in images):
        return []
    note = f"The series holds {len(parts)} time points of several trigger times each: it was split; this is time point"
    return [image for v, found in images for image in _noted(found, f"{note} {v:g}.")]


def _by_order(group: _Group, latest: bool) -> list[Repeated]:
    """By rank at each place; a few more planes than places are duplicates."""
    extra = len(group.frames) - len(group.by_place)
    if latest or extra <= HALF * len(group.by_place):
        order = group.order()
        chosen = {place: max(members, key=order.__getitem__) for place, members in group.by_place.items()}
        by = "acquisition time" if np.isfinite(group.when).all() else "acquisition and instance numbers"
        note = f"{extra} slices lie where others do; of each place the one acquired last was kept (by {by})."
        return [Repeated(({p: group.frames[n] for p, n in chosen.items()},), findings=(note,))]
    key = _telling(group)
    rows: list[dict[int, Frame]] = [{} for _ in range(group.most)]
    for place, members in group.by_place.items():
        for row, n in zip(rows, sorted(members, key=key), strict=False):
            row[place] = group.frames[n]
    whole = [row for row in rows if len(row) == len(group.by_place)]
    rest = [row for row in rows if len(row) < len(group.by_place)]
    axis = _axis(whole, group, "index", range(len(whole))) if len(whole) > 1 else None
    found = [Repeated(tuple(whole), axis)] if whole else []
    found += [Repeated((row,)) for row in rest]
    note = "The series holds different numbers of images at its places; it was split."
    return _noted(found, note) if rest else found


def _telling(group: _Group) -> Callable[[int], Any]:
    """What sorts the planes of a place: the first mark that has the same values at every place, and none twice."""
    dimensions = sorted({m for f in group.frames for m in f.marks if m.startswith("dimension")})
    last = [f.marks for f in group.frames]
    for name in (*_ORDER, *dimensions):
        values = group.values(name)
        if values is None or not group.distinct(values):
            continue
        sets = {frozenset(values[n] for n in members) for members in group.by_place.values()}
        if len(sets) == 1:
            return lambda n, told=values: told[n]  # type: ignore[misc]
    when = group.when if np.isfinite(group.when).all() else [0.0] * len(last)
    return lambda n: (
        last[n].get("acquisition", 0.0), when[n], last[n].get("instance", 0.0), last[n].get("frame", 0.0)
    )  # fmt: skip


def _axis(rows: list[dict[int, Frame]], group: _Group, name: str, values: Sequence[float]) -> Axis:
    if name not in (*_TIMES, "index"):
        return name, UNITS[name], tuple(float(v) for v in values)
    seconds = _seconds(rows, group)
    if seconds is not None:
        return "t", "s", seconds
    return ("t" if name == "t" else "index"), "", tuple(float(v) for v in values)


def _seconds(rows: list[dict[int, Frame]], group: _Group) -> tuple[float, ...] | None:
    """Time of each volume, from the first source that says it for all of them in rising order."""
    when = {id(f): w for f, w in zip(group.frames, group.when, strict=True)}
    header = next(iter(rows[0].values())).header
    sources: list[list[float]] = [
        [min(f.marks.get(name, np.nan) for f in row.values()) for row in rows] for name in ("offset", "reference")
    ]
    starts = [min(when[id(f)] for f in row.values()) for row in rows]
    sources.append([s - starts[0] for s in starts])
    index = [min(f.marks.get("t", np.nan) for f in row.values()) for row in rows]
    step = header.number("TemporalResolution") or np.nan
    sources.append([(n - index[0]) * step / 1000 for n in index])
    if all(f.tile is not None for f in rows[0].values()):
        # a mosaic is one volume, measured in one repetition
        sources.append([n * (header.number("RepetitionTime") or np.nan) / 1000 for n in range(len(rows))])
    for source in sources:
        if np.isfinite(source).all() and (np.diff(source) > 0).all():
            return tuple(round(float(s), 6) for s in source)
    return None


def _directions(rows: list[dict[int, Frame]]) -> tuple[tuple[float, ...], ...] | None:
    leads = [next(iter(row.values())).marks for row in rows]
    if not any("gz" in marks for marks in leads):
        return None
    return tuple(tuple(marks.get(g, 0.0) for g in ("gz", "gy", "gx")) for marks in leads)

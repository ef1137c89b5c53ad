"""Sorts the planes of a series into images: stacks, stacks of stacks, films and single planes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from napari_medai.core.geometry import Affine, scaling
from napari_medai.io.dicom.frames import Frame, Place
from napari_medai.io.dicom.geometry import SAME_DIRECTION, arrange, places_of, runs_of, stack_affine

Placed = tuple[Frame, Place]

# Pixel spacings of one stack agree to this fraction.
SAME_SPACING = 1e-3
# Films of these modalities are pictures of their own, not slices, when no position says otherwise.
_SECTIONS = ("CT", "MR", "PT", "NM", "OT", "SC", "RTDOSE", "OPT", "SEG", "IVUS", "OCT")
# What orders images of one place, the first that tells all of them apart; then what names the axis.
_ORDER = ("segment", "t", "trigger", "echo", "inversion", "flip", "b", "acquisition", "time", "instance", "frame")
AXIS_UNITS = {
    "segment": "", "t": "", "trigger": "ms", "echo": "ms", "inversion": "ms", "flip": "degrees", "b": "s/mm2",
    "time": "s",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Stack:
    """One image: planes in order, and where they lie.

    Attributes
    ----------
    planes : tuple of tuples of (Frame or None)
        ``planes[t][z]``; None is a missing slice.
    has_time, has_depth : bool
        Whether the image has an axis t and an axis z.
    affine : (4, 4) array
        (k, j, i) -> (z, y, x).
    units : str
        ``"mm"``, or ``"pixel"`` if the header has no spacing.
    axis : tuple (str, str, tuple of float) or None
        What runs along t: its name, unit and values.
    findings : tuple of str
        What is unusual.
    """

    planes: tuple[tuple[Frame | None, ...], ...]
    has_time: bool
    has_depth: bool
    affine: Affine
    units: str
    axis: tuple[str, str, tuple[float, ...]] | None = None
    findings: tuple[str, ...] = ()

    @property
    def frames(self) -> list[Frame]:
        """The planes that exist."""
        return [frame for row in self.planes for frame in row if frame is not None]


def stacks_of(frames: Sequence[Frame]) -> list[Stack]:
    """All images that the planes of a series form.

    Parameters
    ----------
    frames : sequence of Frame
        In any order.

    Returns
    -------
    list of Stack
        The one with the most planes first.
    """
    found: list[Stack] = []
    for group in _alike([(f, f.place) for f in frames if f.place is not None]):
        found += _spatial(group)
    found += _flat([f for f in frames if f.place is None])
    return sorted(found, key=lambda stack: -len(stack.frames))


def _alike(frames: Iterable[Placed]) -> list[list[Placed]]:
    # Same size, pixels and direction; compared with the first of each group, since rounding has borders.
    groups: list[list[Placed]] = []
    for frame in frames:
        for group in groups:
            if _same_plane(group[0], frame):
                group.append(frame)
                break
        else:
            groups.append([frame])
    return groups


def _same_plane(one: Placed, other: Placed) -> bool:
    (a, at), (b, there) = one, other
    if (a.rows, a.columns) != (b.rows, b.columns) or _samples(a) != _samples(b):
        return False
    if max(abs(x - y) / y for x, y in zip(at.spacing, there.spacing, strict=True)) > SAME_SPACING:
        return False
    # a scout says so and lies in the same series now and then
    return bool(np.abs(at.orientation - there.orientation).max() <= SAME_DIRECTION) and (
        ("LOCALIZER" in a.kind) == ("LOCALIZER" in b.kind)
    )


def _samples(frame: Frame) -> tuple[object, ...]:
    header = frame.header
    if header.integer("SamplesPerPixel", 1) > 1:
        return ("colour", header.integer("BitsAllocated"), header.integer("SamplesPerPixel"))
    return ("palette" if "PALETTE" in header.text("PhotometricInterpretation") else "grey", header.pixel_keyword)


def _spatial(group: list[Placed]) -> list[Stack]:
    normal = group[0][1].normal
    places = places_of(np.array([place.position for _, place in group]) @ normal)
    by_place: list[list[Placed]] = [[] for _ in range(int(places.max()) + 1)]
    for frame, number in zip(group, places, strict=True):
        by_place[int(number)].append(frame)
    most = max(map(len, by_place))
    kinds = sorted({f.kind for f, _ in group})
    if most > 1 and 1 < len(kinds) < len(group):
        # magnitude and phase, water and fat, original and derived: images of their own
        return [
            replace(s, findings=(*s.findings, f"The series holds several kinds of image; this is {kind or '?'}."))
            for kind in kinds
            for s in _spatial([f for f in group if f[0].kind == kind])
        ]
    if most == 1:
        rows = [row[0] for row in by_place]
        order = np.array([place.position for _, place in rows]) @ normal
        return [_stack([rows[run]], ()) for run in runs_of(order)]
    return _repeated(by_place)


def _repeated(by_place: list[list[Placed]]) -> list[Stack]:
    mark = _telling([[f for f, _ in row] for row in by_place])
    keys = (*([mark] if mark else []), *_LAST)
    for row in by_place:
        row.sort(key=lambda placed: [placed[0].marks.get(key, 0.0) for key in keys])
    volumes = [[row[n] for row in by_place if n < len(row)] for n in range(max(map(len, by_place)))]
    whole = [v for v in volumes if len(v) == len(by_place)]
    rest = [v for v in volumes if len(v) < len(by_place)]
    if len(whole) == 1 and sum(map(len, rest)) * 2 <= len(by_place):
        extra = sum(map(len, rest))
        note = f"{extra} slices lie where others do; the later ones were left out."
        return [_stack(whole, (note,))]
    found = [_stack(whole, ())] if whole else []
    note = "The series holds different numbers of images at its places; it was split."
    found += [_stack([v], ()) for v in rest]
    return [replace(s, findings=(*s.findings, note)) for s in found] if rest else found


_LAST = ("acquisition", "time", "instance", "frame")


def _telling(by_place: list[list[Frame]]) -> str:
    # The first mark that has the same values at every place, and no value twice.
    names = [*_ORDER, *sorted({m for row in by_place for f in row for m in f.marks if m.startswith("dimension")})]
    for name in names:
        values = [[f.marks.get(name) for f in row] for row in by_place]
        first = set(values[0])
        if None not in first and all(len(set(row)) == len(row) and set(row) == first for row in values):
            return name
    return ""


def _axis(volumes: list[list[Frame]]) -> tuple[str, str, tuple[float, ...]]:
    # Named after the first quantity that is one value within each volume and not the same in all of them.
    for name in ("segment", "b", "echo", "inversion", "trigger", "flip", "t"):
        values = [{f.marks.get(name) for f in volume} for volume in volumes]
        if all(len(v) == 1 and None not in v for v in values) and len(set.union(*values)) > 1:
            return name, AXIS_UNITS[name], tuple(float(next(iter(v)) or 0.0) for v in values)
    times = [min((f.marks.get("time", np.nan) for f in volume), default=np.nan) for volume in volumes]
    if np.isfinite(times).all() and np.all(np.diff(times) > 0):
        return "time", "s", tuple(float(t - times[0]) for t in times)
    return "index", "", tuple(float(n) for n in range(len(volumes)))


def _stack(volumes: list[list[Placed]], findings: tuple[str, ...]) -> Stack:
    first = volumes[0]
    lead, place = first[0]
    positions = np.array([p.position for _, p in first])
    fit = arrange(positions, place.normal, lead.thickness, min(place.spacing))
    affine = stack_affine(fit.origin, fit.step, place.orientation, place.spacing)
    planes = []
    for volume in volumes:
        row: list[Frame | None] = [None] * fit.count
        for slot, (frame, _) in zip(fit.slots, volume, strict=True):
            row[slot] = frame
        planes.append(tuple(row))
    several = len(volumes) > 1
    axis = _axis([[f for f, _ in volume] for volume in volumes]) if several else None
    return Stack(tuple(planes), several, fit.count > 1, affine, "mm", axis, findings + fit.findings)


def _flat(frames: Sequence[Frame]) -> list[Stack]:
    """Planes without a place in the patient: films by file, single pictures, or stacks by their number."""
    by_file: dict[str, list[Frame]] = {}
    for frame in frames:
        by_file.setdefault(frame.header.path, []).append(frame)
    found = [_film(group) for group in by_file.values() if len(group) > 1]
    sections: dict[tuple[object, ...], list[Frame]] = {}
    for (frame,) in (group for group in by_file.values() if len(group) == 1):
        if frame.header.text("Modality") in _SECTIONS:
            sections.setdefault((frame.rows, frame.columns, frame.spacing, _samples(frame)), []).append(frame)
        else:
            found.append(_flat_stack([[frame]], False, False, ()))
    for group in sections.values():
        group.sort(key=lambda f: (f.marks.get("instance", 0.0), f.header.path))
        note = f"No positions in the header: {len(group)} slices are in the order of their instance numbers."
        depth = len(group) > 1
        found.append(_flat_stack([group], False, depth, (note,) if depth else ()))
    return found


def _film(group: list[Frame]) -> Stack:
    header = group[0].header
    if header.text("Modality") in ("CT", "MR", "PT", "NM", "SEG", "RTDOSE", "OPT"):
        note = f"No positions in the header: {len(group)} frames are taken for slices, in the order of the file."
        return _flat_stack([group], False, True, (note,))
    stack = _flat_stack([[f] for f in group], True, False, ())
    step = header.number("FrameTime")
    if step is not None and np.isfinite(step) and step > 0:
        return replace(stack, axis=("time", "s", tuple(n * step / 1000 for n in range(len(group)))))
    return replace(stack, axis=("index", "", tuple(float(n) for n in range(len(group)))))


def _flat_stack(volumes: list[list[Frame]], has_time: bool, has_depth: bool, findings: tuple[str, ...]) -> Stack:
    lead = volumes[0][0]
    planes = tuple(tuple(volume) for volume in volumes)
    if lead.spacing is None:
        return Stack(planes, has_time, has_depth, np.eye(4), "pixel", None, findings)
    if not lead.header.numbers("PixelSpacing") and lead.header.numbers("ImagerPixelSpacing"):
        findings = (*findings, "The pixel size is that at the detector; the patient is magnified on it.")
    return Stack(planes, has_time, has_depth, scaling((lead.thickness or 1.0, *lead.spacing)), "mm", None, findings)

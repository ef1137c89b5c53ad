"""Sorts the planes of a series into images: stacks, stacks of stacks, films and single planes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from napari_medai.core.geometry import Affine, scaling
from napari_medai.io.dicom.frames import Frame
from napari_medai.io.dicom.geometry import SAME_DIRECTION, arrange, places_of, runs_of, stack_affine

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
    for group in _alike([f for f in frames if f.in_space]):
        found += _spatial(group)
    found += _flat([f for f in frames if not f.in_space])
    return sorted(found, key=lambda stack: -len(stack.frames))


def _alike(frames: Iterable[Frame]) -> list[list[Frame]]:
    # Same size, pixels and direction; compared with the first of each group, since rounding has borders.
    groups: list[list[Frame]] = []
    for frame in frames:
        for group in groups:
            if _same_plane(group[0], frame):
                group.append(frame)
                break
        else:
            groups.append([frame])
    return groups


def _same_plane(a: Frame, b: Frame) -> bool:
    if (a.rows, a.columns) != (b.rows, b.columns) or _samples(a) != _samples(b):
        return False
    assert a.spacing is not None and b.spacing is not None and a.orientation is not None and b.orientation is not None
    return bool(
        np.allclose(a.spacing, b.spacing, rtol=1e-3)
        and np.abs(a.orientation - b.orientation).max() <= SAME_DIRECTION
        # a scout says so and lies in the same series now and then
        and ("LOCALIZER" in a.kind) == ("LOCALIZER" in b.kind)
    )


def _samples(frame: Frame) -> tuple[str, ...]:
    colour = frame.header.integer("SamplesPerPixel", 1) > 1 or "PALETTE" in frame.header.text("PhotometricInterpretation")
    return ("colour" if colour else "grey", frame.header.pixel_keyword)


def _spatial(group: list[Frame]) -> list[Stack]:
    normal = group[0].normal
    distances = np.array([float(frame.position @ normal) for frame in group])
    places = places_of(distances)
    by_place: list[list[Frame]] = [[] for _ in range(int(places.max()) + 1)]
    for frame, place in zip(group, places, strict=True):
        by_place[int(place)].append(frame)
    most = max(map(len, by_place))
    kinds = sorted({f.kind for f in group})
    if most > 1 and 1 < len(kinds) < len(group):
        # magnitude and phase, water and fat, original and derived: images of their own
        return [
            replace(stack, findings=(*stack.findings, f"The series holds several kinds of image; this is {kind or '?'}."))
            for kind in kinds
            for stack in _spatial([f for f in group if f.kind == kind])
        ]
    if most == 1:
        rows = [row[0] for row in by_place]
        order = np.array([float(f.position @ normal) for f in rows])
        return [_stack([rows[run]], ()) for run in runs_of(order)]
    return _repeated(by_place)


def _repeated(by_place: list[list[Frame]]) -> list[Stack]:
    counts = sorted({len(row) for row in by_place})
    mark = _telling(by_place)
    for row in by_place:
        row.sort(key=lambda f: ([f.marks.get(mark, 0.0)] if mark else []) + [f.marks.get(m, 0.0) for m in _LAST])
    volumes = [[row[n] for row in by_place if n < len(row)] for n in range(counts[-1])]
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


def _stack(volumes: list[list[Frame]], findings: tuple[str, ...]) -> Stack:
    first = volumes[0]
    lead = first[0]
    assert lead.orientation is not None and lead.spacing is not None
    positions = np.array([f.position for f in first])
    fit = arrange(positions, lead.normal, lead.thickness, min(lead.spacing))
    affine = stack_affine(fit.origin, fit.step, lead.orientation, lead.spacing)
    planes = []
    for volume in volumes:
        row: list[Frame | None] = [None] * fit.count
        for slot, frame in zip(fit.slots, volume, strict=True):
            row[slot] = frame
        planes.append(tuple(row))
    several = len(volumes) > 1
    axis = _axis(volumes) if several else None
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

"""Sorts the planes of a series into images: stacks, stacks of stacks, films and single planes."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from napari_medai.core.geometry import Affine, scaling
from napari_medai.io.dicom.films import counted, film_times, size_findings
from napari_medai.io.dicom.frames import Frame, Place
from napari_medai.io.dicom.geometry import (
    SAME_DIRECTION,
    Arrangement,
    Vector,
    arrange,
    places_of,
    runs_of,
    stack_affine,
)
from napari_medai.io.dicom.repeats import Repeated, repeats_of

Placed = tuple[Frame, Place]

# Pixel spacings of one stack agree to this fraction.
SAME_SPACING = 1e-3
# Fewer slices are not looked at for stacks that lie in each other.
FEWEST_MIXED = 4
# Films of these modalities are pictures of their own, not slices, when no position says otherwise.
_SECTIONS = ("CT", "MR", "PT", "NM", "OT", "SC", "RTDOSE", "OPT", "SEG", "IVUS", "OCT")


@dataclass(frozen=True, eq=False)
class Stack:
    """One image: planes in order, and where they lie.

    Attributes
    ----------
    planes : sequence of sequences of (Frame or None)
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
    directions : tuple of (float, float, float) or None
        Unit vectors (z, y, x) of the diffusion gradient of each t.
    distances : tuple of float
        Of each slice from the first one along the stack as measured, in mm; empty without positions.
    irregular, tilted : bool
        Whether these do not fit a regular stack, and whether the stack is sheared.
    files : int or None
        Number of files, where it is known without a look at the planes.
    """

    planes: Sequence[Sequence[Frame | None]]
    has_time: bool
    has_depth: bool
    affine: Affine
    units: str
    axis: tuple[str, str, tuple[float, ...]] | None = None
    findings: tuple[str, ...] = ()
    directions: tuple[tuple[float, ...], ...] | None = None
    distances: tuple[float, ...] = ()
    irregular: bool = False
    tilted: bool = False
    files: int | None = None

    @property
    def lead(self) -> Frame:
        """The first plane that exists."""
        return next(f for row in self.planes for n in range(len(row)) if (f := row[n]) is not None)

    @property
    def file_count(self) -> int:
        """Number of files that hold its planes."""
        return len({frame.header.path for frame in self.frames}) if self.files is None else self.files

    @property
    def frames(self) -> list[Frame]:
        """The planes that exist."""
        return [frame for row in self.planes for frame in row if frame is not None]


def stacks_of(frames: Sequence[Frame], latest: bool = False) -> list[Stack]:
    """All images that the planes of a series form.

    Parameters
    ----------
    frames : sequence of Frame
        In any order.
    latest : bool
        Whether planes of one place that only their time tells apart are duplicates, of which the latest counts.

    Returns
    -------
    list of Stack
        The one with the most planes first.
    """
    found: list[Stack] = []
    for group in alike([(f, f.place) for f in frames if f.place is not None]):
        found += _spatial(group, latest)
    found += _flat([f for f in frames if f.place is None])
    return sorted(found, key=lambda stack: -len(stack.frames))


def alike(frames: Iterable[Placed]) -> list[list[Placed]]:
    """Planes of one size, kind of pixels, spacing and direction.

    Compared with the first of each group, since rounding has borders. Groups are looked up by a projection of their
    direction, and what repeats to the letter is not compared again: thousands of directions take a second.
    """
    groups: dict[tuple[object, ...], list[tuple[float, list[Placed]]]] = {}
    known: dict[tuple[object, ...], list[Placed]] = {}
    kin: dict[int, list[Placed]] = {}
    for frame, place in frames:
        shared = frame.header.shared
        if id(shared) in kin:  # slices that differ in their place alone
            kin[id(shared)].append((frame, place))
            continue
        # a scout says so and lies in the same series now and then
        sort = (frame.rows, frame.columns, _samples(frame), "LOCALIZER" in frame.kind)
        exact = (sort, place.orientation.tobytes(), place.spacing)
        if exact not in known:
            mark = float(place.orientation.ravel() @ _PROJECTION)
            leaders = groups.setdefault(sort, [])
            at = bisect_left(leaders, mark - _PROJECTED, key=_first)
            group: list[Placed] | None = None
            while at < len(leaders) and leaders[at][0] <= mark + _PROJECTED and group is None:
                group = leaders[at][1] if _parallel(leaders[at][1][0][1], place) else None
                at += 1
            if group is None:
                group = []
                insort(leaders, (mark, group), key=_first)
            known[exact] = group
        known[exact].append((frame, place))
        if shared is not None and shared.get("frame") is not None:
            kin[id(shared)] = known[exact]
    return list({id(group): group for group in known.values()}.values())


# Six numbers without a pattern: directions that differ, differ in their sum so weighted.
_PROJECTION = np.array([0.31, -0.57, 0.83, 0.71, 0.43, -0.19])
_PROJECTED = float(np.abs(_PROJECTION).sum()) * SAME_DIRECTION


def _first(leader: tuple[float, list[Placed]]) -> float:
    return leader[0]


def _parallel(at: Place, there: Place) -> bool:
    if max(abs(x - y) / y for x, y in zip(at.spacing, there.spacing, strict=True)) > SAME_SPACING:
        return False
    return bool(np.abs(at.orientation - there.orientation).max() <= SAME_DIRECTION)


def _samples(frame: Frame) -> tuple[object, ...]:
    header = frame.header
    if header.integer("SamplesPerPixel", 1) > 1:
        return ("colour", header.integer("BitsAllocated"), header.integer("SamplesPerPixel"))
    return ("palette" if "PALETTE" in header.text("PhotometricInterpretation") else "grey", header.pixel_keyword)


def _spatial(group: list[Placed], latest: bool) -> list[Stack]:
    by_frame = _frames_of_reference(group)
    if len(by_frame) > 1:
        note = (
            f"The series holds {len(by_frame)} frames of reference, whose positions have nothing to do with each other."
        )
        return [_noted(stack, note) for part in by_frame for stack in _spatial(part, latest)]
    normal = upwards(group[0][1].normal)
    distances = np.array([place.position for _, place in group]) @ normal
    places = places_of(distances).tolist()
    images = repeats_of([frame for frame, _ in group], places, latest)
    return [stack for image in images for stack in _stacks(image, normal)]


def upwards(normal: Vector) -> Vector:
    """The normal, along the positive side of the patient's axis it is nearest to: slices count as they open."""
    return normal if normal[int(np.abs(normal).argmax())] > 0 else -normal


def _frames_of_reference(group: list[Placed]) -> list[list[Placed]]:
    found: dict[str, list[Placed]] = {}
    for frame, place in group:
        found.setdefault(frame.header.text("FrameOfReferenceUID"), []).append((frame, place))
    unnamed = found.pop("", [])
    if unnamed:
        found.setdefault(max(found, key=lambda uid: len(found[uid]), default=""), []).extend(unnamed)
    # Where nearly every slice has one of its own, the UIDs were made up when identity was removed.
    return list(found.values()) if len(found) * 2 <= len(group) else [group]


def _stacks(image: Repeated, normal: Vector) -> list[Stack]:
    """The stacks of an image: one, unless so many slices are missing, or so mixed, that it falls apart."""
    numbers = sorted(set().union(*image.rows))
    leads = [next(row[n] for row in image.rows if n in row) for n in numbers]
    positions = np.array([_position(lead) for lead in leads])
    found = []
    for run in runs_of(positions @ normal):
        for part, note in _mixed(leads[run], positions[run], normal):
            mine = [numbers[run][n] for n in part]
            rows = [{k: row[n] for k, n in enumerate(mine) if n in row} for row in image.rows]
            kept = [t for t, row in enumerate(rows) if row]
            stack = _stack([rows[t] for t in kept], positions[run][part], normal, image, kept)
            found.append(replace(stack, findings=image.findings + note + stack.findings))
    return found


def _position(frame: Frame) -> Vector:
    assert frame.place is not None
    return frame.place.position


# What may set apart two stacks that lie in each other, in the order in which they are asked.
_MIXTURES = ("stack", "acquisition", "thickness", "echo", "b", "t", "trigger", "flip", "inversion", "kvp", "kev")


def _mixed(leads: list[Frame], positions: Vector, normal: Vector) -> list[tuple[list[int], tuple[str, ...]]]:
    """Slices at irregular distances that are several regular stacks, by what they differ in."""
    whole = list(range(len(leads)))
    if len(leads) < FEWEST_MIXED or not _irregular(positions, normal):
        return [(whole, ())]
    for name in ("kind", *_MIXTURES):
        values = [lead.kind if name == "kind" else lead.marks.get(name) for lead in leads]
        parts: dict[object, list[int]] = {}
        for n, value in enumerate(values):
            parts.setdefault(value, []).append(n)
        if len(parts) < 2 or min(map(len, parts.values())) < 2:
            continue
        if not any(_irregular(positions[part], normal) for part in parts.values()):
            note = (f"The series holds {len(parts)} stacks that lie in each other; they were told apart by {name}.",)
            return [(part, note) for part in parts.values()]
    return [(whole, ())]


def _irregular(positions: Vector, normal: Vector) -> bool:
    return arrange(positions, normal, None, 1.0).irregular


def _stack(rows: list[dict[int, Frame]], positions: Vector, normal: Vector, image: Repeated, kept: list[int]) -> Stack:
    lead = rows[0][min(rows[0])]
    fit, affine = fitted(lead, positions, normal)
    planes = []
    for row in rows:
        line: list[Frame | None] = [None] * fit.count
        for n, frame in row.items():
            line[fit.slots[n]] = frame
        planes.append(tuple(line))
    several = len(rows) > 1
    axis = image.axis
    if axis is not None:
        axis = (axis[0], axis[1], tuple(axis[2][t] for t in kept)) if several else None
    turned = None if image.directions is None or not several else tuple(image.directions[t] for t in kept)
    return Stack(
        tuple(planes), several, fit.count > 1, affine, "mm", axis, fit.findings, turned, fit.distances, fit.irregular,
        fit.tilted,
    )  # fmt: skip


def fitted(lead: Frame, positions: Vector, normal: Vector) -> tuple[Arrangement, Affine]:
    """How planes at sorted positions lie, and the affine of the stack that they form; the first one's size counts."""
    place = lead.place
    assert place is not None
    fit = arrange(positions, normal, lead.thickness, min(place.spacing))
    return fit, stack_affine(fit.origin, fit.step, place.orientation, place.spacing)


def _noted(stack: Stack, note: str) -> Stack:
    return replace(stack, findings=(note, *stack.findings))


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
    order = counted(header, len(group))
    if order is not None and len(set(order.steps)) * len(set(order.slices)) == len(group):
        slots = {(step, n): f for step, n, f in zip(order.steps, order.slices, group, strict=True)}
        ranks = sorted(set(order.slices))
        volumes = [[slots[step, n] for n in ranks] for step in sorted(set(order.steps))]
        several = len(volumes) > 1
        return replace(_flat_stack(volumes, several, len(ranks) > 1, ()), axis=order.axis if several else None)
    if header.text("Modality") in ("CT", "MR", "PT", "NM", "SEG", "RTDOSE", "OPT"):
        note = f"No positions in the header: {len(group)} frames are taken for slices, in the order of the file."
        return _flat_stack([group], False, True, (note,))
    stack = _flat_stack([[f] for f in group], True, False, ())
    return replace(stack, axis=film_times(header, len(group)) or ("index", "", tuple(map(float, range(len(group))))))


def _flat_stack(volumes: list[list[Frame]], has_time: bool, has_depth: bool, findings: tuple[str, ...]) -> Stack:
    lead = volumes[0][0]
    findings = (*findings, *size_findings(lead.header))
    planes = tuple(tuple(volume) for volume in volumes)
    if lead.spacing is None:
        return Stack(planes, has_time, has_depth, np.eye(4), "pixel", None, findings)
    return Stack(planes, has_time, has_depth, scaling((lead.thickness or 1.0, *lead.spacing)), "mm", None, findings)

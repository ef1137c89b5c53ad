"""Segmentations: which frames make up a plane of labels, and what the segments are called (PS3.3 A.51, C.8.20).

A binary segmentation has a frame for each segment on each slice where it is, a fractional one the same with
values from 0 to 1, a label map one frame for a slice. Slices without a frame are background.
"""

from __future__ import annotations

import os
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_medai.core.errors import MedaiError
from napari_medai.io.dicom.decoding import palette_colors, stored_frame
from napari_medai.io.dicom.details import details
from napari_medai.io.dicom.geometry import MULTIPLE_TOLERANCE, SAME_DIRECTION, SAME_SLICE_MM, places_of
from napari_medai.io.dicom.headers import Header, integers, items, numbers, text
from napari_medai.io.dicom.pixels import pixel_file

if TYPE_CHECKING:
    from napari_medai.io.dicom.frames import Frame

# Label Map Segmentation Storage (PS3.4 B.5)
LABEL_MAP = "1.2.840.10008.5.1.4.1.1.66.7"
# A grid with more empty slices than this for each filled one is taken for damage.
_MOST_EMPTY = 1000
# More planes than this of one file are left as they are stored.
_MOST_PLANES = 200_000

_XYZ_TO_RGB = np.array(
    ((3.1338561, -1.6168667, -0.4906146), (-0.9787684, 1.9161415, 0.0334540), (0.0719453, -0.2289914, 1.4052427))
)

Color = tuple[float, float, float]
Vector = NDArray[np.float64]


def segmentation_kind(header: Header) -> str:
    """``"BINARY"``, ``"FRACTIONAL"`` or ``"LABELMAP"``."""
    kind = header.text("SegmentationType").upper()
    if kind in ("BINARY", "FRACTIONAL", "LABELMAP"):
        return kind
    if header.text("SOPClassUID") == LABEL_MAP:
        return "LABELMAP"
    return "BINARY" if header.integer("BitsAllocated", 1) == 1 else "FRACTIONAL"


def segmentation_frames(header: Header, frames: list[Frame]) -> list[Frame]:
    """The planes that the frames of a segmentation form.

    Parameters
    ----------
    header : Header
        Of the file.
    frames : list of Frame
        One for each frame of the file, with the mark ``"segment"`` unless they are of a label map.

    Returns
    -------
    list of Frame
        On each slice of the grid from the first to the last that has a frame: one plane, or one for each segment
        where they overlap or are fractional. Frames without a place, and those of an irregular stack, stay as
        they are.
    """
    kind = segmentation_kind(header)
    marks = [{"segment": f.marks["segment"]} if "segment" in f.marks else {} for f in frames]
    frames = [replace(f, marks=mark, kind="") for f, mark in zip(frames, marks, strict=True)]
    if kind == "LABELMAP":
        frames = [replace(f, marks={}) for f in frames]
    elif not all(marks):
        return frames
    elif kind == "FRACTIONAL":
        # PS3.3 C.8.20.2.3.1: 1 is stored as the Maximum Fractional Value
        slope = 1 / (header.number("MaximumFractionalValue") or 255)
        frames = [replace(f, slope=slope, intercept=0.0, window=(0.0, 1.0)) for f in frames]
    numbers_of = [int(mark.get("segment", 0)) for mark in marks] if kind != "LABELMAP" else [0] * len(frames)
    if any(f.place is None for f in frames):
        return _without_places(header, frames, numbers_of, kind)
    slots = _slots(frames)
    if slots is not None and slots.count * max(1, len(set(numbers_of))) > _MOST_PLANES:
        slots = None
    if slots is None:
        return _single(frames, numbers_of, kind)
    by_slot: dict[int, list[tuple[int, int]]] = {}
    for frame, slot, one in zip(frames, slots.numbers, numbers_of, strict=True):
        by_slot.setdefault(slot, []).append((frame.index, one))
    places = [slots.place(frames[0], n) for n in range(slots.count)]
    if kind == "LABELMAP":
        if any(len(group) > 1 for group in by_slot.values()):
            return frames  # several images of one place: not a label map of one volume
        by_index = {f.index: f for f in frames}
        return [
            replace(by_index[by_slot[n][0][0]], place=place)
            if n in by_slot
            else _masks(replace(frames[0], place=place), [])
            for n, place in enumerate(places)
        ]
    if kind == "BINARY" and not overlapping(header, [tuple(f for f, _ in group) for group in by_slot.values()]):
        return [
            _masks(replace(frames[0], place=place, marks={}), sorted(by_slot.get(n, []), key=lambda m: m[1]))
            for n, place in enumerate(places)
        ]
    found = []
    for one in sorted(set(numbers_of)):
        for n, place in enumerate(places):
            whole = replace(frames[0], place=place, marks={"segment": float(one)})
            index = next((f for f, number_ in by_slot.get(n, []) if number_ == one), None)
            if kind == "FRACTIONAL" and index is not None:
                found.append(replace(whole, index=index))
            else:
                found.append(_masks(whole, [] if index is None else [(index, one)]))
    return found


def _masks(frame: Frame, masks: list[tuple[int, int]]) -> Frame:
    return replace(frame, segments=tuple(masks))


def _single(frames: list[Frame], segments: list[int], kind: str) -> list[Frame]:
    if kind != "BINARY":
        return frames
    return [_masks(f, [(f.index, n)]) for f, n in zip(frames, segments, strict=True)]


def _without_places(header: Header, frames: list[Frame], segments: list[int], kind: str) -> list[Frame]:
    # Of a projection or a picture: each frame is a segment of the one plane.
    if kind != "BINARY" or len(set(segments)) < len(segments):
        return _single(frames, segments, kind)
    if overlapping(header, [tuple(f.index for f in frames)]):
        return _single(frames, segments, kind)
    masks = [(f.index, n) for f, n in zip(frames, segments, strict=True)]
    return [_masks(replace(frames[0], marks={}), masks)]


class _Slots:
    """A regular row of slices, and the number of each frame in it."""

    def __init__(self, numbers: NDArray[np.int64], origin: Vector, step: Vector) -> None:
        self.numbers = numbers.tolist()
        self.count = int(numbers.max()) + 1
        self.origin, self.step = origin, step

    def place(self, frame: Frame, n: int) -> Any:
        assert frame.place is not None
        return replace(frame.place, position=self.origin + n * self.step)


def _slots(frames: list[Frame]) -> _Slots | None:
    places = [f.place for f in frames if f.place is not None]
    lead = places[0]
    if any(np.abs(p.orientation - lead.orientation).max() > SAME_DIRECTION for p in places):
        return None
    positions = np.array([p.position for p in places])
    distances = positions @ lead.normal
    numbers_ = places_of(distances)
    first, last = int(distances.argmin()), int(distances.argmax())
    if numbers_.max() == 0:
        return _Slots(numbers_, positions[first], lead.normal * (frames[0].thickness or 1.0))
    levels = np.array([distances[numbers_ == n].mean() for n in range(int(numbers_.max()) + 1)])
    gaps = np.diff(levels)
    for base in (frames[0].thickness, float(gaps.min())):
        with np.errstate(over="ignore"):
            multiples = np.round(gaps / base) if base else np.zeros(1)
        if multiples.min() < 1 or multiples.sum() > _MOST_EMPTY * len(levels):
            continue
        fitted = gaps.sum() / multiples.sum()
        if np.abs(gaps - multiples * fitted).max() <= max(SAME_SLICE_MM, MULTIPLE_TOLERANCE * fitted):
            slots = np.concatenate([[0], np.cumsum(multiples)]).astype(np.int64)
            step = (positions[last] - positions[first]) / slots[-1]
            return _Slots(slots[numbers_], positions[first], step)
    return None


def overlapping(header: Header, places: list[tuple[int, ...]]) -> bool:
    """Whether some voxel belongs to several segments.

    Segments Overlap (0062,0013) is believed where it is NO; otherwise the masks are compared.

    Parameters
    ----------
    header : Header
        Of the file.
    places : list of tuples of int
        Numbers of the frames that lie at one place.
    """
    if header.text("SegmentsOverlap").upper() == "NO":
        return False
    several = tuple(group for group in places if len(group) > 1)
    if not several:
        return False
    try:
        return _overlapping(header.path, os.stat(header.path).st_mtime_ns, header, several)
    except (MedaiError, OSError):
        return True  # damaged masks: each is shown by itself, and says so when it is looked at


@lru_cache(maxsize=64)
def _overlapping(path: str, changed: int, header: Header, places: tuple[tuple[int, ...], ...]) -> bool:
    file = pixel_file(header)
    for group in places:
        there = stored_frame(file, group[0]) != 0
        for frame in group[1:]:
            mask = stored_frame(file, frame) != 0
            if bool((there & mask).any()):
                return True
            there |= mask
    return False


def background_of(header: Header) -> int:
    """The stored value of a label map that is no segment: its Pixel Padding Value (PS3.3 C.8.20.2), else 0."""
    if segmentation_kind(header) != "LABELMAP":
        return 0
    value = header.number("PixelPaddingValue")
    return int(value) if value is not None and 0 < value <= np.iinfo(np.uint16).max else 0


def label_table(header: Header) -> tuple[int, NDArray[Any]] | None:
    """The lookup table of a label map whose background is not 0: it changes places with 0; None for all else."""
    background = background_of(header)
    if not background:
        return None
    return 0, _table(background, 8 if header.integer("BitsAllocated", 8) == 8 and background < 256 else 16)


@lru_cache(maxsize=16)
def _table(background: int, bits: int) -> NDArray[Any]:
    table = np.arange(1 << bits, dtype=np.uint8 if bits == 8 else np.uint16)
    table[[0, background]] = background, 0
    return table


def segment_meta(header: Header) -> tuple[dict[str, Any], list[str]]:
    """What is worth knowing of the segments of a file.

    Returns
    -------
    dict
        For `Volume.meta`: ``is_labels``, ``label_names``, ``label_colors`` (red, green, blue from 0 to 1),
        ``referenced_series_uid``, and of fractional ones ``fraction``: ``"probability"`` or ``"occupancy"``.
    list of str
        What is unusual.
    """
    described = header.items("SegmentSequence")
    kind = segmentation_kind(header)
    names, colors = {}, {}
    for item in described:
        one = next(iter(integers(item, "SegmentNumber")), 0)
        names[one] = " ".join(text(item, "SegmentLabel").split())[:64] or f"segment {one}"
        lab = numbers(item, "RecommendedDisplayCIELabValue")
        if len(lab) == 3:
            colors[one] = rgb_of_lab(lab)
    if kind == "LABELMAP":
        if names and "PALETTE" in header.text("PhotometricInterpretation").upper():
            values = np.array(list(names))
            rgb = palette_colors(header.path, values.astype(np.uint8 if values.max() < 256 else np.uint16))
            colors |= {n: (float(r), float(g), float(b)) for n, (r, g, b) in zip(names, rgb, strict=True)}
        background = background_of(header)
        names, colors = _without(names, background), _without(colors, background)
    meta: dict[str, Any] = {"is_labels": kind != "FRACTIONAL", "label_names": names}
    meta |= {"label_colors": colors} if colors else {}
    referenced = next(iter(items(details(header), "ReferencedSeriesSequence")), None)
    if referenced is not None and text(referenced, "SeriesInstanceUID"):
        meta["referenced_series_uid"] = text(referenced, "SeriesInstanceUID")
    notes = []
    if background_of(header):
        notes.append(f"The background is stored as {background_of(header)}; it opens as 0, and segment 0 in its place.")
    if kind == "FRACTIONAL":
        meta["fraction"] = header.text("SegmentationFractionalType").lower() or "unknown"
        if meta["fraction"] == "unknown":
            notes.append("The segmentation does not say whether its fractions are probability or occupancy.")
        if not header.number("MaximumFractionalValue"):
            notes.append("The largest fraction is not in the header; 255 is taken for 1.")
    if not header.text("SegmentationType"):
        notes.append(f"The type of the segmentation is not in the header; it is taken for {kind.lower()}.")
    return meta, notes


def _without(segments: dict[int, Any], background: int) -> dict[int, Any]:
    """Without the background, which may be described too; 0 has changed places with it."""
    return {n or background: what for n, what in segments.items() if n != background}


def rgb_of_lab(stored: tuple[float, ...]) -> Color:
    """Red, green and blue (sRGB, 0 to 1) of a CIELab value as DICOM stores it (PS3.3 C.10.7.1.1; D50 as in ICC).

    Parameters
    ----------
    stored : tuple of 3 floats
        L*, a*, b* on the scale from 0 to 65535.
    """
    lightness = stored[0] / 65535 * 100
    a, b = (v / 65535 * 255 - 128 for v in stored[1:3])
    y = (lightness + 16) / 116
    ratios = np.array([y + a / 500, y, y - b / 200])
    # CIE 15:2004, 8.2.1.1, inverted
    small = ratios <= 6 / 29
    xyz = np.where(small, 3 * (6 / 29) ** 2 * (ratios - 4 / 29), ratios**3) * (0.9642, 1.0, 0.8249)
    # IEC 61966-2-1 for the white point D50 (Bradford-adapted)
    matrix = (
        (3.1338561, -1.6168667, -0.4906146),
        (-0.9787684, 1.9161415, 0.0334540),
        (0.0719453, -0.2289914, 1.4052427),
    )
    linear = np.clip(np.array(matrix) @ xyz, 0, 1)
    coded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    red, green, blue = (round(float(v), 4) for v in np.clip(coded, 0, 1))
    return red, green, blue

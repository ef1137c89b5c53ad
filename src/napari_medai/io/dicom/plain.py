"""The image of a plain series, out of the columns of its headers: a stack of slices at a place each.

Such are nearly all series of CT, PET and MR. What is out of the ordinary in any way (copies, several images of a place,
sizes or directions, slices at irregular distances) is left to `stacks`, which looks at each slice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np

from napari_medai.core.errors import MedaiError
from napari_medai.io.dicom.frames import Frame, frames_of
from napari_medai.io.dicom.gathered import Headers, Rows
from napari_medai.io.dicom.geometry import Vector, places_of, runs_of
from napari_medai.io.dicom.headers import Header, derived
from napari_medai.io.dicom.pixels import PixelFile, pixel_file
from napari_medai.io.dicom.stacks import FEWEST_MIXED, Stack, alike, fitted, upwards

_REFERENCE = "FrameOfReferenceUID"


def plain_stack(headers: Headers) -> Stack | None:
    """The one stack that the slices of a series form.

    Parameters
    ----------
    headers : Headers
        Of all files of the series.

    Returns
    -------
    Stack or None
        As `stacks_of` gives it, its planes made when they are asked for; None if the series is not plain.
    """
    instances = [uid for uid in headers.texts("SOPInstanceUID") if uid]
    if len(set(instances)) < len(instances):
        return None
    try:
        leads = [_lead(headers, rows) for rows in headers.rows()]
        placed = [(lead, lead.place) for lead in leads if lead is not None and lead.place is not None]
        positions = _positions(headers.texts("ImagePositionPatient"))
        one_kind = len(placed) == len(leads) and len(alike(placed)) == 1
        if positions is None or not one_kind or len({lead.header.text(_REFERENCE) for lead, _ in placed}) > 1:
            return None
        normal = upwards(placed[0][1].normal)
        places = places_of(positions @ normal)
        order = np.argsort(places)
        positions = positions[order]
        if places.max() + 1 < len(places) or len(runs_of(positions @ normal)) > 1:
            return None
        fit, affine = fitted(frames_of(headers[int(order[0])])[0], positions, normal)
    except MedaiError:
        return None  # and said by who looks at each slice
    if fit.irregular and len(order) >= FEWEST_MIXED:
        return None
    slots: list[int | None] = [None] * fit.count
    for slot, n in zip(fit.slots, order.tolist(), strict=True):
        slots[slot] = n
    return Stack(
        (Row(headers, slots),), False, fit.count > 1, affine, "mm", None, fit.findings, None, fit.distances,
        fit.irregular, fit.tilted, len(order),
    )  # fmt: skip


def _lead(headers: Headers, rows: Rows) -> Frame | None:
    """A slice that some others differ from in number, place and time alone; None if there is none.

    It may be of another series.

    Raises
    ------
    MedaiError
        It, or one of the files, cannot be opened.
    """
    if rows.kin is None:
        return _slice(headers[int(rows.at[0])])
    shared = derived(rows.kin)
    if shared is None:
        return None
    if "pixel_file" not in shared or "frame" not in shared:
        lead = _slice(headers[int(rows.at[0])])
        if lead is None or "frame" not in shared:
            return None
    frame: Frame = shared["frame"]
    if rows.sizes.min() < frame.header.size:  # perhaps cut off
        pixel_file(headers[int(rows.at[rows.sizes.argmin()])])
    return frame


def _slice(header: Header) -> Frame | None:
    """The plane of a file, None if that is more than a slice or was mended."""
    pixel_file(header)
    frame, *more = frames_of(header)
    unlike = more or frame.levels or frame.tile is not None or frame.segments is not None or header.repaired
    return None if unlike else frame


def _positions(texts: Sequence[str]) -> Vector | None:
    """(slices, 3) array of positions as they are written, "x\\y\\z"; None if one is not."""
    if {text.count("\\") for text in texts} != {2}:
        return None
    try:
        found = np.array(list(map(float, "\\".join(texts).split("\\")))).reshape(-1, 3)
    except ValueError:
        return None
    return found if np.isfinite(found).all() else None


class Row(Sequence[Frame | None]):
    """The planes along z, each made when it is asked for.

    Parameters
    ----------
    headers : Headers
        Of files with one plane each.
    slots : sequence of (int or None)
        For each plane, which of the headers is its; None is a missing slice.
    """

    def __init__(self, headers: Headers, slots: Sequence[int | None]) -> None:
        self._headers, self._slots = headers, slots
        self._made: dict[int, Frame] = {}
        self._all: tuple[Frame | None, ...] | None = None

    def __len__(self) -> int:
        return len(self._slots)

    @overload
    def __getitem__(self, key: int) -> Frame | None: ...
    @overload
    def __getitem__(self, key: slice) -> tuple[Frame | None, ...]: ...
    def __getitem__(self, key: int | slice) -> Any:
        if isinstance(key, slice):
            return tuple(self[n] for n in range(len(self))[key])
        n = self._slots[key]
        return None if n is None else self._frame(n, self._headers)

    def __iter__(self) -> Iterator[Frame | None]:
        if self._all is None:
            headers = list(self._headers)  # together in less time
            self._all = tuple(None if n is None else self._frame(n, headers) for n in self._slots)
        return iter(self._all)

    def _frame(self, n: int, headers: Any) -> Frame:
        if n not in self._made:
            (self._made[n],) = frames_of(headers[n])
        return self._made[n]


class PixelFiles(Mapping[str, PixelFile]):
    """Where the pixels of files are, by path; looked at when they are asked for.

    Parameters
    ----------
    headers : Headers
        Of the files.
    """

    def __init__(self, headers: Headers) -> None:
        self._headers = headers
        self._numbers: dict[str, int] = {}
        self._made: dict[str, PixelFile] = {}

    def __len__(self) -> int:
        return len(self._headers)

    def __iter__(self) -> Iterator[str]:
        return iter(self._headers.paths)

    def __getitem__(self, path: str) -> PixelFile:
        if path not in self._made:
            self._numbers = self._numbers or {p: n for n, p in enumerate(self._headers.paths)}
            self._made[path] = pixel_file(self._headers[self._numbers[path]])
        return self._made[path]

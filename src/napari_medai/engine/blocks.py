"""Instances of an image of any size: the network's maps come in from top to bottom and are decoded block by block.

The maps are those of the whole image (the tiles are planned for it), whatever the blocks. A block is decoded with a
margin around it, and an object belongs to the block that its anchor, the first pixel of its seed, lies in: both
neighbours see the same anchor, so that it is found once and whole. Where an object reaches the margin's outer side the
margin is widened. Blocks of one band are numbered together, in the order of anchors: the numbers are those that the
whole image would get.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from napari_medai.core.errors import WriteError, reason_of
from napari_medai.engine.instances import Decoding, Part, decode_part
from napari_medai.engine.planes import Planes
from napari_medai.engine.resample import weights
from napari_medai.engine.store import MemoryStore
from napari_medai.engine.zarr_store import ZarrStore

# Beside a store's own record: objects in the bands that are finished
COUNTS = ".medai-objects.json"
# Columns of a block; more of them share one margin, fewer need less memory
COLUMNS = 2048
# Rows of a band, as far as the maps of a band and its margins stay below so many bytes
ROWS, LEAST_ROWS = 1024, 128
MAP_BYTES = 2**28
# An object this near the outer side of a margin may not be whole: the smoothing of `decode_part` reaches so far
_EDGE = 6
# How often a margin may be doubled, and how many margins of rows above a band are kept for it
_DOUBLINGS, _HISTORY = 3, 4
# What `decode_part` takes for each pixel
_DECODING_BYTES = 60
# Two objects of different blocks are one if they share this much of the later one
_SAME = 0.5


@dataclass(frozen=True, eq=False)
class _Object:
    """One object on the image's grid: its anchor, the place of its first pixel, and its pixels from there."""

    anchor: tuple[int, int]
    corner: tuple[int, int]
    pixels: NDArray[np.bool_]

    @property
    def place(self) -> tuple[slice, slice]:
        """Its rows and columns."""
        (y, x), (rows, columns) = self.corner, self.pixels.shape
        return slice(y, y + rows), slice(x, x + columns)


class _Maps:
    """The network's maps on its own grid, (2, y', x'): as many rows of them as are needed."""

    def __init__(self, shape: tuple[int, int], grid: tuple[int, int]) -> None:
        self.image, self.shape = shape, (2, *grid)
        self.first = self.stop = 0
        self._pieces: list[NDArray[np.float32]] = []

    def __getitem__(self, key: tuple[slice, slice, slice]) -> NDArray[np.float32]:
        """A part of them; slices without steps."""
        channels, rows, columns = key
        parts, at = [], self.first
        for piece in self._pieces:
            low, high = max(rows.start - at, 0), min(rows.stop - at, piece.shape[1])
            if low < high:
                parts.append(piece[channels, low:high, columns])
            at += piece.shape[1]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    def add(self, first: int, rows: NDArray[np.floating]) -> None:
        """Rows (K, n, x') that follow."""
        if not self._pieces:
            self.first = self.stop = first
        assert first == self.stop
        self._pieces.append(np.array(rows[:2], dtype=np.float32))
        self.stop += rows.shape[1]

    def drop(self, before: int) -> None:
        """Let go of what no row of the image from ``before`` on needs."""
        needed = self.needed(0, before, before + 1).start
        while self._pieces and self.first + self._pieces[0].shape[1] <= needed:
            self.first += self._pieces.pop(0).shape[1]

    def has(self, last: int) -> bool:
        """Whether the image's rows up to ``last`` (exclusive) can be had."""
        return bool(self.needed(0, last - 1, last).stop <= self.stop)

    def needed(self, axis: int, start: int, stop: int) -> slice:
        """Which of their rows (or columns) some of the image's are made of."""
        columns = weights(self.shape[1 + axis], self.image[axis])[start:stop].indices
        return slice(int(columns.min()), int(columns.max()) + 1)

    def window(self, rows: tuple[int, int], columns: tuple[int, int], least: float) -> NDArray[np.float32] | None:
        """Foreground and depth (2, rows, columns) of a part of the image; none if no foreground reaches ``least``."""
        # a weighted mean is not above what it is of, but for rounding
        if self[slice(0, 1), self.needed(0, *rows), self.needed(1, *columns)].max() < least * (1 - 1e-5):
            return None
        return Planes(self, None, self.image, (0, 0), (1, 1))[slice(None), slice(*rows), slice(*columns)]


class Blocks:
    """Takes the network's maps and writes objects into a store.

    Parameters
    ----------
    shape, grid : tuple of 2 ints
        Of the image and of the network's maps.
    how : Decoding
        How objects come out of the maps.
    store : Store
        Takes the labels; what is finished in it is not done again.
    margin : int
        Pixels around a block, at first.
    block : tuple of 2 ints
        Rows of a band and columns of a block; 0 chooses.
    tell : callable
        ``tell(labels, where)`` for every band that was written.
    note : callable
        Told what the person who reads the result should know.

    Attributes
    ----------
    count : int
        Objects so far.
    begin : int
        First row of the maps that is needed.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        grid: tuple[int, int],
        how: Decoding,
        store: MemoryStore | ZarrStore,
        margin: int,
        block: tuple[int, int] = (0, 0),
        tell: Callable[[Any, tuple[slice, ...]], None] = lambda labels, where: None,
        note: Callable[[str], None] = lambda message: None,
    ) -> None:
        self.shape, self.how, self.store = shape, how, store
        self.margin = min(margin, max(shape))
        self.rows, self.columns = block[0] or rows_of_band(shape, grid, margin), block[1] or COLUMNS
        self.tell, self.note = tell, note
        self.band = store.finished  # first row of the band in hand
        self.count = _count_of(store, self.band)
        self._down = self.margin
        self._clear = self.band > 0
        self._done: dict[int, tuple[list[_Object], list[_Object]]] = {}
        self._cut = 0
        self._maps = _Maps(shape, grid)
        self.begin = self._maps.needed(0, self._kept, self._kept + 1).start if self.band < shape[0] else grid[0]

    @property
    def _kept(self) -> int:
        """First row of the image that is kept for the band in hand."""
        return max(0, self.band - _HISTORY * self.margin)

    def take(self, first: int, scores: NDArray[np.floating]) -> None:
        """Final rows of the maps (K, n, x'): foreground, depth."""
        self._maps.add(first, scores)
        while self.band < self.shape[0]:
            stop = min(self.band + self.rows, self.shape[0])
            while self._maps.has(min(stop + self._down, self.shape[0])):
                if self._decode(self.band, stop):
                    break
            else:
                return
            self._write(self.band, stop)
            self.band, self._down = stop, self.margin
            if stop < self.shape[0]:
                self._maps.drop(self._kept)

    @property
    def memory_mb(self) -> float:
        """What decoding takes at most as a rule, MiB: maps, the block in hand, the band's labels."""
        height, width = self.shape
        rows = min(height, self.rows + 2 * self.margin)
        kept = min(height, rows + _HISTORY * self.margin) * self._maps.shape[1] / height
        block = _DECODING_BYTES * rows * min(width, self.columns + 2 * self.margin)
        return (8 * kept * self._maps.shape[2] + block + 2 * 4 * rows * width) / 2**20

    def close(self) -> None:
        """Say what could not be done."""
        if self._cut:
            self.note(
                f"{self._cut} object{'' if self._cut == 1 else 's'} larger than {_HISTORY * self.margin} pixels "
                "may be cut: the image was looked at in parts"
            )

    def _decode(self, start: int, stop: int) -> bool:
        """Find the objects of a band; false if more rows are needed."""
        for left in range(0, self.shape[1], self.columns):
            if left not in self._done:
                found = self._block((start, stop), (left, min(left + self.columns, self.shape[1])))
                if found is None:
                    return False
                self._done[left] = found
        return True

    def _block(self, rows: tuple[int, int], columns: tuple[int, int]) -> tuple[list[_Object], list[_Object]] | None:
        """Objects whose anchor lies in a block, and the others that lie in it for the most part."""
        kept, height, width = self._kept, *self.shape
        most = self.margin * 2**_DOUBLINGS
        up = right = left = self.margin
        while True:
            top, bottom = max(kept, rows[0] - up), min(height, rows[1] + self._down)
            first, last = max(0, columns[0] - left), min(width, columns[1] + right)
            maps = self._maps.window((top, bottom), (first, last), self.how.foreground_threshold)
            if maps is None:
                return [], []
            part, boxes = _decoded(maps, self.how, ((top > 0, bottom < height), (first > 0, last < width)))
            anchors = part.anchors + np.array([top, first])
            extent = np.array([(y.start, y.stop, x.start, x.stop) for y, x in boxes], dtype=int).reshape(-1, 4)
            extent += (top, top, first, first)
            mine = _within(anchors, rows, columns)
            here = mine | _within(extent.reshape(-1, 2, 2).sum(axis=2) // 2, rows, columns)
            pieces = [
                here & (extent[:, 0] < top + _EDGE) & (top > 0),
                here & (extent[:, 1] > bottom - _EDGE) & (bottom < height),
                here & (extent[:, 2] < first + _EDGE) & (first > 0),
                here & (extent[:, 3] > last - _EDGE) & (last < width),
            ]
            can = (top > kept and up < most, self._down < most, left < most, right < most)
            wider = [bool(piece.any()) and able for piece, able in zip(pieces, can, strict=True)]
            if not any(wider):
                break
            up, left, right = up * (1 + wider[0]), left * (1 + wider[2]), right * (1 + wider[3])
            self._down *= 1 + wider[1]
            if not self._maps.has(min(rows[1] + self._down, height)):
                return None
        self._cut += int(np.count_nonzero(np.any(pieces, axis=0)))
        own: list[_Object] = []
        others: list[_Object] = []
        for n in np.flatnonzero(here):
            corner = (int(extent[n, 0]), int(extent[n, 2]))
            found = _Object((int(anchors[n, 0]), int(anchors[n, 1])), corner, part.labels[boxes[n]] == n + 1)
            (own if mine[n] else others).append(found)
        return own, others

    def _write(self, start: int, stop: int) -> None:
        """Number the objects of a band and write them."""
        own = sorted((o for found in self._done.values() for o in found[0]), key=lambda o: o.anchor)
        # its own block may have seen it otherwise, and not as an object
        others = [o for found in self._done.values() for o in found[1] if o.anchor[0] < stop]
        self._done = {}
        before = self.count
        if own or others or self._clear:
            everything = [*own, *others]
            top = min([start, *(o.place[0].start for o in everything)])
            bottom = max([stop, *(o.place[0].stop for o in everything)])
            if self._clear:  # what a band that was not finished has left reaches as far as it can
                top, bottom = self._kept, min(self.shape[0], stop + self.margin * 2 ** (_DOUBLINGS + 1))
            where = (slice(top, bottom), slice(0, self.shape[1]))
            labels = np.array(self.store.array[where], dtype=np.int32)
            if self._clear:
                labels[labels > self.count] = 0
                self._clear = False
            for found in everything:
                place = (slice(found.place[0].start - top, found.place[0].stop - top), found.place[1])
                free = found.pixels & (labels[place] == 0)
                if np.count_nonzero(free) > _SAME * np.count_nonzero(found.pixels):
                    self.count += 1
                    labels[place][free] = self.count
            self.store.write(where, labels)
            self.tell(self.store.array, where)
        _keep_counts(self.store, {start: before, stop: self.count})
        self.store.mark(stop)


def _decoded(
    maps: NDArray[np.float32], how: Decoding, goes_on: tuple[tuple[bool, bool], tuple[bool, bool]]
) -> tuple[Part, list[tuple[slice, slice]]]:
    """The objects of a window and the boxes around them; the ground around all of them is not looked at."""
    mask = maps[0] >= how.foreground_threshold
    cut: list[slice] = []
    sides: list[tuple[bool, bool]] = []
    for axis, (before, behind) in enumerate(goes_on):
        some = np.flatnonzero(mask.any(axis=1 - axis))
        size = mask.shape[axis]
        start = max(0, int(some[0]) - _EDGE) if len(some) else 0
        stop = min(size, int(some[-1]) + 1 + _EDGE) if len(some) else 0
        cut.append(slice(start, stop))
        sides.append((before or start > 0, behind or stop < size))
    part = decode_part(maps[0][tuple(cut)], maps[1][tuple(cut)], how, sides) if cut[0].stop else None
    if part is None:
        return Part(np.zeros((0, 0), np.int32), np.zeros((0, 2), np.intp)), []
    y, x = cut[0].start, cut[1].start
    boxes = [
        (slice(a.start + y, a.stop + y), slice(b.start + x, b.stop + x)) for a, b in ndimage.find_objects(part.labels)
    ]
    whole = np.zeros(mask.shape, np.int32)
    whole[tuple(cut)] = part.labels
    return Part(whole, part.anchors + np.array([y, x])), boxes


def rows_of_band(shape: tuple[int, int], grid: tuple[int, int], margin: int) -> int:
    """Rows of a band, of which the maps and those of its margins take `MAP_BYTES`."""
    row = 2 * 4 * grid[1] * grid[0] / shape[0]
    fitting = int(MAP_BYTES / row) - (1 + _HISTORY) * margin
    return max(LEAST_ROWS, min(ROWS, fitting // LEAST_ROWS * LEAST_ROWS))


def _within(points: NDArray[np.intp], rows: tuple[int, int], columns: tuple[int, int]) -> NDArray[np.bool_]:
    """Which points (n, 2) lie in a block."""
    inside = (points >= (rows[0], columns[0])) & (points < (rows[1], columns[1]))
    return np.asarray(inside.all(axis=1))


def _count_of(store: MemoryStore | ZarrStore, rows: int) -> int:
    """Objects in the bands that are finished."""
    if rows == 0:
        return 0
    assert isinstance(store, ZarrStore)
    try:
        return int(json.loads((store.path / COUNTS).read_text(encoding="utf-8"))[str(rows)])
    except (OSError, ValueError, LookupError) as error:
        raise WriteError(
            f"{store.path} holds finished rows without the number of their objects; remove the folder and run again."
        ) from error


def _keep_counts(store: MemoryStore | ZarrStore, counts: dict[int, int]) -> None:
    """Say how many objects there are after each of these rows, before the store says that they are finished."""
    if isinstance(store, ZarrStore):
        temporary = store.path / f"{COUNTS}.new"
        try:
            with temporary.open("w", encoding="utf-8") as file:
                json.dump(counts, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, store.path / COUNTS)
        except OSError as error:
            raise WriteError(
                f"{store.path} cannot be written ({reason_of(error)}); free the disk and run again."
            ) from None

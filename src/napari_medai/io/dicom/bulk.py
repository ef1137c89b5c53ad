"""Reads the headers of many files that are laid out alike at once, into tables.

The slices of a series differ in a few values: instance UID, number, position, time. Their elements mostly stand at the
same offsets. The first file of such a group is read by `elements.read_elements`; the others are compared with it, all
together, as one array of words, and only what differs is kept of them, as columns of bytes. Files of a layout of their
own are left to the ordinary reader.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_medai.io.dicom.elements import NUMBERS, TEXTS, Found, converted, read_elements
from napari_medai.io.dicom.layout import WORD, Layout, layout_of

# Plain headers of CT and PET slices end within 4 KiB, those of MR slices mostly within 8.
HEADS = (4096, 8192)
# How many files are compared at once: 2 MiB of heads, which stay in the processor's cache.
BATCH = 512
# So many files of a batch that differ in layout from all others are looked at; the rest is read one by one.
_LAYOUTS = 48
# So many layouts are looked for in the batches that follow, those of the most files first.
_KNOWN = 64
# So many words of a layout are compared first.
_MARKS = 8
# Below it a group is not worth a table.
_FEWEST = 4
# Threads hide the delay of network drives. A local disk takes 10 us a file, and threads fight over Python's lock.
_SLOW_S, _THREADS = 2e-4, 8
_CHARSET, _PREAMBLE = 0x00080005, 128
_ALL = np.uint64(0xFFFFFFFFFFFFFFFF)
_FLAGS = os.O_RDONLY | getattr(os, "O_BINARY", 0)

Numbers = NDArray[np.intp]
Words = NDArray[np.uint64]


@dataclass(eq=False)
class Kin:
    """What the files of a table share; others keep here what they derived from the first of them.

    Attributes
    ----------
    varying : frozenset of int
        Tags of the wanted elements whose values differ within the table.
    derived : dict
        Whatever follows from the values that do not differ.
    """

    varying: frozenset[int]
    derived: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Column:
    """The values of one element in the files of a table, as they are written.

    Attributes
    ----------
    vr : str
        Value representation.
    raw : (files, length) array of uint8
        The bytes.
    """

    vr: str
    raw: NDArray[np.uint8]

    def values(self, rows: Any, charset: str) -> list[Any]:
        """As `elements.converted` gives them.

        Parameters
        ----------
        rows : index
            Which rows: a slice or an array of numbers.
        charset : str
            Specific Character Set (0008,0005) of the files.
        """
        raw, length = self.raw[rows].tobytes(), self.raw.shape[1]
        starts = range(0, len(raw), length)
        if self.vr in TEXTS:
            text = raw.decode("latin-1")
            return [text[n : n + length].strip("\0 ") for n in starts]
        if self.vr in NUMBERS:
            letter = NUMBERS[self.vr]
            unpack = struct.Struct(f"<{length // struct.calcsize(letter)}{letter}").unpack_from
            return [unpack(raw, n) for n in starts]
        charsets = {_CHARSET: ("CS", charset.encode("ascii"))} if charset else {}
        return [converted({**charsets, 0: (self.vr, raw[n : n + length])})[0] for n in starts]


@dataclass(frozen=True, eq=False)
class Table:
    """Files that are laid out alike, and what they differ in.

    Attributes
    ----------
    files : (files,) array of int
        Number of each among the paths, in rising order.
    sizes : (files,) array of int
        Length of each in bytes.
    found : Found
        The elements of one of them.
    columns : mapping of int to Column
        The values of the elements in which they differ, by tag.
    kin : Kin
        What they share.
    """

    files: Numbers
    sizes: NDArray[np.int64]
    found: Found
    columns: Mapping[int, Column]
    kin: Kin

    def values(self, tag: int, rows: Any = slice(None)) -> list[Any] | None:
        """The values of an element, one for each row; None if all files have the value in ``found``."""
        column = self.columns.get(tag)
        return None if column is None else column.values(rows, self.found.values.get(_CHARSET, ""))

    def elements(self, rows: Any = slice(None)) -> list[Found]:
        """The elements of some files."""
        count = len(self.files[rows])
        if not self.columns:
            return [self.found] * count
        columns = [self.values(tag, rows) or [] for tag in self.columns]
        shared, made = self.found, []
        for own in zip(*columns, strict=True):
            values = {**shared.values, **dict(zip(self.columns, own, strict=True))}
            # dataclasses.replace takes five times as long
            found = object.__new__(Found)
            found.__dict__.update(shared.__dict__, values=values)
            made.append(found)
        return made

    def part(self, rows: Numbers) -> Table:
        """A table of some of the files, which have what they differ in beyond its columns from the first of them."""
        columns = {tag: Column(column.vr, column.raw[rows]) for tag, column in self.columns.items()}
        same = {tag for tag, column in columns.items() if (column.raw == column.raw[0]).all()}
        found = self.elements(rows[:1])[0]
        left = {tag: column for tag, column in columns.items() if tag not in same}
        return Table(self.files[rows], self.sizes[rows], found, left, Kin(frozenset(left)))


def read_tables(
    paths: Sequence[str],
    wanted: Mapping[int, str],
    own: frozenset[int],
    told: Callable[[int], None],
) -> list[Table]:
    """The headers of the files that are plain and laid out like others.

    Parameters
    ----------
    paths : sequence of str
        Files of any kind.
    wanted : mapping of int to str
        Value representation by tag.
    own : frozenset of int
        Tags of what each file has of its own. Files that differ in other elements, too, are in tables of their own
        where four or more agree.
    told : callable
        Given the number of files that are done from time to time; may raise.

    Returns
    -------
    list of Table
        Files that are in none of them are for the ordinary reader, which says what is wrong with a file.
    """
    left: Numbers = np.arange(len(paths))
    groups: list[_Group] = []
    for length in HEADS:
        more, left = _groups(paths, left, length, wanted, told, sum(group.count for group in groups))
        groups += more
    return [table for group in groups for table in group.tables(wanted, own)]


@dataclass(frozen=True, eq=False)
class _Batch:
    """The beginnings of files, their lengths (0 of those of no use here), and which of the paths they are."""

    heads: Words
    sizes: NDArray[np.int64]
    files: Numbers


@dataclass(frozen=True, eq=False)
class _Part:
    """The files of a batch that are in a group, and those words of their beginnings that differ from the group's."""

    files: Numbers
    sizes: NDArray[np.int64]
    words: Numbers
    values: Words


class _Group:
    """Files of one layout, as they are found: the beginning of the first, and where others differ from it."""

    def __init__(self, layout: Layout, head: Words) -> None:
        self.layout = layout
        self.head = head[: layout.mask.size].copy()
        self.count = 0
        self._differs = np.zeros_like(self.head)
        self._parts: list[_Part] = []
        whole = np.flatnonzero(layout.mask == _ALL)
        self._marks = whole[:: max(1, whole.size // _MARKS)]

    def take(self, batch: _Batch, left: Numbers) -> Numbers:
        """Take the files of this layout out of a batch; the rows of those that are left."""
        # a few words tell most layouts apart
        like = (batch.heads[left[:, None], self._marks] == self.head[self._marks]).all(axis=1)
        like &= batch.sizes[left] >= self.layout.end
        there = batch.heads[left[like], : self.head.size]
        differs = there ^ self.head
        varying = np.bitwise_or.reduce(differs, axis=0)
        if (varying & self.layout.mask).any():
            same = ~(differs & self.layout.mask).any(axis=1)
            there, like[like] = there[same], same
            varying = np.bitwise_or.reduce(differs[same], axis=0)
        mine, words = left[like], np.flatnonzero(varying)
        self.count += mine.size
        self._differs |= varying
        self._parts.append(_Part(batch.files[mine], batch.sizes[mine], words, there[:, words]))
        rest: Numbers = left[~like]
        return rest

    @property
    def files(self) -> Numbers:
        """Of this layout."""
        files: Numbers = np.concatenate([part.files for part in self._parts])
        return files

    def tables(self, wanted: Mapping[int, str], own: frozenset[int]) -> list[Table]:
        """One for the files that differ in nothing but what is their own; others that agree have one, too."""
        head = self.head.tobytes()
        found = read_elements(BytesIO(head), head, len(head), wanted)
        if self.count < _FEWEST or found is None:
            return []
        differs = self._differs.view(np.uint8)
        varying = {t: p for t, p in self.layout.values.items() if differs[p[1] : p[1] + p[2]].any()}
        columns = self._columns(varying)
        if _CHARSET in columns:
            return []
        sizes = np.concatenate([part.sizes for part in self._parts])
        whole = Table(self.files, sizes, found, columns, Kin(frozenset(columns)))
        return [whole] if columns.keys() <= own else _parted(whole, own)

    def _columns(self, places: Mapping[int, tuple[str, int, int]]) -> dict[int, Column]:
        """The values of some elements, by tag."""
        spans = {tag: slice(start // WORD, -(-(start + length) // WORD)) for tag, (_, start, length) in places.items()}
        words = np.unique(np.concatenate([np.r_[span] for span in spans.values()])) if spans else np.empty(0, np.intp)
        rows = np.tile(self.head[words], (self.count, 1))
        done = 0
        for part in self._parts:
            mine = np.isin(part.words, words)
            rows[done : done + part.files.size, np.searchsorted(words, part.words[mine])] = part.values[:, mine]
            done += part.files.size
        raw = rows.view(np.uint8)
        columns = {}
        for tag, (vr, start, length) in places.items():
            at = int(np.searchsorted(words, spans[tag].start)) * WORD + start % WORD
            columns[tag] = Column(vr, raw[:, at : at + length])
        return columns


def _parted(table: Table, own: frozenset[int]) -> list[Table]:
    """A table for each set of files that differ in nothing but what is their own, and one for the rest."""
    others = np.concatenate([c.raw for tag, c in table.columns.items() if tag not in own], axis=1)
    keys, width = others.tobytes(), others.shape[1]
    parts: dict[bytes, list[int]] = {}
    for n in range(len(table.files)):
        parts.setdefault(keys[n * width : (n + 1) * width], []).append(n)
    rest = [n for rows in parts.values() if len(rows) < _FEWEST for n in rows]
    found = [table.part(np.array(rows)) for rows in parts.values() if len(rows) >= _FEWEST]
    return [*found, table.part(np.array(sorted(rest)))] if rest else found


def _groups(
    paths: Sequence[str],
    numbers: Numbers,
    length: int,
    wanted: Mapping[int, str],
    told: Callable[[int], None],
    done: int,
) -> tuple[list[_Group], Numbers]:
    """The groups among some files by so many of their first bytes, and the files whose headers are longer."""
    groups: list[_Group] = []
    longer: list[Numbers] = [np.empty(0, np.intp)]
    read = _Reader(length)
    for start in range(0, len(numbers), BATCH):
        files = numbers[start : start + BATCH]
        batch = _Batch(*read([paths[n] for n in files.tolist()]), files)
        left = np.flatnonzero(batch.sizes)
        for group in groups:
            left = group.take(batch, left) if left.size else left
        alone = 0
        while left.size and alone < _LAYOUTS:
            layout = layout_of(batch.heads[left[0]].tobytes(), wanted)
            if layout is None:
                left, alone = left[1:], alone + 1
                continue
            group = _Group(layout, batch.heads[left[0]])
            left = group.take(batch, left)
            alone += group.count < _FEWEST
            groups.append(group)
        groups.sort(key=lambda group: -group.count)
        longer += [group.files for group in groups if not group.layout.whole]
        groups = [group for group in groups if group.layout.whole][:_KNOWN]
        told(done + sum(group.count for group in groups))
    return groups, np.sort(np.concatenate(longer))


class _Reader:
    """Reads the beginnings of files, on threads where that is slow.

    Parameters
    ----------
    length : int
        How much of each, in bytes.
    """

    def __init__(self, length: int) -> None:
        self.length = length
        self._heads = np.zeros((BATCH, length // WORD), np.uint64)
        self._slow = False

    def __call__(self, paths: Sequence[str]) -> tuple[Words, NDArray[np.int64]]:
        """The beginnings, valid until the next call, and the files' lengths.

        The length is 0 where a file cannot be read or has no preamble, and the beginning is then of no use.
        """
        heads = self._heads[: len(paths)]
        rows = memoryview(heads.data).cast("B")
        views = [rows[n : n + self.length] for n in range(0, len(rows), self.length)]
        start = time.perf_counter()
        if self._slow:
            with ThreadPoolExecutor(_THREADS) as pool:
                sizes = list(pool.map(_read_head, paths, views))
        else:
            sizes = [_read_head(path, view) for path, view in zip(paths, views, strict=True)]
            self._slow = time.perf_counter() - start > _SLOW_S * len(paths)
        found = np.array(sizes, np.int64)
        preamble = heads.view(np.uint32)[:, _PREAMBLE // 4] == np.frombuffer(b"DICM", np.uint32)
        return heads, np.where(preamble, found, 0)


def _read_head(path: str, into: memoryview) -> int:
    """Read the beginning of a file, zeros behind a short one; its length, 0 if it cannot be read."""
    try:
        descriptor = os.open(path, _FLAGS)
    except OSError:
        return 0
    try:
        data = os.read(descriptor, len(into))  # and a copy take less time than readv
        into[: len(data)] = data
        if len(data) < len(into):
            into[len(data) :] = bytes(len(into) - len(data))
        return os.lseek(descriptor, 0, os.SEEK_END)  # a third of the time of fstat
    except OSError:
        return 0
    finally:
        os.close(descriptor)

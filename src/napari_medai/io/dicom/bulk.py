"""Reads the headers of many files that are laid out alike at once.

The slices of a series differ in a few values: instance UID, number, position, time. Their elements mostly stand at the
same offsets. The first file of such a group is read by `elements.read_elements`; the others are compared with it, all
together, as one array of bytes, and only what differs is read from them. Files of a layout of their own are left to
the ordinary reader.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_medai.io.dicom.elements import (
    LONG_VRS,
    NOTED,
    NUMBERS,
    SHORT_VRS,
    TEXTS,
    Found,
    converted,
    read_elements,
)

# Plain headers of CT and PET slices end within 4 KiB, those of MR slices mostly; two pages are read as fast as one.
HEAD = 8192
# How many files are compared at once: 8 MiB of heads.
BATCH = 1024
# Files of one length that differ in layout from all of so many are read one by one.
_LAYOUTS = 48
# Below it a group is not worth comparing.
_FEWEST = 4
_EXPLICIT_LITTLE, _COMPRESSED = b"1.2.840.10008.1.2.1", b"1.2.840.10008.1.2.4."
# Group 2 stands at the beginning.
_META = 512
_PIXELS = (0x7FE00008, 0x7FE00009, 0x7FE00010)
_UNDEFINED, _ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFFFFFF, 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_CHARSET = 0x00080005


@dataclass(eq=False)
class Kin:
    """What the files of a group share; others keep here what they derived from the first of them.

    Attributes
    ----------
    varying : frozenset of int
        Tags of the wanted elements whose values differ within the group.
    derived : dict
        Whatever follows from the values that do not differ.
    """

    varying: frozenset[int]
    derived: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Alike:
    """One file of a group.

    Attributes
    ----------
    found : Found
        Its elements.
    size : int
        Length of the file in bytes.
    kin : Kin
        Of its group.
    """

    found: Found
    size: int
    kin: Kin


@dataclass(frozen=True, eq=False)
class _Layout:
    fixed: NDArray[np.intp]
    """Positions of the bytes that make the layout: tags, representations, lengths."""
    values: Mapping[int, tuple[str, int, int]]
    """Representation, position and length of the wanted values by tag."""
    end: int


def read_alike(paths: Sequence[str], wanted: Mapping[int, str]) -> list[Alike | None]:
    """The headers of the files that are plain and laid out like others.

    Parameters
    ----------
    paths : sequence of str
        Files of any kind.
    wanted : mapping of int to str
        Value representation by tag.

    Returns
    -------
    list of Alike or None
        For each path; None is for the ordinary reader, which says what is wrong with a file.
    """
    answers: list[Alike | None] = [None] * len(paths)
    for start in range(0, len(paths), BATCH):
        part = paths[start : start + BATCH]
        heads = np.zeros((len(part), HEAD), np.uint8)
        sizes = [_read_head(path, head.data) for path, head in zip(part, heads, strict=True)]
        buckets: dict[int, list[int]] = {}
        for n, size in enumerate(sizes):
            if size:
                # uncompressed files of one layout have one length
                packed = heads[n, :_META].tobytes().find(_COMPRESSED) > 0
                buckets.setdefault(0 if packed else size, []).append(n)
        for members in buckets.values():
            for n, found, kin in _groups(heads, np.array(members), min(sizes[m] for m in members), wanted):
                answers[start + n] = Alike(found, sizes[n], kin)
    return answers


def _read_head(path: str, into: memoryview) -> int:
    """Read the beginning; the file's length, 0 if it cannot be read or is no file with a preamble."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    except OSError:
        return 0
    try:
        os.readv(descriptor, [into]) if hasattr(os, "readv") else _read_into(descriptor, into)
        return os.fstat(descriptor).st_size if bytes(into[128:132]) == b"DICM" else 0
    except OSError:
        return 0
    finally:
        os.close(descriptor)


def _read_into(descriptor: int, into: memoryview) -> None:
    data = os.read(descriptor, HEAD)
    into[: len(data)] = data


def _groups(
    heads: NDArray[np.uint8], members: NDArray[np.intp], size: int, wanted: Mapping[int, str]
) -> Iterator[tuple[int, Found, Kin]]:
    tried = 0
    while len(members) >= _FEWEST and tried < _LAYOUTS:
        tried += 1
        first = int(members[0])
        head = heads[first].tobytes()
        layout = _layout(head, size, wanted)
        if layout is None:
            members = members[1:]
            continue
        there = heads[members]
        same = (there[:, layout.fixed] == heads[first, layout.fixed]).all(axis=1)
        group, members = members[same], members[~same]
        if len(group) < _FEWEST:
            continue
        found = read_elements(BytesIO(head), head, size, wanted)
        if found is None:
            continue
        yield from _members(there[same], group, found, layout)


def _members(
    heads: NDArray[np.uint8], group: NDArray[np.intp], first: Found, layout: _Layout
) -> Iterator[tuple[int, Found, Kin]]:
    differs = (heads != heads[0]).any(axis=0)
    varying = {tag: place for tag, place in layout.values.items() if differs[place[1] : place[1] + place[2]].any()}
    if _CHARSET in varying:
        return
    kin = Kin(frozenset(varying))
    charset = first.values.get(_CHARSET, "")
    columns = [_column(heads, place, charset) for place in varying.values()]
    pixels = (first.syntax, first.media_class, first.pixel_tag, first.pixel_offset, first.pixel_length, first.pixel_vr)
    for n, *values in zip(group.tolist(), *columns, strict=True):
        yield n, Found({**first.values, **dict(zip(varying, values, strict=True))}, *pixels), kin


def _column(heads: NDArray[np.uint8], place: tuple[str, int, int], charset: str) -> list[Any]:
    """The values of one element in all files of a group."""
    vr, start, length = place
    raw = np.ascontiguousarray(heads[:, start : start + length]).tobytes()
    parts = [raw[n : n + length] for n in range(0, len(raw), length)]
    if vr in TEXTS:
        return [part.decode("latin-1").strip("\0 ") for part in parts]
    if vr in NUMBERS:
        unpack: Callable[[bytes], tuple[Any, ...]] = struct.Struct(
            f"<{length // struct.calcsize(NUMBERS[vr])}{NUMBERS[vr]}"
        ).unpack_from
        return [unpack(part) for part in parts]
    charsets = {_CHARSET: ("CS", charset.encode("ascii"))} if charset else {}
    return [converted({**charsets, 0: (vr, part)})[0] for part in parts]


def _layout(head: bytes, size: int, wanted: Mapping[int, str]) -> _Layout | None:
    """Where the elements of a plain file stand; None if it is not plain or its pixels begin behind the head."""
    fixed: list[tuple[int, int]] = [(128, 132)]
    values: dict[int, tuple[str, int, int]] = {}
    at, last, syntax = 132, 0, b""
    try:
        while True:
            tag, vr, start, length = _element(head, at)
            if tag <= last:
                return None
            fixed.append((at, start))
            if tag in _PIXELS:
                break
            last = tag
            if length == _UNDEFINED:
                if wanted.get(tag, NOTED) != NOTED or vr == "UN":
                    return None
                at = _sequence(head, start, fixed)
                continue
            if tag == 0x00020010:
                syntax = head[start : start + length].strip(b"\0 ")
            if tag < 0x00030000 and tag not in (0x00020000, 0x00020003):
                fixed.append((start, start + length))  # group 2 says how the rest is to be read
            if wanted.get(tag, NOTED) != NOTED:
                values[tag] = (wanted[tag] if vr == "UN" else vr, start, length)
            at = start + length
    except (struct.error, IndexError, UnicodeError):
        return None
    if syntax != _EXPLICIT_LITTLE and not syntax.startswith(_COMPRESSED):
        return None
    if start > min(len(head), size):
        return None
    return _Layout(np.concatenate([np.arange(a, b) for a, b in fixed]), values, start)


def _element(head: bytes, at: int) -> tuple[int, str, int, int]:
    """Tag, representation, position and length of a value (PS3.5 7.1.2)."""
    group, element, vr, length = struct.unpack_from("<HH2sH", head, at)
    tag = group << 16 | element
    if vr in SHORT_VRS:
        return tag, vr.decode(), at + 8, length
    if vr in LONG_VRS:
        return tag, vr.decode(), at + 12, struct.unpack_from("<I", head, at + 8)[0]
    raise IndexError


def _sequence(head: bytes, at: int, fixed: list[tuple[int, int]], depth: int = 0) -> int:
    """The position behind a sequence of undefined length (PS3.5 7.5); its tags and lengths belong to the layout."""
    if depth > 8:
        raise IndexError
    while True:
        group, element, length = struct.unpack_from("<HHI", head, at)
        tag = group << 16 | element
        fixed.append((at, at + 8))
        at += 8
        if tag == _SEQUENCE_END:
            return at
        if tag != _ITEM:
            raise IndexError
        if length != _UNDEFINED:
            at += length
            continue
        while head[at : at + 4] != b"\xfe\xff\x0d\xe0":
            _, vr, start, inner = _element(head, at)
            fixed.append((at, start))
            if inner == _UNDEFINED and vr == "UN":
                raise IndexError
            at = _sequence(head, start, fixed, depth + 1) if inner == _UNDEFINED else start + inner
        fixed.append((at, at + 8))
        at += 8

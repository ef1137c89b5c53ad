"""Where the elements of a plain DICOM file stand: what files that are laid out alike have in common."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from napari_medai.io.dicom.elements import LONG_VRS, NOTED, SHORT_VRS

WORD = 8
_EXPLICIT_LITTLE, _COMPRESSED = b"1.2.840.10008.1.2.1", b"1.2.840.10008.1.2.4."
_PIXELS = (0x7FE00008, 0x7FE00009, 0x7FE00010)
_UNDEFINED, _ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFFFFFF, 0xFFFEE000, b"\xfe\xff\x0d\xe0", 0xFFFEE0DD
_SYNTAX = 0x00020010
# Of group 2, which says how the rest is to be read, these say nothing of it: its length, and the instance.
_OWN_META = (0x00020000, 0x00020003)
_DEEPEST = 8


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the elements of a file stand.

    Attributes
    ----------
    mask : (words,) array of uint64
        All bits set in the bytes that make the layout: tags, representations, lengths, and how the file is encoded.
    values : mapping of int to (str, int, int)
        Representation, position and length of the wanted values by tag.
    end : int
        Where the pixels begin.
    whole : bool
        Whether the pixels begin within the bytes that were looked at; if not, this is the layout of these bytes.
    """

    mask: NDArray[np.uint64]
    values: Mapping[int, tuple[str, int, int]]
    end: int
    whole: bool


def layout_of(head: bytes, wanted: Mapping[int, str]) -> Layout | None:
    """The layout of a file in explicit little endian.

    Parameters
    ----------
    head : bytes
        Its beginning, preamble included.
    wanted : mapping of int to str
        Value representation by tag.

    Returns
    -------
    Layout or None
        None if the file is not plain: in another encoding, with one of the wanted sequences, or against the standard.
    """
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
                return Layout(_mask(fixed, start), values, start, True) if _is_plain(syntax) else None
            last = tag
            if length == _UNDEFINED:
                if wanted.get(tag, NOTED) != NOTED or vr == "UN":
                    return None
                at = _sequence(head, start, fixed)
                continue
            if tag == _SYNTAX:
                syntax = head[start : start + length].strip(b"\0 ")
            if tag < 0x00030000 and tag not in _OWN_META:
                fixed.append((start, start + length))
            if wanted.get(tag, NOTED) != NOTED:
                values[tag] = (wanted[tag] if vr == "UN" else vr, start, length)
            at = start + length
    except struct.error:  # the head ends here
        return Layout(_mask(fixed, len(head)), {}, len(head), False) if _is_plain(syntax) else None
    except (IndexError, UnicodeError):
        return None


def _is_plain(syntax: bytes) -> bool:
    return syntax == _EXPLICIT_LITTLE or syntax.startswith(_COMPRESSED)


def _mask(fixed: list[tuple[int, int]], end: int) -> NDArray[np.uint64]:
    mask = np.zeros(-(-end // WORD) * WORD, np.uint8)
    for start, stop in fixed:
        mask[start:stop] = 255
    return mask.view(np.uint64)


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
    if depth > _DEEPEST:
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
        while head[at : at + 4] != _ITEM_END:
            _, vr, start, inner = _element(head, at)
            fixed.append((at, start))
            if inner == _UNDEFINED and vr == "UN":
                raise IndexError
            at = _sequence(head, start, fixed, depth + 1) if inner == _UNDEFINED else start + inner
        fixed.append((at, at + 8))
        at += 8

"""Siemens mosaics: the slices of one volume laid out as tiles of one large image."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from napari_medai.io.dicom.headers import Header, numbers, text, value

Vector = NDArray[np.float64]

# The protocol contradicts the image header where slices lie further off than this part of their distance.
_OFF_SLICES = 0.5
_CSA_IMAGE, _CSA_SERIES, _MATRIX, _TILES = 0x00291010, 0x00291020, 0x0051100B, 0x0019100A


@dataclass(frozen=True, eq=False)
class Mosaic:
    """Where the tiles lie.

    Attributes
    ----------
    rows, columns : int
        Size of a tile.
    tiles : tuple of (int, int)
        First row and column of each tile.
    positions : tuple of (3,) arrays
        Centre of each tile's first pixel, (x, y, z) in mm, LPS.
    off_mm : float
        How far the first or last slice lies from where the scan protocol has it; 0 if that is not known.
    """

    rows: int
    columns: int
    tiles: tuple[tuple[int, int], ...]
    positions: tuple[Vector, ...]
    off_mm: float = 0.0


def mosaic_of(header: Header, protocol: bool = False) -> Mosaic | None:
    """The layout of a mosaic, or None if the file is not one or does not say enough.

    The header's position is that of the large image, centred on the slice: it is moved back to the
    first pixel of the first tile. From there the slices run along the slice normal of the CSA image
    header, as dcm2niix has them run, so that what others made on its images fits. Where the header has
    no such normal, the slices run towards the head, and the scan protocol gives the order of the tiles.

    Parameters
    ----------
    header : Header
        Of the file.
    protocol : bool
        Whether the slices lie where the scan protocol in the CSA series header has them, if it says so.
    """
    if "MOSAIC" not in header.texts("ImageType"):
        return None
    position, orientation = header.numbers("ImagePositionPatient"), header.numbers("ImageOrientationPatient")
    spacing = header.numbers("PixelSpacing")
    rows, columns = header.integer("Rows"), header.integer("Columns")
    image, series = _bytes(header, _CSA_IMAGE), _bytes(header, _CSA_SERIES)
    count = _count(header, image, series)
    if len(position) != 3 or len(orientation) != 6 or len(spacing) != 2 or count < 1:
        return None
    if not all(map(math.isfinite, (*position, *orientation, *spacing))):
        return None
    across = math.ceil(math.sqrt(count))
    if rows % across or columns % across:
        return None
    height, width = rows // across, columns // across
    along_row, along_column = np.array(orientation[:3]), np.array(orientation[3:])
    step = header.number("SpacingBetweenSlices") or header.number("SliceThickness")
    if step is None or not math.isfinite(step) or step == 0:
        return None
    first = (
        np.array(position)
        + along_row * spacing[1] * (columns - width) / 2
        + along_column * spacing[0] * (rows - height) / 2
    )
    centre = first + (along_row * spacing[1] * width + along_column * spacing[0] * height) / 2
    normal, stated = _normal(np.cross(along_row, along_column), image)
    last = centre + normal * abs(step) * (count - 1)
    ends = _protocol_ends(series, count)
    off = 0.0 if ends is None else _apart(ends, (centre, last))
    off = off if off > abs(step) * _OFF_SLICES else 0.0
    way = normal if ends is None else _protocol_way(normal, centre, ends)
    positions = tuple(first + (way if protocol and off else normal) * abs(step) * n for n in range(count))
    if not protocol and not stated and float(way @ normal) < 0:
        # The order of the tiles is the protocol's; the block of slices begins where the header says.
        positions = positions[::-1]
    tiles = tuple((n // across * height, n % across * width) for n in range(count))
    return Mosaic(height, width, tiles, positions, off)


def mosaic_findings(headers: Iterable[Header], protocol: bool = False) -> list[str]:
    """How far the mosaics of a series lie from where the scan protocol has their slices.

    Parameters
    ----------
    headers : iterable of Header
        Of the series; the first mosaic speaks for all.
    protocol : bool
        As in `mosaic_of`.
    """
    for header in headers:
        if header.shared is not None and "frame" in header.shared:
            continue  # like a slice that was no mosaic
        found = mosaic_of(header)
        if found is not None and found.off_mm:
            if protocol:
                return [
                    f"The slices lie where the scan protocol has them, {found.off_mm:.0f} mm from the image header's."
                ]
            return [
                f"The slices lie up to {found.off_mm:.0f} mm from where the scan protocol has them (they run along the "
                "normal in the image header, as dcm2niix has them run); open with the repair 'mosaic' to follow the "
                "protocol."
            ]
        if found is not None:
            break
    return []


def _bytes(header: Header, tag: int) -> bytes:
    found = value(header.fields, tag)
    return found if isinstance(found, bytes) else b""


def _count(header: Header, image: bytes, series: bytes) -> int:
    stated = value(header.fields, _TILES)
    if isinstance(stated, bytes) and len(stated) == 2:
        return int.from_bytes(stated, "little")
    if numbers(header.fields, _TILES):
        return int(numbers(header.fields, _TILES)[0])
    from_image = csa_numbers(image, b"NumberOfImagesInMosaic")
    if from_image:
        return int(from_image[0])
    stated_size = re.search(rb"sSliceArray\.lSize\s*=\s*(\d{1,4})\b", series)
    if stated_size:
        return int(stated_size[1])
    # The matrix of one tile ("80*80", "80p*80") tells how many fit, blank ones at the end included.
    matrix = re.match(r"(\d{1,4})\D*\*(\d{1,4})", text(header.fields, _MATRIX))
    if matrix and int(matrix[1]) and int(matrix[2]):
        return (header.integer("Rows") // int(matrix[1])) * (header.integer("Columns") // int(matrix[2]))
    return 0


def _normal(normal: Vector, image: bytes) -> tuple[Vector, bool]:
    # dcm2niix takes the direction towards the head where the header has no SliceNormalVector; it looks
    # neither at ProtocolSliceNumber nor at sSliceArray.ucImageNumb to place a slice.
    stated = csa_numbers(image, b"SliceNormalVector")
    towards = np.array(stated if len(stated) == 3 else (0.0, 0.0, 1.0))
    return (-normal if float(normal @ towards) < 0 else normal), len(stated) == 3


def _protocol_way(normal: Vector, centre: Vector, ends: tuple[Vector, Vector]) -> Vector:
    """The normal, turned to where the protocol's slices run from the first tile, which is one of their ends."""
    near = min((0, 1), key=lambda n: float(np.linalg.norm(centre - ends[n])))
    return normal if float(normal @ (ends[1 - near] - ends[near])) >= 0 else -normal


def _protocol_ends(series: bytes, count: int) -> tuple[Vector, Vector] | None:
    """Centres of the first and last slice of the protocol, if it is the one of these slices."""
    size = re.search(rb"sSliceArray\.lSize\s*=\s*(\d{1,4})\b", series)
    if count < 2 or size is None or int(size[1]) != count:
        return None
    first, last = _slice_position(series, 0), _slice_position(series, count - 1)
    return None if first is None or last is None else (first, last)


def _apart(some: tuple[Vector, Vector], others: tuple[Vector, Vector]) -> float:
    # ends against ends, whichever is called the first
    pairs = (others, others[::-1])
    return min(max(float(np.linalg.norm(a - b)) for a, b in zip(some, pair, strict=True)) for pair in pairs)


def _slice_position(protocol: bytes, index: int) -> Vector | None:
    # sSliceArray.asSlice[0].sPosition.dSag = -1.5; a coordinate of zero is left out
    prefix = rb"sSliceArray\.asSlice\[%d\]\.sPosition\.d" % index
    found = [re.search(prefix + axis + rb"\s*=\s*([-+.\deE]{1,40})", protocol) for axis in (b"Sag", b"Cor", b"Tra")]
    if not any(found):
        return None
    try:
        return np.array([float(match[1]) if match else 0.0 for match in found])
    except ValueError:
        return None


def csa_numbers(csa: bytes, name: bytes) -> tuple[float, ...]:
    """Values of one element of a CSA header ("SV10" layout: 84 bytes of description, then 16 + n bytes per item)."""
    at = csa.find(name + b"\0")
    if not csa.startswith(b"SV10") or at < 0 or at + 84 > len(csa):
        return ()
    count = int.from_bytes(csa[at + 76 : at + 80], "little")
    found, at = [], at + 84
    for _ in range(min(count, 32)):
        length = int.from_bytes(csa[at + 4 : at + 8], "little")
        if at + 16 + length > len(csa):
            break
        word = csa[at + 16 : at + 16 + length].strip(b"\0 ")
        at += 16 + (length + 3) // 4 * 4
        if word:
            try:
                found.append(float(word))
            except ValueError:
                break
    return tuple(found)

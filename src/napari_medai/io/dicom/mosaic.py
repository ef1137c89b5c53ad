"""Siemens mosaics: the slices of one volume laid out as tiles of one large image."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from napari_medai.io.dicom.headers import Header, numbers, text, value

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
    """

    rows: int
    columns: int
    tiles: tuple[tuple[int, int], ...]
    positions: tuple[NDArray[np.float64], ...]


def mosaic_of(header: Header) -> Mosaic | None:
    """The layout of a mosaic, or None if the file is not one or does not say enough.

    The header's position is that of the large image, centred on the slice: it is moved back to the
    first pixel of the first tile. Number of slices and direction come from the private CSA headers
    (the image header, or the protocol text in the series header).
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
    normal = _towards_next(np.cross(along_row, along_column), centre, count, image, series)
    tiles = tuple((n // across * height, n % across * width) for n in range(count))
    return Mosaic(height, width, tiles, tuple(first + normal * abs(step) * n for n in range(count)))


def _bytes(header: Header, tag: int) -> bytes:
    found = value(header.fields, tag)
    return found if isinstance(found, bytes) else b""


def _count(header: Header, image: bytes, series: bytes) -> int:
    stated = value(header.fields, _TILES)
    if isinstance(stated, bytes) and len(stated) == 2:
        return int.from_bytes(stated, "little")
    if numbers(header.fields, _TILES):
        return int(numbers(header.fields, _TILES)[0])
    from_image = _csa_numbers(image, b"NumberOfImagesInMosaic")
    if from_image:
        return int(from_image[0])
    protocol = re.search(rb"sSliceArray\.lSize\s*=\s*(\d{1,4})\b", series)
    if protocol:
        return int(protocol[1])
    # The matrix of one tile ("80*80", "80p*80") tells how many fit, blank ones at the end included.
    matrix = re.match(r"(\d{1,4})\D*\*(\d{1,4})", text(header.fields, _MATRIX))
    if matrix and int(matrix[1]) and int(matrix[2]):
        return (header.integer("Rows") // int(matrix[1])) * (header.integer("Columns") // int(matrix[2]))
    return 0


def _towards_next(
    normal: NDArray[np.float64], centre: NDArray[np.float64], count: int, image: bytes, series: bytes
) -> NDArray[np.float64]:
    """The normal, turned towards the second tile.

    The tiles may run against the cross product of row and column, and against the numbers of the
    slices in the protocol (images numbered from the top). The protocol knows where its first and
    last slice lie, and one of them is the first tile.
    """
    ends = [_slice_position(series, n) for n in (0, count - 1)]
    if count > 1 and ends[0] is not None and ends[1] is not None:
        way = ends[1] - ends[0]
        if np.linalg.norm(centre - ends[1]) < np.linalg.norm(centre - ends[0]):
            way = -way
        return normal if float(normal @ way) >= 0 else -normal
    stated = _csa_numbers(image, b"SliceNormalVector")
    if len(stated) == 3 and float(normal @ np.array(stated)) < 0:
        normal = -normal
    number = _csa_numbers(image, b"ProtocolSliceNumber")
    return -normal if number and number[0] > 0 else normal


def _slice_position(protocol: bytes, index: int) -> NDArray[np.float64] | None:
    # sSliceArray.asSlice[0].sPosition.dSag = -1.5; a coordinate of zero is left out
    prefix = rb"sSliceArray\.asSlice\[%d\]\.sPosition\.d" % index
    found = [re.search(prefix + axis + rb"\s*=\s*([-+.\deE]{1,40})", protocol) for axis in (b"Sag", b"Cor", b"Tra")]
    if not any(found):
        return None
    try:
        return np.array([float(match[1]) if match else 0.0 for match in found])
    except ValueError:
        return None


def _csa_numbers(csa: bytes, name: bytes) -> tuple[float, ...]:
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

"""Looks into JPEG, JPEG-LS and JPEG 2000 streams without decoding them."""

from __future__ import annotations

# Markers without a length (ITU-T T.81 table B.1): fill bytes, TEM, restarts, start and end of image
_ALONE = frozenset((0xFF, 0x01, *range(0xD0, 0xD9)))
# Frame headers: all SOFn but the tables DHT (C4), JPG (C8) and DAC (CC), and JPEG-LS's SOF55 (ITU-T T.87)
_FRAMES = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})
# A picture cut into more tiles than this is damage: each costs memory before it is decoded.
_MOST_TILES = 65535


def stream_frame(data: bytes) -> tuple[int, int, int, int] | None:
    """Precision in bits, rows, columns and components that a compressed stream states.

    Parameters
    ----------
    data : bytes
        A JPEG, JPEG-LS or JPEG 2000 stream.

    Returns
    -------
    tuple of 4 ints or None
        None if the stream has no well-formed headers.
    """
    return jpeg2000_frame(data) if data[:2] == b"\xff\x4f" else jpeg_frame(data)


def jpeg2000_frame(data: bytes) -> tuple[int, int, int, int] | None:
    """As `stream_frame`, from the SIZ marker of a JPEG 2000 codestream (ITU-T T.800 A.5.1)."""
    if data[2:4] != b"\xff\x51" or len(data) < 43:
        return None
    x, y, x0, y0, tile_x, tile_y, tile_x0, tile_y0 = (int.from_bytes(data[n : n + 4], "big") for n in range(8, 40, 4))
    components, precision = int.from_bytes(data[40:42], "big"), (data[42] & 0x7F) + 1
    if x <= x0 or y <= y0 or not tile_x or not tile_y or x < tile_x0 or y < tile_y0:
        return None
    if -(-(x - tile_x0) // tile_x) * -(-(y - tile_y0) // tile_y) > _MOST_TILES:
        return None
    return precision, y - y0, x - x0, components


def jpeg_frame(data: bytes) -> tuple[int, int, int, int] | None:
    """As `stream_frame`, from the first frame header of a JPEG stream (ITU-T T.81 B.2.2), up to its scan."""
    if data[:2] != b"\xff\xd8":
        return None
    frame: tuple[int, int, int, int] | None = None
    components: set[int] = set()
    at = 2
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker in _ALONE:
            at += 1 if marker == 0xFF else 2
            continue
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        body = data[at + 4 : at + 2 + length]
        if length < 2 or len(body) < length - 2:
            return None
        if marker in _FRAMES:
            if frame is not None or len(body) < 6 or len(body) != 6 + 3 * body[5]:
                return None
            frame = (body[0], int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big"), body[5])
            components = set(body[6::3])
        elif marker == 0xDA:
            # a scan names components of the frame
            if frame is None or not body or len(body) != 4 + 2 * body[0] or not set(body[1:-3:2]) <= components:
                return None
            return frame
        at += 2 + length
    return None

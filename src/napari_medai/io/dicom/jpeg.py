"""Looks into a JPEG stream without decoding it."""

from __future__ import annotations

# Markers without a length (ITU-T T.81 table B.1): fill bytes, TEM, restarts, start and end of image
_ALONE = frozenset((0xFF, 0x01, *range(0xD0, 0xD9)))
# Frame headers: all SOFn but the tables DHT (C4), JPG (C8) and DAC (CC)
_FRAMES = frozenset(set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC})


def jpeg_frame(data: bytes) -> tuple[int, int, int, int] | None:
    """Precision in bits, rows, columns and components of the first frame header (ITU-T T.81 B.2.2).

    Parameters
    ----------
    data : bytes
        A JPEG stream.

    Returns
    -------
    tuple of 4 ints or None
        None if the stream has no well-formed headers, tables and scan.
    """
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

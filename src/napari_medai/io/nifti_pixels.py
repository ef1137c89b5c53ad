"""The pixels of a NIfTI file, left on the disk until they are used."""

from __future__ import annotations

import math
import threading
import zlib
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import dask.array as da
import numpy as np
from isal import igzip, igzip_lib
from numpy.typing import NDArray

from napari_medai.core.errors import ReadError
from napari_medai.io.lazy import Whole, wrapped
from napari_medai.io.nifti_wide import WIDE_BYTES, from_wide

GZIP_MAGIC = b"\x1f\x8b"
# A chunk is whole planes of about this size: few tasks for a scan of time points, and a plane of a
# chunk costs no more than itself, because dask pushes the slicing down to `StoredPixels`.
CHUNK_BYTES = 8 << 20
# Decoded at a time: a quarter faster than all at once, because each piece is copied while it is in the cache.
PIECE_BYTES = 1 << 20
# Decoded before the first of them is in its place: on a busy machine each of the two threads waits at times.
PIECES_AHEAD = 8
# Read behind the pixels for the sake of the checksum; a stream that goes on longer is not followed.
_REST_BYTES = 16 << 20
# deflate cannot shrink by more than 1032
_MOST_RATIO = 1100
Part = Literal["magnitude", "phase", "real", "imaginary"]
PARTS: Mapping[str, Callable[[Any], Any]] = {
    "magnitude": np.abs,
    "phase": np.angle,
    "real": np.real,
    "imaginary": np.imag,
}
# what a damaged gzip stream raises, depending on where it breaks
_BROKEN: tuple[Any, ...] = (EOFError, zlib.error, igzip_lib.IsalError, OSError)


@dataclass(eq=False)
class StoredPixels:
    """An array in a file, with the look of an array for dask: slicing reads and scales only that part.

    A compressed file is decoded once, at the first use, and kept while the volume lives.

    Attributes
    ----------
    path : Path
        ``.nii``, ``.nii.gz`` or ``.img``.
    offset : int
        First byte of the pixels, in the decoded stream.
    stored : numpy dtype
        As in the file, with its byte order.
    shape : tuple of int
        Slowest axis first: NIfTI's dimensions reversed.
    slope, inter : float
        Pixel = slope * stored + inter.
    dtype : numpy dtype
        Of the pixels that come out.
    compressed : bool
        Whether the file is gzip.
    part : {"magnitude", "phase", "real", "imaginary"}
        What is taken of complex pixels.
    big : bool
        Whether the highest byte of a 128-bit number comes first.
    trailing : int
        Bytes found behind the pixels of a compressed file when it was decoded.
    """

    path: Path
    offset: int
    stored: np.dtype[Any]
    shape: tuple[int, ...]
    slope: float
    inter: float
    dtype: np.dtype[Any]
    compressed: bool
    part: Part = "magnitude"
    big: bool = False
    trailing: int = 0
    _decoded: NDArray[Any] | None = field(default=None, repr=False)
    _lock: Any = field(default_factory=threading.Lock, repr=False)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def nbytes_stored(self) -> int:
        """Bytes of the pixels as stored, not compressed."""
        return math.prod(self.shape) * self.stored.itemsize

    def __getstate__(self) -> dict[str, Any]:
        # workers of a cluster decode for themselves; a lock does not travel
        return {key: value for key, value in self.__dict__.items() if key not in ("_decoded", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _decoded=None, _lock=threading.Lock())

    def __getitem__(self, key: Any) -> NDArray[Any]:
        return self.convert(self.raw()[key])

    def raw(self) -> NDArray[Any]:
        """Values as stored: a memory map, or the decoded stream.

        Raises
        ------
        ReadError
            The file went away, is shorter than its header says, or its compression is damaged.
        """
        if not self.compressed:
            try:
                mapped: NDArray[Any] = np.memmap(self.path, self.stored, "r", self.offset, self.shape)
            except (OSError, ValueError) as error:
                raise ReadError(f"{self.path} can no longer be read as when it was opened: {error}") from error
            return mapped
        with self._lock:
            decoded: NDArray[Any] = self._decoded if self._decoded is not None else self._decode()
            self._decoded = decoded
            return decoded

    def whole(self) -> NDArray[Any]:
        """All pixels, scaled, in memory that nobody else has.

        A stream that was not decoded yet is not kept as stored: a second copy of a large volume takes as long as
        decoding it, where memory is given out slowly.

        Raises
        ------
        ReadError
            As `raw`.
        """
        if self.compressed and self._decoded is None:
            # which of two kinds the wide numbers are is told from all of them
            return self.convert(self._decode()) if self.stored.kind == "V" else self._decode(scaled=True)
        raw = self.raw()
        return _apart(self.convert(raw), raw)

    def at(self, first: int) -> NDArray[Any]:
        """As `whole`, what stands at one index of the first axis."""
        raw = self._decode() if self.compressed and self._decoded is None else self.raw()
        return _apart(self.convert(raw[first]), raw)

    def _decode(self, scaled: bool = False) -> NDArray[Any]:
        """The decoded stream: values as stored, or those that come out."""
        dtype = self.dtype if scaled else self.stored
        values = self.convert if scaled else _as_stored
        try:
            pixels = np.empty(self.shape, dtype)
        except (MemoryError, ValueError) as error:
            size = math.prod(self.shape) * dtype.itemsize / 1e9
            raise ReadError(
                f"{self.path} needs {size:.1f} GB of memory once it is decoded, more than there is. Store it as .nii "
                "without gzip: then only what is looked at is read."
            ) from error
        wanted = self.nbytes_stored
        try:
            try:
                with igzip.open(self.path, "rb") as file:
                    done = self._fill(pixels.reshape(-1), values, file.read)
            except igzip.BadGzipFile as error:
                if not _is_no_gzip(error):
                    raise
                done = self._fill(pixels.reshape(-1), values, Members(self.path).read)
                self.trailing = max(1, self.trailing)
        except _BROKEN as error:
            raise ReadError(
                f"{self.path} is damaged: {wanted} bytes of pixels cannot be decoded to their end ({error}). "
                "Copy or export the file again."
            ) from error
        if done < wanted:
            raise truncated(self.path, self.offset + wanted, self.offset + done)
        return pixels

    def _fill(
        self, pixels: NDArray[Any], values: Callable[[NDArray[Any]], NDArray[Any]], read: Callable[[int], bytes]
    ) -> int:
        """Decode into the pixels, one after the other; the bytes that were found for them.

        Goes on to the end of the stream, where the checksum is. Pieces are decoded on a thread of their own, while
        others are scaled and the system finds memory for them.
        """
        skipped, done, self.trailing = 0, 0, 0
        while skipped < self.offset and (piece := read(min(PIECE_BYTES, self.offset - skipped))):
            skipped += len(piece)
        item, wanted = self.stored.itemsize, self.nbytes_stored
        step = PIECE_BYTES // item * item
        sizes = (min(step, wanted - start) for start in range(0, wanted, step))
        with ThreadPoolExecutor(1, thread_name_prefix="medai-inflate") as pool:
            coming = deque(pool.submit(read, size) for size in islice(sizes, PIECES_AHEAD))
            while coming and (piece := coming.popleft().result()):
                coming.extend(pool.submit(read, size) for size in islice(sizes, 1))
                block = np.frombuffer(piece, self.stored, len(piece) // item)
                pixels[done // item : done // item + len(block)] = values(block)
                done += len(piece)
        while self.trailing < _REST_BYTES and (piece := read(PIECE_BYTES)):
            self.trailing += len(piece)
        return done

    def convert(self, block: NDArray[Any]) -> NDArray[Any]:
        """Scaled values in the machine's byte order."""
        if block.dtype.kind == "V":
            block = from_wide(block, self.stored.itemsize // WIDE_BYTES, self.big)
        if block.dtype.kind == "c":
            if self.slope != 1 or self.inter != 0:  # both parts are scaled: nifti1.h, DATA SCALING
                block = block * self.slope + complex(self.inter, self.inter)
            return np.asarray(PARTS[self.part](block), dtype=self.dtype)
        if self.slope == 1 and self.inter == 0:
            return np.asarray(block, dtype=self.dtype)
        if self.dtype.kind in "iu":
            whole = block.astype(self.dtype)
            whole *= self.dtype.type(self.slope)
            whole += self.dtype.type(self.inter)
            return whole
        scaled = np.empty(block.shape, self.dtype)
        # plane by plane, so that the double precision of the sum never takes the whole volume's memory
        planes = zip(scaled, block, strict=True) if block.ndim > 2 else [(scaled[...], block)]
        with np.errstate(over="ignore", invalid="ignore"):  # stored infinities and the like stay what they are
            for target, plane in planes:
                target[...] = plane * np.float64(self.slope) + np.float64(self.inter)
        return scaled


def truncated(path: Path, wanted: int, found: int) -> ReadError:
    """The error for a file that is shorter than its header says."""
    return ReadError(
        f"{path} is truncated: its header describes {wanted} bytes, the file holds {found}. "
        "Copy or export the file again."
    )


class Members:
    """The members of a gzip file up to something that is no gzip: slower than `igzip`, which refuses such files."""

    def __init__(self, path: Path) -> None:
        self._left = path.read_bytes()
        self._inflate: Any = None

    def read(self, count: int) -> bytes:
        """So many bytes; fewer at the end."""
        pieces = []
        while count and (piece := self._read_some(count)):
            pieces.append(piece)
            count -= len(piece)
        return b"".join(pieces)

    def _read_some(self, count: int) -> bytes:
        while True:
            if self._inflate is None:
                self._left = self._left.lstrip(b"\0")
                if not self._left.startswith(GZIP_MAGIC):
                    return b""
                self._inflate = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
            piece = bytes(self._inflate.decompress(self._left, count))
            self._left = b""
            if self._inflate.eof:
                self._left, self._inflate = self._inflate.unused_data, None
            elif not piece:
                raise EOFError("the compressed stream ends too early")
            if piece:
                return piece


def read_head(path: Path, count: int) -> bytes:
    """The first bytes of a file, decoded if it is gzip.

    Raises
    ------
    ReadError
        The file cannot be read or its compression is damaged from the start.
    """
    try:
        with path.open("rb") as plain:
            head = plain.read(count)
        if not head.startswith(GZIP_MAGIC):
            return head
        try:
            with igzip.open(path, "rb") as file:
                return bytes(file.read(count))
        except igzip.BadGzipFile as error:
            if not _is_no_gzip(error):
                raise
            return Members(path).read(count)
    except _BROKEN as error:
        raise ReadError(f"{path} cannot be read: {error}") from error


def _is_no_gzip(error: BaseException) -> bool:
    """Whether a stream ended well and something else stands behind it."""
    return isinstance(error, igzip.BadGzipFile) and str(error).startswith("Not a gzipped file")


def stated_length(path: Path) -> tuple[int, int]:
    """Length of a file, decoded, and what it is known modulo of; 0 if it is known exactly.

    The last four bytes of a gzip file hold its decoded length modulo 2^32 (RFC 1952, 2.3.1).
    """
    with path.open("rb") as file:
        if file.read(2) != GZIP_MAGIC:
            return path.stat().st_size, 0
        file.seek(-4, 2)
        return int.from_bytes(file.read(4), "little"), 2**32


def check_length(pixels: StoredPixels, findings: list[str]) -> None:
    """Compare the length of the file with what the header says, without decoding it where possible.

    Where the length at the end of a gzip file differs from the header's, which it does in files of several members
    and in those with padding too, it is decoded.

    Raises
    ------
    ReadError
        The file is truncated or damaged.
    """
    wanted = pixels.offset + pixels.nbytes_stored
    length, modulus = stated_length(pixels.path)
    if not modulus:
        if length < wanted:
            raise truncated(pixels.path, wanted, length)
        extra = length - wanted
    else:
        # an absurd header is found out before memory is asked for
        if wanted > pixels.path.stat().st_size * _MOST_RATIO + 1024:
            raise truncated(pixels.path, wanted, length)
        if length != wanted % modulus:
            pixels.raw()
        extra = pixels.trailing
    if extra:
        findings.append("the file goes on behind the pixels that the header describes; the rest was left out")


def lazy(pixels: StoredPixels) -> Any:
    """A dask array over the file, in chunks of whole planes."""
    colour = 1 if pixels.shape[-1] in (3, 4) and pixels.stored == np.uint8 else 0
    chunks = list(pixels.shape)
    room = max(1, CHUNK_BYTES // max(1, pixels.dtype.itemsize))
    for axis in range(pixels.ndim - 2 - colour):
        inner = math.prod(pixels.shape[axis + 1 :])
        chunks[axis] = max(1, min(pixels.shape[axis], room // inner))
    array = da.from_array(
        pixels, chunks=tuple(chunks), name=False, asarray=True, meta=np.empty((0,) * pixels.ndim, pixels.dtype)
    )
    return wrapped(array, Whole(pixels, _whole))


def _whole(pixels: StoredPixels, first: int | None) -> NDArray[Any]:
    return pixels.whole() if first is None else pixels.at(first)


def _as_stored(block: NDArray[Any]) -> NDArray[Any]:
    return block


def _apart(found: NDArray[Any], raw: NDArray[Any]) -> NDArray[Any]:
    """Values in memory of their own: what is kept for others must not be written to."""
    return found.copy() if np.shares_memory(found, raw) else found

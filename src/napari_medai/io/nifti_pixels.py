"""The pixels of a NIfTI file, left on the disk until they are used."""

from __future__ import annotations

import threading
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
from isal import igzip, igzip_lib
from numpy.typing import NDArray

from napari_medai.core.errors import ReadError

GZIP_MAGIC = b"\x1f\x8b"
# A chunk is whole planes of about this size: few tasks for a scan of time points, and a plane of a
# chunk costs no more than itself, because dask pushes the slicing down to `StoredPixels`.
CHUNK_BYTES = 8 << 20
# Decoded at a time: a quarter faster than all at once, because each piece is copied while it is in the cache.
PIECE_BYTES = 1 << 20
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
    """

    path: Path
    offset: int
    stored: np.dtype[Any]
    shape: tuple[int, ...]
    slope: float
    inter: float
    dtype: np.dtype[Any]
    compressed: bool
    _decoded: NDArray[Any] | None = field(default=None, repr=False)
    _lock: Any = field(default_factory=threading.Lock, repr=False)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def nbytes_stored(self) -> int:
        """Bytes of the pixels as stored, not compressed."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.stored.itemsize

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

    def _decode(self) -> NDArray[Any]:
        pixels = np.empty(self.shape, self.stored)
        view = pixels.data.cast("B")
        done = 0
        try:
            with igzip.open(self.path, "rb") as file:
                skip(file, self.offset)
                while done < len(view):
                    count = file.readinto(view[done : done + PIECE_BYTES])
                    if not count:
                        break
                    done += count
                while file.read(PIECE_BYTES):  # the checksum is compared at the end of the stream
                    pass
        except _BROKEN as error:
            raise ReadError(
                f"{self.path} is damaged: decoding stopped after {done} of {len(view)} bytes of pixels "
                f"({error}). Copy or export the file again."
            ) from error
        if done < len(view):
            raise truncated(self.path, self.offset + len(view), self.offset + done)
        return pixels

    def convert(self, block: NDArray[Any]) -> NDArray[Any]:
        """Scaled values in the machine's byte order."""
        if block.dtype.kind == "c":
            # magnitude, as scanners show complex images
            return np.asarray(np.abs(block), dtype=self.dtype)
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
        for target, plane in planes:
            target[...] = plane * np.float64(self.slope) + np.float64(self.inter)
        return scaled


def truncated(path: Path, wanted: int, found: int) -> ReadError:
    """The error for a file that is shorter than its header says."""
    return ReadError(
        f"{path} is truncated: its header describes {wanted} bytes, the file holds {found}. "
        "Copy or export the file again."
    )


def skip(file: Any, count: int) -> None:
    """Read and drop ``count`` bytes of a stream."""
    while count > 0:
        dropped = len(file.read(min(count, PIECE_BYTES)))
        if not dropped:
            return
        count -= dropped


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
        with igzip.open(path, "rb") as file:
            return bytes(file.read(count))
    except _BROKEN as error:
        raise ReadError(f"{path} cannot be read: {error}") from error


def check_length(pixels: StoredPixels) -> None:
    """Compare the length of the file with what the header says, without decoding it where possible.

    The last four bytes of a gzip file hold its decoded length modulo 2^32 (RFC 1952, 2.3.1). Where they
    differ from the header's length, which files of several members or with padding do too, it is decoded.

    Raises
    ------
    ReadError
        The file is truncated or damaged.
    """
    wanted = pixels.offset + pixels.nbytes_stored
    size = pixels.path.stat().st_size
    if not pixels.compressed:
        if size < wanted:
            raise truncated(pixels.path, wanted, size)
        return
    with pixels.path.open("rb") as file:
        file.seek(max(0, size - 4))
        length = int.from_bytes(file.read(4), "little")
    # deflate cannot shrink by more than 1032, so an absurd header is found out before memory is asked for
    if wanted > size * 1100 + 1024:
        raise truncated(pixels.path, wanted, length)
    if length != wanted % 2**32:
        pixels.raw()


def lazy(pixels: StoredPixels) -> Any:
    """A dask array over the file, in chunks of whole planes."""
    colour = 1 if pixels.shape[-1] in (3, 4) and pixels.stored == np.uint8 else 0
    chunks = list(pixels.shape)
    room = max(1, CHUNK_BYTES // max(1, pixels.dtype.itemsize))
    for axis in range(pixels.ndim - 2 - colour):
        inner = int(np.prod(pixels.shape[axis + 1 :], dtype=np.int64))
        chunks[axis] = max(1, min(pixels.shape[axis], room // inner))
    return da.from_array(
        pixels, chunks=tuple(chunks), name=False, asarray=True, meta=np.empty((0,) * pixels.ndim, pixels.dtype)
    )

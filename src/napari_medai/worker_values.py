"""What a worker is given and gives back: pickles, and the large arrays of them beside them in files.

Both ends are ours and trust each other; for what a package's program gives see `napari_medai.engine.isolated_values`.
Arrays are written, never mapped for writing: on a full disk that is an error and not the end of the process.
"""

from __future__ import annotations

import io
import os
import pickle
import shutil
import struct
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import cloudpickle
import numpy as np
import psutil
from numpy.typing import NDArray

# Smaller arrays go with the pickle
_LARGE = 1 << 16
# Written at once; between two the window has its turn
_BLOCK_BYTES = 1 << 23
_LENGTH = struct.Struct("=Q")
# What objects raise that cannot be pickled
UNPICKLABLE = (TypeError, ValueError, AttributeError, NotImplementedError, RuntimeError, pickle.PicklingError)


@dataclass
class Parcel:
    """A value on its way to another process.

    Attributes
    ----------
    pickled : bytes
        The value without its arrays.
    items : list
        Of each array ``("file", path)``, ``("lazy", pickle)``, or ``("back", n)``: the n-th that the other side gave.
    """

    pickled: bytes = b""
    items: list[tuple[str, Any]] = field(default_factory=list)


class Packing:
    """Makes parcels; the arrays' files are in the first folder that has room for them.

    Parameters
    ----------
    folders : sequence of Path
        Private folders, the quickest first; the last is taken where none has room.
    given : iterable, optional
        Arrays that came from the other side: they go back by their numbers.
    """

    def __init__(self, folders: Iterable[Path], given: Iterable[Any] = ()) -> None:
        self._folders = tuple(folders)
        self._given = {id(array): n for n, array in enumerate(given)}
        self.arrays: list[Any] = []  # by number, and alive as long as their ids are looked at
        self._numbers: dict[int, int] = {}
        self._as_files: set[int] = set()
        self._parcel = Parcel()

    def pack(self, value: Any, as_file: Any = None) -> Parcel:
        """The parcel of a value.

        Parameters
        ----------
        value : object
            Anything that can be pickled, with numpy and dask arrays anywhere in it.
        as_file : array-like, optional
            Part of the value; computed into a file, block by block, instead of being pickled.

        Raises
        ------
        OSError
            There is no room for the arrays.
        TypeError, ValueError, AttributeError, NotImplementedError, RuntimeError, PicklingError
            Something cannot be pickled.
        """
        if as_file is not None:
            self._as_files.add(id(as_file))
        self._parcel.pickled = self._pickle(value)
        return self._parcel

    def _pickle(self, value: Any) -> bytes:
        file = io.BytesIO()
        _Pickler(file, self).dump(value)
        return file.getvalue()

    def number(self, value: Any) -> int | None:
        """The number of an array that does not go into the pickle; None for everything else."""
        if id(value) in self._numbers:
            return self._numbers[id(value)]
        large = type(value) in (np.ndarray, np.memmap) and value.nbytes >= _LARGE and not value.dtype.hasobject
        lazy = _is_dask(value)
        if not (large or lazy or id(value) in self._as_files):
            return None
        number = self._numbers[id(value)] = len(self.arrays)
        self.arrays.append(value)
        self._parcel.items.append(("", None))
        if id(value) in self._given:
            item: tuple[str, Any] = ("back", self._given[id(value)])
        elif large or id(value) in self._as_files:
            item = ("file", self._written(value, number))
        else:
            whole = getattr(value, "whole", None)  # how a `PlanesArray` is read
            item = ("lazy", self._pickle((value.dask, value.name, value.chunks, value.dtype, value._meta, whole)))
        self._parcel.items[number] = item
        return number

    def _written(self, array: Any, number: int) -> Path:
        nbytes = int(np.prod(array.shape, dtype=np.int64)) * array.dtype.itemsize
        path = roomy(self._folders, nbytes) / f"{number}.npy"
        write_array(path, array)
        return path


class Unpacking:
    """Reads a parcel.

    Parameters
    ----------
    parcel : Parcel
        From the other side.
    mapped : bool
        Leave arrays in their files and read what is looked at; what is written stays in memory. Otherwise they are
        read at once. The files go in any case, where the system lets go of what is still read.
    given : sequence
        `Packing.arrays` of the parcel that this one answers.
    """

    def __init__(self, parcel: Parcel, *, mapped: bool, given: Iterable[Any] = ()) -> None:
        self._parcel, self._mapped, self._given = parcel, mapped, list(given)
        self.arrays: dict[int, Any] = {}

    def unpack(self) -> Any:
        """The value."""
        return _Unpickler(io.BytesIO(self._parcel.pickled), self).load()

    def array(self, number: int) -> Any:
        """The array with a number."""
        if number not in self.arrays:
            kind, what = self._parcel.items[number]
            if kind == "back":
                self.arrays[number] = self._given[what]
            elif kind == "file":
                self.arrays[number] = self._read(what)
            else:
                *parts, meta, whole = _Unpickler(io.BytesIO(what), self).load()
                self.arrays[number] = _dask_array(parts, meta, whole)
        return self.arrays[number]

    def _read(self, path: Path) -> NDArray[Any]:
        # writable, as arrays are in the other process: torch warns of others
        array: NDArray[Any] = np.load(path, mmap_mode="c" if self._mapped else None, allow_pickle=False)
        with suppress(OSError):  # Windows keeps what is mapped; it goes with its folder
            path.unlink()
        return array.view(np.ndarray)


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    def __init__(self, file: IO[bytes], packing: Packing) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self._packing = packing

    def persistent_id(self, value: Any) -> int | None:
        return self._packing.number(value)


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: IO[bytes], unpacking: Unpacking) -> None:
        super().__init__(file)
        self._unpacking = unpacking

    def persistent_load(self, number: Any) -> Any:
        return self._unpacking.array(number)


def _is_dask(value: Any) -> bool:
    """Whether it is a dask array, without importing dask: that takes a second."""
    dask = sys.modules.get("dask.array")
    return dask is not None and isinstance(value, dask.Array)


def _dask_array(parts: list[Any], meta: Any, whole: Any) -> Any:
    import dask.array as da

    plain = da.Array(*parts, meta)
    if whole is None:
        return plain
    from napari_medai.io.lazy import wrapped

    return wrapped(plain, whole)


def roomy(folders: Iterable[Path], nbytes: int) -> Path:
    """The first folder whose file system has twice the room, where memory counts as room; else the last."""
    *quick, last = folders
    for folder in quick:
        with suppress(OSError):
            if min(shutil.disk_usage(folder).free, psutil.virtual_memory().available // 2) > 2 * nbytes:
                return folder
    return last


def write_array(path: Path, array: Any) -> None:
    """Write an array as .npy, some of its first axis at a time; lazy ones are computed on the way.

    Raises
    ------
    OSError
        There is no room for it.
    """
    dtype = np.dtype(array.dtype)
    with path.open("wb") as file:
        _header(file, array.shape, dtype)
        if not array.shape:
            file.write(np.asarray(array).tobytes())
            return
        plane = int(np.prod(array.shape[1:], dtype=np.int64)) * dtype.itemsize
        step = max(1, _BLOCK_BYTES // max(1, plane))
        for start in range(0, array.shape[0], step):
            block = np.ascontiguousarray(array[start : start + step])
            file.write(block.reshape(-1).view(np.uint8).data)


def reserve(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], nbytes: int) -> None:
    """A .npy file of zeros that can be mapped: its room is taken, for what is mapped and has none ends the process.

    Raises
    ------
    OSError
        There is no room for it.
    """
    with path.open("wb") as file:
        _header(file, shape, dtype)
        if hasattr(os, "posix_fallocate"):
            file.flush()
            os.posix_fallocate(file.fileno(), file.tell(), nbytes)
            return
        for start in range(0, nbytes, _BLOCK_BYTES):
            file.write(bytes(min(_BLOCK_BYTES, nbytes - start)))


def _header(file: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": tuple(shape)}
    np.lib.format.write_array_header_1_0(file, header)


def send(write: Any, message: Any) -> None:
    """Write one message by a function that takes bytes."""
    data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    write(_LENGTH.pack(len(data)) + data)


def receive(stream: IO[bytes]) -> Any:
    """The next message.

    Raises
    ------
    EOFError
        The other side has gone.
    """
    length = stream.read(_LENGTH.size)
    if len(length) < _LENGTH.size:
        raise EOFError
    (size,) = _LENGTH.unpack(length)
    data = stream.read(size)
    if len(data) < size:
        raise EOFError
    return pickle.loads(data)

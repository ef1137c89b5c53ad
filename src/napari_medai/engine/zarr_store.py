"""Labels in a Zarr folder, which a later run of the same kind can go on with.

The folder is an OME-Zarr image in the making: a group, the array ``0`` in it, and a record, `RECORD`, of which run
it belongs to and how many of its planes are finished. The record is replaced as a whole, after the chunks that it
speaks of were synchronised to the disk: what is half-written never looks finished, after a power cut either.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import threading
import uuid
import weakref
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from napari_medai.core.errors import ReadError, WriteError, reason_of
from napari_medai.engine.scratch import lock, owner, unlock

# In the folder: whose run it is and how far
RECORD = ".medai-run.json"
LEVEL = "0"
# Of the record; another one is begun anew
_VERSION = 1
# Voxels of a chunk, along the sweep and across it. Eight planes, because slabs of any depth then rewrite little of what
# is there (300 x 512 x 512 in slabs of 13 planes: 0.6 s, with 32 planes 2.4 s), and a plane in any direction is read
# in 4 to 30 ms.
_CHUNK = {3: (8, 256), 2: (512, 1024)}


class ZarrStore:
    """Labels in a Zarr folder; made anew, or gone on with if it is of the same run.

    Parameters
    ----------
    path : path
        The folder. One that holds something else is left alone and refused.
    shape : sequence of int
        Of the labels.
    dtype : dtype
        Of the labels.
    identity : mapping of str to str
        What makes the run: fingerprint of the image, hash of the model, parameters, plan. With another one the folder
        is begun anew; with an empty one always.
    sweep : int
        Axis along which planes are finished; chunks are thin along it.
    chunks : sequence of int, optional
        Default: eight planes of 256 x 256 voxels, in 2-D 512 rows of 1,024.
    keeps : object, optional
        Held on to by whoever holds `labels`: the owner of a temporary folder.

    Attributes
    ----------
    begun_anew : bool
        Whether an earlier run of the same kind was there and had finished nothing.

    Raises
    ------
    WriteError
        The folder is something else or is written to by another run, the disk is full, or there is no permission.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        shape: Sequence[int],
        dtype: DTypeLike,
        identity: Mapping[str, str] | None = None,
        *,
        sweep: int = 0,
        chunks: Sequence[int] = (),
        keeps: object = None,
    ) -> None:
        self.path = Path(path).expanduser().absolute()
        self.shape, self.dtype = tuple(int(n) for n in shape), np.dtype(dtype)
        self.chunks = tuple(chunks) or _chunks(self.shape, sweep)
        self.begun_anew = False
        self._finished = 0
        self._lock = threading.Lock()
        self._unsynced: set[tuple[int, ...]] = set()
        self._keeps = keeps
        self._identity = {
            "version": str(_VERSION),
            "shape": str(self.shape),
            "dtype": self.dtype.str,
            "chunks": str(self.chunks),
            **(identity or {"run": uuid.uuid4().hex}),
        }
        with _told(self.path):
            _claim(self.path)
            self._release = weakref.finalize(self, unlock, _alone(self.path))
            try:
                record = _claim(self.path)  # as it is now that nobody else changes it
                found = self._found(record)
                self._array: Any = self._made() if found is None else found
            except BaseException:
                self._release()
                raise

    def _found(self, record: Mapping[str, Any]) -> Any:
        """The array of an earlier run, if it is of this one and has begun."""
        import zarr

        finished = record.get("finished", 0)
        if record.get("identity") != self._identity:
            return None
        if not isinstance(finished, int) or finished < 1:
            self.begun_anew = True
            return None
        try:
            array = zarr.open_array(self.path / LEVEL, mode="r+")
        except (OSError, ValueError, LookupError, TypeError):
            return None
        if tuple(array.shape) != self.shape or array.dtype != self.dtype or tuple(array.chunks) != self.chunks:
            return None
        self._finished = finished
        return array

    def _made(self) -> Any:
        """A new array; nothing but what a run made is removed for it."""
        import zarr

        self._write_record()  # says first that nothing is finished
        if (self.path / LEVEL).exists():
            shutil.rmtree(self.path / LEVEL)
        (self.path / "zarr.json").unlink(missing_ok=True)
        group = zarr.open_group(self.path, mode="a")
        return group.create_array(
            LEVEL,
            shape=self.shape,
            dtype=self.dtype,
            chunks=self.chunks,
            dimension_names=list("tczyx"[-len(self.shape) :]) if len(self.shape) in (2, 3) else None,
            fill_value=0,
            config={"write_empty_chunks": False},
        )

    @property
    def finished(self) -> int:
        """See `Store`."""
        return self._finished

    @property
    def array(self) -> Any:
        """See `Store`; a Zarr array."""
        return self._array

    @property
    def held_bytes(self) -> int:
        """See `Store`."""
        return 0

    def write(self, where: tuple[slice, ...], labels: NDArray[Any]) -> None:
        """See `Store.write`.

        Raises
        ------
        WriteError
            The disk is full, or the system refused; what is finished stays.
        """
        region = region_of(where, labels, self.shape, self.dtype)
        touched = product(*(range(s.start // c, -(-s.stop // c)) for s, c in zip(region, self.chunks, strict=True)))
        with self._lock, _told(self.path):
            self._array[region] = labels.astype(self.dtype, copy=False)
            self._unsynced.update(touched)

    def mark(self, planes: int) -> None:
        """See `Store.mark`.

        Raises
        ------
        WriteError
            As `write`; an earlier mark stays.
        """
        with self._lock, _told(self.path):
            self._sync()
            self._finished = max(self._finished, planes)
            self._write_record()

    def labels(self) -> Any:
        """See `Store.labels`; in the chunks of the folder."""
        import dask.array as da

        stored = _Stored(self._array, self.path, self._keeps)
        labels = da.from_array(stored, chunks=self.chunks, name=f"medai-labels-{uuid.uuid4().hex}")
        if self._keeps is None:
            _FOLDERS[labels.name] = self.path
        return labels

    def close(self) -> None:
        """See `Store.close`. The record stays, so that whoever was killed before the folder took its name can do so."""
        self._release()

    def _sync(self) -> None:
        for chunk in sorted(self._unsynced):
            # what holds only zeros has no file
            with contextlib.suppress(FileNotFoundError):
                _synced(self.path.joinpath(LEVEL, "c", *map(str, chunk)))
        self._unsynced.clear()

    def _write_record(self) -> None:
        content = {
            "written_by": "napari-medai",
            "identity": self._identity,
            "finished": self._finished,
        }
        temporary = self.path / f"{RECORD}.{secrets.token_hex(4)}"
        try:
            temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
            _synced(temporary)
            os.replace(temporary, self.path / RECORD)
        finally:
            temporary.unlink(missing_ok=True)


# name of a dask array that is a whole store -> its folder
_FOLDERS: dict[str, Path] = {}


def folder_of(array: Any) -> Path | None:
    """The folder whose labels an array is, all of them as they are; None of any other array."""
    return _FOLDERS.get(getattr(array, "name", ""))


def forget(folder: Path) -> None:
    """Remove what a run keeps beside its labels: the folder is a file like others now."""
    for path in folder.glob(".medai-*"):
        path.unlink()


def discard(folder: Path) -> None:
    """Remove the folder of a run; one that is something else stays."""
    if (folder / RECORD).exists():
        with contextlib.suppress(WriteError):
            _claim(folder)
            shutil.rmtree(folder)


class _Stored:
    """A Zarr array for dask; holds on to the temporary folder that it lies in."""

    def __init__(self, array: Any, folder: Path, keeps: object = None) -> None:
        self.array, self.folder, self.keeps = array, folder, keeps or owner(folder)
        self.shape, self.dtype, self.ndim = array.shape, array.dtype, array.ndim

    def __getitem__(self, key: Any) -> NDArray[Any]:
        found = np.asarray(self.array[key])
        # looked at last: a chunk that is not there is zeros to Zarr, and so would be a folder that went meanwhile
        if not (self.folder / LEVEL / "zarr.json").exists():
            raise ReadError(
                "The labels lay in a folder that is gone: whoever ran the model has ended, or it was moved. "
                "Open the file that was written, or run again."
            )
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        return (_Stored, (self.array, self.folder))  # only the process that owns the folder holds on to it


def region_of(
    where: tuple[slice, ...], labels: NDArray[Any], shape: tuple[int, ...], dtype: np.dtype[Any]
) -> tuple[slice, ...]:
    """The slices with their ends; checks that the labels fit them."""
    spread = (*where, *(slice(None),) * (len(shape) - len(where)))
    region = tuple(slice(*s.indices(n)[:2]) for s, n in zip(spread, shape, strict=True))
    size = tuple(max(0, s.stop - s.start) for s in region)
    if any(s.step not in (None, 1) for s in where) or size != labels.shape:
        raise ValueError(f"labels of shape {labels.shape} for a region of {size} voxels")
    if not np.can_cast(labels.dtype, dtype) and labels.size:
        limits, low, high = np.iinfo(dtype), int(labels.min()), int(labels.max())
        if low < limits.min or high > limits.max:
            raise ValueError(f"labels {low}..{high} do not fit {dtype}")
    return region


def _chunks(shape: tuple[int, ...], sweep: int) -> tuple[int, ...]:
    thin, wide = _CHUNK.get(len(shape), _CHUNK[3])
    spatial = range(max(0, len(shape) - 3), len(shape))
    edges = [wide if n in spatial else 1 for n in range(len(shape))]
    edges[sweep] = min(edges[sweep], thin)
    return tuple(max(1, min(edge, n)) for edge, n in zip(edges, shape, strict=True))


def finished_in(folder: Path) -> int:
    """How many planes of a run are finished; 0 of a folder that no run has made."""
    try:
        finished = json.loads((folder / RECORD).read_bytes())["finished"]
    except (OSError, ValueError, LookupError, TypeError):
        return 0
    return finished if isinstance(finished, int) else 0


def _claim(path: Path) -> dict[str, Any]:
    """Make the folder, or read the record of the run that made it; refuse one that no run has made."""
    if path.exists() and not path.is_dir():
        raise WriteError(f"{path} is a file; give the name of a folder that is not there yet.")
    path.mkdir(exist_ok=True)
    try:
        record = json.loads((path / RECORD).read_bytes())
        if isinstance(record, dict) and record.get("written_by") == "napari-medai":
            return record
    except FileNotFoundError:
        # a run that was killed in its first moment leaves a record without its name
        if all(entry.name.startswith(f"{RECORD}.") for entry in path.iterdir()):
            return {}
    except ValueError:
        pass
    raise WriteError(f"{path} holds something that no unfinished run has left; remove it, or give another name.")


def _alone(path: Path) -> int:
    """Keep other runs out of the folder."""
    try:
        return lock(path)
    except BlockingIOError as error:
        raise WriteError(f"Another run is writing to {path}; wait for it, stop it, or give another name.") from error


def _synced(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """What the system refuses becomes a `WriteError`."""
    try:
        yield
    except OSError as error:
        kept = "What is finished there is kept; the same run again goes on from it."
        raise WriteError(
            f"The labels cannot be written to {path}: {reason_of(error)}. "
            + (kept if finished_in(path) else "Nothing was finished.")
        ) from error.with_traceback(None)  # Zarr's thread keeps it, and with it whatever the frames hold

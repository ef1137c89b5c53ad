"""A dask array over planes on disk that is read quickly as a whole, and ahead of whoever leafs through it.

Dask reads a chunk at a time and then copies all chunks into one array; a scan of 300 slices is read in a third of
that time straight into its place, on threads (benchmarks/io.py). Single planes are kept for a while, and those that
come next are decoded while one is looked at.
"""

from __future__ import annotations

import os
import threading
import uuid
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Protocol

import dask.array as da
import numpy as np
import psutil
from numpy.typing import NDArray

THREADS = max(2, min(4, os.cpu_count() or 2))
# Decoded planes that are kept, of all scans together: a tenth of what is there, and 256 slices of 512 x 512 at most
# times eight, so that a scan of 1,000 slices can be leafed through forth and back.
CACHE_BYTES = min(1 << 30, psutil.virtual_memory().total // 10)
# How many planes are decoded ahead of the one that was asked for: half a second of a wheel that turns quickly.
AHEAD = 6


class Source(Protocol):
    """What is read: planes (t, z) of one shape and type.

    A source that can decode into memory that is there already has ``fill(t, z, out)`` too.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    ndim: int

    def plane(self, t: int, z: int) -> NDArray[Any]:
        """Decode one plane."""

    def __getitem__(self, key: Any) -> NDArray[Any]:
        """Decode what an index touches."""


def spread(key: Any, ndim: int) -> tuple[Any, ...]:
    """A basic index with one entry for each axis: what is left out, or stands for several, is whole."""
    key = key if isinstance(key, tuple) else (key,)
    if Ellipsis in key:
        at = key.index(Ellipsis)
        key = (*key[:at], *[slice(None)] * (ndim - len(key) + 1), *key[at + 1 :])
    return (*key, *[slice(None)] * (ndim - len(key)))


class PlaneCache:
    """Decoded planes, the ones used last, up to a number of bytes; each is decoded once, however many ask for it."""

    def __init__(self, limit: int = CACHE_BYTES) -> None:
        self.limit = limit
        self.bytes = 0
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, NDArray[Any]] = OrderedDict()
        self._under_way: dict[Hashable, Future[NDArray[Any]]] = {}
        self._queue: deque[tuple[Hashable, Callable[[], NDArray[Any]]]] = deque(maxlen=2 * AHEAD)
        self._threads = 0

    def get(self, key: Hashable, decode: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        """The plane of a key, decoded now if it is not kept; not to be written to.

        Raises
        ------
        MedaiError
            What ``decode`` raises.
        """
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
            waiting = self._under_way.get(key)
            if waiting is None:
                mine: Future[NDArray[Any]] = Future()
                self._under_way[key] = mine
        if waiting is not None:
            return waiting.result()
        try:
            plane = decode()
        except BaseException as error:
            with self._lock:
                del self._under_way[key]
            mine.set_exception(error)
            raise
        plane.flags.writeable = False
        with self._lock:
            del self._under_way[key]
            self._kept[key] = plane
            self.bytes += plane.nbytes
            while self.bytes > self.limit and self._kept:
                self.bytes -= self._kept.popitem(last=False)[1].nbytes
        mine.set_result(plane)
        return plane

    def ahead(self, key: Hashable, decode: Callable[[], NDArray[Any]]) -> None:
        """Decode a plane in the background, if nothing newer comes; what goes wrong is said when it is asked for."""
        with self._lock:
            if key in self._kept or key in self._under_way:
                return
            self._queue.append((key, decode))
            if self._threads >= THREADS - 1:
                return
            self._threads += 1
        threading.Thread(target=self._work, name="medai-ahead", daemon=True).start()

    def _work(self) -> None:
        # the thread ends with its queue, so that none is left when a program ends
        while True:
            with self._lock:
                if not self._queue:
                    self._threads -= 1
                    return
                key, decode = self._queue.popleft()
            try:
                self.get(key, decode)
            except Exception:  # noqa: BLE001  whoever needs the plane is told then
                continue

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._queue.clear()
            self._kept.clear()
            self.bytes = 0


CACHE = PlaneCache()


class Leafed:
    """A source whose single planes are kept and decoded ahead, for dask to index.

    Parameters
    ----------
    source : Source
        The planes.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.shape, self.dtype, self.ndim = source.shape, source.dtype, source.ndim
        self.name = uuid.uuid4().hex
        self._last = (0, -2)

    def __getitem__(self, key: Any) -> NDArray[Any]:
        key = key if isinstance(key, tuple) else (key,)
        if len(key) < 2 or any(k is Ellipsis or k is None for k in key):
            return self.source[key]
        ts, zs = (np.arange(size)[k] for size, k in zip(self.shape[:2], key[:2], strict=True))
        if ts.size != 1 or zs.size != 1:
            return self.source[key]
        t, z = int(ts.item()), int(zs.item())
        plane = self._plane(t, z)
        self._look_ahead(t, z)
        found = np.array(plane[tuple(key[2:])])
        return found.reshape(ts.shape + zs.shape + found.shape)

    def _plane(self, t: int, z: int) -> NDArray[Any]:
        return CACHE.get((self.name, t, z), lambda: self.source.plane(t, z))

    def _look_ahead(self, t: int, z: int) -> None:
        (before_t, before_z), self._last = self._last, (t, z)
        step = (t - before_t, z - before_z)
        if step not in ((0, 1), (0, -1), (1, 0), (-1, 0)):
            return
        for n in range(1, AHEAD + 1):
            there = (t + n * step[0], z + n * step[1])
            if not (0 <= there[0] < self.shape[0] and 0 <= there[1] < self.shape[1]):
                return
            CACHE.ahead((self.name, *there), lambda at=there: self.source.plane(*at))  # type: ignore[misc]


@dataclass(frozen=True, eq=False)
class Whole:
    """How an array that shows all planes is read.

    Attributes
    ----------
    source : object
        What is read.
    reads : function
        ``reads(source, first)`` gives all of it in memory, or what stands at one index of its first axis.
    time : int or None
        The only index of the first axis that is shown, without this axis.
    views : tuple of functions
        What turns the array as read into the one that is shown: flips and permutations.
    """

    source: Any
    reads: Callable[[Any, int | None], NDArray[Any]]
    time: int | None = None
    views: tuple[Callable[[NDArray[Any]], NDArray[Any]], ...] = ()

    def read(self) -> NDArray[Any]:
        """The whole array in memory."""
        found = self.reads(self.source, self.time)
        for view in self.views:
            found = view(found)
        return found

    def seen(self, view: Callable[[NDArray[Any]], NDArray[Any]]) -> Whole:
        """With one more view."""
        return replace(self, views=(*self.views, view))


class PlanesArray(da.Array):  # type: ignore[misc]
    """A dask array that becomes a numpy array without dask, as long as it shows all planes.

    Permutations, flips and the choice of one t keep that; everything else gives a plain dask array, as does
    sending it to another process.
    """

    __slots__ = ()

    @property
    def whole(self) -> Whole:
        """How it is read."""
        found: Whole = self.__dict__["whole"]
        return found

    def __array__(self, dtype: Any = None, copy: bool | None = None, **_: Any) -> NDArray[Any]:
        array = self.whole.read()
        return array if dtype is None else array.astype(dtype, copy=False)

    def __getitem__(self, index: Any) -> Any:
        result = super().__getitem__(index)
        key = index if isinstance(index, tuple) else (index,)
        chosen, rest = (key[0], (slice(None), *key[1:])) if key else (None, ())
        if self.whole.time is None and not self.whole.views and isinstance(chosen, int) and self._shows_all(rest):
            at = replace(self.whole, time=chosen % self.shape[0])
            return wrapped(result, at.seen(lambda array: array[rest[1:]]))
        return wrapped(result, self.whole.seen(lambda array: array[index])) if self._shows_all(key) else result

    def _shows_all(self, key: tuple[Any, ...]) -> bool:
        return all(
            (isinstance(k, slice) and k.start is None and k.stop is None and k.step in (None, 1, -1))
            or (isinstance(k, int) and self.shape[n] == 1)
            for n, k in enumerate(key)
        )

    def transpose(self, *axes: Any) -> Any:
        """See `dask.array.Array.transpose`."""
        result = super().transpose(*axes)
        return result if result is self else wrapped(result, self.whole.seen(lambda array: array.transpose(*axes)))


def wrapped(array: da.Array, whole: Whole) -> PlanesArray:
    """A dask array with a quicker way to be read whole."""
    made = PlanesArray(array.dask, array.name, array.chunks, array.dtype, array._meta)
    made.__dict__["whole"] = whole
    return made


def lazy(source: Source) -> PlanesArray:
    """The array (t, z, y, x[, s]) of a source, one chunk for each plane.

    Parameters
    ----------
    source : Source
        The planes.
    """
    chunks = (1, 1, *source.shape[2:])
    leafed = Leafed(source)
    meta = np.empty((0,) * source.ndim, source.dtype)
    array = da.from_array(leafed, chunks=chunks, name=f"planes-{leafed.name}", meta=meta)
    return wrapped(array, Whole(source, read_all))


def read_all(source: Source, time: int | None = None) -> NDArray[Any]:
    """All planes of a source in memory, decoded on threads straight into their places.

    Parameters
    ----------
    source : Source
        The planes.
    time : int, optional
        Only these; the axis t goes.

    Raises
    ------
    MedaiError
        A plane cannot be decoded.
    """
    times = range(source.shape[0]) if time is None else (time,)
    found = np.empty((len(times), *source.shape[1:]), source.dtype)
    fill = getattr(source, "fill", None)
    # whoever is done takes the next plane, so that nobody waits for a thread that the system held up
    left = deque((a, t, z) for a, t in enumerate(times) for z in range(source.shape[1]))

    def taken() -> tuple[int, int, int] | None:
        try:
            return left.popleft()
        except IndexError:
            return None

    def some() -> None:
        try:
            while (place := taken()) is not None:
                a, t, z = place
                if fill is None:
                    found[a, z] = source.plane(t, z)
                else:
                    fill(t, z, found[a, z])
        except BaseException:
            left.clear()  # nothing of it will be given out
            raise

    threads = min(THREADS, len(left))
    if threads < 2:
        some()
    else:
        with ThreadPoolExecutor(threads, thread_name_prefix="medai-read") as pool:
            for done in [pool.submit(some) for _ in range(threads)]:
                done.result()
    return found if time is None else found[0]

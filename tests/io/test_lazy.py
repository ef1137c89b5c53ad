"""Planes as one array: read whole on threads, kept, and decoded ahead."""

from __future__ import annotations

import pickle
import threading
import time
from typing import Any

import dask.array as da
import numpy as np
import pytest
from numpy.typing import NDArray

from napari_medai.core.errors import ReadError
from napari_medai.io import lazy
from napari_medai.io.lazy import PlaneCache, PlanesArray, read_all


class Numbered:
    """2 x 9 planes of 3 x 4 pixels that count up; notes what was decoded."""

    def __init__(self, times: int = 2, broken: int = -1) -> None:
        self.values = np.arange(times * 9 * 12, dtype=np.int16).reshape(times, 9, 3, 4)
        self.shape, self.dtype, self.ndim = self.values.shape, self.values.dtype, 4
        self.broken = broken
        self.decoded: list[tuple[int, int]] = []

    def plane(self, t: int, z: int) -> NDArray[Any]:
        self.decoded.append((t, z))
        if z == self.broken:
            raise ReadError("This plane is damaged.")
        return self.values[t, z].copy()

    def __getitem__(self, key: Any) -> NDArray[Any]:
        return self.values[key]


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch: pytest.MonkeyPatch) -> PlaneCache:
    cache = PlaneCache()
    monkeypatch.setattr(lazy, "CACHE", cache)
    return cache


def test_the_whole_is_read_without_dask(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Numbered()
    array = lazy.lazy(source)
    monkeypatch.setattr(da.Array, "__array__", lambda *_: pytest.fail("dask computed it"))
    np.testing.assert_array_equal(np.asarray(array), source.values)
    assert sorted(source.decoded) == [(t, z) for t in range(2) for z in range(9)]


@pytest.mark.parametrize(
    "view",
    [
        lambda a: a[0],
        lambda a: a[-1],
        lambda a: a[1, :, ::-1],
        lambda a: a[0, ::-1].transpose(2, 0, 1),
        lambda a: a[1][::-1].transpose((1, 2, 0))[:, ::-1, ::-1],
        lambda a: a.transpose(0, 3, 2, 1)[:, ::-1],
        lambda a: a[(slice(None), slice(None))],
        lambda a: a.T,
    ],
)
def test_flips_and_permutations_of_the_whole(view: Any) -> None:
    source = Numbered()
    shown = view(lazy.lazy(source))
    assert isinstance(shown, PlanesArray)
    np.testing.assert_array_equal(np.asarray(shown), view(source.values))
    np.testing.assert_array_equal(shown.compute(), view(source.values))


def test_one_time_point_leaves_the_others_alone() -> None:
    source = Numbered()
    np.asarray(lazy.lazy(source)[1])
    assert {t for t, _ in source.decoded} == {1}


def test_a_single_time_point_loses_its_axis() -> None:
    source = Numbered(times=1)
    shown = lazy.lazy(source)[(0, slice(None))][::-1]
    assert isinstance(shown, PlanesArray)
    np.testing.assert_array_equal(np.asarray(shown), source.values[0, ::-1])


@pytest.mark.parametrize("view", [lambda a: a[0, 2:5], lambda a: a[:, 3], lambda a: a[1, :, 1:, ::2], lambda a: a + 1])
def test_parts_are_plain_dask_and_decode_what_they_show(view: Any) -> None:
    source = Numbered()
    shown = view(lazy.lazy(source))
    assert not isinstance(shown, PlanesArray)
    np.testing.assert_array_equal(np.asarray(shown), view(source.values))


def test_another_process_gets_a_dask_array() -> None:
    source = Numbered()
    again = pickle.loads(pickle.dumps(lazy.lazy(source)[0]))
    assert type(again) is da.Array
    np.testing.assert_array_equal(np.asarray(again), source.values[0])


def test_what_fails_is_told_whichever_way_it_is_read() -> None:
    array = lazy.lazy(Numbered(broken=4))
    with pytest.raises(ReadError, match="damaged"):
        np.asarray(array)
    for _ in range(2):  # a failure is not kept
        with pytest.raises(ReadError, match="damaged"):
            np.asarray(array[0, 4])
    assert np.asarray(array[0, 3]).shape == (3, 4)


def test_a_plane_is_decoded_once_and_what_is_given_may_be_written_to() -> None:
    source = Numbered()
    array = lazy.lazy(source)
    first = np.asarray(array[0, 7])
    first[:] = 0
    np.testing.assert_array_equal(np.asarray(array[0, 7]), source.values[0, 7])
    assert source.decoded == [(0, 7)]


@pytest.mark.parametrize(("start", "step"), [(0, 1), (8, -1)])
def test_the_next_planes_are_decoded_while_one_is_looked_at(start: int, step: int) -> None:
    source = Numbered()
    array = lazy.lazy(source)
    for n in range(2):
        np.asarray(array[0, start + n * step])
    wanted = {(0, start + n * step) for n in range(2 + lazy.AHEAD)}
    deadline = time.monotonic() + 5
    while set(source.decoded) != wanted and time.monotonic() < deadline:
        time.sleep(0.01)
    assert sorted(source.decoded) == sorted(wanted)


def test_a_jump_decodes_nothing_ahead() -> None:
    source = Numbered()
    array = lazy.lazy(source)
    for z in (0, 5, 2):
        np.asarray(array[0, z])
    time.sleep(0.05)
    assert source.decoded == [(0, 0), (0, 5), (0, 2)]


def test_the_cache_keeps_what_was_used_last_within_its_limit() -> None:
    cache = PlaneCache(limit=3 * 24)
    decoded: list[int] = []

    def plane(n: int) -> NDArray[Any]:
        decoded.append(n)
        return np.full((3, 4), n, np.int16)

    for n in (0, 1, 2, 0, 3, 0, 1):
        assert (cache.get(n, lambda n=n: plane(n)) == n).all()  # type: ignore[misc]
        assert cache.bytes <= 3 * 24
    assert decoded == [0, 1, 2, 3, 1]
    cache.clear()
    assert cache.bytes == 0


def test_two_who_ask_at_once_wait_for_one_decoding() -> None:
    cache = PlaneCache()
    begun, go, calls = threading.Event(), threading.Event(), []

    def slow() -> NDArray[Any]:
        calls.append(1)
        begun.set()
        assert go.wait(5)
        return np.ones(3)

    found: list[NDArray[Any]] = []
    askers = [threading.Thread(target=lambda: found.append(cache.get("a", slow))) for _ in range(2)]
    askers[0].start()
    assert begun.wait(5)
    askers[1].start()
    time.sleep(0.02)
    go.set()
    for asker in askers:
        asker.join(5)
    assert len(found) == 2
    assert len(calls) == 1


def test_a_source_that_fills_memory_is_given_the_place_of_each_plane() -> None:
    class Filling(Numbered):
        def fill(self, t: int, z: int, out: NDArray[Any]) -> None:
            out[...] = self.values[t, z]

    source = Filling()
    np.testing.assert_array_equal(read_all(source), source.values)
    np.testing.assert_array_equal(read_all(source, 1), source.values[1])
    assert source.decoded == []


def test_what_is_damaged_stops_the_other_threads() -> None:
    class Slow(Numbered):
        def plane(self, t: int, z: int) -> NDArray[Any]:
            found = super().plane(t, z)
            time.sleep(0.01)
            return found

    source = Slow(times=100, broken=0)
    with pytest.raises(ReadError, match="damaged"):
        read_all(source)
    assert len(source.decoded) < 900


def test_one_plane_needs_no_threads() -> None:
    source = Numbered(times=1)
    source.values = source.values[:, :1]
    source.shape = source.values.shape
    np.testing.assert_array_equal(read_all(source), source.values)

"""Labels that a run writes as it finds them: read back, gone on with, and what happens on a full disk."""

import gc
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import dask.array as da
import numpy as np
import pytest

import napari_medai as medai
from napari_medai.core.errors import ReadError, WriteError
from napari_medai.engine.fingerprint import fingerprint
from napari_medai.engine.store import MemoryStore, choose_store
from napari_medai.engine.zarr_store import RECORD, ZarrStore, folder_of

SHAPE = (20, 30, 40)
IDENTITY = {"image": "a", "model": "b"}


def labels_of(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 5, SHAPE, dtype=np.uint8)


@pytest.fixture(params=["memory", "zarr"])
def store(request, tmp_path):
    made = MemoryStore(SHAPE, np.uint8) if request.param == "memory" else ZarrStore(tmp_path / "s", SHAPE, np.uint8)
    yield made
    made.close()


def test_regions_come_back_in_every_direction(store):
    expected = np.zeros(SHAPE, np.uint8)
    for where in [np.s_[3:9], np.s_[:, 5:30, 7:8], np.s_[:, :, 38:40], np.s_[19:20, :2]]:
        part = np.full(expected[where].shape, 1 + int(expected.max()), np.uint16)
        expected[where] = part
        store.write(where if isinstance(where, tuple) else (where,), part)
    np.testing.assert_array_equal(store.array[:], expected)
    np.testing.assert_array_equal(np.asarray(store.labels()), expected)
    assert store.labels().dtype == store.dtype == np.uint8


@pytest.mark.parametrize(
    ("where", "labels"),
    [
        (np.s_[0:2, :], np.ones((3, 30, 40), np.uint8)),
        (np.s_[0:4:2, :], np.ones((2, 30, 40), np.uint8)),
        (np.s_[0:2, :], np.full((2, 30, 40), 300, np.uint16)),
        (np.s_[0:2, :], np.full((2, 30, 40), -1, np.int8)),
    ],
)
def test_labels_that_do_not_fit_are_refused(store, where, labels):
    with pytest.raises(ValueError, match="labels"):
        store.write(where, labels)
    assert not store.array[:].any()


def test_the_same_run_goes_on(tmp_path):
    whole = labels_of()
    first = ZarrStore(tmp_path / "s", SHAPE, np.uint8, IDENTITY)
    first.write(np.s_[:11,], whole[:11])
    first.mark(9)
    first.close()
    second = ZarrStore(tmp_path / "s", SHAPE, np.uint8, IDENTITY)
    assert second.finished == 9
    second.write(np.s_[9:,], whole[9:])
    second.mark(20)
    second.close()
    third = ZarrStore(tmp_path / "s", SHAPE, np.uint8, IDENTITY)
    assert third.finished == 20
    np.testing.assert_array_equal(third.array[:], whole)


@pytest.mark.parametrize("change", ["identity", "shape", "dtype", "none", "unmarked"])
def test_another_run_begins_anew(tmp_path, change):
    first = ZarrStore(tmp_path / "s", SHAPE, np.uint8, None if change == "none" else IDENTITY)
    first.write(np.s_[:,], labels_of())
    if change != "unmarked":
        first.mark(20)
    first.close()
    shape = (20, 30, 41) if change == "shape" else SHAPE
    identity = {"identity": {**IDENTITY, "model": "c"}, "none": None}.get(change, IDENTITY)
    second = ZarrStore(tmp_path / "s", shape, np.uint16 if change == "dtype" else np.uint8, identity)
    assert second.finished == 0
    assert second.array.shape == shape
    assert not second.array[:].any()


@pytest.mark.parametrize("damage", ["array", "record"])
def test_what_is_damaged_is_not_gone_on_with(tmp_path, damage):
    first = ZarrStore(tmp_path / "s", SHAPE, np.uint8, IDENTITY)
    first.mark(5)
    first.close()
    if damage == "array":
        (tmp_path / "s" / "0" / "zarr.json").write_text("{")
        assert ZarrStore(tmp_path / "s", SHAPE, np.uint8, IDENTITY).finished == 0
    else:  # whose it is cannot be told any more
        (tmp_path / "s" / RECORD).write_text("{")
        with pytest.raises(WriteError, match="no unfinished run"):
            ZarrStore(tmp_path / "s", SHAPE, np.uint8, IDENTITY)


def test_what_is_not_ours_is_left_alone(tmp_path):
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / "zarr.json").write_text("mine")
    with pytest.raises(WriteError, match="no unfinished run"):
        ZarrStore(folder, SHAPE, np.uint8, IDENTITY)
    assert [p.name for p in folder.iterdir()] == ["zarr.json"]
    with pytest.raises(WriteError, match="is a file"):
        ZarrStore(folder / "zarr.json", SHAPE, np.uint8)
    with pytest.raises(WriteError, match=r"make it first\. Nothing was finished\."):
        ZarrStore(tmp_path / "none" / "s", SHAPE, np.uint8)


@pytest.mark.skipif(sys.platform == "win32", reason="no such locks")
def test_two_runs_do_not_write_to_one_folder(tmp_path):
    first = ZarrStore(tmp_path / "s", SHAPE, np.uint8, IDENTITY)
    with pytest.raises(WriteError, match="Another run"):
        ZarrStore(tmp_path / "s", SHAPE, np.uint8, IDENTITY)
    first.close()
    second = ZarrStore(tmp_path / "s", SHAPE, np.uint8, IDENTITY)
    del second  # a run that forgot to close
    gc.collect()
    ZarrStore(tmp_path / "s", SHAPE, np.uint8, IDENTITY).close()


KILLED = """
    import os, signal, sys
    import numpy as np
    from napari_medai.engine.zarr_store import ZarrStore
    store = ZarrStore(sys.argv[1], (20, 30, 40), np.uint8, {"image": "a", "model": "b"})
    print(store.finished, flush=True)
    for start in range(store.finished, 20, 3):
        store.write(np.s_[start:start + 3,], np.full(store.array[start:start + 3].shape, start + 1, np.uint8))
        store.mark(min(start + 3, 20))
        if start >= int(sys.argv[2]):
            store.write(np.s_[start + 3:start + 4,], np.full(store.array[start + 3:start + 4].shape, 99, np.uint8))
            os.kill(os.getpid(), signal.SIGKILL)
    store.close()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_killed_process_leaves_what_it_finished(tmp_path):
    def run(stop: int) -> subprocess.CompletedProcess:
        command = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path / "s"), str(stop)]
        return subprocess.run(command, capture_output=True, text=True)

    first, second = run(8), run(99)
    assert first.returncode == -signal.SIGKILL
    assert second.returncode == 0, second.stderr
    assert second.stdout.strip() == "12"
    expected = np.repeat(np.arange(0, 20, 3) + 1, 3)[:20]
    store = ZarrStore(tmp_path / "s", SHAPE, np.uint8, IDENTITY)
    assert store.finished == 20
    np.testing.assert_array_equal(store.array[:], np.broadcast_to(expected[:, None, None], SHAPE))


def _fill(store: ZarrStore) -> None:
    noise = np.random.default_rng(0)
    for start in range(0, store.shape[0], 8):
        shape = (8, *store.shape[1:])
        store.write(np.s_[start : start + 8,], noise.integers(0, 65535, shape, dtype=np.uint16))
        store.mark(start + 8)


@pytest.fixture
def small_disk():
    """A file system of 2.5 MB in memory, where it may be mounted."""
    folder = tempfile.mkdtemp()
    command = ["mount", "-t", "tmpfs", "-o", "size=2500k", "tmpfs", folder]
    if sys.platform != "linux" or subprocess.run(command, capture_output=True).returncode:
        os.rmdir(folder)
        pytest.skip("may not mount a file system here")
    yield Path(folder)
    subprocess.run(["umount", "-l", folder], check=True)
    os.rmdir(folder)


def test_a_full_disk_keeps_what_is_finished(small_disk):
    store = ZarrStore(small_disk / "s", (64, 256, 256), np.uint16, IDENTITY)
    with pytest.raises(WriteError, match=r"the disk is full\. What is finished there is kept.*goes on"):
        _fill(store)
    done = store.finished
    assert done == 16
    store.close()
    again = ZarrStore(small_disk / "s", (64, 256, 256), np.uint16, IDENTITY)
    assert again.finished == done
    expected = np.random.default_rng(0).integers(0, 65535, (8, 256, 256), dtype=np.uint16)
    np.testing.assert_array_equal(again.array[:8], expected)
    again.close()


def test_a_disk_that_cannot_be_written(small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(WriteError, match="read-only"):
        ZarrStore(small_disk / "s", SHAPE, np.uint8)


LIMITED = """
    import resource, sys
    import numpy as np
    from napari_medai.core.errors import ReadError, WriteError
    from napari_medai.engine.zarr_store import ZarrStore
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    store = ZarrStore(sys.argv[1], (16, 256, 256), np.uint16, {"image": "a"})
    store.write(np.s_[:8,], np.ones((8, 256, 256), np.uint16))
    store.mark(8)
    try:
        store.write(np.s_[8:,], np.random.default_rng(0).integers(0, 65535, (8, 256, 256), dtype=np.uint16))
    except WriteError as error:
        print(error)
    assert store.finished == 8 and (store.array[:8] == 1).all() and not store.array[8:].any()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no such limits")
def test_a_file_beyond_the_limit_keeps_what_is_finished(tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(LIMITED), str(tmp_path / "s")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "larger than the system allows" in done.stdout


def test_memory_while_it_fits_then_a_folder_that_goes(tmp_path, monkeypatch):
    assert isinstance(choose_store(SHAPE, np.uint8, free_mb=1), MemoryStore)
    notes: list[str] = []
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left = tmp_path / "napari-medai-999999999-x"  # no process has this number
    left.mkdir()
    store = choose_store(SHAPE, np.uint8, free_mb=0.01, note=notes.append)
    assert isinstance(store, ZarrStore)
    assert store.path.parent.parent == tmp_path
    assert not left.exists()
    assert "temporary folder" in notes[0]
    store.write(np.s_[:,], labels_of())
    store.close()
    labels = store.labels()
    assert folder_of(labels) is None  # it goes, and is nobody's file
    path = store.path.parent
    del store
    gc.collect()
    np.testing.assert_array_equal(np.asarray(labels[:, ::2]), labels_of()[:, ::2])
    del labels
    gc.collect()
    assert not path.exists()


def test_a_named_folder_is_taken_whatever_fits(tmp_path):
    store = choose_store(SHAPE, np.uint8, tmp_path / "s", IDENTITY)
    labels = store.labels()
    assert folder_of(labels) == tmp_path / "s"
    assert folder_of(labels[:5]) is None
    assert folder_of(labels + 0) is None
    store.close()
    assert json.loads((tmp_path / "s" / RECORD).read_text())["finished"] == 0


def test_no_disk_with_room_is_said(monkeypatch, tmp_path):
    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(WriteError, match="TMPDIR"):
        choose_store((1000, 1000, 1000), np.uint8, free_mb=1)


def test_fingerprints_tell_images_apart():
    ct = medai.from_array(labels_of(), spacing=(2, 1, 1))
    same = medai.from_array(labels_of(), spacing=(2, 1, 1), name="other", meta={"findings": ("x",)})
    assert fingerprint(ct) == fingerprint(same)
    other = labels_of()
    other[7, 8, 9] += 1
    changed = [
        ct.replace(array=other),
        ct.replace(array=ct.array.astype(np.int16)),
        ct.replace(affine=np.diag([2, 1, 1.001, 1])),
        ct.replace(units="mm"),
        ct.replace(axes="tyx"),
    ]
    assert len({fingerprint(v) for v in [ct, *changed]}) == 6


@pytest.mark.parametrize("at", [(0, 0, 0), (37, 20, 11), (59, 31, 31)])
def test_a_lazy_image_that_differs_in_any_voxel_is_another(at):
    pixels = np.arange(60 * 32 * 32, dtype=np.int16).reshape(60, 32, 32)
    other = pixels.copy()
    other[at] += 1
    read = []

    def lazy(array):
        chunks = da.from_array(array, chunks=(7, 16, 32))
        return medai.from_array(chunks.map_blocks(lambda part: read.append(part.shape) or part, meta=chunks._meta))

    assert fingerprint(lazy(pixels)) == fingerprint(lazy(pixels.copy()))
    assert len(read) == 2 * 9 * 2  # each chunk once
    assert fingerprint(lazy(pixels)) != fingerprint(lazy(other))


def test_labels_whose_folder_is_gone_are_an_error_and_not_empty(tmp_path):
    """To Zarr, chunks that are not there are zeros."""
    store = ZarrStore(tmp_path / "labels", (4, 6, 6), np.uint8)
    store.write((slice(0, 4),), np.ones((4, 6, 6), np.uint8))
    store.close()
    labels = store.labels()
    elsewhere = pickle.loads(pickle.dumps(labels))
    assert np.asarray(elsewhere).all()
    (tmp_path / "labels").rename(tmp_path / "moved")
    for one in (labels, elsewhere):
        with pytest.raises(ReadError, match="gone"):
            np.asarray(one)

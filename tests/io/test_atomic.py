"""Files appear whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import numpy as np
import pytest

import napari_medai as medai
from napari_medai.core.errors import WriteError
from napari_medai.core.volume import Volume
from napari_medai.io.atomic import write_bytes, written


def noise(edge: int = 40) -> Volume:
    return Volume(np.random.default_rng(0).integers(0, 60000, (edge,) * 3).astype(np.uint16), "zyx")


def test_takes_its_name_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    with written(target) as file:
        file.write(b"12")
        assert not target.exists()
        assert [p.suffix for p in tmp_path.iterdir()] == [".part"]
    assert target.read_bytes() == b"12"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_the_older_file(tmp_path: Path, error: type[BaseException]) -> None:
    target = write_bytes(tmp_path / "a.bin", b"old")

    def interrupted() -> None:
        with written(target) as file:
            file.write(b"new")
            raise error

    with pytest.raises(error):
        interrupted()
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match="folder does not exist"):
        write_bytes(tmp_path / "no" / "a.bin", b"1")


def test_target_is_a_folder(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match="it is a folder"):
        write_bytes(tmp_path, b"1")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_no_permission(tmp_path: Path) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        with pytest.raises(WriteError, match="no permission"):
            write_bytes(tmp_path / "a.bin", b"1")
    finally:
        tmp_path.chmod(stat.S_IRWXU)


@pytest.mark.parametrize("when", ["fsync", "replace"])
def test_disk_full_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, when, full)
    with pytest.raises(WriteError, match="the disk is full"):
        write_bytes(tmp_path / "a.bin", b"1")
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="limits of a process are POSIX's")
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.tif", "a.ome.tif"])
def test_the_system_refuses_in_the_middle(tmp_path: Path, name: str) -> None:
    import resource

    older = resource.getrlimit(resource.RLIMIT_FSIZE)
    target = tmp_path / name
    target.write_bytes(b"old")
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, older[1]))
    try:
        with pytest.raises(WriteError, match="larger than the system allows"):
            medai.save(noise(), target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, older)
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_an_error_of_the_pixels_is_not_one_of_writing(tmp_path: Path) -> None:
    import dask.array as da

    def gone(block: np.ndarray) -> np.ndarray:
        raise FileNotFoundError(errno.ENOENT, "slice 3 went away")

    lazy = da.zeros((4, 5, 6), chunks=1, dtype=np.int16).map_blocks(gone, dtype=np.int16)
    with pytest.raises(FileNotFoundError, match="slice 3"):
        medai.save(Volume(lazy, "zyx"), tmp_path / "a.nii.gz")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="links need rights on Windows")
def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real.bin").write_bytes(b"old")
    (tmp_path / "link.bin").symlink_to("real.bin")
    write_bytes(tmp_path / "link.bin", b"new")
    assert (tmp_path / "link.bin").is_symlink()
    assert (tmp_path / "real.bin").read_bytes() == b"new"


def test_a_file_can_be_saved_over_the_one_it_was_opened_from(tmp_path: Path) -> None:
    for name in ("a.nii", "a.nii.gz", "a.tif"):
        path = medai.save(noise(12), tmp_path / name)
        medai.save(medai.open(path), path)
        np.testing.assert_array_equal(medai.open(path).numpy(), noise(12).numpy())

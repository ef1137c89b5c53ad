"""Targets are looked at before anything is read or run."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import tifffile

import napari_medai as medai
from napari_medai.batch import Case, run_case
from napari_medai.core.errors import WriteError
from napari_medai.io.convert import convert
from napari_medai.io.target import check_target


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    tifffile.imwrite(tmp_path / "same.tif", np.arange(64, dtype=np.uint8).reshape(8, 8))
    return tmp_path / "same.tif"


@pytest.fixture
def store(slide: Path) -> Path:
    return medai.save(medai.open(slide), slide.with_name("same.ome.zarr"))


def test_the_source_by_any_name_is_refused(slide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(slide.parent)
    Path("link.tif").symlink_to("same.tif")
    os.link("same.tif", "hard.tif")
    Path("deep").mkdir()
    for name in ("same.tif", "link.tif", "hard.tif", "deep/../same.tif", str(slide)):
        with pytest.raises(WriteError, match=r"is what is read; give another name"):
            check_target(Path(name), "", slide)
        with pytest.raises(WriteError, match=r"is what is read"):
            convert("same.tif", name)
        outcome = run_case("segment", Case("same.tif", name))
        assert outcome.status == "failed"
        assert "is what is read" in outcome.message
    check_target(Path("other.tif"), "", slide)


def test_an_ome_zarr_that_is_read_is_left_alone(store: Path) -> None:
    before = sorted(store.rglob("*"))
    for target, says in (
        (store, "is what is read"),
        (store / "labels.ome.zarr", "lies inside of"),
        (store / "c.tif", "lies inside of"),
    ):
        for call in (lambda t: check_target(t, "", store), lambda t: convert(store, t)):
            with pytest.raises(WriteError, match=says):
                call(target)
    with pytest.raises(WriteError, match="holds 0, which is read"):
        check_target(store, "", store / "0")
    assert sorted(store.rglob("*")) == before


def test_a_file_of_a_dicom_folder_that_is_read(tmp_path: Path) -> None:
    from pydicom.data import get_testdata_file

    file = tmp_path / "CT" / "1.dcm"
    file.parent.mkdir()
    file.write_bytes(Path(str(get_testdata_file("CT_small.dcm"))).read_bytes())
    (tmp_path / "CT" / "table.csv").write_text("old")
    with pytest.raises(WriteError, match="is one of the DICOM files in"):
        check_target(file, "", file.parent)
    check_target(tmp_path / "CT" / "mask.dcm", "", file.parent)
    check_target(tmp_path / "CT" / "table.csv", "", file.parent)


def test_something_else_of_the_name_is_left_alone(tmp_path: Path, store: Path) -> None:
    (tmp_path / "w.ome.zarr").mkdir()
    (tmp_path / "w.ome.zarr" / "notes.txt").write_text("mine")
    with pytest.raises(WriteError, match="there is something else of that name"):
        check_target(tmp_path / "w.ome.zarr")
    (tmp_path / "w.tif").mkdir()
    with pytest.raises(WriteError, match="a folder has that name"):
        check_target(tmp_path / "w.tif")
    (tmp_path / "series").write_text("mine")
    with pytest.raises(WriteError, match="a file has the name"):
        check_target(tmp_path / "series", "images")
    check_target(store)  # one of ours is replaced
    assert sorted(p.name for p in tmp_path.iterdir()) == ["same.ome.zarr", "same.tif", "series", "w.ome.zarr", "w.tif"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="a folder of the system that takes no files")
@pytest.mark.parametrize("name", ["x.ome.zarr", "x.tif"])
def test_a_folder_that_takes_no_files(name: str) -> None:
    with pytest.raises(WriteError, match=r"cannot be written: (nothing can be made in that folder|there is no perm)"):
        check_target(Path("/proc") / name)


def test_an_image_is_converted_again_to_the_same_ome_zarr(slide: Path, store: Path) -> None:
    assert convert(slide, store) == [store]
    assert not list(store.glob("*.nii.gz"))

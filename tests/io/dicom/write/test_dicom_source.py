"""From a result back to the DICOM instances that it lies on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file

import napari_medai as medai
from napari_medai.core.errors import SeriesChoiceError, WriteError
from napari_medai.core.volume import Volume
from napari_medai.io.dicom.write.source import source_of


def _numbers(source, t=0) -> list[int | None]:
    return [None if plane is None else int(plane.dataset.InstanceNumber) for plane in source.planes[t]]


def test_instances_come_in_the_order_of_the_stack(write_stack: Callable[..., Path]) -> None:
    volume = medai.open(write_stack("ct", [0, 5, 10], StudyInstanceUID="1.9"))
    source = source_of(volume)
    assert _numbers(source) == [100, 99, 98]  # written with falling instance numbers, one for each position upwards
    assert [p.place.position.tolist() for p in source.planes[0]] == [[-10, -20, z] for z in (0, 5, 10)]
    assert source.series_uid == "1.2.3.4"
    assert source.shares_grid(volume)
    assert source.plane_at((-10, -20, 5)) is source.planes[0][1]
    assert source.plane_at((-10, -20, 7)) is None


def test_stack_order_undoes_what_opening_did(write_stack: Callable[..., Path]) -> None:
    # sagittal slices: rows run along y, columns down, the stack along x
    way = {"ImageOrientationPatient": [0, 1, 0, 0, 0, -1], "StudyInstanceUID": "1.9"}
    folder = write_stack("sag", [0, 1], **way)
    for n, path in enumerate(sorted(folder.iterdir(), reverse=True)):
        ds = pydicom.dcmread(path)
        ds.ImagePositionPatient = [3.0 * n, 0, 50]
        ds.save_as(path)
    volume = medai.open(folder)
    assert volume.shape == (4, 6, 2)
    source = source_of(volume)
    stack = source.in_stack_order(volume)
    assert stack.shape == (2, 4, 6)
    for n, plane in enumerate(source.planes[0]):
        # the pixels of the n-th plane hold n, wherever the order begins
        value = int(stack.numpy()[n].max())
        np.testing.assert_array_equal(stack.numpy()[n], value)
        assert plane.place.position[0] == 3.0 * value


def test_a_missing_slice_has_no_instance(write_stack: Callable[..., Path]) -> None:
    source = source_of(medai.open(write_stack("ct", [0, 5, 10, 20], StudyInstanceUID="1.9")))
    assert _numbers(source) == [100, 99, 98, None, 97]


def test_frames_of_a_multiframe_file_are_numbered_from_one() -> None:
    source = source_of(medai.open(get_testdata_file("eCT_Supplemental.dcm")))
    assert source.is_multiframe
    lower, upper = source.planes[0]
    assert (lower.frame, upper.frame) in ((1, 2), (2, 1))
    heights = {plane.frame: plane.place.position[2] for plane in (lower, upper)}
    assert heights == {1: -159, 2: -149}
    assert len(source.datasets) == 1


def test_a_volume_that_says_nothing_of_its_series(write_stack: Callable[..., Path]) -> None:
    volume = medai.open(write_stack("ct", [0, 5, 10], StudyInstanceUID="1.9"))
    painted = Volume(np.zeros(volume.shape, np.uint8), "zyx", volume.affine, "mm")
    with pytest.raises(WriteError, match="against"):
        source_of(painted)
    for scan in (volume, volume.source, Path(volume.source)):
        assert _numbers(source_of(painted, scan)) == [100, 99, 98]
    with pytest.raises(WriteError, match="against"):
        source_of(painted, painted)


def test_the_series_with_the_same_voxels_is_taken(write_stack: Callable[..., Path], tmp_path: Path) -> None:
    write_stack("study/a", [0, 5, 10], StudyInstanceUID="1.9")
    write_stack("study/b", [1, 4, 7], StudyInstanceUID="1.9", SeriesInstanceUID="1.2.3.5")
    volume = medai.open(tmp_path / "study", series_uid="1.2.3.5")
    bare = volume.replace(meta={}, source="")
    assert source_of(bare, tmp_path / "study").series_uid == "1.2.3.5"
    with pytest.raises(SeriesChoiceError):
        source_of(bare.replace(affine=np.eye(4)), tmp_path / "study")


def test_files_that_moved(write_stack: Callable[..., Path], tmp_path: Path) -> None:
    folder = write_stack("ct", [0, 5, 10], StudyInstanceUID="1.9")
    volume = medai.open(folder)
    folder.rename(tmp_path / "moved")
    with pytest.raises(WriteError, match="cannot be read again"):
        source_of(volume)
    assert _numbers(source_of(volume, tmp_path / "moved")) == [100, 99, 98]
    write_stack("ct", [0], StudyInstanceUID="1.9", SeriesInstanceUID="1.2.3.9")
    with pytest.raises(WriteError, match="no longer in ct"):
        source_of(volume)


def test_a_study_without_identifiers_cannot_be_referred_to(write_stack: Callable[..., Path]) -> None:
    with pytest.raises(WriteError, match="no StudyInstanceUID"):
        source_of(medai.open(write_stack("ct", [0, 5])))


def test_identity_shows_in_no_text(write_stack: Callable[..., Path], tmp_path: Path) -> None:
    source = source_of(medai.open(write_stack("ct", [0, 5], StudyInstanceUID="1.9")))
    assert str(source.lead.PatientName) == "Doe^Jane"
    assert "Doe" not in repr(source) + str(source) + repr(source.planes[0][0])


def test_a_dicomdir(tmp_path: Path) -> None:
    folder = Path(get_testdata_file("DICOMDIR")).parent
    shutil.copytree(folder, tmp_path / "disc")
    series = next(s for s in medai.list_series(tmp_path / "disc" / "DICOMDIR") if s.files > 2)
    volume = medai.open(tmp_path / "disc" / "DICOMDIR", series_uid=series.uid)
    source = source_of(volume)
    assert len(source.datasets) == series.files
    assert source.shares_grid(volume)

"""Layers saved from a viewer as DICOM objects of their scan's patient."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread

import napari_medai as medai
from napari_medai.io.verify import verify
from tests.io.dicom.conftest import dataset


@pytest.fixture
def ct(tmp_path: Path) -> Path:
    """A sagittal CT: 5 slices of 8 x 6 pixels of 1.5 x 2 mm, 4 mm apart."""
    (tmp_path / "CT").mkdir()
    for n in range(5):
        ds = dataset(
            np.arange(48, dtype=np.uint16).reshape(8, 6) + 100 * n,
            StudyInstanceUID="1.9",
            FrameOfReferenceUID="1.7",
            InstanceNumber=n + 1,
            ImageOrientationPatient=[0, 1, 0, 0, 0, -1],
            ImagePositionPatient=[4 * n - 10, -20, 30],
            PixelSpacing=[1.5, 2],
            SliceThickness=4,
            StudyDate="",
            StudyTime="",
            PatientSex="",
            RescaleSlope=1,
            RescaleIntercept=-1024,
        )
        ds.save_as(tmp_path / "CT" / f"{n}", enforce_file_format=True)
    return tmp_path / "CT"


def test_painted_labels_become_a_segmentation_and_an_image_a_derived_series(make_napari_viewer, ct, tmp_path):
    viewer = make_napari_viewer()
    viewer.open(str(ct), plugin="napari-medai")
    scan = medai.open(ct)
    viewer._new_labels()
    labels = viewer.layers[-1]
    labels.data_setitem((np.array([1, 2, 2]), np.array([2, 3, 3]), np.array([3, 1, 2])), np.array([1, 2, 2]))
    expected = np.zeros(scan.shape, np.uint8)
    expected[1, 2, 3], expected[2, 3, 1], expected[2, 3, 2] = 1, 2, 2

    path = tmp_path / "painted.dcm"
    assert viewer.layers.save(str(path), selected=True, plugin="napari-medai") == [str(path)]
    back = medai.open(path)
    assert dcmread(path).Modality == "SEG"
    assert back.meta["is_labels"]
    np.testing.assert_array_equal(placed(back, scan), expected)
    assert verify(path, ct).faults == ()

    (series,) = viewer.layers[0].save(str(tmp_path / "copy.dcm"), plugin="napari-medai")
    assert sorted(p.name for p in Path(series).iterdir()) == [f"{n:05}.dcm" for n in range(1, 6)]
    copy = medai.open(series)
    assert copy.grid.same_place(scan.grid)
    np.testing.assert_array_equal(copy.numpy(), scan.numpy())
    assert dcmread(Path(series) / "00001.dcm").SeriesInstanceUID != scan.meta["series_uid"]
    assert verify(series, ct).faults == ()


def placed(part: medai.Volume, scan: medai.Volume) -> np.ndarray:
    """Labels of some slices on the whole scan's voxels."""
    whole = np.zeros(scan.shape, np.uint8)
    start = np.linalg.inv(scan.affine) @ part.affine
    first = np.rint(start[:3, 3]).astype(int)
    np.testing.assert_allclose(start[:3, :3], np.eye(3), atol=1e-4)
    whole[tuple(slice(a, a + n) for a, n in zip(first, part.shape, strict=True))] = part.numpy()
    return whole

"""Segmentations are compared frame by frame, whatever their type; one that was changed is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom import Dataset

import napari_medai as medai
from napari_medai.core.errors import WriteError
from napari_medai.core.result import Mask
from napari_medai.io.readback import segmentation
from napari_medai.io.verify import check, verify

NAMES = {1: "heart", 2: "lung"}


@pytest.fixture(params=[(1, 0, 0, 0, 1, 0), (0, 1, 0, 0, 0, -1)], ids=["axial", "sagittal"])
def mask(request, tmp_path, write_ct, provenance) -> Mask:
    scan = medai.open(write_ct(tmp_path / "CT", request.param))
    labels = np.zeros(scan.shape, np.uint8)
    labels[1:3, 2:5, 1:4] = 1
    labels[4, 4:6, 1:3] = 2
    return Mask(scan.replace(array=labels), provenance, NAMES)


@pytest.mark.parametrize("kind", ["labelmap", "binary"])
def test_both_readers_find_every_voxel(mask, tmp_path, kind):
    path = medai.save(mask, tmp_path / "m.dcm", kind=kind)
    report = verify(path, mask.labels.source)
    assert report.faults == ()
    assert [(row.value, row.found.count, row.dice) for row in report.labels] == [(1, 18, 1), (2, 4, 1)]
    report = verify(path, expected=mask)
    assert {row.by for row in report.labels} == {"pydicom", "napari-medai"}
    assert report.faults == ()


def test_segments_that_overlap(mask, tmp_path):
    first = (mask.labels.numpy() == 1).astype(np.uint8)
    both = np.stack([first, np.roll(first, 1, axis=1) * 2])
    meta = dict(mask.labels.meta) | {"axis_t": {"name": "segment", "unit": "", "values": (1, 2)}}
    overlapping = Mask(mask.labels.replace(array=both, axes="tzyx", meta=meta), mask.provenance, NAMES)
    path = medai.save(overlapping, tmp_path / "m.dcm")
    assert [(r.value, r.found.count) for r in verify(path, expected=overlapping).labels] == [(1, 18), (2, 18)] * 2


def shifted(ds: Dataset) -> None:
    for frame in ds.PerFrameFunctionalGroupsSequence:
        x, y, z = frame.PlanePositionSequence[0].ImagePositionPatient
        frame.PlanePositionSequence[0].ImagePositionPatient = [x, y + 2, z]


def mirrored(ds: Dataset) -> None:
    ds.PixelData = np.frombuffer(ds.PixelData, np.uint8)[::-1].tobytes()


def swapped(ds: Dataset) -> None:
    ds.PixelData = np.array([0, 2, 1], np.uint8)[np.frombuffer(ds.PixelData, np.uint8)].tobytes()


def renamed(ds: Dataset) -> None:
    # a label map may describe its background too
    next(s for s in ds.SegmentSequence if s.SegmentNumber == 2).SegmentLabel = "liver"


def one_voxel(ds: Dataset) -> None:
    pixels = np.frombuffer(ds.PixelData, np.uint8).copy()
    pixels[np.flatnonzero(pixels == 2)[0]] = 0
    ds.PixelData = pixels.tobytes()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (shifted, r"label 1 \(heart\) as read by pydicom: its centroid lies 2\.00 mm away"),
        (mirrored, "label 1"),
        (swapped, r"label 2 \(lung\) as read by pydicom: 18 voxels instead of 4"),
        (one_voxel, r"label 2 \(lung\) as read by napari-medai: 3 voxels instead of 4"),
        (renamed, "label 2 is not called 'lung'"),
    ],
)
def test_a_changed_segmentation_is_refused(mask, tmp_path, damage: Callable[[Dataset], None], says):
    path = medai.save(mask, tmp_path / "m.dcm", kind="labelmap")
    check(mask, path)
    ds = pydicom.dcmread(path)
    damage(ds)
    ds.save_as(path)
    with pytest.raises(WriteError, match=says):
        check(mask, path)


def test_a_segmentation_against_another_patient(mask, tmp_path, write_ct):
    path = medai.save(mask, tmp_path / "m.dcm")
    other = write_ct(tmp_path / "other", patient="B")
    faults = verify(path, other).faults
    assert any(fault.startswith("patient of the scan") for fault in faults)
    assert not any("^" in fault for fault in faults)


def test_a_reader_of_its_own_knows_every_frame(mask, tmp_path: Path):
    path = medai.save(mask, tmp_path / "m.dcm", kind="binary")
    found = segmentation(path)
    assert found.names == NAMES
    assert found.frame_of_reference_uid == mask.labels.meta["frame_of_reference_uid"]
    frames = list(found.patches())
    assert all(patch.array.shape[0] == 1 for patch in frames)

"""Structured reports: the numbers come back, by other software too."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from pydicom.sr.codedict import codes

import napari_medai as medai
from napari_medai.core.errors import WriteError
from napari_medai.core.geometry import index_to_world
from napari_medai.core.result import Boxes, Mask, Scores
from napari_medai.io.dicom.write.reported import reported
from napari_medai.io.verify import verify
from napari_medai.stages.measure import measure

NAMES = {1: "liver", 4: "my own thing"}


@pytest.fixture
def scan(tmp_path, write_ct):
    return medai.open(write_ct(tmp_path / "CT"))


@pytest.fixture
def mask(scan, provenance) -> Mask:
    """A label on two slices and one, with a hole, on one."""
    labels = np.zeros(scan.shape, np.uint8)
    labels[1:3, 2:5, 3:7] = 1
    labels[4, 10:13, 1:4] = 4
    labels[4, 11, 2] = 0
    volume = scan.replace(array=labels)
    return Mask(volume, provenance, NAMES, {}, measure(volume, scan.numpy(), NAMES))


def by_dcmqi(path: Path) -> list[dict]:
    """The groups of measurements as dcmqi reads them."""
    program = shutil.which("tid1500reader") or str(Path(sys.executable).with_name("tid1500reader"))
    out = path.with_suffix(".json")
    subprocess.run([program, "--inputDICOM", path, "--outputMetadata", out], check=True, capture_output=True)
    return json.loads(out.read_text())["Measurements"]


def test_volumes_and_intensities_of_labels(scan, mask, tmp_path, errors_of):
    path = medai.save(mask, tmp_path / "m.sr.dcm")
    assert errors_of(path) == []
    liver, own = reported(path)
    # 24 voxels of 4 x 1.5 x 2 mm; slices 1 and 2 hold 1001 and 1002, less 1024
    assert (liver.tracking, liver.numbers) == ("liver", {"Volume": 288.0, "Attenuation Coefficient": -22.5})
    # 8 pixels of 3 mm2 on one slice of 4 mm
    assert (own.tracking, own.numbers) == (
        "my own thing",
        {"Area": 24.0, "Volume": 96.0, "Attenuation Coefficient": -20.0},
    )
    assert verify(path, scan).faults == ()
    assert verify(path, expected=mask).ok


def test_highdicom_finds_the_groups(mask, tmp_path):
    report = highdicom.sr.srread(medai.save(mask, tmp_path / "m.sr.dcm"))
    (liver,) = report.content.get_volumetric_roi_measurement_groups()
    assert liver.finding_type == codes.SCT.Liver
    assert [m.value for m in liver.get_measurements(codes.SCT.Volume)] == [288.0]
    (own,) = report.content.get_planar_roi_measurement_groups()
    assert own.finding_type.scheme_designator == "99MEDAI"
    assert own.get_measurements(codes.SCT.Area)[0].unit == codes.UCUM.SquareMillimeter
    assert own.tracking_identifier == "my own thing"


def test_outlines_lie_on_the_pixels(scan, mask, tmp_path):
    report = highdicom.sr.srread(medai.save(mask, tmp_path / "m.sr.dcm"))
    (own,) = report.content.get_planar_roi_measurement_groups()
    region = own.roi
    # columns 1 to 3 and rows 10 to 12: from pixel edge to pixel edge, corners cut
    np.testing.assert_allclose(region.value.min(axis=0), (1.0, 10.0))
    np.testing.assert_allclose(region.value.max(axis=0), (4.0, 13.0))
    uid = region.ContentSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID
    header = next(d for f in Path(scan.source).iterdir() if (d := pydicom.dcmread(f)).SOPInstanceUID == uid)
    assert header.ImagePositionPatient[2] == 30 + 4 * 4


def test_segments_are_referred_to(scan, mask, tmp_path, errors_of):
    # dciodvfy does not know yet that a label map is a segmentation, whose segments may be referred to
    segmentation = medai.save(mask, tmp_path / "m.seg.dcm", kind="binary")
    path = medai.save(mask, tmp_path / "m.sr.dcm", segmentation=segmentation)
    assert errors_of(path) == []
    groups = by_dcmqi(path)
    uid = pydicom.dcmread(segmentation).SOPInstanceUID
    assert [g["segmentationSOPInstanceUID"] for g in groups] == [uid, uid]
    assert [g["ReferencedSegment"] for g in groups] == [1, 2]
    assert [float(g["measurementItems"][0]["value"]) for g in groups] == [288.0, 96.0]
    assert groups[0]["measurementItems"][0]["units"]["CodeValue"] == "mm3"
    assert [g["TrackingIdentifier"] for g in groups] == ["liver", "my own thing"]


def test_detections_are_ellipsoids(scan, provenance, tmp_path, errors_of):
    centres, sizes = np.array([[2.0, 5, 6], [3, 10, 8]]), np.array([[2.0, 4, 4], [1, 2, 2]])
    boxes = Boxes(centres, sizes, ("nodule", "nodule"), np.array([0.9, 0.25]), 3, scan.grid, provenance)
    path = medai.save(boxes, tmp_path / "b.sr.dcm", against=scan)
    assert errors_of(path) == []
    first, second = reported(path)
    assert (first.tracking, second.tracking) == ("nodule 1", "nodule 2")
    # 2 x 4 mm, 4 x 1.5 mm and 4 x 2 mm across
    assert first.numbers == {"Probability": 0.9, "Diameter": pytest.approx((8 + 6 + 8) / 3)}
    groups = highdicom.sr.srread(path).content.get_volumetric_roi_measurement_groups()
    assert groups[0].finding_type == codes.SCT.Nodule
    ends = np.reshape(groups[0].roi.graphic_data, (-1, 3))
    np.testing.assert_allclose(ends.mean(axis=0)[::-1], index_to_world(scan.affine, centres[0]))
    assert verify(path, expected=boxes).ok
    assert not verify(path, expected=Boxes(centres, sizes, boxes.labels, boxes.scores / 2, 3, scan.grid, provenance)).ok


def test_classes_are_present_or_absent(scan, provenance, tmp_path, errors_of):
    scores = Scores(
        ("motion", "noise"), np.array([0.8, 0.1]), np.array([0]), np.array([[0.8, 0.1]]), np.array([1.0]),
        np.array([0.5, 0.5]), scan.grid, provenance,
    )  # fmt: skip
    path = medai.save(scores, tmp_path / "s.sr.dcm", against=scan.source)
    assert errors_of(path) == []
    motion, noise = reported(path)
    assert (motion.numbers, motion.verdicts["motion"]) == ({"Probability": 0.8}, "Present")
    assert (noise.numbers, noise.verdicts["noise"]) == ({"Probability": 0.1}, "Absent")
    report = highdicom.sr.srread(path)
    assert len(report.content.get_image_measurement_groups()) == 2
    assert verify(path, scan).faults == ()


def test_what_made_it_is_said_and_nobody_is_named_elsewhere(scan, mask, tmp_path):
    path = medai.save(mask, tmp_path / "m.sr.dcm")
    report = highdicom.sr.srread(path)
    text = str(report.ContentSequence)
    assert "napari-medai" in text
    assert "brain" in text  # the model
    assert "ab12" in text  # its weights
    assert "Test" not in text  # the patient
    assert (report.PatientName, report.PatientID) == ("A^Test", "A")


def test_nothing_found(scan, provenance, tmp_path):
    empty = Boxes(np.zeros((0, 3)), np.zeros((0, 3)), (), np.zeros(0), 3, scan.grid, provenance)
    with pytest.raises(WriteError, match="nothing to report"):
        medai.save(empty, tmp_path / "b.sr.dcm", against=scan)
    assert not list(tmp_path.glob("*.dcm"))


def test_a_wrong_number_leaves_no_file(mask, tmp_path, monkeypatch):
    from napari_medai.io.dicom.write import report

    right = report._measured
    twice = lambda size: replace(size, volume_mm3=2 * size.volume_mm3)  # noqa: E731
    monkeypatch.setattr(report, "_measured", lambda size, *rest, **more: right(twice(size), *rest, **more))
    with pytest.raises(WriteError, match=r"Volume 576\.0 instead of 288"):
        medai.save(mask, tmp_path / "m.sr.dcm")
    assert not list(tmp_path.glob("*.dcm"))

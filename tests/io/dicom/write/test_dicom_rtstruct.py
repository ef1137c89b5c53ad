"""Contours as RT Structure Sets: there and back, on the scan, without errors by dciodvfy."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file

import napari_medai as medai
from napari_medai.core.contours import Contour, Contours, Region
from napari_medai.core.errors import ReadError, SeriesChoiceError, WriteError
from napari_medai.core.result import Mask
from napari_medai.io.dicom.rtstruct import read_contours
from napari_medai.io.verify import verify

NAMES, COLORS = {1: "heart", 2: "lung"}, {1: (1.0, 0.0, 0.0)}
# direction cosines of a scan tilted by 20 degrees about the patient's left-right axis
TILTED = (1.0, 0.0, 0.0, 0.0, float(np.cos(np.deg2rad(20))), float(np.sin(np.deg2rad(20))))


@pytest.fixture(params=[(1, 0, 0, 0, 1, 0), TILTED, (0, 1, 0, 0, 0, -1)], ids=["axial", "tilted", "sagittal"])
def scan(request, tmp_path, write_ct):
    return medai.open(write_ct(tmp_path / "CT", request.param))


def mask_on(scan, provenance) -> Mask:
    """A ring with a hole, a lone pixel, two pixels that touch at a corner."""
    labels = np.zeros(scan.shape, np.uint8)
    plane = labels[labels.shape[0] // 2]
    plane[2:5, 1:6] = 1
    plane[3, 3] = 0
    labels[0, 0, 0] = 2
    labels[1, 4, 3] = labels[1, 5, 4] = 2
    return Mask(scan.replace(array=labels, meta=dict(scan.meta)), provenance, NAMES, COLORS)


def test_there_and_back(scan, provenance, tmp_path, errors_of):
    mask = mask_on(scan, provenance)
    path = medai.save(mask, tmp_path / "out.rtstruct.dcm")
    assert errors_of(path) == []
    # Dice is 1.0 exactly: outlines run half way between pixels, and coordinates are kept to 0.0001 mm
    volume = medai.open(path)
    np.testing.assert_array_equal(volume.numpy(), mask.labels.array)
    assert volume.grid.same_place(scan.grid)
    assert volume.meta["label_names"] == NAMES
    assert volume.meta["label_colors"][1] == (1.0, 0.0, 0.0)
    assert volume.meta["frame_of_reference_uid"] == scan.meta["frame_of_reference_uid"]
    assert volume.meta["findings"] == ()
    report = verify(path, scan)
    assert report.ok, report.faults
    assert {c.what: c.detail for c in report.checks} == {
        "inside the scan's field of view": "100.0% of the voxels",
        "frame of reference of the scan": "yes",
        "patient of the scan": "yes",
        "refers to the scan's instances": f"{scan_files(scan)} of {scan_files(scan)} instances it refers to are there",
    }


def scan_files(scan) -> int:
    return len(list(Path(scan.source).iterdir()))


def test_each_contour_names_the_slice_it_lies_on(scan, provenance, tmp_path):
    ds = pydicom.dcmread(medai.save(mask_on(scan, provenance), tmp_path / "out.rtstruct.dcm"))
    positions = {}
    for file in Path(scan.source).iterdir():
        header = pydicom.dcmread(file, stop_before_pixels=True)
        positions[header.SOPInstanceUID] = np.array(header.ImagePositionPatient, dtype=float)
        normal = np.cross(header.ImageOrientationPatient[:3], header.ImageOrientationPatient[3:])
    count = 0
    for roi in ds.ROIContourSequence:
        for line in roi.ContourSequence:
            (image,) = line.ContourImageSequence
            points = np.array(line.ContourData, dtype=float).reshape(-1, 3)
            np.testing.assert_allclose((points - positions[image.ReferencedSOPInstanceUID]) @ normal, 0, atol=2e-4)
            assert line.NumberOfContourPoints == len(points)
            count += 1
    assert count >= 4


def test_contours_are_read_and_written_again(scan, provenance, tmp_path, errors_of):
    first = read_contours(medai.save(mask_on(scan, provenance), tmp_path / "a.rtstruct.dcm"))
    assert (first.regions[0].name, first.regions[0].number, len(first.regions[0].contours)) == ("heart", 1, 1) or (
        scan.shape[2] != 16
    )
    again = medai.save(
        Contours(first.regions, first.frame_of_reference_uid, first.series_uid, scan.source),
        tmp_path / "b.rtstruct.dcm",
    )
    second = read_contours(again)
    for one, other in zip(first.regions, second.regions, strict=True):
        for a, b in zip(one.contours, other.contours, strict=True):
            np.testing.assert_array_equal(a.points, b.points)
            assert a.image_uid == b.image_uid
    assert errors_of(again) == []


def region(number: int, low: float, name: str) -> Region:
    """A square of 6 mm on the slice at z = 34."""
    corners = [(34.0, 25.0, low), (34, 25, low + 6), (34, 31, low + 6), (34, 31, low)]
    return Region(number, name, (Contour(np.array(corners)),))


def test_regions_that_overlap_stand_each_alone(tmp_path, write_ct):
    scan = medai.open(write_ct(tmp_path / "CT"))
    both = Contours((region(1, -5, "a"), region(7, -1, "b"), Region(9, "nothing")), "", "", scan.source)
    volume = medai.open(medai.save(both, tmp_path / "RT.rtstruct.dcm"))
    assert volume.axes == "tzyx"
    assert volume.meta["axis_t"] == {"name": "segment", "unit": "", "values": (1, 7, 9)}
    # 6 x 6 mm are 4 rows of 1.5 mm and 3 columns of 2 mm
    assert [int((volume.numpy()[t] == n).sum()) for t, n in enumerate((1, 7, 9))] == [12, 12, 0]
    assert volume.meta["findings"] == ("nothing has no contours.", "Regions overlap; each is shown on its own.")


def test_without_its_scan_it_lies_on_a_grid_of_its_own(tmp_path, write_ct):
    scan = medai.open(write_ct(tmp_path / "study" / "CT"))
    path = medai.save(Contours((region(1, -5, "a"),), source=scan.source), tmp_path / "a.rtstruct.dcm")
    (tmp_path / "alone" / "rt").mkdir(parents=True)
    moved = shutil.copy(path, tmp_path / "alone" / "rt" / "a.dcm")
    volume = medai.open(moved)
    assert volume.meta["findings"][-1].startswith("The scan that the contours were drawn on is not beside them")
    np.testing.assert_allclose(volume.spacing, (1, 1, 1))
    assert volume.numpy().sum() == 36


def test_a_folder_lists_it_beside_the_scan(tmp_path, write_ct):
    scan = medai.open(write_ct(tmp_path / "study"))
    path = medai.save(Contours((region(1, -5, "a"),), source=scan.source), tmp_path / "study" / "a.rtstruct.dcm")
    listed = medai.list_series(tmp_path / "study")
    assert [s.modality for s in listed] == ["CT", "RTSTRUCT"]
    assert [s.modality for s in medai.list_series(path)] == ["RTSTRUCT"]
    assert medai.open(tmp_path / "study").modality == "CT"
    volume = medai.open(tmp_path / "study", series_uid=listed[1].uid)
    assert volume.modality == "RTSTRUCT"
    assert volume.grid.same_place(scan.grid)
    with pytest.raises(ReadError, match="No series"):
        medai.open(tmp_path / "study", series_uid="1.2.3")
    shutil.copytree(tmp_path / "study", tmp_path / "two" / "a")
    write_ct(tmp_path / "two" / "b")
    with pytest.raises(SeriesChoiceError):
        medai.open(tmp_path / "two")


def test_another_scan_is_told(tmp_path, write_ct):
    scan = medai.open(write_ct(tmp_path / "a"))
    other = medai.open(write_ct(tmp_path / "b", patient="B"))
    path = medai.save(Contours((region(1, -5, "a"),), source=scan.source), tmp_path / "r.rtstruct.dcm")
    report = verify(path, other)
    assert [c.what for c in report.checks if not c.ok] == [
        "frame of reference of the scan",
        "patient of the scan",
        "refers to the scan's instances",
    ]
    assert not any("Test" in c.detail for c in report.checks)


def test_labels_elsewhere_are_refused(tmp_path, provenance, write_ct):
    scan = medai.open(write_ct(tmp_path / "CT"))
    mask = mask_on(scan, provenance)
    shifted = Mask(mask.labels.replace(affine=np.array(scan.affine) + np.eye(4, k=3)), provenance, NAMES)
    with pytest.raises(WriteError, match="own voxels"):
        medai.save(shifted, tmp_path / "out.rtstruct.dcm")
    assert not list(tmp_path.glob("*.dcm"))


def test_a_wrong_writer_leaves_no_file(tmp_path, provenance, monkeypatch, write_ct):
    from napari_medai.io.dicom.write import rtstruct

    scan = medai.open(write_ct(tmp_path / "CT"))
    right = rtstruct._decimals
    monkeypatch.setattr(rtstruct, "_decimals", lambda values: right(np.asarray(list(values)) + 2.0))
    with pytest.raises(WriteError, match=r"label 1 \(heart\) as read by pydicom"):
        medai.save(mask_on(scan, provenance), tmp_path / "out.rtstruct.dcm")
    assert not list(tmp_path.glob("*.dcm"))


def test_files_of_others_that_are_damaged(tmp_path, write_ct):
    scan = medai.open(write_ct(tmp_path / "CT"))
    content = medai.save(Contours((region(1, -5, "a"),), source=scan.source), tmp_path / "r.rtstruct.dcm").read_bytes()
    rng = np.random.default_rng(2)
    for n in range(60):
        bad = bytearray(content)
        if n % 2:
            bad = bad[: int(rng.integers(200, len(bad)))]
        else:
            for at in rng.integers(200, len(bad), 4):
                bad[at] = int(rng.integers(256))
        (tmp_path / "bad.dcm").write_bytes(bytes(bad))
        try:
            medai.open(tmp_path / "bad.dcm").numpy()
        except medai.MedaiError:
            continue


def test_a_structure_set_of_another_maker():
    volume = medai.open(get_testdata_file("rtstruct.dcm"))
    assert volume.modality == "RTSTRUCT"
    assert volume.meta["is_labels"]
    assert volume.numpy().any()
    assert any("own" in note for note in volume.meta["findings"])

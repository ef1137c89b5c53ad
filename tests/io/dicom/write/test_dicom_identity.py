"""Who the patient is shows nowhere but in the object; headers that do not follow the standard do not stop an export."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest

import napari_medai as medai
from napari_medai.core.provenance import Provenance
from napari_medai.core.result import Boxes, Denoised, Heatmap, Mask, Scores
from napari_medai.core.volume import Volume
from napari_medai.io.dicom.rtstruct import read_contours
from napari_medai.io.dicom.write.header import conform
from napari_medai.io.dicom.write.source import source_of

RUN = Provenance("segment", ("3",), "brain", "ab" * 32)
# of one component, with a delimiter too many, with an ideographic part, longer than the standard allows
NAMES = ("Xyzzyname", "Xyzzyname^A^B^C^D^E^F", "Xyzzyname^A=山田^太郎", "Xyzzyname" * 9)


def everything(scan: Volume) -> dict[str, object]:
    """A result of each kind by the name of its file."""
    array = np.zeros(scan.shape, np.uint8)
    array[1:4, 4:12, 4:12] = 1
    mask = Mask(scan.replace(array=array, meta=dict(scan.meta)), RUN, {1: "brain"})
    heat = scan.replace(array=array.astype(np.float32) / 2)
    boxes = Boxes(np.full((1, 3), 3.0), np.full((1, 3), 2.0), ("lesion",), np.array([0.9]), 3, scan.grid, RUN)
    half, none = np.array([0.5]), np.empty((0, 1))
    scores = Scores(("noise",), np.array([0.7]), np.empty(0, np.int64), none, np.empty(0), half, scan.grid, RUN)
    return {
        "mask.dcm": mask,
        "heat.dcm": Heatmap(heat, "noise", "gradcam++", RUN),
        "clean": Denoised(scan, RUN),
        "mask.sr.dcm": mask,
        "boxes.sr.dcm": boxes,
        "classes.sr.dcm": scores,
        "mask.rtstruct.dcm": mask,
    }


def changed(folder: Path, **attributes: object) -> Path:
    """The slices of a folder with other values, whatever the standard says of them."""
    for path in folder.iterdir():
        ds = pydicom.dcmread(path)
        for keyword, value in attributes.items():
            tag = pydicom.datadict.tag_for_keyword(keyword)
            vr = pydicom.datadict.dictionary_VR(tag)
            ds[tag] = pydicom.DataElement(tag, vr, value, validation_mode=pydicom.config.IGNORE)
        ds.save_as(path, enforce_file_format=False)
    return folder


@pytest.mark.parametrize("name", NAMES, ids=["one", "seven", "ideographic", "long"])
def test_no_name_in_a_warning_or_log(
    tmp_path: Path,
    write_ct: Callable[..., Path],
    name: str,
    recwarn: pytest.WarningsRecorder,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pydicom.config.disable_value_validation():
        folder = changed(
            write_ct(tmp_path / "ct"),
            SpecificCharacterSet="ISO_IR 192",
            PatientName=name,
            ReferringPhysicianName=name,
            PatientID="Xyzzyname 1",
        )
    scan = medai.open(folder)
    caplog.set_level(logging.INFO)
    for file, what in everything(scan).items():
        path = medai.save(what, tmp_path / file, against=scan)
        written = pydicom.dcmread(path if path.is_file() else path / "00001.dcm")
        assert str(written.PatientName) == name
        assert str(written.ReferringPhysicianName) == name
        assert written.PatientID == "Xyzzyname 1"
    out, err = capfd.readouterr()
    said = out + err + caplog.text + " ".join(str(w.message) for w in recwarn)
    assert "Xyzzyname" not in said


def test_contours_name_nobody(tmp_path: Path, write_ct: Callable[..., Path], recwarn: pytest.WarningsRecorder) -> None:
    scan = medai.open(changed(write_ct(tmp_path / "ct"), PatientName="Xyzzyname"))
    mask = everything(scan)["mask.dcm"]
    path = medai.save(mask, tmp_path / "a.rtstruct.dcm")
    medai.save(read_contours(path), tmp_path / "b.rtstruct.dcm", against=tmp_path / "ct")
    assert not [w for w in recwarn if "Xyzzyname" in str(w.message)]


def test_headers_that_do_not_follow_the_standard(
    tmp_path: Path,
    write_ct: Callable[..., Path],
    errors_of: Callable[[Path], list[str]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    wrong = {
        "StudyTime": "11:20:00",
        "StudyDate": "2020-01-31",
        "PatientBirthDate": "sometime",
        "PatientAge": "42",
        "PatientSex": "UNKNOWN",
        "PatientWeight": "70.00000000000000001",
    }
    scan = medai.open(changed(write_ct(tmp_path / "ct"), **wrong))
    for file, what in everything(scan).items():
        path = medai.save(what, tmp_path / file, against=scan)
        first = path if path.is_file() else path / "00001.dcm"
        assert errors_of(first) == [], file
        written = pydicom.dcmread(first)
        assert (written.StudyTime, written.StudyDate) == ("112000", "20200131")
        assert (written.PatientBirthDate, written.PatientSex) == ("", "")
        assert "PatientAge" not in written
        assert "PatientWeight" not in written
    assert "StudyTime of the scan was put into the form of the standard." in caplog.text
    assert "PatientBirthDate of the scan is not valid and was left empty." in caplog.text
    assert "PatientAge of the scan is not valid and was left out." in caplog.text
    assert not any(value in caplog.text for value in wrong.values())


def test_valid_headers_stay_as_they_are(tmp_path: Path, write_ct: Callable[..., Path]) -> None:
    right = {"PatientAge": "042Y", "PatientWeight": "70.5", "PatientComments": "none", "OtherPatientIDs": ["a", "b"]}
    folder = changed(write_ct(tmp_path / "ct"), **right, StudyTime="112000.123")
    header = pydicom.dcmread(folder / "0.dcm")
    before = header.to_json()
    assert conform(header) == ()
    assert header.to_json() == before
    assert source_of(medai.open(folder)).notes == ()

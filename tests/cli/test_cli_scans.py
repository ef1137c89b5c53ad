"""`medai info` and `medai convert` on folders as they come off a disc."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
from pydicom.uid import BasicTextSRStorage
from typer.testing import CliRunner

from napari_medai.cli import app
from tests.io.dicom.conftest import dataset

RUN = CliRunner()


@pytest.fixture
def disc(tmp_path: Path) -> Path:
    """A CT with a gap in two folders, a report, a text file and half a file."""
    folder = tmp_path / "disc"
    for n, z in enumerate((0, 1, 2, 4)):
        path = folder / f"part{n % 2}" / f"I{n}"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((4, 6), 10 * z, np.uint16)
        dataset(pixels, ImagePositionPatient=[0, 0, z], InstanceNumber=n).save_as(path, enforce_file_format=True)
    report = dataset(None, SOPClassUID=BasicTextSRStorage, Modality="SR", SeriesInstanceUID="1.9")
    report.save_as(folder / "report", enforce_file_format=True)
    (folder / "README").write_text("thank you for choosing our hospital" * 10)
    (folder / "half").write_bytes((folder / "part0" / "I0").read_bytes()[:400])
    return folder


def test_info_says_what_was_not_read(disc: Path) -> None:
    shown = json.loads(RUN.invoke(app, ["info", str(disc), "--json"]).stdout)
    (row,) = shown["series"]
    assert row["shape"] == [5, 4, 6]
    assert row["files"] == 4
    assert "1 of 5 slices are missing (counted from 0: 3); they are left blank." in row["findings"]
    said = "\n".join(shown["findings"])
    assert "1 other files were not read (not DICOM)." in said
    assert "2 DICOM files hold no pixels (1 CT Image Storage, 1 Basic Text SR Storage)." in said
    text = " ".join(RUN.invoke(app, ["info", str(disc)]).stdout.split())
    assert "1 other files were not read (not DICOM)." in text
    assert "Doe" not in said + text


def test_repairs_by_option(disc: Path, tmp_path: Path) -> None:
    shown = json.loads(RUN.invoke(app, ["info", str(disc), "--repair", "missing,tilt", "--json"]).stdout)
    assert "they were interpolated between their neighbours." in " ".join(shown["series"][0]["findings"])
    target = tmp_path / "out.nii.gz"
    assert RUN.invoke(app, ["convert", str(disc), str(target), "--repair", "missing"]).exit_code == 0
    # the volume's z runs up, as NIfTI's
    assert np.asanyarray(nibabel.load(target).dataobj)[0, 0].tolist() == [0, 10, 20, 30, 40]


def test_options_of_dicom_alone(disc: Path, tmp_path: Path) -> None:
    image = tmp_path / "a.nii"
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4)), image)
    for words in (
        ["convert", str(image), str(tmp_path / "b.nii"), "--repair", "tilt"],
        ["info", str(disc), "--repair", "x"],
    ):
        result = RUN.invoke(app, words)
        assert result.exit_code != 0


def test_info_of_an_archive(disc: Path, tmp_path: Path) -> None:
    packed = shutil.make_archive(str(tmp_path / "disc"), "zip", disc)
    shown = json.loads(RUN.invoke(app, ["info", packed, "--json", "--repair", "missing"]).stdout)
    (row,) = shown["series"]
    assert row["shape"] == [5, 4, 6]
    assert "they were interpolated" in " ".join(row["findings"])
    assert shown["findings"]

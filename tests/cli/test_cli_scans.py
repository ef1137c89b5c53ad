"""`medai info` and `medai convert` on folders as they come off a disc."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.uid import BasicTextSRStorage
from typer.testing import CliRunner

from napari_medai.cli import app
from napari_medai.core.contours import Contour, Contours, Region
from napari_medai.core.errors import SeriesChoiceError
from napari_medai.io import list_series, save
from napari_medai.io.dicom import gathered, rtstruct, series
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
    assert "1 other file was not read (not DICOM)." in said
    assert "2 DICOM files hold no pixels (1 CT Image Storage, 1 Basic Text SR Storage)." in said
    text = " ".join(RUN.invoke(app, ["info", str(disc)]).stdout.split())
    assert "1 other file was not read (not DICOM)." in text
    assert "Doe" not in said + text


def test_convert_says_what_is_missing(disc: Path, several: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.nii.gz"
    done = RUN.invoke(app, ["convert", str(disc), str(target)])
    assert done.stdout.splitlines() == [str(target)]
    said = done.stderr.splitlines()
    assert "out.nii.gz: 1 of 5 slices are missing (counted from 0: 3); they are left blank." in said
    assert any("hold no pixels" in line for line in said)
    assert all(line.startswith("out.nii.gz: ") for line in said)
    # into a folder, each by its own name
    shutil.copy(several / "0", several / "again")
    done = RUN.invoke(app, ["convert", str(several), str(tmp_path / "folder")])
    assert len(done.stdout.splitlines()) == 3
    (line,) = done.stderr.splitlines()
    assert line.startswith("7_Chest_1_0.nii.gz: ")
    assert "same instance UID" in line


def test_info_fits_a_narrow_terminal(disc: Path) -> None:
    lines = RUN.invoke(app, ["info", str(disc)]).stdout.splitlines()
    uid = json.loads(RUN.invoke(app, ["info", str(disc), "--json"]).stdout)["series"][0]["uid"]
    assert lines[0].split() == ["no.", "modality", "description", "size", "spacing", "orientation", "files"]
    assert lines[1].split()[:3] == ["7", "CT", "Chest"]
    assert lines[1].split()[-2:] == ["SPL", "4"]
    assert lines[2] == f"  {uid}"
    assert "  - 1 of 5 slices are missing (counted from 0: 3); they are left blank." in lines
    # said of the whole, and not again of each image
    assert sum("hold no pixels" in line for line in lines) == 1


def test_no_orientation_is_made_up(tmp_path: Path) -> None:
    ds = dataset(np.zeros((4, 6), np.uint16), Modality="CR", ImagerPixelSpacing=[0.1, 0.1])
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        if keyword in ds:
            delattr(ds, keyword)
    ds.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    (row,) = json.loads(RUN.invoke(app, ["info", str(tmp_path / "a.dcm"), "--json"]).stdout)["series"]
    assert (row["units"], row["spacing"], row["orientation"]) == ("mm", [0.1, 0.1], "")
    assert RUN.invoke(app, ["info", str(tmp_path / "a.dcm")]).stdout.splitlines()[1].split()[-2:] == ["-", "1"]


def test_series_by_number(several: Path, tmp_path: Path) -> None:
    for n, file in enumerate(sorted(several.iterdir())):
        ds = pydicom.dcmread(file)
        ds.SeriesNumber = (4, 4, 5)[n % 3]
        ds.PixelData = np.full((4, 6), n, np.uint16).tobytes()
        ds.save_as(file)
    out = tmp_path / "out.nii"
    done = RUN.invoke(app, ["convert", str(several), str(out), "--series", "5"])
    assert done.exit_code == 0, done.output
    assert np.unique(np.asanyarray(nibabel.load(out).dataobj)).tolist() == [2, 5]
    for words in (["--series", "4"], []):
        done = RUN.invoke(app, ["convert", str(several), str(out), *words])
        assert isinstance(done.exception, SeriesChoiceError)
        assert "(medai: --series …)" in str(done.exception)
        assert len(done.exception.series) == (2 if words else 3)


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


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many headers each reading of a place asked for."""
    counts: list[int] = []
    reader = gathered.read_headers

    def counted(paths: Sequence[str], *others: Any) -> Any:
        counts.append(len(paths))
        return reader(paths, *others)

    for module in (series, rtstruct):
        monkeypatch.setattr(module, "read_headers", counted)
    return counts


@pytest.fixture
def several(tmp_path: Path) -> Path:
    """Three series of two slices in one folder."""
    for n in range(6):
        uids = {"StudyInstanceUID": "1.9", "SeriesInstanceUID": f"1.2.{n % 3}", "FrameOfReferenceUID": "1.7"}
        ds = dataset(np.full((4, 6), n, np.uint16), ImagePositionPatient=[0, 0, n], **uids)
        (tmp_path / "several").mkdir(exist_ok=True)
        ds.save_as(tmp_path / "several" / f"{n}", enforce_file_format=True)
    return tmp_path / "several"


def test_headers_are_read_once(several: Path, tmp_path: Path, read: list[int]) -> None:
    nibabel.save(nibabel.Nifti1Image(np.zeros((5, 4, 3), np.int16), np.eye(4)), tmp_path / "a.nii")
    with zipfile.ZipFile(tmp_path / "several.zip", "w") as archive:
        for file in (*sorted(several.iterdir()), tmp_path / "a.nii"):
            archive.write(file, file.name)
    for source, count in ((several, 3), (tmp_path / "several.zip", 4)):
        read.clear()
        done = RUN.invoke(app, ["info", str(source), "--json"])
        assert len(json.loads(done.stdout)["series"]) == count
        assert read == [6]
    rows = json.loads(RUN.invoke(app, ["info", str(tmp_path / "several.zip"), "--json"]).stdout)["series"]
    assert [row["shape"] for row in rows] == [[2, 4, 6]] * 3 + [[3, 4, 5]]
    # --repair is for the DICOM in it
    assert RUN.invoke(app, ["info", str(tmp_path / "several.zip"), "--repair", "tilt"]).exit_code == 0


def test_info_lists_structure_sets(several: Path, read: list[int]) -> None:
    uid = list_series(several)[0].uid
    square = np.array([(0, 0, 0), (0, 0, 1), (0, 1, 1), (0, 1, 0)], float)
    one = Contours((Region(1, "node", (Contour(square),)),), source=str(several), series_uid=uid)
    save(one, several / "a.rtstruct.dcm")
    read.clear()
    shown = json.loads(RUN.invoke(app, ["info", str(several), "--json"]).stdout)
    assert [row["modality"] for row in shown["series"]] == ["CT", "CT", "CT", "RTSTRUCT"]
    assert shown["findings"] == []
    assert read[0] == 7


def test_info_of_an_archive(disc: Path, tmp_path: Path) -> None:
    packed = shutil.make_archive(str(tmp_path / "disc"), "zip", disc)
    shown = json.loads(RUN.invoke(app, ["info", packed, "--json", "--repair", "missing"]).stdout)
    (row,) = shown["series"]
    assert row["shape"] == [5, 4, 6]
    assert "they were interpolated" in " ".join(row["findings"])
    assert shown["findings"]

"""Patients, studies and series of folders, without identity unless it is asked for."""

from __future__ import annotations

import logging
import os
import sys
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from napari_medai.core.contours import Contour, Contours, Region
from napari_medai.core.errors import NoImagesError, ReadError
from napari_medai.core.stage import Cancelled, Progress
from napari_medai.core.volume import Volume
from napari_medai.io import open as open_image
from napari_medai.io import save
from napari_medai.io.study import identity, list_studies, studies
from napari_medai.io.thumbnail import thumbnail

SECRETS = ("Doe", "Jane", "4711", "1961", "2004-08", "20040826")


def write(folder: Path, series: str, count: int = 3, *, study_uid: str = "1.9", number: int = 7, **fields) -> Path:
    """CT slices of 4 x 6 pixels, 2 mm apart; all pixels of slice n are 100 n."""
    folder.mkdir(parents=True, exist_ok=True)
    for n in range(count):
        ds = Dataset()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = CTImageStorage
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = generate_uid()
        ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.StudyDate = "Doe^Jane", "ID-4711", "19610101", "20040826"
        ds.Modality, ds.SeriesInstanceUID, ds.SeriesNumber, ds.SeriesDescription = "CT", series, number, "Chest"
        ds.StudyInstanceUID, ds.StudyDescription = study_uid, "Thorax"
        ds.ImagePositionPatient, ds.ImageOrientationPatient = [0, 0, 2 * n], [1, 0, 0, 0, 1, 0]
        ds.PixelSpacing, ds.SliceThickness = [0.5, 0.5], 2
        ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", 0
        ds.Rows, ds.Columns, ds.BitsAllocated, ds.BitsStored, ds.HighBit = 4, 6, 16, 16, 15
        ds.PixelData = np.full((4, 6), 100 * n, np.uint16).tobytes()
        for keyword, value in fields.items():
            setattr(ds, keyword, value)
        ds.save_as(folder / f"{series}_{n}", enforce_file_format=True)
    return folder


def drawn_on(folder: Path, path: Path) -> None:
    """A structure set with one region on the slice at 0 mm, and two on that at 2 mm."""

    def square(z: float, x: float) -> Contour:
        return Contour(np.array([(z, 0, x), (z, 0, x + 1), (z, 1, x + 1), (z, 1, x)], float))

    path.parent.mkdir(exist_ok=True)
    left = Region(1, "left", (square(0, 0), square(2, 0)), (1.0, 0.0, 0.0))
    save(Contours((left, Region(2, "right", (square(2, 2),), (0.0, 0.0, 1.0))), source=str(folder)), path)


class TestListing:
    def test_patients_studies_and_series(self, tmp_path):
        write(tmp_path / "a", "1.1", number=3)
        write(tmp_path / "b", "1.2", 2, number=1)
        write(tmp_path / "c", "1.3", study_uid="1.8")
        write(tmp_path / "d", "1.4", study_uid="1.7", PatientName="Roe^Ann", PatientID="ID-4712")
        found = studies(tmp_path)
        assert [(s.patient, s.name, s.description) for s in found] == [
            ("Patient 1", "Study 1", "Thorax"),
            ("Patient 1", "Study 2", "Thorax"),
            ("Patient 2", "Study 1", "Thorax"),
        ]
        assert [[one.series_uid for one in s.series] for s in found] == [["1.2", "1.1"], ["1.3"], ["1.4"]]
        first = found[0].series[1]
        assert (first.info.modality, first.info.number, first.info.description) == ("CT", 3, "Chest")
        assert (first.info.shape, first.axes, first.info.spacing_mm, first.units) == (
            (3, 4, 6),
            "zyx",
            (2.0, 0.5, 0.5),
            "mm",
        )
        assert first.info.files == 3
        assert first.path == str(tmp_path / "a")

    def test_one_id_of_two_issuers_is_two_patients(self, tmp_path):
        write(tmp_path / "a", "1.1", study_uid="1.7", IssuerOfPatientID="north")
        write(tmp_path / "b", "1.2", study_uid="1.8", IssuerOfPatientID="south")
        assert [s.patient for s in studies(tmp_path)] == ["Patient 1", "Patient 2"]

    def test_without_an_id_the_name_and_the_date_of_birth_tell_patients_apart(self, tmp_path):
        write(tmp_path / "a", "1.1", study_uid="1.6", PatientID="")
        write(tmp_path / "b", "1.2", study_uid="1.7", PatientID="", PatientName="DOE^JANE^^^")
        write(tmp_path / "c", "1.3", study_uid="1.8", PatientID="", PatientBirthDate="19620202")
        assert [s.patient for s in studies(tmp_path)] == ["Patient 1", "Patient 1", "Patient 2"]

    def test_files_that_name_nobody_are_grouped_by_study(self, tmp_path):
        nobody = {"PatientID": "", "PatientName": "", "PatientBirthDate": ""}
        write(tmp_path / "a", "1.1", study_uid="1.6", **nobody)
        write(tmp_path / "b", "1.2", study_uid="1.6", **nobody)
        write(tmp_path / "c", "1.3", study_uid="1.7", **nobody)
        assert [(s.patient, len(s.series)) for s in studies(tmp_path)] == [("Patient 1", 2), ("Patient 2", 1)]

    def test_nifti_beside_dicom_is_of_no_patient(self, tmp_path):
        write(tmp_path / "a", "1.1")
        nibabel.save(nibabel.Nifti1Image(np.zeros((6, 5, 4), np.int16), np.diag([3, 2, 1, 1])), tmp_path / "b.nii.gz")
        dicom, nifti = studies(tmp_path)
        assert (nifti.patient, nifti.name, nifti.file) == ("", "Files without a patient", "")
        assert dicom.patient == "Patient 1"
        one = nifti.series[0]
        assert (one.path, one.series_uid, one.info.shape) == (str(tmp_path / "b.nii.gz"), "", (4, 5, 6))
        np.testing.assert_allclose(one.info.spacing_mm, (1, 2, 3))

    def test_what_cannot_be_read_is_a_finding(self, tmp_path):
        write(tmp_path, "1.1")
        whole = (tmp_path / "1.1_0").read_bytes()
        (tmp_path / "cut.dcm").write_bytes(whole[:300])
        (tmp_path / "notes.txt").write_text("not an image")
        (tmp_path / "bad.nii").write_bytes(b"\0" * 400)
        report = Dataset()
        report.SOPClassUID, report.SOPInstanceUID, report.Modality = "1.2.840.10008.5.1.4.1.1.88.11", "1.5", "SR"
        report.PatientName = "Doe^Jane"
        report.file_meta = FileMetaDataset()
        report.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        report.save_as(tmp_path / "report", enforce_file_format=True)
        found = list_studies(tmp_path)
        assert [one.series_uid for one in found.series] == ["1.1"]
        assert found.unread == 4
        said = " ".join(found.findings)
        assert "bad.nii" in said
        assert "1 file holds no pixels (Basic Text SR Storage)." in found.findings
        assert "1 file is neither DICOM nor NIfTI." in found.findings
        assert not any(secret in said for secret in SECRETS)

    def test_findings_about_one_series_stay_with_it(self, tmp_path):
        write(tmp_path / "a", "1.1", 4)
        (tmp_path / "a" / "1.1_2").unlink()
        write(tmp_path / "b", "1.2")
        (tmp_path / "b" / "cut").write_bytes((tmp_path / "b" / "1.2_0").read_bytes()[:250])
        series = {one.series_uid: one for one in list_studies(tmp_path).series}
        assert "missing" in " ".join(series["1.1"].findings)
        assert series["1.2"].findings == ()

    @pytest.mark.parametrize("content", [None, b"", b"nothing that anybody reads"])
    def test_nothing_to_open(self, tmp_path, content):
        if content is not None:
            (tmp_path / "file").write_bytes(content)
        found = list_studies(tmp_path)
        assert (found.studies, found.unread) == ((), 0 if content is None else 1)
        assert found.findings
        with pytest.raises(NoImagesError, match="holds no image"):
            studies(tmp_path)

    def test_a_path_that_is_not_there(self, tmp_path):
        assert "cannot be opened" in list_studies(tmp_path / "gone").findings[0]

    def test_one_file_lists_its_series(self, tmp_path):
        write(tmp_path, "1.1")
        write(tmp_path, "1.2")
        found = list_studies(tmp_path / "1.2_1")
        assert [(one.series_uid, one.info.files) for one in found.series] == [("1.2", 3)]

    def test_an_archive(self, tmp_path):
        write(tmp_path / "a", "1.1", 3)
        nibabel.save(nibabel.Nifti1Image(np.zeros((6, 5, 4), np.int16), np.eye(4)), tmp_path / "b.nii.gz")
        (tmp_path / "notes.txt").write_text("x")
        with zipfile.ZipFile(tmp_path / "study.zip", "w") as archive:
            for file in (*sorted((tmp_path / "a").iterdir()), tmp_path / "b.nii.gz", tmp_path / "notes.txt"):
                archive.write(file, file.name)
        found = list_studies(tmp_path / "study.zip")
        assert [s.patient for s in found.studies] == ["Patient 1", ""]
        assert {one.path for one in found.series} == {str(tmp_path / "study.zip")}
        for one in found.series:
            assert open_image(one.path, series_uid=one.series_uid).shape == one.info.shape
            assert thumbnail(one.image).shape[2] == 3
        assert identity(found.studies[0].file).name == "Doe, Jane"
        assert len(found.findings) == 1
        assert "neither DICOM nor NIfTI" in found.findings[0]

    def test_structure_sets_stand_with_the_study_that_they_were_drawn_on(self, tmp_path):
        drawn_on(write(tmp_path / "a", "1.1", FrameOfReferenceUID="1.7"), tmp_path / "rt" / "a.rtstruct.dcm")
        found = list_studies(tmp_path)
        (study,) = found.studies
        assert (found.findings, found.unread) == ((), 0)
        scan, structures = study.series
        assert (scan.info.modality, scan.regions, scan.findings) == ("CT", None, ())
        assert (structures.info.modality, structures.info.files, structures.regions) == ("RTSTRUCT", 1, 2)
        assert (structures.findings, structures.is_dicom) == ((), False)
        volume = open_image(structures.path, series_uid=structures.series_uid)
        assert volume.meta["label_names"] == {1: "left", 2: "right"}
        assert len(list_studies(tmp_path / "rt").with_more(found).series) == 2

    def test_a_structure_set_beside_one_series_is_nothing_unusual(self, tmp_path):
        drawn_on(write(tmp_path / "a", "1.1", FrameOfReferenceUID="1.7"), tmp_path / "a" / "a.rtstruct.dcm")
        assert [one.findings for one in list_studies(tmp_path / "a").series] == [(), ()]
        assert open_image(tmp_path / "a").meta["findings"] == ()

    def test_a_structure_set_in_an_archive(self, tmp_path):
        drawn_on(write(tmp_path / "a", "1.1", FrameOfReferenceUID="1.7"), tmp_path / "a" / "a.rtstruct.dcm")
        with zipfile.ZipFile(tmp_path / "study.zip", "w") as archive:
            for file in sorted((tmp_path / "a").iterdir()):
                archive.write(file, file.name)
        (one,) = (one for one in list_studies(tmp_path / "study.zip").series if one.regions is not None)
        assert one.path == str(tmp_path / "study.zip")
        assert open_image(one.path, series_uid=one.series_uid).meta["is_labels"]

    def test_a_structure_set_is_drawn_by_the_slice_with_most_regions(self, tmp_path):
        drawn_on(write(tmp_path / "a", "1.1", FrameOfReferenceUID="1.7"), tmp_path / "a" / "a.rtstruct.dcm")
        (one,) = (one for one in list_studies(tmp_path / "a").series if one.regions is not None)
        picture = thumbnail(one.image)
        wide = picture.shape[1]
        assert wide == 96
        # regions of 1 x 1 mm, one at the left edge and one at the right, with 1 mm between them
        assert picture.shape[0] == pytest.approx(96 / 3, abs=4)
        middle = picture[picture.shape[0] // 2]
        assert middle[wide // 6].tolist() == [255, 0, 0]
        assert middle[wide // 2].tolist() == [0, 0, 0]
        assert middle[wide * 5 // 6].tolist() == [0, 0, 255]

    def test_can_be_stopped(self, tmp_path):
        class Stop(Progress):
            def check(self) -> None:
                raise Cancelled

        with pytest.raises(Cancelled):
            list_studies(write(tmp_path, "1.1", 20), Stop())

    def test_says_how_far_it_is(self, tmp_path):
        seen = []

        class Ear(Progress):
            def update(self, done: float, total: float, message: str = "") -> None:
                seen.append((done / total, message))

        write(tmp_path, "1.1", 20)
        write(tmp_path, "1.2", 2)
        list_studies(tmp_path, Ear())
        assert sorted(seen) == seen
        assert {message for _, message in seen} == {"Reading headers", "Sorting series"}
        assert seen[-1][0] <= 1


class TestMore:
    def test_numbers_stay_and_nothing_is_listed_twice(self, tmp_path):
        write(tmp_path / "one", "1.1")
        write(tmp_path / "two", "1.2", PatientID="other", study_uid="1.5")
        write(tmp_path / "two", "1.3")
        first = list_studies(tmp_path / "one")
        both = first.with_more(list_studies(tmp_path / "two"))
        assert [(s.patient, s.name, [one.series_uid for one in s.series]) for s in both.studies] == [
            ("Patient 1", "Study 1", ["1.1", "1.3"]),
            ("Patient 2", "Study 1", ["1.2"]),
        ]
        again = both.with_more(list_studies(tmp_path))
        assert len(again.series) == 3

    def test_unread_files_are_counted_once(self, tmp_path):
        write(tmp_path, "1.1")
        (tmp_path / "notes.txt").write_text("x")
        found = list_studies(tmp_path)
        assert found.with_more(list_studies(tmp_path)).unread == 1


class TestIdentity:
    def test_is_read_when_asked(self, tmp_path):
        write(tmp_path, "1.1")
        one = identity(studies(tmp_path)[0].file)
        assert (one.name, one.patient_id, one.birth_date, one.study_date) == (
            "Doe, Jane",
            "ID-4711",
            "1961-01-01",
            "2004-08-26",
        )

    def test_shows_itself_nowhere(self, tmp_path, caplog):
        caplog.set_level(logging.DEBUG)
        write(tmp_path, "1.1", SpecificCharacterSet="ISO_IR 192")
        for file in tmp_path.iterdir():  # pydicom warns about it and quotes the header
            file.write_bytes(file.read_bytes().replace(b"ISO_IR 192", b"ISO_IR 999"))
        found = studies(tmp_path)
        one = identity(found[0].file)
        shown = [repr(one), str(one), f"{one}", repr(found), str(list_studies(tmp_path)), caplog.text]
        assert not [secret for secret in SECRETS for text in shown if secret in text]

    @pytest.mark.parametrize(
        ("written", "read"),
        [
            ("Doe", "Doe"),
            ("Doe^Jane^Mary^Dr", "Doe, Jane Mary Dr"),
            ("", ""),
            ("=山田^太郎", "山田, 太郎"),
            ("^Jane", "Jane"),
        ],
    )
    def test_names(self, tmp_path, written, read):
        write(tmp_path, "1.1", 1, PatientName=written, SpecificCharacterSet="ISO_IR 192")
        assert identity(tmp_path / "1.1_0").name == read

    def test_absent_values_are_empty(self, tmp_path):
        write(tmp_path, "1.1", 1, PatientName="", PatientBirthDate="", StudyDate="")
        one = identity(tmp_path / "1.1_0")
        assert (one.name, one.birth_date, one.study_date) == ("", "", "")

    def test_a_file_that_has_gone(self, tmp_path):
        with pytest.raises(ReadError, match=r"gone\.dcm cannot be read"):
            identity(tmp_path / "gone.dcm")

    def test_keys_do_not_hold_the_identity_and_differ_between_processes(self, tmp_path):
        import subprocess

        write(tmp_path, "1.1")
        key = studies(tmp_path)[0].patient_key
        code = f"from napari_medai.io.study import studies; print(studies({str(tmp_path)!r})[0].patient_key)"
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
        assert len(key) == len(other) == 32
        assert key != other


class Counting:
    """Pixels that remember which planes were asked for."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels, self.asked = pixels, []
        self.shape, self.dtype, self.ndim = pixels.shape, pixels.dtype, pixels.ndim

    def __getitem__(self, key):
        self.asked.append(key)
        return self.pixels[key]


class TestThumbnail:
    def test_middle_slice_in_the_window(self, tmp_path):
        write(tmp_path, "1.1", 3, WindowCenter=100.5, WindowWidth=201)  # shows 0 .. 200
        picture = thumbnail(studies(tmp_path)[0].series[0].image)
        assert picture.shape == (64, 96, 3)
        assert picture.dtype == np.uint8
        assert set(picture.ravel()) == {128}

    def test_true_proportions(self):
        volume = Volume(np.eye(10, dtype=np.uint8)[None], "zyx", np.diag([1.0, 4.0, 1.0, 1.0]), "mm")
        assert thumbnail(volume, 40).shape == (40, 10, 3)
        assert thumbnail(volume.replace(units="pixel"), 40).shape == (40, 40, 3)

    def test_one_plane_is_decoded(self):
        array = Counting(np.zeros((2, 9, 4, 4), np.uint8))
        thumbnail(Volume(array, "tzyx"))
        assert len(array.asked) == 1
        assert array.asked[0][:2] == (0, 4)

    def test_of_a_huge_plane_only_the_middle(self):
        array = Counting(np.zeros((1, 9000), np.uint8))
        thumbnail(Volume(array, "yx"))
        assert array.asked[0][1] == slice(2452, 6548)

    def test_of_a_pyramid_a_coarse_level(self):
        fine, middle, coarse = (Counting(np.zeros((4 * n, 2 * n), np.uint8)) for n in (900, 90, 9))
        picture = thumbnail(Volume(fine, "yx", np.diag([1.0, 2, 2, 1]), "mm", meta={"levels": (fine, middle, coarse)}))
        assert picture.shape == (96, 48, 3)
        assert [len(level.asked) for level in (fine, middle, coarse)] == [0, 1, 0]

    def test_colour_and_labels(self):
        colour = np.zeros((3, 3, 3), np.uint16)
        colour[..., 0] = 65535
        assert thumbnail(Volume(colour, "yxs"), 3)[1, 1].tolist() == [255, 0, 0]
        labels = np.array([[0, 1], [2, 2]], np.uint8)
        meta = {"is_labels": True, "label_colors": {1: (0.0, 1.0, 0.0)}}
        picture = thumbnail(Volume(labels, "yx", meta=meta), 2)
        assert picture[0].tolist() == [[0, 0, 0], [0, 255, 0]]
        assert picture[1, 0].any()

    @pytest.mark.parametrize("value", [np.nan, np.inf, 7.0])
    def test_pixels_without_contrast(self, value):
        assert thumbnail(Volume(np.full((4, 4), value, np.float32), "yx"), 4).shape == (4, 4, 3)

    def test_sagittal_nifti_is_shown_as_it_was_acquired_with_the_head_up(self, tmp_path):
        pixels = np.zeros((2, 8, 8), np.uint8)  # (x, y, z): two sagittal slices
        pixels[:, :, 6:] = 200  # superior
        nibabel.save(nibabel.Nifti1Image(pixels, np.eye(4)), tmp_path / "a.nii")
        picture = thumbnail(studies(tmp_path)[0].series[0].image, 8)
        assert picture.shape == (8, 8, 3)
        assert picture[0].min() > 100
        assert picture[-1].max() < 100


@pytest.mark.corpus
def test_corpus_is_listed_whole():
    if "MEDAI_CORPUS" not in os.environ:
        pytest.skip("MEDAI_CORPUS does not name a folder")
    found = list_studies(os.environ["MEDAI_CORPUS"])
    assert found.findings == ("1 file is neither DICOM nor NIfTI.",)  # the licence
    assert {one.info.modality for one in found.series} == {"CT", "MR", ""}
    for one in found.series:
        assert open_image(one.path, series_uid=one.series_uid).shape == one.info.shape
        assert thumbnail(one.image).max() > 0

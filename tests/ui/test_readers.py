"""napari's way in: what readers claim, how fast, and what they open in a real viewer."""

from __future__ import annotations

import time
from pathlib import Path

import nibabel
import numpy as np
import pytest
from napari.utils.notifications import notification_manager
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from qtpy.QtWidgets import QApplication, QDialogButtonBox

from napari_medai.core.errors import NoImagesError, ReadError, SeriesChoiceError, SeriesInfo
from napari_medai.ui import choose, commands, readers
from napari_medai.ui.readers import dicom_reader, nifti_reader, read_dicom

NOTHING = [(None,)]


def write_series(folder: Path, uid: str, names: list[str], description: str = "Chest") -> Path:
    """A CT of 4 x 6 pixels, 2 mm slices; all pixels of slice n are n."""
    folder.mkdir(parents=True, exist_ok=True)
    for n, name in enumerate(names):
        ds = Dataset()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = CTImageStorage
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = generate_uid()
        ds.PatientName, ds.PatientID = "Doe^Jane", "ID-4711"
        ds.Modality, ds.SeriesInstanceUID, ds.SeriesNumber, ds.SeriesDescription = "CT", uid, 7, description
        ds.ImagePositionPatient, ds.ImageOrientationPatient = [0, 0, 2 * n], [1, 0, 0, 0, 1, 0]
        ds.PixelSpacing, ds.SliceThickness = [0.5, 0.7], 2
        ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", 0
        ds.Rows, ds.Columns, ds.BitsAllocated, ds.BitsStored, ds.HighBit = 4, 6, 16, 16, 15
        ds.PixelData = np.full((4, 6), n, np.uint16).tobytes()
        ds.save_as(folder / name, enforce_file_format=True)
    return folder


@pytest.fixture
def chest(tmp_path):
    return write_series(tmp_path / "chest", "1.2.3.1", ["a.dcm", "b.dcm", "c.dcm"])


@pytest.fixture
def study(tmp_path):
    """Two series in one folder, files without extension."""
    write_series(tmp_path / "study", "1.2.3.1", ["im_1", "im_2", "im_3"], "Chest")
    return write_series(tmp_path / "study", "1.2.3.2", ["im_4", "im_5"], "Head")


class TestClaims:
    def test_by_name(self, tmp_path):
        assert dicom_reader(str(tmp_path / "not there.dcm")) is read_dicom
        assert dicom_reader(["A.DCM", "b.ima"]) is read_dicom
        assert nifti_reader("brain.NII.gz") is readers.read_nifti
        assert nifti_reader(["a.nii", "b.nii.gz"]) is readers.read_nifti

    def test_pairs_of_nifti_and_headers_of_others(self, tmp_path):
        nibabel.save(nibabel.Nifti1Pair(np.zeros((2, 3, 4), np.int16), np.eye(4)), tmp_path / "brain.hdr")
        assert nifti_reader(str(tmp_path / "brain.hdr")) is readers.read_nifti
        assert nifti_reader(str(tmp_path / "brain.img")) is readers.read_nifti
        (tmp_path / "map.hdr").write_text("ENVI")
        assert nifti_reader(str(tmp_path / "map.hdr")) is None
        assert nifti_reader(str(tmp_path / "gone.img")) is None

    def test_by_content(self, study, tmp_path):
        assert dicom_reader(str(study / "im_1")) is read_dicom
        other = tmp_path / "IM000001"
        other.write_bytes(b"x" * 200)
        assert dicom_reader(str(other)) is None

    def test_folders(self, study, tmp_path):
        assert dicom_reader(str(study)) is read_dicom
        (tmp_path / "cells.zarr").mkdir()
        assert dicom_reader(str(tmp_path / "cells.zarr")) is None
        (tmp_path / "group").mkdir()
        (tmp_path / "group" / "zarr.json").touch()
        assert dicom_reader(str(tmp_path / "group")) is None

    @pytest.mark.parametrize("path", ["", [], ["a.dcm", "b.png"], "photo.png", "a\0b", "x" * 5000, None, 3, [None]])
    def test_everything_else_is_left_to_others(self, path):
        assert dicom_reader(path) is None
        assert nifti_reader(path) is None

    def test_answers_within_a_millisecond(self, study, chest):
        paths = [str(study), str(study / "im_1"), str(chest / "a.dcm"), "brain.nii.gz", [str(chest / "a.dcm")] * 50]
        for path in paths:
            fastest = 1.0
            for _ in range(5):
                start = time.perf_counter()
                dicom_reader(path)
                nifti_reader(path)
                fastest = min(fastest, time.perf_counter() - start)
            assert fastest < 1e-3


class TestDicomInTheViewer:
    def test_one_file_opens_its_series(self, make_napari_viewer, chest):
        viewer = make_napari_viewer()
        (layer,) = viewer.open(str(chest / "b.dcm"), plugin="napari-medai")
        assert layer.data.shape == (3, 4, 6)
        np.testing.assert_allclose(layer.scale, (2, 0.5, 0.7))
        assert [str(u) for u in layer.units] == ["millimeter"] * 3
        assert layer.axis_labels == ("z", "y", "x")
        assert "Doe" not in str(layer.metadata["medai"]) + layer.name
        assert "4711" not in str(layer.metadata["medai"]) + layer.name

    def test_dropped_files_open_their_series_once(self, make_napari_viewer, chest):
        viewer = make_napari_viewer()
        viewer.open([str(chest / name) for name in ("a.dcm", "b.dcm", "c.dcm")], plugin="napari-medai")
        assert len(viewer.layers) == 1
        # the same path once more is meant
        viewer.open(str(chest / "a.dcm"), plugin="napari-medai")
        assert len(viewer.layers) == 2

    def test_files_opened_as_a_stack(self, make_napari_viewer, chest):
        viewer = make_napari_viewer()
        viewer.open([str(chest / "a.dcm"), str(chest / "b.dcm")], stack=True, plugin="napari-medai")
        assert [layer.data.shape for layer in viewer.layers] == [(3, 4, 6)]

    def test_folder_with_one_series(self, make_napari_viewer, chest):
        viewer = make_napari_viewer()
        (layer,) = viewer.open(str(chest), plugin="napari-medai")
        assert layer.data.shape == (3, 4, 6)

    def test_the_user_chooses_series(self, make_napari_viewer, study, monkeypatch):
        asked = []
        monkeypatch.setattr(readers, "choose_series", lambda path, series: asked.append(series) or list(series))
        viewer = make_napari_viewer()
        layers = viewer.open(str(study), plugin="napari-medai")
        assert [s.uid for s in asked[0]] == ["1.2.3.1", "1.2.3.2"]
        assert sorted(layer.data.shape[0] for layer in layers) == [2, 3]

    def test_the_user_changes_their_mind(self, make_napari_viewer, study, monkeypatch):
        monkeypatch.setattr(readers, "choose_series", lambda path, series: [])
        viewer = make_napari_viewer()
        assert viewer.open(str(study), plugin="napari-medai") == []

    def test_several_series_and_nobody_to_ask(self, make_napari_viewer, study):
        viewer = make_napari_viewer()
        with pytest.raises(SeriesChoiceError, match=r"1\.2\.3\.2"):
            viewer.open(str(study), plugin="napari-medai")
        assert len(viewer.layers) == 0

    def test_folder_without_images(self, make_napari_viewer, tmp_path):
        (tmp_path / "notes.txt").write_text("nothing")
        viewer = make_napari_viewer()
        with pytest.raises(NoImagesError, match="holds no DICOM image"):
            viewer.open(str(tmp_path), plugin="napari-medai")

    def test_broken_file(self, make_napari_viewer, chest):
        whole = (chest / "a.dcm").read_bytes()
        (chest / "a.dcm").write_bytes(whole[:140])
        viewer = make_napari_viewer()
        with pytest.raises(ReadError):
            viewer.open(str(chest / "a.dcm"), plugin="napari-medai")
        assert len(viewer.layers) == 0

    def test_missing_slice_is_told(self, make_napari_viewer, tmp_path):
        folder = write_series(tmp_path / "gap", "1.2.3.9", ["a.dcm", "b.dcm", "c.dcm", "d.dcm"])
        (folder / "c.dcm").unlink()
        viewer = make_napari_viewer()
        notification_manager.records.clear()
        (layer,) = viewer.open(str(folder), plugin="napari-medai")
        told = [note.message for note in notification_manager.records]
        assert layer.metadata["medai"]["findings"]
        assert any(layer.name in message for message in told)


class TestNiftiInTheViewer:
    def test_image(self, make_napari_viewer, tmp_path):
        path = tmp_path / "t1.nii.gz"
        pixels = np.random.default_rng(0).normal(100, 20, (5, 4, 3)).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(pixels, np.diag([-2.0, -3.0, 4.0, 1.0])), path)
        viewer = make_napari_viewer()
        (layer,) = viewer.open(str(path), plugin="napari-medai")
        assert (type(layer).__name__, layer.name) == ("Image", "t1")
        np.testing.assert_allclose(layer.scale, (4, 3, 2))
        np.testing.assert_allclose(np.asarray(layer.data)[2, 3, 4], pixels[4, 3, 2])

    def test_mask_opens_as_labels(self, make_napari_viewer, tmp_path):
        path = tmp_path / "mask.nii.gz"
        mask = np.zeros((5, 4, 3), np.uint8)
        mask[1:3] = 2
        nibabel.save(nibabel.Nifti1Image(mask, np.eye(4)), path)
        viewer = make_napari_viewer()
        (layer,) = viewer.open(str(path), plugin="napari-medai")
        assert type(layer).__name__ == "Labels"
        assert [str(u) for u in layer.units] == ["millimeter"] * 3


def infos() -> list[SeriesInfo]:
    return [
        SeriesInfo("1.2.840.113619.2.5.1762583153.1", "CT", "Chest", 3, (40, 512, 512), (1.25, 0.7, 0.7), 40),
        SeriesInfo("1.2.840.113619.2.5.1762583153.2", "MR", "", None, (20, 256, 256), (5, 0.9, 0.9), 20),
    ]


class TestDialog:
    def test_shows_what_to_choose_by(self, qtbot):
        dialog = choose.SeriesDialog("study", infos())
        qtbot.addWidget(dialog)
        cells = [[dialog.table.item(row, column).text() for column in range(7)] for row in range(2)]
        assert cells[0] == ["3", "CT", "Chest", "40 × 512 × 512", "1.25 × 0.7 × 0.7", "40", "1762583153.1"]
        assert cells[1][:3] == ["", "MR", ""]

    def test_several_rows(self, qtbot):
        dialog = choose.SeriesDialog("study", infos())
        qtbot.addWidget(dialog)
        assert [s.modality for s in dialog.chosen()] == ["CT"]
        dialog.table.selectAll()
        assert [s.modality for s in dialog.chosen()] == ["CT", "MR"]
        dialog.table.clearSelection()
        assert not dialog.buttons.button(QDialogButtonBox.StandardButton.Open).isEnabled()

    def test_asks_over_the_viewer(self, make_napari_viewer, monkeypatch):
        make_napari_viewer(show=True)
        monkeypatch.setattr(choose.SeriesDialog, "exec", lambda self: self.DialogCode.Accepted)
        assert [s.modality for s in choose.choose_series("/data/study", infos())] == ["CT"]
        monkeypatch.setattr(choose.SeriesDialog, "exec", lambda self: self.DialogCode.Rejected)
        assert choose.choose_series("/data/study", infos()) == []
        QApplication.processEvents()


class TestCommands:
    @pytest.fixture
    def run(self, make_napari_viewer):
        """Run a command the way napari's menu does."""
        from napari._app_model import get_app_model

        viewer = make_napari_viewer()
        return viewer, lambda name: get_app_model().commands.execute_command(f"napari-medai.{name}").result()

    def test_folder(self, run, chest, monkeypatch):
        viewer, execute = run
        monkeypatch.setattr(commands, "ask_folder", lambda viewer: str(chest))
        execute("open_dicom_folder")
        assert [layer.data.shape for layer in viewer.layers] == [(3, 4, 6)]

    def test_files_without_extension(self, run, study, monkeypatch):
        viewer, execute = run
        monkeypatch.setattr(commands, "ask_files", lambda viewer: [str(study / "im_4"), str(study / "im_5")])
        execute("open_dicom_files")
        assert [layer.data.shape for layer in viewer.layers] == [(2, 4, 6)]

    def test_changed_mind(self, run, monkeypatch):
        viewer, execute = run
        monkeypatch.setattr(commands, "ask_folder", lambda viewer: "")
        monkeypatch.setattr(commands, "ask_files", lambda viewer: [])
        execute("open_dicom_folder")
        execute("open_dicom_files")
        assert len(viewer.layers) == 0

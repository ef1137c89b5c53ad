"""The study browser in a real viewer."""

from __future__ import annotations

import gc
import logging
import threading
import time
import weakref
from pathlib import Path

import nibabel
import numpy as np
import pytest
from napari.utils.notifications import notification_manager
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from qtpy.QtCore import QMimeData, QPointF, Qt, QUrl
from qtpy.QtGui import QColor, QDragEnterEvent, QDropEvent, QPixmap
from qtpy.QtWidgets import QApplication, QTreeWidgetItem

from napari_medai.core.contours import Contour, Contours, Region
from napari_medai.io import save
from napari_medai.ui import browser as browser_module
from napari_medai.ui.browser_rows import MIME, Colors, pixmap_of, row_of

SECRETS = ("Doe", "Jane", "ID-4711", "1961", "2004-08-26")


def write(
    folder: Path, series: str, count: int = 3, description: str = "Chest", modality: str = "CT", **fields
) -> Path:
    """Slices of 4 x 6 pixels, 2 mm apart; all pixels of slice n are 100 n."""
    folder.mkdir(parents=True, exist_ok=True)
    for n in range(count):
        ds = Dataset()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = CTImageStorage
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = generate_uid()
        ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.StudyDate = "Doe^Jane", "ID-4711", "19610101", "20040826"
        ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SeriesNumber = "1.9", series, int(series[-1])
        ds.Modality, ds.SeriesDescription, ds.FrameOfReferenceUID = modality, description, "1.7"
        ds.ImagePositionPatient, ds.ImageOrientationPatient = [0, 0, 2 * n], [1, 0, 0, 0, 1, 0]
        ds.PixelSpacing, ds.SliceThickness = [0.5, 0.5], 2
        ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", 0
        ds.Rows, ds.Columns, ds.BitsAllocated, ds.BitsStored, ds.HighBit = 4, 6, 16, 16, 15
        ds.PixelData = np.full((4, 6), 100 * n, np.uint16).tobytes()
        for keyword, value in fields.items():
            setattr(ds, keyword, value)
        ds.save_as(folder / f"{series}_{n}", enforce_file_format=True)
    return folder


@pytest.fixture
def study(tmp_path):
    """A CT of the chest and one of the head in one folder, and a text file."""
    write(tmp_path / "study", "1.1", 3, "Chest")
    write(tmp_path / "study", "1.2", 2, "Head")
    (tmp_path / "study" / "notes.txt").write_text("not an image")
    return tmp_path / "study"


def working() -> list[str]:
    """Our threads."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("medai-") and not thread.daemon]


@pytest.fixture
def viewer(make_napari_viewer):
    yield make_napari_viewer()
    until(lambda: not working(), 5)


@pytest.fixture
def browser(viewer):
    _, widget = viewer.window.add_plugin_dock_widget("napari-medai", "Study browser")
    widget.resize(400, 800)
    yield widget
    widget.stop()


def until(condition, seconds=20):
    """Let Qt work until something is so."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        QApplication.processEvents()
        time.sleep(0.01)


def settled(browser):
    until(lambda: not browser._jobs.listing and not browser._jobs.opening and not browser._jobs.identities)


def listed(browser, *paths):
    browser.add(paths)
    settled(browser)


def items(browser) -> list[QTreeWidgetItem]:
    return list(browser.rows._items())


def item(browser, uid) -> QTreeWidgetItem:
    return next(i for i in items(browser) if row_of(i).series and row_of(i).series.series_uid == uid)


def shown(browser) -> str:
    """Every word that the browser shows."""
    return "\n".join([browser.status.text(), *(f"{i.text(0)} {i.toolTip(0)} {row_of(i).note}" for i in items(browser))])


def double_click(qtbot, browser, uid):
    browser.rows.scrollToItem(item(browser, uid))
    where = browser.rows.visualItemRect(item(browser, uid)).center()
    qtbot.mouseClick(browser.rows.viewport(), Qt.MouseButton.LeftButton, pos=where)
    qtbot.mouseDClick(browser.rows.viewport(), Qt.MouseButton.LeftButton, pos=where)


def test_lists_a_folder_with_thumbnails_and_says_what_was_left_out(browser, study, tmp_path):
    nibabel.save(nibabel.Nifti1Image(np.zeros((6, 5, 4), np.int16), np.eye(4)), study / "b.nii.gz")
    listed(browser, study)
    assert browser.status.text() == "1 patient, 1 study, 3 series; 1 file not read"
    texts = [i.text(0) for i in items(browser)]
    assert texts[:2] == ["Patient 1", "Study 1"]
    assert texts[2] == "CT, 1  Chest, 6 × 4 × 3, 0.5 × 0.5 × 2 mm, 3 files"
    assert texts[4] == "Files without a patient"
    assert texts[-2:] == ["1 file not read", "1 file is neither DICOM nor NIfTI."]
    until(lambda: row_of(item(browser, "1.1")).thumbnail is not None)
    picture = row_of(item(browser, "1.1")).thumbnail.toImage()
    assert picture.width() / picture.height() == pytest.approx(6 / 4, rel=0.03)


def test_double_click_opens_exactly_that_series(browser, viewer, study, qtbot):
    listed(browser, study)
    double_click(qtbot, browser, "1.2")
    until(lambda: len(viewer.layers) == 1)
    settled(browser)
    layer = viewer.layers[0]
    assert layer.metadata["medai"]["volume"].meta["series_uid"] == "1.2"
    assert layer.data.shape == (2, 4, 6)
    assert np.asarray(layer.data[1]).max() == 100
    assert layer.name == "2_Head"
    np.testing.assert_allclose(layer.scale, (2, 0.5, 0.5))
    assert browser.status.text() == "1 layer opened."


def test_enter_opens_all_that_is_selected_in_order_and_in_one_space(browser, viewer, study, qtbot):
    listed(browser, study)
    for uid in ("1.2", "1.1"):
        item(browser, uid).setSelected(True)
    qtbot.keyClick(browser.rows, Qt.Key.Key_Return)
    until(lambda: len(viewer.layers) == 2)
    settled(browser)
    assert [layer.name for layer in viewer.layers] == ["1_Chest", "2_Head"]
    ways = [layer.metadata["medai"]["to_world"] for layer in viewer.layers]
    np.testing.assert_allclose(ways[0], ways[1])


def test_a_structure_set_is_listed_drawn_and_opened(browser, viewer, tmp_path, qtbot):
    square = np.array([(2, 0, 0), (2, 0, 1.5), (2, 1, 1.5), (2, 1, 0)], float)
    scan = write(tmp_path / "study", "1.1")
    (tmp_path / "study" / "rt").mkdir()
    path = save(
        Contours((Region(1, "node", (Contour(square),)),), source=str(scan)),
        tmp_path / "study" / "rt" / "a.rtstruct.dcm",
    )
    listed(browser, tmp_path / "study")
    assert browser.status.text() == "1 patient, 1 study, 2 series"
    row = next(i for i in items(browser) if row_of(i).series and row_of(i).series.path == str(path))
    assert row.text(0).startswith("RTSTRUCT, ")
    assert row.text(0).endswith(", 1 region, 1 file")
    assert "1 region, 1 file" in row.toolTip(0)
    until(lambda: row_of(row).thumbnail is not None)
    assert not row_of(row).thumbnail.isNull()
    row.setSelected(True)
    assert "Open repaired (tilt, missing slices)" not in [action.text() for action in browser.menu().actions()]
    double_click(qtbot, browser, row_of(row).series.series_uid)
    until(lambda: len(viewer.layers) == 1)
    settled(browser)
    assert viewer.layers[0].metadata["medai"]["volume"].meta["label_names"] == {1: "node"}
    assert np.asarray(viewer.layers[0].data).max() == 1


def test_enter_folds_patients(browser, study, qtbot):
    listed(browser, study)
    top = browser.rows.topLevelItem(0)
    browser.rows.setCurrentItem(top)
    qtbot.keyClick(browser.rows, Qt.Key.Key_Return)
    assert not top.isExpanded()
    listed(browser, write(study.parent / "more", "1.3"))
    assert not browser.rows.topLevelItem(0).isExpanded(), "adding a folder unfolds nothing"


class TestIdentity:
    def test_is_hidden_until_asked_and_again_after(self, browser, study):
        listed(browser, study)
        assert not browser.show_identity.isChecked()
        assert not [secret for secret in SECRETS if secret in shown(browser)]
        browser.show_identity.setChecked(True)
        until(lambda: "Doe, Jane" in shown(browser))
        assert items(browser)[0].text(0) == "Patient 1 · Doe, Jane · ID-4711 · born 1961-01-01"
        assert items(browser)[1].text(0) == "Study 1 · 2004-08-26"
        listed(browser, write(study.parent / "more", "1.3", StudyInstanceUID="1.8"))
        until(lambda: shown(browser).count("2004-08-26") == 2)
        browser.show_identity.setChecked(False)
        assert not [secret for secret in SECRETS if secret in shown(browser)]

    def test_is_off_in_a_new_browser(self, viewer):
        _, browser = viewer.window.add_plugin_dock_widget("napari-medai", "Study browser")
        browser.show_identity.setChecked(True)
        viewer.window.remove_dock_widget(browser)
        del browser
        _, again = viewer.window.add_plugin_dock_widget("napari-medai", "Study browser")
        assert not again.show_identity.isChecked()

    def test_appears_in_no_layer_no_log_and_no_notification(self, browser, viewer, study, caplog, capsys):
        caplog.set_level(logging.INFO)
        before = len(notification_manager.records)
        browser.show_identity.setChecked(True)
        listed(browser, study)
        browser.open(browser.listing.series)
        until(lambda: len(viewer.layers) == 2)
        settled(browser)
        told = [str(record.message) for record in notification_manager.records[before:]]
        layers = [f"{layer.name} {layer.metadata}" for layer in viewer.layers]
        out = capsys.readouterr()
        everything = "\n".join([*told, *layers, caplog.text, out.out, out.err, viewer.title, str(viewer.status)])
        assert not [secret for secret in SECRETS if secret in everything]


def test_dragging_carries_the_series_and_dropping_opens_them(browser, viewer, study):
    listed(browser, study)
    item(browser, "1.2").setSelected(True)
    data = browser.rows.mimeData([item(browser, "1.2")])
    assert data.formats() == [MIME]
    canvas = viewer.window._qt_viewer
    left = Qt.MouseButton.LeftButton
    none = Qt.KeyboardModifier.NoModifier
    enter = QDragEnterEvent(QPointF(9, 9).toPoint(), Qt.DropAction.CopyAction, data, left, none)
    enter.ignore()
    QApplication.sendEvent(canvas, enter)
    assert enter.isAccepted()
    QApplication.sendEvent(canvas, QDropEvent(QPointF(9, 9), Qt.DropAction.CopyAction, data, left, none))
    until(lambda: len(viewer.layers) == 1)
    settled(browser)
    assert viewer.layers[0].metadata["medai"]["volume"].meta["series_uid"] == "1.2"
    # what is not ours stays napari's
    other = QMimeData()
    enter = QDragEnterEvent(QPointF(9, 9).toPoint(), Qt.DropAction.CopyAction, other, left, none)
    QApplication.sendEvent(canvas, enter)
    assert not enter.isAccepted()


def test_a_folder_dropped_on_the_dock_is_listed(browser, study):
    data = QMimeData()
    data.setUrls([QUrl.fromLocalFile(str(study))])
    left, none = Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier
    enter = QDragEnterEvent(QPointF(9, 9).toPoint(), Qt.DropAction.CopyAction, data, left, none)
    QApplication.sendEvent(browser, enter)
    assert enter.isAccepted()
    QApplication.sendEvent(browser, QDropEvent(QPointF(9, 9), Qt.DropAction.CopyAction, data, left, none))
    settled(browser)
    assert len(browser.listing.series) == 2


def test_filter(browser, study):
    listed(browser, study)
    browser.filter.setText("ct HEAD")
    assert [i.isHidden() for i in items(browser)[:4]] == [False, False, True, False]
    assert browser.status.text().startswith("1 of 2 series")
    item(browser, "1.1").setSelected(True)
    assert browser.rows.chosen() == [], "what cannot be seen is not opened"
    browser.filter.setText("nothing like it")
    assert all(i.isHidden() for i in items(browser)[:4])
    browser.filter.clear()
    assert not any(i.isHidden() for i in items(browser))


def test_buttons_ask_and_clear(browser, study, qtbot, monkeypatch):
    monkeypatch.setattr(browser_module.commands, "ask_folder", lambda viewer: str(study))
    monkeypatch.setattr(browser_module.commands, "ask_files", lambda viewer: [])
    qtbot.mouseClick(browser.add_folder, Qt.MouseButton.LeftButton)
    qtbot.mouseClick(browser.add_file, Qt.MouseButton.LeftButton)
    settled(browser)
    assert len(browser.listing.series) == 2
    assert not browser.open_button.isEnabled()
    item(browser, "1.1").setSelected(True)
    assert browser.open_button.isEnabled()
    qtbot.mouseClick(browser.clear_button, Qt.MouseButton.LeftButton)
    assert browser.rows.topLevelItemCount() == 0
    assert browser.status.text() == ""


class TestMenu:
    def titles(self, browser, *uids):
        browser.rows.clearSelection()
        for uid in uids:
            item(browser, uid).setSelected(True)
        menu = browser.menu()
        found = [] if menu is None else [action.text() for action in menu.actions()]
        if menu is not None:
            menu.deleteLater()
        return found

    def test_offers_what_fits(self, browser, study):
        write(study, "1.3", modality="PT", description="WB")
        nibabel.save(nibabel.Nifti1Image(np.zeros((6, 5, 4), np.int16), np.eye(4)), study / "b.nii.gz")
        listed(browser, study)
        assert self.titles(browser) == []
        assert self.titles(browser, "1.1") == ["Open", "Open repaired (tilt, missing slices)"]
        assert self.titles(browser, "1.3")[-1] == "Open as SUV"
        assert self.titles(browser, "1.1", "1.3") == ["Open", "Open repaired (tilt, missing slices)"]
        assert self.titles(browser, "") == ["Open"]  # NIfTI

    def test_repaired(self, browser, viewer, tmp_path):
        write(tmp_path / "gap", "1.1", 4)
        (tmp_path / "gap" / "1.1_2").unlink()
        listed(browser, tmp_path / "gap")
        assert "missing" in item(browser, "1.1").toolTip(0)
        item(browser, "1.1").setSelected(True)
        menu = browser.menu()
        menu.actions()[1].trigger()
        menu.deleteLater()
        until(lambda: len(viewer.layers) == 1)
        settled(browser)
        assert np.asarray(viewer.layers[0].data)[2].max() == 200  # between 100 and 300

    def test_what_cannot_be_opened_so_is_said(self, browser, viewer, study):
        write(study, "1.3", modality="PT", description="WB")  # a PET without what SUV needs
        listed(browser, study)
        before = len(notification_manager.records)
        item(browser, "1.3").setSelected(True)
        menu = browser.menu()
        menu.actions()[2].trigger()
        menu.deleteLater()
        until(lambda: len(notification_manager.records) > before)
        settled(browser)
        assert len(viewer.layers) == 0
        assert notification_manager.records[-1].severity.value == "error"


def test_broken_files_are_findings(browser, viewer, tmp_path, qtbot):
    folder = write(tmp_path / "broken", "1.1")
    whole = (folder / "1.1_0").read_bytes()
    write(folder, "1.2", 1)
    broken = (folder / "1.2_0").read_bytes()
    (folder / "1.2_0").write_bytes(broken[:-20])  # pixels cut off
    (folder / "cut").write_bytes(whole[:200])
    (folder / "DICOMDIR").write_bytes(whole[:140])
    listed(browser, folder, folder / "DICOMDIR", folder / "gone")
    assert [one.series_uid for one in browser.listing.series if not one.findings] == ["1.1"]
    assert browser.listing.findings
    assert "gone" in shown(browser)


def test_pixels_that_cannot_be_decoded_leave_a_row_without_picture(browser, tmp_path):
    folder = write(tmp_path / "cut", "1.1", 1)
    listed(browser, folder)
    until(lambda: row_of(item(browser, "1.1")).thumbnail is not None)
    # the file changes after it was listed
    browser._jobs.drawn.append((browser.listing.series[0].key, None))
    browser._wake()
    until(lambda: row_of(item(browser, "1.1")).thumbnail.isNull())
    assert not browser.grab().isNull()


def test_clearing_does_not_wait_and_what_comes_later_is_not_shown(browser, viewer, study):
    listed(browser, study)
    browser.show_identity.setChecked(True)
    browser.open(list(browser.listing.series) * 20)
    browser.clear()
    until(lambda: not working())
    shown_at_once = len(viewer.layers)
    until(lambda: not browser._timer.isActive())
    assert len(viewer.layers) == shown_at_once
    assert browser.rows.topLevelItemCount() == 0
    assert not browser._jobs.busy


def test_cancel_stops_listing(browser, tmp_path):
    folder = write(tmp_path / "many", "1.1", 40)
    browser.add([folder])
    browser.cancel()
    settled(browser)
    assert browser.status.text() in ("Cancelled.", "1 patient, 1 study, 1 series")


@pytest.mark.parametrize("way", ["dock", "viewer"])
def test_closing_while_it_lists_leaves_nothing(viewer, tmp_path, way):
    browser = viewer.window.add_plugin_dock_widget("napari-medai", "Study browser")[1]
    folder = write(tmp_path / "many", "1.1", 60)
    browser.add([folder] * 50)
    assert any(name.startswith("medai-study") for name in working())
    gone = weakref.ref(browser)
    if way == "dock":
        viewer.window.remove_dock_widget(browser)
        assert not working()
        assert not browser._timer.isActive()
        del browser
        gc.collect()
        assert gone() is None
        viewer.theme = "light"  # no callback of the browser is left
    else:
        del browser
        viewer.close()
        until(lambda: not working(), 5)


def test_drawn_in_both_themes_at_400_pixels(browser, viewer, study):
    listed(browser, study)
    until(lambda: row_of(item(browser, "1.1")).thumbnail is not None)
    item(browser, "1.1").setSelected(True)
    grounds = {}
    for theme in ("dark", "light"):
        viewer.theme = theme
        QApplication.processEvents()
        picture = browser.rows.grab().toImage()
        box = browser.rows.visualItemRect(item(browser, "1.1"))
        assert picture.pixelColor(box.right() - 2, box.bottom() - 2) == Colors.of(theme).selected
        grounds[theme] = picture.pixelColor(picture.width() // 2, picture.height() - 3).lightness()
    assert grounds["dark"] < 80 < 180 < grounds["light"]
    assert browser.minimumSizeHint().width() <= 400


def test_every_control_can_be_found_and_explains_itself(browser):
    for name in ("addFolder", "addFile", "clear", "filter", "showIdentity", "open", "cancel"):
        control = browser.findChild(object, name)
        assert control is not None, name
        assert control.toolTip(), name
    assert browser.rows.accessibleName()


def test_pixmap_keeps_rows_whose_length_is_no_multiple_of_four():
    pixels = np.zeros((2, 5, 3), np.uint8)
    pixels[1, 4] = (10, 20, 30)
    pixmap = pixmap_of(pixels)
    assert isinstance(pixmap, QPixmap)
    assert pixmap.toImage().pixelColor(4, 1) == QColor(10, 20, 30)

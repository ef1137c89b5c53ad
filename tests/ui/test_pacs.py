"""The archive dock, in a real viewer against Orthanc where that is installed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from napari_medai.pacs import Query, SeriesEntry, StudyEntry, connect
from napari_medai.pacs.archive import Identity
from napari_medai.ui.pacs import ArchiveDock
from tests.pacs.orthanc import PATIENT_ID, PLAIN, SLICES, STUDY, Orthanc, archive, filled, no_secrets, study  # noqa: F401


def settled(qtbot, dock: ArchiveDock) -> None:
    qtbot.waitUntil(lambda: dock.job is None, timeout=30_000)


def texts(dock: ArchiveDock) -> list[str]:
    """All that the tree holds, shown or not."""
    tops = [dock.tree.topLevelItem(n) for n in range(dock.tree.topLevelItemCount())]
    items = [item for top in tops for item in (top, *(top.child(k) for k in range(top.childCount())))]
    return [item.text(n) for item in items for n in range(item.columnCount())]


def test_names_are_in_the_tree_only_while_shown(make_napari_viewer, qtbot):
    viewer = make_napari_viewer()
    dock = ArchiveDock(viewer)
    viewer.window.add_dock_widget(dock)
    who = Identity("PID-77", "Doe^Jane", "19700101", "ACC-9")
    head = StudyEntry("1.2", "20240102", "Head", ("MR",), instances=3, identity=who)
    series = SeriesEntry("1.2", "1.2.1", "MR", 4, "T1", 3)
    dock._show([(head, [series])])
    assert dock.status.text() == "1 study"
    assert [text for text in texts(dock) if "Doe" in text or "PID" in text] == []
    assert "20240102" in texts(dock)
    viewer.window._qt_window.show()
    dock.identity.setChecked(True)
    assert "PID-77 Doe^Jane" in texts(dock)
    header = dock.tree.header()
    qtbot.waitUntil(lambda: not header.isSectionHidden(4) and dock.tree.isVisible())
    assert header.sectionViewportPosition(4) + header.sectionSize(4) <= dock.tree.viewport().width()
    # a search made while names are shown shows them, too
    dock._show([(head, [series]), (head, [])])
    assert dock.status.text() == "2 studies"
    assert texts(dock).count("PID-77 Doe^Jane") == 2
    dock.identity.setChecked(False)
    assert [text for text in texts(dock) if "Doe" in text or "PID" in text] == []


@pytest.mark.pacs
def test_find_open_paint_push_pull(make_napari_viewer, qtbot, filled: Orthanc, tmp_path: Path):  # noqa: F811
    viewer = make_napari_viewer()
    dock = ArchiveDock(viewer)
    viewer.window.add_dock_widget(dock)
    dock.search()
    assert "is no address" in dock.status.text()
    dock.address.setCurrentText(filled.web)
    dock.date.setText("yesterday")
    dock.search()
    assert "is no date" in dock.status.text()
    dock.date.clear()
    dock.patient_id.setText(PATIENT_ID)
    dock.search()
    settled(qtbot, dock)
    assert [(s.uid, len(series) >= 2) for s, series in dock.found] == [(STUDY, True)]
    assert dock.tree.isColumnHidden(4), "whom it is of is hidden"
    dock.identity.setChecked(True)
    assert not dock.tree.isColumnHidden(4)
    assert PATIENT_ID in dock.tree.topLevelItem(0).text(4)

    dock.open_selected()
    assert "Select a series" in dock.status.text()
    rows = [one.uid for one in dock.found[0][1]]
    dock.tree.topLevelItem(0).child(rows.index(PLAIN)).setSelected(True)
    dock.open_selected()
    settled(qtbot, dock)
    (layer,) = viewer.layers
    assert layer.data.shape == (SLICES, 24, 20)

    dock.push_layer()
    assert "Select a labels layer" in dock.status.text()
    viewer._new_labels()
    viewer.layers[-1].data_setitem(tuple(np.array([[4, 5], [10, 11], [9, 9]])), 1)
    before = {s.uid for s in connect(filled.web).find_series(Query(study_uid=STUDY, modality="SEG"))}
    dock.push_layer()
    settled(qtbot, dock)
    assert "was stored" in dock.status.text()
    after = {s.uid for s in connect(filled.web).find_series(Query(study_uid=STUDY, modality="SEG"))}
    assert len(after - before) == 1

    dock.pull_selected(tmp_path)
    settled(qtbot, dock)
    assert f"{SLICES} fetched" in dock.status.text()
    assert len(list((tmp_path / PLAIN).iterdir())) == SLICES

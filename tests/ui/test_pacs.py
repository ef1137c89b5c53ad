"""The archive dock in a real viewer, against Orthanc."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from napari_medai.pacs import Query, connect
from napari_medai.ui.pacs import ArchiveDock
from tests.pacs.orthanc import PATIENT_ID, PLAIN, SLICES, STUDY, Orthanc, archive, filled, no_secrets, study  # noqa: F401

pytestmark = pytest.mark.pacs


def settled(qtbot, dock: ArchiveDock) -> None:
    qtbot.waitUntil(lambda: dock.job is None, timeout=30_000)


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

"""The archive dock: look for studies in a PACS, open or pull their series, push a layer back.

All that waits for the network runs in a thread; the dock looks at it a few times a second.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtpy.QtWidgets import (
    QAbstractItemView,
    QCheckBox,
    QComboBox,
    QFileDialog,
    QFormLayout,
    QHBoxLayout,
    QLineEdit,
    QPushButton,
    QTreeWidget,
    QTreeWidgetItem,
    QVBoxLayout,
    QWidget,
)

from napari_medai.core.errors import InputError, MedaiError
from napari_medai.core.stage import Progress
from napari_medai.pacs import Access, Query, SeriesEntry, StudyEntry, connect, open_remote
from napari_medai.pacs.archive import Archive
from napari_medai.pacs.node import known_archives
from napari_medai.ui.job import Job
from napari_medai.ui.working import Working

if TYPE_CHECKING:
    import napari.viewer

_COLUMNS = ("Date / no.", "Modality", "Description", "Instances", "Patient")
_PATIENT = _COLUMNS.index("Patient")
Found = list[tuple[StudyEntry, list[SeriesEntry]]]


class ArchiveDock(QWidget):
    """Find, open, pull and push over DICOMweb and DIMSE."""

    def __init__(self, viewer: napari.viewer.Viewer) -> None:
        super().__init__()
        self.viewer = viewer
        self.found: Found = []
        self.address = QComboBox()
        self.address.setEditable(True)
        self.address.lineEdit().setPlaceholderText("https://host/dicom-web or dicom://AET@host:port")
        self.user, self.password = QLineEdit(), QLineEdit()
        self.password.setEchoMode(QLineEdit.EchoMode.Password)
        self.patient_id, self.accession = QLineEdit(), QLineEdit()
        self.modality, self.date = QLineEdit(), QLineEdit()
        self.date.setPlaceholderText("YYYYMMDD or YYYYMMDD-YYYYMMDD")
        form = QFormLayout()
        for label, field in (
            ("Archive", self.address), ("User", self.user), ("Password", self.password),
            ("Patient ID", self.patient_id), ("Accession no.", self.accession), ("Study date", self.date),
            ("Modality", self.modality),
        ):  # fmt: skip
            form.addRow(label, field)
        self.identity = QCheckBox("Show who the studies are of")
        self.tree = QTreeWidget()
        self.identity.toggled.connect(self._name)
        self.tree.setHeaderLabels(list(_COLUMNS))
        # beside the date, where a dock of any width shows it
        self.tree.header().moveSection(_PATIENT, 1)
        self.tree.setSelectionMode(QAbstractItemView.SelectionMode.ExtendedSelection)
        self.tree.setColumnHidden(_PATIENT, True)
        self.tree.itemDoubleClicked.connect(lambda item, _: self.open_selected() if item.parent() else None)
        self.search_button = self._button("Search", self.search)
        self.open_button = self._button("Open", self.open_selected)
        self.pull_button = self._button("Pull to folder…", self._ask_and_pull)
        self.push_button = self._button("Push selected layer", self.push_layer)
        self.working = Working("medai-pacs")
        self.bar, self.status, self.cancel_button = self.working.bar, self.working.status, self.working.cancel_button
        layout = QVBoxLayout(self)
        layout.addLayout(form)
        layout.addWidget(self.search_button)
        layout.addWidget(self.identity)
        layout.addWidget(self.tree)
        buttons = QHBoxLayout()
        for button in (self.open_button, self.pull_button, self.push_button):
            buttons.addWidget(button)
        layout.addLayout(buttons)
        layout.addWidget(self.working)
        self.working.busy_changed.connect(self._on_busy)
        try:
            self.address.addItems(sorted(known_archives()))
        except MedaiError as error:
            self.status.setText(str(error))
        self.address.setCurrentText("")

    def _button(self, text: str, action: Callable[[], None]) -> QPushButton:
        button = QPushButton(text)
        button.clicked.connect(lambda _: action())
        return button

    @property
    def job(self) -> Job[Any] | None:
        """What is under way."""
        return self.working.job

    # what the buttons do

    def search(self) -> None:
        """Look for studies and their series."""
        try:
            query = Query(
                self.patient_id.text().strip(),
                self.accession.text().strip(),
                modality=self.modality.text().strip().upper(),
                date=self.date.text().strip(),
            )
        except MedaiError as error:
            self.status.setText(str(error))
            return
        self._start("Searching", lambda archive, progress: _search(archive, query, progress), self._show)

    def open_selected(self) -> None:
        """Open the selected series: lazily over DICOMweb, pulled into a temporary folder over DIMSE."""
        chosen = self.selected()
        if not chosen:
            self.status.setText("Select a series first.")
            return
        self._start("Opening", lambda archive, progress: _open(archive, chosen, progress), self._add)

    def pull_selected(self, folder: Path) -> None:
        """Pull the selected series into a folder."""
        chosen = self.selected()

        def done(lines: list[str]) -> None:
            self.status.setText("\n".join(lines))

        self._start("Pulling", lambda archive, progress: _pull(archive, chosen, folder, progress), done)

    def push_layer(self) -> None:
        """Save the selected labels layer as a DICOM segmentation on its scan, and send it."""
        from napari_medai.ui.scans import layer_to_volume

        layer = self.viewer.layers.selection.active
        try:
            if layer is None or layer._type_string != "labels":
                raise InputError("Select a labels layer: it is pushed as a DICOM segmentation of its scan.")
            volume = layer_to_volume(layer, list(self.viewer.layers))
        except MedaiError as error:
            self.status.setText(str(error))
            return
        self._start("Pushing", lambda archive, progress: _push(archive, volume, progress), self.status.setText)

    def _ask_and_pull(self) -> None:
        if not self.selected():
            self.status.setText("Select a series first.")
            return
        folder = QFileDialog.getExistingDirectory(self, "Pull to folder")
        if folder:
            self.pull_selected(Path(folder))

    def selected(self) -> list[SeriesEntry]:
        """The series of the selected rows; a study stands for all of its series."""
        chosen: dict[str, SeriesEntry] = {}
        for n, (_, series) in enumerate(self.found):
            top = self.tree.topLevelItem(n)
            for k, one in enumerate(series):
                if top.isSelected() or top.child(k).isSelected():
                    chosen[one.uid] = one
        return list(chosen.values())

    def cancel(self) -> None:
        """Stop what is under way."""
        self.working.cancel()

    # threads

    def _start(self, what: str, work: Callable[[Archive, Progress], Any], then: Callable[[Any], None]) -> None:
        if self.job is not None:
            return
        try:
            archive = self._archive()
        except MedaiError as error:
            self.status.setText(str(error))
            return
        self.working.start(what, lambda progress: work(archive, progress), then)

    def _on_busy(self, busy: bool) -> None:
        for button in (self.search_button, self.open_button, self.pull_button, self.push_button):
            button.setEnabled(not busy)

    def _archive(self) -> Archive:
        address = self.address.currentText().strip()
        known = known_archives().get(address)
        access = known.access if known else Access()
        user, password = self.user.text().strip(), self.password.text()
        if user and password:
            access = replace(access, user=user, password=password)
        return connect(address, access)

    def _show(self, found: Found) -> None:
        self.found = found
        self.tree.clear()
        for study, series in found:
            top = QTreeWidgetItem(
                [study.date, " ".join(study.modalities), study.description, str(study.instances or "")]
            )
            for one in series:
                number = "" if one.number is None else str(one.number)
                top.addChild(QTreeWidgetItem([number, one.modality, one.description, str(one.instances or "")]))
            self.tree.addTopLevelItem(top)
            top.setExpanded(True)
        self._name(self.identity.isChecked())
        count = f"{len(found)} {'study' if len(found) == 1 else 'studies'}"
        self.status.setText(count if found else "The archive has nothing that matches.")

    def _name(self, shown: bool) -> None:
        """Fill the patients' column, or empty it: what is hidden could still be read out of the tree."""
        for n, (study, _) in enumerate(self.found):
            who = study.identity
            self.tree.topLevelItem(n).setText(_PATIENT, f"{who.patient_id} {who.patient_name}".strip() if shown else "")
        self.tree.setColumnHidden(_PATIENT, not shown)
        if shown:
            self.tree.resizeColumnToContents(_PATIENT)

    def _add(self, volumes: list[Any]) -> None:
        from napari.layers import Layer

        from napari_medai.ui.readers import _layers

        for layer in _layers(volumes):
            self.viewer.add_layer(Layer.create(*layer))


def _search(archive: Archive, query: Query, progress: Progress) -> Found:
    studies = archive.find_studies(query)
    found: Found = []
    for n, study in enumerate(studies):
        progress.update(n, len(studies), f"Study {n + 1} of {len(studies)}")
        found.append((study, archive.find_series(Query(study_uid=study.uid, modality=query.modality))))
    return found


def _open(archive: Archive, series: list[SeriesEntry], progress: Progress) -> list[Any]:
    from napari_medai.core.errors import SeriesChoiceError
    from napari_medai.io import open as open_image

    volumes = []
    for n, one in enumerate(series):
        progress.update(n, len(series), f"Series {n + 1} of {len(series)}")
        if archive.node.is_web:
            try:
                volumes.append(open_remote(archive, one.study_uid, one.uid))
            except SeriesChoiceError as several:
                volumes += [open_remote(archive, one.study_uid, image.uid) for image in several.series]
        else:
            from napari_medai.pacs.lazy import own_cache

            outcome = archive.pull(one, own_cache(), progress)
            outcome.check("fetched from", archive.node)
            volumes.append(open_image(outcome.folder or Path()))
    progress.check()
    return volumes


def _pull(archive: Archive, series: list[SeriesEntry], folder: Path, progress: Progress) -> list[str]:
    lines = []
    for one in series:
        outcome = archive.pull(one, folder, progress)
        outcome.check("fetched from", archive.node)
        lines.append(f"{one.description or one.modality}: {outcome.done} fetched, {outcome.skipped} there already.")
    return lines


def _push(archive: Archive, volume: Any, progress: Progress) -> str:
    from napari_medai.io import save

    with tempfile.TemporaryDirectory(prefix="napari-medai-push-") as folder:
        path = save(volume, os.path.join(folder, "segmentation.dcm"))
        progress.check()
        outcome = archive.push([Path(path)], progress)
    outcome.check("stored in", archive.node)
    return f"The segmentation was stored in {archive.node}."

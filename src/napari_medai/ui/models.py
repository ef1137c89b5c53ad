"""The dock of models: what can be run, what waits for a permission, what can be had, and their cards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import Qt, QTimer
from qtpy.QtWidgets import (
    QDialog,
    QFileDialog,
    QHBoxLayout,
    QLineEdit,
    QMessageBox,
    QPushButton,
    QSplitter,
    QTreeWidget,
    QTreeWidgetItem,
    QVBoxLayout,
    QWidget,
)

from napari_medai.core.stage import Progress
from napari_medai.models.catalogue import fetch
from napari_medai.models.spec import ModelSpec
from napari_medai.models.store import add, remove
from napari_medai.models.trust import give
from napari_medai.ui.card import CardText
from napari_medai.ui.modelrows import STATES, ModelRow, rows
from napari_medai.ui.offers import NEWS
from napari_medai.ui.trust import TrustDialog
from napari_medai.ui.working import Working

if TYPE_CHECKING:
    import napari.viewer

# and how wide each may be
_COLUMNS = {"Model": 190, "State": 130, "Stage": 80, "Made for": 130, "Size": 80, "Licence": 130}
_PACKAGES = "Models (*.zip *.yaml *.onnx *.pt *.pth *.ts *.pt2 *.safetensors);;All files (*)"


class ModelsDock(QWidget):
    """Models that are here and that can be had; downloads, adds, checks, allows and removes them."""

    def __init__(self, viewer: napari.viewer.Viewer | None = None) -> None:
        super().__init__()
        self.rows: list[ModelRow] = []
        self.search = QLineEdit()
        self.search.setPlaceholderText("Search: ct, brain, download …")
        self.search.setClearButtonEnabled(True)
        self.search.textChanged.connect(self._show)
        self.tree = QTreeWidget()
        self.tree.setHeaderLabels(list(_COLUMNS))
        self.tree.setRootIsDecorated(False)
        self.tree.setStyleSheet("QTreeView::item { padding: 2px 0 }")
        self.tree.currentItemChanged.connect(lambda *_: self._on_row())
        self.card = CardText()
        self.do_button = self._button("Download", self.do)
        self.check_button = self._button("Check", self.check)
        self.check_button.setToolTip("<p>Compare its files with their hashes, load it, and run its own test data.</p>")
        self.remove_button = self._button("Remove", self.remove)
        self.file_button = self._button("Add file…", self._ask_file)
        self.folder_button = self._button("Add folder…", self._ask_folder)
        self.working = Working("medai-models")
        self.working.busy_changed.connect(lambda _: self._on_row())
        split = QSplitter(Qt.Orientation.Vertical)
        split.addWidget(self.tree)
        split.addWidget(self.card)
        buttons, more = QHBoxLayout(), QHBoxLayout()
        for button in (self.do_button, self.check_button, self.remove_button):
            buttons.addWidget(button)
        for button in (self.file_button, self.folder_button):
            more.addWidget(button)
        layout = QVBoxLayout(self)
        layout.addWidget(self.search)
        layout.addWidget(split, 1)
        layout.addLayout(buttons)
        layout.addLayout(more)
        layout.addWidget(self.working)
        self.setMinimumWidth(280)
        self._on_row()
        QTimer.singleShot(0, self.refresh)

    def _button(self, text: str, action: Callable[[], None]) -> QPushButton:
        button = QPushButton(text)
        button.clicked.connect(lambda _: action())
        return button

    # the list

    def refresh(self, then: str = "") -> None:
        """Look again for what there is; ``then`` is the id of the row to go to."""
        chosen = then or (self.chosen.id if self.chosen else "")
        self.working.start("Looking for models", rows, lambda found: self._filled(found, chosen))

    def _filled(self, found: list[ModelRow], chosen: str) -> None:
        self.rows = found
        self._show()
        for column, widest in enumerate(_COLUMNS.values()):
            self.tree.resizeColumnToContents(column)
            self.tree.setColumnWidth(column, min(self.tree.columnWidth(column), widest))
        self.go_to(chosen)

    def _show(self, *_: Any) -> None:
        chosen = self.chosen
        self.tree.clear()
        for row in self.rows:
            if row.holds(self.search.text()):
                texts = (row.title, STATES[row.state], row.stage, row.made_for, row.size, row.licence)
                item = QTreeWidgetItem(list(texts))
                item.setData(0, Qt.ItemDataRole.UserRole, row.id)
                for column, text in enumerate(texts):
                    item.setToolTip(column, f"{row.id}: {text}")
                self.tree.addTopLevelItem(item)
        if chosen is not None:
            self.go_to(chosen.id)
        self._on_row()

    def go_to(self, model: str) -> bool:
        """Choose the row of a model; whether it is shown."""
        for n in range(self.tree.topLevelItemCount()):
            item = self.tree.topLevelItem(n)
            if item.data(0, Qt.ItemDataRole.UserRole) == model:
                self.tree.setCurrentItem(item)
                return True
        return False

    @property
    def chosen(self) -> ModelRow | None:
        """The chosen row."""
        item = self.tree.currentItem()
        wanted = item.data(0, Qt.ItemDataRole.UserRole) if item is not None else None
        return next((row for row in self.rows if row.id == wanted), None)

    def _on_row(self) -> None:
        row, free = self.chosen, self.working.job is None
        self.card.setMarkdown(row.card if row else "Choose a model to read its card.")
        asks = row is not None and row.state == "asks"
        self.do_button.setText("Permission…" if asks else "Download")
        self.do_button.setEnabled(free and row is not None and row.state in ("asks", "download"))
        self.check_button.setEnabled(free and row is not None and row.state in ("ready", "asks", "damaged"))
        self.remove_button.setEnabled(free and row is not None and row.added is not None)
        self.file_button.setEnabled(free)
        self.folder_button.setEnabled(free)

    # what the buttons do

    def do(self) -> None:
        """Download the chosen model, or ask for the permission that it needs."""
        row = self.chosen
        if row is None:
            return
        if row.state == "download":
            self.working.start(f"Downloading {row.title}", lambda progress: fetch(row.id, progress), self._added)
        elif row.state == "asks" and row.spec is not None and row.added is not None:
            allowed = self._ask(row.spec)
            if allowed:
                spec, package = row.spec, row.added.package
                self.working.start("Allowing", lambda _: give(package, spec, allowed), lambda _: self._changed(row.id))

    def _ask(self, spec: ModelSpec) -> frozenset[str]:
        """What a person allows; nothing if they changed their mind."""
        dialog = TrustDialog(spec, self)
        try:
            accepted = dialog.exec() == QDialog.DialogCode.Accepted
            return dialog.capabilities if accepted else frozenset()
        finally:
            dialog.deleteLater()

    def add(self, path: Path, **answers: Any) -> None:
        """Copy a package into the folder of models."""
        self.working.start(f"Adding {path.name}", lambda progress: _add(path, answers, progress), self._added)

    def check(self) -> None:
        """Compare the chosen model's files with their hashes, and run its own test data."""
        row = self.chosen
        if row is not None:
            self.working.start(f"Checking {row.title}", lambda progress: _check(row.id, progress), self._checked)

    def remove(self) -> None:
        """Delete the chosen model's files, after a question."""
        row = self.chosen
        if row is None or row.added is None:
            return
        question = f"Delete {row.title!r} with its files?"
        if QMessageBox.question(self, "Remove a model", question) == QMessageBox.StandardButton.Yes:
            self.working.start("Removing", lambda _: remove(row.id), lambda _: self._changed(""))

    def _added(self, made: Any) -> None:
        self._changed(made.id)

    def _checked(self, lines: str) -> None:
        self.working.status.setText(lines)

    def _changed(self, model: str) -> None:
        self.refresh(model)
        NEWS.changed.emit()

    def _ask_file(self) -> None:
        path, _ = QFileDialog.getOpenFileName(self, "Add a model", filter=_PACKAGES)
        if path:
            self.add(Path(path))

    def _ask_folder(self) -> None:
        path = QFileDialog.getExistingDirectory(self, "Add a model's folder")
        if path:
            self.add(Path(path))


def _add(path: Path, answers: dict[str, Any], progress: Progress) -> Any:
    return add(path, progress=progress, **answers)


def _check(model: str, progress: Progress) -> str:
    from napari_medai.checking import check  # brings torch

    found = check(model, progress)
    lines = [f"{'✓' if one.ok else '✗'} {one.what}: {one.detail}" for one in found.findings]
    return "\n".join(lines)

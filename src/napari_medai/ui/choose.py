"""Ask which series of a folder to open."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qtpy.QtCore import Qt
from qtpy.QtWidgets import (
    QAbstractItemView,
    QApplication,
    QDialog,
    QDialogButtonBox,
    QHeaderView,
    QLabel,
    QTableWidget,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)

from napari_medai.core.errors import SeriesChoiceError, SeriesInfo

_COLUMNS = ("No.", "Modality", "Description", "Size", "Spacing (mm)", "Files", "UID ends in")
_UID_TAIL = 12


class SeriesDialog(QDialog):
    """A table of series; several may be chosen.

    Parameters
    ----------
    where : str
        Name of the folder or file.
    series : sequence of SeriesInfo
        What it holds.
    parent : QWidget, optional
        Above which window it opens.
    """

    def __init__(self, where: str, series: Sequence[SeriesInfo], parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.series = tuple(series)
        self.setWindowTitle("Choose series")
        self.resize(820, 360)
        self.table = QTableWidget(len(series), len(_COLUMNS))
        self.table.setHorizontalHeaderLabels(list(_COLUMNS))
        self.table.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.table.setSelectionMode(QAbstractItemView.SelectionMode.ExtendedSelection)
        self.table.verticalHeader().setVisible(False)
        for row, one in enumerate(self.series):
            for column, text in enumerate(_cells(one)):
                item = QTableWidgetItem(text)
                item.setToolTip(one.uid if column == len(_COLUMNS) - 1 else text)
                self.table.setItem(row, column, item)
        self.table.resizeColumnsToContents()
        self.table.horizontalHeader().setSectionResizeMode(2, QHeaderView.ResizeMode.Stretch)
        self.buttons = QDialogButtonBox(
            QDialogButtonBox.StandardButton.Open | QDialogButtonBox.StandardButton.Cancel, Qt.Orientation.Horizontal
        )
        self.buttons.accepted.connect(self.accept)
        self.buttons.rejected.connect(self.reject)
        self.table.itemDoubleClicked.connect(lambda _: self.accept())
        self.table.itemSelectionChanged.connect(self._selection_changed)
        layout = QVBoxLayout(self)
        layout.addWidget(QLabel(f"{where} holds {len(series)} series. Choose one or several to open."))
        layout.addWidget(self.table)
        layout.addWidget(self.buttons)
        self.table.selectRow(0)

    def chosen(self) -> list[SeriesInfo]:
        """The series of the selected rows, from top to bottom."""
        rows = sorted({index.row() for index in self.table.selectionModel().selectedRows()})
        return [self.series[row] for row in rows]

    def _selection_changed(self) -> None:
        self.buttons.button(QDialogButtonBox.StandardButton.Open).setEnabled(bool(self.chosen()))


def _cells(series: SeriesInfo) -> tuple[str, ...]:
    return (
        "" if series.number is None else str(series.number),
        series.modality,
        series.description,
        " × ".join(map(str, series.shape)),
        " × ".join(f"{step:.3g}" for step in series.spacing_mm),
        str(series.files),
        series.uid[-_UID_TAIL:],
    )


def visible_window() -> Any:
    """The napari window that can be seen; None in scripts and tests that show none."""
    import napari

    viewer = napari.current_viewer() if QApplication.instance() is not None else None
    window = getattr(getattr(viewer, "window", None), "_qt_window", None)
    return window if window is not None and window.isVisible() else None


def choose_series(path: str, series: Sequence[SeriesInfo]) -> list[SeriesInfo]:
    """Let the user choose.

    Parameters
    ----------
    path : str
        Where the series are; its last part is shown.
    series : sequence of SeriesInfo
        To choose from.

    Returns
    -------
    list of SeriesInfo
        Empty if the user changed their mind.

    Raises
    ------
    SeriesChoiceError
        No window can be seen, so there is nobody to ask; the message lists the series.
    """
    window = visible_window()
    if window is None:
        raise SeriesChoiceError(Path(path).name, series)
    dialog = SeriesDialog(Path(path).name, series, window)
    try:
        return dialog.chosen() if dialog.exec() == QDialog.DialogCode.Accepted else []
    finally:
        dialog.deleteLater()

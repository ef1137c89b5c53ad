"""A table of objects in the dock: sort it, copy it, click a row to see the object."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from qtpy.QtCore import QAbstractTableModel, QItemSelectionModel, QModelIndex, Qt, Signal
from qtpy.QtGui import QGuiApplication, QKeySequence
from qtpy.QtWidgets import QAbstractItemView, QHeaderView, QTableView, QWidget

from napari_medai.core.result import Table

# by the first word of their names; others, such as mean intensities, are 2
_RANKS = {"label": 0, "score": 0, "volume": 1, "area": 1, "count": 3, "size": 3, "t": 4, "z": 4, "y": 4, "x": 4}
_SAYS_NOTHING = 5  # rank of columns that are not shown


class TableModel(QAbstractTableModel):
    """A `Table` for Qt. Sorting reorders row numbers, not the columns."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._names: tuple[str, ...] = ()
        self._columns: tuple[NDArray[Any], ...] = ()
        self._order: NDArray[np.intp] = np.zeros(0, np.intp)

    def set_table(self, table: Table) -> None:
        """Show another table, in its own order."""
        self.beginResetModel()
        self._names = tuple(table)
        self._columns = tuple(np.asarray(column) for column in table.values())
        self._order = np.arange(len(self._columns[0]) if self._columns else 0)
        self.endResetModel()

    def row_of(self, shown: int) -> int:
        """Row of the table that stands at a place on the screen."""
        return int(self._order[shown])

    def rowCount(self, parent: QModelIndex | None = None) -> int:  # noqa: N802  (Qt's name)
        """See Qt."""
        return 0 if parent is not None and parent.isValid() else len(self._order)

    def columnCount(self, parent: QModelIndex | None = None) -> int:  # noqa: N802
        """See Qt."""
        return 0 if parent is not None and parent.isValid() else len(self._names)

    def data(self, index: QModelIndex, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        """See Qt."""
        if not index.isValid():
            return None
        value = self._columns[index.column()][self._order[index.row()]]
        if role == Qt.ItemDataRole.DisplayRole:
            return text_of(value, digits=4)
        if role == Qt.ItemDataRole.ToolTipRole:
            return f"{self._names[index.column()]} = {text_of(value)}"
        if role == Qt.ItemDataRole.TextAlignmentRole:
            number = isinstance(value, int | float | np.number)
            side = Qt.AlignmentFlag.AlignRight if number else Qt.AlignmentFlag.AlignLeft
            return side | Qt.AlignmentFlag.AlignVCenter
        return None

    def headerData(self, section: int, orientation: Any, role: int = Qt.ItemDataRole.DisplayRole) -> Any:  # noqa: N802
        """See Qt."""
        if role != Qt.ItemDataRole.DisplayRole:
            return None
        return self._names[section] if orientation == Qt.Orientation.Horizontal else str(section + 1)

    def sort(self, column: int, order: Any = Qt.SortOrder.AscendingOrder) -> None:
        """Reorder by a column; rows with equal values keep the order of the table."""
        if not 0 <= column < len(self._columns):
            return
        self.layoutAboutToBeChanged.emit()
        before = self.persistentIndexList()
        rows = [(self.row_of(index.row()), index.column()) for index in before]
        values = self._columns[column]
        keys = np.array([str(value) for value in values]) if values.dtype.kind == "O" else values
        rising = np.argsort(keys, kind="stable")
        if order == Qt.SortOrder.DescendingOrder:
            rising = len(keys) - 1 - np.argsort(keys[::-1], kind="stable")[::-1]
        self._order = rising
        place = np.argsort(rising)
        self.changePersistentIndexList(before, [self.index(int(place[row]), col) for row, col in rows])
        self.layoutChanged.emit()

    def as_tsv(self, shown: list[int]) -> str:
        """The header and some rows as tab-separated text, numbers in full precision."""
        lines = ["\t".join(self._names)]
        for n in shown:
            lines.append("\t".join(text_of(column[self._order[n]]) for column in self._columns))
        return "\n".join(lines) + "\n"


class TableView(QTableView):
    """A table that says which object was chosen.

    Signals
    -------
    row_chosen : int
        Row of the `Table`, whatever the order on the screen.
    """

    row_chosen = Signal(int)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._model = TableModel(self)
        self.setModel(self._model)
        self.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.setAlternatingRowColors(False)
        self.setWordWrap(False)
        self.verticalHeader().hide()
        self.verticalHeader().setDefaultSectionSize(22)
        header = self.horizontalHeader()
        header.setSectionResizeMode(QHeaderView.ResizeMode.Interactive)
        header.setResizeContentsPrecision(20)  # rows looked at for the width of a column: each takes 0.5 ms
        header.setSortIndicatorClearable(True)
        header.setSortIndicator(-1, Qt.SortOrder.AscendingOrder)
        self.setSortingEnabled(True)
        self.setMinimumHeight(140)
        self.selectionModel().currentRowChanged.connect(self._on_row)

    def set_table(self, table: Table) -> None:
        """Show a table; nothing is selected and nothing sorted."""
        self.horizontalHeader().setSortIndicator(-1, Qt.SortOrder.AscendingOrder)
        self._model.set_table(table)
        header = self.horizontalHeader()
        ranks = [_rank(name, np.asarray(values)) for name, values in table.items()]
        for place, column in enumerate(np.argsort(ranks, kind="stable")):
            header.moveSection(header.visualIndex(int(column)), place)
            self.setColumnHidden(int(column), ranks[column] == _SAYS_NOTHING)
        self.resizeColumnsToContents()

    def _on_row(self, current: QModelIndex, _: QModelIndex) -> None:
        if current.isValid():
            self.row_chosen.emit(self._model.row_of(current.row()))

    def select(self, row: int) -> None:
        """Select a row of the table and scroll to it."""
        shown = [n for n in range(self._model.rowCount()) if self._model.row_of(n) == row]
        index = self._model.index(shown[0], self.horizontalHeader().logicalIndex(0))
        flags = QItemSelectionModel.SelectionFlag.ClearAndSelect | QItemSelectionModel.SelectionFlag.Rows
        self.selectionModel().setCurrentIndex(index, flags)
        self.scrollTo(index)

    def copy(self) -> None:
        """Put the selected rows on the clipboard, or all if fewer than two are selected."""
        chosen = sorted(index.row() for index in self.selectionModel().selectedRows())
        rows = chosen if len(chosen) > 1 else list(range(self._model.rowCount()))
        QGuiApplication.clipboard().setText(self._model.as_tsv(rows))

    def keyPressEvent(self, event: Any) -> None:  # noqa: N802  (Qt's name)
        """Ctrl+C copies the selected rows."""
        if event.matches(QKeySequence.StandardKey.Copy):
            chosen = sorted(index.row() for index in self.selectionModel().selectedRows())
            QGuiApplication.clipboard().setText(self._model.as_tsv(chosen))
            event.accept()
            return
        super().keyPressEvent(event)


def _rank(name: str, values: NDArray[Any]) -> int:
    """Place of a column, for a dock shows the first few: what was found, what was measured, and where at last.

    The number of the row says nothing, nor does a score that the model did not give.
    """
    if name == "index" or (name == "score" and bool((values == 1).all())):
        return _SAYS_NOTHING
    return _RANKS.get(name.partition("_")[0], 2)


def text_of(value: Any, digits: int = 0) -> str:
    """A cell as text: numbers with ``digits`` significant digits, or as many as they have."""
    if isinstance(value, float | np.floating):
        if not digits:
            return repr(float(value))
        return f"{value:.{digits}g}" if abs(value) < 10**digits else f"{value:.0f}"
    return str(value)

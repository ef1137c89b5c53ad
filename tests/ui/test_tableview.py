"""The table of objects."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from qtpy.QtCore import Qt
from qtpy.QtGui import QGuiApplication, QKeySequence

from napari_medai.ui.tableview import TableView, text_of

TABLE = {
    "index": np.arange(3),
    "label": np.array(["blob", "atom", "core"], dtype=object),
    "score": np.array([0.5, 0.9, 0.5]),
    "z": np.array([1.0, 2.25, 123456.789]),
}


@pytest.fixture
def view(qtbot: Any) -> TableView:
    view = TableView()
    qtbot.addWidget(view)
    view.set_table(TABLE)
    return view


def column(view: TableView, n: int) -> list[str]:
    model = view.model()
    return [model.data(model.index(row, n)) for row in range(model.rowCount())]


def test_shows_names_and_rounded_numbers(view: TableView) -> None:
    model = view.model()
    header = [model.headerData(n, Qt.Orientation.Horizontal) for n in range(model.columnCount())]
    assert header == ["index", "label", "score", "z"]
    assert column(view, 1) == ["blob", "atom", "core"]
    assert column(view, 3) == ["1", "2.25", "123457"]


def test_sorts_numbers_and_names_both_ways_and_keeps_ties_in_order(view: TableView) -> None:
    view.sortByColumn(2, Qt.SortOrder.AscendingOrder)
    assert column(view, 0) == ["0", "2", "1"]
    view.sortByColumn(2, Qt.SortOrder.DescendingOrder)
    assert column(view, 0) == ["1", "0", "2"]
    view.sortByColumn(1, Qt.SortOrder.AscendingOrder)
    assert column(view, 1) == ["atom", "blob", "core"]


def test_chosen_row_is_that_of_the_table_whatever_the_order(view: TableView, qtbot: Any) -> None:
    view.sortByColumn(1, Qt.SortOrder.AscendingOrder)
    with qtbot.waitSignal(view.row_chosen) as chosen:
        view.selectRow(0)
    assert chosen.args == [1]
    with qtbot.waitSignal(view.row_chosen) as chosen:
        view.select(2)
    assert chosen.args == [2]


def test_selection_follows_its_row_through_sorting(view: TableView) -> None:
    view.select(0)
    view.sortByColumn(1, Qt.SortOrder.DescendingOrder)
    (row,) = view.selectionModel().selectedRows()
    assert column(view, 1)[row.row()] == "blob"


def test_copies_all_rows_in_full_precision_and_the_order_shown(view: TableView) -> None:
    view.sortByColumn(1, Qt.SortOrder.AscendingOrder)
    view.copy()
    lines = QGuiApplication.clipboard().text().splitlines()
    assert lines == [
        "index\tlabel\tscore\tz",
        "1\tatom\t0.9\t2.25",
        "0\tblob\t0.5\t1.0",
        "2\tcore\t0.5\t123456.789",
    ]


def test_key_copies_the_selected_rows(view: TableView, qtbot: Any) -> None:
    view.select(2)
    qtbot.keySequence(view, QKeySequence.StandardKey.Copy)
    assert QGuiApplication.clipboard().text() == "index\tlabel\tscore\tz\n2\tcore\t0.5\t123456.789\n"


def test_empty_tables_are_shown(view: TableView) -> None:
    view.set_table({"index": np.zeros(0, int), "label": np.zeros(0, object)})
    view.copy()
    assert QGuiApplication.clipboard().text() == "index\tlabel\n"
    view.set_table({})
    assert view.model().rowCount() == view.model().columnCount() == 0


def test_what_was_measured_stands_first_and_what_says_nothing_is_not_shown(view: TableView) -> None:
    measured = {"count": np.arange(3), "volume_ml": np.ones(3), "mean_intensity": np.ones(3)}
    table = {**TABLE, "score": np.ones(3), "z_mm": np.ones(3), **measured}

    def shown() -> list[str]:
        header, names = view.horizontalHeader(), list(table)
        places = [header.logicalIndex(n) for n in range(header.count())]
        return [names[n] for n in places if not view.isColumnHidden(n)]

    view.set_table(table)
    assert shown() == ["label", "volume_ml", "mean_intensity", "count", "z", "z_mm"]
    view.select(2)
    assert view.selectionModel().selectedRows()[0].row() == 2
    table["score"] = np.array([0.5, 1, 1])
    view.set_table(table)
    assert shown() == ["label", "score", "volume_ml", "mean_intensity", "count", "z", "z_mm"]
    view.copy()  # as in a file
    assert QGuiApplication.clipboard().text().splitlines()[0].split("\t") == list(table)


def test_many_rows_sort_at_once(qtbot: Any) -> None:
    view = TableView()
    qtbot.addWidget(view)
    values = np.random.default_rng(0).random(50_000)
    view.set_table({"index": np.arange(len(values)), "score": values})
    view.sortByColumn(1, Qt.SortOrder.DescendingOrder)
    assert column(view, 1)[0] == text_of(values.max(), digits=4)

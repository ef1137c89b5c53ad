"""Bars and timeline of scores."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from qtpy.QtCore import QPoint, Qt

from napari_medai.core.geometry import Grid
from napari_medai.core.provenance import Provenance
from napari_medai.core.result import Scores
from napari_medai.ui.scoresview import ScoresView, verdict


def scores(n: int = 5, probabilities: tuple[float, ...] = (0.2, 0.9, 0.6)) -> Scores:
    rows = np.linspace(0, 1, n)[:, None] * np.array(probabilities)
    return Scores(
        ("noise", "blur", "motion"),
        np.array(probabilities),
        np.arange(n) * 10,
        rows,
        np.full(n, 1 / n),
        np.array([0.5, 0.5, 0.7]),
        Grid((max(n * 10, 1), 32, 32), np.eye(4)),
        Provenance("classify"),
    )


@pytest.fixture
def view(qtbot: Any) -> ScoresView:
    view = ScoresView()
    qtbot.addWidget(view)
    view.resize(300, 400)
    view.set_scores(scores())
    view.show()
    return view


def test_begins_with_the_most_probable_class(view: ScoresView) -> None:
    assert view.classes.currentText() == "blur"


def test_click_on_a_bar_chooses_its_class(view: ScoresView, qtbot: Any) -> None:
    qtbot.mouseClick(view.bars, Qt.MouseButton.LeftButton, pos=QPoint(100, 2 * view.bars.ROW + 5))
    assert view.classes.currentText() == "motion"
    assert view.bars.row_at(-3) == view.bars.row_at(1000) == -1


def test_click_on_the_timeline_tells_the_index_along_z(view: ScoresView, qtbot: Any) -> None:
    x = round(view.timeline.x_of(30)) + 3
    with qtbot.waitSignal(view.slice_chosen) as chosen:
        qtbot.mouseClick(view.timeline, Qt.MouseButton.LeftButton, pos=QPoint(x, 40))
    assert chosen.args == [30]


def test_hovering_tells_the_figures(view: ScoresView, qtbot: Any) -> None:
    qtbot.mouseMove(view.timeline, QPoint(round(view.timeline.x_of(20)), 40))
    qtbot.waitUntil(lambda: "Slice 20: blur 0.45, attention 0.200" in view.timeline.toolTip(), timeout=2000)


def test_draws_something_and_marks_the_current_slice(view: ScoresView) -> None:
    before = view.timeline.grab().toImage()
    view.set_current(20)
    assert view.timeline.grab().toImage() != before
    assert view.bars.grab().toImage() != view.timeline.grab().toImage()


def test_one_slice_has_no_timeline(view: ScoresView) -> None:
    view.set_scores(scores(1))
    assert view.timeline.isHidden()
    view.set_scores(scores(2))
    assert not view.timeline.isHidden()


def test_verdict_names_what_is_above_its_threshold() -> None:
    assert verdict(scores()) == "Found: blur 0.90."
    assert verdict(scores(5, (0.1, 0.2, 0.6))) == "Nothing found; highest: motion 0.60."

"""The form of a stage's parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pytest
from qtpy.QtCore import QPoint, QPointF, Qt
from qtpy.QtGui import QWheelEvent
from qtpy.QtWidgets import QApplication, QCheckBox, QComboBox, QDoubleSpinBox, QSpinBox

from napari_medai.core.stage import Params, fields_of, param
from napari_medai.stages import STAGES
from napari_medai.ui.form import Form, zero_means_auto


@dataclass(frozen=True, kw_only=True)
class SomeParams(Params):
    steps: int = param(0, "Steps", "Steps; 0 lets the model decide.", low=0, high=100)
    share: float = param(0.5, "Share", "A share.", low=0.0, high=1.0, step=0.05)
    open_end: float = param(3.0, "Open end", "No limits.")
    polite: bool = param(True, "Polite", "Says please.")
    kind: Literal["a", "b"] = param("b", "Kind", "One of two.", advanced=True)
    target: str = param("", "Class", "Which class.")
    seed: int = param(0, "Seed", "The same seed gives the same.", low=0, high=2**31 - 1, advanced=True)


@pytest.fixture
def form(qtbot: Any) -> Form:
    form = Form(fields_of(SomeParams))
    qtbot.addWidget(form)
    return form


def test_values_are_the_defaults_and_make_params(form: Form) -> None:
    assert SomeParams(**form.values()) == SomeParams()


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_has_a_form_that_makes_its_params(qtbot: Any, stage: str) -> None:
    form = Form(fields_of(STAGES[stage].params))
    qtbot.addWidget(form)
    assert STAGES[stage].params(**form.values()) == STAGES[stage].params()


def test_editors_have_ranges_steps_and_help(form: Form) -> None:
    steps, share = form.editor("steps"), form.editor("share")
    assert isinstance(steps, QSpinBox)
    assert (steps.minimum(), steps.maximum(), steps.singleStep()) == (0, 100, 1)
    assert steps.text() == "auto"
    assert isinstance(share, QDoubleSpinBox)
    assert (share.minimum(), share.maximum(), share.singleStep()) == (0.0, 1.0, 0.05)
    assert "A share." in share.toolTip()
    assert "0 to 1" in share.toolTip()
    assert isinstance(form.editor("polite"), QCheckBox)
    kind = form.editor("kind")
    assert isinstance(kind, QComboBox)
    assert [kind.itemText(n) for n in range(kind.count())] == ["a", "b"]


def test_advanced_ones_are_folded_away(form: Form) -> None:
    assert not form._advanced.isExpanded()
    assert form._advanced.isAncestorOf(form.editor("kind"))
    assert not form._advanced.isAncestorOf(form.editor("steps"))


def test_set_value_of_every_kind(form: Form, qtbot: Any) -> None:
    wanted = {"steps": 7, "share": 0.25, "polite": False, "kind": "a", "target": "noise", "seed": 2**31 - 1}
    with qtbot.waitSignal(form.changed):
        for name, value in wanted.items():
            form.set_value(name, value)
    assert wanted.items() <= form.values().items()


def test_choices_replace_a_line_and_keep_what_is_set(form: Form) -> None:
    form.set_choices("target", [("most probable", ""), ("noise", "noise"), ("blur", "blur")])
    assert form.values()["target"] == ""
    position = form._rows.getWidgetPosition(form.editor("target"))
    assert position[0] == list(form.names()).index("target") - 1  # the advanced `kind` before it is elsewhere
    form.set_value("target", "blur")
    form.set_choices("target", [("most probable", ""), ("blur", "blur")])
    assert form.values()["target"] == "blur"
    form.set_choices("target", [("most probable", ""), ("brain", "brain")])
    assert form.values()["target"] == ""


def test_hidden_row_goes_back_to_its_lowest_value(form: Form) -> None:
    form.set_value("steps", 5)
    form.set_maximum("steps", 8)
    form.set_row_visible("steps", False)
    assert form.values()["steps"] == 0


def test_wheel_over_a_number_without_focus_turns_nothing(form: Form) -> None:
    steps = form.editor("steps")
    form.set_value("steps", 5)
    for target in (steps, form.editor("kind")):
        before = form.values()
        wheel = QWheelEvent(
            QPointF(5, 5),
            QPointF(5, 5),
            QPoint(0, 120),
            QPoint(0, 120),
            Qt.MouseButton.NoButton,
            Qt.KeyboardModifier.NoModifier,
            Qt.ScrollPhase.NoScrollPhase,
            False,
        )
        QApplication.sendEvent(target, wheel)
        assert form.values() == before


def test_auto_is_said_only_where_the_help_says_what_zero_does() -> None:
    auto = {field.name for field in fields_of(SomeParams) if zero_means_auto(field)}
    assert auto == {"steps", "tile", "batch", "memory"}

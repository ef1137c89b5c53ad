"""A form for a stage's parameters, built from the same fields that the shell reads."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from qtpy.QtCore import QEvent, QObject, Qt, Signal
from qtpy.QtGui import QIcon
from qtpy.QtWidgets import (
    QAbstractSpinBox,
    QCheckBox,
    QComboBox,
    QDoubleSpinBox,
    QFormLayout,
    QFrame,
    QLineEdit,
    QScrollArea,
    QSizePolicy,
    QSpinBox,
    QVBoxLayout,
    QWidget,
)
from superqt import QCollapsible

from napari_medai.core.stage import Field

_INT_LIMIT = 2**31 - 1  # of a QSpinBox
_FLOAT_LIMIT = 1e9


class Form(QWidget):
    """One row per parameter; those marked as advanced are folded away.

    Parameters
    ----------
    fields : iterable of Field
        As `napari_medai.core.stage.fields_of` gives them.
    parent : QWidget, optional
    """

    changed = Signal()

    def __init__(self, fields: Iterable[Field], parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._wheel = _WheelGuard(self)
        self._editors: dict[str, QWidget] = {}
        self._rows = form_layout()
        self._advanced_rows = form_layout()
        # its arrows are pictures in the colour of the first theme; letters change with the theme
        self._advanced = QCollapsible("▸ Advanced", self, expandedIcon=QIcon(), collapsedIcon=QIcon())
        self._advanced.toggled.connect(self._on_fold)
        self._advanced.setDuration(120)
        # napari paints checked buttons in its highlight; a fold is no choice
        self._advanced.toggleButton().setStyleSheet("text-align: left; border: none; background: transparent;")
        folded = QWidget()
        folded.setLayout(self._advanced_rows)
        self._advanced.addWidget(folded)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(4)
        layout.addLayout(self._rows)
        layout.addWidget(self._advanced)
        self._advanced.layout().setContentsMargins(0, 0, 0, 0)
        self._advanced.content().layout().setContentsMargins(0, 0, 0, 0)
        for field in fields:
            self._add(field)
        self._advanced.setVisible(self._advanced_rows.rowCount() > 0)

    def _add(self, field: Field) -> None:
        editor = self._make(field)
        editor.setToolTip(_tooltip(field))
        editor.setObjectName(field.name)
        editor.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        rows = self._advanced_rows if field.advanced else self._rows
        rows.addRow(field.label, editor)
        rows.labelForField(editor).setToolTip(_tooltip(field))
        self._editors[field.name] = editor

    def _make(self, field: Field) -> QWidget:
        if field.choices:
            return self._combo([(str(choice), choice) for choice in field.choices], field.default)
        if field.type is bool:
            box = QCheckBox()
            box.setChecked(field.default)
            box.toggled.connect(self._emit_changed)
            return box
        if field.type in (int, float):
            return self._spin(field)
        line = QLineEdit(field.default)
        line.textChanged.connect(self._emit_changed)
        return line

    def _spin(self, field: Field) -> QAbstractSpinBox:
        limit = _INT_LIMIT if field.type is int else _FLOAT_LIMIT
        low = -limit if field.low is None else field.low
        high = limit if field.high is None else field.high
        spin: QSpinBox | QDoubleSpinBox
        if field.type is int:
            spin = QSpinBox()
            spin.setRange(int(low), int(min(high, limit)))
            spin.setSingleStep(int(field.step or 1))
        else:
            spin = QDoubleSpinBox()
            step = field.step or 1.0
            spin.setDecimals(2 if step < 1 else 1)
            spin.setRange(low, min(high, limit))
            spin.setSingleStep(step)
        if zero_means_auto(field):
            spin.setSpecialValueText("auto")
        spin.setValue(field.default)
        spin.setKeyboardTracking(False)
        spin.setAlignment(Qt.AlignmentFlag.AlignCenter)  # as those of napari
        # a row of a dock is narrow, and a billion as upper limit would make it wide
        spin.setMinimumWidth(60)
        spin.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        spin.installEventFilter(self._wheel)
        spin.valueChanged.connect(self._emit_changed)
        return spin

    def _combo(self, choices: Sequence[tuple[str, Any]], value: Any) -> QComboBox:
        combo = QComboBox()
        combo.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        combo.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        combo.installEventFilter(self._wheel)
        _fill(combo, choices, value)
        combo.currentIndexChanged.connect(self._emit_changed)
        return combo

    def _on_fold(self, expanded: bool) -> None:
        self._advanced.setText(("▾" if expanded else "▸") + " Advanced")

    def _emit_changed(self, *_: Any) -> None:
        self.changed.emit()

    def names(self) -> tuple[str, ...]:
        """The parameters that have a row."""
        return tuple(self._editors)

    def editor(self, name: str) -> QWidget:
        """The widget that edits a parameter."""
        return self._editors[name]

    def values(self) -> dict[str, Any]:
        """What is set now, by name of the parameter."""
        return {name: _value(editor) for name, editor in self._editors.items()}

    def set_value(self, name: str, value: Any) -> None:
        """Set one parameter."""
        editor = self._editors[name]
        if isinstance(editor, QComboBox):
            editor.setCurrentIndex(max(editor.findData(value), 0))
        elif isinstance(editor, QCheckBox):
            editor.setChecked(bool(value))
        elif isinstance(editor, QLineEdit):
            editor.setText(str(value))
        else:
            editor.setValue(value)

    def set_choices(self, name: str, choices: Sequence[tuple[str, Any]]) -> None:
        """Offer only these (text, value) for a parameter; keeps the value that is set if it is among them."""
        old = self._editors[name]
        value = _value(old)
        if isinstance(old, QComboBox):
            _fill(old, choices, value)
            return
        combo = self._combo(choices, value)
        combo.setToolTip(old.toolTip())
        combo.setObjectName(name)
        combo.setSizePolicy(old.sizePolicy())
        for rows in (self._rows, self._advanced_rows):
            row, role = rows.getWidgetPosition(old)
            if row >= 0:
                rows.removeWidget(old)
                rows.setWidget(row, role, combo)
        old.hide()
        old.deleteLater()
        self._editors[name] = combo

    def set_row_visible(self, name: str, visible: bool) -> None:
        """Show or hide the row of a parameter; hidden, it goes back to its lowest value."""
        editor = self._editors[name]
        for rows in (self._rows, self._advanced_rows):
            if rows.indexOf(editor) >= 0:
                rows.setRowVisible(editor, visible)
        if not visible and isinstance(editor, QSpinBox | QDoubleSpinBox):
            editor.setValue(editor.minimum())

    def set_maximum(self, name: str, value: int) -> None:
        """The largest number that a whole-number parameter may take."""
        self._editors[name].setMaximum(value)


class _WheelGuard(QObject):
    """Scrolling the panel must not turn the numbers that pass under the pointer."""

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:  # noqa: N802  (Qt's name)
        if event.type() == QEvent.Type.Wheel and not watched.hasFocus():
            event.ignore()
            return True
        return bool(super().eventFilter(watched, event))


def scrolling(content: QWidget) -> QScrollArea:
    """A dock's content that scrolls up and down where the dock is low."""
    scroll = QScrollArea()
    scroll.setWidgetResizable(True)
    scroll.setFrameShape(QFrame.Shape.NoFrame)
    scroll.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
    scroll.setWidget(content)
    return scroll


def form_layout() -> QFormLayout:
    """Labels on the left, editors as wide as they can be."""
    rows = QFormLayout()
    rows.setContentsMargins(0, 0, 0, 0)
    rows.setHorizontalSpacing(8)
    rows.setVerticalSpacing(4)
    rows.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
    rows.setLabelAlignment(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter)
    return rows


def zero_means_auto(field: Field) -> bool:
    """Whether 0 leaves the choice to the model: it is default and lowest value, and the help says what it does."""
    return field.default == field.low == 0 and re.search(r"\b0\b", field.help) is not None


def _tooltip(field: Field) -> str:
    ends = "" if field.low is None or field.high is None else f" ({field.low:g} to {field.high:g})"
    return f"<p>{field.help}{ends}</p>"  # a paragraph wraps, plain text would run across the screen


def _fill(combo: QComboBox, choices: Sequence[tuple[str, Any]], value: Any) -> None:
    blocked = combo.blockSignals(True)
    combo.clear()
    for text, data in choices:
        combo.addItem(text, data)
    combo.setCurrentIndex(max(combo.findData(value), 0))
    combo.blockSignals(blocked)


def _value(editor: QWidget) -> Any:
    if isinstance(editor, QComboBox):
        return editor.currentData()
    if isinstance(editor, QCheckBox):
        return editor.isChecked()
    if isinstance(editor, QLineEdit):
        return editor.text()
    return editor.value()

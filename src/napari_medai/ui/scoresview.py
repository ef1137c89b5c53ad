"""Scores in the dock: a bar per class with its threshold, and a timeline over the slices.

Drawn with QPainter, because napari brings no plotting library.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from qtpy.QtCore import QPointF, QRectF, Qt, Signal
from qtpy.QtGui import QBrush, QColor, QFontMetrics, QPainter, QPen, QPolygonF
from qtpy.QtWidgets import QComboBox, QHBoxLayout, QLabel, QSizePolicy, QVBoxLayout, QWidget

from napari_medai.core.result import Scores

ACCENT = QColor("#e8a33d")  # above its threshold; tells apart from grey for colour-blind eyes too
LINE = QColor("#4fa3d9")


class Bars(QWidget):
    """A horizontal bar per class; a tick marks the threshold above which the class is called present.

    Signals
    -------
    class_chosen : int
        A bar was clicked.
    """

    class_chosen = Signal(int)
    ROW = 20

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._scores: Scores | None = None
        self._chosen = -1
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setToolTip("Probability of each class. The tick is its threshold; click a bar to see its slices.")

    def set_scores(self, scores: Scores, chosen: int) -> None:
        """Show these scores, with one class marked."""
        self._scores, self._chosen = scores, chosen
        self.setFixedHeight(self.ROW * len(scores.classes) + 4)
        self.update()

    def row_at(self, y: float) -> int:
        """Number of the class at a height, -1 for none."""
        row = int(y // self.ROW)
        return row if self._scores is not None and 0 <= row < len(self._scores.classes) else -1

    def mousePressEvent(self, event: Any) -> None:  # noqa: N802  (Qt's name)
        """See Qt."""
        row = self.row_at(event.position().y())
        if row >= 0:
            self.class_chosen.emit(row)

    def paintEvent(self, event: Any) -> None:  # noqa: N802
        """See Qt."""
        if self._scores is None:
            return
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        text, track = _ink(self), _faint(self)
        bold = self.font()
        bold.setBold(True)
        metrics = QFontMetrics(bold)
        left = min(max(metrics.horizontalAdvance(name) for name in self._scores.classes) + 8, self.width() // 2)
        right = metrics.horizontalAdvance("0.00") + 8
        span = max(self.width() - left - right, 10)
        rows = zip(self._scores.classes, self._scores.probabilities, self._scores.thresholds, strict=True)
        for n, (name, probability, threshold) in enumerate(rows):
            top = n * self.ROW
            painter.setPen(text)
            font = self.font()
            font.setBold(n == self._chosen)
            painter.setFont(font)
            label = metrics.elidedText(name, Qt.TextElideMode.ElideRight, left - 8)
            painter.drawText(QRectF(0, top, left - 8, self.ROW), Qt.AlignmentFlag.AlignVCenter, label)
            box = QRectF(left + span + 6, top, right, self.ROW)
            painter.drawText(box, Qt.AlignmentFlag.AlignVCenter, f"{probability:.2f}")
            painter.setPen(Qt.PenStyle.NoPen)
            painter.setBrush(QBrush(track))
            painter.drawRoundedRect(QRectF(left, top + 5, span, self.ROW - 10), 2, 2)
            painter.setBrush(QBrush(ACCENT if probability >= threshold else LINE))
            painter.drawRoundedRect(QRectF(left, top + 5, span * float(probability), self.ROW - 10), 2, 2)
            painter.setPen(QPen(text, 1.5))
            x = left + span * float(threshold)
            painter.drawLine(QPointF(x, top + 3), QPointF(x, top + self.ROW - 3))
        painter.end()


class Timeline(QWidget):
    """Score of one class along the slices as a line, attention of the network as bars below it.

    Signals
    -------
    slice_chosen : int
        Index along z of the slice that was clicked.
    """

    slice_chosen = Signal(int)
    LEFT = 62
    RIGHT = 6
    TOP = 6
    SCORE_HEIGHT = 70
    ATTENTION_HEIGHT = 34
    BOTTOM = 18

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._scores: Scores | None = None
        self._class = 0
        self._current = -1
        self.setFixedHeight(self.TOP + self.SCORE_HEIGHT + self.ATTENTION_HEIGHT + self.BOTTOM)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setMouseTracking(True)

    def set_scores(self, scores: Scores, chosen: int) -> None:
        """Show the slices' scores of one class."""
        self._scores, self._class = scores, chosen
        self.update()

    def set_current(self, index: int) -> None:
        """Mark the slice that the viewer shows."""
        if index != self._current:
            self._current = index
            self.update()

    def x_of(self, index: float) -> float:
        """Where a slice stands, in pixels of this widget."""
        first, last = self._ends()
        span: int = self.width() - self.LEFT - self.RIGHT
        return self.LEFT + (index - first) / max(last - first, 1) * span

    def nearest(self, x: float) -> int:
        """Number, among the slices looked at, of the one nearest to a place; -1 without scores."""
        if self._scores is None or not len(self._scores.slice_index):
            return -1
        return int(np.argmin([abs(self.x_of(float(index)) - x) for index in self._scores.slice_index]))

    def _ends(self) -> tuple[float, float]:
        if self._scores is None or not len(self._scores.slice_index):
            return 0.0, 1.0
        return float(self._scores.slice_index.min()), float(self._scores.slice_index.max())

    def mousePressEvent(self, event: Any) -> None:  # noqa: N802  (Qt's name)
        """See Qt."""
        self._choose(event)

    def mouseMoveEvent(self, event: Any) -> None:  # noqa: N802
        """Dragging goes through the slices; hovering tells the figures."""
        if event.buttons() & Qt.MouseButton.LeftButton:
            self._choose(event)
            return
        n = self.nearest(event.position().x())
        if n >= 0 and self._scores is not None:
            score = self._scores.slice_probabilities[n, self._class]
            self.setToolTip(
                f"Slice {self._scores.slice_index[n]}: {self._scores.classes[self._class]} {score:.2f}, "
                f"attention {self._scores.attention[n]:.3f}. Click to go there."
            )

    def _choose(self, event: Any) -> None:
        n = self.nearest(event.position().x())
        if n >= 0 and self._scores is not None:
            self.slice_chosen.emit(int(self._scores.slice_index[n]))

    def paintEvent(self, event: Any) -> None:  # noqa: N802
        """See Qt."""
        scores = self._scores
        if scores is None or not len(scores.slice_index):
            return
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        text, track = _ink(self), _faint(self)
        end = self.width() - self.RIGHT
        base = self.TOP + self.SCORE_HEIGHT
        floor = base + self.ATTENTION_HEIGHT
        painter.fillRect(QRectF(self.LEFT, self.TOP, end - self.LEFT, self.SCORE_HEIGHT), track)

        painter.setPen(text)
        small = self.font()
        small.setPointSizeF(max(small.pointSizeF() - 1, 6))
        painter.setFont(small)
        right = Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter
        painter.drawText(QRectF(0, self.TOP - 6, self.LEFT - 4, 12), right, "1")
        painter.drawText(QRectF(0, base - 8, self.LEFT - 4, 12), right, "0")
        painter.drawText(QRectF(0, self.TOP + self.SCORE_HEIGHT / 2 - 8, self.LEFT - 4, 14), right, "score")
        painter.drawText(QRectF(0, base + 10, self.LEFT - 4, 14), right, "attention")

        # attention of each slice, as a share of the largest
        width = max((end - self.LEFT) / max(self._ends()[1] - self._ends()[0] + 1, 1) - 1, 1.5)
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(QBrush(LINE))
        tallest = float(scores.attention.max()) or 1.0
        for index, weight in zip(scores.slice_index, scores.attention, strict=True):
            height = (self.ATTENTION_HEIGHT - 4) * float(weight) / tallest
            x = min(max(self.x_of(float(index)) - width / 2, self.LEFT), end - width)
            painter.drawRect(QRectF(x, floor - height, width, height))

        threshold = base - self.SCORE_HEIGHT * float(scores.thresholds[self._class])
        painter.setPen(QPen(text, 1, Qt.PenStyle.DashLine))
        painter.drawLine(QPointF(self.LEFT, threshold), QPointF(end, threshold))
        points = [
            QPointF(self.x_of(float(index)), base - self.SCORE_HEIGHT * float(row[self._class]))
            for index, row in zip(scores.slice_index, scores.slice_probabilities, strict=True)
        ]
        painter.setPen(QPen(ACCENT, 1.8))
        painter.setBrush(Qt.BrushStyle.NoBrush)
        painter.drawPolyline(QPolygonF(points))

        first, last = self._ends()
        painter.setPen(text)
        painter.drawText(QRectF(self.LEFT, floor + 2, 60, 14), Qt.AlignmentFlag.AlignLeft, f"{first:.0f}")
        painter.drawText(QRectF(end - 60, floor + 2, 60, 14), Qt.AlignmentFlag.AlignRight, f"{last:.0f}")
        middle = QRectF(self.LEFT, floor + 2, end - self.LEFT, 14)
        painter.drawText(middle, Qt.AlignmentFlag.AlignHCenter, "slice")
        if first <= self._current <= last:
            painter.setPen(QPen(text, 1.2))
            x = self.x_of(float(self._current))
            painter.drawLine(QPointF(x, self.TOP), QPointF(x, floor))
        painter.end()


class ScoresView(QWidget):
    """Bars and timeline together; the class of the timeline is chosen in its list or by a click on a bar."""

    slice_chosen = Signal(int)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.bars = Bars()
        self.timeline = Timeline()
        self.classes = QComboBox()
        self._heading = QWidget()
        row = QHBoxLayout(self._heading)
        row.setContentsMargins(0, 0, 0, 0)
        row.addWidget(QLabel("Class shown"))
        row.addWidget(self.classes, 1)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(4)
        for widget in (self.bars, self._heading, self.timeline):
            layout.addWidget(widget)
        layout.addStretch(1)
        self._scores: Scores | None = None
        self.bars.class_chosen.connect(self.classes.setCurrentIndex)
        self.classes.currentIndexChanged.connect(self._on_class)
        self.timeline.slice_chosen.connect(self.slice_chosen)

    def set_scores(self, scores: Scores) -> None:
        """Show scores; the timeline begins with the most probable class."""
        self._scores = scores
        blocked = self.classes.blockSignals(True)
        self.classes.clear()
        self.classes.addItems(list(scores.classes))
        self.classes.blockSignals(blocked)
        self.classes.setCurrentIndex(int(np.argmax(scores.probabilities)))
        self._on_class(self.classes.currentIndex())
        several = len(scores.slice_index) > 1
        self.timeline.setVisible(several)
        self._heading.setVisible(several)

    def set_current(self, index: int) -> None:
        """Mark the slice that the viewer shows."""
        self.timeline.set_current(index)

    def _on_class(self, chosen: int) -> None:
        if self._scores is not None and chosen >= 0:
            self.bars.set_scores(self._scores, chosen)
            self.timeline.set_scores(self._scores, chosen)


def verdict(scores: Scores) -> str:
    """One sentence: which classes are above their thresholds, with their probabilities."""
    rows = dict(zip(scores.classes, scores.probabilities, strict=True))
    found = [f"{name} {rows[name]:.2f}" for name in scores.present if name != "none"]
    if found:
        return f"Found: {', '.join(found)}."
    highest = max((name for name in rows if name != "none"), key=rows.__getitem__, default="")
    return "Nothing found" + (f"; highest: {highest} {rows[highest]:.2f}." if highest else ".")


def _ink(widget: QWidget) -> QColor:
    return widget.palette().color(widget.foregroundRole())


def _faint(widget: QWidget) -> QColor:
    color = _ink(widget)
    color.setAlpha(40)
    return color

"""The runs of a dock, each with how far it is and a button that cancels it."""

from __future__ import annotations

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import QHBoxLayout, QLabel, QProgressBar, QToolButton, QVBoxLayout, QWidget
from superqt import QElidingLabel

from napari_medai.ui.job import State
from napari_medai.ui.running import Run, progress_text


class RunRow(QWidget):
    """One run: what it is of, a bar while it is its turn, a line below.

    Signals
    -------
    cancelled
        The button was pressed.
    """

    cancelled = Signal()

    def __init__(self, run: Run, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._run = run
        what = f"{run.layer.name} · {run.model.spec.title}"
        self.title = QElidingLabel(f"Estimate {what}" if run.only_plan else what)
        self.title.setToolTip(f"<p>{self.title.text()}</p>")
        self.button = QToolButton()
        self.button.setText("Cancel")
        self.button.setAutoRaise(True)
        self.button.setToolTip("<p>Stop at the end of the current tile; nothing is changed.</p>")
        self.button.clicked.connect(lambda _: self.cancelled.emit())
        self.bar = QProgressBar()
        self.bar.setTextVisible(False)
        self.bar.setFixedHeight(8)
        # a bar without an end moves all the time, and the whole window is drawn each time
        self.bar.setRange(0, 100)
        self.waiting = QElidingLabel()
        self.text = QLabel()
        self.text.setWordWrap(True)
        self.text.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        top = QHBoxLayout()
        top.setSpacing(4)
        top.addWidget(self.title, 1)
        top.addWidget(self.button)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 2, 0, 2)
        layout.setSpacing(2)
        layout.addLayout(top)
        layout.addWidget(self.bar)
        layout.addWidget(self.waiting)
        layout.addWidget(self.text)

    def show_state(self, state: State) -> None:
        """Bring it up to date; touches only what changed, for each change lays the dock out anew."""
        waiting = self._run.place.waiting_for
        self.waiting.setVisible(bool(waiting))
        self.bar.setVisible(not waiting)
        self.text.setVisible(not waiting)
        if waiting:
            self.waiting.setText(f"Waiting for {waiting}")
        else:
            self.bar.setValue(round(100 * (state.fraction or 0.0)))
            text = progress_text(state)
            if text != self.text.text():
                self.text.setText(text)
        if state.cancelling:
            self.button.setEnabled(False)


class RunList(QWidget):
    """The runs of one dock, in the order in which they were asked for.

    Signals
    -------
    cancelled
        Of which run the button was pressed.
    """

    cancelled = Signal(object)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.rows: dict[Run, RunRow] = {}
        self._column = QVBoxLayout(self)
        self._column.setContentsMargins(0, 0, 0, 0)
        self._column.setSpacing(4)
        self.hide()

    def add(self, run: Run) -> None:
        """Show a run at the end."""
        row = self.rows[run] = RunRow(run)
        row.cancelled.connect(lambda: self.cancelled.emit(run))
        self._column.addWidget(row)
        self.show_state(run)
        self.show()

    def show_state(self, run: Run) -> None:
        """Bring the row of a run up to date."""
        self.rows[run].show_state(run.job.state)

    def remove(self, run: Run) -> None:
        """Take a run away."""
        row = self.rows.pop(run, None)
        if row is not None:
            row.hide()
            row.deleteLater()
        self.setVisible(bool(self.rows))

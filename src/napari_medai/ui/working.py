"""One task at a time in a thread, with its bar, its line and its cancel button: the foot of a dock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qtpy.QtCore import QTimer, Signal
from qtpy.QtWidgets import QHBoxLayout, QLabel, QProgressBar, QPushButton, QVBoxLayout, QWidget

from napari_medai.core.errors import MedaiError
from napari_medai.core.stage import Cancelled, Progress
from napari_medai.ui.job import Job
from napari_medai.ui.running import JOIN_SECONDS, progress_text

_LOOK_MS = 100


class Working(QWidget):
    """Runs what must not block the window, and shows how far it is.

    Parameters
    ----------
    name : str
        Of the threads.
    parent : QWidget, optional

    Signals
    -------
    busy_changed
        Whether something is under way.
    """

    busy_changed = Signal(bool)

    def __init__(self, name: str, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._name = name
        self._thread = _Thread()
        self._then: Callable[[Any], None] = _nothing
        self.bar, self.status = QProgressBar(), QLabel()
        self.status.setWordWrap(True)
        self.cancel_button = QPushButton("Cancel")
        self.cancel_button.clicked.connect(lambda _: self.cancel())
        top = QHBoxLayout()
        top.addWidget(self.bar, 1)
        top.addWidget(self.cancel_button)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addLayout(top)
        layout.addWidget(self.status)
        self._timer = QTimer(self)
        self._timer.setInterval(_LOOK_MS)
        self._timer.timeout.connect(self._look)
        self.destroyed.connect(self._thread.stop)
        self._idle()

    @property
    def job(self) -> Job[Any] | None:
        """What is under way."""
        return self._thread.job

    def start(self, what: str, work: Callable[[Progress], Any], then: Callable[[Any], None]) -> bool:
        """Do something in a thread, and something with its answer in the window.

        Parameters
        ----------
        what : str
            Said while it works.
        work : callable
            Called with its `Progress` in the thread. What it raises of ours is said in the line.
        then : callable
            Called with the answer.

        Returns
        -------
        bool
            False if something else is still under way; then nothing happens.
        """
        if self.job is not None:
            return False
        self._then = then
        self._thread.job = Job(work, name=self._name)
        self.status.setText(f"{what} …")
        self.cancel_button.setEnabled(True)
        self.cancel_button.setVisible(True)
        self.bar.setRange(0, 0)
        self.bar.setVisible(True)
        self._timer.start()
        self.busy_changed.emit(True)
        return True

    def cancel(self) -> None:
        """Stop what is under way at its next check."""
        if self.job is not None:
            self.job.cancel()

    def _look(self) -> None:
        job = self.job
        if job is None:
            return
        state = job.state
        if not state.finished:
            if state.fraction is not None:
                self.bar.setRange(0, 100)
                self.bar.setValue(int(100 * state.fraction))
            self.status.setText(progress_text(state))
            return
        self._thread.job = None
        self._idle()
        error = job.error
        if isinstance(error, Cancelled):
            self.status.setText("Cancelled.")
        elif isinstance(error, MedaiError):
            self.status.setText(str(error))
        elif error is not None:
            raise error
        else:
            self.status.setText("")
            self._then(job.result())

    def _idle(self) -> None:
        self._timer.stop()
        self.bar.setVisible(False)
        self.cancel_button.setEnabled(False)
        self.cancel_button.setVisible(False)
        self.busy_changed.emit(False)


class _Thread:
    """The thread of a dock; outlives its widgets, so that their end can end it."""

    def __init__(self) -> None:
        self.job: Job[Any] | None = None

    def stop(self, *_: Any) -> None:
        """Cancel the job and wait for its thread."""
        if self.job is not None:
            self.job.cancel()
            self.job.join(JOIN_SECONDS)


def _nothing(_: Any) -> None:
    """What is done with an answer that nobody waits for."""

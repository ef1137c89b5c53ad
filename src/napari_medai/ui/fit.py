"""What a panel says before Run is pressed: whether the chosen image fits the chosen model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from html import escape

from qtpy.QtCore import Qt, QTimer, Signal
from qtpy.QtWidgets import QCheckBox, QLabel, QVBoxLayout, QWidget

from napari_medai.core.volume import Volume
from napari_medai.models.gate import GateFinding, gate
from napari_medai.models.spec import Model
from napari_medai.ui.job import Job

_POLL_MS = 50
# Word, colour on napari's dark and light themes alike
_SEVERITIES = {"block": ("Blocks", "#d64545"), "fix": ("Done for you", "#3f8fd2"), "warn": ("Note", "#c58a17")}


class FitView(QWidget):
    """The findings of the gate, and the choice to run all the same.

    What the header says is shown at once; a lazy image's pixels are looked at in a thread, for decoding them may take
    as long as an archive takes to send them.

    Signals
    -------
    changed
        Other findings, or the choice was made or taken back.
    """

    changed = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.text = QLabel()
        self.text.setWordWrap(True)
        self.text.setTextFormat(Qt.TextFormat.RichText)
        self.text.setObjectName("fit")
        self.anyway = QCheckBox("Run anyway")
        self.anyway.setToolTip("<p>Run although the image is not what the model was made for; it is recorded.</p>")
        self.anyway.toggled.connect(lambda _: self.changed.emit())
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(2)
        layout.addWidget(self.text)
        layout.addWidget(self.anyway)
        self._asked: tuple[object, ...] = ()
        self._job: Job[list[GateFinding]] | None = None
        self._timer = QTimer(self)
        self._timer.setInterval(_POLL_MS)
        self._timer.timeout.connect(self._poll)
        self.findings: Sequence[GateFinding] = ()
        self._show(())

    @property
    def override(self) -> bool:
        """Whether the person wants to run all the same."""
        return not self.anyway.isHidden() and self.anyway.isChecked()

    @property
    def obstacle(self) -> str:
        """What keeps the image from being run with this model; empty if nothing does."""
        blocks = [finding.text for finding in self.findings if finding.severity == "block"]
        return "" if self.override else " ".join(blocks)

    def ask(self, volume: Volume | None, model: Model | None, stage: str, channel: int = 0, frame: int = 0) -> None:
        """Compare an image with a model and show what is found."""
        if volume is None or model is None:
            self._asked = ()
            self._show(())
            return
        # a layer gives a new volume each time it is asked, on the same pixels
        asked = (id(volume.array), volume.units, volume.modality, model.id, stage, channel, frame)
        if asked == self._asked:
            return
        if asked[:5] != self._asked[:5]:
            self.anyway.setChecked(False)  # what was overridden was another pair of image and model
        self._asked = asked
        every = stage in ("segment", "denoise")
        compare = partial(gate, volume, model.spec, stage, channel, None if every else frame)
        self._show(compare(look=not volume.is_lazy))
        self._job = Job(lambda _: compare(), name="medai-fit") if volume.is_lazy else None
        if self._job is not None:
            self._timer.start()

    def _poll(self) -> None:
        if self._job is None:
            self._timer.stop()
        elif self._job.state.finished:
            job, self._job = self._job, None
            self._timer.stop()
            if job.error is None:  # pixels that cannot be decoded are said when they are shown, and by the run
                self._show(job.result())

    def _show(self, findings: Sequence[GateFinding]) -> None:
        self.findings = tuple(findings)
        lines = []
        for finding in findings:
            word, colour = _SEVERITIES[finding.severity]
            lines.append(f"<span style='color:{colour}'>{word}:</span> {escape(finding.text)}")
        self.text.setText("<br>".join(lines))
        self.text.setVisible(bool(lines))
        blocks = [finding for finding in findings if finding.severity == "block"]
        self.anyway.setVisible(bool(blocks) and not any(finding.final for finding in blocks))
        self.changed.emit()

    def stop(self) -> None:
        """Wait for the thread that looks at pixels, if there is one."""
        self._timer.stop()
        if self._job is not None:
            self._job.cancel()
            self._job.join()
            self._job = None

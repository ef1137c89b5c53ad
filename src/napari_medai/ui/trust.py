"""The question whether a package may run what it carries."""

from __future__ import annotations

from html import escape

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QCheckBox, QDialog, QDialogButtonBox, QLabel, QTextBrowser, QVBoxLayout, QWidget

from napari_medai.models.spec import ModelSpec
from napari_medai.models.trust import CAPABILITIES

_BEFORE = (
    "This package carries programs. What you allow runs on this computer with your rights, in a process of its own: it "
    "can read and change your files. Allow it only if you know who made the package and trust them."
)


class TrustDialog(QDialog):
    """Shows everything in a package that would be run, where it stands, and asks for each kind separately.

    Nothing is ticked beforehand, and *Cancel* is the default button: a permission is never given by pressing Enter.

    Parameters
    ----------
    spec : ModelSpec
        What `napari_medai.models.probe` said; only what some permission helps with can be asked for.
    parent : QWidget
        The dialog is deleted with it.
    """

    def __init__(self, spec: ModelSpec, parent: QWidget | None) -> None:
        super().__init__(parent)
        self.setWindowTitle("Allow programs in a model?")
        title = QLabel(f"<b>{escape(spec.title)}</b>")
        before = QLabel(_BEFORE)
        before.setWordWrap(True)
        self.needs = QTextBrowser()
        lines = [f"<li><code>{escape(need.where)}</code><br>{escape(need.why)}</li>" for need in spec.needs]
        self.needs.setHtml(f"<ul>{''.join(lines)}</ul>")
        self.boxes: dict[str, QCheckBox] = {}
        for capability in sorted(spec.capabilities):
            self.boxes[capability] = QCheckBox(f"{capability}: {CAPABILITIES[capability]}")
            self.boxes[capability].toggled.connect(self._update)
        after = QLabel(
            "The permission is for exactly these bytes: it ends when any of them changes. "
            "Take it back with <code>medai models trust --revoke</code>, or by removing the model."
        )
        after.setWordWrap(True)
        after.setTextFormat(Qt.TextFormat.RichText)
        self.buttons = QDialogButtonBox(QDialogButtonBox.StandardButton.Cancel)
        self.allow = self.buttons.addButton("Allow", QDialogButtonBox.ButtonRole.AcceptRole)
        self.allow.setAutoDefault(False)
        cancel = self.buttons.button(QDialogButtonBox.StandardButton.Cancel)
        cancel.setDefault(True)
        self.buttons.accepted.connect(self.accept)
        self.buttons.rejected.connect(self.reject)
        layout = QVBoxLayout(self)
        for widget in (title, before, self.needs, *self.boxes.values(), after, self.buttons):
            layout.addWidget(widget)
        self.resize(620, 420)
        self._update()

    def _update(self) -> None:
        # all that it needs, or nothing: with less it could not run
        self.allow.setEnabled(bool(self.boxes) and all(box.isChecked() for box in self.boxes.values()))

    @property
    def capabilities(self) -> frozenset[str]:
        """What is ticked."""
        return frozenset(name for name, box in self.boxes.items() if box.isChecked())

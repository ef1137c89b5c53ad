"""The model's card, in a window beside the viewer."""

from __future__ import annotations

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QDialog, QDialogButtonBox, QTextBrowser, QVBoxLayout, QWidget

from napari_medai.models.spec import Model

# What the safety classes of `ModelSpec` mean
SAFETY = {
    "data": "arrays and a description; nothing in it is a program",
    "config": "another framework's description, of which only known parts are built; nothing in it is executed",
    "code": "it carries a program",
}


class CardText(QTextBrowser):
    """Shows Markdown, with links that open in the web browser and can be read on dark ground and light."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setOpenExternalLinks(True)

    def setMarkdown(self, text: str) -> None:  # noqa: N802  (Qt's name)
        """Show Markdown."""
        super().setMarkdown(text)
        # Qt's Markdown writes the application's colour of links into each of them: blue, on napari's black
        self.setHtml(self.toHtml().replace("color:#0000ff", "color:#4b9be8"))


class CardDialog(QDialog):
    """Shows what a model is for, how it was made, its figures and its licence.

    Parameters
    ----------
    model : Model
        Whose card is shown.
    parent : QWidget
        The dialog is deleted when it closes, or with its parent.
    """

    def __init__(self, model: Model, parent: QWidget) -> None:
        super().__init__(parent)
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self.setWindowTitle(f"Model card: {model.spec.title}")
        self.text = CardText()
        self.text.setMarkdown(card_text(model))
        buttons = QDialogButtonBox(QDialogButtonBox.StandardButton.Close)
        buttons.rejected.connect(self.close)
        layout = QVBoxLayout(self)
        layout.addWidget(self.text)
        layout.addWidget(buttons)
        self.resize(640, 560)


def card_text(model: Model) -> str:
    """The card, and below it what the description of the model says for certain (Markdown)."""
    spec = model.spec
    accepts = " or ".join(f"{n}-D" for n in spec.accepts.ndim)
    accepts += f", {', '.join(spec.accepts.modality)}" if spec.accepts.modality else ", any modality"
    rows = {
        "Id": f"`{spec.id}`, version {spec.version}, from {model.source}",
        "Takes": f"{accepts}, {spec.accepts.min_size} pixels or more along y and x",
        "Gives": spec.gives.kind
        + (f": {', '.join(label.name for label in spec.gives.labels)}" if spec.gives.labels else ""),
        "Trained on": spec.training_data,
        "Measured": spec.metrics,
        "Licence": spec.licence,
        "Please cite": spec.citation,
        "Safety": f"{spec.safety}: {SAFETY[spec.safety]}",
        "Permission": _permission(model),
        "SHA-256 of the weights": f"`{spec.sha256}`" if spec.sha256 else "",
    }
    listing = "\n".join(f"- **{name}:** {value}" for name, value in rows.items() if value)
    return f"{model.card.rstrip()}\n\n---\n\n{listing}\n\n{spec.intended_use}\n"


def _permission(model: Model) -> str:
    grant = model.grant
    if grant is None:
        return ""
    return f"{', '.join(sorted(grant.capabilities))}, given {grant.given[:10]}; it runs in a process of its own"

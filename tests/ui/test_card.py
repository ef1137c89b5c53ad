"""The model card."""

from __future__ import annotations

from typing import Any

from qtpy.QtWidgets import QWidget
from standins import MODELS

from napari_medai.ui.card import CardDialog, card_text


def test_card_says_what_the_description_knows() -> None:
    text = card_text(next(m for m in MODELS if m.id == "brain"))
    assert "# Brain" in text
    assert "3-D, MR" in text
    assert "labels: brain" in text
    assert "BSD-3-Clause" in text
    assert "not a medical device" in text
    assert "cite" not in text


def test_dialog_shows_the_card(qtbot: Any) -> None:
    parent = QWidget()
    qtbot.addWidget(parent)
    dialog = CardDialog(MODELS[0], parent)
    dialog.show()
    assert "Stands in for self2d." in dialog.text.toPlainText()
    dialog.close()

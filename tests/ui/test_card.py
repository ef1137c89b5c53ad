"""The model card."""

from __future__ import annotations

from typing import Any

from qtpy.QtWidgets import QWidget
from standins import MODELS

from napari_medai.models.trust import Grant
from napari_medai.ui.card import CardDialog, card_text


def test_card_says_what_the_description_knows() -> None:
    text = card_text(next(m for m in MODELS if m.id == "brain"))
    assert "# Brain" in text
    assert "3-D, MR" in text
    assert "labels: brain" in text
    assert "BSD-3-Clause" in text
    assert "not a medical device" in text
    assert "cite" not in text
    assert "data: arrays and a description" in text
    assert "Permission" not in text


def test_card_has_all_that_a_package_says() -> None:
    model = next(m for m in MODELS if m.id == "brain")
    said = {"training_data": "12 heads.", "metrics": "Dice 0.9.", "citation": "A paper.", "sha256": "ab" * 32}
    spec = model.spec.model_copy(update={**said, "safety": "code"})
    grant = Grant("cd" * 32, frozenset({"torchscript"}), "2026-01-02T03:04:05+00:00")
    text = card_text(model.model_copy(update={"spec": spec, "grant": grant}))
    for expected in (
        "12 heads.",
        "Dice 0.9.",
        "A paper.",
        "ab" * 32,
        "it carries a program",
        "torchscript, given 2026-01-02",
    ):
        assert expected in text


def test_dialog_shows_the_card(qtbot: Any) -> None:
    parent = QWidget()
    qtbot.addWidget(parent)
    dialog = CardDialog(MODELS[0], parent)
    dialog.show()
    assert "Stands in for self2d." in dialog.text.toPlainText()
    dialog.close()

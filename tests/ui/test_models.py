"""The dock of models, on real packages: adding, asking, allowing, checking, removing."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from napari.components import ViewerModel
from qtpy.QtWidgets import QDialog, QDialogButtonBox, QMessageBox

from napari_medai.models import builtins, trust
from napari_medai.ui import models as dock_module
from napari_medai.ui.models import ModelsDock
from napari_medai.ui.panel import StagePanel
from napari_medai.ui.trust import TrustDialog


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDAI_MODELS", str(tmp_path / "models"))
    monkeypatch.setattr(trust, "store_path", lambda: tmp_path / "settings" / "trust.json")


@pytest.fixture
def dock(qtbot: Any) -> ModelsDock:
    dock = ModelsDock()
    qtbot.addWidget(dock)
    settled(dock, qtbot)
    return dock


def settled(dock: ModelsDock, qtbot: Any) -> None:
    qtbot.waitUntil(lambda: bool(dock.rows) and dock.working.job is None, timeout=60_000)


def package(folder: Path) -> Path:
    """A package of ours under another name."""
    shutil.copytree(builtins.FOLDER / "nuclei", folder)
    description = folder / "medai-model.yaml"
    text = description.read_text(encoding="utf-8")
    assert "id: nuclei" in text
    description.write_text(text.replace("id: nuclei", "id: my-nuclei"), encoding="utf-8")
    return folder


def program(path: Path) -> Path:
    """A TorchScript archive with a description beside it."""

    class Bright(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([0.5 - x, x - 0.5], dim=1)

    path.mkdir()
    torch.jit.save(torch.jit.trace(Bright(), torch.zeros(1, 1, 16, 16)), str(path / "model.ts"))  # type: ignore[no-untyped-call]
    return path / "model.ts"


def test_everything_is_listed_with_what_can_be_done(dock: ModelsDock) -> None:
    states = {row.id: row.state for row in dock.rows}
    assert states["nuclei"] == "ready"
    assert states["brainchop-gwm"] == "download"
    assert dock.go_to("nuclei")
    assert "nuclei" in dock.card.toPlainText().lower()
    assert not dock.do_button.isEnabled()
    assert not dock.remove_button.isEnabled()
    assert dock.check_button.isEnabled()
    dock.search.setText("spleen ct download")
    shown = [dock.tree.topLevelItem(n).text(0) for n in range(dock.tree.topLevelItemCount())]
    assert shown
    assert all("spleen" in name.lower() for name in shown)
    assert dock.chosen is None


def test_a_package_is_added_offered_checked_and_removed(
    dock: ModelsDock, qtbot: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    panel = StagePanel(ViewerModel(), "segment")
    qtbot.addWidget(panel)
    dock.add(package(tmp_path / "given"))
    qtbot.waitUntil(lambda: any(row.id == "my-nuclei" for row in dock.rows), timeout=20_000)
    settled(dock, qtbot)
    assert dock.chosen is not None
    assert dock.chosen.id == "my-nuclei"
    assert "my-nuclei" in [model.id for model in panel.models.models]
    dock.check()
    settled(dock, qtbot)
    assert "✓" in dock.working.status.text()
    assert "✗" not in dock.working.status.text()
    monkeypatch.setattr(QMessageBox, "question", lambda *_: QMessageBox.StandardButton.No)
    dock.remove()
    assert dock.working.job is None
    monkeypatch.setattr(QMessageBox, "question", lambda *_: QMessageBox.StandardButton.Yes)
    dock.remove()
    settled(dock, qtbot)
    qtbot.waitUntil(lambda: all(row.id != "my-nuclei" for row in dock.rows), timeout=20_000)
    assert "my-nuclei" not in [model.id for model in panel.models.models]


def test_what_is_no_model_is_said(dock: ModelsDock, qtbot: Any, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no model")
    dock.add(tmp_path / "notes.txt")
    settled(dock, qtbot)
    assert "notes.txt" in dock.working.status.text()


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_a_program_runs_only_after_a_person_allowed_it(
    dock: ModelsDock, qtbot: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dock.add(program(tmp_path / "given"), id="bright", axes="bcyx", stage="segment", labels="ground,bright")
    qtbot.waitUntil(lambda: any(row.id == "bright" for row in dock.rows), timeout=20_000)
    settled(dock, qtbot)
    assert dock.chosen is not None
    assert dock.chosen.state == "asks"
    assert dock.do_button.text() == "Permission…"
    seen = []

    def refuse(dialog: TrustDialog) -> int:
        seen.append((dialog.needs.toPlainText(), list(dialog.boxes), dialog.allow.isEnabled()))
        return int(QDialog.DialogCode.Rejected)

    monkeypatch.setattr(dock_module.TrustDialog, "exec", refuse)
    dock.do()
    assert dock.working.job is None
    assert trust.grants() == []
    assert "model.ts" in seen[0][0]
    assert seen[0][1:] == (["torchscript"], False)

    def allow(dialog: TrustDialog) -> int:
        dialog.boxes["torchscript"].setChecked(True)
        assert dialog.allow.isEnabled()
        assert dialog.buttons.button(QDialogButtonBox.StandardButton.Cancel).isDefault()
        return int(QDialog.DialogCode.Accepted)

    monkeypatch.setattr(dock_module.TrustDialog, "exec", allow)
    dock.do()
    qtbot.waitUntil(lambda: dock.chosen is not None and dock.chosen.state == "ready", timeout=20_000)
    (grant,) = trust.grants()
    assert grant.capabilities == {"torchscript"}
    assert "torchscript, given" in dock.card.toPlainText()

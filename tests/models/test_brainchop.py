from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional

import napari_medai as medai
from napari_medai.core.errors import ModelError
from napari_medai.core.volume import Volume
from napari_medai.engine.labelling import largest_piece
from napari_medai.engine.prepare import prepare
from napari_medai.models import load, probe
from napari_medai.models.brainchop import recognise

DILATIONS = [1, 2, 1]


def table(**changes: Any) -> dict[str, Any]:
    # -1: as in a published table that leaves the widths to the weights
    layers = [
        {"in_channels": -1, "out_channels": 5, "kernel_size": 3, "padding": d, "stride": 1, "dilation": d}
        for d in DILATIONS
    ]
    layers[-1].update({"kernel_size": 1, "padding": 0})
    return {"header": "Tissue", "bnorm": False, "elu": True, "dropout_p": 0, "bias": True, "layers": layers, **changes}


def tensors(step: int = 2, widths: tuple[int, ...] = (1, 2, 2, 3), *, norm: bool = False) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    found = {}
    for n, (a, b) in enumerate(pairwise(widths)):
        size = 1 if n == len(widths) - 2 else 3
        found[f"model.{step * n}.weight"] = torch.randn(b, a, size, size, size)
        found[f"model.{step * n}.bias"] = torch.randn(b) if size == 3 else torch.zeros(b)
        if norm and size == 3:
            for kind, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
                found[f"model.{step * n + 1}.{kind}"] = torch.full((b,), value)
            found[f"model.{step * n + 1}.num_batches_tracked"] = torch.tensor(1)
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return written(tmp_path / "model3cls")


def written(place: Path, state: dict[str, torch.Tensor] | None = None, **changes: Any) -> Path:
    place.mkdir()
    (place / "model.json").write_text(json.dumps(table(**changes)))
    save_file(tensors() if state is None else state, place / "model.pth")
    colors = {"R": [0, 255, 0], "G": [0, 0, 51], "B": [0, 0, 255], "labels": ["BG", "Left-Thalamus*", "CSF"]}
    (place / "colormap.json").write_text(json.dumps(colors))
    return place


@pytest.mark.parametrize("name", ["", "model.json"])
def test_a_folder_is_described_by_its_table_weights_and_colours(folder: Path, name: str) -> None:
    assert recognise(folder / name)
    spec = probe(folder / name)
    assert (spec.id, spec.source, spec.safety, spec.needs) == ("brainchop-model3cls", "brainchop", "data", ())
    assert (spec.weights, spec.tiling.halo, spec.arguments["activation"]) == ("model.pth", 3, "elu")
    assert [(x["in_channels"], x["out_channels"]) for x in spec.arguments["layers"]] == [(1, 2), (2, 2), (2, 3)]
    assert [(x.value, x.name, x.color) for x in spec.gives.labels] == [
        (1, "Left-Thalamus", (1.0, 0.0, 0.0)),
        (2, "CSF", (0.0, 0.2, 1.0)),
    ]
    assert spec.accepts.orientation == "LIA"


def test_a_folder_of_folders_lists_them(folder: Path) -> None:
    written(folder.parent / "other")
    assert recognise(folder.parent)
    with pytest.raises(ModelError, match="several models: model3cls, other"):
        probe(folder.parent)


def test_other_folders_are_not_recognised(tmp_path: Path) -> None:
    assert not recognise(tmp_path)
    for content in ("{}", "[", '{"layers": []}', '{"layers": [{"class_name": "Conv3D"}]}', "[" * 10**5):
        (tmp_path / "model.json").write_text(content)
        assert not recognise(tmp_path)


@pytest.mark.parametrize(
    ("changes", "state", "expected"),
    [
        ({}, tensors(), ""),
        ({"bnorm": True, "gelu": True, "elu": False}, tensors(3), "instance"),
        ({"bnorm": True}, tensors(3, norm=True), "batch"),
    ],
)
def test_a_head_is_labelled(tmp_path: Path, changes: dict[str, Any], state: Any, expected: str) -> None:
    spec = probe(written(tmp_path / "m", state, **changes))
    assert spec.arguments["normalise"] == expected
    prepare_to = spec.prepare.model_copy(update={"conform": 40})
    model = load(spec.model_copy(update={"prepare": prepare_to}))
    image = np.zeros((34, 36, 38), np.float32)
    image[4:30, 6:30, 5:33] = np.random.default_rng(0).integers(20, 200, (26, 24, 28))
    volume = Volume(image, "zyx", np.eye(4), units="mm", modality="MR")
    found = medai.segment(volume, model, device="cpu").labels.numpy()
    ready = prepare(volume, prepare_to, orientation="LIA")
    x = torch.from_numpy(ready.array)[None]
    with torch.no_grad():
        for n, dilation in enumerate(DILATIONS):
            step = 2 if not expected else 3
            weight, bias = (state[f"model.{step * n}.{kind}"] for kind in ("weight", "bias"))
            x = functional.conv3d(x, weight, bias, padding="same", dilation=dilation)
            if n < 2 and expected == "instance":
                x = functional.instance_norm(x)
            if n < 2:  # statistics of 0 and 1 change nothing
                x = functional.gelu(x) if changes.get("gelu") else functional.elu(x)
    whole = x.argmax(1)[0].numpy().astype(np.int32)
    assert len(np.unique(whole)) > 1
    by_hand = np.where(largest_piece((whole > 0).astype(np.int32)) > 0, whole, 0)
    assert np.mean(found != ready.undo_labels(by_hand)) < 1e-3


def test_files_that_do_not_fit_are_said(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="tells 3 layers; the weights hold 2 convolutions"):
        probe(written(tmp_path / "a", tensors(widths=(1, 2, 3))))
    broken = tensors()
    broken["model.2.weight"] = torch.zeros(2, 5, 3, 3, 3)
    with pytest.raises(ModelError, match="no chain of convolutions"):
        probe(written(tmp_path / "b", broken))
    place = written(tmp_path / "c")
    torch.save(tensors(), place / "model.pth")
    with pytest.raises(ModelError, match=r"0 files of safetensors, one is needed; .*pickles of torch are not read"):
        probe(place)
    place = written(tmp_path / "d")
    (place / "colormap.json").write_text('{"labels": [1, 2, 3]}')
    with pytest.raises(ModelError, match="no table of colours"):
        probe(place)
    big = table()
    big["layers"][1]["dilation"] = 10**9
    with pytest.raises(ModelError, match="layers::1::dilation is 1000000000"):
        probe(written(tmp_path / "e", **big))


def test_too_few_names_are_not_stretched(folder: Path) -> None:
    (folder / "colormap.json").write_text(json.dumps({"R": [0, 1], "G": [0, 1], "B": [0, 1], "labels": ["a", "b"]}))
    assert [label.name for label in probe(folder).gives.labels] == ["class 1", "class 2"]

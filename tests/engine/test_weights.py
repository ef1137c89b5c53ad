"""Weights: checked, float32, kept warm."""

from __future__ import annotations

import hashlib
import io
import warnings
import weakref
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from napari_medai import nets
from napari_medai.core.errors import ModelError
from napari_medai.engine import weights
from napari_medai.engine.weights import (
    beside,
    forget,
    load_archive,
    load_network,
    load_state,
    read_checked,
    warm,
    warm_bytes,
)
from napari_medai.models.spec import Accepts, Gives, ModelSpec

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def cold():
    """Nothing is kept from one test to the next."""
    forget()
    yield
    forget()


def written(path: Path, content: bytes) -> tuple[Path, str]:
    path.write_bytes(content)
    return path, hashlib.sha256(content).hexdigest()


def spec(**changes):
    fields = {
        "id": "phantom",
        "title": "Phantom",
        "summary": "For tests.",
        "stage": "segment",
        "accepts": Accepts(ndim=(2,)),
        "gives": Gives(kind="image"),
        "runner": "none",
        "network": "line",
        "arguments": {"bias": False},
    }
    return ModelSpec(**{**fields, **changes})


class Line(nn.Module):
    """A network of two numbers."""

    def __init__(self, bias=True):
        super().__init__()
        self.layer = nn.Linear(2, 1, bias=bias)


@pytest.fixture
def networks(monkeypatch):
    monkeypatch.setitem(nets.NETWORKS, "line", f"{__name__}:Line")
    monkeypatch.setitem(nets.ARGUMENTS, "line", "bias depth")
    monkeypatch.setattr(weights, "build", lambda name, **arguments: Line(**arguments))


def test_only_the_expected_bytes_are_read(tmp_path):
    path, sha256 = written(tmp_path / "a.bin", b"abc")
    assert read_checked(path, sha256) == b"abc"
    with pytest.raises(ModelError, match="sha256 ba7816bf8f01cfea…; 0000000000000000… was expected"):
        read_checked(path, "0" * 64)
    with pytest.raises(ModelError, match="no sha256"):
        read_checked(path, "")
    with pytest.raises(ModelError, match=r"b.bin cannot be read \(No such file"):
        read_checked(tmp_path / "b.bin", sha256)


def test_half_precision_becomes_float32(tmp_path):
    tensors = {
        "a": torch.ones(2, dtype=torch.float16),
        "b": torch.tensor([3]),
        "c": torch.ones(1, dtype=torch.bfloat16),
    }
    path, sha256 = written(tmp_path / "w.safetensors", safetensors.torch.save(tensors))
    state = load_state(path, sha256)
    assert [state[name].dtype for name in "abc"] == [torch.float32, torch.int64, torch.float32]


def test_another_format_is_an_error(tmp_path):
    path, sha256 = written(tmp_path / "w.safetensors", b"not safetensors at all")
    with pytest.raises(ModelError, match="not a safetensors file"):
        load_state(path, sha256)


@pytest.mark.usefixtures("networks")
def test_a_network_is_ready_to_run_and_kept(tmp_path):
    tensors = {"layer.weight": torch.tensor([[1.0, 2.0]], dtype=torch.float16)}
    path, sha256 = written(tmp_path / "w.safetensors", safetensors.torch.save(tensors))
    network = load_network(spec(sha256=sha256), path, CPU)
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())
    assert network.layer.weight.tolist() == [[1, 2]]
    path.unlink()
    assert load_network(spec(sha256=sha256), path, CPU) is network
    forget()
    with pytest.raises(ModelError, match="cannot be read"):
        load_network(spec(sha256=sha256), path, CPU)


@pytest.mark.usefixtures("networks")
@pytest.mark.parametrize(
    "tensors", [{}, {"layer.weight": torch.zeros(1, 2), "other": torch.zeros(1)}, {"layer.weight": torch.zeros(3, 2)}]
)
def test_weights_that_do_not_fit_are_an_error(tmp_path, tensors):
    path, sha256 = written(tmp_path / "w.safetensors", safetensors.torch.save(tensors))
    with pytest.raises(ModelError, match=r"do not fit the network 'line': (layer.weight|other)\."):
        load_network(spec(sha256=sha256), path, CPU)


@pytest.mark.usefixtures("networks")
@pytest.mark.parametrize(
    ("changes", "message"),
    [({"network": "other"}, "'other' is not known; there are:"), ({"arguments": {"depth": 3}}, "cannot be built")],
)
def test_a_network_that_cannot_be_built_is_an_error(tmp_path, changes, message):
    with pytest.raises(ModelError, match=message):
        load_network(spec(**changes), tmp_path / "w.safetensors", CPU)


@pytest.mark.usefixtures("networks")
def test_a_network_without_weights_is_an_error():
    with pytest.raises(ModelError, match="no weights"):
        load_network(spec(), None, CPU)


def test_the_cache_is_bounded(monkeypatch):
    monkeypatch.setattr(weights, "MOST_NETWORKS", 2)
    made = []

    def make():
        made.append(nn.Linear(2, 1))
        return made[-1]

    a = warm(("a", "cpu"), make, CPU)
    warm(("b", "cpu"), make, CPU)
    assert warm(("a", "cpu"), make, CPU) is a
    warm(("c", "cpu"), make, CPU)  # b was used longest ago
    assert warm(("a", "cpu"), make, CPU) is a
    assert len(made) == 3
    warm(("b", "cpu"), make, CPU)
    assert len(made) == 4
    monkeypatch.setattr(weights, "SHARE", 1e-15)
    last = warm(("d", "cpu"), make, CPU)  # the one in use stays, whatever its size
    assert list(weights._warm.values()) == [last]


def test_what_runs_in_a_networks_place_is_kept_as_long_as_the_network():
    class Memory:
        bytes = 100

    network = warm(("a", "cpu"), lambda: nn.Linear(2, 1), CPU)
    held = warm_bytes(CPU)
    assert held == 3 * 4
    stand_in = beside(network, Memory)
    assert warm_bytes(CPU) == held + 100
    assert beside(network, Memory) is stand_in
    assert beside(nn.Linear(2, 1), Memory) is not stand_in
    forget()
    assert beside(network, Memory) is stand_in
    gone = weakref.ref(stand_in)
    del network, stand_in
    assert gone() is None


def test_what_is_kept_can_be_explained_after_a_run_that_loaded_it():
    with torch.inference_mode():
        network = warm(("a", "cpu"), lambda: nn.Linear(2, 1), CPU)
    image = torch.ones(2, requires_grad=True)
    network(image).sum().backward()
    assert image.grad is not None


def test_torchscript_is_opened_by_its_sha256_only(tmp_path):
    buffer, traced = io.BytesIO(), nn.Linear(2, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.trace(traced, torch.zeros(1, 2)), buffer)
    path, sha256 = written(tmp_path / "a.pt", buffer.getvalue())
    with pytest.raises(ModelError, match="was expected"):
        load_archive(path, "0" * 64, lambda: nn.Linear(2, 1), CPU)
    loaded = load_archive(path, sha256, lambda: nn.Linear(2, 1), CPU)
    assert isinstance(loaded, nn.Linear)  # ours, with the archive's parameters; no program of the archive runs
    torch.testing.assert_close(loaded.weight.detach(), traced.weight.detach())
    with pytest.raises(ModelError, match="cannot open"):
        load_archive(path, sha256, lambda: nn.Linear(5, 1), torch.device("cpu:0"))
    path, sha256 = written(tmp_path / "b.pt", b"junk")
    with pytest.raises(ModelError, match=r"cannot open b\.pt"):
        load_archive(path, sha256, lambda: nn.Linear(2, 1), CPU)

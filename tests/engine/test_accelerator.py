"""What only an accelerator can show; skipped where there is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from napari_medai.core.stage import Params, Progress
from napari_medai.core.volume import from_array
from napari_medai.engine.device import available_devices, choose_device, free_memory_mb
from napari_medai.engine.run import start
from napari_medai.models.spec import Accepts, Gives, Model, ModelSpec, Tiling

ACCELERATOR = torch.cuda.is_available() or torch.backends.mps.is_available()

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not ACCELERATOR, reason="there is no accelerator (CUDA or Apple GPU) here"),
]

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")

IMAGE = np.random.default_rng(0).normal(size=(1, 70, 70, 70)).astype(np.float32)
MODEL = Model(
    spec=ModelSpec(
        id="phantom",
        title="Phantom",
        summary="For tests.",
        stage="segment",
        accepts=Accepts(ndim=(3,)),
        gives=Gives(kind="image"),
        tiling=Tiling(size=(32, 32, 32), multiple=4),
        runner="brain",
    ),
    folder=Path("nowhere"),
    source="test",
)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv3d(8, 2, 3, padding=1)).eval()


def begin(device):
    return start("segment", from_array(IMAGE[0]), MODEL, Params(device=device), Progress())


def test_auto_takes_the_accelerator():
    device = choose_device("auto")
    assert device.type != "cpu"
    assert free_memory_mb(device) > 0
    assert available_devices()[0].name == str(device)


def test_the_accelerator_agrees_with_the_cpu():
    with begin("cpu") as run:
        expected = run.predict(IMAGE, network())
    with begin("auto") as run:
        found = run.predict(IMAGE, network().to(run.device))
        record = run.provenance()
    np.testing.assert_allclose(found, expected, atol=5e-3)
    assert record.peak_memory_mb > 0
    assert record.device != "cpu"


@needs_cuda
def test_cuda_runs_in_half_precision():
    with begin("cuda") as run:
        seen = []
        run.predict(IMAGE, lambda x: (seen.append(torch.is_autocast_enabled("cuda")), x)[1])
        assert all(seen)
        assert run.provenance().precision == "float16 (autocast)"


@needs_cuda
def test_real_lack_of_memory_ends_on_the_cpu_with_the_same_result():
    class Greedy(nn.Module):
        def forward(self, x):
            if x.device.type == "cuda":
                torch.empty(2**50, device=x.device)
            return 2 * x

    with begin("cuda") as run:
        out = run.predict(IMAGE, Greedy())
        assert run.device.type == "cpu"
        assert any("running on the CPU instead" in note for note in run.notes)
    np.testing.assert_allclose(out, 2 * IMAGE, atol=1e-5)


@needs_cuda
def test_memory_is_given_back_at_the_end():
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    with begin("cuda") as run:
        run.predict(IMAGE, network().to(run.device))
    assert torch.cuda.memory_reserved() <= before + 2**21

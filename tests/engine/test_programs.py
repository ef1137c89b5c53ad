"""TorchScript and torch.export archives: run in a process of their own after a permission, and never here."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from scipy import ndimage

import napari_medai as medai
from napari_medai.core.errors import ModelError, UntrustedError
from napari_medai.core.stage import Progress
from napari_medai.core.volume import Volume
from napari_medai.engine.exported import run_exported
from napari_medai.engine.programs import run_program
from napari_medai.engine.run import start
from napari_medai.models import describe, load, probe
from napari_medai.models.package import package_sha256
from napari_medai.models.spec import Model
from napari_medai.models.trust import Grant
from napari_medai.stages.denoise import DenoiseParams
from napari_medai.stages.segment import SegmentParams
from tests.models import fabricated as made


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return made.programs(tmp_path_factory.mktemp("programs"))


def allowed(path, spec, capability):
    return load(spec, Grant(package_sha256(path), frozenset({capability})))


@pytest.mark.parametrize("kind", ["torchscript", pytest.param("pt2", marks=pytest.mark.slow)])
def test_it_is_run_in_a_process_of_its_own(files, kind):
    spec = describe(files[kind], axes="bcyx", stage="denoise", halo="2", multiple="8")
    array = np.random.default_rng(0).uniform(0, 1, (61, 50)).astype(np.float32)
    result = medai.denoise(Volume(array, "yx"), allowed(files[kind], spec, kind), tile=32, device="cpu")
    expected = ndimage.uniform_filter(array.astype(np.float64), 5, mode="reflect")
    np.testing.assert_allclose(result.image.numpy(), expected, rtol=1e-5)
    assert result.provenance.tiles > 1
    assert any("process of its own" in note for note in result.provenance.notes)


def test_without_a_permission_and_in_this_process_nothing_is_opened(files, tmp_path):
    spec = describe(files["torchscript"], axes="bcyx", stage="denoise")
    granted = allowed(files["torchscript"], spec, "torchscript")
    image = Volume(np.eye(16, dtype=np.float32), "yx")
    bare = Model(spec=spec, folder=granted.folder, source="program")
    for model in (bare, granted):
        with (
            start("denoise", image, model, DenoiseParams(device="cpu"), Progress()) as run,
            pytest.raises(UntrustedError, match="nothing of it was run"),
        ):
            run_program(image, run, run.params)
    with pytest.raises(UntrustedError):
        medai.denoise(image, bare)


def test_axes_that_nobody_said_are_asked_for(files):
    model = allowed(files["torchscript"], probe(files["torchscript"]), "torchscript")
    image = Volume(np.eye(16, dtype=np.float32), "yx")
    with (
        start("segment", image, model, SegmentParams(device="cpu"), Progress()) as run,
        pytest.raises(ModelError, match=r"The axes of script\.pt are not known; .*--axes"),
    ):
        run_exported(image, run, run.params, lambda _: [])


@pytest.mark.slow
def test_a_package_of_bioimage_io_with_a_program(tmp_path):
    """Its network and a processing step are code: with a permission both run, in a process of their own."""
    (tmp_path / "net.py").write_text(
        "import torch\n"
        "class Double(torch.nn.Module):\n"
        "    def __init__(self, start):\n"
        "        super().__init__()\n"
        "        self.factor = torch.nn.Parameter(torch.tensor(float(start)))\n"
        "    def forward(self, x):\n"
        "        return x * self.factor\n"
    )
    torch.save({"factor": torch.tensor(2.0)}, tmp_path / "weights.pt")
    weights = {
        "source": "weights.pt",
        "sha256": made.sha256(tmp_path / "weights.pt"),
        "pytorch_version": "2.5",
        "architecture": {
            "source": "net.py",
            "callable": "Double",
            "kwargs": {"start": 1},
            "sha256": made.sha256(tmp_path / "net.py"),
        },
    }
    sizes = {"min": 16, "step": 8}
    made.package(
        tmp_path,
        [made.tensor("raw", ["gray"], {"y": sizes, "x": sizes})],
        [made.tensor("restored", ["gray"], made.like("raw"))],
        {"pytorch_state_dict": weights},
        tags=["denoising"],
    )
    array = np.random.default_rng(0).uniform(0, 1, (21, 30)).astype(np.float32)
    result = medai.denoise(Volume(array, "yx"), allowed(tmp_path, probe(tmp_path), "python"), device="cpu")
    np.testing.assert_allclose(result.image.numpy(), 2 * array, rtol=1e-6)
    assert "net" not in sys.modules

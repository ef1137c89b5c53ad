"""Labels that become a file while they are found: a run that is killed and repeated gives what an unbroken one does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
import zarr

import napari_medai as medai
from napari_medai import nets
from napari_medai.batch import plan_cases, run_batch
from napari_medai.core.errors import WriteError
from napari_medai.core.stage import Progress
from napari_medai.engine.zarr_store import ZarrStore
from napari_medai.models import load_model
from napari_medai.models.spec import Gives, Label, Prepare, Tiling
from napari_medai.writing import place_for, save_result
from tests.engine.test_network import package

AFFINE = np.diag([1.2, 1.1, 2.0, 1.0])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Convolutions with weights drawn at random, 16 voxels a tile."""
    arguments = {
        "layers": [
            {"in_channels": 1, "out_channels": 4, "kernel_size": 3, "dilation": 1},
            {"in_channels": 4, "out_channels": 4, "kernel_size": 3, "dilation": 2},
            {"in_channels": 4, "out_channels": 2, "kernel_size": 1, "dilation": 1},
        ]
    }
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    package(
        folder, nets.build("meshnet", **arguments).state_dict(), id="bright", arguments=arguments,
        prepare=Prepare(normalise="none", spacing_mm=(1.2, 1.2, 1.8)), tiling=Tiling(size=(16, 16, 16), multiple=2),
        gives=Gives(kind="labels", labels=(Label(value=7, name="bright"),)),
    )  # fmt: skip
    return folder


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    array = np.random.default_rng(0).uniform(1, 10, (16, 20, 64)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(array, AFFINE), tmp_path / "scan.nii")
    return tmp_path / "scan.nii"


def at_the_third_slab(monkeypatch, number: int) -> None:
    """Send this process a signal when a run has finished so much."""
    mark, count = ZarrStore.mark, []

    def marked(self, planes: int) -> None:
        mark(self, planes)
        count.append(planes)
        if len(count) == 3:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(ZarrStore, "mark", marked)


# the same for a process of its own, which imports no more than the command does
KILLED = """
    import os, signal
    from napari_medai.cli import main
    from napari_medai.engine.zarr_store import ZarrStore
    mark, count = ZarrStore.mark, []
    def marked(self, planes):
        mark(self, planes)
        count.append(planes)
        if len(count) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
    ZarrStore.mark = marked
    main()
"""


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file but the metadata, which hold seconds and memory."""
    paths = (Path(root) / name for root, _, names in os.walk(folder) for name in names if name != "zarr.json")
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.mark.skipif(sys.platform == "win32", reason="no such signals")
def test_a_run_that_is_killed_and_repeated_gives_the_same_file(scan: Path, model: Path, command) -> None:
    folder = scan.parent
    words = ["segment", str(scan), "--model", str(model), "--device", "cpu", "--out"]
    code = [sys.executable, "-c", textwrap.dedent(KILLED), *words, str(folder / "a.ome.zarr")]
    broken = subprocess.run(code, capture_output=True, text=True, check=False)
    assert broken.returncode == -signal.SIGKILL, broken.stderr
    part = folder / ".a.ome.zarr.part"
    finished = json.loads((part / ".medai-run.json").read_text())["finished"]
    assert 0 < finished < 64
    assert not (folder / "a.ome.zarr").exists()
    code, out, error = command(*words, folder / "a.ome.zarr")
    assert code == 0, error
    assert f"went on from plane {finished}" in out
    assert not part.exists()
    code, out, error = command(*words, folder / "b.ome.zarr")
    assert code == 0, error
    assert "went on" not in out
    assert files_of(folder / "a.ome.zarr") == files_of(folder / "b.ome.zarr")
    found, image = medai.open(folder / "a.ome.zarr"), medai.open(scan)
    expected = medai.segment(image, str(model), device="cpu").labels.numpy()
    assert 0.01 < (expected == 7).mean() < 0.99
    np.testing.assert_array_equal(found.numpy(), expected)
    np.testing.assert_allclose(found.affine, image.affine)
    assert found.meta["label_names"] == {7: "bright"}
    assert found.meta["provenance"]["model"] == "bright"


@pytest.mark.skipif(sys.platform == "win32", reason="no such signals")
def test_ctrl_c_leaves_what_is_finished(scan: Path, model: Path, command, monkeypatch) -> None:
    words = ["segment", scan, "--model", model, "--device", "cpu", "--out", scan.parent / "a.ome.zarr"]
    with monkeypatch.context() as patch:
        at_the_third_slab(patch, signal.SIGINT)
        code, _, error = command(*words)
    assert code == 1
    assert "goes on from there" in error
    code, out, error = command(*words)
    assert code == 0, error
    assert "went on from plane" in out


def test_a_dry_run_says_what_it_takes_and_runs_nothing(scan: Path, model: Path, command) -> None:
    words = ["segment", scan, "--model", model, "--device", "cpu", "--dry-run", "--out", scan.parent / "a.zarr"]
    code, out, error = command(*words, "--json")
    assert code == 0, error
    plan = json.loads(out)["plan"]
    assert plan["tiles"] > 4
    assert plan["fits"]
    assert 0 < plan["host_mb"] < plan["free_host_mb"]
    assert "it fits" in command(*words)[1]
    assert sorted(p.name for p in scan.parent.iterdir()) == ["scan.nii"]


def test_a_run_that_cannot_fit_is_said_before_it_begins(scan: Path, model: Path, command) -> None:
    code, out, error = command("segment", scan, "--model", model, "--device", "cpu", "--dry-run", "--memory", 50)
    assert code == 1
    assert "memory" in out + error


def test_a_batch_goes_on_inside_of_a_case(scan: Path, model: Path, monkeypatch) -> None:
    cases = plan_cases([scan], scan.parent / "out", ".ome.zarr")
    (done,) = run_batch("segment", cases, model=str(model))
    assert done.status == "done", done.message
    assert [p.name for p in (scan.parent / "out").iterdir()] == ["scan.ome.zarr"]
    (again,) = run_batch("segment", cases, model=str(model))
    assert again.status == "skipped"


def test_where_labels_go_while_they_are_found(scan: Path, tmp_path: Path) -> None:
    image = medai.open(scan)
    assert place_for("segment", image, tmp_path / "a.zarr") == tmp_path / ".a.zarr.part"
    assert place_for("denoise", image, tmp_path / "a.zarr") is None
    assert place_for("segment", image, tmp_path / "a.nii.gz") is None
    series = medai.from_array(np.zeros((2, 3, 4, 5), np.uint8))
    assert place_for("segment", series, tmp_path / "a.zarr") is None
    with pytest.raises(WriteError, match="end the name"):
        place_for("segment", image, tmp_path / "a.none")


def test_a_result_that_is_not_the_folder_itself_is_copied(scan: Path, model: Path, tmp_path: Path) -> None:
    progress = Progress()
    progress.store = place_for("segment", medai.open(scan), tmp_path / "a.zarr")
    mask = medai.segment(medai.open(scan), load_model(str(model)), progress=progress, device="cpu")
    expected = mask.labels.numpy()[::2]
    half = type(mask)(mask.labels.replace(array=mask.labels.array[::2]), mask.provenance)
    save_result(half, tmp_path / "a.zarr", progress.store)
    np.testing.assert_array_equal(medai.open(tmp_path / "a.zarr").numpy(), expected)
    assert not progress.store.exists()
    assert not list((tmp_path / "a.zarr").glob(".medai*"))
    assert (zarr.open_array(tmp_path / "a.zarr" / "0", mode="r").chunks)[0] == 8

"""Labels too large for memory, found by the worker, outlive its process."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

import napari_medai as medai
from napari_medai.core.stage import Progress
from napari_medai.core.volume import Volume
from napari_medai.engine.scratch import lock, unlock
from napari_medai.stages import STAGES
from napari_medai.ui import running
from napari_medai.worker import Worker


def cells() -> Volume:
    rng = np.random.default_rng(0)
    image = np.zeros((160, 160), np.float32)
    image[rng.integers(10, 150, 12), rng.integers(10, 150, 12)] = 4000
    return Volume((ndimage.gaussian_filter(image, 5) * 1000).astype(np.uint16), "yx")


def test_they_lie_in_a_folder_of_the_window_and_not_of_the_process(tmp_path: Path) -> None:
    progress = Progress()
    progress.store = tmp_path / "labels"
    worker = Worker(preload=())
    try:
        params = STAGES["segment"].params(device="cpu")
        found = worker.run("segment", cells(), medai.load_model("nuclei"), params, progress)
    finally:
        worker.close()
    expected = medai.segment(cells(), "nuclei", device="cpu").labels.numpy()
    assert expected.max() > 3
    np.testing.assert_array_equal(found.labels.numpy(), expected)


def test_what_a_killed_window_and_its_process_left_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    left, in_use = (tmp_path / f"medai-worker-{int(dead.stdout)}-{name}" for name in ("a", "b"))
    for folder in (left, in_use):
        folder.mkdir()
        (folder / "0.npy").write_bytes(b"pixels")
    held = lock(in_use)  # of another container, say
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    worker = Worker(preload=())
    try:
        worker.start()
        assert not left.exists()
        assert in_use.exists()
    finally:
        worker.close()
        unlock(held)
    assert [path.name for path in tmp_path.iterdir()] == [in_use.name]


def test_only_large_labels_of_one_image_get_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    volume = cells()
    assert running._folder_for("segment", volume) is None
    monkeypatch.setattr(running, "_MOST_BYTES", 4 * 160 * 160 - 1)
    folder = running._folder_for("segment", volume)
    assert folder is not None
    assert folder.path.is_dir()
    path = folder.path
    del folder
    assert not path.exists()
    assert running._folder_for("detect", volume) is None
    series = volume.replace(array=np.stack([volume.numpy()] * 2), axes="tyx")
    assert running._folder_for("segment", series) is None

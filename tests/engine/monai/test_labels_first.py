"""Labels of bundles whose scores do not fit into memory, beside those that MONAI decides on all scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import napari_medai as medai
from napari_medai.core.errors import DeviceError
from napari_medai.core.plan import Plan
from napari_medai.core.result import Mask
from napari_medai.core.stage import Progress
from napari_medai.core.volume import Volume
from napari_medai.engine.monai import windows
from napari_medai.engine.planning import Room
from napari_medai.models import load, probe
from napari_medai.stages import segment
from tests.engine.monai.reference import AFFINES, write_scan
from tests.models.monai.bundles import BUNDLES, compose, write

CPU = segment.SegmentParams(device="cpu")


class Told(Progress):
    """Keeps the plan."""

    plan: Plan | None = None

    def planned(self, plan: Plan) -> None:
        self.plan = plan


def both(bundle: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, shape: Any = (20, 24, 12)) -> Any:
    """Labels with room for all scores, and without."""
    volume = medai.open(write_scan(folder / "scan.nii.gz", shape, AFFINES["oblique"]))
    model = load(probe(bundle))
    whole = segment.run(volume, model, CPU, Progress())
    monkeypatch.setattr(windows, "room", lambda device, most: Room(100.0, 100.0))
    told = Told()
    spared = segment.run(volume, model, CPU, told)
    assert told.plan is not None
    assert told.plan.fits
    return whole, spared


def share(whole: Mask, spared: Mask) -> float:
    assert len(np.unique(whole.labels.numpy())) > 1
    assert any("do not fit into memory: labels are decided" in note for note in spared.provenance.notes)
    assert spared.labels.shape == whole.labels.shape
    return float((whole.labels.numpy() == spared.labels.numpy()).mean())


@pytest.mark.parametrize("name", ["prostate", "whole_body"])
def test_the_same_where_scores_are_not_interpolated(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, spared = both(write(tmp_path, name), tmp_path, monkeypatch)
    assert share(whole, spared) == 1
    assert not any("MONAI resamples scores" in note for note in spared.provenance.notes)


def test_interpolated_scores_become_labels_to_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = BUNDLES["spleen"][0]()
    softmax, back, argmax, save = config["postprocessing"]["transforms"]
    other = config | {"postprocessing": compose(softmax, argmax, back | {"nearest_interp": True}, save)}
    whole, _ = both(write(tmp_path / "other", "spleen", other), tmp_path, monkeypatch)
    monkeypatch.undo()
    interpolated, spared = both(write(tmp_path, "spleen"), tmp_path, monkeypatch)
    assert share(whole, spared) == 1
    assert share(interpolated, spared) < 1
    assert any("MONAI resamples scores" in note for note in spared.provenance.notes)


def test_an_image_smaller_than_a_window_is_filled_up_as_monai_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = BUNDLES["prostate"][0]()
    config["inferer"] |= {"roi_size": [32, 16, 24], "padding_mode": "constant", "cval": 2.0, "mode": "gaussian"}
    whole, spared = both(write(tmp_path, "prostate", config), tmp_path, monkeypatch)
    assert share(whole, spared) == 1


def test_what_is_made_of_scores_is_not_made_of_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).normal(50, 60, (4, 20, 20, 20)).astype(np.float32)
    volume = Volume(pixels, "czyx", np.eye(4), units="mm", modality="MR")
    monkeypatch.setattr(windows, "room", lambda device, most: Room(100.0, 100.0))
    with pytest.raises(DeviceError, match=r"3 classes, take .* Cut the image"):
        segment.run(volume, load(probe(write(tmp_path, "tumour"))), CPU, Progress())

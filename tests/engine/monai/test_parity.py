"""Bundles run by us and by MONAI's own parser on the same file give the same numbers, bit for bit."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

import napari_medai as medai
from napari_medai.core.stage import Progress
from napari_medai.core.volume import Volume
from napari_medai.engine.monai import run as runner
from napari_medai.engine.run import Run
from napari_medai.models import load, probe
from napari_medai.models.monai.resolve import resolve
from napari_medai.models.spec import Model
from napari_medai.stages import segment
from tests.engine.monai.reference import AFFINES, run_monai, write_scan
from tests.models.monai.bundles import write

SEGMENTING = ("spleen", "prostate", "ventricular", "whole_body", "template")
SHAPE = (20, 24, 12)


def run_ours(model: Model, volume: Volume) -> tuple[Any, Any]:
    """As `run_monai`, by our runner, before the result becomes a label map."""
    params = segment.SegmentParams(device="cpu")
    run = Run("segment", volume, model, params, Progress())
    plan, needs, _ = resolve(model.spec.path)
    assert plan is not None, needs
    network = run.load(partial(runner._network, plan, run, model.spec.path))
    pixels = volume.replace(array=volume.numpy().astype(np.float32))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        result, _, image = runner.computed(pixels, run, params, plan, network)
    return image, result["pred"]


def same(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    """Same type, same shape, same bits."""
    a, b = ours.as_tensor().contiguous(), theirs.as_tensor().contiguous()
    return a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()


def check(bundle: Path, scan: Path, weights: str = "models/model.pt") -> Volume:
    """Compare both on a file; gives our label map."""
    model, volume = load(probe(bundle)), medai.open(scan)
    image, pred = run_ours(model, volume)
    their_image, their_pred = run_monai(bundle, scan, weights)
    assert same(image, their_image)
    assert same(pred, their_pred)
    assert np.array_equal(pred.affine, their_pred.affine)
    mask = segment.run(volume, model, segment.SegmentParams(device="cpu"), Progress())
    # theirs as a file, opened by us: its voxels lie where ours do
    path = scan.with_name("theirs.nii.gz")
    theirs = their_pred[0].numpy()
    values = (theirs >= 0.5) if theirs.max() <= 1 else np.rint(theirs)
    nibabel.save(nibabel.Nifti1Image(values.astype(np.uint8), nibabel.load(scan).affine), path)
    expected = medai.open(path)
    assert np.allclose(expected.affine, mask.labels.affine)
    np.testing.assert_array_equal(mask.labels.numpy(), expected.numpy())
    return mask.labels


@pytest.mark.parametrize("affine", sorted(AFFINES))
@pytest.mark.parametrize("name", SEGMENTING)
def test_the_same_bits_as_monai(name: str, affine: str, tmp_path: Path) -> None:
    bundle = write(tmp_path, name)
    labels = check(bundle, write_scan(tmp_path / "scan.nii.gz", SHAPE, AFFINES[affine]))
    assert len(np.unique(labels.numpy())) > 1

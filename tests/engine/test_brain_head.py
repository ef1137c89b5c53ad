"""deepbet's real networks on a real head."""

from __future__ import annotations

import numpy as np
import pytest

import napari_medai as medai
from napari_medai.core.errors import SampleError
from napari_medai.core.geometry import Reorientation
from napari_medai.engine.resample import resample
from napari_medai.models import find_models

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def head():
    """Colin27, (z, y, x), 1 mm."""
    if not any(model.id == "brain" for model in find_models("segment")):
        pytest.skip("deepbet is not installed")
    try:
        return medai.sample("head_mr").canonical()
    except SampleError as error:
        pytest.skip(f"the sample head is not here: {error}")


def test_the_brain_of_a_head_upright_and_lying_on_its_side_in_thick_slices(head):
    upright = medai.segment(head, "brain", device="cpu")
    mask = upright.labels.numpy()
    assert mask.shape == head.shape
    (millilitres,) = upright.table["volume_ml"]
    assert 1900 < millilitres < 2010  # deepbet's own program says 1956
    assert mask[[0, -1]].sum() < 0.01 * mask.sum()
    thick = resample(head.numpy(), (60, *head.shape[1:]))
    affine = np.array(head.affine)
    affine[:3, 0] *= head.shape[0] / 60
    side = head.replace(array=thick, affine=affine).reoriented(Reorientation((2, 0, 1), (True, False, True)))
    lying = medai.segment(side, "brain", device="cpu").labels.canonical().numpy() > 0
    expected = resample(mask.astype(np.float32), thick.shape) > 0.5
    assert 2 * np.sum(lying & expected) / (lying.sum() + expected.sum()) > 0.97

"""Heat of the built-in models: where it must be, and what cannot be explained."""

from __future__ import annotations

import numpy as np
import pytest

from napari_medai import explain, from_array
from napari_medai.core.errors import InputError, ModelFitError


@pytest.fixture(scope="module")
def slide():
    """Two discs of 24 pixels on a dark ground."""
    y, x = np.mgrid[:72, :128]
    image = np.full((72, 128), 40.0)
    for cx in (32, 96):
        image += 160 * ((y - 36) ** 2 + (x - cx) ** 2 < 12**2)
    noisy = image + np.random.default_rng(0).normal(0, 3, image.shape)
    return from_array(noisy.astype(np.float32), modality="fluorescence"), image > 100


@pytest.mark.parametrize("method", ["gradcam++", "occlusion"])
def test_heat_for_nuclei_lies_on_the_nuclei(slide, method: str) -> None:
    volume, truth = slide
    heat = explain(volume, "nuclei", method=method, patch=24, device="cpu")
    assert heat.heat.shape == volume.shape
    assert heat.target == "nucleus"
    assert heat.heat.array.max() == pytest.approx(1)
    assert heat.heat.array.min() >= 0
    assert heat.heat.array[truth].mean() > 2 * heat.heat.array[~truth].mean()


def test_the_class_can_be_chosen_and_none_is_never_chosen_for_one() -> None:
    volume = from_array(np.random.default_rng(0).normal(100, 10, (5, 64, 64)).astype(np.float32), "zyx")
    assert explain(volume, "quality", target="blur").target == "blur"
    assert explain(volume, "quality").target != "none"
    attention = explain(volume, "quality", method="attention")
    assert attention.heat.shape == (5, 64, 64)
    with pytest.raises(InputError, match="has no class 'tumour'; it has: none, noise"):
        explain(volume, "quality", target="tumour")


def test_what_cannot_be_explained_says_why(slide) -> None:
    volume, _ = slide
    with pytest.raises(ModelFitError, match="neither classes nor labels"):
        explain(volume, "micronuclei")
    with pytest.raises(ModelFitError, match="has no attention"):
        explain(volume, "nuclei", method="attention")
    with pytest.raises(InputError, match="needs several slices"):
        explain(volume, "quality", method="attention")

from __future__ import annotations

import numpy as np
import pytest

from napari_medai.engine.objectsize import (
    equivalent_diameters,
    estimate_diameter,
    rescale,
    rescaled_to_original,
    scale_for,
    typical_diameter,
)
from napari_medai.engine.resample import resample


def _discs(radius: float, pitch: int, count: int = 4, specks: bool = False) -> np.ndarray:
    y, x = np.mgrid[: pitch * count, : pitch * count]
    distance = np.hypot(y % pitch - pitch / 2, x % pitch - pitch / 2)
    image = np.where(distance <= radius, 1000.0, 100.0)
    if specks:  # as many bright specks, 3 pixels wide, as discs
        image[(np.hypot(y % pitch - 3, x % pitch - 3) <= 1.5)] = 1500.0
    return image.astype(np.uint16)


def test_equivalent_diameters_by_hand() -> None:
    labels = np.zeros((10, 10), np.int32)
    labels[0, :4] = 1
    labels[5:9, 5:9] = 3  # label 2 is not there
    assert equivalent_diameters(labels) == pytest.approx([2 * np.sqrt(4 / np.pi), 2 * np.sqrt(16 / np.pi)])


def test_typical_diameter_weighs_by_area() -> None:
    # Areas 1, 1, 1, 1, 16, 25: half of 45 is reached within the last one's neighbour 16 (20), then 25.
    assert typical_diameter(np.array([1.0, 1.0, 1.0, 1.0, 4.0, 5.0])) == 5.0
    assert typical_diameter(np.array([1.0, 5.0, 5.0, 9.0, 5.0])) == 9.0
    assert typical_diameter(np.array([3.0])) == 3.0


@pytest.mark.parametrize("radius", [6.0, 12.0, 25.0])
def test_diameter_of_discs_is_found_whatever_the_size(radius: float) -> None:
    found = estimate_diameter(_discs(radius, pitch=round(3.2 * radius)))
    assert found == pytest.approx(2 * radius, rel=0.1)


def test_specks_do_not_count() -> None:
    assert estimate_diameter(_discs(15.0, 50, specks=True)) == pytest.approx(30.0, rel=0.1)


def test_touching_discs_are_told_apart() -> None:
    assert estimate_diameter(_discs(15.2, 30)) == pytest.approx(30.0, rel=0.15)


def test_large_images_are_thinned_out() -> None:
    assert estimate_diameter(_discs(60.0, 300, count=7)) == pytest.approx(120.0, rel=0.1)


def test_flat_images_have_no_diameter() -> None:
    assert estimate_diameter(np.full((40, 50), 7, np.uint8)) is None
    assert scale_for(None, 24.0) == 1.0
    assert scale_for(48.0, 24.0) == 0.5
    assert scale_for(1.0, 24.0) == 8.0


def test_rescaled_points_come_back_exactly() -> None:
    # 10 x 20 at 1.5 is 15 x 30; the middle stays the middle.
    planes = np.zeros((1, 10, 20), np.float32)
    big = rescale(planes, 1.5)
    assert big.shape == (1, 15, 30)
    back = rescaled_to_original(np.array([[7.0, 14.5], [-0.5, -0.5], [14.5, 29.5]]), (15, 30), (10, 20))
    assert back == pytest.approx(np.array([[4.5, 9.5], [-0.5, -0.5], [9.5, 19.5]]))


@pytest.mark.parametrize("scale", [0.5, 0.73, 1.0, 1.7])
def test_a_ramp_survives_rescaling_and_back(scale: float) -> None:
    ramp = np.mgrid[:40, :60].astype(np.float32)
    back = resample(rescale(ramp, scale), (40, 60))
    assert back.shape == ramp.shape
    assert np.abs(back - ramp)[:, 4:-4, 4:-4].max() < 0.05

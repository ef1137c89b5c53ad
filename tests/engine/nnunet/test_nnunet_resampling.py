"""Resampling by numbers written by hand."""

from __future__ import annotations

import numpy as np
import pytest
from skimage.transform import resize

from napari_medai.engine.nnunet.resampling import _largest, new_shape, resample, separate_axis
from napari_medai.models.nnunet_stage import Resampling

SPLINE = Resampling(order=1, separate_z=None)


def column(*values: float) -> np.ndarray:
    """One value for each plane."""
    return np.array(values, dtype=np.float32)[:, None, None]


def test_halves_are_rounded_to_even() -> None:
    assert new_shape((101, 103, 10), (0.75, 0.75, 2.0), (1.5, 1.5, 1.0)) == (50, 52, 20)


@pytest.mark.parametrize(
    ("spacing", "wanted", "forced", "axis"),
    [
        ((5, 1, 1), (5, 1, 1), None, 0),  # thick slices before
        ((1, 1, 1), (1, 4, 1), None, 1),  # and after
        ((3, 1, 1), (3, 1, 1), None, None),  # three times is not more than three times
        ((5, 5, 1), (1, 1, 1), None, None),  # two thick axes are no slices
        ((5, 1, 1), (5, 1, 1), False, None),
        ((1, 1, 1.1), (1, 1, 9), True, 2),  # forced: the spacing before decides which
        ((1, 1, 1), (1, 1, 9), True, None),
    ],
)
def test_the_axis_across_thick_slices(spacing, wanted, forced, axis) -> None:
    assert separate_axis(spacing, wanted, Resampling(separate_z=forced)) == axis


def test_thick_slices_take_the_nearest_plane_across() -> None:
    thick = ((6, 1, 1), (3, 1, 1))
    # planes at 2/3 (k + 1/2) - 1/2 and so on: 0, 0, 1, 1, 2, 2
    assert resample(column(1, 5, 9), (6, 1, 1), *thick, SPLINE).ravel().tolist() == [1, 1, 5, 5, 9, 9]
    # at 0.25 and 1.75
    assert resample(column(1, 5, 9), (2, 1, 1), *thick, SPLINE).ravel().tolist() == [1, 9]


def test_planes_of_thick_slices_are_resampled_on_their_own() -> None:
    planes = np.array([[[0, 10]], [[100, 200]]], dtype=np.float32)
    found = resample(planes, (2, 1, 4), (6, 1, 2), (6, 1, 1), SPLINE)
    assert found.tolist() == [[[0, 2.5, 7.5, 10]], [[100, 125, 175, 200]]]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_thick_slices_may_lie_along_any_axis(axis: int) -> None:
    spacing, wanted, shape = [1.0] * 3, [1.0] * 3, [1, 1, 1]
    spacing[axis], wanted[axis], shape[axis] = 8.0, 4.0, 4
    found = resample(np.moveaxis(column(1, 5), 0, axis), shape, spacing, wanted, SPLINE)
    assert found.shape == tuple(shape)
    assert found.ravel().tolist() == [1, 1, 5, 5]


def test_planes_across_by_a_line_where_the_plans_say_so() -> None:
    how = Resampling(order=1, order_z=1, separate_z=None)
    assert resample(column(0, 10), (4, 1, 1), (8, 1, 1), (4, 1, 1), how).ravel().tolist() == [0, 2.5, 7.5, 10]


def test_even_spacing_goes_by_lines_along_all_axes() -> None:
    found = resample(column(0, 10), (4, 1, 1), (2, 1, 1), (1, 1, 1), SPLINE)
    assert found.ravel().tolist() == [0, 2.5, 7.5, 10]
    assert found.dtype == np.float32


def test_half_precision_stays_and_nothing_to_do_does_nothing() -> None:
    half = column(0, 1, 2).astype(np.float16)
    assert resample(half, (5, 1, 1), (2, 1, 1), (1, 1, 1), SPLINE).dtype == np.float16
    assert resample(half, (3, 1, 1), (2, 1, 1), (1, 1, 1), SPLINE) is half
    assert resample(half, (9, 1, 1), (2, 1, 1), (1, 1, 1), Resampling(method="none")) is half


def test_labels_never_become_labels_in_between() -> None:
    how = Resampling(labels=True, order=1, separate_z=False)
    assert resample(column(0, 2), (4, 1, 1), (2, 1, 1), (1, 1, 1), how).ravel().tolist() == [0, 0, 2, 2]
    assert set(np.unique(resample(column(0, 0, 3, 7), (9, 1, 1), (2, 1, 1), (1, 1, 1), how))) == {0, 3, 7}
    assert resample(column(4, 4), (3, 1, 1), (2, 1, 1), (1, 1, 1), how).ravel().tolist() == [4, 4, 4]


@pytest.mark.parametrize(("nearest", "expected"), [(2.0, 2), (1.0, 1), (3.0, 1)])
def test_equal_scores_go_to_the_nearest_label_that_has_them(nearest: float, expected: int) -> None:
    values = np.array([3.0, 1, 1, 1, 2, 2, 2, 3])

    def score(mask: np.ndarray) -> np.ndarray:
        # three of the eight are 1, three are 2, two are 3
        return np.array([0.375 if mask.sum() == 3 else 0.25])

    assert _largest(values, (1,), score, lambda: np.array([nearest])).tolist() == [expected]


def test_splines_are_those_of_scikit_image() -> None:
    values = np.random.default_rng(0).random((5, 6, 7)).astype(np.float32)
    found = resample(values, (8, 4, 9), (1.1, 1, 1), (1, 1, 1), Resampling(order=3))
    expected = resize(values.astype(float), (8, 4, 9), 3, mode="edge", anti_aliasing=False).astype(np.float32)
    np.testing.assert_array_equal(found, expected)


def test_torch_goes_by_lines_in_plane_and_by_the_nearest_plane_across() -> None:
    how = Resampling(method="torch", separate_z=None)
    planes = np.array([[[0, 10]], [[100, 200]]], dtype=np.float32)
    found = resample(planes, (4, 1, 4), (8, 1, 2), (4, 1, 1), how)
    assert found[:, 0].tolist() == [[0, 2.5, 7.5, 10]] * 2 + [[100, 125, 175, 200]] * 2
    even = resample(column(0, 10), (4, 1, 1), (2, 1, 1), (1, 1, 1), how)
    assert even.ravel().tolist() == [0, 2.5, 7.5, 10]


@pytest.mark.parametrize("lean", [False, True])
def test_torch_keeps_labels_labels(lean: bool) -> None:
    how = Resampling(method="torch", labels=True, separate_z=None, lean=lean)
    assert resample(column(0, 2), (4, 1, 1), (2, 1, 1), (1, 1, 1), how).ravel().tolist() == [0, 0, 2, 2]
    assert resample(column(-1, 3), (4, 1, 1), (8, 1, 1), (4, 1, 1), how).ravel().tolist() == [-1, -1, 3, 3]

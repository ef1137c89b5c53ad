"""Stacks from positions, with numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from napari_medai.core.errors import GeometryError
from napari_medai.io.dicom.geometry import arrange, places_of, runs_of, stack_affine

UP = np.array([0.0, 0.0, 1.0])


def along_z(*levels: float) -> np.ndarray:
    return np.array([[1.0, 2.0, z] for z in levels])


def test_a_regular_stack_says_nothing() -> None:
    fit = arrange(along_z(10, 12.5, 15), UP, None, 0.5)
    assert fit.slots == (0, 1, 2)
    assert fit.count == 3
    assert fit.step == pytest.approx([0, 0, 2.5])
    assert fit.origin == pytest.approx([1, 2, 10])
    assert fit.findings == ()


def test_one_slice_takes_the_stated_thickness() -> None:
    assert arrange(along_z(3), UP, 4.0, 0.5).step == pytest.approx([0, 0, 4])
    assert arrange(along_z(3), UP, None, 0.5).step == pytest.approx([0, 0, 1])


def test_missing_slices_keep_the_others_in_place() -> None:
    fit = arrange(along_z(0, 2, 4, 10, 12), UP, None, 0.5)
    assert fit.slots == (0, 1, 2, 5, 6)
    assert fit.missing == (3, 4)
    assert fit.step == pytest.approx([0, 0, 2])
    assert "2 of 7 slices are missing (counted from 0: 3-4)" in fit.findings[0]


def test_irregular_distances_are_said_with_how_far_off_slices_are() -> None:
    fit = arrange(along_z(0, 2, 5, 7.9, 9), UP, None, 0.5)
    assert fit.slots == (0, 1, 2, 3, 4)
    assert fit.step == pytest.approx([0, 0, 2.25])
    # the fourth slice lies at 7.9 and is shown at 6.75
    assert "varies from 1.100 to 3.000 mm" in fit.findings[0]
    assert "1.150 mm" in fit.findings[0]


def test_gantry_tilt_is_measured_and_kept() -> None:
    # planes tilted about x by atan(1/4): normal (0, -1, 4)/sqrt(17); slices follow the table along z
    normal = np.array([0, -1, 4]) / np.sqrt(17)
    fit = arrange(along_z(0, 3, 6, 9), normal, None, 0.5)
    assert fit.step == pytest.approx([0, 0, 3])
    assert "tilted by 14.0 degrees" in fit.findings[0]


def test_rounding_of_positions_is_no_finding() -> None:
    positions = along_z(*(round(n * 0.3333333, 2) for n in range(20)))
    assert arrange(positions, UP, None, 0.5).findings == ()


def test_positions_that_share_a_place() -> None:
    assert places_of(np.array([5.0, 0.0, 5.004, 2.5])).tolist() == [2, 0, 2, 1]


def test_slabs_far_apart_are_images_of_their_own() -> None:
    assert runs_of(np.array([0.0, 1, 2, 100, 101, 102])) == [slice(0, 3), slice(3, 6)]
    assert runs_of(np.array([0.0, 1, 2, 4, 5])) == [slice(0, 5)]


def test_affine_of_a_sagittal_stack() -> None:
    # rows run posterior (+y), columns run down (-z), slices run to the left (+x)
    orientation = np.array([[0.0, 1, 0], [0, 0, -1]])
    affine = stack_affine(np.array([-5.0, -100, 80]), np.array([3.0, 0, 0]), orientation, (0.5, 0.25))
    # world of index (k, j, i) = (1, 2, 4): z = 80 - 2*0.5, y = -100 + 4*0.25, x = -5 + 3
    assert (affine @ [1, 2, 4, 1])[:3] == pytest.approx([79, -99, -2])


def test_two_axes_the_same_way_are_an_error() -> None:
    with pytest.raises(GeometryError):
        stack_affine(np.zeros(3), np.array([0.0, 1, 0]), np.array([[1.0, 0, 0], [0, 1, 0]]), (1, 1))

"""Affines: numbers by hand, and inverses for any affine."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from napari_medai.core import geometry
from napari_medai.core.errors import GeometryError
from napari_medai.core.geometry import Grid, Reorientation

spacings = st.tuples(*[st.floats(0.1, 10)] * 3)
origins = st.tuples(*[st.floats(-500, 500)] * 3)
angles = st.tuples(*[st.floats(-np.pi, np.pi)] * 3)


def rotation(a: float, b: float, c: float) -> np.ndarray:
    def about(axis: int, t: float) -> np.ndarray:
        matrix = np.eye(3)
        i, j = [n for n in range(3) if n != axis]
        matrix[i, i] = matrix[j, j] = np.cos(t)
        matrix[i, j], matrix[j, i] = -np.sin(t), np.sin(t)
        return matrix

    return about(0, a) @ about(1, b) @ about(2, c)


@st.composite
def affines(draw) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = rotation(*draw(angles)) @ np.diag(draw(spacings))
    affine[:3, 3] = draw(origins)
    return affine


def test_a_nifti_voxel_lands_where_the_patient_is() -> None:
    # RAS: i runs right to left (-2 mm per voxel), j to anterior, k to superior; voxel (0, 0, 0) at R=+90
    ras = np.array([[-2, 0, 0, 90], [0, 3, 0, -126], [0, 0, 4, -72], [0, 0, 0, 1]], float)
    affine = geometry.from_ras(ras)
    # voxel i=1, j=1, k=1 lies at RAS (88, -123, -68): left is -88, posterior is 123, superior -68
    np.testing.assert_allclose(geometry.index_to_world(affine, (1, 1, 1)), (-68, 123, -88))
    assert geometry.orientation_code(affine) == "SAL"


@given(affines())
def test_ras_and_back(affine: np.ndarray) -> None:
    np.testing.assert_allclose(geometry.from_ras(geometry.to_ras(affine)), affine, atol=1e-9)


@given(affines(), st.tuples(*[st.floats(-100, 600)] * 3))
def test_index_to_world_and_back(affine: np.ndarray, index: tuple[float, float, float]) -> None:
    there = geometry.index_to_world(affine, index)
    np.testing.assert_allclose(geometry.world_to_index(affine, there), index, atol=1e-6)


@given(affines(), st.tuples(*[st.integers(1, 40)] * 3))
def test_reorientation_moves_no_voxel_and_is_undone(affine: np.ndarray, shape: tuple[int, int, int]) -> None:
    grid = Grid(shape, affine)
    turn = geometry.canonical_reorientation(affine)
    turned = grid.reoriented(turn)
    np.testing.assert_allclose(
        sorted(map(tuple, turned.corners().round(6))), sorted(map(tuple, grid.corners().round(6)))
    )
    back = turned.reoriented(turn.inverse())
    assert back.shape == shape
    np.testing.assert_allclose(back.affine, affine, atol=1e-6)
    assert geometry.canonical_reorientation(turned.affine).is_identity


def test_letters_of_a_sagittal_scan() -> None:
    # slices from left to right, rows from superior to inferior, columns from anterior to posterior
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    affine[2, 0], affine[0, 1], affine[1, 2] = -5, -1, 1
    assert geometry.orientation_code(affine) == "RIP"
    assert geometry.canonical_reorientation(affine) == geometry.Reorientation((1, 2, 0), (True, False, True))


def test_aligned_or_not() -> None:
    straight = geometry.scaling((3, 1, 1))
    assert geometry.is_axis_aligned(straight)
    tilted = straight.copy()
    tilted[:3, :3] = rotation(0, 0, np.deg2rad(5)) @ straight[:3, :3]
    assert not geometry.is_axis_aligned(tilted)


@given(affines(), st.tuples(*[st.integers(1, 40)] * 3))
def test_the_straight_grid_keeps_centre_and_spacing(affine: np.ndarray, shape: tuple[int, int, int]) -> None:
    straight = geometry.without_rotation(affine, shape)
    centre = (np.array(shape) - 1) / 2
    np.testing.assert_allclose(
        geometry.index_to_world(straight, centre), geometry.index_to_world(affine, centre), atol=1e-6
    )
    np.testing.assert_allclose(geometry.spacing(straight), geometry.spacing(affine))
    assert geometry.is_axis_aligned(straight)


def test_resampled_grid_by_hand() -> None:
    # 10 voxels of 3 mm from -1.5 to 28.5 mm become 30 of 1 mm: the first centre lies at -1 mm
    grid = Grid((10, 4, 4), geometry.scaling((3, 1, 1)))
    fine = grid.resampled((1, 1, 1))
    assert fine.shape == (30, 4, 4)
    np.testing.assert_allclose(fine.affine[:3, 3], (-1, 0, 0))
    np.testing.assert_allclose(fine.spacing, (1, 1, 1))


def test_same_place_tells_half_a_tenth_of_a_millimetre() -> None:
    grid = Grid((3, 4, 5), geometry.scaling((1, 1, 1)))
    near = Grid((3, 4, 5), geometry.scaling((1, 1, 1), (0.04, 0, 0)))
    far = Grid((3, 4, 5), geometry.scaling((1, 1, 1), (0.06, 0, 0)))
    assert grid.same_place(near)
    assert not grid.same_place(far)
    assert not grid.same_place(Grid((3, 4, 6), grid.affine))
    assert not grid.same_place(Grid((3, 4, 5), grid.affine, "um"))


@pytest.mark.parametrize(
    ("matrix", "says"),
    [
        (np.eye(3), "(4, 4) is needed"),
        (np.diag([1, 1, 0, 1]), "no inverse"),
        (np.full((4, 4), np.nan), "not finite"),
        (np.eye(4) + np.diag([0, 0, 1], -1), "last row"),
    ],
)
def test_what_is_no_affine_is_refused(matrix: np.ndarray, says: str) -> None:
    with pytest.raises(GeometryError) as error:
        geometry.as_affine(matrix)
    assert says in str(error.value)


def test_voxel_volume() -> None:
    assert Grid((1, 1, 1), geometry.scaling((2, 3, 4))).voxel_volume == pytest.approx(24)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize("flips", [(False, False, False), (True, False, True)])
def test_a_part_of_a_grid_is_found_in_it(order: tuple[int, int, int], flips: tuple[bool, bool, bool]) -> None:
    turned = np.eye(4)
    turned[:3, :3] = rotation(0.2, 0.0, 0.3) @ np.diag([4.0, 1.5, 2.0])
    outer = Grid((9, 8, 7), turned)
    values = np.arange(9 * 8 * 7).reshape(9, 8, 7)
    shift = np.eye(4)
    shift[:3, 3] = (2, 3, 1)
    turn = Reorientation(order, flips)
    inner = Grid((4, 3, 5), turned @ shift).reoriented(turn)
    place = inner.place_in(outer)
    assert place is not None
    part = values[2:6, 3:6, 1:6].transpose(order)
    part = part[tuple(slice(None, None, -1) if f else slice(None) for f in flips)]
    np.testing.assert_array_equal(values.transpose(place[0])[place[1]], part)


def test_a_single_plane_is_found_however_thick_it_is() -> None:
    outer = Grid((9, 8, 7), np.diag([4.0, 1.5, 2.0, 1.0]))
    affine = np.diag([1.0, 1.5, 2.0, 1.0])
    affine[0, 3] = 12.0
    assert Grid((1, 8, 7), affine).place_in(outer) == ((0, 1, 2), (slice(3, 4), slice(0, 8), slice(0, 7)))


@pytest.mark.parametrize("off", [(-1.0, 0.0, 0.0), (0.0, 0.6, 0.0), (0.0, 0.0, 12.0)])
def test_a_grid_beside_or_between_the_voxels_of_another_is_not_in_it(off: tuple[float, float, float]) -> None:
    outer = Grid((9, 8, 7), np.diag([4.0, 1.5, 2.0, 1.0]))
    affine = np.diag([4.0, 1.5, 2.0, 1.0])
    affine[:3, 3] = off
    assert Grid((3, 3, 3), affine).place_in(outer) is None

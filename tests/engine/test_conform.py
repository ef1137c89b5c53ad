from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_medai.core.errors import InputError, ModelError, NotFiniteError
from napari_medai.core.geometry import Grid, orientation_code, scaling
from napari_medai.core.volume import Volume
from napari_medai.engine.conform import (
    in_network_order,
    is_turn,
    parse_orientation,
    towards,
)
from napari_medai.engine.prepare import prepare
from napari_medai.models.spec import Prepare

ONE = (1.0, 1.0, 1.0)
CUBE = Prepare(conform=32, normalise="none", back="labels")


def tilted(degrees: float, size: float = 1.0) -> np.ndarray:
    """An affine turned about z."""
    a = np.radians(degrees)
    affine = scaling((size, size, size), (3.0, -7.0, 11.0))
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]
    return turn @ affine


def blob(shape: tuple[int, int, int], affine: np.ndarray) -> np.ndarray:
    """A smooth head: an ellipsoid in the world, with a bump on its left."""
    index = np.indices(shape).reshape(3, -1)
    z, y, x = affine[:3, :3] @ index + affine[:3, 3:]
    centre = affine[:3, :3] @ ((np.array(shape) - 1) / 2) + affine[:3, 3]
    z, y, x = z - centre[0], y - centre[1], x - centre[2]
    inside = 100 / (1 + np.exp((np.sqrt((z / 9) ** 2 + (y / 7) ** 2 + (x / 6) ** 2) - 1) * 8))
    left = 60 / (1 + np.exp(np.sqrt(z**2 + y**2 + (x - 9) ** 2) - 3))
    return (inside + left).reshape(shape).astype(np.float32)


@pytest.mark.parametrize("letters", ["RAS", "LIA", "LPS", "SPL", "PIR", ""])
@pytest.mark.parametrize("affine", [np.eye(4), tilted(20), np.diag([-1.0, 1, -1, 1])[[1, 2, 0, 3]]])
def test_axes_run_towards_the_letters(letters: str, affine: np.ndarray) -> None:
    turned = Grid((3, 4, 5), affine).reoriented(towards(affine, letters))
    assert orientation_code(turned.affine) == (letters or "SPL")


@pytest.mark.parametrize("letters", ["RRS", "XYZ", "RA", "RASL"])
def test_letters_that_are_no_orientation(letters: str) -> None:
    with pytest.raises(ModelError, match="one letter each"):
        parse_orientation(letters)


def test_spacing_is_put_in_the_networks_order() -> None:
    assert in_network_order((3.0, 2.0, 1.0), "RAS") == (1.0, 2.0, 3.0)
    assert in_network_order((3.0, 2.0, 1.0), "") == (3.0, 2.0, 1.0)
    volume = Volume(np.random.default_rng(0).normal(size=(4, 6, 8)), "zyx", scaling((3, 2, 1)), units="mm")
    found = prepare(volume, Prepare(spacing_mm=(1.0, 1.0, 1.0), normalise="none"), orientation="RAS")
    assert found.array.shape == (1, 8, 12, 12)
    assert found.undo_labels(np.ones((8, 12, 12), np.uint8)).shape == (4, 6, 8)


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_what_has_the_cubes_voxels_goes_there_and_back_unchanged(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.integers(2, 20)) for _ in range(3))
    order = data.draw(st.permutations([0, 1, 2]))
    signs = [data.draw(st.sampled_from([-1.0, 1.0])) for _ in range(3)]
    affine = np.eye(4)
    affine[:3, :3] = np.diag(signs)[:, order]
    affine[:3, 3] = [data.draw(st.floats(-90, 90)) for _ in range(3)]
    image = np.random.default_rng(1).integers(1, 99, size=shape).astype(np.float32)
    found = prepare(Volume(image, "zyx", affine, units="mm"), CUBE, orientation="LIA")
    assert found.array.shape == (1, 32, 32, 32)
    assert found.same_voxels
    assert sorted(found.array[found.array > found.array.min()]) == sorted(image[image > image.min()])
    np.testing.assert_array_equal(found.undo(found.array)[0], image)
    np.testing.assert_array_equal(found.undo_labels(found.array[0].astype(np.int16)), image)
    points = np.array([[0, 0, 0], [n - 1 for n in shape]])
    there = (found.through @ np.c_[points, np.ones(2)].T)[:3].T
    np.testing.assert_allclose(found.undo_points(there), points, atol=1e-9)


def test_where_a_voxel_lies_in_the_cube() -> None:
    image = np.zeros((4, 4, 4), np.float32)
    image[3, 0, 1] = 5  # superior, anterior, right of the centre
    found = prepare(Volume(image, "zyx", np.eye(4), units="mm"), CUBE, orientation="LIA").array[0]
    # 4 voxels in the middle of 32 are 14..17; L grows with x: 1 -> 15; I against z: 3 -> 14; A against y: 0 -> 17
    assert np.argwhere(found == 5).tolist() == [[15, 14, 17]]


@pytest.mark.parametrize("degrees", [0.0, 17.0, 40.0])
@pytest.mark.parametrize("size", [1.0, 0.4])
def test_the_same_head_at_another_angle_is_the_same_in_the_cube(degrees: float, size: float) -> None:
    edge = int(30 / size)
    straight = scaling(ONE)
    expected = prepare(
        Volume(blob((30, 30, 30), straight), "zyx", straight, units="mm"), CUBE, orientation="SPL"
    ).array[0]
    affine = tilted(degrees, size)
    told: list[str] = []
    volume = Volume(blob((edge,) * 3, affine), "zyx", affine, units="mm")
    found = prepare(volume, CUBE, note=told.append, orientation="SPL")
    inner = (slice(5, -5),) * 3
    assert np.abs(found.array[0][inner] - expected[inner]).max() < 6
    mask = (found.array[0] > 50).astype(np.uint8)
    back = found.undo_labels(mask)
    assert back.shape == volume.shape
    truth = volume.numpy() > 50
    assert 2 * (back & truth).sum() / (back.sum() + truth.sum()) > 0.93  # voxels of 1 mm on small ones
    volumes = [m.sum() * abs(np.linalg.det(a[:3, :3])) for m, a in ((back, affine), (truth, affine))]
    assert volumes[0] == pytest.approx(volumes[1], rel=0.02)
    assert bool(told) == (not found.same_voxels)


def test_scores_come_back_between_the_voxels() -> None:
    affine = tilted(30)
    found = prepare(Volume(blob((20,) * 3, affine), "zyx", affine, units="mm"), CUBE, orientation="RAS")
    scores = np.stack([np.ones((32,) * 3), np.broadcast_to(np.arange(32.0), (32,) * 3)]).astype(np.float32)
    back = found.undo(scores)
    assert back.shape == (2, 20, 20, 20)
    assert np.all(back[0][5:-5, 5:-5, 5:-5] == 1)
    # a ramp towards superior is a ramp along the scan's first axis
    np.testing.assert_allclose(np.diff(back[1][:, 10, 10]), 1, atol=1e-4)


def test_what_is_larger_than_the_cube_is_background_and_noted() -> None:
    told: list[str] = []
    image = np.random.default_rng(0).normal(size=(40, 8, 8)).astype(np.float32)
    found = prepare(Volume(image, "zyx", np.eye(4), units="mm"), CUBE, note=told.append)
    assert told == ["the image is larger than the 32 voxels that the model looks at; what lies beyond is background"]
    back = found.undo_labels(np.ones((32,) * 3, np.uint8))
    assert back.sum() == 32 * 8 * 8
    assert back[[0, -1]].sum() == 0


def test_statistics_are_of_the_cube() -> None:
    image = np.zeros((20, 20, 20), np.float32)
    image[5:15, 5:15, 5:15] = np.linspace(1, 100, 1000).reshape(10, 10, 10)
    how = Prepare(conform=32, low=0, high=99.9, nonzero=True, clip=True)
    found = prepare(Volume(image, "zyx", np.eye(4), units="mm"), how)
    assert found.offset == (0.0,)
    assert found.scale[0] == pytest.approx(99.9, abs=0.1)
    assert found.array.max() == 1.0


def test_channels_are_normalised_each_for_itself() -> None:
    image = np.stack([np.arange(64.0), np.arange(64.0) * 10 + 5]).reshape(2, 4, 4, 4)
    volume = Volume(image, "czyx", np.eye(4), units="mm")
    found = prepare(volume, Prepare(normalise="minmax", scaled=(-1, 1)))
    np.testing.assert_allclose(found.array[0], found.array[1], atol=1e-6)
    assert (found.array.min(), found.array.max()) == (-1, 1)
    np.testing.assert_allclose(found.undo_image(found.array), image, atol=1e-3)
    assert prepare(volume, CUBE).array.shape == (2, 32, 32, 32)


def test_windows_sizes_and_zeros() -> None:
    image = np.array([-1000.0, 0, 200, 600], np.float32).reshape(1, 1, 4)
    volume = Volume(image, "zyx", np.eye(4), units="mm")
    window = prepare(volume, Prepare(normalise="range", low=-200, high=200, clip=True)).array
    assert window.ravel().tolist() == [0, 0.5, 1, 1]
    sized = prepare(volume, Prepare(normalise="none", size=(2, 2, 8)))
    assert sized.array.shape == (1, 2, 2, 8)
    assert sized.undo(sized.array)[0].shape == (1, 1, 4)
    zeros = np.array([0.0, 0, 1, 3], np.float32).reshape(2, 2)
    ready = prepare(Volume(zeros, "yx"), Prepare(normalise="zscore", nonzero=True)).array
    assert ready.ravel().tolist() == [0, 0, -1, 1]
    with pytest.raises(ModelError, match="size has 2 axes"):
        prepare(volume, Prepare(size=(4, 4)))


def test_what_cannot_be_put_into_a_cube() -> None:
    bad = np.zeros((4, 4, 4), np.float32)
    with pytest.raises(InputError, match="Every pixel has the value 0"):
        prepare(Volume(bad, "zyx", units="mm"), CUBE.model_copy(update={"normalise": "zscore"}))
    bad[0] = np.nan
    with pytest.raises(NotFiniteError):
        prepare(Volume(bad, "zyx", units="mm"), CUBE)


def test_a_turn_is_a_permutation_with_signs() -> None:
    assert is_turn(np.array([[0, -1.0, 0], [1, 0, 0], [0, 0, 1]]))
    assert not is_turn(np.array([[0, -1.0, 0], [1, 0, 0], [1, 0, 0]]))
    assert not is_turn(np.diag([1, 1, 0.99]))

"""Prepare and undo: orientation, spacing, object size, values; exactly back on the image's grid."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_medai.core.errors import InputError, NotFiniteError
from napari_medai.core.geometry import Reorientation, scaling
from napari_medai.core.volume import Volume, from_array
from napari_medai.engine.prepare import normalisation, prepare, turn
from napari_medai.engine.resample import nearest_index, resample, resample_labels
from napari_medai.models.spec import Prepare

AS_IT_IS = Prepare(normalise="none")
ORDERS = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]


def noise(*shape):
    return np.random.default_rng(0).random(shape, dtype=np.float32)


def test_linear_weights_by_hand():
    # two voxels of width 2 -> four of width 1: centres at -0.25, 0.25, 0.75, 1.25; the outer ones take the edge
    np.testing.assert_allclose(resample(np.array([0.0, 4.0]), (4,)), [0, 1, 3, 4])
    # four -> two: a triangle of half-width 2 over centres 0.5 and 2.5 weighs 0.75 0.75 0.25 (and 0.25 outside)
    np.testing.assert_allclose(resample(np.array([1.0, 1.0, 1.0, 8.0]), (2,)), [1, 1 + 7 * 0.75 / 1.75])


def test_the_nearest_voxel_by_hand():
    assert nearest_index(2, 4).tolist() == [0, 0, 1, 1]
    assert nearest_index(6, 3).tolist() == [1, 3, 5]
    assert resample_labels(np.array([[7, 9]], np.uint8), (1, 4)).tolist() == [[7, 7, 9, 9]]
    assert resample_labels(np.array([7, 9], np.uint8), (4,)).dtype == np.uint8


def test_a_ramp_stays_a_ramp_between_its_ends():
    ramp = np.arange(20, dtype=np.float32)
    out = resample(ramp, (60,))
    np.testing.assert_allclose(out[2:-2], ((np.arange(60) + 0.5) / 3 - 0.5)[2:-2], atol=1e-5)


def test_a_constant_stays_constant_and_leading_axes_stay():
    out = resample(np.full((2, 9, 7), 5.0), (4, 11))
    assert out.shape == (2, 4, 11)
    np.testing.assert_allclose(out, 5, rtol=1e-6)


def test_nothing_is_copied_where_nothing_changes():
    image = np.zeros((4, 4), np.float32)
    assert resample(image, (4, 4)) is image
    assert resample_labels(image, (4, 4)) is image


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_turning_back_is_the_inverse(data):
    order = data.draw(st.sampled_from(ORDERS))
    flips = tuple(data.draw(st.booleans()) for _ in range(3))
    image = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    there = Reorientation(order, flips)
    np.testing.assert_array_equal(turn(turn(image, there), there.inverse()), image)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_undo_ends_on_the_grid_of_the_image(data):
    shape = tuple(data.draw(st.integers(2, 12)) for _ in range(3))
    order = data.draw(st.sampled_from(ORDERS))
    signs = [data.draw(st.sampled_from([-1, 1])) for _ in range(3)]
    affine = np.eye(4)
    affine[:3, :3] = np.diag([data.draw(st.floats(0.4, 6)) * s for s in signs])[:, list(order)]
    image = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    volume = from_array(image, "zyx", affine=affine, units="mm")
    same = prepare(volume, AS_IT_IS)
    np.testing.assert_array_equal(same.undo(same.array)[0], image)
    np.testing.assert_array_equal(same.undo_labels((same.array * 100).astype(int))[0], (image * 100).astype(int))
    other = prepare(volume, Prepare(spacing_mm=(1.0, 1.5, 2.0), normalise="none"))
    assert other.undo(np.stack([other.array[0]] * 2)).shape == (2, *shape)
    assert other.undo_labels(np.ones(other.array.shape[1:], np.int16)).shape == shape


def test_points_and_sizes_go_back_through_flips_and_spacing():
    image = np.zeros((4, 6, 10), np.float32)  # x, z, y with x reversed
    image[3, 2, 5] = 1
    affine = np.zeros((4, 4))
    affine[2, 0], affine[0, 1], affine[1, 2], affine[3, 3] = -2.0, 3.0, 1.0, 1.0
    found = prepare(Volume(image, "zyx", affine, units="mm"), Prepare(spacing_mm=(1.0, 1.0, 1.0), normalise="none"))
    assert found.array.shape == (1, 18, 10, 8)
    assert found.spacing == (1.0, 1.0, 1.0)
    # z: voxel 2 of 3 mm spans 6..9 mm, centre at index 7; y: 5; x: voxel 3 reversed is 0, of 2 mm, centre at 0.5
    assert found.array[0, 7, 5, 0] > 0.4
    np.testing.assert_allclose(found.undo_points([[7.0, 5.0, 0.5]]), [[3, 2, 5]])
    np.testing.assert_allclose(found.undo_sizes([[3.0, 4.0, 2.0]]), [[1, 1, 4]])
    assert found.undo_points(np.zeros((0, 3))).shape == (0, 3)


def test_spacing_is_in_millimetres():
    volume = from_array(noise(10, 10), "yx", spacing=(500.0, 500.0), units="um")
    assert prepare(volume, Prepare(spacing_mm=(1, 1, 1))).array.shape == (1, 5, 5)


def test_unknown_voxel_size_is_told():
    told = []
    volume = from_array(noise(10, 10), "yx")
    assert prepare(volume, Prepare(spacing_mm=(1, 2, 2)), note=told.append).array.shape == (1, 10, 10)
    assert told == ["voxel size unknown: not resampled to the model's spacing"]


def test_cubic_voxels():
    told = []
    volume = Volume(noise(4, 8, 8), "zyx", scaling((3.0, 1.0, 1.0)), units="mm")
    assert prepare(volume, Prepare(isotropic=True), note=told.append).array.shape == (1, 12, 8, 8)
    assert told == ["resampled from 4 x 8 x 8 to 12 x 8 x 8 voxels for the model, and back"]


def test_object_size():
    volume = from_array(noise(40, 60), "yx")
    how = Prepare(object_diameter=24)
    assert prepare(volume, how, diameter=48).array.shape == (1, 20, 30)
    assert prepare(volume, how).array.shape == (1, 40, 60)


def test_nearly_the_same_spacing_is_the_same():
    volume = Volume(noise(300, 4, 4), "zyx", scaling((1.0001, 1.0, 1.0)), units="mm")
    assert prepare(volume, Prepare(spacing_mm=(1, 1, 1))).array.shape == (1, 300, 4, 4)


def test_percentiles_span_zero_to_one():
    image = np.arange(101, dtype=np.float32).reshape(1, 101) + 50
    found = prepare(from_array(image, "yx"), Prepare(low=10, high=90))
    np.testing.assert_allclose(found.array[0, 0, [10, 50, 90]], [0, 0.5, 1], atol=1e-6)
    np.testing.assert_allclose(found.undo_image(found.array)[0], image, rtol=1e-5)
    clipped = prepare(from_array(image, "yx"), Prepare(low=10, high=90, clip=True)).array
    assert (clipped.min(), clipped.max()) == (0, 1)


def test_an_object_on_a_large_empty_ground_takes_the_whole_range():
    image = np.zeros((100, 100), np.float32)
    image[0, 0] = 8
    assert normalisation(image, Prepare(low=1, high=99)) == (0, 8)


def test_zscore():
    found = prepare(from_array(np.array([[1.0, 3.0]]), "yx"), Prepare(normalise="zscore"))
    assert (found.offset, found.scale) == ((2,), (1,))
    assert found.array.tolist() == [[[-1, 1]]]


def test_large_images_are_sampled(monkeypatch):
    image = np.random.default_rng(0).normal(100, 10, size=(64, 64, 64)).astype(np.float32)
    exact = normalisation(image, Prepare())
    monkeypatch.setattr("napari_medai.engine.prepare.SAMPLE_VOXELS", 2**15)
    np.testing.assert_allclose(normalisation(image, Prepare()), exact, rtol=0.02)


def test_bad_input_is_a_clear_error():
    with pytest.raises(InputError, match="Every pixel has the value 3"):
        prepare(from_array(np.full((4, 4), 3.0)), Prepare())
    with pytest.raises(NotFiniteError, match="NaN or infinite"):
        prepare(from_array(np.array([[1.0, np.nan]])), Prepare())
    with pytest.raises(InputError, match="take single frames"):
        prepare(from_array(np.zeros((2, 4, 4)), "tyx"), Prepare())

"""Resampling by hand-made numbers: ramps, single voxels, and what is read."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from napari_medai.core import sampling
from napari_medai.core.errors import InputError
from napari_medai.core.geometry import Grid, index_to_world, scaling, world_to_index
from napari_medai.core.reslice import covering_grid, reslice
from napari_medai.core.volume import Volume

WEIGHTS = np.array([3.0, -2.0, 0.5])


def ramp(shape=(9, 20, 16), affine=None, **fields):
    """An image whose value is linear in the world."""
    affine = scaling((4, 1.5, 2), (-20, -80, 55)) if affine is None else affine
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    return Volume(index_to_world(affine, index) @ WEIGHTS, "zyx", affine, "mm", **fields)


def turned(*degrees):
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("XYZ", degrees, degrees=True).as_matrix()
    return matrix


def inside(volume, grid, margin=0.0):
    """Which voxels of a grid lie between the outermost centres of a volume."""
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), axis=-1)
    at = world_to_index(volume.affine, index_to_world(grid.affine, index))
    return ((at >= -margin) & (at <= np.array(volume.grid.shape) - 1 + margin)).all(axis=-1)


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("angles", [(25, 0, 0), (0, 11, 0), (12, 17, -40), (0, 90, 0)])
def test_a_ramp_stays_a_ramp(angles, lazy):
    volume = ramp()
    affine = turned(*angles) @ scaling((2.3, 1.1, 1.7))
    affine[:3, 3] = index_to_world(volume.affine, (4, 9, 7)) - affine[:3, :3] @ (7, 7, 8)
    grid = Grid((14, 15, 16), affine, "mm")
    source = volume.replace(array=da.from_array(volume.array, chunks=(1, 20, 16))) if lazy else volume
    out = reslice(source, grid, outside=np.nan)
    expected = ramp(grid.shape, grid.affine).array
    known = inside(volume, grid)
    assert known.any()
    np.testing.assert_allclose(out.numpy()[known], expected[known], atol=1e-3)
    beyond = ~inside(volume, grid, margin=0.51)
    assert np.isnan(out.numpy()[beyond]).all()


def test_half_a_voxel_belongs_to_the_image():
    volume = Volume(np.array([[[10.0, 20.0]]]), "zyx", units="mm")
    grid = Grid((1, 1, 8), scaling((1, 1, 0.25), (0, 0, -0.75)), "mm")
    # x = -0.75, -0.5 … 1: half a voxel before the first centre its value holds, beyond it there is nothing
    assert reslice(volume, grid).numpy().ravel().tolist() == [0, 10, 10, 10, 12.5, 15, 17.5, 20]
    assert reslice(volume, grid, order=0).numpy().ravel().tolist() == [0, 10, 10, 10, 10, 10, 20, 20]
    thick = Grid((4, 1, 1), scaling((0.4, 1, 1), (-0.4, 0, 0)), "mm")
    assert reslice(volume, thick).numpy().ravel().tolist() == [10, 10, 10, 0]


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint32, np.float32, np.float64, bool])
def test_the_same_grid_gives_the_same_pixels(oblique_scan, dtype):
    scan = oblique_scan.replace(array=(oblique_scan.array % 251).astype(dtype))
    same = reslice(scan, scan.grid)
    assert same.dtype == dtype
    np.testing.assert_array_equal(same.numpy(), scan.array)
    # of a view that is turned and mirrored too
    flipped = scan.replace(array=scan.array[:, ::-1].transpose(2, 0, 1))
    np.testing.assert_array_equal(reslice(flipped, flipped.grid).numpy(), flipped.array)
    cropped = scan.replace(array=scan.array[1:-1, ::2, 3:])
    np.testing.assert_array_equal(reslice(cropped, cropped.grid).numpy(), cropped.array)


def test_whole_numbers_are_rounded_and_labels_never_mixed():
    volume = Volume(np.array([[[0, 3]]], np.int16), "zyx", units="mm", modality="CT")
    grid = Grid((1, 1, 4), scaling((1, 1, 0.4), (0, 0, 0.4)), "mm")
    assert reslice(volume, grid).numpy().ravel().tolist() == [1, 2, 3, -1024]
    labels = volume.replace(meta={"is_labels": True}, modality="SEG")
    assert reslice(labels, grid).numpy().ravel().tolist() == [0, 3, 3, 0]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_indexing_is_numpys(data):
    volume = ramp((4, 5, 6), turned(10, 20, 30) @ scaling((1, 2, 1)))
    series = volume.replace(array=np.stack([volume.array, volume.array * 2]), axes="tzyx")
    array = reslice(series, Grid((5, 4, 3), scaling((1, 1, 2), (1, 0, 1)), "mm")).array
    whole = np.asarray(array)
    order = data.draw(st.permutations(range(4)))
    array, whole = array.transpose(order), whole.transpose(order)
    keys = []
    for size in whole.shape:
        integers = st.integers(-size, size - 1)
        keys.append(data.draw(integers | st.slices(size)))
    found = np.asarray(array[tuple(keys)])
    assert found.shape == whole[tuple(keys)].shape
    np.testing.assert_allclose(found, whole[tuple(keys)], atol=1e-4)


def test_wrong_indices():
    array = reslice(ramp(), ramp().grid).array
    for index in [(0, 0, 0, 0), 9, (..., ...), np.array([1]), True, None]:
        with pytest.raises(IndexError):
            array[index]
    assert array[-1, ..., 2].shape == (20,)
    assert len(array) == 9
    assert isinstance(array[1, 2, 3], np.float64)


def test_colour_time_and_single_images_are_carried():
    rgb = Volume(np.arange(2 * 3 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 3), "zyxs", units="mm")
    np.testing.assert_array_equal(reslice(rgb, rgb.grid).numpy(), rgb.array)
    np.testing.assert_array_equal(np.asarray(reslice(rgb, rgb.grid).array[1, ..., 1]), rgb.array[1, ..., 1])
    last = Volume(np.arange(24.0).reshape(2, 3, 2, 2), "zyxt", units="mm")
    np.testing.assert_array_equal(reslice(last, last.grid).numpy(), last.array)
    single = Volume(np.arange(12.0).reshape(3, 4), "yx", units="mm")
    assert reslice(single, single.grid).axes == "yx"
    np.testing.assert_array_equal(reslice(single, single.grid).numpy(), single.array)
    stack = reslice(single, Grid((3, 3, 4), scaling((1, 1, 1), (-1, 0, 0)), "mm"))
    assert (stack.axes, stack.shape) == ("zyx", (3, 3, 4))
    assert stack.numpy().sum(axis=(1, 2)).tolist() == [0, 66, 0]


@pytest.mark.parametrize("kept", [sampling.KEPT_BYTES, 0])
def test_only_the_planes_that_are_touched_are_read(monkeypatch, kept):
    monkeypatch.setattr(sampling, "KEPT_BYTES", kept)
    read = []

    def plane(block_info=None):
        read.append(block_info[None]["chunk-location"][0])
        return np.full((1, 8, 8), read[-1], np.int16)

    lazy = da.map_blocks(plane, chunks=((1,) * 20, 8, 8), dtype=np.int16, meta=np.empty((0, 0, 0), np.int16))
    grid = Grid((10, 8, 8), turned(0, 0, 0) @ scaling((2, 1, 1), (0.5, 0, 0)), "mm")
    out = reslice(Volume(lazy, "zyx", units="mm"), grid).array
    read.clear()
    # between the planes 6 and 7
    assert np.asarray(out[3, 4]).tolist() == [6] * 8  # 6.5, rounded to even
    assert sorted(read) == [6, 7]
    np.asarray(out[3])
    assert sorted(read) == ([6, 7] if kept else [6, 6, 7, 7])
    read.clear()
    np.asarray(out[9])
    assert sorted(read) == [18, 19]


def test_what_is_written_into_the_source_shows():
    volume = Volume(np.zeros((3, 4, 5)), "zyx", units="mm")
    out = reslice(volume, volume.grid)
    volume.array[1, 2, 3] = 7
    assert out.array[1, 2, 3] == 7


def test_cover_of_a_tilted_grid():
    # 5 mm slices of 1 mm pixels, tilted by 30 degrees about x
    tilted = Grid((10, 40, 30), turned(0, 0, 30) @ scaling((5, 1, 1), (7, 8, 9)), "mm")
    frame = turned(15, 0, 0)
    cover = covering_grid(Grid(tilted.shape, frame @ tilted.affine, "mm"), frame)
    # along z the next voxel is reached through a face of y, 1 mm / sin 30; along y and x through y and x
    np.testing.assert_allclose(cover.spacing, (2, 1 / np.cos(np.deg2rad(30)), 1), atol=1e-9)
    at = world_to_index(cover.affine, tilted.corners())
    assert (at > -0.5).all()
    assert (at < np.array(cover.shape) - 0.5).all()
    straight = Grid((3, 4, 5), scaling((5, 1, 2), (1, 2, 3)), "mm")
    assert covering_grid(straight, np.eye(4)).same_place(straight)


@settings(max_examples=20, deadline=None)
@given(st.tuples(*[st.floats(-50, 50)] * 3), st.tuples(*[st.floats(0.5, 4)] * 3))
def test_no_voxel_falls_through_a_cover_of_all(angles, spacing):
    tilted = Grid((4, 6, 5), turned(*angles) @ scaling(spacing, (7, 8, 9)), "mm")
    numbers = np.arange(1, 121).reshape(tilted.shape)
    cover = covering_grid(tilted, np.eye(4), every_voxel=True)
    shown = reslice(Volume(numbers, "zyx", tilted.affine, "mm"), cover, order=0).numpy()
    assert set(np.unique(shown)) - {0} == set(numbers.ravel())


def test_what_cannot_be_resliced():
    with pytest.raises(InputError, match="in um, the image in mm"):
        reslice(ramp(), Grid((1, 1, 1), np.eye(4), "um"))
    with pytest.raises(InputError, match="Order 3"):
        reslice(ramp(), ramp().grid, order=3)

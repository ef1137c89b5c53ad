"""Tiles: where they lie, what they read, and that their sum is the image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data.utils import dense_patch_slices

from napari_medai.core.errors import ModelError
from napari_medai.engine.sweep import Sweep
from napari_medai.engine.tiling import plan_tiles


def stitched(array, plan, **how):
    """The image out of its own tiles."""
    whole = np.full(array.shape, np.nan, np.float32)
    axis = how.get("axis", 0)

    def take(first, scores):
        np.moveaxis(whole, axis + 1, 1)[:, first : first + scores.shape[1]] = scores

    sweep = Sweep(plan, take, **how)
    for tile in sweep:
        sweep.add(tile, torch.from_numpy(plan.cut(array, tile)))
    return whole


def test_starts_are_spread_evenly_over_an_axis():
    # 10 voxels, tiles of 4, at least half shared: starts at most 2 apart, the last at 6
    plan = plan_tiles((10,), (4,), overlap=0.5)
    assert plan.axes[0].starts == (0, 2, 4, 6)
    # 10 with tiles of 4 and nothing shared: 3 tiles must reach 10
    assert plan_tiles((10,), (4,), overlap=0.0).axes[0].starts == (0, 3, 6)


def test_tiles_begin_and_end_at_multiples():
    plan = plan_tiles((50,), (37,), overlap=0.25, multiple=16)
    # 37 is rounded down to 32; 50 up to 64, which two tiles with a step of 16 or 32 cover
    assert plan.tile == (32,)
    assert plan.axes[0].starts == (0, 16, 32)


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.6])
@pytest.mark.parametrize("size", [16, 17, 40, 48, 63])
def test_in_whole_steps_tiles_lie_where_monai_has_its_windows(size: int, overlap: float):
    step = max(1, int(16 * (1 - overlap))) if size > 16 else 16
    theirs = dense_patch_slices((size,), (16,), (step,))
    plan = plan_tiles((size,), (16,), overlap, places="stepped", blend="constant")
    assert plan.axes[0].starts == tuple(window[0].start for window in theirs)
    counts = sum((np.arange(size) >= w[0].start) & (np.arange(size) < w[0].stop) for w in theirs)
    for start, row in zip(plan.axes[0].starts, plan.axes[0].weights, strict=True):
        np.testing.assert_allclose(row, 1 / counts[start : start + 16])


def test_an_image_smaller_than_a_tile_is_reflected_to_the_next_multiple():
    plan = plan_tiles((5, 3), (64, 64), multiple=4)
    assert len(plan) == 1
    assert plan.tile == (8, 4)
    image = np.arange(15, dtype=np.float32).reshape(1, 5, 3)
    cut = plan.cut(image, next(iter(plan)))
    assert cut[0, :, 0].tolist() == [0, 3, 6, 9, 12, 9, 6, 3]  # row 5 mirrors row 3, row 6 row 2 …
    assert cut[0, 0].tolist() == [0, 1, 2, 1]


def test_one_voxel_is_repeated():
    plan = plan_tiles((1,), (8,), multiple=8)
    assert plan.cut(np.full((2, 1), 3, np.float32), (0,)).tolist() == [[3] * 8] * 2


def test_a_fixed_size_is_a_multiple_of_itself():
    assert plan_tiles((20, 40), (32, 32), multiple=(32, 32)).tile == (32, 32)


def test_inner_edges_have_no_weight_and_outer_edges_have_all():
    plan = plan_tiles((28,), (16,), overlap=0.25)
    first, second = plan.axes[0].weights
    assert plan.axes[0].starts == (0, 12)
    assert first[:12].tolist() == [1] * 12
    assert first[-1] == 0  # a quarter of the four shared voxels
    assert second[0] == 0
    assert second[4:].tolist() == [1] * 12
    assert first[13] + second[1] == pytest.approx(1)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_stitching_tiles_gives_the_image_back(data):
    ndim = data.draw(st.integers(1, 3))
    shape = tuple(data.draw(st.integers(1, 24)) for _ in range(ndim))
    tile = tuple(data.draw(st.integers(1, 16)) for _ in range(ndim))
    plan = plan_tiles(shape, tile, data.draw(st.floats(0, 0.8)), data.draw(st.sampled_from([1, 2, 4, 8])))
    image = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    axis, keep = data.draw(st.integers(0, ndim - 1)), data.draw(st.sampled_from(["host", "disk"]))
    np.testing.assert_allclose(stitched(image, plan, axis=axis, keep=keep), image, atol=1e-5)
    begin = data.draw(st.integers(0, shape[axis] - 1))
    later = np.moveaxis(stitched(image, plan, axis=axis, begin=begin), axis + 1, 1)
    np.testing.assert_array_equal(np.isnan(later[:, :begin]), True)
    np.testing.assert_allclose(later[:, begin:], np.moveaxis(image, axis + 1, 1)[:, begin:], atol=1e-5)
    half = stitched(image, plan, axis=axis, sums="float16")
    np.testing.assert_allclose(half, image, atol=0.01)


@given(
    size=st.integers(1, 400),
    tile=st.integers(1, 128),
    overlap=st.floats(0, 0.9),
    multiple=st.sampled_from([1, 2, 8, 16]),
)
@settings(max_examples=200, deadline=None)
def test_every_axis_is_covered_with_the_overlap_asked_for(size, tile, overlap, multiple):
    axis = plan_tiles((size,), (tile,), overlap, multiple).axes[0]
    assert axis.starts[0] == 0
    assert axis.starts[-1] + axis.tile == -(-size // multiple) * multiple
    assert all(start % multiple == 0 for start in axis.starts)
    gaps = np.diff(axis.starts)
    if axis.tile * (1 - overlap) >= multiple:
        assert (gaps <= axis.tile * (1 - overlap)).all()
    assert (gaps <= axis.tile).all()
    total = np.zeros(axis.starts[-1] + axis.tile)
    for start, weight in zip(axis.starts, axis.weights, strict=True):
        total[start : start + axis.tile] += weight
    np.testing.assert_allclose(total, 1, atol=1e-5)


def test_no_seam_in_a_constant():
    plan = plan_tiles((40, 40), (16, 16), 0.25, 4)
    out = stitched(np.ones((1, 40, 40), np.float32), plan)
    assert np.abs(out - 1).max() < 1e-6


@pytest.mark.parametrize(
    ("shape", "tile", "overlap", "multiple"),
    [((8, 8), (4,), 0.5, 1), ((8,), (4,), 1.0, 1), ((8,), (0,), 0.5, 1), ((8,), (4,), 0.5, 0), ((0,), (4,), 0.5, 1)],
)
def test_impossible_plans_are_errors(shape, tile, overlap, multiple):
    with pytest.raises(ModelError, match="cut"):
        plan_tiles(shape, tile, overlap, multiple)


def nobody(first, scores):
    """Takes nothing."""


def test_another_number_of_channels_is_an_error():
    sweep = Sweep(plan_tiles((8,), (4,), 0.0), nobody)
    sweep.add((0,), torch.zeros(2, 4))
    with pytest.raises(ModelError, match="3 channels after 2"):
        sweep.add((1,), torch.zeros(3, 4))


def test_a_tile_of_another_size_is_an_error():
    with pytest.raises(ModelError, match=r"\(2,\) out of a tile of \(4,\)"):
        Sweep(plan_tiles((8,), (4,), 0.0), nobody).add((0,), torch.zeros(1, 2))


def test_planes_are_handed_over_as_soon_as_no_tile_reaches_them():
    plan = plan_tiles((10, 6), (4, 4), overlap=0.5)
    assert plan.axes[0].starts == (0, 2, 4, 6)
    events = []
    sweep = Sweep(plan, lambda first, scores: events.append((first, scores.shape[1])))
    for n, tile in enumerate(sweep, 1):
        sweep.add(tile, torch.ones(1, 4, 4))
        events.append(n)
    # two tiles in a row: planes 0 and 1 after the first row, the last four after the last
    planes = [e for e in events if isinstance(e, tuple)]
    assert [events.index(e) for e in planes] == sorted(events.index(e) for e in planes)
    assert events[:3] == [1, (0, 2), 2]
    assert sum(count for _, count in planes) == sweep.finished == 10
    assert len(sweep) == 8


def test_scores_beyond_half_precision_are_an_error_and_not_infinite():
    sweep = Sweep(plan_tiles((8,), (4,), 0.0), nobody, sums="float16")
    with pytest.raises(ModelError, match=r"up to 7e\+04, .* half precision only"):
        sweep.add((0,), torch.full((2, 4), 7e4))


def test_a_halo_gets_no_weight_and_widens_the_overlap():
    plan = plan_tiles((40,), (16,), overlap=0.25, multiple=2, halo=5)
    # of 16 voxels 6 are left between two halos: a new tile every 6
    assert plan.axes[0].starts == (0, 6, 12, 18, 24)
    weights = plan.axes[0].weights
    assert not weights[1:, :5].any()
    assert not weights[:-1, -5:].any()
    assert weights[0, 0] == weights[-1, -1] == 1
    image = np.arange(40, dtype=np.float32)[None]
    np.testing.assert_allclose(stitched(image, plan), image, rtol=1e-6)


def test_a_halo_that_leaves_nothing_of_a_tile_is_kept_as_far_as_it_goes():
    plan = plan_tiles((20,), (8,), multiple=2, halo=6)
    assert plan.axes[0].margin == 3
    image = np.arange(20, dtype=np.float32)[None]
    np.testing.assert_allclose(stitched(image, plan), image, rtol=1e-6)

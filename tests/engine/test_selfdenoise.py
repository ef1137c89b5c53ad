from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from napari_medai.core.errors import InputError
from napari_medai.core.stage import Cancelled
from napari_medai.engine import selfdenoise
from napari_medai.engine.noise import channel_scales, noise_by_brightness, put_back_detail
from napari_medai.engine.selfdenoise import RECIPES, axis_weights, denoise, neighbour_pair, view_count

CPU = torch.device("cpu")


def silent(done: int, total: int, message: str) -> None:
    """Nobody watches."""


@pytest.fixture(autouse=True)
def _small_recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {n: replace(r, features=(8, 8, 8), crop=16 if n == 3 else 32, batch=2, views=2) for n, r in RECIPES.items()}
    monkeypatch.setattr(selfdenoise, "RECIPES", small)


@pytest.mark.parametrize("ndim", [2, 3])
def test_pair_takes_a_pixel_and_the_mean_of_its_neighbours_in_the_block(ndim: int) -> None:
    weights = [0.5, 0.25, 0.25][-ndim:]
    shape = (1, 2, 4, 6, 8)[: 2 + ndim]
    image = torch.arange(float(np.prod(shape))).reshape(shape).double()
    given, wanted = neighbour_pair(image, weights, np.random.default_rng(0))
    assert given.shape == (*shape[:2], *(n // 2 for n in shape[2:]))
    where = np.array(np.unravel_index(given.long().numpy(), shape))
    assert_array_equal(where[2:] // 2, np.indices(given.shape)[2:])
    # turning one coordinate's lowest bit gives the neighbour along that axis
    expected = np.zeros(given.shape)
    for axis, weight in enumerate(weights, start=2):
        beside = where.copy()
        beside[axis] ^= 1
        expected += weight * image.numpy()[tuple(beside)]
    assert_allclose(wanted.numpy(), expected)
    # all channels give the same place
    assert_array_equal(where[2:, 0, 0], where[2:, 0, 1])


def test_axes_along_which_planes_differ_count_less() -> None:
    rng = np.random.default_rng(0)
    stack = rng.standard_normal((1, 12, 1, 1)) + 0.1 * rng.standard_normal((1, 12, 32, 32))
    z, y, x = axis_weights(stack.astype(np.float32), 3)
    assert z < 0.1
    assert_allclose(z + y + x, 1)


def test_noise_is_measured_at_each_brightness() -> None:
    rng = np.random.default_rng(0)
    clean = np.repeat([[0.2], [0.8]], [64, 64], axis=0) * np.ones((128, 128))
    deviation = np.where(clean < 0.5, 0.01, 0.05)
    noise = noise_by_brightness((clean + deviation * rng.standard_normal(clean.shape)).astype(np.float32), clean)
    assert_allclose(noise[:64].mean(), 0.01, rtol=0.1)
    assert_allclose(noise[64:].mean(), 0.05, rtol=0.1)


def test_channels_are_scaled_to_equal_noise() -> None:
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 1, 128)
    image = np.stack([100 * ramp + rng.standard_normal((128, 128)), 100 * ramp + 4 * rng.standard_normal((128, 128))])
    one, other = channel_scales(image.astype(np.float32))
    assert_allclose(other / one, 4, rtol=0.05)
    assert_allclose(((image[0] / one).var() + (image[1] / other).var()) / 2, 1, rtol=0.01)
    # without noise: its own deviation; constant: 1
    flat = np.stack([np.repeat(np.repeat(rng.random((8, 8)), 4, 0), 4, 1), np.zeros((32, 32))]).astype(np.float32)
    assert_allclose(channel_scales(flat), [flat[0].std(), 1], rtol=1e-5)


def test_all_detail_returns_where_there_is_no_noise() -> None:
    image = np.zeros((32, 32), dtype=np.float32)
    image[8:16, 8:24] = 1.0  # whole 2 x 2 blocks: no diagonal coefficient anywhere
    assert_allclose(put_back_detail(image, np.full_like(image, 0.25), 2), image, atol=1e-6)


def test_noise_does_not_return() -> None:
    rng = np.random.default_rng(0)
    noisy = rng.standard_normal((64, 64)).astype(np.float32)
    back = put_back_detail(noisy, np.zeros_like(noisy), 2)
    assert back.std() < 0.1


@pytest.mark.parametrize(
    ("shape", "ndim"),
    [
        ((1, 40, 56), 2),
        ((3, 33, 47), 2),
        ((1, 5, 34, 36), 2),
        ((1, 18, 21, 23), 3),
        ((2, 3, 16, 16), 3),
        ((1, 2, 3), 2),
    ],
)
def test_shape_scale_and_offset_survive(shape: tuple[int, ...], ndim: int) -> None:
    rng = np.random.default_rng(0)
    image = (1000 + 300 * rng.standard_normal(shape)).astype(np.int16)
    made = denoise(image, ndim=ndim, steps=3, seed=0, device=CPU, progress=silent)
    assert made.shape == shape
    assert made.dtype == np.float32
    assert abs(float(made.mean()) - float(image.mean())) < 100


def test_noise_becomes_less_and_the_same_seed_gives_the_same() -> None:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:64, :64]
    clean = (((y - 32) ** 2 + (x - 32) ** 2 < 400) * 80.0 + 20).astype(np.float32)
    noisy = (clean + 10 * rng.standard_normal(clean.shape)).astype(np.float32)[None]
    runs = [denoise(noisy, ndim=2, steps=80, seed=3, device=CPU, progress=silent) for _ in range(2)]
    assert_array_equal(runs[0], runs[1])
    assert np.mean((runs[0][0] - clean) ** 2) < 0.6 * np.mean((noisy[0] - clean) ** 2)


def test_tiles_and_the_whole_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.random.default_rng(0).random((1, 96, 112)).astype(np.float32)
    whole = denoise(image, ndim=2, steps=4, seed=0, device=CPU, progress=silent)
    tiled = {n: replace(r, tile=32) for n, r in selfdenoise.RECIPES.items()}
    monkeypatch.setattr(selfdenoise, "RECIPES", tiled)
    assert_allclose(denoise(image, ndim=2, steps=4, seed=0, device=CPU, progress=silent), whole, atol=1e-5)


def test_constant_channels_come_back_unchanged() -> None:
    image = np.full((2, 24, 24), 7.0, dtype=np.float32)
    assert_array_equal(denoise(image, ndim=2, steps=2, seed=0, device=CPU, progress=silent), image)
    image[1] = np.random.default_rng(0).random((24, 24))
    assert_allclose(denoise(image, ndim=2, steps=2, seed=0, device=CPU, progress=silent)[0], 7.0, atol=1e-4)


def test_progress_rises_to_the_end_and_may_cancel() -> None:
    image = np.random.default_rng(0).random((1, 24, 24))
    seen: list[tuple[int, int]] = []
    denoise(image, ndim=2, steps=5, seed=0, device=CPU, progress=lambda done, total, _: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1]

    def stop(done: int, total: int, message: str) -> None:
        if done == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        denoise(image, ndim=2, steps=5, seed=0, device=CPU, progress=stop)


def test_wrong_input_is_named() -> None:
    with pytest.raises(InputError, match="dimensions"):
        denoise(np.zeros((1, 8, 8)), ndim=3, steps=1, seed=0, device=CPU, progress=silent)
    with pytest.raises(InputError, match="NaN"):
        denoise(np.full((1, 8, 8), np.nan), ndim=2, steps=1, seed=0, device=CPU, progress=silent)


def test_large_images_get_fewer_views() -> None:
    assert view_count((64, 64), 2) == 2  # the small recipe's most
    assert view_count((4000, 4000), 2) == 1

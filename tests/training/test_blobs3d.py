from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from napari_medai.models.manifest import read_manifest, write_manifest
from napari_medai.nets.blobs import BlobCentres
from training.blob_backgrounds import Sources, haze_background, smooth_noise
from training.blob_phantoms import Phantom, simulate
from training.blobs3d import batch, describe, loss, make_pool, score, targets, train
from training.fitting import load_weights

NOTHING = Sources((), ())


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    for seed in range(20):
        made = simulate(np.random.default_rng(seed), NOTHING, 40, background="haze")
        if len(made.diameters) > 3:
            return made
    raise AssertionError("twenty empty volumes in a row")


def test_phantom_tells_the_truth_about_itself(phantom: Phantom) -> None:
    assert phantom.image.shape == phantom.labels.shape == (40, 40, 40)
    assert np.isfinite(phantom.image).all()
    assert phantom.labels.max() == len(phantom.diameters) == len(phantom.bright) == len(phantom.centres)
    for number, (centre, diameter) in enumerate(zip(phantom.centres, phantom.diameters, strict=True), start=1):
        inside = np.argwhere(phantom.labels == number)
        assert_allclose(centre, inside.mean(axis=0))
        assert_allclose(np.pi / 6 * diameter**3, len(inside))


def test_bright_objects_are_brighter_than_what_surrounds_them(phantom: Phantom) -> None:
    outside = phantom.image[phantom.labels == 0].mean()
    means = np.array([phantom.image[phantom.labels == n + 1].mean() for n in range(len(phantom.bright))])
    assert ((means > outside) == phantom.bright).mean() > 0.8


def test_smooth_noise_is_normalised() -> None:
    noise = smooth_noise(np.random.default_rng(0), (20, 30, 40), 6.0)
    assert noise.shape == (20, 30, 40)
    assert_allclose([noise.mean(), noise.std()], [0, 1], atol=1e-3)
    assert haze_background(np.random.default_rng(0), 16).shape == (16, 16, 16)


def test_targets_mark_centre_polarity_and_width() -> None:
    made = Phantom(
        np.zeros((24, 24, 24), np.float32),
        np.zeros((24, 24, 24), np.int32),
        np.array([[6.0, 7.0, 8.0], [16.2, 15.8, 14.0]]),
        np.array([8.0, 4.0]),
        np.array([True, False]),
    )
    heat, width = targets(made, (2, 2, 2), 20)
    assert heat[0, 4, 5, 6] == 1
    assert heat[1, 14, 14, 12] == 1
    assert (heat == 1).sum() == 2
    # sigma is 8/7 for the first: one voxel aside exp(-1 / (2 * (8/7)^2)) = exp(-0.3828)
    assert_allclose(heat[0, 4, 5, 7], np.exp(-49 / 128), rtol=1e-5)
    assert_allclose([width[4, 5, 6], width[14, 14, 12]], [3, 2])


def test_loss_is_small_for_the_truth_and_large_for_its_opposite(phantom: Phantom) -> None:
    heat, width = targets(phantom, (0, 0, 0), 40)
    truth = (torch.zeros(1), torch.from_numpy(heat)[None], torch.from_numpy(width)[None, None])
    right = torch.cat((torch.logit(truth[1].clamp(1e-4, 1 - 1e-4)), truth[2]), dim=1)
    assert float(loss(right, truth)) < 1
    assert float(loss(torch.cat((-right[:, :2], right[:, 2:]), dim=1), truth)) > 10


def test_score_counts_a_wrong_polarity_as_wrong(phantom: Phantom) -> None:
    from napari_medai.engine.blobs import Blobs

    inside = np.array([np.argwhere(phantom.labels == n + 1)[0] for n in range(len(phantom.bright))], dtype=float)
    ones = np.ones(len(inside))
    bright, dark = score(phantom, Blobs(inside, ones, ones, phantom.bright))
    assert (bright + dark).f1 == 1
    bright, dark = score(phantom, Blobs(inside, ones, ones, ~phantom.bright))
    assert (bright + dark).true_positive == 0


def test_two_steps_write_weights_and_a_description_that_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import training.blobs3d

    monkeypatch.setattr(training.blobs3d, "BATCH", 1)
    monkeypatch.setattr(training.blobs3d, "CROP", 16)
    monkeypatch.setattr(training.blob_phantoms, "head_background", lambda rng, images, size: haze_background(rng, size))
    monkeypatch.setattr(
        training.blob_phantoms, "slice_background", lambda rng, images, size: haze_background(rng, size)
    )
    pool = make_pool(NOTHING, 2, seed=0, size=24)
    images, heat, width = batch(pool, np.random.default_rng(0))
    assert images.shape == width.shape == (1, 1, 16, 16, 16)
    assert heat.shape == (1, 2, 16, 16, 16)
    train(pool, tmp_path / "weights.safetensors", steps=2)
    network = BlobCentres()
    load_weights(network, tmp_path / "weights.safetensors")
    assert not network.training
    write_manifest(describe(0.3, 0.1), tmp_path)
    assert read_manifest(tmp_path).network == "blob_centres"

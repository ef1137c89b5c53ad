"""The runner of `brain` with small networks in place of deepbet's: boxes, geometry, bad input."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
import torch
from torch import nn

from napari_medai.core.errors import ModelNotFoundError
from napari_medai.core.geometry import scaling
from napari_medai.core.stage import Params, Progress
from napari_medai.core.volume import Volume
from napari_medai.engine import brain
from napari_medai.engine.run import start
from napari_medai.models.deepbet import CARD, SHA256, SPEC
from napari_medai.models.spec import Model

MODEL = Model(spec=SPEC, folder=CARD, source="deepbet")


class Bright(nn.Module):
    """What is brighter than the mean that the networks are given is brain."""

    def forward(self, image):
        inside = torch.sigmoid(20 * (image - 0.6))
        return torch.cat([1 - inside, inside], dim=1)


@pytest.fixture
def small_networks(monkeypatch, tmp_path):
    """Stand-ins for deepbet's networks, at a quarter of their size."""
    asked = []

    def load(path, sha256, network, device):
        asked.append((path.name, sha256))
        return Bright()

    monkeypatch.setattr(brain, "COARSE", (32, 32, 32))
    monkeypatch.setattr(brain, "FINE", (64, 64, 64))
    monkeypatch.setattr(brain, "weights_folder", lambda: tmp_path)
    monkeypatch.setattr(brain, "load_archive", load)
    return asked


def ball(shape=(40, 48, 44), spacing=(1.0, 1.0, 1.0), centre=(22.0, 20.0, 21.0), radius=12.0):
    """A bright ball with a hole on a dim ground, (z, y, x), its centre in mm; and where the ball is."""
    at = np.stack(np.meshgrid(*[np.arange(n) * s for n, s in zip(shape, spacing, strict=True)], indexing="ij"), -1)
    distance = np.linalg.norm(at - np.asarray(centre), axis=-1)
    image = np.where(distance < radius, 100.0, 5.0) + np.random.default_rng(0).normal(0, 1, shape)
    image[distance < 2.5] = 5
    image[2:4, 2:4, 2:4] = 100  # a bright speck elsewhere
    return image.astype(np.float32), distance < radius


def segment(volume, progress=None, params=None):
    with start("segment", volume, MODEL, params or Params(device="cpu"), progress or Progress()) as run:
        return run.runner(volume, run, params or Params(device="cpu")), run


def dice(a, b):
    return 2 * np.sum((a > 0) & (b > 0)) / (np.sum(a > 0) + np.sum(b > 0))


def test_the_box_by_hand():
    coarse = np.zeros((10, 10, 10), bool)
    coarse[2:6, 3:7, 5:9] = True
    # axis 0: centre 4 and size 4 of 10 voxels, of 100: centre 40, size 40 * 1.2 = 48
    # axis 2: centre 7 and size 4 of 10, of 25: centre 17.5 -> 18, size 12; cut off at 25
    assert brain.brain_box(coarse, (100, 10, 25)) == (slice(16, 64), slice(2, 7), slice(12, 24))
    assert brain.brain_box(np.zeros((10, 10, 10), bool), (10, 10, 10)) is None


def test_planes_with_little_brain_are_outside_of_the_box():
    coarse = np.zeros((10, 10, 10), bool)
    coarse[4:6] = True
    coarse[0, 0, :2] = True  # two of a hundred voxels: not more than 0.02
    box = brain.brain_box(coarse, (10, 10, 10))
    assert box is not None
    assert box[0] == slice(4, 6)


def test_the_largest_piece_holds_together_over_corners():
    mask = np.zeros((4, 4, 4), bool)
    mask[0, 0, 0] = mask[1, 1, 1] = mask[3, 3, 3] = True
    assert np.argwhere(brain.largest_piece(mask)).tolist() == [[0, 0, 0], [1, 1, 1]]
    assert not brain.largest_piece(np.zeros((2, 2, 2), bool)).any()


def test_normalised_by_hand():
    out = brain.normalised(np.array([-1.0, 0.0, 10.0, 11.0], np.float32), 0.0, 10.0)
    # clipped to 0, 0, 1, 1: mean 0.5, deviation sqrt(1/3)
    np.testing.assert_allclose(out, 0.449 + np.array([-1, -1, 1, 1]) * 0.5 * 0.226 * np.sqrt(3), rtol=1e-5)


def test_both_networks_are_asked_for_by_their_sha256(small_networks):
    image, truth = ball()
    mask, run = segment(Volume(image, "zyx", units="mm", modality="MR"))
    assert mask.dtype == np.uint8
    assert set(np.unique(mask)) == {0, 1}
    assert dice(mask, truth) > 0.95
    assert mask[22, 20, 21] == 1  # the hole is filled
    assert mask[2, 2, 2] == 0  # the speck is not the brain
    assert small_networks == [("bbox_model.pt", SHA256["bbox_model.pt"]), ("model.pt", SHA256["model.pt"])]
    assert run.tiles == 2
    assert run.notes == []


@pytest.mark.usefixtures("small_networks")
def test_any_order_and_direction_of_axes_gives_the_same_brain():
    image, _ = ball()
    reference, _ = segment(Volume(image, "zyx", units="mm"))
    for order, flips in product(permutations(range(3)), [(True, False, True), (False, True, False)]):
        turned = Volume(image, "zyx", units="mm").reoriented(brain.Reorientation(order, flips))
        mask, _ = segment(turned)
        back = turned.replace(array=mask).canonical()
        np.testing.assert_array_equal(back.array, reference)


@pytest.mark.usefixtures("small_networks")
def test_thick_slices():
    image, truth = ball((14, 96, 88), (3.0, 0.5, 0.5))
    mask, _ = segment(Volume(image, "zyx", scaling((3.0, 0.5, 0.5)), units="mm"))
    assert mask.shape == (14, 96, 88)
    assert dice(mask, truth) > 0.92


@pytest.mark.usefixtures("small_networks")
def test_without_a_brain_the_mask_is_empty_and_the_user_is_told():
    image = np.zeros((16, 16, 16), np.float32)
    image[0, 0, 0] = 1
    mask, run = segment(Volume(image, "zyx", units="mm"))
    assert not mask.any()
    assert len(run.notes) == 1
    assert run.notes[0].startswith("no ")


@pytest.mark.usefixtures("small_networks")
def test_an_image_without_a_place_in_a_patient_is_noted():
    _, run = segment(Volume(ball()[0], "zyx"))
    assert run.notes == ["the image has no place in a patient: taken as z superior, y posterior, x left"]


@pytest.mark.usefixtures("small_networks")
def test_progress_goes_once_from_start_to_end_and_is_handed_back():
    class Listener(Progress):
        def __init__(self):
            self.done = []

        def update(self, done, total, message=""):
            self.done.append(done / total)

    listener = Listener()
    _, run = segment(Volume(ball()[0], "zyx"), listener)
    assert listener.done == [pytest.approx(0.12), pytest.approx(1.0)]
    assert run.progress is listener


def test_without_deepbet_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(brain, "weights_folder", lambda: None)
    with pytest.raises(ModelNotFoundError, match=r"napari-medai\[deepbet\]"):
        segment(Volume(ball()[0], "zyx"))

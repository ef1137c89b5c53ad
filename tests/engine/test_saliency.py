"""Grad-CAM++ by hand on a network of one layer; occlusion of a single bright spot."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from napari_medai.core.errors import ModelError
from napari_medai.core.stage import Cancelled, Progress
from napari_medai.engine.saliency import grad_cam_pp, occlusion


def test_grad_cam_pp_by_hand() -> None:
    # One layer that copies its input; the score is 3 times the first pixel plus 1 times the last.
    layer = nn.Identity()
    image = torch.tensor([[[[2.0, 0.0], [0.0, 4.0]]]])

    def score(x: torch.Tensor) -> torch.Tensor:
        y = layer(x)
        return 3 * y[0, 0, 0, 0] + y[0, 0, 1, 1]

    # gradient g = (3, 0, 0, 1), sum of A = 6: alpha = g^2 / (2 g^2 + 6 g^3) = 9/180 and 1/8
    weight = 3 * 9 / 180 + 1 / 8
    expected = weight * image.numpy()[0, 0]
    np.testing.assert_allclose(grad_cam_pp(score, layer, image)[0], expected, rtol=1e-6)
    assert not layer._forward_hooks


def test_a_layer_that_is_not_used_is_an_error_and_leaves_no_hook() -> None:
    layer = nn.Identity()
    with pytest.raises(ModelError, match="does not depend"):
        grad_cam_pp(lambda x: x.sum(), layer, torch.ones(1, 1, 2, 2))
    assert not layer._forward_hooks


def test_grad_cam_pp_survives_layers_that_work_in_place() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(inplace=True))
    for p in network.parameters():
        p.requires_grad_(False)
    heat = grad_cam_pp(lambda x: network(x).sum(), network[0], torch.rand(1, 1, 8, 8))
    assert heat.shape == (1, 8, 8)
    assert np.isfinite(heat).all()


def test_occlusion_finds_the_only_pixel_that_counts() -> None:
    image = torch.zeros(1, 1, 16, 16)
    image[0, 0, 5, 9] = 1.0
    heat = occlusion(lambda x: x[0, 0, 5, 9], image, (4, 4), Progress())
    hot = np.argwhere(heat[0] > 0.99 * heat.max())
    assert hot.min(axis=0).tolist() == [4, 8]
    assert hot.max(axis=0).tolist() == [5, 9]
    # covered with the mean, 1/256, the score falls by 255/256
    assert heat.max() == pytest.approx(255 / 256)
    assert heat[0, 12:, :].max() == 0


def test_occlusion_stops_at_the_next_patch() -> None:
    calls = 0

    class Stop(Progress):
        def update(self, done: float, total: float, message: str = "") -> None:
            if done >= 2:
                raise Cancelled

    def score(x: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return x.sum()

    with pytest.raises(Cancelled):
        occlusion(score, torch.rand(1, 1, 16, 16), (4, 4), Stop())
    assert calls == 3  # the whole image and two patches

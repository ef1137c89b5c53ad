"""Tiled equals untiled, on any tile, again and again: the engine adds nothing of its own to what a network says.

The tolerance is 1e-5 of the largest score: sums of float32 in another order differ by that much, and a voxel that saw a
tile's border instead of the image by a thousand times more.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import napari_medai as medai
from napari_medai.core.volume import Volume
from napari_medai.engine.asking import Mirrored
from napari_medai.models.spec import Accepts, Gives, Label, Prepare, Tiling
from tests.engine.carving import UNetWithPooling, convolutions, monai_unet, predicted, reach_of, trained, untiled
from tests.engine.test_network import package

TOLERANCE = 1e-5

# network, axes, total stride along each
BOUNDED = {
    "convolutions": (lambda: convolutions(2, [1, 1]), (1, 1)),
    "dilated": (lambda: convolutions(2, [1, 2, 4]), (1, 1)),
    "dilated in 3-D": (lambda: convolutions(3, [1, 2]), (1, 1, 1)),
    "pooling": (lambda: UNetWithPooling(2), (2, 2)),
    "pooling by 3 and 4": (lambda: UNetWithPooling(2, (3, 4)), (3, 4)),
    "pooling within planes": (lambda: UNetWithPooling(3, (1, 2, 2)), (1, 2, 2)),
    "strides": (lambda: monai_unet(2), (4, 4)),
}


def image_of(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(1, *shape)).astype(np.float32)


def off(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference as a share of the largest score."""
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("name", BOUNDED)
@pytest.mark.parametrize("overlap", [0.0, 0.5])
def test_tiled_equals_untiled(name: str, overlap: float) -> None:
    make, multiple = BOUNDED[name]
    torch.manual_seed(1)
    network = trained(make())
    reach = reach_of(network, len(multiple), multiple, 48)
    assert max(reach) > 1
    # tiles hold some strides more than what is no good of them, and the image is no multiple of anything
    tile = [step * (2 * far // step + 4) for far, step in zip(reach, multiple, strict=True)]
    image = image_of(*(edge + 3 * step + 7 for edge, step in zip(tile, multiple, strict=True)))
    found = predicted(network, image, tile=tile, multiple=multiple, halo=reach, overlap=overlap)
    expected = untiled(network, image, multiple)
    assert off(found, expected) < TOLERANCE
    # what is compared is able to differ
    cut = predicted(network, image, tile=tile, multiple=multiple, halo=0, overlap=0.0)
    assert off(cut, expected) > 100 * TOLERANCE


POOLING = trained(UNetWithPooling(2))
VOLUMES = trained(convolutions(3, [1, 2]))


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_the_tile_makes_no_difference(data: st.DataObject) -> None:
    ndim = data.draw(st.sampled_from([2, 3]), "axes")
    network, reach, step, most = (POOLING, 6, 2, 70) if ndim == 2 else (VOLUMES, 3, 1, 22)
    shape = data.draw(st.tuples(*[st.integers(1, most)] * ndim), "image")
    tile = data.draw(st.tuples(*[st.integers(2 * (reach + step), most)] * ndim), "tile")
    overlap = data.draw(st.sampled_from([0.0, 0.25, 0.5, 0.7]), "overlap")
    batch = data.draw(st.integers(1, 3), "batch")
    image = image_of(*shape)
    found = predicted(network, image, tile=tile, multiple=step, halo=reach, overlap=overlap, batch=batch)
    # an image of fewer voxels than the stride is filled by repeating, which numpy does not do by reflection alone
    whole = predicted(network, image, tile=(most + 2,) * ndim, multiple=step, halo=reach)
    assert off(found, whole) < TOLERANCE


def test_the_reach_of_the_drawn_networks() -> None:
    assert reach_of(POOLING, 2, (2, 2), 32) <= (6, 6)
    assert reach_of(VOLUMES, 3, (1, 1, 1), 16) == (3, 3, 3)


def unet_package(folder: Any, tile: int, **fields: Any) -> Any:
    torch.manual_seed(5)
    network = trained(monai_unet(3))
    image = torch.from_numpy(image_of(32, 32, 32)[None])
    with torch.inference_mode():  # no class is left out
        mean = network(image).mean((0, 2, 3, 4))
    last = [module for module in network.modules() if isinstance(module, nn.Conv3d)][-1]
    last.bias.data -= mean
    labels = tuple(Label(value=n, name=str(n)) for n in (1, 2))
    given: dict[str, Any] = {
        "network": "UNet",
        "arguments": {
            "spatial_dims": 3, "in_channels": 1, "out_channels": 3, "channels": [4, 6, 8], "strides": [2, 2],
            "num_res_units": 1, "norm": "batch",
        },
        "accepts": Accepts(ndim=(3,)),
        "gives": Gives(kind="labels", labels=labels),
        "tiling": Tiling(size=(tile,) * 3, multiple=4, halo=20, overlap=0.0),
    }  # fmt: skip
    return package(folder, network.state_dict(), **{**given, **fields})


def test_labels_are_the_same_whatever_the_tile(tmp_path: Any) -> None:
    spacing = np.diag([2.0, 1.0, 1.0, 1.0])
    volume = Volume(image_of(27, 50, 40)[0], "zyx", spacing, units="mm")
    prepare = Prepare(normalise="zscore", spacing_mm=(1, 1, 1))  # resampled there and back
    found = []
    for number, tile in enumerate((48, 56)):
        model = unet_package(tmp_path / str(number), tile, prepare=prepare)
        result = medai.segment(volume, model, device="cpu")
        found.append((result.labels.numpy(), result.provenance.tiles))
    (tiled, many), (whole, single) = found
    assert many > single == 1
    assert np.bincount(whole.ravel(), minlength=3).min() > 0.1 * whole.size
    assert np.mean(tiled != whole) < 1e-5  # equal but for ties


@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_bits_again_on_the_cpu(threads: int) -> None:
    network, image = trained(monai_unet(3, "instance")), image_of(24, 16, 13)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        first, again = (predicted(network, image, tile=(16,) * 3, multiple=4, overlap=0.5) for _ in range(2))
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(first, again)


def test_another_number_of_threads_is_within_the_tolerance() -> None:
    network, image = trained(monai_unet(3)), image_of(24, 16, 13)
    before, found = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            found.append(predicted(network, image, tile=(16,) * 3, multiple=4, overlap=0.5))
        finally:
            torch.set_num_threads(before)
    assert off(found[0], found[1]) < TOLERANCE


def mirrored_by_hand(network: nn.Module, image: np.ndarray) -> np.ndarray:
    axes = range(1, image.ndim)
    copies = []
    for flips in product((False, True), repeat=image.ndim - 1):
        over = [axis for axis, flip in zip(axes, flips, strict=True) if flip]
        copies.append(np.flip(untiled(network, np.ascontiguousarray(np.flip(image, over))), over))
    return np.mean(copies, axis=0)


@pytest.mark.parametrize("ndim", [2, 3])
def test_mirrored_tiles_are_the_mean_of_mirrored_images(ndim: int) -> None:
    network = trained(convolutions(ndim, [1, 2]))
    image = image_of(*(31, 26, 19)[:ndim])
    both = Mirrored(network, "values", lambda: None)
    found = predicted(both, image, tile=(12,) * ndim, halo=3, overlap=0.0)
    assert off(found, mirrored_by_hand(network, image)) < TOLERANCE


class Ensemble(nn.Module):
    """The mean of several networks."""

    def __init__(self, *networks: nn.Module) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """The same as a network's."""
        return torch.stack([network(image) for network in self.networks]).mean(0)


def test_an_ensemble_in_tiles_is_the_mean_of_its_networks() -> None:
    torch.manual_seed(7)
    networks = [trained(convolutions(2, [1, 2]), seed) for seed in range(3)]
    image = image_of(47, 61)
    found = predicted(Ensemble(*networks), image, tile=(16, 16), halo=3, overlap=0.5)
    assert off(found, np.mean([untiled(network, image) for network in networks], axis=0)) < TOLERANCE

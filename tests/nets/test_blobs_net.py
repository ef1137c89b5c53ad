from __future__ import annotations

import pytest
import torch

from napari_medai.nets import build
from napari_medai.nets.blobs import BlobCentres, channels_to_voxels, voxels_to_channels


def test_blocks_become_channels_and_voxels_again() -> None:
    image = torch.arange(2 * 3 * 4 * 6 * 8.0).reshape(2, 3, 4, 6, 8)
    maps = voxels_to_channels(image)
    assert maps.shape == (2, 24, 2, 3, 4)
    # the first block of the first channel, z slowest
    assert torch.equal(maps[0, :8, 0, 0, 0], image[0, 0, :2, :2, :2].reshape(8))
    assert torch.equal(channels_to_voxels(maps), image)


@pytest.mark.parametrize("shape", [(8, 8, 8), (5, 9, 17), (1, 16, 3)])
def test_output_has_three_maps_of_the_input_size(shape: tuple[int, int, int]) -> None:
    network = build("blob_centres", features=[4, 4, 4]).eval()
    with torch.inference_mode():
        assert network(torch.zeros(1, 1, *shape)).shape == (1, 3, *shape)


def test_untrained_network_sees_few_objects() -> None:
    torch.manual_seed(0)
    network = BlobCentres(features=(4, 4, 4)).eval()
    with torch.inference_mode():
        heat = torch.sigmoid(network(torch.rand(1, 1, 16, 16, 16))[:, :2])
    assert float(heat.max()) < 0.05


def test_a_voxel_does_not_depend_on_what_is_far_away() -> None:
    torch.manual_seed(0)
    network = BlobCentres(features=(4, 4, 4)).eval()
    one = torch.rand(1, 1, 16, 16, 96)
    other = one.clone()
    other[..., 80:] = 5.0
    with torch.inference_mode():
        assert torch.allclose(network(one)[..., :16], network(other)[..., :16], atol=1e-6)

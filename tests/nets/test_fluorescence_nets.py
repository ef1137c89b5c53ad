from __future__ import annotations

import pytest
import torch

from napari_medai.nets import NETWORKS, build

SMALL = (4, 4, 8, 8, 8, 4)


@pytest.mark.parametrize(("name", "given", "learnt"), [("nuclei_unet", 2, 2), ("micronuclei_centres", 3, 5)])
def test_planes_and_ranges(name: str, given: int, learnt: int) -> None:
    torch.manual_seed(0)
    network = build(name, features=list(SMALL))
    image = torch.rand(2, 1, 32, 48)
    assert network(image).shape == (2, learnt, 32, 48)
    network.eval()
    with torch.inference_mode():
        out = network(image)
    assert out.shape == (2, given, 32, 48)
    assert ((out[:, :1] >= 0) & (out[:, :1] <= 1)).all()
    if name == "micronuclei_centres":
        assert (out[:, 1:] >= 1).all()  # no object is smaller than a pixel


@pytest.mark.parametrize("name", ["nuclei_unet", "micronuclei_centres"])
def test_a_pixel_does_not_depend_on_the_rest_of_the_batch(name: str) -> None:
    torch.manual_seed(0)
    network = build(name, features=list(SMALL)).eval()
    image = torch.rand(2, 1, 32, 32)
    with torch.inference_mode():
        assert torch.allclose(network(image)[:1], network(image[:1]), atol=1e-5)


def test_negative_pixels_are_finite() -> None:
    network = build("nuclei_unet", features=list(SMALL)).eval()
    with torch.inference_mode():
        assert torch.isfinite(network(torch.full((1, 1, 16, 16), -0.5))).all()


def test_every_row_of_the_table_names_a_module_and_a_class() -> None:
    for target in NETWORKS.values():
        module, _, cls = target.partition(":")
        assert module.startswith("napari_medai.nets.")
        assert cls.isidentifier()


def test_an_unknown_network_lists_those_there_are() -> None:
    with pytest.raises(KeyError, match="nuclei_unet"):
        build("no such network")

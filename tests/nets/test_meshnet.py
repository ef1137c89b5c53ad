from __future__ import annotations

from typing import Any

import pytest
import torch

from napari_medai.nets import build, meshnet, problems
from napari_medai.nets.meshnet import MeshNet

WIDTHS = [1, 3, 3, 3, 4]
DILATIONS = [1, 2, 4, 1]


def layers(**last: Any) -> list[dict[str, int]]:
    table = [
        {"in_channels": a, "out_channels": b, "kernel_size": 3, "padding": d, "stride": 1, "dilation": d}
        for a, b, d in zip(WIDTHS, WIDTHS[1:], DILATIONS, strict=False)
    ]
    table[-1].update({"kernel_size": 1, "padding": 0, **last})
    return table


def random(**changes: Any) -> MeshNet:
    torch.manual_seed(0)
    network = MeshNet(layers(), **changes)
    for norm in network.norms:
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)
    return network.eval()


def plainly(network: MeshNet, image: torch.Tensor) -> torch.Tensor:
    """Layer after layer over the whole image."""
    for number, block in enumerate(network.convolutions[:-1]):
        image = block(image)
        if network.instance:
            image = torch.nn.functional.instance_norm(image)
        elif len(network.norms):
            image = network.norms[number](image)
        image = network.activation(image)
    return network.convolutions[-1](image)


@pytest.mark.parametrize(
    "changes", [{}, {"activation": "elu"}, {"activation": "gelu", "normalise": "instance"}, {"normalise": "batch"}]
)
@pytest.mark.parametrize("planes", [1, 3, 7, 100])
def test_slabs_give_what_the_whole_gives(monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], planes: int) -> None:
    network, image = random(**changes), torch.randn(2, 1, 19, 11, 6)
    monkeypatch.setattr(meshnet, "SLAB_NUMBERS", planes * 2 * 11 * 6 * 3)
    kept = image.clone()
    with torch.inference_mode():
        expected = plainly(network, image)
        torch.testing.assert_close(network(image), expected, atol=2e-5, rtol=1e-4)
        found = network.labels(image)
    assert torch.equal(image, kept)
    assert found.shape == (2, 1, 19, 11, 6)
    assert torch.equal(found[:, 0].long(), expected.argmax(1))


def test_with_gradients_nothing_is_written_over() -> None:
    network, image = random(), torch.randn(1, 1, 8, 8, 8, requires_grad=True)
    network(image).sum().backward()
    assert image.grad is not None
    assert torch.isfinite(image.grad).all()


def test_it_can_be_stopped_between_slabs() -> None:
    def tell(done: int, total: int) -> None:
        seen.append((done, total))
        if done == 2:
            raise InterruptedError

    seen: list[tuple[int, int]] = []
    with torch.inference_mode(), pytest.raises(InterruptedError):
        random().labels(torch.randn(1, 1, 8, 8, 8), tell)
    assert seen == [(0, 4), (1, 4), (2, 4)]


def test_how_far_it_looks() -> None:
    network = random()
    assert (network.reach, network.classes) == (7, 4)
    image = torch.zeros(1, 1, 31, 31, 31)
    other = image.clone()
    other[0, 0, 15, 15, 15] = 5
    with torch.inference_mode():
        changed = (network(image) - network(other)).abs().sum(1)[0].nonzero()
    assert changed.min(0).values.tolist() == [8, 8, 8]
    assert changed.max(0).values.tolist() == [22, 22, 22]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (layers(kernel_size=2), "layer 3 changes the size"),
        (layers(padding=1), "layer 3 changes the size"),
        (layers(stride=2), "layer 3 changes the size"),
        (layers(in_channels=5), "layer 3 does not take"),
        (layers()[:1], "two layers or more"),
    ],
)
def test_tables_that_are_no_meshnet(table: list[dict[str, int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MeshNet(table)


def test_it_is_named_in_descriptions() -> None:
    assert problems("meshnet", {"layers": layers(), "activation": "elu"}) == []
    assert isinstance(build("meshnet", layers=layers()), MeshNet)
    with pytest.raises(ValueError, match="no activation 'tanh'"):
        build("meshnet", layers=layers(), activation="tanh")

"""Networks as programs: what is joined only where the kernel that joins it is used."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from napari_medai.engine import faster as module
from napari_medai.engine.faster import faster


class Joined(nn.Module):
    """Two images as one through a convolution, whose output is then looked at in parts, turned, or written into."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        kernel = 2 if how == "even" else 3
        self.first, self.last = nn.Conv2d(1, 4, 3, padding="same"), nn.Conv2d(8, 4, kernel, padding="same")

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        one = self.first(image)
        out = self.last(torch.cat([one, one.sigmoid()], 1))
        if self.how == "chunks":
            left, right = out.chunk(2, 1)
            return left * right
        if self.how == "view":
            flat = out.flatten(2)
            return (flat.softmax(-1) + flat).reshape(out.shape)
        if self.how == "part":
            out[:, :2].relu_()
        return out


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("how", ["chunks", "view", "part", "even", "plain"])
def test_joined_images_reach_a_convolution_that_no_kernel_of_ours_runs(how, monkeypatch):
    monkeypatch.setattr(module, "LOOKED_AT", (*module.LOOKED_AT, __name__.partition(".")[0]))
    torch.manual_seed(1)
    network = Joined(how).eval().requires_grad_(False)
    image = torch.randn(1, 1, 12, 10)
    fast = faster(network, torch.device("cpu"), print)
    assert fast.recorded(image)
    torch.testing.assert_close(fast(image), network(image), rtol=1e-5, atol=1e-5)

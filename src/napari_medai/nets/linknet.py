"""LinkNet in three dimensions: the architecture of deepbet's networks, as a module that can be opened."""

from __future__ import annotations

import torch
from torch import nn


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    convolution = nn.Conv3d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return [convolution, nn.InstanceNorm3d(outputs)]


class _Block(nn.Module):
    """Two convolutions and a shortcut (He et al., CVPR 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.double_conv = nn.Sequential(*_conv(inputs, outputs, 3, stride), nn.ReLU(), *_conv(outputs, outputs, 3))
        self.downsample = nn.Sequential(*_conv(inputs, outputs, 1, stride)) if inputs != outputs else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.double_conv(x) + self.downsample(x))


class _Down(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.block1 = _Block(inputs, outputs, stride)
        self.block2 = _Block(outputs, outputs, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.block2(self.block1(x))
        return out


class _Up(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        inner = inputs // 4
        larger = nn.ConvTranspose3d(inner, inner, 3, stride, padding=1, output_padding=stride - 1, bias=False)
        self.conv1 = nn.Sequential(*_conv(inputs, inner, 1), nn.ReLU())
        self.tp_conv = nn.Sequential(larger, nn.InstanceNorm3d(inner), nn.ReLU())
        self.conv2 = nn.Sequential(*_conv(inner, outputs, 1), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.conv2(self.tp_conv(self.conv1(x)))
        return out


class LinkNet3d(nn.Module):
    """LinkNet (Chaurasia and Culurciello, VCIP 2017) with residual blocks and instance normalisation.

    Parameters
    ----------
    width : int, default 16
        Channels of the first level; each of the three below has twice as many.
    classes : int, default 2
        Channels of the output.

    Notes
    -----
    Input (B, 1, x, y, z), each a multiple of 32; output (B, classes, x, y, z), a softmax over the classes.
    Instance normalisation spans the whole input: tiles would change the result. The names of the parts are
    those of deepbet's archives, so that their parameters load by name.
    """

    cam_layer = "up2"

    def __init__(self, width: int = 16, classes: int = 2) -> None:
        super().__init__()
        one, two, four, eight = width, 2 * width, 4 * width, 8 * width
        first = nn.Conv3d(1, one, 7, 2, padding=3, bias=False)
        self.init = nn.Sequential(first, nn.InstanceNorm3d(one), nn.ReLU(), nn.MaxPool3d(3, 2, padding=1))
        self.down0 = _Down(one, one, 1)
        self.down1 = _Down(one, two, 2)
        self.down2 = _Down(two, four, 2)
        self.down3 = _Down(four, eight, 2)
        self.up0 = _Up(eight, four, 2)
        self.up1 = _Up(four, two, 2)
        self.up2 = _Up(two, one, 2)
        self.up3 = _Up(one, one, 1)
        half = one // 2
        larger = nn.ConvTranspose3d(one, half, 3, 2, padding=1, output_padding=1)
        self.tp_conv1 = nn.Sequential(larger, nn.InstanceNorm3d(half), nn.ReLU())
        self.conv = nn.Sequential(nn.Conv3d(half, half, 3, padding=1), nn.InstanceNorm3d(half), nn.ReLU())
        self.tp_conv2 = nn.ConvTranspose3d(half, classes, 2, 2)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Output before the softmax."""
        start = self.init(x)
        first = self.down0(start)
        second = self.down1(first)
        third = self.down2(second)
        back = self.up0(self.down3(third)) + third
        back = self.up1(back) + second
        back = self.up2(back) + first
        back = self.up3(back) + start
        out: torch.Tensor = self.tp_conv2(self.conv(self.tp_conv1(back)))
        return out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the network."""
        return self.logits(x).softmax(dim=1)

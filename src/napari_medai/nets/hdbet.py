"""The network of HD-BET: a 3-D U-Net with residual blocks of instance normalisation before activation.

Isensee, Schell, Pflueger et al.: Automated brain extraction of multisequence MRI using artificial neural networks,
Human Brain Mapping 40, 2019. The names of its parts are those of the published weights. Normalisation is by the
image at hand; the running statistics in the weights were never used.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

FEATURES = 21
# Blocks of the encoder and decoder use the usual slope, the end of the network a steeper one
SLOPE, LAST_SLOPE = 1e-2, 1e-1


class HDBetUNet(nn.Module):
    """(B, 1, z, y, x) -> probabilities (B, 2, z, y, x) of background and brain; sizes are multiples of 16."""

    cam_layer = "end_conv_2_bn"

    def __init__(self) -> None:
        super().__init__()
        n = FEATURES
        self.init_conv = _conv(1, n)
        for level in range(1, 5):
            self.add_module(f"context{level}", _Residual(n << (level - 1)))
        self.context5 = _Residual(16 * n)
        for level in range(1, 5):
            self.add_module(f"down{level}", _Down(n << (level - 1)))
        self.bn_after_context5 = _norm(16 * n)
        for level in range(1, 5):
            self.add_module(f"up{level}", _Up(n << (5 - level)))
        for level in range(1, 4):
            self.add_module(f"loc{level}", _Localise(n << (5 - level)))
        # heads of deep supervision are among the weights; they are not run
        self.loc2_seg = nn.Conv3d(4 * n, 2, 1, bias=False)
        self.loc3_seg = nn.Conv3d(2 * n, 2, 1, bias=False)
        self.end_conv_1, self.end_conv_1_bn = _conv(2 * n, 2 * n), _norm(2 * n)
        self.end_conv_2, self.end_conv_2_bn = _conv(2 * n, 2 * n), _norm(2 * n)
        self.seg_layer = nn.Conv3d(2 * n, 2, 1, bias=False)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Apply the network."""
        return self.logits(image).softmax(1)

    def logits(self, image: torch.Tensor) -> torch.Tensor:
        """Before the softmax."""
        x = self.init_conv(image)
        skips = []
        for level in range(1, 5):
            skip, x = getattr(self, f"down{level}")(getattr(self, f"context{level}")(x))
            skips.append(skip)
        x = functional.leaky_relu(self.bn_after_context5(self.context5(x)), LAST_SLOPE)
        for level in range(1, 5):
            x = torch.cat([skips.pop(), getattr(self, f"up{level}")(x)], dim=1)
            if level < 4:
                x = getattr(self, f"loc{level}")(x)
        x = functional.leaky_relu(self.end_conv_1_bn(self.end_conv_1(x)), LAST_SLOPE)
        x = functional.leaky_relu(self.end_conv_2_bn(self.end_conv_2(x)), LAST_SLOPE)
        logits: torch.Tensor = self.seg_layer(x)
        return logits


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn_1, self.conv1 = _norm(channels), _conv(channels, channels)
        self.bn_2, self.conv2 = _norm(channels), _conv(channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv1(functional.leaky_relu(self.bn_1(x), SLOPE))
        out: torch.Tensor = x + self.conv2(functional.leaky_relu(self.bn_2(y), SLOPE))
        return out


class _Down(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn, self.downsample = _norm(channels), _conv(channels, 2 * channels, stride=2)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = functional.leaky_relu(self.bn(x), SLOPE)
        return x, self.downsample(x)


class _Up(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.upsample_conv, self.bn = _conv(channels, channels // 2), _norm(channels // 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.interpolate(x, scale_factor=2, mode="trilinear", align_corners=True)
        return functional.leaky_relu(self.bn(self.upsample_conv(x)), SLOPE)


class _Localise(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.bn_1 = _conv(channels, channels), _norm(channels)
        self.conv2, self.bn_2 = nn.Conv3d(channels, channels // 2, 1), _norm(channels // 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.leaky_relu(self.bn_1(self.conv1(x)), SLOPE)
        return functional.leaky_relu(self.bn_2(self.conv2(x)), SLOPE)


def _conv(given: int, made: int, stride: int = 1) -> nn.Conv3d:
    return nn.Conv3d(given, made, 3, stride, 1)


def _norm(channels: int) -> nn.InstanceNorm3d:
    return nn.InstanceNorm3d(channels, affine=True)

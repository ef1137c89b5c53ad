"""A small U-Net that learns the noise of one image, in two or three dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional

SLOPE = 0.1
POOLED = 2
"""Edge of the blocks that each level averages."""


class NoiseUNet(nn.Module):
    """U-Net whose output is the input less the noise that it sees; untrained, the input itself.

    Parameters
    ----------
    ndim
        2 or 3.
    channels
        Of the image: colours and channels are cleaned together.
    features
        Channels at full, half, quarter … resolution. Default ``(16, 32, 64)``.

    Notes
    -----
    Input and output ``(batch, channels, *space)``, float32. Sizes must be multiples of `multiple`.
    """

    def __init__(self, ndim: int, channels: int, features: Sequence[int] = (16, 32, 64)) -> None:
        super().__init__()
        self.multiple = POOLED ** (len(features) - 1)
        convolution = nn.Conv2d if ndim == 2 else nn.Conv3d
        self.pool = nn.AvgPool2d(POOLED) if ndim == 2 else nn.AvgPool3d(POOLED)

        def block(*widths: int) -> nn.Sequential:
            layers: list[nn.Module] = []
            for given, made in pairwise(widths):
                layers += [convolution(given, made, 3, padding=1), nn.LeakyReLU(SLOPE, inplace=True)]
            return nn.Sequential(*layers)

        self.down = nn.ModuleList()
        given = channels
        for width in features:
            self.down.append(block(given, width, width))
            given = width
        self.up = nn.ModuleList()
        for width, below in zip(reversed(features[:-1]), reversed(features[1:]), strict=True):
            self.up.append(block(width + below, width))
        self.head = convolution(features[0], channels, 1)
        nn.init.zeros_(self.head.weight)
        self.head.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Clean (batch, channels, *space)."""
        x, skips = image, []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else self.pool(x))
            skips.append(x)
        for block, skip in zip(self.up, reversed(skips[:-1]), strict=True):
            x = block(torch.cat((skip, functional.interpolate(x, scale_factor=POOLED, mode="nearest")), dim=1))
        noise: torch.Tensor = self.head(x)
        return image - noise

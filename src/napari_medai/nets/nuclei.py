"""Network of the `nuclei` model: how much each pixel is nucleus, and how deep inside one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.nets import BasicUNet


class SquareRootUNet(torch.nn.Module):
    """A U-Net that sees the image and its square root.

    The square root brings nuclei that are dim beside their neighbours into view, without the caller having
    to prepare a second channel. Batch normalisation, unlike instance normalisation, gives a pixel the same
    value whatever else its tile holds, which tiled inference relies on.

    Parameters
    ----------
    out_channels
        Planes of the output.
    features
        Channels of the five levels from the finest to the coarsest, then of the last, finest, layer.
    """

    # what Grad-CAM reads: at half the resolution features still stand for nuclei; the last ones stand for rims
    cam_layer = "unet.upcat_2"

    def __init__(self, out_channels: int, features: Sequence[int] = (16, 32, 48, 64, 96, 16)) -> None:
        super().__init__()
        self.unet = BasicUNet(
            spatial_dims=2,
            in_channels=2,
            out_channels=out_channels,
            features=tuple(features),
            act=("relu", {"inplace": True}),
            norm=("batch", {}),
            bias=False,
        )

    def raw(self, image: torch.Tensor) -> torch.Tensor:
        """Output before any activation, shape (n, out_channels, y, x), for an image (n, 1, y, x)."""
        seen = torch.cat([image, image.clamp(min=0).sqrt()], dim=1)
        out: torch.Tensor = self.unet(seen)
        return out


class NucleiUNet(SquareRootUNet):
    """Foreground and depth of nuclei (U-Net; Ronneberger, Fischer and Brox, MICCAI 2015).

    Parameters
    ----------
    features
        See `SquareRootUNet`.

    Notes
    -----
    Input: (n, 1, y, x), percentiles 1 and 99.8 of the image at 0 and 1, typical nucleus 24 pixels wide.
    In evaluation mode the output is (n, 2, y, x): the probability of foreground, and the distance to the
    nucleus's rim as a share of the greatest such distance in that nucleus. In training mode both are
    logits.
    """

    def __init__(self, features: Sequence[int] = (16, 32, 48, 64, 96, 16)) -> None:
        super().__init__(2, features)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Apply the network."""
        out = self.raw(image)
        return out if self.training else out.sigmoid()

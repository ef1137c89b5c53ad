"""Network of the `micronuclei` model: a heatmap of centres and the size of the object there."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from napari_medai.nets.nuclei import SquareRootUNet


class MicronucleiCentres(SquareRootUNet):
    """Centres and sizes of micronuclei (CenterNet; Zhou, Wang and Kraehenbuehl, 2019) over a U-Net.

    Parameters
    ----------
    features
        See `SquareRootUNet`.

    Notes
    -----
    Input: (n, 1, y, x), percentiles 1 and 99.8 of the image at 0 and 1, typical nucleus 36 pixels wide.
    In evaluation mode the output is (n, 3, y, x): probability that a micronucleus is centred here, its
    height and its width in pixels. In training mode it is (n, 5, y, x): the logit of the centre, the
    logarithms of height and width, and two logits that only help to learn: micronucleus and nucleus.
    """

    def __init__(self, features: Sequence[int] = (16, 32, 48, 64, 96, 16)) -> None:
        super().__init__(5, features)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Apply the network."""
        out = self.raw(image)
        if self.training:
            return out
        return torch.cat([out[:, :1].sigmoid(), out[:, 1:3].clamp(0.0, 6.0).exp()], dim=1)

"""The network behind the built-in classifier ``quality``.

A convolutional network looks at each slice, a bidirectional gated recurrent unit (Cho et al., EMNLP 2014) reads
the slices in order, and gated attention (Ilse et al., ICML 2018) weighs them into one description of the series.
An image is a series of one slice.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from monai.networks.blocks import Convolution
from torch import nn

from napari_medai.nets.quality_cues import LAG_CUES, SURFACE_CUES, LagReader, repeats, shading


class QualityOutput(NamedTuple):
    """What `QualityNet` returns.

    Attributes
    ----------
    logits : torch.Tensor (batch, 1 + defect)
        Per series; ``sigmoid`` gives probabilities. The first is "none", 1 - the largest of the others.
    slice_logits : torch.Tensor (batch, slice, 1 + defect)
        Per slice, by the same linear layer.
    attention : torch.Tensor (batch, slice)
        Share of each slice in the series' verdict; sums to 1 over the slices.
    """

    logits: torch.Tensor
    slice_logits: torch.Tensor
    attention: torch.Tensor


class _Residual(nn.Module):
    """Two 3 x 3 convolutions with a shortcut (He et al., CVPR 2016)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _convolution(channels, channels)
        self.second = Convolution(2, channels, channels, act=None, norm="batch", bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.second(self.first(x)))


def _convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Module:
    block: nn.Module = Convolution(
        2, inputs, outputs, strides=stride, act="relu", norm="batch", bias=False, adn_ordering="NA"
    )
    return block


class QualityNet(nn.Module):
    """Convolutions per slice, a recurrent layer over slices, attention pooling.

    What a slice's convolutions say is joined by measurements of repetition and shading
    (`napari_medai.nets.quality_cues`), which do not pass through ``last_conv``: for motion, ghosting and bias field,
    occlusion shows more of what counted than Grad-CAM does.

    Parameters
    ----------
    defects : int, default 6
        Noise, blur, motion, ghosting, bias field, clipping; the output has "none" before them.
    channels : int, default 6
        Maps per slice, as `napari_medai.engine.slices.network_input` makes them.
    width : int, default 12
        Channels after the first convolution; later ones have 1.5, 3 and 4 times as many.
    hidden : int, default 64
        Units of the recurrent layer per direction.
    dropout : float, default 0.2
        On the description of a slice, while training.

    Attributes
    ----------
    last_conv : torch.nn.Module
        The last convolution; its output (batch x slice, channel, rows / 8, columns / 8) is what Grad-CAM reads.
        Its name for hooks is `cam_layer`.
    logit_scale, logit_shift : torch.Tensor (defect,)
        Calibration fitted on validation images: ``scale * raw + shift``, so that 0 is the decision threshold.
    """

    cam_layer = "last_conv"

    def __init__(
        self, defects: int = 6, channels: int = 6, width: int = 12, hidden: int = 64, dropout: float = 0.2
    ) -> None:
        super().__init__()
        second, third, last = width * 3 // 2, width * 3, width * 4
        self.encoder = nn.Sequential(
            _convolution(channels, width, stride=2),
            _convolution(width, second, stride=2),
            _Residual(second),
            _convolution(second, third, stride=2),
            _Residual(third),
        )
        self.last_conv = _convolution(third, last)
        self.layout = nn.Sequential(nn.Conv2d(last, 16, 1), nn.AdaptiveAvgPool2d(4), nn.Flatten())
        self.lags = LagReader(LAG_CUES)
        self.surfaces = nn.BatchNorm1d(SURFACE_CUES)
        described = 3 * last + 16 * 4 * 4 + LAG_CUES + SURFACE_CUES
        self.describe = nn.Sequential(nn.Linear(described, 2 * hidden), nn.ReLU(), nn.Dropout(dropout))
        self.recurrent = nn.GRU(2 * hidden, hidden, batch_first=True, bidirectional=True)
        self.attend = nn.Linear(4 * hidden, 64)
        self.gate = nn.Linear(4 * hidden, 64)
        self.weigh = nn.Linear(64, 1)
        self.classify = nn.Linear(4 * hidden, defects)
        self.logit_scale: torch.Tensor
        self.logit_shift: torch.Tensor
        self.register_buffer("logit_scale", torch.ones(defects))
        self.register_buffer("logit_shift", torch.zeros(defects))

    def forward(self, series: torch.Tensor) -> QualityOutput:
        """Judge series of slices.

        Parameters
        ----------
        series : torch.Tensor float32 (batch, slice, channel, rows, columns)
            Rows and columns divisible by 8.

        Returns
        -------
        QualityOutput
        """
        batch, slices = series.shape[:2]
        slices_in = series.flatten(0, 1)
        maps = self.last_conv(self.encoder(slices_in))
        # Mean, spread and peak: a defect may fill the slice or sit in one corner of it. The layout in 4 x 4 parts
        # shows what changes slowly across the slice.
        spread, mean = torch.var_mean(maps, dim=(2, 3), correction=0)
        cues = [self.lags(repeats(slices_in[:, 1])), self.surfaces(shading(slices_in))]
        peak = maps.amax(dim=(2, 3))
        pooled = torch.cat([mean, torch.sqrt(spread + 1e-5), peak, self.layout(maps), *cues], dim=1)
        own = self.describe(pooled).unflatten(0, (batch, slices))
        context, _ = self.recurrent(own)
        described = torch.cat([own, context], dim=2)
        scores = self.weigh(torch.tanh(self.attend(described)) * torch.sigmoid(self.gate(described)))
        attention = torch.softmax(scores[..., 0], dim=1)
        whole = (attention[..., None] * described).sum(dim=1)
        return QualityOutput(self._logits(self.classify(whole)), self._logits(self.classify(described)), attention)

    def _logits(self, raw: torch.Tensor) -> torch.Tensor:
        """Calibrated logits with that of "none" in front: sigmoid(-max) is 1 - the largest probability."""
        defects = raw * self.logit_scale + self.logit_shift
        return torch.cat([-defects.amax(dim=-1, keepdim=True), defects], dim=-1)

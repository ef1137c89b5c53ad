"""The two networks of nnU-Net: a plain U-Net, and one with a residual encoder.

Parameters carry the names under which nnU-Net (through its package dynamic_network_architectures) stores them, so that
its checkpoints load strictly. That is why some stand twice: each block holds its layers by name and in a row
(`all_modules`), and the decoder holds the encoder. At inference only the last of `seg_layers` is used; the others gave
the deep supervision of the training.

Isensee et al., nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation, Nature
Methods 18, 2021. Isensee et al., nnU-Net Revisited, MICCAI 2024, for the residual encoder, whose blocks are those
of He et al., Bag of Tricks for Image Classification, CVPR 2019 (ResNet-D).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

# What may stand between convolutions, by name; nothing else is ever made
LAYERS: Mapping[str, type[nn.Module]] = {
    layer.__name__: layer
    for layer in (
        nn.InstanceNorm2d, nn.InstanceNorm3d, nn.BatchNorm2d, nn.BatchNorm3d,
        nn.Dropout, nn.Dropout2d, nn.Dropout3d,
        nn.LeakyReLU, nn.ReLU, nn.ELU, nn.GELU, nn.SiLU,
    )
}  # fmt: skip
_Layers = Mapping[int, Callable[..., nn.Module]]
_CONVOLUTION: _Layers = {2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED: _Layers = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_AVERAGE: _Layers = {2: nn.AvgPool2d, 3: nn.AvgPool3d}


@dataclass(frozen=True)
class Recipe:
    """What all blocks of a network share.

    Attributes
    ----------
    bias : bool
        Whether convolutions have one.
    norm, dropout, nonlin : str
        Names in `LAYERS`; empty for none.
    norm_kwargs, dropout_kwargs, nonlin_kwargs : mapping
        Their keywords.
    nonlin_first : bool
        The non-linearity stands before the normalisation.
    """

    bias: bool = False
    norm: str = ""
    norm_kwargs: Mapping[str, Any] = field(default_factory=dict)
    dropout: str = ""
    dropout_kwargs: Mapping[str, Any] = field(default_factory=dict)
    nonlin: str = ""
    nonlin_kwargs: Mapping[str, Any] = field(default_factory=dict)
    nonlin_first: bool = False


class ConvBlock(nn.Module):
    """Convolution, dropout, normalisation, non-linearity; the last three where the recipe has them.

    Parameters
    ----------
    incoming, outgoing : int
        Channels.
    kernel, stride : sequence of int
        Along the axes; the padding keeps the size but for the stride.
    recipe : Recipe
        What stands in it.
    dropout, nonlin : bool
        Whether these are taken from the recipe. Default True.
    bias : bool, optional
        Default: the recipe's.
    """

    def __init__(
        self,
        incoming: int,
        outgoing: int,
        kernel: Sequence[int],
        stride: Sequence[int],
        recipe: Recipe,
        *,
        dropout: bool = True,
        nonlin: bool = True,
        bias: bool | None = None,
    ) -> None:
        super().__init__()
        self.conv = _CONVOLUTION[len(kernel)](
            incoming,
            outgoing,
            tuple(kernel),
            tuple(stride),
            padding=tuple((n - 1) // 2 for n in kernel),
            bias=recipe.bias if bias is None else bias,
        )
        layers: list[nn.Module] = [self.conv]
        if dropout and recipe.dropout:
            self.dropout = LAYERS[recipe.dropout](**recipe.dropout_kwargs)
            layers.append(self.dropout)
        if recipe.norm:
            self.norm = LAYERS[recipe.norm](outgoing, **recipe.norm_kwargs)
            layers.append(self.norm)
        if nonlin and recipe.nonlin:
            self.nonlin = LAYERS[recipe.nonlin](**recipe.nonlin_kwargs)
            layers.append(self.nonlin)
            if recipe.nonlin_first and recipe.norm:
                layers[-1], layers[-2] = layers[-2], layers[-1]
        self.all_modules = nn.Sequential(*layers)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, C, \\*spatial) -> (B, K, \\*spatial / stride)."""
        out: torch.Tensor = self.all_modules(image)
        return out


class ConvStack(nn.Module):
    """Several `ConvBlock` in a row, of which the first has the stride."""

    def __init__(
        self, count: int, incoming: int, outgoing: int, kernel: Sequence[int], stride: Sequence[int], recipe: Recipe
    ) -> None:
        super().__init__()
        one = (1,) * len(kernel)
        self.convs = nn.Sequential(
            *(
                ConvBlock(outgoing if n else incoming, outgoing, kernel, one if n else stride, recipe)
                for n in range(count)
            )
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, C, \\*spatial) -> (B, K, \\*spatial / stride)."""
        out: torch.Tensor = self.convs(image)
        return out


def _shortcut(incoming: int, outgoing: int, stride: Sequence[int], recipe: Recipe) -> nn.Module:
    """What carries a block's input to its output: averaged where there is a stride, projected where channels change."""
    one, layers = (1,) * len(stride), list[nn.Module]()
    if any(n != 1 for n in stride):
        layers.append(_AVERAGE[len(stride)](tuple(stride), tuple(stride)))
    if incoming != outgoing:
        layers.append(ConvBlock(incoming, outgoing, one, one, recipe, dropout=False, nonlin=False, bias=False))
    return nn.Sequential(*layers) if layers else nn.Identity()


def _activation(recipe: Recipe) -> nn.Module:
    return LAYERS[recipe.nonlin](**recipe.nonlin_kwargs) if recipe.nonlin else nn.Identity()


class BasicBlock(nn.Module):
    """Two convolutions around which the input is carried."""

    def __init__(
        self, incoming: int, outgoing: int, kernel: Sequence[int], stride: Sequence[int], recipe: Recipe
    ) -> None:
        super().__init__()
        one = (1,) * len(kernel)
        self.conv1 = ConvBlock(incoming, outgoing, kernel, stride, recipe)
        self.conv2 = ConvBlock(outgoing, outgoing, kernel, one, recipe, dropout=False, nonlin=False)
        self.nonlin2 = _activation(recipe)
        self.skip = _shortcut(incoming, outgoing, stride, recipe)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, C, \\*spatial) -> (B, K, \\*spatial / stride)."""
        kept = self.skip(image)
        out: torch.Tensor = self.nonlin2(self.conv2(self.conv1(image)) + kept)
        return out


class BottleneckBlock(nn.Module):
    """Three convolutions, the middle one on fewer channels, around which the input is carried."""

    def __init__(
        self, incoming: int, narrow: int, outgoing: int, kernel: Sequence[int], stride: Sequence[int], recipe: Recipe
    ) -> None:
        super().__init__()
        one = (1,) * len(kernel)
        self.conv1 = ConvBlock(incoming, narrow, one, one, recipe, dropout=False)
        self.conv2 = ConvBlock(narrow, narrow, kernel, stride, recipe)
        self.conv3 = ConvBlock(narrow, outgoing, one, one, recipe, dropout=False, nonlin=False)
        self.nonlin3 = _activation(recipe)
        self.skip = _shortcut(incoming, outgoing, stride, recipe)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, C, \\*spatial) -> (B, K, \\*spatial / stride)."""
        kept = self.skip(image)
        out: torch.Tensor = self.nonlin3(self.conv3(self.conv2(self.conv1(image))) + kept)
        return out


class ResidualStack(nn.Module):
    """Several residual blocks in a row, of which the first has the stride; bottlenecks if ``narrow`` is given."""

    def __init__(
        self,
        count: int,
        incoming: int,
        outgoing: int,
        kernel: Sequence[int],
        stride: Sequence[int],
        recipe: Recipe,
        narrow: int,
    ) -> None:
        super().__init__()
        one, blocks = (1,) * len(kernel), list[nn.Module]()
        for n in range(count):
            channels, step = (outgoing, one) if n else (incoming, stride)
            if narrow:
                blocks.append(BottleneckBlock(channels, narrow, outgoing, kernel, step, recipe))
            else:
                blocks.append(BasicBlock(channels, outgoing, kernel, step, recipe))
        self.blocks = nn.Sequential(*blocks)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, C, \\*spatial) -> (B, K, \\*spatial / stride)."""
        out: torch.Tensor = self.blocks(image)
        return out


class Encoder(nn.Module):
    """Stages of falling resolution; gives what each of them saw."""

    def __init__(self, stages: Sequence[nn.Module], stem: nn.Module | None = None) -> None:
        super().__init__()
        if stem is not None:
            self.stem = stem
        self.has_stem = stem is not None
        self.stages = nn.Sequential(*stages)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """(B, C, \\*spatial) -> one tensor for each stage, finest first."""
        seen, out = [], self.stem(image) if self.has_stem else image
        for stage in self.stages:
            out = stage(out)
            seen.append(out)
        return seen


class Decoder(nn.Module):
    """Back to full resolution: transposed convolution, what the encoder saw there, convolutions; then the logits."""

    def __init__(
        self,
        encoder: Encoder,
        features: Sequence[int],
        kernels: Sequence[Sequence[int]],
        strides: Sequence[Sequence[int]],
        counts: Sequence[int],
        classes: int,
        recipe: Recipe,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        ndim = len(kernels[0])
        stages, up, heads = list[nn.Module](), list[nn.Module](), list[nn.Module]()
        for count, n in zip(counts, range(len(features) - 1, 0, -1), strict=True):
            below, here, stride = features[n], features[n - 1], tuple(strides[n])
            up.append(_TRANSPOSED[ndim](below, here, stride, stride, bias=recipe.bias))
            stages.append(ConvStack(count, 2 * here, here, kernels[n - 1], (1,) * ndim, recipe))
            heads.append(_CONVOLUTION[ndim](here, classes, 1, bias=True))
        self.stages = nn.ModuleList(stages)
        self.transpconvs = nn.ModuleList(up)
        self.seg_layers = nn.ModuleList(heads)

    def forward(self, seen: list[torch.Tensor]) -> torch.Tensor:
        """What the encoder saw -> (B, classes, \\*spatial) logits."""
        out = seen[-1]
        for skip, up, stage in zip(reversed(seen[:-1]), self.transpconvs, self.stages, strict=True):
            out = stage(torch.cat((up(out), skip), 1))
        logits: torch.Tensor = self.seg_layers[-1](out)
        return logits


class PlainConvUNet(nn.Module):
    """nnU-Net's default network.

    Parameters
    ----------
    input_channels, num_classes : int
        Channels in and out.
    features_per_stage : sequence of int
        Channels of each stage, finest first.
    kernel_sizes, strides : sequence of sequence of int
        Of each stage, along 2 or 3 axes.
    n_conv_per_stage, n_conv_per_stage_decoder : sequence of int
        Convolutions of each stage; the decoder's begin at the coarsest and are one fewer.
    **recipe
        See `Recipe`.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        features_per_stage: Sequence[int],
        kernel_sizes: Sequence[Sequence[int]],
        strides: Sequence[Sequence[int]],
        n_conv_per_stage: Sequence[int],
        n_conv_per_stage_decoder: Sequence[int],
        **recipe: Any,
    ) -> None:
        super().__init__()
        shared, channels, stages = Recipe(**recipe), input_channels, list[nn.Module]()
        for count, features, kernel, stride in zip(
            n_conv_per_stage, features_per_stage, kernel_sizes, strides, strict=True
        ):
            stages.append(nn.Sequential(ConvStack(count, channels, features, kernel, stride, shared)))
            channels = features
        self.encoder = Encoder(stages)
        self.decoder = Decoder(
            self.encoder, features_per_stage, kernel_sizes, strides, n_conv_per_stage_decoder, num_classes, shared
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, C, \\*spatial) -> (B, classes, \\*spatial) logits."""
        logits: torch.Tensor = self.decoder(self.encoder(image))
        return logits


class ResidualEncoderUNet(nn.Module):
    """nnU-Net's network with a residual encoder.

    Parameters
    ----------
    n_blocks_per_stage : sequence of int
        Residual blocks of each stage.
    bottleneck_channels : sequence of int, optional
        Channels inside the blocks of each stage, which then are bottlenecks. Default: basic blocks.
    stem_channels : int
        Of the convolution before the first stage. Default 0: as many as the first stage has.
    others
        As `PlainConvUNet`.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        features_per_stage: Sequence[int],
        kernel_sizes: Sequence[Sequence[int]],
        strides: Sequence[Sequence[int]],
        n_blocks_per_stage: Sequence[int],
        n_conv_per_stage_decoder: Sequence[int],
        bottleneck_channels: Sequence[int] = (),
        stem_channels: int = 0,
        **recipe: Any,
    ) -> None:
        super().__init__()
        shared, stages = Recipe(**recipe), list[nn.Module]()
        channels = stem_channels or features_per_stage[0]
        stem = ConvStack(1, input_channels, channels, kernel_sizes[0], (1,) * len(kernel_sizes[0]), shared)
        narrow = list(bottleneck_channels) or [0] * len(features_per_stage)
        for count, features, kernel, stride, inner in zip(
            n_blocks_per_stage, features_per_stage, kernel_sizes, strides, narrow, strict=True
        ):
            stages.append(ResidualStack(count, channels, features, kernel, stride, shared, inner))
            channels = features
        self.encoder = Encoder(stages, stem)
        self.decoder = Decoder(
            self.encoder, features_per_stage, kernel_sizes, strides, n_conv_per_stage_decoder, num_classes, shared
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, C, \\*spatial) -> (B, classes, \\*spatial) logits."""
        logits: torch.Tensor = self.decoder(self.encoder(image))
        return logits

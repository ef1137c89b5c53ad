"""Features of a residual network at several scales, as MONAI's RetinaNet takes them.

MONAI makes them with a part of torchvision, which has no build for every torch. The same is built here of MONAI's own
blocks, with the same names of parameters, so that its weights fit.

Lin T-Y, Dollár P, Girshick R, et al. Feature Pyramid Networks for Object Detection. CVPR 2017.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from monai.networks.blocks.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool
from torch import nn

# Channels of every level of the pyramid, as in the paper
OUT_CHANNELS = 256


class Stages(nn.ModuleDict):
    """The first children of a residual network, in their order, of which some give their output.

    Parameters
    ----------
    backbone : Module
        With children ``layer1`` to ``layer4``.
    wanted : sequence of int
        Numbers of the layers that give their output.
    """

    def __init__(self, backbone: nn.Module, wanted: Sequence[int]) -> None:
        children = OrderedDict(backbone.named_children())
        last = list(children).index(f"layer{max(wanted)}")
        super().__init__(OrderedDict(list(children.items())[: last + 1]))
        self.wanted = {f"layer{number}": str(n) for n, number in enumerate(wanted)}

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """(B, C, …) -> the outputs, named ``"0"``, ``"1"``, …"""
        outputs: dict[str, torch.Tensor] = OrderedDict()
        for name, child in self.items():
            x = child(x)
            if name in self.wanted:
                outputs[self.wanted[name]] = x
        return outputs


class Pyramid(nn.Module):
    """Stages of a residual network, and the pyramid on them."""

    def __init__(self, backbone: nn.Module, spatial_dims: int, returned_layers: Sequence[int]) -> None:
        super().__init__()
        self.body = Stages(backbone, returned_layers)
        width = int(backbone.in_planes) // 8  # type: ignore[arg-type]
        self.fpn = FeaturePyramidNetwork(
            spatial_dims=spatial_dims,
            in_channels_list=[width * 2 ** (layer - 1) for layer in returned_layers],
            out_channels=OUT_CHANNELS,
            extra_blocks=LastLevelMaxPool(spatial_dims),
        )
        self.out_channels = OUT_CHANNELS

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """(B, C, …) -> maps of features, the finest first."""
        maps: dict[str, torch.Tensor] = self.fpn(self.body(x))
        return maps


def resnet_fpn_feature_extractor(
    backbone: nn.Module,
    spatial_dims: int,
    pretrained_backbone: bool | None = False,
    returned_layers: Sequence[int] = (1, 2, 3),
    trainable_backbone_layers: int | None = None,
) -> nn.Module:
    """Features of a residual network at several scales; arguments as MONAI's function of this name.

    Parameters
    ----------
    backbone : Module
        A residual network of MONAI.
    spatial_dims : int
        2 or 3.
    pretrained_backbone, trainable_backbone_layers
        Of no account: nothing is loaded, and nothing is trained.
    returned_layers : sequence of int
        Out of 1 to 4, ascending.

    Raises
    ------
    ValueError
        A layer is none of 1 to 4.
    """
    if not returned_layers or min(returned_layers) < 1 or max(returned_layers) > 4:
        raise ValueError(f"layers {list(returned_layers)} were asked for; there are 1 to 4")
    return Pyramid(backbone, spatial_dims, returned_layers)

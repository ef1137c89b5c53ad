"""MeshNet: dilated convolutions without pooling, as small as 5 features, on a whole head at once.

Fedorov, Johnson, Damaraju et al.: End-to-end learning of brain tissue segmentation from imperfect labeling, IJCNN
2017. A network is told by its table of layers. Outside of training a volume goes through it in slabs along its first
axis, in the place of its own features: memory is one set of features and a slab, whatever the number of layers, and
nothing is computed twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "elu": nn.ELU, "gelu": nn.GELU}

# Voxels of one slab with its features: a hundred megabytes of float32
SLAB_NUMBERS = 2**25


class MeshNet(nn.Module):
    """Dilated convolutions one after the other.

    Parameters
    ----------
    layers : sequence of mappings
        Of each convolution ``in_channels``, ``out_channels``, ``kernel_size`` (odd), ``dilation``; ``bias`` (default
        true) and ``padding`` (which must keep the size). The last one gives the classes and has no activation.
    activation : {"relu", "elu", "gelu"}
        Default ``"relu"``.
    normalise : {"", "batch", "instance"}
        Between convolution and activation: ``"batch"`` with running statistics, ``"instance"`` without parameters
        (each channel of the image for itself). Default none.

    Raises
    ------
    ValueError
        A layer does not fit the one before, or changes the size.
    """

    cam_layer = "features"

    def __init__(self, layers: Sequence[Mapping[str, Any]], activation: str = "relu", normalise: str = "") -> None:
        super().__init__()
        if activation not in ACTIVATIONS or normalise not in ("", "batch", "instance"):
            raise ValueError(f"no activation {activation!r} or normalisation {normalise!r}")
        blocks = []
        for number, layer in enumerate(layers):
            size, dilation = int(layer["kernel_size"]), int(layer["dilation"])
            padding = dilation * (size - 1) // 2
            if size % 2 == 0 or int(layer.get("stride", 1)) != 1 or int(layer.get("padding", padding)) != padding:
                raise ValueError(f"layer {number} changes the size of the image")
            if number and int(layer["in_channels"]) != int(layers[number - 1]["out_channels"]):
                raise ValueError(f"layer {number} does not take what the layer before gives")
            blocks.append(
                nn.Conv3d(
                    int(layer["in_channels"]),
                    int(layer["out_channels"]),
                    size,
                    padding=padding,
                    dilation=dilation,
                    bias=bool(layer.get("bias", True)),
                )
            )
        if len(blocks) < 2:
            raise ValueError("two layers or more are needed")
        self.convolutions = nn.ModuleList(blocks)
        widths = [block.out_channels for block in blocks[:-1]]
        self.norms = nn.ModuleList([nn.BatchNorm3d(n) for n in widths] if normalise == "batch" else [])
        self.instance = normalise == "instance"
        self.activation = ACTIVATIONS[activation]()

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self._blocks[-1].out_channels

    @property
    def reach(self) -> int:
        """Voxels on either side that an output depends on (with ``normalise="instance"`` it is the whole image)."""
        return sum(map(_reach, self._blocks))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Class scores (B, K, z, y, x) of an image (B, 1, z, y, x)."""
        return self.last(self.features(image))

    def labels(self, image: torch.Tensor, tell: Callable[[int, int], None] = lambda done, total: None) -> torch.Tensor:
        """The class of each voxel, (B, 1, z, y, x), slab by slab, so that the scores of many classes need no memory.

        Parameters
        ----------
        image : (B, 1, z, y, x) tensor
        tell : callable
            Told before each slab how many of how many layers are done; may raise to stop.
        """
        features = self.features(image, tell)
        last = self._blocks[-1]
        out = torch.empty((len(features), 1, *features.shape[2:]), dtype=image.dtype, device=image.device)
        reach = _reach(last)
        step = self._step(features, last.out_channels)
        for first in range(0, features.shape[2], step):
            tell(len(self._blocks) - 1, len(self._blocks))
            part = _slab(features, first, step, reach)
            out[:, 0, first : first + step] = _convolved(last, part).argmax(1)
        return out

    def last(self, features: torch.Tensor) -> torch.Tensor:
        """Class scores of the features."""
        scores: torch.Tensor = self._blocks[-1](features)
        return scores

    def features(
        self, image: torch.Tensor, tell: Callable[[int, int], None] = lambda done, total: None
    ) -> torch.Tensor:
        """What the last convolution looks at, (B, C, z, y, x)."""
        if torch.is_grad_enabled() and (self.training or image.requires_grad):
            for number, block in enumerate(self._blocks[:-1]):
                image = self._finished(number, block(image))
            return image
        for number, block in enumerate(self._blocks[:-1]):
            image = self._layer(number, block, image, tell)
        return image

    def _layer(
        self, number: int, block: nn.Conv3d, given: torch.Tensor, tell: Callable[[int, int], None]
    ) -> torch.Tensor:
        """One convolution; its output takes the place of its input where they have the same size."""
        reach, size = _reach(block), given.shape[2]
        same = number > 0 and block.in_channels == block.out_channels
        out = given
        if not same:
            shape = (len(given), block.out_channels, *given.shape[2:])
            out = torch.empty(shape, dtype=given.dtype, device=given.device, memory_format=torch.channels_last_3d)
        step = max(self._step(given, block.out_channels), min(reach, size))
        # planes below a slab that the next ones still need are kept before they are written over
        below = given[:, :, :0]
        for first in range(0, size, step):
            tell(number, len(self._blocks))
            stop = min(size, first + step)
            part = torch.cat([below, given[:, :, first : min(size, stop + reach)]], dim=2)
            low, high = reach - below.shape[2], max(0, stop + reach - size)
            part = functional.pad(part, (0, 0, 0, 0, low, high)) if low or high else part
            below = given[:, :, max(0, stop - reach) : stop].clone()
            made = _convolved(block, part)
            out[:, :, first:stop] = made if self.instance else self._finished(number, made)
        return self._finished(number, out) if self.instance else out

    def _finished(self, number: int, values: torch.Tensor) -> torch.Tensor:
        if self.instance:
            values = functional.instance_norm(values)
        elif len(self.norms):
            values = self.norms[number](values)
        found: torch.Tensor = self.activation(values)
        return found

    def _step(self, features: torch.Tensor, channels: int) -> int:
        """Planes of a slab."""
        plane = features.shape[3] * features.shape[4] * max(features.shape[1], channels) * len(features)
        return max(1, SLAB_NUMBERS // plane)

    @property
    def _blocks(self) -> list[nn.Conv3d]:
        return [block for block in self.convolutions if isinstance(block, nn.Conv3d)]


def _slab(array: torch.Tensor, first: int, step: int, reach: int) -> torch.Tensor:
    """Planes ``first`` to before ``first + step`` with ``reach`` more on either side, 0 beyond the ends."""
    size = array.shape[2]
    stop = min(size, first + step)
    part = array[:, :, max(0, first - reach) : min(size, stop + reach)]
    low, high = max(0, reach - first), max(0, stop + reach - size)
    return functional.pad(part, (0, 0, 0, 0, low, high)) if low or high else part


def _reach(block: nn.Conv3d) -> int:
    return block.dilation[0] * (block.kernel_size[0] - 1) // 2


def _convolved(block: nn.Conv3d, part: torch.Tensor) -> torch.Tensor:
    """A convolution that pads along the last two axes alone."""
    reach = _reach(block)
    part = part.contiguous(memory_format=torch.channels_last_3d)  # two to three times as fast on a CPU
    return functional.conv3d(part, block.weight, block.bias, padding=(0, reach, reach), dilation=block.dilation)

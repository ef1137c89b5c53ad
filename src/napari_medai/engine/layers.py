"""What a recorded step is to the kernels: a layer with weights and settings, or an operator that they know."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from napari_medai.engine.recorded import Step, Value
from napari_medai.engine.shapes import aten

# Operators that give the same numbers whatever the order of their arguments in memory, and keep that order
ANY_ORDER = {
    *(aten.cat.default, aten.softmax.int, aten.prelu.default, aten.instance_norm.default),
    *(aten.max_pool2d.default, aten.max_pool3d.default, aten.avg_pool2d.default, aten.avg_pool3d.default),
    *(aten.adaptive_avg_pool2d.default, aten.adaptive_avg_pool3d.default, aten.batch_norm.default),
    *(aten.upsample_nearest2d.vec, aten.upsample_nearest3d.vec, aten.upsample_bilinear2d.vec),
    *(aten.upsample_trilinear3d.vec, aten.group_norm.default, aten.clamp.default, aten.exp.default, aten.pad.default),
    *(aten.conv2d.default, aten.conv3d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input),
}
CONVOLUTIONS = {aten.conv2d.default, aten.conv3d.default, aten.conv2d.padding, aten.conv3d.padding}
TRANSPOSED = {aten.conv_transpose2d.input, aten.conv_transpose3d.input}
# Channels of all phases of a doubled image up to which they are computed as channels; measured at 16, 32 and 128
DOUBLED = 32


@dataclass(frozen=True, eq=False)
class Layer:
    """A convolution, of which all is known but the image.

    Attributes
    ----------
    source : Value
        What is convolved.
    weight, bias : tensor
        As torch's convolution takes them.
    stride, padding, dilation, more : list of int
        Along the axes; ``more`` is the padding of a transposed convolution's output.
    groups : int
    transposed : bool
    """

    source: Value
    weight: torch.Tensor
    bias: torch.Tensor | None
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    more: list[int]
    groups: int
    transposed: bool

    @property
    def pointwise(self) -> bool:
        """Whether it looks at one voxel at a time, at each."""
        flat = prod(self.weight.shape[2:]) == 1 and self.groups == 1
        return flat and not self.transposed and set(self.stride) == {1} and not any(self.padding)

    @property
    def doubles(self) -> bool:
        """Whether it is a transposed one that doubles the size for few channels, see `kernels.Doubling`."""
        if not self.transposed or self.weight.shape[1] * 2 ** len(self.stride) > DOUBLED:
            return False
        settings = self.weight.shape[2:], self.stride, self.padding, self.more, self.dilation
        return [set(numbers) for numbers in settings] == [{3}, {2}, {1}, {1}, {1}]


def convolution(step: Step) -> Layer | None:
    """The convolution that a step is; none if it is something else, or one that the kernels do not know."""
    transposed = step.operator in TRANSPOSED
    source = step.flat[0] if step.flat else None
    if not (transposed or step.operator in CONVOLUTIONS) or not isinstance(source, Value) or not is_image(source):
        return None
    weight, bias = step.args[1], at(step, 2)
    if not is_weight(weight) or not (bias is None or is_weight(bias)):
        return None
    space = weight.ndim - 2
    stride, padding = each(at(step, 3, 1), space), at(step, 4, 0)
    dilation = each(at(step, 7 if transposed else 5, 1), space)
    if isinstance(padding, str):
        if padding == "same" and any(n % 2 == 0 for n in weight.shape[2:]):
            return None  # more is padded on one side
        sides = [d * (n - 1) // 2 for d, n in zip(dilation, weight.shape[2:], strict=True)]
        padding = sides if padding == "same" else 0
    groups = int(at(step, 6, 1))
    if transposed and groups != 1:
        return None
    more = each(at(step, 5, 0), space) if transposed else []
    return Layer(source, weight, bias, stride, each(padding, space), dilation, more, groups, transposed)


def batch_norm(step: Step) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Scale and shift (C,) in float64 of a normalisation by statistics that were kept; none of anything else."""
    if step.operator not in (aten.batch_norm.default, aten.instance_norm.default):
        return None
    weight, bias, mean, variance, of_the_image = step.args[1:6]
    if of_the_image or not is_weight(mean) or not is_weight(variance):
        return None
    if not all(item is None or is_weight(item) for item in (weight, bias)):
        return None
    scale = (variance.double() + float(step.args[7])).rsqrt()
    scale = scale if weight is None else scale * weight.double()
    shift = -mean.double() * scale
    return scale, shift if bias is None else shift + bias.double()


def slope(step: Step) -> float | None:
    """Of a rectifier: 0, that of a leaky one, that of a PReLU with one slope; none of anything else."""
    if step.operator is aten.relu.default:
        return 0.0
    if step.operator is aten.leaky_relu.default:
        return float(at(step, 1, 0.01))
    if step.operator is aten.prelu.default and is_weight(step.args[1]) and step.args[1].numel() == 1:
        return float(step.args[1])
    return None


def at(step: Step, position: int, default: Any = None) -> Any:
    """A positional argument, or its default."""
    args = step.args
    return args[position] if position < len(args) else default


def each(number: Any, space: int) -> list[int]:
    """A number along every axis."""
    if isinstance(number, int):
        return [number] * space
    return list(number) * space if len(number) == 1 else list(number)


def is_image(value: Value) -> bool:
    return len(value.shape) in (4, 5) and value.dtype == torch.float32 and 0 not in value.shape


def is_weight(item: Any) -> bool:
    return isinstance(item, torch.Tensor) and item.dtype == torch.float32 and item.device.type == "cpu"

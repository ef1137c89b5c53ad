"""A recorded network as a list of kernels: what can be joined is joined, and memory is used again.

A value may be written into when nothing reads it later, it shares its memory with no other value, and it is neither
the image, nor a parameter, nor returned; all of which stand in the record. Values that share memory with nothing may
lie in memory as the kernels like (channels last); before an operator that could tell the difference they are laid out
as the network has them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from napari_medai.engine.kernels import Convolution, Doubling, Normalisation, last, pointwise, rows, scaled
from napari_medai.engine.recorded import Record, Step, Value, aten

_Tensors = dict[Value, torch.Tensor]
_Kernel = Callable[[_Tensors], Any]

# Operators that give the same numbers whatever the order of their arguments in memory, and keep that order
_ANY_ORDER = {
    *(aten.cat.default, aten.softmax.int, aten.prelu.default, aten.mean.dim, aten.instance_norm.default),
    *(aten.max_pool2d.default, aten.max_pool3d.default, aten.avg_pool2d.default, aten.avg_pool3d.default),
    *(aten.adaptive_avg_pool2d.default, aten.adaptive_avg_pool3d.default, aten.batch_norm.default),
    *(aten.upsample_nearest2d.vec, aten.upsample_nearest3d.vec, aten.upsample_bilinear2d.vec),
    *(aten.upsample_trilinear3d.vec, aten.group_norm.default, aten.clamp.default, aten.exp.default, aten.pad.default),
    *(aten.conv2d.default, aten.conv3d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input),
}
# Operators on each number for itself -> the same in its place
_IN_PLACE: dict[Any, Any] = {
    aten.leaky_relu.default: aten.leaky_relu_.default,
    aten.relu.default: aten.relu_.default,
    aten.elu.default: aten.elu_.default,
    aten.silu.default: aten.silu_.default,
    aten.gelu.default: aten.gelu_.default,
    aten.sigmoid.default: aten.sigmoid_.default,
    aten.tanh.default: aten.tanh_.default,
    aten.add.Tensor: aten.add_.Tensor,
    aten.sub.Tensor: aten.sub_.Tensor,
    aten.mul.Tensor: aten.mul_.Tensor,
    aten.div.Tensor: aten.div_.Tensor,
}
_CONVOLUTIONS = {aten.conv2d.default, aten.conv3d.default, aten.conv2d.padding, aten.conv3d.padding}
_TRANSPOSED = {aten.conv_transpose2d.input, aten.conv_transpose3d.input}
# Channels of all phases of a doubled image up to which they are computed as channels; measured at 16, 32 and 128
DOUBLED = 32
# Images that are convolved as if they were one, at most
MOST_PARTS = 4


@dataclass(eq=False)
class _Node:
    """What is done at one place; ``build`` is told which of the values read may be written into."""

    reads: list[Value]
    made: list[Any]
    build: Callable[[set[Value]], _Kernel]


class Program:
    """A record that can be run.

    Parameters
    ----------
    record : Record
        Of a network on the CPU.
    """

    def __init__(self, record: Record) -> None:
        self._image, self._flat, self._tree = record.image, record.flat, record.tree
        made = _Maker(record)
        nodes = made.nodes()
        self._loose = made.loose
        self._convolutions = made.convolutions
        final = {value: n for n, node in enumerate(nodes) for value in node.reads}
        final |= dict.fromkeys(record.returned, len(nodes))
        self._instructions: list[tuple[_Kernel, list[Any], list[Value]]] = []
        for n, node in enumerate(nodes):
            ends = {value for value in node.reads if final[value] == n}
            unread = [item for item in node.made if isinstance(item, Value) and item not in final]
            writable = {value for value in ends if made.owned(value) and node.reads.count(value) == 1}
            drops = [value for value in ends if value is not record.image]
            self._instructions.append((node.build(writable), node.made, drops + unread))

    @property
    def bytes(self) -> int:
        """Memory that it keeps from one image to the next."""
        return sum(convolution.bytes for convolution in self._convolutions)

    @property
    def single(self) -> bool:
        """Whether it gives one tensor with an entry for each image."""
        only = self._flat[0] if len(self._flat) == 1 else None
        return isinstance(only, Value) and only.shape[:1] == self._image.shape[:1] and self._tree.is_leaf()

    def __call__(self, image: torch.Tensor) -> Any:
        """What the network gives for an image."""
        tensors: _Tensors = {self._image: image}
        for kernel, made, drops in self._instructions:
            out = kernel(tensors)
            if len(made) == 1 and isinstance(made[0], Value):
                tensors[made[0]] = out
            elif len(made) > 1:
                tensors |= {v: item for v, item in zip(made, tree_flatten(out)[0], strict=True) if isinstance(v, Value)}
            del out
            for value in drops:
                tensors.pop(value, None)
        return tree_unflatten([self._out(tensors, item) for item in self._flat], self._tree)

    def _out(self, tensors: _Tensors, item: Any) -> Any:
        if not isinstance(item, Value):
            return item
        return as_recorded(tensors[item], item) if item in self._loose else tensors[item]


def as_recorded(tensor: torch.Tensor, value: Value) -> torch.Tensor:
    """A tensor that lies in memory as the network has it."""
    if all(n == 1 or a == b for n, a, b in zip(value.shape, tensor.stride(), value.strides, strict=True)):
        return tensor
    if value.contiguous:
        return tensor.contiguous()
    return torch.empty_strided(value.shape, value.strides, dtype=value.dtype).copy_(tensor)


@dataclass
class _Maker:
    """Steps to nodes."""

    record: Record
    loose: set[Value] = field(default_factory=set)
    convolutions: list[Convolution] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.readers = self.record.readers()
        self.returned = self.record.returned
        self.makers = {item: step for step in self.record.steps for item in step.made if isinstance(item, Value)}
        self.families: dict[int, int] = {}
        for value in self.makers:
            self.families[value.family] = self.families.get(value.family, 0) + 1
        self.held = {self.record.image.family, *self.record.held}
        self.written = {value.family for step in self.record.steps for value in step.changes}
        self.done: set[Step] = set()

    def alone(self, value: Value) -> bool:
        """Whether a value shares its memory with no other, nor with what outlives the run."""
        return self.families.get(value.family) == 1 and value.family not in self.held | self.written

    def owned(self, value: Value) -> bool:
        """Whether it may be written into by who reads it last."""
        return self.alone(value) and value not in self.returned and _is_image(value)

    def only_reader(self, value: Value | None) -> Step | None:
        """The step that alone reads a value, if nothing else does."""
        if value is None or value in self.returned or not self.alone(value):
            return None
        steps = self.readers.get(value, [])
        return steps[0] if len(steps) == 1 else None

    def nodes(self) -> list[_Node]:
        """Every step once, in an order in which each finds what it reads."""
        late = {id(step) for step in self.record.steps if self._joined_later(step)}
        found = []
        for step in self.record.steps:
            if step in self.done or id(step) in late:
                continue
            self.done.add(step)
            found.append(self._node(step))
        return found

    def _joined_later(self, step: Step) -> bool:
        """Whether images are put together for a convolution alone, which can do without."""
        if step.operator is not aten.cat.default or not step.flat or step.args[1:] != (1,):
            return False
        parts = step.args[0]
        if not 2 <= len(parts) <= MOST_PARTS or not all(isinstance(p, Value) and self.alone(p) for p in parts):
            return False
        reader = self.only_reader(step.result)
        return reader is not None and reader.flat[0] is step.result and self._is_convolution(reader, groups=1)

    def _node(self, step: Step) -> _Node:
        result = step.result
        if result is not None and self.alone(result) and _is_image(result):
            for attempt in (self._convolution, self._transposed, self._normalisation, self._one_by_one):
                node = attempt(step, result)
                if node is not None:
                    return node
        return self._plain(step)

    def _is_convolution(self, step: Step, groups: int = 0) -> bool:
        if step.operator not in _CONVOLUTIONS or not isinstance(step.flat[0], Value) or not _is_image(step.flat[0]):
            return False
        weight, bias = step.args[1], _at(step, 2)
        return (
            _is_weight(weight) and (bias is None or _is_weight(bias)) and _at(step, 6, 1) == (groups or _at(step, 6, 1))
        )

    def _convolution(self, step: Step, result: Value) -> _Node | None:
        if not self._is_convolution(step):
            return None
        source, weight, bias = step.args[0], step.args[1], _at(step, 2)
        space = weight.ndim - 2
        stride, dilation = _each(_at(step, 3, 1), space), _each(_at(step, 5, 1), space)
        padding, groups = _at(step, 4, 0), int(_at(step, 6, 1))
        if isinstance(padding, str):
            if padding == "same" and any(n % 2 == 0 for n in weight.shape[2:]):
                return None
            sides = [d * (n - 1) // 2 for d, n in zip(dilation, weight.shape[2:], strict=True)]
            padding = sides if padding == "same" else 0
        padding = _each(padding, space)
        simple = prod(weight.shape[2:]) == 1 and groups == 1 and set(stride) == {1} and not any(padding)
        joined = self.makers.get(source)
        parts = list(joined.args[0]) if joined is not None and self._joined_later(joined) else [source]
        if simple and len(parts) == 1 and result.contiguous and self._leaves(result):
            return _Node([source], [result], lambda _: lambda tensors: pointwise(weight, bias, tensors[source]))
        weight, bias, result = self._with_batch_norm(weight, bias, result)
        result, slope = self._with_activation(result)
        kernel = Convolution(
            weight, bias, stride, padding, dilation, groups, slope=slope,
            parts=[part.shape[1] for part in parts] if len(parts) > 1 else (),
        )  # fmt: skip
        self.convolutions.append(kernel)
        self.loose.add(result)
        return _Node(parts, [result], lambda _: lambda tensors: kernel(*(tensors[part] for part in parts)))

    def _leaves(self, value: Value) -> bool:
        """Whether a value is returned, maybe after an activation."""
        while value not in self.returned:
            reader = self.only_reader(value)
            if reader is None or reader.operator not in (aten.softmax.int, aten.sigmoid.default):
                return False
            assert reader.result is not None
            value = reader.result
        return True

    def _transposed(self, step: Step, result: Value) -> _Node | None:
        if step.operator not in _TRANSPOSED or not isinstance(step.flat[0], Value) or not _is_image(step.flat[0]):
            return None
        source, weight, bias = step.args[0], step.args[1], _at(step, 2)
        if not _is_weight(weight) or not (bias is None or _is_weight(bias)) or _at(step, 6, 1) != 1:
            return None
        space = weight.ndim - 2
        stride, padding, more = (_each(_at(step, n, d), space) for n, d in ((3, 1), (4, 0), (5, 0)))
        dilation = _each(_at(step, 7, 1), space)
        result, slope = self._with_activation(result)
        self.loose.add(result)
        kernel: Convolution | Doubling
        usual = (set(weight.shape[2:]), set(stride), set(padding), set(more), set(dilation)) == (
            {3},
            {2},
            {1},
            {1},
            {1},
        )
        if usual and weight.shape[1] * 2**space <= DOUBLED:
            kernel = Doubling(weight, bias, slope)
            self.convolutions.append(kernel.convolution)
        else:
            kernel = Convolution(weight, bias, stride, padding, dilation, 1, transposed=True, more=more, slope=slope)
            self.convolutions.append(kernel)
        return _Node([source], [result], lambda _: lambda tensors: kernel(tensors[source]))

    def _normalisation(self, step: Step, result: Value) -> _Node | None:
        source = step.flat[0] if step.flat else None
        if not isinstance(source, Value) or not _is_image(source):
            return None
        if step.operator is aten.instance_norm.default and step.args[5]:
            weight, bias, eps, groups = step.args[1], step.args[2], float(step.args[7]), 0
        elif step.operator is aten.group_norm.default:
            groups, weight, bias, eps = int(step.args[1]), _at(step, 2), _at(step, 3), float(_at(step, 4, 1e-5))
        elif (affine := _batch_norm(step)) is not None:
            scale, shift = affine
            result, slope = self._with_activation(result)
            return self._changing(source, result, lambda image: _affine(image, scale, shift, slope))
        else:
            return None
        if not all(item is None or _is_weight(item) for item in (weight, bias)):
            return None
        result, slope = self._with_activation(result)
        return self._changing(source, result, Normalisation(weight, bias, eps, groups, slope))

    def _changing(self, source: Value, result: Value, change: Callable[[torch.Tensor], torch.Tensor]) -> _Node:
        """A kernel that changes an image in its place, or a copy of it."""
        self.loose.add(result)

        def build(writable: set[Value]) -> _Kernel:
            own = source in writable

            def kernel(tensors: _Tensors) -> torch.Tensor:
                image = tensors[source]
                turned = last(image)
                # a copy is needed where the image lies right already and is still wanted
                return change(turned.clone() if not own and turned.data_ptr() == image.data_ptr() else turned)

            return kernel

        return _Node([source], [result], build)

    def _one_by_one(self, step: Step, result: Value) -> _Node | None:
        """Operators on each number for itself, in place where that may be."""
        writing = _IN_PLACE.get(step.operator)
        slope = _slope(step)
        if writing is None and slope is None:
            return None
        self.loose.add(result)
        flat, tree, operator = step.flat, step.tree, step.operator
        if slope is not None:  # a PReLU with one slope
            flat, tree = tree_flatten(((flat[0], slope), {}))
            operator, writing = aten.leaky_relu.default, aten.leaky_relu_.default

        def build(writable: set[Value]) -> _Kernel:
            def fits(item: Any) -> bool:
                return item in writable and (item.shape, item.dtype) == (result.shape, result.dtype)

            if isinstance(flat[0], Value) and fits(flat[0]):
                return _bound(writing, flat, tree, set())
            if operator is aten.add.Tensor and len(flat) == 2 and isinstance(flat[1], Value) and fits(flat[1]):
                return _bound(writing, flat[::-1], tree, set())
            return _bound(operator, flat, tree, set())

        return _Node(list(step.values), [result], build)

    def _plain(self, step: Step) -> _Node:
        """An operator as it was recorded."""
        result, strict = step.result, set(step.values) & self.loose
        if step.operator in _ANY_ORDER and result is not None and self.alone(result):
            self.loose.add(result)
            strict = set()
        return _Node(list(step.values), step.made, lambda _: _bound(step.operator, step.flat, step.tree, strict))

    def _with_activation(self, result: Value) -> tuple[Value, float | None]:
        """The value after the rectifier that alone reads a value, and its slope."""
        reader = self.only_reader(result)
        slope = _slope(reader) if reader is not None else None
        if reader is None or slope is None or reader.result is None or not self.alone(reader.result):
            return result, None
        self.done.add(reader)
        return reader.result, slope

    def _with_batch_norm(
        self, weight: torch.Tensor, bias: torch.Tensor | None, result: Value
    ) -> tuple[torch.Tensor, torch.Tensor | None, Value]:
        """A convolution's weights with the batch normalisation that alone reads it in them."""
        reader = self.only_reader(result)
        affine = _batch_norm(reader) if reader is not None else None
        if reader is None or affine is None or reader.result is None or not self.alone(reader.result):
            return weight, bias, result
        self.done.add(reader)
        scale, shift = affine
        folded = (weight.double() * scale.view(-1, *(1,) * (weight.ndim - 1))).float()
        shift = shift if bias is None else shift + bias.double() * scale
        return folded, shift.float(), reader.result


def _bound(operator: Any, flat: Sequence[Any], tree: TreeSpec, strict: set[Value]) -> _Kernel:
    """A kernel that puts tensors into an operator's arguments; some of them as they were recorded."""
    places = [(n, item, item in strict) for n, item in enumerate(flat) if isinstance(item, Value)]

    def kernel(tensors: _Tensors) -> Any:
        given = list(flat)
        for n, value, exact in places:
            given[n] = as_recorded(tensors[value], value) if exact else tensors[value]
        args, keywords = tree_unflatten(given, tree)
        return operator(*args, **keywords)

    return kernel


def _affine(image: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, slope: float | None) -> torch.Tensor:
    for one in image:
        scaled(rows(one), scale.float(), shift.float(), slope)
    return image


def _batch_norm(step: Step) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Scale and shift (C,) in float64 of a normalisation by statistics that were kept; none of anything else."""
    if step.operator not in (aten.batch_norm.default, aten.instance_norm.default):
        return None
    weight, bias, mean, variance, of_the_image = step.args[1:6]
    if of_the_image or not _is_weight(mean) or not _is_weight(variance):
        return None
    if not all(item is None or _is_weight(item) for item in (weight, bias)):
        return None
    scale = (variance.double() + float(step.args[7])).rsqrt()
    scale = scale if weight is None else scale * weight.double()
    shift = -mean.double() * scale
    return scale, shift if bias is None else shift + bias.double()


def _slope(step: Step) -> float | None:
    """Of a rectifier: 0, that of a leaky one, that of a PReLU with one slope; none of anything else."""
    if step.operator is aten.relu.default:
        return 0.0
    if step.operator is aten.leaky_relu.default:
        return float(_at(step, 1, 0.01))
    if step.operator is aten.prelu.default and _is_weight(step.args[1]) and step.args[1].numel() == 1:
        return float(step.args[1])
    return None


def _at(step: Step, position: int, default: Any = None) -> Any:
    """A positional argument, or its default."""
    args = step.args
    return args[position] if position < len(args) else default


def _each(number: Any, space: int) -> list[int]:
    """A number along every axis."""
    if isinstance(number, int):
        return [number] * space
    return list(number) * space if len(number) == 1 else list(number)


def _is_image(value: Value) -> bool:
    return len(value.shape) in (4, 5) and value.dtype == torch.float32 and 0 not in value.shape


def _is_weight(item: Any) -> bool:
    return isinstance(item, torch.Tensor) and item.dtype == torch.float32 and item.device.type == "cpu"

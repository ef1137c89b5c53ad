"""A recorded network as a list of kernels: what can be joined is joined, and memory is used again.

A value may be written into when nothing reads it later, it shares its memory with no other value, and it is neither
the image, nor a parameter, nor returned; all of which stand in the record. Values that share memory with nothing may
lie in memory as the kernels like (channels last); before an operator that could tell the difference they are laid out
as the network has them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from napari_medai.engine import layers
from napari_medai.engine.kernels import Convolution, Doubling, Normalisation, last, pointwise, rows, scaled
from napari_medai.engine.recorded import IN_PLACE, Record, Step, Value
from napari_medai.engine.shapes import aten

_Tensors = dict[Value, torch.Tensor]
_Kernel = Callable[[_Tensors], Any]

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
    def single(self) -> Value | None:
        """What it gives, if that is one tensor with an entry for each image."""
        only = self._flat[0] if len(self._flat) == 1 and self._tree.is_leaf() else None
        return only if isinstance(only, Value) and only.shape[:1] == self._image.shape[:1] else None

    def __call__(self, image: torch.Tensor, into: torch.Tensor | None = None) -> Any:
        """What the network gives for an image; written into a tensor, if that is `single`."""
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
        if into is not None:
            return into.copy_(tensors[self._flat[0]])
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
        self.place = {step: n for n, step in enumerate(self.record.steps)}

    def alone(self, value: Value) -> bool:
        """Whether a value shares its memory with no other, nor with what outlives the run."""
        return self.families.get(value.family) == 1 and value.family not in self.held | self.written

    def owned(self, value: Value) -> bool:
        """Whether it may be written into by who reads it last."""
        return self.alone(value) and value not in self.returned and layers.is_image(value)

    def only_reader(self, value: Value | None) -> Step | None:
        """The step that alone reads a value, if nothing else does."""
        if value is None or value in self.returned or not self.alone(value):
            return None
        steps = self.readers.get(value, [])
        return steps[0] if len(steps) == 1 else None

    def nodes(self) -> list[_Node]:
        """Every step once, in an order in which each finds what it reads."""
        late = {id(step) for step in self.record.steps if self._joined_later(step)}
        late |= {id(self._addend(step)) for step in self.record.steps}
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
        if reader is None or reader.result is None or reader.flat[0] is not step.result:
            return False
        # what `_node` makes a kernel of; anything else needs them put together
        layer = layers.convolution(reader) if self._has_kernel(reader.result) else None
        return layer is not None and layer.groups == 1 and (layer.doubles or not layer.transposed)

    def _node(self, step: Step) -> _Node:
        result = step.result
        if result is not None and self._has_kernel(result):
            for attempt in (self._convolution, self._transposed, self._normalisation, self._sum, self._one_by_one):
                node = attempt(step, result)
                if node is not None:
                    return node
        return self._plain(step)

    def _has_kernel(self, result: Value) -> bool:
        """Whether what makes a value may be run by a kernel of ours."""
        return self.alone(result) and layers.is_image(result)

    def _parts(self, source: Value) -> list[Value]:
        """What is convolved in place of a value."""
        joined = self.makers.get(source)
        return list(joined.args[0]) if joined is not None and self._joined_later(joined) else [source]

    def _convolution(self, step: Step, result: Value) -> _Node | None:
        layer = layers.convolution(step)
        if layer is None or layer.transposed:
            return None
        source, weight, bias = layer.source, layer.weight, layer.bias
        if layer.pointwise and self._parts(source) == [source] and result.contiguous and self._leaves(result):
            return _Node([source], [result], lambda _: lambda tensors: pointwise(weight, bias, tensors[source]))
        weight, bias, result = self._with_batch_norm(weight, bias, result)
        result, slope = self._with_activation(result)
        parts, kernel = self._kernel(layer, weight, bias, slope)
        self.loose.add(result)
        return _Node(parts, [result], lambda _: lambda tensors: kernel(*(tensors[part] for part in parts)))

    def _kernel(
        self, layer: layers.Layer, weight: torch.Tensor, bias: torch.Tensor | None, slope: float | None = None
    ) -> tuple[list[Value], Convolution]:
        """A convolution and the images that it is given."""
        parts = self._parts(layer.source)
        kernel = Convolution(
            weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups, slope=slope,
            parts=[part.shape[1] for part in parts] if len(parts) > 1 else (),
        )  # fmt: skip
        self.convolutions.append(kernel)
        return parts, kernel

    def _addend(self, step: Step) -> Step | None:
        """The convolution of which the output is made where it is added by this step, and nowhere else."""
        if step.operator is not aten.add.Tensor or len(step.flat) != 2 or step.result is None:
            return None
        shapes = {item.shape if isinstance(item, Value) and layers.is_image(item) else None for item in step.flat}
        if shapes != {step.result.shape} or not self._has_kernel(step.result):
            return None
        for value in step.flat:
            made = self.makers.get(value)
            layer = layers.convolution(made) if made is not None and self._has_kernel(value) else None
            if made is None or layer is None or layer.transposed or self.only_reader(value) is not step:
                continue
            if all(self._waits(part, value, step) for part in self._parts(layer.source)):
                return made
        return None

    def _waits(self, source: Value, result: Value, step: Step) -> bool:
        """Whether an image can be convolved as late as at a step, without more memory than for the result."""
        if source is self.record.image:
            return source.family not in self.written
        later = any(self.place[reader] >= self.place[step] for reader in self.readers[source])
        return self.alone(source) and (later or source.shape.numel() <= result.shape.numel())

    def _sum(self, step: Step, result: Value) -> _Node | None:
        """An image and a convolution's output."""
        made = self._addend(step)
        layer = layers.convolution(made) if made is not None else None
        if made is None or layer is None:
            return None
        self.loose.add(result)
        other = step.flat[1 if step.flat[0] is made.result else 0]
        parts, kernel = self._kernel(layer, layer.weight, layer.bias)

        def build(writable: set[Value]) -> _Kernel:
            if other in writable:
                return lambda tensors: kernel.added(tensors[other], *(tensors[part] for part in parts))
            return lambda tensors: kernel(*(tensors[part] for part in parts)).add_(tensors[other])

        return _Node([other, *parts], [result], build)

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
        layer = layers.convolution(step)
        if layer is None or not layer.transposed:
            return None
        result, slope = self._with_activation(result)
        self.loose.add(result)
        parts = self._parts(layer.source)
        kernel: Convolution | Doubling
        if layer.doubles:
            sizes = [part.shape[1] for part in parts] if len(parts) > 1 else ()
            kernel = Doubling(layer.weight, layer.bias, slope, sizes)
            self.convolutions.append(kernel.convolution)
        else:
            kernel = Convolution(
                layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation, transposed=True,
                more=layer.more, slope=slope,
            )  # fmt: skip
            self.convolutions.append(kernel)
        return _Node(parts, [result], lambda _: lambda tensors: kernel(*(tensors[part] for part in parts)))

    def _normalisation(self, step: Step, result: Value) -> _Node | None:
        source = step.flat[0] if step.flat else None
        if not isinstance(source, Value) or not layers.is_image(source):
            return None
        if step.operator is aten.instance_norm.default and step.args[5]:
            weight, bias, eps, groups = step.args[1], step.args[2], float(step.args[7]), 0
        elif step.operator is aten.group_norm.default:
            groups, weight, bias, eps = (
                int(step.args[1]),
                layers.at(step, 2),
                layers.at(step, 3),
                float(layers.at(step, 4, 1e-5)),
            )
        elif (affine := layers.batch_norm(step)) is not None:
            scale, shift = affine
            result, slope = self._with_activation(result)
            return self._changing(source, result, lambda image: _affine(image, scale, shift, slope))
        else:
            return None
        if not all(item is None or layers.is_weight(item) for item in (weight, bias)):
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
        writing = IN_PLACE.get(step.operator)
        slope = layers.slope(step)
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
        if step.operator in layers.ANY_ORDER and result is not None and self.alone(result):
            self.loose.add(result)
            strict = set()
        return _Node(list(step.values), step.made, lambda _: _bound(step.operator, step.flat, step.tree, strict))

    def _with_activation(self, result: Value) -> tuple[Value, float | None]:
        """The value after the rectifier that alone reads a value, and its slope."""
        reader = self.only_reader(result)
        slope = layers.slope(reader) if reader is not None else None
        if reader is None or slope is None or reader.result is None or not self.alone(reader.result):
            return result, None
        self.done.add(reader)
        return reader.result, slope

    def _with_batch_norm(
        self, weight: torch.Tensor, bias: torch.Tensor | None, result: Value
    ) -> tuple[torch.Tensor, torch.Tensor | None, Value]:
        """A convolution's weights with the batch normalisation that alone reads it in them."""
        reader = self.only_reader(result)
        affine = layers.batch_norm(reader) if reader is not None else None
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

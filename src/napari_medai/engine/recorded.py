"""What a network does to an image of one size, written down as a list of torch's operators.

The network is run once without data: a copy whose parameters have shapes and no memory (torch's ``meta`` device)
meets an image of the same kind, and every operator is recorded on its way to the kernels. Sizes become numbers in the
record, so that it holds for images of that size alone; a branch that depends on values cannot be recorded, and is said
to be so. Nothing of the network itself is changed, and parameters are referred to, not copied.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from napari_medai.engine.shapes import aten, shaped


class NotRecordable(Exception):
    """A network does what cannot be written down; it is run as it is."""


@dataclass(eq=False)
class Value:
    """A tensor that is made on the way, before there is one.

    Attributes
    ----------
    shape : torch.Size
        Its shape.
    strides : tuple of int
        As the network makes it.
    dtype : torch.dtype
        Its type.
    family : int
        The same for values that share memory in the network.
    """

    shape: torch.Size
    strides: tuple[int, ...]
    dtype: torch.dtype
    family: int

    @property
    def contiguous(self) -> bool:
        """Whether the network makes it with its last axis first in memory."""
        step = 1
        for size, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if size != 1 and stride != step:
                return False
            step *= size
        return True


@dataclass(eq=False)
class Step:
    """One operator: its arguments, in which `Value` stands for a tensor, and what it makes.

    Attributes
    ----------
    operator : callable
        An overload of an operator of torch.
    flat, tree : list, TreeSpec
        Positional arguments and keywords, flattened by torch's pytrees.
    made : list
        What it gives, flattened: `Value` or anything else.
    """

    operator: Callable[..., Any]
    flat: list[Any]
    tree: TreeSpec
    made: list[Any]

    @property
    def args(self) -> tuple[Any, ...]:
        """Positional arguments."""
        args, _ = tree_unflatten(self.flat, self.tree)
        return tuple(args)

    @property
    def keywords(self) -> dict[str, Any]:
        """Keyword arguments."""
        return dict(tree_unflatten(self.flat, self.tree)[1])

    @property
    def values(self) -> Iterator[Value]:
        """What it reads, once for each time."""
        return (item for item in self.flat if isinstance(item, Value))

    @property
    def result(self) -> Value | None:
        """The only value that it makes, if it makes one."""
        only = self.made[0] if len(self.made) == 1 else None
        return only if isinstance(only, Value) else None

    @property
    def changes(self) -> list[Value]:
        """What it writes into."""
        schema = getattr(self.operator, "_schema", None)
        if schema is None or not schema.is_mutable:
            return []
        args, keywords = self.args, self.keywords
        found = []
        for n, argument in enumerate(schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                item = args[n] if n < len(args) else keywords.get(argument.name)
                found += [one for one in (item if isinstance(item, list | tuple) else [item]) if isinstance(one, Value)]
        return found


@dataclass
class Record:
    """All that a network does to one image.

    Attributes
    ----------
    image : Value
        What it is given.
    steps : list of Step
        In their order.
    flat, tree : list, TreeSpec
        What it returns, flattened.
    held : set of int
        Families of values that share memory with parameters.
    """

    image: Value
    steps: list[Step]
    flat: list[Any]
    tree: TreeSpec
    held: frozenset[int]

    @property
    def returned(self) -> set[Value]:
        """The values that it returns."""
        return {item for item in self.flat if isinstance(item, Value)}

    def readers(self) -> dict[Value, list[Step]]:
        """Who reads each value, once for each time."""
        found: dict[Value, list[Step]] = {}
        for step in self.steps:
            for value in step.values:
                found.setdefault(value, []).append(step)
        return found


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down every operator."""

    def __init__(self, known: dict[int, torch.Tensor], device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.known, self.device = known, device
        self.steps: list[Step] = []
        self.values: dict[int, Value] = {}
        self.families: dict[int, int] = {}
        self.held: set[int] = set()
        self.kept: list[torch.Tensor] = []  # so that no id is given twice

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # torch would import its compiler, which takes two seconds, to keep it away from here

    def hold(self, parameter: torch.Tensor) -> None:
        """Values that share memory with this tensor share it with a parameter."""
        self.held.add(self.families.setdefault(parameter.untyped_storage()._cdata, len(self.families)))
        self.kept.append(parameter)

    def value(self, tensor: torch.Tensor) -> Value:
        """The value of a tensor without memory."""
        if id(tensor) not in self.values:
            family = self.families.setdefault(tensor.untyped_storage()._cdata, len(self.families))
            self.values[id(tensor)] = Value(tensor.shape, tensor.stride(), tensor.dtype, family)
            self.kept.append(tensor)
        return self.values[id(tensor)]

    def given(self, item: Any) -> Any:
        if isinstance(item, torch.device):
            return self.device if item.type == "meta" else item
        if not isinstance(item, torch.Tensor):
            return item
        if id(item) in self.known:
            return self.known[id(item)]
        if id(item) in self.values:
            return self.values[id(item)]
        if item.device.type == "meta":
            raise NotRecordable("a tensor came out of nowhere")
        self.kept.append(item)
        return item  # a constant that the network holds

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags and not _still(func, args):
            raise NotRecordable("it draws random numbers")
        out = shaped(func, args)
        if out is None:
            out = func(*args, **(kwargs or {}))
        if func.namespace == "prim":
            return out
        flat, tree = tree_flatten((args, kwargs or {}))
        made = tree_flatten(out)[0]
        items = [self.given(item) for item in flat]
        results = [self.value(item) if isinstance(item, torch.Tensor) else item for item in made]
        self.steps.append(Step(func, items, tree, results))
        return out


def _still(func: Any, args: Sequence[Any]) -> bool:
    """Whether a dropout is switched off."""
    return "dropout" in func.name() and len(args) > 2 and args[2] is False


def record(network: nn.Module, image: torch.Tensor) -> Record:
    """Write down what a network does to images like this one.

    Parameters
    ----------
    network : module
        In evaluation mode.
    image : tensor
        Of which shape, type and strides count.

    Raises
    ------
    NotRecordable
        What it does depends on values, or is random, or torch cannot tell its shapes without data.
    """
    memo: dict[int, Any] = {}
    known: dict[int, torch.Tensor] = {}
    for tensor in [*network.parameters(), *network.buffers()]:
        shape = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
        memo[id(tensor)], known[id(shape)] = shape, tensor
    recorder = _Recorder(known, image.device)
    for shape in memo.values():
        recorder.hold(shape)
    with torch.inference_mode():
        try:
            empty = copy.deepcopy(network, memo)
            given = torch.empty_strided(image.shape, image.stride(), dtype=image.dtype, device="meta")
            first = recorder.value(given)
            with recorder:
                out = empty(given)
            flat, tree = tree_flatten(out)
            flat = [recorder.given(item) for item in flat]
        except (RuntimeError, NotImplementedError, TypeError, ValueError, AttributeError) as error:
            reason = str(error).partition("\n")[0][:200]
            raise NotRecordable(f"it cannot be run without data: {reason}") from error
    return simplified(Record(first, recorder.steps, flat, tree, frozenset(recorder.held)))


# Operators whose result is their argument where shape and strides are the same
_SAME = {
    aten.dropout.default, aten.feature_dropout.default, aten.contiguous.default, aten.detach.default,
    aten.alias.default, aten.to.dtype, aten.to.device, aten.view.default, aten.reshape.default,
}  # fmt: skip
# Operators on each number for itself, and the same that write into their first argument
IN_PLACE: dict[Any, Any] = {
    aten.leaky_relu.default: aten.leaky_relu_.default,
    aten.relu.default: aten.relu_.default,
    aten.elu.default: aten.elu_.default,
    aten.silu.default: aten.silu_.default,
    aten.gelu.default: aten.gelu_.default,
    aten.sigmoid.default: aten.sigmoid_.default,
    aten.add.Tensor: aten.add_.Tensor,
    aten.sub.Tensor: aten.sub_.Tensor,
    aten.mul.Tensor: aten.mul_.Tensor,
}
_MAKING = {writing: making for making, writing in IN_PLACE.items()}


def simplified(record: Record) -> Record:
    """A record without what does nothing, in which each value is written once where that can be seen to be the same."""
    return _without_idle(_written_once(_without_idle(record)))


@dataclass
class _Names:
    """Which value stands for another."""

    now: dict[Value, Value] = field(default_factory=dict)

    def of(self, item: Any) -> Any:
        while isinstance(item, Value) and item in self.now:
            item = self.now[item]
        return item

    def all(self, items: Sequence[Any]) -> list[Any]:
        return [self.of(item) for item in items]


def _without_idle(record: Record) -> Record:
    changed = {value.family for step in record.steps for value in step.changes}
    names, steps = _Names(), list[Step]()
    for step in record.steps:
        flat, result = names.all(step.flat), step.result
        source = flat[0] if flat else None
        if result is not None and isinstance(source, Value):
            if result is source and (step.operator in _SAME or _copies(step)):
                continue  # it gave what it was given
            same = (result.shape, result.strides, result.dtype) == (source.shape, source.strides, source.dtype)
            shared = step.operator in _SAME and result.family == source.family
            # a copy is as good as what it is a copy of where neither is written into
            copied = _copies(step) and not {result.family, source.family} & changed
            if same and (shared or copied):
                names.now[result] = source
                continue
        steps.append(Step(step.operator, flat, step.tree, names.all(step.made)))
    return Record(record.image, steps, names.all(record.flat), record.tree, record.held)


def _copies(step: Step) -> bool:
    """Whether a step gives what it was given: a copy, a dropout that is switched off, a padding by nothing."""
    if step.operator is aten.pad.default:
        return not any(step.args[1])
    return step.operator is aten.clone.default or _still(step.operator, step.args)


def _written_once(record: Record) -> Record:
    count: dict[int, set[Value]] = {}
    for value in [record.image, *(item for step in record.steps for item in step.made if isinstance(item, Value))]:
        count.setdefault(value.family, set()).add(value)
    names, steps = _Names(), list[Step]()
    families = 1 + max(count, default=0)
    for step in record.steps:
        flat = names.all(step.flat)
        target, functional = (step.flat[0] if step.flat else None), _MAKING.get(step.operator)
        if functional is not None and isinstance(target, Value) and len(count[target.family]) == 1:
            before = flat[0]
            if step.result is target and _keeps_kind(before, flat):
                after = Value(before.shape, before.strides, before.dtype, families)
                families += 1
                steps.append(Step(functional, flat, step.tree, [after]))
                names.now[before] = after
                continue
        steps.append(Step(step.operator, flat, step.tree, names.all(step.made)))
    return Record(record.image, steps, names.all(record.flat), record.tree, record.held)


def _keeps_kind(target: Value, flat: Sequence[Any]) -> bool:
    """Whether the operator that makes a tensor would make one of the target's shape and type."""
    for item in flat[1:]:
        if isinstance(item, Value | torch.Tensor):
            sizes = zip(reversed(item.shape), reversed(target.shape), strict=False)
            fits = len(item.shape) <= len(target.shape) and all(n in (1, m) for n, m in sizes)
            if not fits or torch.promote_types(item.dtype, target.dtype) != target.dtype:
                return False
    return True

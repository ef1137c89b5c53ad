"""The few expressions that bundles need, read off the syntax tree. Nothing is ever handed to Python to be run.

An expression is a string that begins with ``$``. What it may hold: numbers, texts, lists, references to other entries
(``@id::key``), arithmetic, comparisons, conditions, a few functions of plain values, constants of torch, numpy and
MONAI by their whole names, the device, parts from the reviewed tables, and functions of one tensor (`tensors`).
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from napari_medai.models.monai import reviewed
from napari_medai.models.monai.plan import Mark, Named, Part, TensorFunction
from napari_medai.models.monai.tensors import problem_of

REFERENCE = re.compile(r"@\w*(?:::\w*)*")
LONGEST = 2000

_OF_TORCH = ("bool", "uint8", "int8", "int16", "int32", "int64", "long", "int", "short", "bfloat16")
_OF_NUMPY = ("bool_", "uint8", "uint16", "uint32", "int8", "int16", "int32", "int64")
_FLOATS = ("float16", "float32", "float64")
NAMES: Mapping[str, Any] = MappingProxyType(
    {f"torch.{name}": Named(f"torch.{name}") for name in (*_OF_TORCH, *_FLOATS, "float", "double", "half")}
    | {f"{module}.{name}": Named(f"numpy.{name}") for module in ("np", "numpy") for name in (*_OF_NUMPY, *_FLOATS)}
    | {
        f"monai.{module}CommonKeys.{key}": value
        for module in ("utils.", "utils.enums.")
        for key, value in {"IMAGE": "image", "LABEL": "label", "PRED": "pred", "LOSS": "loss"}.items()
    }
    | {"np.pi": math.pi, "numpy.pi": math.pi, "torch.pi": math.pi}
)
"""Constants by their whole names."""

FUNCTIONS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        function.__name__: function
        for function in (len, int, float, bool, list, tuple, min, max, abs, round, sum, sorted)
    }
)
"""Functions of plain values."""

_BINARY: Mapping[type, Callable[[Any, Any], Any]] = MappingProxyType(
    {
        ast.Add: operator.add,
        ast.Sub: operator.sub,
        ast.Mult: operator.mul,
        ast.Div: operator.truediv,
        ast.FloorDiv: operator.floordiv,
        ast.Mod: operator.mod,
        ast.Pow: operator.pow,
    }
)
_UNARY: Mapping[type, Callable[[Any], Any]] = MappingProxyType(
    {ast.Not: operator.not_, ast.USub: operator.neg, ast.UAdd: operator.pos}
)
_COMPARE: Mapping[type, Callable[[Any, Any], Any]] = MappingProxyType(
    {
        ast.Eq: operator.eq,
        ast.NotEq: operator.ne,
        ast.Lt: operator.lt,
        ast.LtE: operator.le,
        ast.Gt: operator.gt,
        ast.GtE: operator.ge,
        ast.In: lambda a, b: a in b,
        ast.NotIn: lambda a, b: a not in b,
        ast.Is: operator.is_,
        ast.IsNot: operator.is_not,
    }
)
_PLAIN = (bool, int, float, str, list, tuple, dict, type(None))


class RefusedError(Exception):
    """An expression, or a part, that is not run; the message says what was found."""


def evaluate(
    expression: str,
    get: Callable[[str], Any],
    part: Callable[[str, dict[str, Any]], Any],
    cuda: bool = False,
) -> Any:
    """The value of an expression.

    Parameters
    ----------
    expression : str
        Without its ``$``.
    get : function
        The value of the entry with an id.
    part : function
        A `Part` from a reviewed name and its arguments.
    cuda : bool
        What ``torch.cuda.is_available()`` is to say.

    Raises
    ------
    RefusedError
        It holds anything else.
    """
    if len(expression) > LONGEST:
        raise RefusedError(f"an expression of {len(expression)} characters")
    references: list[str] = []

    def name_of(match: re.Match[str]) -> str:
        references.append(match.group()[1:])
        return f"_reference_{len(references) - 1}_"

    if "_reference_" in expression:
        raise RefusedError(f"the expression {shown(expression)}")
    source = REFERENCE.sub(name_of, expression.replace("#", "::")).strip()
    try:
        tree = ast.parse(source, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        what = "an import" if re.match(r"\s*(import|from)\s", expression) else "a statement"
        raise RefusedError(f"{what}, {shown(expression)}") from None
    try:
        return _Evaluation(expression, references, get, part, cuda).of(tree.body)
    except (TypeError, ValueError, KeyError, IndexError, ArithmeticError, AttributeError, RecursionError) as error:
        raise RefusedError(f"the expression {shown(expression)}, which fails: {type(error).__name__}") from None


def shown(expression: str) -> str:
    """An expression as it is shown to people: quoted, and not long."""
    return repr(expression if len(expression) <= 80 else expression[:77] + "…")


class _Evaluation:
    def __init__(
        self,
        expression: str,
        references: list[str],
        get: Callable[[str], Any],
        part: Callable[[str, dict[str, Any]], Any],
        cuda: bool,
    ) -> None:
        self.expression, self.references, self.get, self.part, self.cuda = expression, references, get, part, cuda

    def refuse(self, what: str) -> RefusedError:
        return RefusedError(f"{what} in the expression {shown(self.expression)}")

    def of(self, node: ast.expr) -> Any:
        method = getattr(self, f"_{type(node).__name__.lower()}", None)
        if method is None:
            raise self.refuse(type(node).__name__)
        return method(node)

    def plain(self, node: ast.expr) -> Any:
        value = self.of(node)
        if value is Mark.BROKEN or not isinstance(value, _PLAIN):
            raise self.refuse("a computation with what is no plain value")
        return value

    def _constant(self, node: ast.Constant) -> Any:
        if not isinstance(node.value, bool | int | float | str | type(None)):
            raise self.refuse("a constant of an unusual type")
        return node.value

    def _name(self, node: ast.Name) -> Any:
        if node.id.startswith("_reference_"):
            return self.get(self.references[int(node.id[11:-1])])
        raise self.refuse(f"the name {node.id!r}")

    def _list(self, node: ast.List) -> list[Any]:
        return [self.of(item) for item in self._items(node.elts)]

    def _tuple(self, node: ast.Tuple) -> tuple[Any, ...]:
        return tuple(self.of(item) for item in self._items(node.elts))

    def _items(self, items: list[ast.expr]) -> list[ast.expr]:
        if any(isinstance(item, ast.Starred) for item in items):
            raise self.refuse("a starred item")
        return items

    def _dict(self, node: ast.Dict) -> dict[str, Any]:
        if any(key is None for key in node.keys):
            raise self.refuse("a starred item")
        pairs = [(self.plain(key), self.of(value)) for key, value in zip(node.keys, node.values, strict=True) if key]
        if not all(isinstance(key, str | int) for key, _ in pairs):
            raise self.refuse("a key that is no text")
        return dict(pairs)

    def _unaryop(self, node: ast.UnaryOp) -> Any:
        if type(node.op) not in _UNARY:
            raise self.refuse("an operator")
        return _UNARY[type(node.op)](self.plain(node.operand))

    def _binop(self, node: ast.BinOp) -> Any:
        left, right = self.of(node.left), self.of(node.right)
        if Mark.BROKEN in (left, right):  # its own reason was given where it stands
            return Mark.BROKEN
        if type(node.op) not in _BINARY or not isinstance(left, _PLAIN) or not isinstance(right, _PLAIN):
            raise self.refuse("a computation with what is no plain value")
        numbers = isinstance(left, int | float) and isinstance(right, int | float)
        if isinstance(node.op, ast.Pow) and (
            not isinstance(left, int | float)
            or not isinstance(right, int | float)
            or abs(left) > 1e6
            or abs(right) > 16
        ):
            raise self.refuse("a power")
        if isinstance(node.op, ast.Mult) and not numbers:
            times = right if isinstance(right, int) else left
            if not isinstance(times, int) or not 0 <= times <= 1000:
                raise self.refuse("a repetition")
        if isinstance(node.op, ast.Mod) and not numbers:
            raise self.refuse("a format")
        value = _BINARY[type(node.op)](left, right)
        if (numbers and isinstance(value, int) and abs(value) > 2**62) or (not numbers and len(value) > 100_000):
            raise self.refuse("a value out of all proportion")
        return value

    def _boolop(self, node: ast.BoolOp) -> Any:
        value: Any = None
        for item in node.values:
            value = self.plain(item)
            if bool(value) is isinstance(node.op, ast.Or):
                return value
        return value

    def _compare(self, node: ast.Compare) -> Any:
        left = self.plain(node.left)
        for op, item in zip(node.ops, node.comparators, strict=True):
            right = self.plain(item)
            if not _COMPARE[type(op)](left, right):
                return False
            left = right
        return True

    def _ifexp(self, node: ast.IfExp) -> Any:
        return self.of(node.body if self.plain(node.test) else node.orelse)

    def _subscript(self, node: ast.Subscript) -> Any:
        value = self.of(node.value)
        if value is Mark.BROKEN:
            return value
        if not isinstance(value, str | list | tuple | dict):
            raise self.refuse("an index into what is no list")
        if isinstance(node.slice, ast.Slice):
            bounds = [
                None if b is None else self.plain(b) for b in (node.slice.lower, node.slice.upper, node.slice.step)
            ]
            return value[slice(*bounds)] if not isinstance(value, dict) else value
        index = self.plain(node.slice)
        return value[index]

    def _attribute(self, node: ast.Attribute) -> Any:
        name = _dotted(node)
        if name in NAMES:
            return NAMES[name]
        raise self.refuse(f"{name or 'an attribute'!s}")

    def _lambda(self, node: ast.Lambda) -> TensorFunction:
        problem = problem_of(node)
        if problem:
            raise self.refuse(problem)
        return TensorFunction(ast.unparse(node))

    def _call(self, node: ast.Call) -> Any:
        name = _dotted(node.func)
        if any(isinstance(item, ast.Starred) for item in node.args) or any(k.arg is None for k in node.keywords):
            raise self.refuse("a starred argument")
        if name == "torch.device":
            return Mark.DEVICE
        if name == "torch.cuda.is_available" and not node.args and not node.keywords:
            return self.cuda
        if name == "range":
            return list(self._range(node))
        if name in FUNCTIONS:
            if node.keywords:
                raise self.refuse(f"an argument by name of {name}")
            return FUNCTIONS[name](*[self.plain(item) for item in node.args])
        found = reviewed.find(name) if name else ""
        if found in reviewed.ROWS:
            positions = reviewed.POSITIONS.get(found, ())
            if len(node.args) > len(positions):
                raise self.refuse(f"an argument by position of {found}")
            arguments = {key: self.of(item) for key, item in zip(positions, node.args, strict=False)}
            arguments |= {str(keyword.arg): self.of(keyword.value) for keyword in node.keywords}
            return self.part(found, arguments)
        if isinstance(node.func, ast.Attribute):
            owner = self.of(node.func.value) if not name or name.startswith("_reference_") else None
            if owner is Mark.BROKEN:
                return owner
            if isinstance(owner, Part):
                return self._method(owner, node.func.attr, node)
        raise self.refuse(f"a call of {re.sub('_reference_[0-9]+_', 'an entry', name) or 'something'}")

    def _range(self, node: ast.Call) -> range:
        bounds = [self.plain(item) for item in node.args]
        values = range(*bounds)
        if node.keywords or len(values) > 10_000:
            raise self.refuse("a range out of all proportion")
        return values

    def _method(self, owner: Part, method: str, node: ast.Call) -> Part:
        if method in ("to", "eval"):  # the engine puts every network on the device of the run
            return owner
        allowed = reviewed.METHODS.get(owner.name, {})
        if method not in allowed or node.args:
            raise self.refuse(f"a call of {owner.name}.{method}")
        arguments = {str(keyword.arg): self.of(keyword.value) for keyword in node.keywords}
        if not arguments.keys() <= allowed[method]:
            raise self.refuse(f"an argument of {owner.name}.{method}")
        owner.calls.append((method, arguments))
        return owner


def _dotted(node: ast.expr) -> str:
    """``a.b.c`` as text; empty if it is anything else."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""

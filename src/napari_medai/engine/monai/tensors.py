"""Compute a bundle's function of one tensor from its syntax tree, with torch; no code is compiled.

What may stand in it is said, and was checked, by `napari_medai.models.monai.tensors`.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from typing import Any

import torch

from napari_medai.core.errors import ModelError
from napari_medai.models.monai.tensors import METHODS, TORCH, problem_of

_BINARY: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_UNARY: dict[type, Callable[[Any], Any]] = {ast.USub: operator.neg, ast.Invert: operator.invert}


def function(source: str) -> Callable[[Any], Any]:
    """A function of one tensor from a lambda's source.

    Raises
    ------
    ModelError
        It holds an operation that is not in the list.
    """
    node = ast.parse(source, mode="eval").body
    problem = problem_of(node) if isinstance(node, ast.Lambda) else "no lambda"
    if problem or not isinstance(node, ast.Lambda):
        raise ModelError(f"A function of the bundle holds {problem}, which is not in the list of reviewed operations.")
    body = node.body

    def compute(x: Any) -> Any:
        return _value(body, x)

    return compute


def _value(node: ast.expr | None, x: Any) -> Any:
    match node:
        case None:
            return None
        case ast.Name():
            return x
        case ast.Constant():
            return node.value
        case ast.BinOp():
            return _BINARY[type(node.op)](_value(node.left, x), _value(node.right, x))
        case ast.UnaryOp():
            return _UNARY[type(node.op)](_value(node.operand, x))
        case ast.Compare():
            return _BINARY[type(node.ops[0])](_value(node.left, x), _value(node.comparators[0], x))
        case ast.Subscript():
            return _value(node.value, x)[_value(node.slice, x)]
        case ast.Slice():
            return slice(_value(node.lower, x), _value(node.upper, x), _value(node.step, x))
        case ast.List():
            return [_value(item, x) for item in node.elts]
        case ast.Tuple():
            return tuple(_value(item, x) for item in node.elts)
        case ast.Call(func=ast.Attribute(value=owner, attr=name)):
            arguments = [_value(item, x) for item in node.args]
            given = {str(keyword.arg): _value(keyword.value, x) for keyword in node.keywords}
            if isinstance(owner, ast.Name) and owner.id == "torch" and name in TORCH:
                return getattr(torch, name)(*arguments, **given)
            of = _value(owner, x)
            if isinstance(of, torch.Tensor) and name in METHODS:
                return getattr(of, name)(*arguments, **given)
    raise ModelError("A function of the bundle does not compute on a tensor.")

"""Functions of one tensor that a bundle may write as a lambda: which operations they may hold.

The engine reads the same tree and computes it with torch; no code is compiled.
"""

from __future__ import annotations

import ast

# torch functions: name -> arguments by name
TORCH: dict[str, frozenset[str]] = {
    "where": frozenset(),
    "nan_to_num": frozenset({"nan", "posinf", "neginf"}),
    "argmax": frozenset({"dim", "keepdim"}),
    "sigmoid": frozenset(),
    "softmax": frozenset({"dim"}),
    "clamp": frozenset({"min", "max"}),
    "abs": frozenset(),
    "sum": frozenset({"dim", "keepdim"}),
    "amax": frozenset({"dim", "keepdim"}),
    "cat": frozenset({"dim"}),
    "stack": frozenset({"dim"}),
    "zeros_like": frozenset(),
    "ones_like": frozenset(),
}
# methods of a tensor
METHODS: dict[str, frozenset[str]] = {
    **{name: TORCH[name] for name in ("nan_to_num", "argmax", "sigmoid", "softmax", "clamp", "abs", "sum", "amax")},
    "float": frozenset(),
    "long": frozenset(),
    "int": frozenset(),
    "bool": frozenset(),
    "squeeze": frozenset({"dim"}),
    "unsqueeze": frozenset({"dim"}),
}
OPERATORS = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.BitAnd, ast.BitOr, ast.USub, ast.Invert)
COMPARISONS = (ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE)
MOST_NODES = 200


def problem_of(node: ast.Lambda) -> str:
    """What a lambda holds that is not in the list; empty if all of it is."""
    arguments = node.args
    if len(arguments.args) != 1 or (
        arguments.posonlyargs or arguments.kwonlyargs or arguments.vararg or arguments.kwarg or arguments.defaults
    ):
        return "a function of other than one tensor"
    if sum(1 for _ in ast.walk(node)) > MOST_NODES:
        return "a very long function"
    return _problem(node.body, arguments.args[0].arg)


def _problem(node: ast.expr, parameter: str) -> str:
    parts: list[ast.expr] = []
    if isinstance(node, ast.Name):
        return "" if node.id == parameter else f"the name {node.id!r}"
    if isinstance(node, ast.Constant):
        plain = isinstance(node.value, bool | int | float | type(None)) or node.value is Ellipsis
        return "" if plain else "a constant that is no number"
    if isinstance(node, ast.BinOp) and isinstance(node.op, OPERATORS):
        parts = [node.left, node.right]
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, OPERATORS):
        parts = [node.operand]
    elif isinstance(node, ast.Compare) and len(node.ops) == 1 and isinstance(node.ops[0], COMPARISONS):
        parts = [node.left, node.comparators[0]]
    elif isinstance(node, ast.Subscript):
        parts = [node.value, node.slice]
    elif isinstance(node, ast.Slice):
        parts = [bound for bound in (node.lower, node.upper, node.step) if bound is not None]
    elif isinstance(node, ast.List | ast.Tuple):
        parts = node.elts
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        name, owner = node.func.attr, node.func.value
        of_torch = isinstance(owner, ast.Name) and owner.id == "torch" and parameter != "torch"
        allowed = TORCH if of_torch else METHODS
        if name not in allowed or not {keyword.arg for keyword in node.keywords} <= allowed[name]:
            return f"a call of {name!r}"
        parts = [*([] if of_torch else [owner]), *node.args, *(keyword.value for keyword in node.keywords)]
    else:
        return type(node).__name__
    return next((problem for problem in (_problem(part, parameter) for part in parts) if problem), "")


def choices_of(source: str) -> list[tuple[int, int]]:
    """What a chain of ``torch.where(x[[channel]] > 0, value, …)`` gives, in its order: (value, channel).

    Empty if the function is anything else.
    """
    found: list[tuple[int, int]] = []
    node = ast.parse(source, mode="eval").body
    body = node.body if isinstance(node, ast.Lambda) else node
    while isinstance(body, ast.Call) and len(body.args) == 3:
        condition, value, body = body.args
        places = [n.slice for n in ast.walk(condition) if isinstance(n, ast.Subscript)]
        channel = [
            n.value for place in places for n in ast.walk(place) if isinstance(n, ast.Constant) and type(n.value) is int
        ]
        if len(channel) != 1 or not isinstance(value, ast.Constant) or not isinstance(value.value, int):
            return []
        found.append((value.value, channel[0]))
    return found if isinstance(body, ast.Constant) else []

"""Formulas of a mask: a small part of Python's syntax, evaluated on tensors. They can call the functions below only."""

import ast
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import checks

LONGEST, DEEPEST = 10_000, 200  # characters, and nested operations

_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "sin": torch.sin, "cos": torch.cos, "tan": torch.tan, "exp": torch.exp, "log": torch.log,
    "sqrt": torch.sqrt, "abs": torch.abs, "floor": torch.floor, "min": torch.minimum, "max": torch.maximum,
}  # fmt: skip
_OPERATORS: dict[type, Callable[..., Tensor]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.Pow: operator.pow, ast.Mod: operator.mod, ast.USub: operator.neg, ast.UAdd: operator.pos,
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
    ast.Eq: operator.eq, ast.NotEq: operator.ne,
    ast.And: torch.logical_and, ast.Or: torch.logical_or, ast.Not: torch.logical_not,
}  # fmt: skip


def parse(text: str) -> ast.expr:
    """Reads a formula.

    Args:
        text: the formula, of at most `LONGEST` characters and `DEEPEST` nested operations.

    Returns:
        Its syntax tree.

    Raises:
        ValueError: a formula that is too long or too deep, cannot be read, or has another name than the allowed ones.
    """
    if len(text) > LONGEST:
        raise ValueError(f"a formula must have at most {LONGEST} characters, got {len(text)}")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"formula {text!r} cannot be read: {getattr(error, 'msg', error)}") from None
    except (RecursionError, MemoryError):
        tree = None
    if tree is None or _depth(tree) > DEEPEST:
        raise ValueError(
            f"a formula must be nested at most {DEEPEST} deep; a sum counts one for each + in it"
        )
    for node in ast.walk(tree):
        name = getattr(node.func, "id", "?") if isinstance(node, ast.Call) else None
        if name is not None and name not in _FUNCTIONS:
            raise ValueError(f"formula {text!r} calls {name!r}; allowed are {', '.join(sorted(_FUNCTIONS))}")
        if isinstance(node, ast.Name) and node.id not in {*"xyrat", "pi", *_FUNCTIONS}:
            raise ValueError(f"formula {text!r} uses {node.id!r}; allowed are x, y, r, a, t and pi")
    return tree


def uses_time(tree: ast.expr) -> bool:
    """Whether a parsed formula contains t."""
    return any(isinstance(node, ast.Name) and node.id == "t" for node in ast.walk(tree))


def _depth(tree: ast.expr) -> int:
    level: list[ast.AST] = [tree]
    depth = 0
    while level:
        depth, level = depth + 1, [child for node in level for child in ast.iter_child_nodes(node)]
    return depth


def evaluate(node: ast.expr, names: dict[str, Any]) -> Tensor | float:
    """Evaluates a parsed formula.

    Args:
        node: from `parse`.
        names: the values of x, y, r, a, t and pi.

    Returns:
        The value, a number or a tensor.

    Raises:
        ValueError: an operation that is not allowed, or a wrong number of arguments.
    """
    value = lambda child: torch.as_tensor(evaluate(child, names), dtype=torch.float64)
    match node:
        case ast.Constant(value=int() | float() as number):
            return checks.number("a number in a formula", number + 0)
        case ast.Name(id=name) if name in names:
            return names[name]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](value(left), value(right))
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](value(operand))
        case ast.BoolOp(op=op, values=values):
            result = value(values[0])
            for other in values[1:]:
                result = _OPERATORS[type(op)](result, value(other))
            return result
        case ast.Compare(left=left, ops=ops, comparators=right) if all(type(op) in _OPERATORS for op in ops):
            chain = [value(left), *map(value, right)]
            result = torch.ones((), dtype=torch.bool)
            for a, compare, b in zip(chain, ops, chain[1:], strict=False):
                result = torch.logical_and(result, _OPERATORS[type(compare)](a, b))
            return result
        case ast.IfExp(test=test, body=body, orelse=orelse):
            return torch.where(value(test) != 0, value(body), value(orelse))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS:
            try:
                return _FUNCTIONS[name](*map(value, args))
            except TypeError:
                wanted = 2 if name in ("min", "max") else 1
                raise ValueError(
                    f"formula: {ast.unparse(node)!r} has {len(args)} arguments; {name} takes {wanted}"
                ) from None
    raise ValueError(f"formula: {ast.unparse(node)!r} is not allowed; dsnb.masks.formula lists what is")

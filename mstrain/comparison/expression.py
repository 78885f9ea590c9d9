"""Samples by expressions such as `petroMag_r - extinction_r < 17.8 and isfinite(photoz)`.

An expression is parsed, and its tree is walked: names of columns, numbers, texts, `+ - * /`,
comparisons, `and`, `or`, `not`, `isfinite`. Nothing else passes, and nothing is ever executed.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdata.errors import UsageError

_MAX_LENGTH = 500
_ARITHMETIC: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_COMPARISONS: Mapping[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_FUNCTION = "isfinite"
# What tables write for "none" in columns of numbers.
PLACEHOLDERS = (-9999.0, -999.0, -99.0)
_ALLOWED = "names of columns, numbers, texts, + - * /, comparisons, and, or, not, isfinite(...)"


@dataclass(frozen=True, kw_only=True)
class Expression:
    """A parsed expression.

    Attributes:
        text: as it was given.
        tree: its syntax, of which every node is allowed.
        names: the columns that it takes.
        needed: those of them that must be known: all that stand outside of `isfinite`.
    """

    text: str
    tree: ast.expr
    names: tuple[str, ...]
    needed: tuple[str, ...]

    def evaluate(self, columns: Mapping[str, NDArray[Any]]) -> tuple[NDArray[np.bool_], int]:
        """Which objects pass, and how many are left out since a needed value is unknown.

        Args:
            columns: (N,) by name, numbers as float64, NaN where unknown; text as objects.

        Raises:
            UsageError: text and numbers are mixed, or the expression is not a condition.
        """
        try:
            with np.errstate(all="ignore"):
                found = self._value(self.tree, columns)
        except (TypeError, np.exceptions.DTypePromotionError) as error:
            raise UsageError(f"cannot evaluate {self.text!r}: {error}") from None
        size = len(next(iter(columns.values())))
        if np.asarray(found).dtype != np.bool_:
            raise UsageError(
                f"a sample must be a condition, such as {self.names[0] if self.names else 'x'} < 1,"
                f" got {self.text!r}"
            )
        is_known = np.ones(size, bool)
        for name in self.needed:
            values = columns[name]
            if values.dtype == object:
                is_known &= np.array([value is not None for value in values], bool)
            else:
                is_known &= np.isfinite(values) & ~np.isin(values, PLACEHOLDERS)
        return np.broadcast_to(found, size) & is_known, int((~is_known).sum())

    def _value(self, node: ast.expr, columns: Mapping[str, NDArray[Any]]) -> Any:
        match node:
            case ast.Name():
                return columns[node.id]
            case ast.Constant():
                return node.value
            case ast.UnaryOp(op=ast.Not()):
                return ~self._condition(node.operand, columns)
            case ast.UnaryOp():
                return -self._value(node.operand, columns)
            case ast.BinOp():
                left, right = (self._value(n, columns) for n in (node.left, node.right))
                return _ARITHMETIC[type(node.op)](left, right)
            case ast.BoolOp():
                parts = [self._condition(value, columns) for value in node.values]
                combine = np.logical_and if isinstance(node.op, ast.And) else np.logical_or
                return combine.reduce(np.broadcast_arrays(*parts))
            case ast.Compare():
                values = [self._value(n, columns) for n in (node.left, *node.comparators)]
                found = [
                    _compare(_COMPARISONS[type(op)], values[k], values[k + 1])
                    for k, op in enumerate(node.ops)
                ]
                return np.logical_and.reduce(np.broadcast_arrays(*found))
            case ast.Call():
                return np.isfinite(np.asarray(self._value(node.args[0], columns), np.float64))
        raise AssertionError(ast.dump(node))

    def _condition(self, node: ast.expr, columns: Mapping[str, NDArray[Any]]) -> Any:
        found = np.asarray(self._value(node, columns))
        if found.dtype != np.bool_:
            raise TypeError(f"{ast.unparse(node)!r} must be a condition")
        return found


def _compare(compare: Callable[[Any, Any], Any], left: Any, right: Any) -> NDArray[np.bool_]:
    kinds = [np.asarray(side).dtype.kind in "OU" for side in (left, right)]
    if kinds[0] != kinds[1]:
        raise TypeError("text is compared with text, and numbers with numbers")
    if kinds[0] and compare not in (operator.eq, operator.ne):
        raise TypeError("text is compared by == and !=")
    return np.asarray(compare(left, right), np.bool_)


def parse_expression(text: str) -> Expression:
    """Parses an expression.

    Raises:
        UsageError: it is malformed, or holds anything but what is allowed.
    """
    if len(text) > _MAX_LENGTH:
        raise UsageError(
            f"an expression must have at most {_MAX_LENGTH} characters, got {len(text)}"
        )
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else str(error)
        raise UsageError(
            f"cannot read the expression {text!r}: {reason}; allowed: {_ALLOWED}"
        ) from None
    _check(tree, text)
    names, needed = _names(tree), _names(tree, skips_finite=True)
    return Expression(text=text, tree=tree, names=names, needed=needed)


def _check(node: ast.AST, text: str) -> None:
    match node:
        case ast.Name() | ast.Constant(value=str()):
            children: list[ast.AST] = []
        # A bool is an int; complex numbers, bytes, None and ... are none of these.
        case ast.Constant(value=int() | float()) if not isinstance(node.value, bool):
            children = []
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            children = [node.operand]
        case ast.BinOp() if type(node.op) in _ARITHMETIC:
            children = [node.left, node.right]
        case ast.BoolOp():
            children = [*node.values]
        case ast.Compare() if all(type(op) in _COMPARISONS for op in node.ops):
            children = [node.left, *node.comparators]
        case ast.Call(func=ast.Name(id="isfinite"), args=[ast.Name() as only], keywords=[]):
            children = [only]
        case _:
            what = ast.unparse(node) if isinstance(node, ast.expr) else type(node).__name__
            raise UsageError(
                f"cannot read the expression {text!r}: {what[:80]!r} is not allowed; allowed: "
                f"{_ALLOWED}"
            )
    for child in children:
        _check(child, text)


def _names(tree: ast.AST, *, skips_finite: bool = False) -> tuple[str, ...]:
    found: list[str] = []

    def walk(node: ast.AST) -> None:
        if isinstance(node, ast.Call):
            if not skips_finite:
                walk(node.args[0])
            return
        if isinstance(node, ast.Name):
            found.append(node.id)
        for child in ast.iter_child_nodes(node):
            walk(child)

    walk(tree)
    return tuple(dict.fromkeys(found))

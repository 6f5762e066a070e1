"""Values of Python expressions that anybody may have written, by a bounded walk over the syntax tree.

Nothing is executed. Only the nodes, operators, functions and methods named here are known; there are no attributes, no
names but those given, no loops and no assignment. Text, nesting and every intermediate value are bounded, and what
would exceed a bound is refused before it is computed: an expression takes milliseconds and about a megabyte.
"""

import ast
import math
import operator
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

LONGEST_TEXT = 400
"""Characters of an expression."""
DEEPEST = 40
"""Nested nodes of its syntax tree."""
MOST_BITS = 512
"""Size of a whole number."""
MOST_ITEMS = 1000
"""Characters of a string, or items of a list with all that is in them."""
MOST_DIGITS = 20
"""Decimals that ``round`` may ask for; with more, it would compute that power of ten."""


class ExpressionError(ValueError):
    """An expression that is wrong, not allowed or too large; the message is for the one who wrote it."""


def evaluate(text: str, names: Mapping[str, Any] | None = None, *, numbers_only: bool = False) -> str:
    """The value of an expression as text: numbers as Python prints them, strings without quotes.

    Args:
        names: values of the names that the expression may use.
        numbers_only: allow arithmetic on numbers and nothing else.

    Raises:
        ExpressionError: no value.
    """
    value = value_of(text, names, numbers_only=numbers_only)
    return value if isinstance(value, str) else repr(value)


def value_of(text: str, names: Mapping[str, Any] | None = None, *, numbers_only: bool = False) -> Any:
    """The value of an expression; see :func:`evaluate`."""
    tree = _parsed(text)
    walk = _Walk(names or {}, numbers_only=numbers_only)
    try:
        return walk.value(tree, 0)
    except ExpressionError:
        raise
    except ZeroDivisionError as error:
        raise ExpressionError("division by zero") from error
    except (TypeError, ValueError, ArithmeticError, LookupError) as error:
        raise ExpressionError(f"{type(error).__name__}: {error}"[:80]) from error


def same_values(text: str, reference: str, *, name: str, inputs: Sequence[Any]) -> bool:
    """Whether two expressions have equal values for every value of one name; false if the first has none."""
    try:
        return all(value_of(text, {name: x}) == value_of(reference, {name: x}) for x in inputs)
    except ExpressionError:
        return False


def _parsed(text: str) -> ast.expr:
    if len(text) > LONGEST_TEXT:
        raise ExpressionError(f"too long: {len(text)} characters, at most {LONGEST_TEXT}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about escapes in strings
            return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ExpressionError("not an expression") from error


BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Not: operator.not_,
}
COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda item, items: item in items,
    ast.NotIn: lambda item, items: item not in items,
}


def _range(*numbers: int) -> list[int]:
    if len(range(*numbers)) > MOST_ITEMS:
        raise ExpressionError("too many items")
    return list(range(*numbers))


def _round(number: float, digits: int | None = None) -> float:
    if digits is not None and abs(digits) > MOST_DIGITS:
        raise ExpressionError("too many digits")
    return round(number, digits)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{function.__name__: function for function in (abs, bool, float, int, len, list, max, min, sorted, str, sum)},
    "range": _range,
    "reversed": lambda items: list(reversed(items)),
    "round": _round,
}
METHODS = frozenset(
    (
        *("capitalize", "count", "endswith", "find", "index", "isalpha", "isdigit", "islower", "isupper", "join"),
        *("lower", "lstrip", "replace", "rstrip", "split", "startswith", "strip", "swapcase", "title", "upper"),
    )
)
"""Methods of strings."""


class _Walk:
    """The values of the nodes of one expression."""

    def __init__(self, names: Mapping[str, Any], *, numbers_only: bool) -> None:
        self.names, self.numbers_only = names, numbers_only

    def value(self, node: ast.AST, depth: int) -> Any:
        """The value of a node, within all bounds."""
        if depth > DEEPEST:
            raise ExpressionError("nested too deeply")
        rule = RULES.get(type(node))
        if rule is None or (self.numbers_only and type(node) not in OF_NUMBERS):
            raise ExpressionError(f"{type(node).__name__} is not allowed")
        value = _bounded(rule(self, node, depth + 1))
        if self.numbers_only and type(value) not in (int, float):
            raise ExpressionError("only numbers are allowed")
        return value

    def constant(self, node: ast.Constant, depth: int) -> Any:
        if node.value is not None and type(node.value) not in (bool, int, float, str):
            raise ExpressionError(f"{type(node.value).__name__} is not allowed")
        return node.value

    def name(self, node: ast.Name, depth: int) -> Any:
        if node.id not in self.names:
            raise ExpressionError(f"the name {node.id[:40]} is not allowed")
        return self.names[node.id]

    def binary(self, node: ast.BinOp, depth: int) -> Any:
        kind = type(node.op)
        if kind not in BINARY:
            raise ExpressionError(f"{kind.__name__} is not allowed")
        left, right = self.value(node.left, depth), self.value(node.right, depth)
        _check_operands(kind, left, right)
        return BINARY[kind](left, right)

    def unary(self, node: ast.UnaryOp, depth: int) -> Any:
        if type(node.op) not in UNARY:
            raise ExpressionError(f"{type(node.op).__name__} is not allowed")
        return UNARY[type(node.op)](self.value(node.operand, depth))

    def comparison(self, node: ast.Compare, depth: int) -> bool:
        left = self.value(node.left, depth)
        for kind, following in zip(node.ops, node.comparators, strict=True):
            if type(kind) not in COMPARISONS:
                raise ExpressionError(f"{type(kind).__name__} is not allowed")
            right = self.value(following, depth)
            if not COMPARISONS[type(kind)](left, right):
                return False
            left = right
        return True

    def boolean(self, node: ast.BoolOp, depth: int) -> Any:
        is_and, value = isinstance(node.op, ast.And), None
        for each in node.values:
            value = self.value(each, depth)
            if bool(value) != is_and:
                break
        return value

    def conditional(self, node: ast.IfExp, depth: int) -> Any:
        return self.value(node.body if self.value(node.test, depth) else node.orelse, depth)

    def items(self, node: ast.List | ast.Tuple, depth: int) -> Any:
        values = [self.value(each, depth) for each in node.elts]
        return values if isinstance(node, ast.List) else tuple(values)

    def subscript(self, node: ast.Subscript, depth: int) -> Any:
        return self.value(node.value, depth)[self.value(node.slice, depth)]

    def slice(self, node: ast.Slice, depth: int) -> slice:
        parts = (node.lower, node.upper, node.step)
        return slice(*(None if part is None else self.value(part, depth) for part in parts))

    def call(self, node: ast.Call, depth: int) -> Any:
        if node.keywords or any(isinstance(each, ast.Starred) for each in node.args):
            raise ExpressionError("only positional arguments are allowed")
        if isinstance(node.func, ast.Attribute):  # the only attributes there are
            text = self.value(node.func.value, depth)
            if type(text) is not str or node.func.attr not in METHODS:
                raise ExpressionError(f"the attribute {node.func.attr[:40]} is not allowed")
            return getattr(str, node.func.attr)(text, *(self.value(each, depth) for each in node.args))
        if not isinstance(node.func, ast.Name) or node.func.id not in FUNCTIONS:
            raise ExpressionError("this function is not allowed")
        return FUNCTIONS[node.func.id](*(self.value(each, depth) for each in node.args))


def _check_operands(kind: type[ast.operator], left: Any, right: Any) -> None:
    """Refuse an operation whose result would be too large to compute."""
    if kind is ast.Mod and isinstance(left, str):  # formatting, whose width is unbounded
        raise ExpressionError("formatting is not allowed")
    if kind is ast.Mult:
        for items, times in ((left, right), (right, left)):
            if isinstance(items, str | list | tuple) and isinstance(times, int) and _size(items) * times > MOST_ITEMS:
                raise ExpressionError("too many items")
    whole = isinstance(left, int) and isinstance(right, int)
    if kind is ast.Pow and whole and right > 1 and abs(left) > 1 and left.bit_length() * right > 2 * MOST_BITS:
        raise ExpressionError("the number is too large")


def _bounded(value: Any) -> Any:
    """The value, if it is within the bounds."""
    if isinstance(value, int) and value.bit_length() > MOST_BITS:
        raise ExpressionError("the number is too large")
    if isinstance(value, complex) or (isinstance(value, float) and not math.isfinite(value)):
        raise ExpressionError("not a real number")
    if isinstance(value, str | list | tuple) and _size(value) > MOST_ITEMS:
        raise ExpressionError("too many items")
    return value


def _size(value: Any) -> int:
    """Characters of a string; items of a list, and the sizes of those."""
    if isinstance(value, str):
        return len(value)
    return sum(1 + _size(each) for each in value) if isinstance(value, list | tuple) else 0


RULES: dict[type[ast.AST], Callable[[_Walk, Any, int], Any]] = {
    ast.Constant: _Walk.constant,
    ast.Name: _Walk.name,
    ast.BinOp: _Walk.binary,
    ast.UnaryOp: _Walk.unary,
    ast.Compare: _Walk.comparison,
    ast.BoolOp: _Walk.boolean,
    ast.IfExp: _Walk.conditional,
    ast.List: _Walk.items,
    ast.Tuple: _Walk.items,
    ast.Subscript: _Walk.subscript,
    ast.Slice: _Walk.slice,
    ast.Call: _Walk.call,
}
OF_NUMBERS = (ast.Constant, ast.BinOp, ast.UnaryOp)

"""The bounded walk gives Python's own values, and refuses what Python would run."""

import ast
import random

import pytest

from tinyllm.utils.expressions import ExpressionError, evaluate, same_values, value_of


def random_expression(rng: random.Random, depth: int = 0) -> str:
    """Arithmetic on small numbers, comparisons and conditionals."""
    if depth > 3 or rng.random() < 0.25:
        return rng.choice(("0", "1", "7", "12", "345", "2.5", "(-3)"))
    left, right = random_expression(rng, depth + 1), random_expression(rng, depth + 1)
    kind = rng.choice(("+", "-", "*", "/", "//", "%", "<", "==", "if", "min", "list"))
    if kind == "if":
        return f"({left} if {right} else {random_expression(rng, depth + 1)})"
    if kind == "min":
        return f"max({left}, abs({right}))"
    if kind == "list":
        return f"[{left}, {right}][{rng.choice((0, 1, -1))}]"
    return f"({left} {kind} {right})"


def test_values_are_pythons() -> None:
    rng = random.Random(0)
    agreed = 0
    for _ in range(300):
        text = random_expression(rng)
        try:
            wanted = eval(text, {"__builtins__": {"max": max, "abs": abs}})
        except ZeroDivisionError:
            with pytest.raises(ExpressionError, match="division by zero"):
                value_of(text)
            continue
        got = value_of(text)
        assert (type(got), got) == (type(wanted), wanted), text
        agreed += 1
    assert agreed > 150


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12+345", "357"),
        ("7-12", "-5"),
        ("2**10 % 7", "2"),
        ("1/4", "0.25"),
        ("'word'[::-1]", "drow"),
        ("len('word')", "4"),
        ("'word'.upper()", "WORD"),
        ("sum([1, 2, 3]) == 6 and not False", "True"),
        ("'-'.join(sorted(['b', 'a']))", "a-b"),
        ("1 < 2 < 3", "True"),
        ("1 < 2 > 3", "False"),
        ("0 or 'x' or 1", "x"),
        ("list(range(2, 9, 3))", "[2, 5, 8]"),
        ("round(2.567, 1)", "2.6"),
        ("'o' in 'word'", "True"),
        ("  1 + 1", "2"),
    ],
)
def test_examples(text: str, value: str) -> None:
    assert evaluate(text) == value


def test_names_are_those_given() -> None:
    assert value_of("2*x + 1", {"x": 5}) == 11
    with pytest.raises(ExpressionError, match="the name y is not allowed"):
        value_of("x + y", {"x": 5})


def test_a_calculator_knows_numbers_only() -> None:
    assert evaluate("-(2 + 3) * 4", numbers_only=True) == "-20"
    for text in ("'a'", "True", "len('a')", "[1]", "1 < 2", "1 if 2 else 3"):
        with pytest.raises(ExpressionError):
            evaluate(text, numbers_only=True)


def test_equal_functions() -> None:
    inputs = (-3, 0, 1, 8)
    assert same_values("x*2 + 6", "(x+3)*2", name="x", inputs=inputs)
    assert not same_values("x*2 + 3", "(x+3)*2", name="x", inputs=inputs)
    assert not same_values("x.real", "x", name="x", inputs=inputs)
    assert not same_values("", "x", name="x", inputs=inputs)


def test_every_node_of_python_has_been_decided_on() -> None:
    """A node that a new Python adds is refused: what is allowed is a list, not what is forbidden."""
    for text in ("lambda: 1", "[x for x in [1]]", "{1: 2}", "{1}", "f'{1}'", "(y := 1)", "1j", "b'a'", "...", "~1"):
        ast.parse(text, mode="eval")
        with pytest.raises(ExpressionError):
            evaluate(text)

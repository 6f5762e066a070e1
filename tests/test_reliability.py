"""The table of docs/reliability.md is true: its tests exist, and its messages are said."""

import ast
import re
from functools import cache

import pytest

from tests.reliability import NOT_HERE, ROWS, Row, markdown
from tests.support import sources

ALL = {f"R{number:02}" for number in range(1, 49)}


@cache
def functions(file: str) -> set[str]:
    """The functions of a test file."""
    path = sources.ROOT / "tests" / file
    return {node.name for node in sources.tree(path).body if isinstance(node, ast.FunctionDef)}


@cache
def texts(place: str) -> str:
    """The text constants of a file of tests, or of the package, those inside f-strings too."""
    paths = sources.files() if place == "tinyllm" else [sources.ROOT / "tests" / place]
    constants = (
        node.value for path in paths for node in ast.walk(sources.tree(path)) if isinstance(node, ast.Constant)
    )
    return "\n".join(one for one in constants if isinstance(one, str))


def test_the_document_is_current() -> None:
    assert (sources.ROOT / "docs" / "reliability.md").read_text(encoding="utf-8") == markdown()


def test_no_fault_of_the_list_is_left_out() -> None:
    numbers = [row.number for row in ROWS]
    assert len(numbers) == len(set(numbers))
    assert set(numbers) | NOT_HERE.keys() >= ALL


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.number)
def test_a_row_is_true(row: Row) -> None:
    assert row.tests
    for test in row.tests:
        file, _, name = test.partition("::")
        assert name.startswith("test_") and name in functions(file), test
    pieces = [piece.strip(" ():;") for piece in re.split("…", row.message) if piece.strip(" ():;")]
    of_tests = "\n".join(texts(test.partition("::")[0]) for test in row.tests)
    assert [piece for piece in pieces if piece not in of_tests and piece not in texts("tinyllm")] == []
    assert not pieces or any(piece in of_tests for piece in pieces), "no test of the row looks for what is said"

"""The table of docs/reliability.md is current: its tests exist, and its messages are in the code."""

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
def strings(file: str) -> str:
    """The string constants of a test file or of the package, including those inside f-strings."""
    paths = sources.files() if file == "tinyllm" else [sources.ROOT / "tests" / file]
    constants = (
        node.value for path in paths for node in ast.walk(sources.tree(path)) if isinstance(node, ast.Constant)
    )
    return "\n".join(value for value in constants if isinstance(value, str))


def test_the_document_is_current() -> None:
    assert (sources.ROOT / "docs" / "reliability.md").read_text(encoding="utf-8") == markdown()


def test_every_fault_has_a_row_or_a_reason() -> None:
    numbers = [row.number for row in ROWS]
    assert len(numbers) == len(set(numbers))
    assert set(numbers) | NOT_HERE.keys() >= ALL


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.number)
def test_the_tests_and_messages_of_a_row_exist(row: Row) -> None:
    assert row.tests
    for test in row.tests:
        file, _, name = test.partition("::")
        assert name.startswith("test_") and name in functions(file), test
    pieces = [piece.strip(" ():;") for piece in re.split("…", row.message) if piece.strip(" ():;")]
    in_tests = "\n".join(strings(test.partition("::")[0]) for test in row.tests)
    assert [piece for piece in pieces if piece not in in_tests and piece not in strings("tinyllm")] == []
    assert not pieces or any(piece in in_tests for piece in pieces), "no test of the row checks the message"

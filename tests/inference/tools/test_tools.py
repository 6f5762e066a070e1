"""Tools: calls in both forms, errors that the model reads, and hostile calls, none of which is executed."""

import builtins
import os
import subprocess
import time
import tracemalloc
from pathlib import Path

import pytest

from tinyllm.errors import UserError
from tinyllm.inference.tools.base import LONGEST_RESULT, Tool
from tinyllm.inference.tools.expression import Calculator, PythonExpression

HOSTILE = [
    "__import__('os').system('touch {mark}')",
    "open('{mark}', 'w')",
    "exec('import os')",
    "eval('1+1')",
    "compile('1', '', 'eval')",
    "globals()",
    "getattr(1, 'real')",
    "breakpoint()",
    "(lambda: open('{mark}', 'w'))()",
    "[open('{mark}', 'w') for _ in [1]]",
    "().__class__.__bases__[0].__subclasses__()",
    "''.__class__.__mro__",
    "(1).__add__.__self__",
    "'{0.__class__}'.format(1)",
    'f\'{open("{mark}", "w")}\'',
    "'%999999999d' % 1",
    "9**9**9**9**9",
    "2**2**30",
    "10**100000",
    "(10**150)**(10**150)",
    "1e308*10",
    "'a'*10**9",
    "[0]*10**9",
    "(('a'*1000)*1000)*1000",
    "[[[0]*1000]*1000]*1000",
    "list(range(10**12))",
    "round(1, -10**9)",
    "('a'*1000).replace('', 'b'*1000)",
    "(" * 300,
    "-" * 390 + "1",
    "[" * 150 + "]" * 150,
    "1" + "+1" * 199,
    "9" * 400,
    "'a'.ljust(10**10)",
    "int('9'*400)**300",
    "sum([1], start=open('{mark}', 'w'))",
    "max(*[1, 2])",
    "1 +\nimport os",
    "\x00",
    "\ud800",
    '{"expression": "__import__(\'os\')"}',
    "{" * 200,
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_calls_are_refused_at_once(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    executed: list[str] = []
    for place, name in ((os, "system"), (subprocess, "Popen"), (builtins, "exec"), (builtins, "eval")):
        monkeypatch.setattr(place, name, lambda *_, name=name, **__: executed.append(name))
    mark = tmp_path / "executed"
    tracemalloc.start()
    start = time.thread_time()  # CPU time, so that a busy machine does not matter
    result = PythonExpression(max_calls=1).call(text.replace("{mark}", str(mark)))
    spent = time.thread_time() - start
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert result.is_error, result.text
    assert executed == [] and not mark.exists()
    assert spent < 0.05
    assert peak < 50e6


def test_there_are_thirty_of_them() -> None:
    assert len(set(HOSTILE)) >= 30


@pytest.mark.parametrize("arguments", ["2+3", '{"expression": "2+3"}', ' {"expression": "2+3"} '])
def test_both_forms_of_a_call(arguments: str) -> None:
    result = Calculator(max_calls=1).call(arguments)
    assert (result.text, result.is_error) == ("5", False)


@pytest.mark.parametrize("arguments", ['{"expression": 5}', '{"other": "1"}', "{broken"])
def test_a_wrong_call_is_an_error_to_read(arguments: str) -> None:
    result = Calculator(max_calls=1).call(arguments)
    assert result.is_error and result.text.startswith("error: the arguments")


class Bad(Tool):
    name = "bad"

    def run(self, text: str) -> str:
        if text == "long":
            return "x" * 5000
        raise KeyError(text)


def test_a_tool_of_ones_own_that_fails_ends_nothing() -> None:
    tool = Bad(max_calls=1)
    assert tool.call("a").is_error
    assert tool.call("a").text == "error: KeyError: 'a'"
    long = tool.call("long")
    assert len(long.text) == LONGEST_RESULT + 1 and not long.is_error


def test_the_specification_is_openais() -> None:
    function = PythonExpression(max_calls=2).specification()["function"]
    assert function["name"] == "python_expression"
    assert function["parameters"]["required"] == ["expression"]


@pytest.mark.parametrize("max_calls", [0, -1, 10**6])
def test_calls_are_limited(max_calls: int) -> None:
    with pytest.raises(UserError, match=r"tools\.max_calls"):
        Calculator(max_calls=max_calls)

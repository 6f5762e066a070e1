"""Calls of tools in generated tokens, and what is forced in after them."""

from collections.abc import Sequence

import numpy as np
import pytest

from tinyllm.inference.tools.calls import Call, ToolLoop, calls_in, spelled
from tinyllm.inference.tools.expression import Calculator
from tinyllm.tokenizers import Tokenizer
from tinyllm.tokenizers.byte import ByteTrainer

TOKENS = ["<tool_call>", "</tool_call>", "<sep>", "<eos>"]
TOKENIZER = ByteTrainer(special_tokens=TOKENS, match_special=False).train([])


def ids_of(text: str) -> list[int]:
    """Ids of a text whose special tokens are meant."""
    return TOKENIZER.matching(True).encode(text).tolist()


class Brackets:
    """A template that puts every result in brackets."""

    def results_ids(self, results: Sequence[str], tokenizer: Tokenizer) -> np.ndarray:
        return tokenizer.encode("".join(f"[{result}]" for result in results))


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ("<tool_call>calculator<sep>1+2</tool_call>", [Call("calculator", "1+2")]),
        ('<tool_call>\n{"name": "calculator", "arguments": "1+2"}\n</tool_call>', [Call("calculator", "1+2")]),
        (
            'a <tool_call>{"name": "a", "arguments": {"x": "}"}}</tool_call>\n<tool_call>b<sep></tool_call>',
            [Call("a", '{"x": "}"}'), Call("b", "")],
        ),
        ("no call<eos>", []),
        ("<tool_call>calculator<sep>1+2", []),
        ("<tool_call>1+2</tool_call>", [Call("", "1+2")]),
        ("<tool_call>[1]</tool_call>", [Call("", "[1]")]),
        ("<tool_call>" + "[" * 3000 + "</tool_call>", [Call("", "[" * 3000)]),
    ],
)
def test_calls_in_a_text(text: str, calls: list[Call]) -> None:
    assert calls_in(text) == calls


def test_special_tokens_are_spelled() -> None:
    text = "é<tool_call>a<sep>b</tool_call>c<eos>"
    assert spelled(TOKENIZER, ids_of(text)) == text


def test_results_are_forced_in() -> None:
    loop = ToolLoop(tokenizer=TOKENIZER, template=Brackets(), tool=Calculator(max_calls=2))
    asked = "<tool_call>calculator<sep>6*7</tool_call>"
    handover = loop(ids_of(asked), 0)
    assert (TOKENIZER.decode(handover.forced), handover.calls, handover.errors) == ("[42]", 1, 0)
    both = loop(ids_of(asked + "<tool_call>weather<sep>x</tool_call>"), 0)
    assert TOKENIZER.decode(both.forced) == "[42][error: there is no tool weather]"
    assert (both.calls, both.errors) == (2, 1)


def test_what_ends_an_answer() -> None:
    loop = ToolLoop(tokenizer=TOKENIZER, template=Brackets(), tool=Calculator(max_calls=2))
    done = loop(ids_of("42<eos>"), 2)
    assert done.ended and not done.forced
    asked = ids_of("<tool_call>calculator<sep>1</tool_call>")
    too_many = loop(asked, 2)
    assert not too_many.ended and not too_many.forced and too_many.calls == 0
    without = ToolLoop(tokenizer=TOKENIZER, template=Brackets(), tool=None)(asked, 0)
    assert not without.ended and not without.forced


def test_a_spelled_call_in_the_result_is_text() -> None:
    """A tool's result cannot make a call: it is encoded as text."""
    loop = ToolLoop(tokenizer=TOKENIZER, template=Brackets(), tool=Calculator(max_calls=1))
    forced = loop(ids_of("<tool_call><tool_call><sep>1</tool_call>"), 0).forced
    assert not set(forced) & set(TOKENIZER.special.values())

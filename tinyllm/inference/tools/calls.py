"""Calls of tools in what a model writes, and their results as the chat template forms them."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from tinyllm.inference.rollout import Handover
from tinyllm.inference.tools.base import Tool, ToolResult
from tinyllm.tokenizers import Tokenizer
from tinyllm.utils.files import parse_json

BEGIN, END, BETWEEN = "<tool_call>", "</tool_call>", "<sep>"
CALL = re.compile(f"{BEGIN}(.*?){END}", re.DOTALL)


class Template(Protocol):
    """What a chat template tells about calls."""

    def results_ids(self, results: Sequence[str], tokenizer: Tokenizer) -> np.ndarray:
        """The ids that follow calls with these results, until the assistant goes on."""


class Call(NamedTuple):
    """A call that a model wrote: the name of a tool, and its arguments as text."""

    name: str
    arguments: str


def calls_in(text: str) -> list[Call]:
    """The calls in a turn whose special tokens are spelled, in order.

    ``<tool_call>name<sep>arguments</tool_call>``, or an object with ``name`` and ``arguments`` as most published
    templates write it. What is neither is a call of no tool, so that the model reads that it was wrong.
    """
    return [_call(content) for content in CALL.findall(text)]


def _call(content: str) -> Call:
    name, between, arguments = content.partition(BETWEEN)
    if between:
        return Call(name.strip(), arguments)
    try:
        found = parse_json(content)
    except (ValueError, RecursionError):
        return Call("", content)
    if not isinstance(found, dict) or not isinstance(found.get("name"), str):
        return Call("", content)
    arguments = found.get("arguments", "")
    return Call(found["name"], arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False))


def spelled(tokenizer: Tokenizer, ids: Iterable[int]) -> str:
    """The text of ids with special tokens as they are spelled."""
    names = {token: text for text, token in tokenizer.special.items()}
    parts: list[str] = []
    plain: list[int] = []
    for token in ids:
        if token in names:
            parts += [tokenizer.decode(plain), names[token]]
            plain = []
        else:
            plain.append(token)
    return "".join([*parts, tokenizer.decode(plain)])


@dataclass(frozen=True, kw_only=True)
class ToolLoop:
    """Carries out the calls of a model and forces their results in: the ``OnStop`` of a rollout.

    Args:
        tool: the tool that may be called; None: calls are not carried out.
    """

    tokenizer: Tokenizer
    template: Template
    tool: Tool | None

    def __call__(self, ids: Sequence[int], calls: int) -> Handover:
        asked = calls_in(spelled(self.tokenizer, ids))
        if not asked:
            return Handover()
        if self.tool is None or calls + len(asked) > self.tool.max_calls:
            return Handover(ended=False)
        results = [self.result(call) for call in asked]
        texts = [result.text for result in results]
        forced = self.template.results_ids(texts, self.tokenizer)
        errors = sum(result.is_error for result in results)
        return Handover(forced=forced.tolist(), calls=len(asked), errors=errors, results=texts)

    def result(self, call: Call) -> ToolResult:
        """The result of one call; of a tool that is not there, an error to read."""
        assert self.tool is not None
        if call.name != self.tool.name:
            return ToolResult(text=f"error: there is no tool {call.name[:40]}", is_error=True)
        return self.tool.call(call.arguments)

"""Conversations for tests."""

import json
import random
from pathlib import Path
from typing import Any

from tinyllm.data.chat.messages import Conversation, parse_conversation

WORDS = [
    "what",
    "is",
    "the",
    "sum",
    "of",
    "red",
    "apples",
    "and",
    "12",
    "+",
    "30",
    "then",
    "café",
    "says",
    "no\nmaybe?",
    "{yes}",
    '"quoted"',
    "it's",
]
TOOL = {"type": "function", "function": {"name": "calc", "description": "Adds.", "parameters": {"type": "object"}}}


def text(random_: random.Random, most: int = 8) -> str:
    """A few words."""
    return " ".join(random_.choice(WORDS) for _ in range(random_.randint(1, most)))


def record(seed: int, *, tools: bool = True, spelled: tuple[str, ...] = ()) -> dict[str, Any]:
    """A conversation in OpenAI's form: one to four questions, some answered by way of one or two calls of a tool.

    Args:
        spelled: special tokens that some texts spell.
    """
    random_ = random.Random(seed)

    def say() -> str:
        return text(random_) + (f" {random_.choice(spelled)} {text(random_)}" if spelled else "")

    messages: list[dict[str, Any]] = [{"role": "system", "content": say()}] if random_.random() < 0.5 else []
    for turn in range(random_.randint(1, 4)):
        messages.append({"role": "user", "content": say()})
        if tools and random_.random() < 0.6:
            ids = [f"{turn}-{call}" for call in range(random_.randint(1, 2))]
            calls = [
                {"id": i, "type": "function", "function": {"name": "calc", "arguments": {"x": say(), "n": turn}}}
                for i in ids
            ]
            messages.append({"role": "assistant", "content": random_.choice(["", say()]), "tool_calls": calls})
            messages += [{"role": "tool", "content": say(), "tool_call_id": i} for i in ids]
        messages.append({"role": "assistant", "content": say()})
    return {"messages": messages} | ({"tools": [TOOL]} if tools and random_.random() < 0.5 else {})


def conversation(seed: int, **options: Any) -> Conversation:
    """A :func:`record` as a conversation."""
    return parse_conversation(record(seed, **options))


def write_records(path: Path, records: list[dict[str, Any]]) -> Path:
    """A file of JSON lines."""
    path.write_text("".join(json.dumps(each) + "\n" for each in records), encoding="utf-8")
    return path

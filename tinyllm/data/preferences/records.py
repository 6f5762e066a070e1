"""A preference as a record: a prompt with the answer that was chosen and the one that was rejected."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tinyllm.data.chat.messages import ASSISTANT, Conversation, Message, conversation_of
from tinyllm.errors import UserError

PROMPT, CHOSEN, REJECTED = FIELDS = ("prompt", "chosen", "rejected")
EQUAL = "the chosen answer equals the rejected one"


@dataclass(frozen=True)
class TextPreference:
    """A prompt and two different answers to it, as texts that the model continues."""

    prompt: str
    chosen: str
    rejected: str

    @property
    def key(self) -> str:
        """What decides on which side of the split it is: the prompt, so that none is on both."""
        return self.prompt

    @property
    def identity(self) -> str:
        """Equal for equal preferences."""
        return json.dumps([self.prompt, self.chosen, self.rejected])

    def texts(self) -> Iterator[str]:
        """All texts, for training a tokenizer."""
        yield from (self.prompt, self.chosen, self.rejected)


@dataclass(frozen=True)
class ChatPreference:
    """The beginning of a conversation, and two different ways in which it goes on.

    Attributes:
        prompt: the number of messages that both have in common.
        chosen, rejected: the whole conversations.
    """

    prompt: int
    chosen: Conversation
    rejected: Conversation

    @property
    def beginning(self) -> Conversation:
        """What both conversations answer."""
        return Conversation(self.chosen.messages[: self.prompt], self.chosen.tools)

    @property
    def key(self) -> str:
        """What decides on which side of the split it is: the prompt, so that none is on both."""
        return self.beginning.to_json()

    @property
    def identity(self) -> str:
        """Equal for equal preferences."""
        return json.dumps([self.chosen.to_json(), self.rejected.to_json()])

    def texts(self) -> Iterator[str]:
        """All texts, for training a tokenizer."""
        yield from self.chosen.texts()
        yield from self.rejected.texts()


Preference = TextPreference | ChatPreference


def parse_preference(record: Any, *, place: str = "") -> Preference:
    """The preference of a JSON record.

    Its fields are texts; or lists of messages, of which ``prompt`` may be left out where both answers begin with it.

    Args:
        place: where the record is, for error messages.

    Raises:
        UserError: it is not a preference; the message says why.
    """
    if not isinstance(record, dict):
        raise _refused("not a preference", place, 'it must be an object, {"prompt": …, "chosen": …, "rejected": …}')
    has_messages = any(isinstance(record.get(name), list) for name in FIELDS)
    missing = next((name for name in FIELDS[has_messages:] if record.get(name) is None), None)
    if missing:
        found = ", ".join(sorted(map(str, record))[:20]) or "none"
        raise _refused(f"no field `{missing}`", place, f"its fields are {found}")
    return _of_messages(record, place) if has_messages else _of_texts(record, place)


def _of_texts(record: dict[str, Any], place: str) -> TextPreference:
    values = [record[name] for name in FIELDS]
    for name, value in zip(FIELDS, values, strict=True):
        if not isinstance(value, str):
            raise _refused(f"`{name}` is not text", place, "it must be a string, or all three lists of messages")
        if name != PROMPT and not value.strip():
            raise _refused(f"`{name}` is empty", place, "leave the pair out, or give the answer a text")
    preference = TextPreference(*values)
    if preference.chosen == preference.rejected:
        raise _refused(EQUAL, place, "there is nothing to learn from it")
    return preference


def _of_messages(record: dict[str, Any], place: str) -> ChatPreference:
    given = record.get(PROMPT)
    prompt = given if isinstance(given, list) else []
    sides = [_entries(record[name], prompt, name, place) for name in (CHOSEN, REJECTED)]
    chosen, rejected = (conversation_of(side, tools=record.get("tools"), place=place) for side in sides)
    if chosen == rejected:
        raise _refused(EQUAL, place, "there is nothing to learn from it")
    common = _common(chosen.messages, rejected.messages)
    answers = [conversation.messages[common:] for conversation in (chosen, rejected)]
    if prompt and common >= len(prompt):
        common = len(prompt)
    elif not common or not all(answer and answer[0].role == ASSISTANT for answer in answers):
        hint = "both must begin with the same messages and go on with the assistant's"
        raise _refused("the chosen and the rejected answer have different prompts", place, hint)
    for name, conversation in ((CHOSEN, chosen), (REJECTED, rejected)):
        if conversation.messages[-1].role != ASSISTANT:
            raise _refused(f"`{name}` does not end with the assistant", place, "its last message must be the answer")
    return ChatPreference(common, chosen, rejected)


def _entries(answer: Any, prompt: list[Any], name: str, place: str) -> list[Any]:
    """The messages of a whole conversation, as JSON."""
    if isinstance(answer, str):
        answer = [{"role": ASSISTANT, "content": answer}]
    if isinstance(answer, dict):
        answer = [answer]
    if not isinstance(answer, list) or not answer:
        raise _refused(f"`{name}` is not a list of messages", place, "it must hold at least one")
    return answer if answer[: len(prompt)] == prompt else [*prompt, *answer]


def _common(first: Sequence[Message], second: Sequence[Message]) -> int:
    """How many messages both begin with."""
    pairs = zip(first, second, strict=False)
    return next((number for number, (one, other) in enumerate(pairs) if one != other), min(len(first), len(second)))


def _refused(what: str, place: str, hint: str) -> UserError:
    return UserError(what, file=place or None, hint=hint)

"""Messages and conversations, read from the JSON of OpenAI's chat format and of ShareGPT."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tinyllm.errors import UserError
from tinyllm.utils.files import parse_json

SYSTEM, USER, ASSISTANT, TOOL = ROLES = ("system", "user", "assistant", "tool")
SHAREGPT = {"system": SYSTEM, "human": USER, "gpt": ASSISTANT, "function_call": ASSISTANT, "observation": TOOL}
"""ShareGPT's ``from`` and the role it stands for; further files use the roles themselves."""
MESSAGES, TURNS = "messages", "conversations"
"""The field that holds the list, of OpenAI's form and of ShareGPT's."""


@dataclass(frozen=True)
class ToolCall:
    """A call that an assistant makes.

    Attributes:
        name: of the tool.
        arguments: an object, or a text that the tool takes as it is.
        call_id: identifies the call to its result; "" if the file has none.
    """

    name: str
    arguments: str | dict[str, Any]
    call_id: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The call in OpenAI's form."""
        call = {"type": "function", "function": {"name": self.name, "arguments": self.arguments}}
        return {"id": self.call_id, **call} if self.call_id else call


@dataclass(frozen=True)
class Message:
    """One message of a conversation.

    Attributes:
        role: one of ``ROLES``.
        content: its text; may be empty if an assistant calls a tool.
        tool_calls: the calls of an assistant.
        call_id: of a tool's result: the call that it answers; "" if the file has none.
    """

    role: str
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    call_id: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The message in OpenAI's form, as chat templates read it."""
        message: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.tool_calls:
            message["tool_calls"] = [call.to_dict() for call in self.tool_calls]
        return message | ({"tool_call_id": self.call_id} if self.call_id else {})


@dataclass(frozen=True)
class Conversation:
    """Messages in order, and the tools that the assistant may call.

    Attributes:
        messages: at least one.
        tools: descriptions of the tools, as JSON schema; empty if the file lists none.
    """

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The conversation in OpenAI's form."""
        record: dict[str, Any] = {MESSAGES: [message.to_dict() for message in self.messages]}
        return record | ({"tools": list(self.tools)} if self.tools else {})

    def to_json(self) -> str:
        """The conversation as one line of JSON; equal conversations give equal lines."""
        return json.dumps(self.to_dict(), ensure_ascii=False, sort_keys=True)

    def texts(self) -> list[str]:
        """All texts that the model may read or write, for training a tokenizer."""
        found = []
        for message in self.messages:
            found.append(message.content)
            for call in message.tool_calls:
                found += [call.name, argument_text(call.arguments)]
        found += [json.dumps(tool, ensure_ascii=False) for tool in self.tools]
        return [text for text in found if text]


def argument_text(arguments: str | Mapping[str, Any]) -> str:
    """The arguments of a call as text: JSON, unless they are text already."""
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def parse_conversation(record: Any, *, place: str = "", complete: bool = True) -> Conversation:
    """The conversation of a JSON record in OpenAI's form (``messages``) or ShareGPT's (``conversations``).

    Args:
        place: where the record is, for error messages, such as ``chats.jsonl:3``.
        complete: require an assistant's turn, as training does. False: the record may be a prompt.

    Raises:
        UserError: it is not a conversation; the message says which message is wrong, and how.
    """
    if not isinstance(record, dict):
        raise _refused(
            "not a conversation", place, 'it must be an object, {"messages": [{"role": …, "content": …}, …]}'
        )
    field = MESSAGES if MESSAGES in record else TURNS
    if field not in record:
        found = f"its fields are {', '.join(sorted(map(str, record))[:20])}" if record else "it has no fields"
        raise _refused(f"no field `{MESSAGES}`", place, f"{found}; ShareGPT's `{TURNS}` is read, too")
    entries = record[field]
    if not isinstance(entries, list) or not entries:
        raise _refused(f"`{field}` is not a list of messages", place, "it must hold at least one")
    return conversation_of(entries, tools=record.get("tools"), place=place, complete=complete)


def conversation_of(
    entries: Sequence[Any], *, tools: Any = None, place: str = "", complete: bool = True
) -> Conversation:
    """The conversation of a list of messages; see :func:`parse_conversation`."""
    messages = tuple(_message(entry, f"{place} message {n}".strip()) for n, entry in enumerate(entries, start=1))
    described = _tools(tools, place)
    _check_turns(messages, place, {_name(tool) for tool in described})
    if complete and not any(message.role == ASSISTANT for message in messages):
        raise _refused("no assistant turn", place, "there is nothing to learn from it; leave it out")
    return Conversation(messages, described)


def _message(entry: Any, place: str) -> Message:
    if not isinstance(entry, dict):
        raise _refused("not a message", place, 'it must be an object, {"role": …, "content": …}')
    if "from" in entry and "role" not in entry:
        return _sharegpt_message(entry, place)
    role = entry.get("role")
    if role not in ROLES:
        raise _refused(f"unknown role {role!r}", place, f"one of {', '.join(ROLES)}")
    calls = tuple(_call(call, place) for call in _list_of(entry.get("tool_calls"), "tool_calls", place))
    if calls and role != ASSISTANT:
        raise _refused(f"tool_calls in a message of the {role}", place, "only an assistant calls tools")
    text = _text(entry.get("content"), place, may_be_empty=bool(calls) or role == TOOL)
    return Message(role, text, calls, str(entry.get("tool_call_id") or "") if role == TOOL else "")


def _sharegpt_message(entry: dict[str, Any], place: str) -> Message:
    name = entry["from"]
    role = SHAREGPT.get(name, name) if isinstance(name, str) else None
    if role not in ROLES:
        raise _refused(f"unknown role {name!r}", place, f"one of {', '.join([*SHAREGPT, *ROLES[1:]])}")
    if name == "function_call":
        text = _text(entry.get("value"), place, may_be_empty=False)
        try:
            call = parse_json(text)
        except ValueError:
            call = None
        return Message(ASSISTANT, "", (_call(call, place),))
    return Message(role, _text(entry.get("value"), place, may_be_empty=role == TOOL))


def _text(content: Any, place: str, *, may_be_empty: bool) -> str:
    """The text of a message; OpenAI's list of parts is joined, if all of them are text."""
    if isinstance(content, list):
        parts = [part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)]
        content = "".join(parts) if len(parts) == len(content) else content
    if content is None and may_be_empty:
        return ""
    if not isinstance(content, str):
        raise _refused("the content is not text", place, f"it is {_kind(content)}; only text can be trained on")
    if not may_be_empty and not content.strip():
        raise _refused("the content is empty", place, "leave the message out, or give it a text")
    try:
        content.encode()
    except UnicodeEncodeError:
        raise _refused("the content has a lone surrogate, which is not a character", place, "correct it") from None
    return content


def _call(call: Any, place: str) -> ToolCall:
    function = call.get("function", call) if isinstance(call, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(call, dict) or not isinstance(function, dict) or not isinstance(name, str) or not name:
        hint = 'a call is {"type": "function", "function": {"name": …, "arguments": {…}}}'
        raise _refused("not a tool call", place, hint)
    arguments = function.get("arguments", {})
    if not isinstance(arguments, str | dict):
        raise _refused("the arguments of a tool call are not an object", place, f"they are {_kind(arguments)}")
    return ToolCall(name, arguments, str(call.get("id") or ""))


def _tools(tools: Any, place: str) -> tuple[dict[str, Any], ...]:
    if isinstance(tools, str):  # columns of tables hold them as JSON
        try:
            tools = parse_json(tools)
        except ValueError:
            raise _refused("`tools` is not JSON", place, "it must be a list of descriptions") from None
    described = _list_of(tools, "tools", place)
    for tool in described:
        if not isinstance(tool, dict) or not isinstance(_name(tool), str):
            hint = 'a tool is {"type": "function", "function": {"name": …, "description": …, "parameters": {…}}}'
            raise _refused("`tools` has an entry without a name", place, hint)
    return tuple(described)


def _name(tool: dict[str, Any]) -> Any:
    function = tool.get("function", tool)
    return function.get("name") if isinstance(function, dict) else None


def _check_turns(messages: Sequence[Message], place: str, tools: set[str]) -> None:
    """Refuse an order of messages that no model could have seen."""
    open_calls: list[str] = []
    """The ids of calls without a result."""
    for number, message in enumerate(messages, start=1):
        here = f"{place} message {number}".strip()
        before = messages[number - 2].role if number > 1 else ""
        if message.role == SYSTEM and number > 1:
            raise _refused("a system message after other messages", here, "it must come first")
        if message.role == TOOL:
            _close(open_calls, message, here)
            continue
        if open_calls:
            what = f"a message of the {message.role} before the result of a tool call"
            raise _refused(what, here, f"{len(open_calls)} of the calls before it lack their result (role tool)")
        if message.role == before and message.role in (USER, ASSISTANT):
            raise _refused(f"two {message.role} turns in a row", here, "merge them, or leave the conversation out")
        for call in message.tool_calls:
            if tools and call.name not in tools:
                hint = f"`tools` lists {', '.join(sorted(tools))}"
                raise _refused(f"a call of the tool {call.name!r}, which is not in `tools`", here, hint)
        open_calls = [call.call_id for call in message.tool_calls]


def _close(open_calls: list[str], result: Message, place: str) -> None:
    """Take the call that a result answers off the list; results come in the order of the calls."""
    if not open_calls:
        raise _refused(
            "a tool result without a call", place, "the assistant's message before it has no tool_calls left"
        )
    expected = open_calls.pop(0)
    if result.call_id and expected and result.call_id != expected:
        what = f"the result of the call {result.call_id!r} where that of {expected!r} is due"
        raise _refused(what, place, "results come in the order of the calls")


def _list_of(value: Any, field: str, place: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise _refused(f"`{field}` is not a list", place, f"it is {_kind(value)}")
    return value


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", bool: "true or false", int: "a number", float: "a number"}
    return "null" if value is None else kinds.get(type(value), "text")


def _refused(what: str, place: str, hint: str) -> UserError:
    return UserError(what, file=place or None, hint=hint)

"""Conversations are read from OpenAI's and ShareGPT's JSON, and what is none is refused with its place."""

from typing import Any

import pytest

from tests.support.chats import record
from tinyllm.data.chat.messages import Message, ToolCall, conversation_of, parse_conversation
from tinyllm.errors import UserError

ASK, ANSWER = {"role": "user", "content": "1+2?"}, {"role": "assistant", "content": "3"}
CALL: dict[str, Any] = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "a", "type": "function", "function": {"name": "calc", "arguments": '{"x": 1}'}}],
}
RESULT = {"role": "tool", "tool_call_id": "a", "content": "3"}


def test_openai_messages_with_tool_calls() -> None:
    read = parse_conversation({"messages": [ASK, CALL, RESULT, ANSWER], "tools": [{"name": "calc"}]})
    assert read.messages == (
        Message("user", "1+2?"),
        Message("assistant", "", (ToolCall("calc", '{"x": 1}', "a"),)),
        Message("tool", "3", call_id="a"),
        Message("assistant", "3"),
    )
    assert read.tools == ({"name": "calc"},)
    assert parse_conversation(read.to_dict()) == read


def test_what_is_written_is_what_was_read() -> None:
    for seed in range(50):
        read = parse_conversation(record(seed))
        assert parse_conversation(read.to_dict()) == read
        assert len(read.texts()) >= len(read.messages) - sum(bool(m.tool_calls) for m in read.messages)


def test_sharegpt_and_lists_of_text_parts() -> None:
    turns = [
        {"from": "system", "value": "short"},
        {"from": "human", "value": "1+2?"},
        {"from": "function_call", "value": '{"name": "calc", "arguments": {"x": "1+2"}}'},
        {"from": "observation", "value": "3"},
        {"from": "gpt", "value": "It is 3"},
    ]
    read = parse_conversation({"conversations": turns, "id": 7})
    assert [message.role for message in read.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert read.messages[2].tool_calls == (ToolCall("calc", {"x": "1+2"}),)
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert conversation_of([{"role": "user", "content": parts}, ANSWER]).messages[0].content == "ab"
    assert conversation_of([ASK], complete=False).messages == (Message("user", "1+2?"),)


@pytest.mark.parametrize(
    "messages, what",
    [
        ([ASK, ASK, ANSWER], "two user turns in a row (chats:4 message 2)"),
        ([ASK, ANSWER, ANSWER], "two assistant turns in a row (chats:4 message 3)"),
        ([ASK], "no assistant turn (chats:4)"),
        ([{"role": "bot", "content": "x"}], "unknown role 'bot' (chats:4 message 1): one of system, user"),
        ([{"from": "bot", "value": "x"}], "unknown role 'bot' (chats:4 message 1): one of system, human"),
        ([ASK, {"role": "assistant", "content": "  "}], "the content is empty (chats:4 message 2)"),
        ([ASK, {"role": "assistant"}], "the content is not text (chats:4 message 2): it is null"),
        ([{"role": "user", "content": [{"type": "image_url"}]}, ANSWER], "not text (chats:4 message 1): it is a list"),
        ([ASK, RESULT, ANSWER], "a tool result without a call (chats:4 message 2)"),
        ([ASK, CALL, RESULT, RESULT, ANSWER], "a tool result without a call (chats:4 message 4)"),
        ([ASK, CALL, ANSWER], "a message of the assistant before the result of a tool call (chats:4 message 3)"),
        ([ASK, CALL, RESULT | {"tool_call_id": "b"}], "the result of the call 'b' where that of 'a' is due"),
        ([ASK, {"role": "system", "content": "x"}, ANSWER], "a system message after other messages"),
        ([ASK | {"tool_calls": CALL["tool_calls"]}, ANSWER], "tool_calls in a message of the user"),
        ([ASK, CALL | {"tool_calls": [{"function": {}}]}], "not a tool call (chats:4 message 2)"),
        ([ASK, "hello"], "not a message (chats:4 message 2)"),
        ([ASK, {"role": "assistant", "content": "\ud800"}], "lone surrogate"),
    ],
)
def test_refused_messages(messages: list[Any], what: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_conversation({"messages": messages}, place="chats:4")
    assert what in str(caught.value)


@pytest.mark.parametrize(
    "entry, what",
    [
        ([ASK], "not a conversation"),
        ({"text": "x", "id": 1}, "no field `messages`: its fields are id, text"),
        ({"messages": []}, "`messages` is not a list of messages"),
        ({"messages": "x"}, "`messages` is not a list of messages"),
        ({"messages": [ASK, CALL], "tools": [{"name": "search"}]}, "'calc', which is not in `tools` (message 2)"),
        ({"messages": [ASK, ANSWER], "tools": [{}]}, "`tools` has an entry without a name"),
        ({"messages": [ASK, ANSWER], "tools": "["}, "`tools` is not JSON"),
    ],
)
def test_refused_records(entry: Any, what: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_conversation(entry)
    assert what in str(caught.value)

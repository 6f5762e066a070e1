"""Chat over HTTP: prompts in the format of training, turns that end, calls of tools."""

import json
from typing import Any

import pytest

from tests.support.models import Scripted
from tests.support.served import Client, serving
from tinyllm.data.chat.messages import conversation_of
from tinyllm.data.chat.template import ChatML, ChatTemplate, Roles
from tinyllm.inference.batching import Engine
from tinyllm.programs.serve.served import ServedModel
from tinyllm.tokenizers.byte import ByteTokenizer

ASKED = [{"role": "system", "content": "S"}, {"role": "user", "content": [{"type": "text", "text": "12*3?"}]}]
TOOL = {"type": "function", "function": {"name": "calculator", "parameters": {"type": "object"}}}
CALLS = {
    "roles": (Roles(), "Well<tool_call>calculator<sep>12*3</tool_call>", "12*3"),
    "chatml": (
        ChatML(),
        'Well\n<tool_call>\n{"name": "calculator", "arguments": {"a": 12}}\n</tool_call><|im_end|>',
        '{"a": 12}',
    ),
}


class Says(Scripted):
    """A model with a context long enough for tools."""

    max_seq_len = 1000


def chatting(template: ChatTemplate, answer: str) -> tuple[ServedModel, Any]:
    tokenizer = ByteTokenizer(template.special_tokens)
    model: Any = Says(tokenizer.matching(True).encode(answer).tolist(), vocab_size=tokenizer.vocab_size)
    engine = Engine(model, tokenizer, max_batch=1, max_len=model.max_seq_len)
    return ServedModel(name="tiny", engine=engine, template=template), model


def chat(client: Client, model: Any, **body: Any) -> dict[str, Any]:
    model.step = 0
    status, answer, _ = client.ask("/v1/chat/completions", {"model": "tiny", "messages": ASKED, **body})
    assert status == 200, answer
    assert isinstance(answer, dict)
    return answer


def streamed(client: Client, model: Any, **body: Any) -> tuple[str, list[Any], list[str]]:
    """The content, the calls and the reasons of a stream."""
    model.step = 0
    content, calls, finishes = "", [], []
    for event in client.events("/v1/chat/completions", messages=ASKED, **body):
        choice = event["choices"][0]
        content += choice["delta"].get("content") or ""
        calls += choice["delta"].get("tool_calls", [])
        finishes += [choice["finish_reason"]] * (choice["finish_reason"] is not None)
    return content, calls, finishes


def test_an_answer_ends_with_its_turn_and_the_prompt_is_that_of_training() -> None:
    served, model = chatting(Roles(), "Thirty-six<eos>")
    with serving([served]) as client:
        answer = chat(client, model, temperature=0, logprobs=True, top_logprobs=1)
        choice = answer["choices"][0]
        assert choice["message"] == {"role": "assistant", "content": "Thirty-six", "refusal": None}
        assert choice["finish_reason"] == "stop" and answer["object"] == "chat.completion"
        assert [entry["token"] for entry in choice["logprobs"]["content"]] == list("Thirty-six")
        assert choice["logprobs"]["content"][0]["bytes"] == [ord("T")]
        messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "12*3?"}]
        assert served.template is not None
        prompt = served.template.render(
            conversation_of(messages, complete=False), served.tokenizer, add_generation_prompt=True
        )
        assert answer["usage"]["prompt_tokens"] == len(prompt.ids)
        assert streamed(client, model, temperature=0) == ("Thirty-six", [], ["stop"])
        cut = chat(client, model, temperature=0, max_completion_tokens=4)["choices"][0]
        assert (cut["message"]["content"], cut["finish_reason"]) == ("Thir", "length")


@pytest.mark.parametrize("name", CALLS)
def test_calls_of_tools_are_fields_and_not_text(name: str) -> None:
    template, said, arguments = CALLS[name]
    served, model = chatting(template, said)
    with serving([served]) as client:
        choice = chat(client, model, temperature=0, tools=[TOOL])["choices"][0]
        assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] == "Well"
        (call,) = choice["message"]["tool_calls"]
        assert call["function"] == {"name": "calculator", "arguments": arguments} and call["id"]
        content, calls, finishes = streamed(client, model, temperature=0, tools=[TOOL])
        assert content.rstrip() == "Well" and finishes == ["tool_calls"]
        assert [one["function"] for one in calls] == [call["function"]] and calls[0]["index"] == 0
        ignored = chat(client, model, temperature=0, tools=[TOOL], tool_choice="none")["choices"][0]
        assert "tool_calls" not in ignored["message"]
        result = [{"role": "assistant", "content": None, "tool_calls": [call]}]
        result += [{"role": "tool", "content": "36", "tool_call_id": call["id"]}]
        body = {"model": "tiny", "messages": [*ASKED, *result], "tools": [TOOL], "max_tokens": 3}
        assert client.ask("/v1/chat/completions", body)[0] == 200


def test_what_begins_like_a_call_and_is_none_is_text_whole_and_streamed() -> None:
    served, model = chatting(Roles(), "Well<tool_call>calc<eos>")
    with serving([served]) as client:
        for changes in ({}, {"max_tokens": 7}):
            choice = chat(client, model, temperature=0, tools=[TOOL], **changes)["choices"][0]
            expected = (choice["message"]["content"], [], [choice["finish_reason"]])
            assert "tool_calls" not in choice["message"] and choice["message"]["content"].startswith("Well")
            assert streamed(client, model, temperature=0, tools=[TOOL], **changes) == expected


REFUSED = {
    "a role": ({"messages": [{"role": "robot", "content": "a"}]}, "messages.0.role"),
    "no message": ({"messages": []}, "messages"),
    "a result without a call": ({"messages": [{"role": "tool", "content": "a"}]}, "messages"),
    "JSON mode": ({"response_format": {"type": "json_object"}}, "response_format"),
    "a forced call": ({"tool_choice": "required"}, "tool_choice"),
    "two limits": ({"max_tokens": 1, "max_completion_tokens": 1}, "max_tokens"),
    "alternatives without log-probabilities": ({"top_logprobs": 1}, "top_logprobs"),
    "stream options without a stream": ({"stream_options": {}}, "stream_options"),
    "more than the context": ({"max_tokens": 1000}, "max_tokens"),
}


def test_a_wrong_conversation_is_refused_by_the_name_of_its_field() -> None:
    served, _ = chatting(Roles(), "a<eos>")
    with serving([served]) as client:
        for name, (changes, param) in REFUSED.items():
            status, answer, _ = client.ask("/v1/chat/completions", {"model": "tiny", "messages": ASKED, **changes})
            assert status == 400 and answer["error"]["param"].startswith(param), (name, json.dumps(answer))

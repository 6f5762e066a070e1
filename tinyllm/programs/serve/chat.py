"""``POST /v1/chat/completions``: the next message of a conversation."""

import secrets
from typing import Any

from tinyllm.data.chat.messages import conversation_of
from tinyllm.errors import UserError
from tinyllm.inference.batching import Job
from tinyllm.inference.tools.calls import BEGIN, calls_in, spelled
from tinyllm.programs.serve.answering import Answering, Form
from tinyllm.programs.serve.choices import Growth, chat_logprobs
from tinyllm.programs.serve.errors import invalid
from tinyllm.programs.serve.schema import ChatRequest, Message
from tinyllm.programs.serve.served import EncodedPrompt, ServedModel, seed_of
from tinyllm.programs.serve.worker import Worker


class ChatForm(Form):
    """Choices as messages of the assistant. What it writes to call a tool becomes ``tool_calls``.

    Args:
        finds_calls: false: calls stay text.
        logprobs: whether the tokens are reported.
    """

    object, chunk_object, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def __init__(self, served: ServedModel, *, finds_calls: bool, logprobs: bool) -> None:
        super().__init__(served.name)
        self.tokenizer, self.finds_calls, self.logprobs = served.tokenizer, finds_calls, logprobs
        self.begin = self.tokenizer.special.get(BEGIN)
        self._ids: dict[int, list[int]] = {}
        """Tokens of each streamed choice so far."""
        self._held: dict[int, str] = {}
        """Text of each streamed choice that may belong to a call."""

    def choice(self, index: int, growth: Growth, job: Job) -> dict[str, Any]:
        calls = self._calls(growth.ids) if growth.finish == "stop" else []
        content = self._before_calls(growth.ids) if calls else growth.text
        message: dict[str, Any] = {"role": "assistant", "content": content or (None if calls else ""), "refusal": None}
        message |= {"tool_calls": calls} if calls else {}
        logprobs = chat_logprobs(self.tokenizer, growth.tokens) if self.logprobs else None
        finish = "tool_calls" if calls else growth.finish
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish}

    def delta(self, index: int, growth: Growth, job: Job) -> list[dict[str, Any]]:
        begins = index not in self._ids
        ids = self._ids.setdefault(index, [])
        was_calling = self.begin in ids
        ids += growth.ids
        calls = self._calls(ids) if growth.finish == "stop" else []
        # Once a call has begun, nothing is shown until it is complete. Where no token marks its beginning, that is
        # known only at the end.
        text, held = growth.text, ""
        if self.finds_calls and (was_calling or self.begin is None):
            text, held = "", text
        elif self.finds_calls and self.begin in growth.ids:
            n_before = len(self.tokenizer.decode(growth.ids[: growth.ids.index(self.begin)]))
            text, held = text[:n_before], text[n_before:]
        held = self._held[index] = self._held.get(index, "") + held
        if growth.finish and not calls:  # what began like a call is none, and text
            text += held
        elif growth.finish and self.begin is None:
            text = self._before_calls(ids)
        logprobs = chat_logprobs(self.tokenizer, growth.tokens) if self.logprobs else None

        def event(delta: dict[str, Any], finish: str | None = None, shown: Any = None) -> dict[str, Any]:
            return {"index": index, "delta": delta, "logprobs": shown, "finish_reason": finish}

        events = [event({"role": "assistant", "content": ""})] if begins else []
        if text or growth.tokens:
            events.append(event({"content": text}, shown=logprobs))
        if calls:
            events.append(event({"tool_calls": [{"index": n, **call} for n, call in enumerate(calls)]}))
        if growth.finish:
            events.append(event({}, "tool_calls" if calls else growth.finish))
        return events

    def _calls(self, ids: list[int]) -> list[dict[str, Any]]:
        if not self.finds_calls:
            return []
        return [
            {
                "id": f"call_{secrets.token_hex(8)}",
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in calls_in(spelled(self.tokenizer, ids))
        ]

    def _before_calls(self, ids: list[int]) -> str:
        content = self.tokenizer.decode(ids[: ids.index(self.begin)] if self.begin in ids else ids)
        return str(content.partition(BEGIN)[0].rstrip("\n"))


async def start_chat(served: ServedModel, worker: Worker, body: ChatRequest) -> Answering:
    """Check a conversation and hand it to the engine.

    Raises:
        APIError: it cannot be answered.
    """
    if served.template is None:
        why = f"no chat with {served.name}: {served.why_no_chat}; /v1/completions continues plain text"
        raise invalid(why, param="messages", code="no_chat_template")
    if body.stream_options is not None and not body.stream:
        raise invalid("stream_options is only for stream=true", param="stream_options")
    if body.top_logprobs is not None and not body.logprobs:
        raise invalid("top_logprobs needs logprobs=true", param="top_logprobs")
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise invalid("max_tokens and max_completion_tokens are the same: leave one out", param="max_tokens")
    tools = [tool.model_dump(exclude_none=True) for tool in body.tools or []]
    try:
        conversation = conversation_of(
            [_plain(message) for message in body.messages],
            tools=None if body.tool_choice == "none" else tools or None,
            complete=False,
        )
        ids = served.template.render(conversation, served.tokenizer, add_generation_prompt=True).ids.tolist()
    except UserError as error:
        raise invalid(str(error), param="messages") from error
    # A model that writes calls as special tokens may make some without being offered tools.
    finds_calls = body.tool_choice != "none" and (bool(tools) or BEGIN in served.tokenizer.special)
    request = served.request(
        body,
        EncodedPrompt(ids, ""),
        max_tokens=body.max_tokens or body.max_completion_tokens,
        seed=seed_of(body),
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        stop_ids=served.template.stop_ids(served.tokenizer),
    )
    form = ChatForm(served, finds_calls=finds_calls, logprobs=bool(body.logprobs))
    return Answering(worker, served, [request], body, form)


def _plain(message: Message) -> dict[str, Any]:
    """A message as conversations are read from files: parts joined, fields without a value left out."""
    entry = message.model_dump(exclude_none=True)
    if isinstance(message.content, list):
        entry["content"] = "".join(part.text for part in message.content)
    return entry

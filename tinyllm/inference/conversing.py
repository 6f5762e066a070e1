"""Talking to a model: what it says is streamed, and the tools that it calls are carried out."""

from collections.abc import Generator, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from tinyllm.data.chat.messages import ASSISTANT, SYSTEM, TOOL, USER, Conversation, Message, ToolCall
from tinyllm.data.chat.template import ChatTemplate
from tinyllm.errors import UserError
from tinyllm.inference.choices import Choice, choices_of, chooser_of
from tinyllm.inference.decoding import Autocast, Decoder, LanguageModel, decode
from tinyllm.inference.generator import SampleWriter
from tinyllm.inference.sampling import Sampling
from tinyllm.inference.tools.base import Tool
from tinyllm.inference.tools.calls import BEGIN, Call, ToolLoop, calls_in, spelled
from tinyllm.tokenizers import Tokenizer
from tinyllm.utils.seeds import derive_seed

TEXT, CALL, RESULT, NOTE = "text", "call", "result", "note"


class Piece(NamedTuple):
    """A part of an answer.

    Attributes:
        kind: ``text`` of the assistant, a ``call`` that it made, the ``result`` of one, or a ``note`` on the answer.
        choices: of the tokens of a text or a call, if they were asked for.
    """

    kind: str
    text: str
    choices: tuple[Choice, ...] = ()


@dataclass(kw_only=True)
class Conversing:
    """A conversation with a model.

    Each answer is a function of the messages so far and of ``seed``. When the conversation outgrows the model's
    context, the oldest messages are left out; the system message stays.

    Args:
        tool: what the model may call; None: calls are shown and not carried out.
        max_new_tokens: limit on the tokens of an answer.
        system: the system message; "": none.
        explain: how many alternatives to report with each token; 0: none.
    """

    model: LanguageModel
    tokenizer: Tokenizer
    template: ChatTemplate
    sampling: Sampling
    tool: Tool | None
    max_new_tokens: int
    seed: int
    system: str = ""
    explain: int = 0
    autocast: Autocast = nullcontext
    messages: list[Message] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.template.require(self.tokenizer)
        self._stops = self.template.stop_ids(self.tokenizer) | self.tokenizer.end_ids
        self._choices: list[Choice] = []
        """Of the tokens generated since the last piece."""
        self._loop = ToolLoop(tokenizer=self.tokenizer, template=self.template, tool=self.tool)
        self.reset()

    def reset(self) -> None:
        """Forget all messages."""
        self.messages = [Message(SYSTEM, self.system)] if self.system else []

    def answer(self, text: str) -> Generator[Piece, None, None]:
        """Send a user's message and stream the answer.

        Closing the iterator, and Ctrl-C, end the answer. What was said so far is kept; if nothing was, the message is
        taken back.

        Raises:
            UserError: the message alone does not fit into the model's context.
        """
        before = list(self.messages)
        self.messages.append(Message(USER, text))
        try:
            yield from self._answer()
        except BaseException:
            last = self.messages[-1]
            if last.role == USER or (last.role == ASSISTANT and not last.content and not last.tool_calls):
                self.messages = before
            raise

    def _answer(self) -> Iterator[Piece]:
        """Stream the answer to the last message."""
        if left_out := self._fit():
            yield Piece(NOTE, f"the oldest {left_out} messages no longer fit into the context and were left out")
        budget, calls = self.max_new_tokens, 0
        while True:
            ids = self._prompt()
            room = min(budget, self.model.max_seq_len - len(ids))
            if room < 1:
                yield Piece(NOTE, "the context is full; /reset starts again")
                return
            written: list[int] = []
            try:
                for token, piece in self._generate(ids, room):
                    written.append(token)
                    if piece:
                        yield Piece(TEXT, piece, self._taken())
            finally:
                asked = self._keep(written)
            budget -= len(written)
            for call in asked:
                yield Piece(CALL, f"{call.name} {call.arguments}".strip(), self._taken())
            ended = bool(written) and written[-1] in self._stops
            if not ended:
                yield Piece(NOTE, f"cut off after {self.max_new_tokens - budget:,} tokens")
            if not asked or not ended or self.tool is None or calls + len(asked) > self.tool.max_calls:
                return
            calls += len(asked)
            for call in asked:
                result = self._loop.result(call).text
                self.messages.append(Message(TOOL, result))
                yield Piece(RESULT, result)

    def _prompt(self) -> list[int]:
        conversation = Conversation(tuple(self.messages))
        ids = self.template.render(conversation, self.tokenizer, add_generation_prompt=True).ids
        return [int(i) for i in ids]

    def _fit(self) -> int:
        """Leave out the oldest turns until half of the context is free; returns how many messages that are.

        Raises:
            UserError: the last message alone leaves no room for an answer.
        """
        most = self.model.max_seq_len - min(self.max_new_tokens, self.model.max_seq_len // 2)
        first = 1 if self.system else 0
        left_out = 0
        while (size := len(self._prompt())) > most:
            turns = [i for i, message in enumerate(self.messages) if message.role == USER and i > first]
            if not turns:
                if size < self.model.max_seq_len:
                    return left_out
                hint = f"the model's context is {self.model.max_seq_len:,}; write less"
                raise UserError(f"a message of {size:,} tokens", hint=hint)
            del self.messages[first : turns[0]]
            left_out += turns[0] - first
        return left_out

    def _generate(self, ids: list[int], limit: int) -> Iterator[tuple[int, str]]:
        """Yields each token with the text that it completes; what is inside a call has none."""
        decoder = Decoder(self.model, [ids], n_samples=1, max_new_tokens=limit, kv_cache=True, autocast=self.autocast)
        chooser = chooser_of(
            self.sampling,
            n_top=self.explain,
            seed=derive_seed(self.seed, "answer", len(self.messages)),
            n_samples=1,
            vocab_size=self.tokenizer.vocab_size,
            unk_id=self.tokenizer.unk_id,
            device=self.model.device,
        )
        chooser.observe_prompts([ids])
        writer = SampleWriter(self.tokenizer, ids, (), self._stops)
        call_begins = self.tokenizer.special.get(BEGIN)
        ended, in_call = [False], False
        self._choices.clear()
        torch.autocast_increment_nesting()  # else autocast would empty its cache of cast weights after every token
        try:
            for step, ((_, token),) in enumerate(decode(decoder, chooser, max_new_tokens=limit, ended=ended), start=1):
                piece = writer.write(token, last=step == limit)
                ended[0] = writer.ended
                in_call = in_call or token == call_begins
                self._choices += [choice for choice in choices_of(chooser) if choice is not None]
                yield token, "" if in_call else piece
        finally:
            if torch.autocast_decrement_nesting() == 0:
                torch.clear_autocast_cache()

    def _taken(self) -> tuple[Choice, ...]:
        """The choices since the last piece, which are handed out once."""
        choices = tuple(self._choices)
        self._choices.clear()
        return choices

    def _keep(self, written: list[int]) -> list[Call]:
        """Add what the model wrote to the messages; returns the calls in it."""
        asked = calls_in(spelled(self.tokenizer, written))
        content = self.tokenizer.decode(written)
        begin = self.tokenizer.special.get(BEGIN)
        if asked:
            content = self.tokenizer.decode(written[: written.index(begin)]) if begin in written else content
            content = content.partition(BEGIN)[0].rstrip("\n")  # a token of its own in some tokenizers, text in others
        calls = tuple(ToolCall(call.name, call.arguments) for call in asked)
        self.messages.append(Message(ASSISTANT, content, calls))
        return asked

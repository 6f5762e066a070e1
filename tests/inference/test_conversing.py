"""A conversation with a model: turns end at their stop token, tools are carried out, and old messages make room."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.support.models import tiny_model
from tinyllm.data.chat.messages import Message
from tinyllm.data.chat.template import ChatML, ChatTemplate, Roles
from tinyllm.errors import UserError
from tinyllm.inference.conversing import CALL, NOTE, RESULT, TEXT, Conversing, Piece
from tinyllm.inference.sampling import Sampling
from tinyllm.inference.tools.expression import Calculator
from tinyllm.models.transformer import Transformer
from tinyllm.tokenizers.byte import ByteTokenizer


def conversing(template: ChatTemplate, *, context: int = 200, **settings: Any) -> Conversing:
    tokenizer = ByteTokenizer(template.special_tokens)
    model: Transformer = tiny_model(vocab_size=tokenizer.vocab_size, max_seq_len=context)
    given: dict[str, Any] = {"tool": None, "max_new_tokens": 40, "seed": 1, "sampling": Sampling()} | settings
    return Conversing(model=model, tokenizer=tokenizer, template=template, **given)


def scripted(chat: Conversing, monkeypatch: pytest.MonkeyPatch, *answers: str) -> list[list[int]]:
    """Let the model write these texts, special tokens spelled; returns the prompts that it gets."""
    prompts: list[list[int]] = []
    waiting = list(answers)
    matching = chat.tokenizer.matching(True)

    def write(ids: list[int], limit: int) -> Iterator[tuple[int, str]]:
        prompts.append(ids)
        for token in matching.encode(waiting.pop(0))[:limit].tolist():
            yield token, chat.tokenizer.decode([token])

    monkeypatch.setattr(chat, "_generate", write)
    return prompts


def said(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces if piece.kind == TEXT)


def test_turns_become_messages_and_prompts_the_training_format(monkeypatch: pytest.MonkeyPatch) -> None:
    chat = conversing(Roles(), system="S")
    prompts = scripted(chat, monkeypatch, "Hello<eos>", "Bye<eos>")
    assert said(list(chat.answer("Hi <eos>"))) == "Hello"
    assert said(list(chat.answer("Go"))) == "Bye"
    assert [(message.role, message.content) for message in chat.messages] == [
        *(("system", "S"), ("user", "Hi <eos>"), ("assistant", "Hello"), ("user", "Go"), ("assistant", "Bye")),
    ]
    special = chat.tokenizer.special
    whole = [special["<bos>"], special["<system>"], *b"S", special["<eos>"], special["<user>"], *b"Hi <eos>"]
    whole += [special["<eos>"], special["<assistant>"]]
    assert prompts[0] == whole
    whole += [*b"Hello", special["<eos>"], special["<user>"], *b"Go", special["<eos>"], special["<assistant>"]]
    assert prompts[1] == whole
    chat.reset()
    assert chat.messages == [Message("system", "S")]


@pytest.mark.parametrize("template", [Roles(), ChatML()])
def test_calls_are_carried_out_and_their_results_read(template: ChatTemplate, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = conversing(template, context=600, max_new_tokens=300, tool=Calculator(max_calls=2))
    call = "Let me see<tool_call>calculator<sep>12*3</tool_call>"
    end = "<eos>"
    if isinstance(template, ChatML):
        end = "<|im_end|>"
        arguments = '{"name": "calculator", "arguments": {"expression": "12*3"}}'
        call = f"Let me see\n<tool_call>\n{arguments}\n</tool_call>{end}"
    prompts = scripted(chat, monkeypatch, call, f"It is 36{end}")
    pieces = list(chat.answer("12*3?"))
    assert [piece.text for piece in pieces if piece.kind == RESULT] == ["36"]
    assert [piece.kind for piece in pieces if piece.kind != TEXT] == [CALL, RESULT]
    assert chat.messages[-1] == Message("assistant", "It is 36")
    row = prompts[0] + chat.tokenizer.matching(True).encode(call).tolist()
    row += template.results_ids(["36"], chat.tokenizer).tolist()
    assert prompts[1] == row, "the model goes on where a rollout would"


def test_without_tools_and_at_the_limit_the_answer_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    chat = conversing(Roles(), max_new_tokens=5)
    scripted(chat, monkeypatch, "<tool_call>a<sep>b</tool_call>", "x" * 9)
    assert [piece for piece in chat.answer("Hi") if piece.kind != TEXT] == [Piece(CALL, "a b")]
    assert list(chat.answer("Hi"))[-1] == Piece(NOTE, "cut off after 5 tokens")
    assert chat.messages[-1].content == "xxxxx"


def test_the_oldest_turns_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    chat = conversing(Roles(), context=64, max_new_tokens=20, system="S")
    scripted(chat, monkeypatch, *["y" * 10 + "<eos>"] * 4)
    notes = [piece.text for _ in range(4) for piece in chat.answer("x" * 10) if piece.kind == NOTE]
    assert notes == ["the oldest 2 messages no longer fit into the context and were left out"] * len(notes) and notes
    assert chat.messages[0] == Message("system", "S") and chat.messages[1].role == "user"
    with pytest.raises(UserError, match="a message of 1"):
        list(chat.answer("x" * 100))
    assert chat.messages[-1].role == "assistant", "the message was taken back"


def test_a_real_model_streams_the_same_text_for_the_same_seed() -> None:
    torch.manual_seed(0)
    first, second = (said(list(conversing(Roles(), seed=3).answer("Hi"))) for _ in range(2))
    assert first == second and first
    stopped = conversing(Roles(), seed=3)
    pieces = stopped.answer("Hi")
    heard = next(piece.text for piece in pieces if piece.kind == TEXT)
    pieces.close()  # as Ctrl-C does
    assert stopped.messages[-1].role == "assistant" and stopped.messages[-1].content.startswith(heard)

"""What the page Write shows is what generate and chat print, token by token."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.inference.test_conversing import conversing, said
from tests.support.fixtures import Call
from tests.support.models import tiny_model
from tinyllm.data.chat.template import Roles
from tinyllm.errors import UserError
from tinyllm.inference.sampling import Sampling
from tinyllm.inference.tools.expression import Calculator
from tinyllm.studio.writing import models
from tinyllm.studio.writing.form import overrides, settings_of
from tinyllm.studio.writing.models import LoadedModel
from tinyllm.studio.writing.pieces import END, Piece, Settings, TokenNames, answer, continuation
from tinyllm.tokenizers.byte import ByteTokenizer


def text_of(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces if piece.kind == "text")


@pytest.mark.parametrize("stop", ["", "e t"])
def test_the_text_is_that_of_generate(tiny_run: Path, call: Call, stop: str) -> None:
    fields = {"temperature": "1.5", "top_k": "9", "top_p": "0.95", "min_p": "0.01", "repetition_penalty": "1.1"}
    fields |= {"seed": "5", "max_new_tokens": "40", "stop": stop}
    step = next(iter(models.checkpoints(tiny_run)))
    pieces = list(continuation(models.load(models.identified(tiny_run, step)), settings_of(fields), "the "))
    printed = call("generate", f"run={tiny_run}", f"checkpoint={step}", "prompt=the ", *overrides(fields), "--json")
    assert [text_of(pieces)] == json.loads(printed.out)["samples"]
    tokens = [token for piece in pieces for token in piece.tokens]
    assert len(tokens) == 40 or stop
    assert pieces[-1].kind == END and pieces[-1].text.startswith(f"{len(tokens)} tokens")
    for token in tokens:
        assert token.chosen.drawn > 0 and not token.chosen.excluded_by
        assert {each.excluded_by for each in token.top} <= {"", "top_k", "top_p", "min_p"}
    assert any(each.excluded_by for token in tokens for each in token.top)


def test_answers_are_those_of_chat_and_the_conversation_goes_on() -> None:
    sampling = Sampling(temperature=5.0)
    chat = conversing(Roles(), seed=3, system="S", tool=Calculator(max_calls=2), sampling=sampling)
    loaded = LoadedModel(
        model=chat.model, tokenizer=chat.tokenizer, template=Roles(), why_no_chat="", autocast=chat.autocast
    )
    settings = Settings(sampling=sampling, seed=3, max_new_tokens=40)
    messages: list[Any] = []
    for text in ("Hi", "Go on"):
        more: dict[str, Any] = {"tool": chat.tool, "system": "S"}
        pieces = list(answer(loaded, settings, text, messages=messages, **more))
        plain = list(chat.answer(text))
        assert [(piece.kind, piece.text) for piece in pieces] == [(piece.kind, piece.text) for piece in plain]
        assert said(plain) and all(piece.tokens for piece in pieces if piece.kind == "text")
        assert messages == chat.messages[1:]
    stopped = answer(loaded, settings, "More", messages=messages)
    assert any(piece.kind == "text" for piece in stopped)
    stopped.close()
    assert [message.role for message in messages[-2:]] == ["user", "assistant"], "what was said is kept"


def test_a_long_prompt_is_noted_and_pieces_keep_tokens_without_text() -> None:
    tokenizer = ByteTokenizer()
    model = tiny_model(vocab_size=tokenizer.vocab_size, max_seq_len=12)
    loaded = LoadedModel(model=model, tokenizer=tokenizer, template=None, autocast=conversing(Roles()).autocast)
    settings = Settings(sampling=Sampling(temperature=5.0), seed=1, max_new_tokens=30)
    pieces = list(continuation(loaded, settings, "x" * 20))
    assert pieces[0] == Piece("note", "the prompt has 20 tokens: the model reads the last 12, its context")
    n_tokens = sum(len(piece.tokens) for piece in pieces)
    assert n_tokens == 30 > len(pieces), "bytes that are no whole character yet wait for the next piece"


def test_every_token_can_be_seen() -> None:
    names = TokenNames(ByteTokenizer(("<eos>",)))
    special = names.tokenizer.special["<eos>"]
    assert [names.name(token) for token in (*b" a\n\t", 0xE2, special)] == ["␣", "a", "⏎", "⇥", "\ufffd#226", "<eos>"]


def test_runs_are_found_and_checkpoints_named(tiny_run: Path, tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    assert models.writable_runs(outputs) == {}
    (outputs / "day").mkdir(parents=True)
    (outputs / "day" / "one").symlink_to(tiny_run)
    (outputs / "empty").mkdir()
    (outputs / "empty" / "run.json").write_text("{}")
    found = models.writable_runs(tiny_run.parent)
    assert found == {tiny_run.name: tiny_run}
    labels = models.checkpoints(tiny_run)
    assert next(iter(labels)) == "step-000020" and "newest" in labels["step-000020"]
    assert sum("best" in label for label in labels.values()) == 1
    assert models.checkpoints(tmp_path / "gone") == {}
    for name in ("step-000021", "../run", "/etc", ""):
        with pytest.raises(UserError, match="no longer there"):
            models.identified(tiny_run, name)


def test_a_run_that_cannot_be_loaded_says_why_in_one_line(tiny_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(tiny_run, tmp_path / "run")
    step = next(iter(models.checkpoints(run)))
    which = models.identified(run, step)
    (which.path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"model\.safetensors") as refused:
        models.load(which)
    assert "\n" not in str(refused.value)

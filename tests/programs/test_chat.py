"""The program chat, describe conversations=, and the export of a model that was trained on conversations."""

import io
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

import tinyllm.chat
import tinyllm.describe
import tinyllm.export
from tests.support.chats import conversation, record, write_records
from tests.support.training_runs import SMALL, train
from tinyllm.inference.conversing import Conversing
from tinyllm.programs.conversations import saved_template
from tinyllm.programs.load_model import open_saved


def cli(main: object, *arguments: str, stdin: str = "") -> int:
    """Run a program in this process; returns its exit code."""
    with (
        mock.patch.object(sys, "argv", ["tinyllm", *arguments]),
        mock.patch.object(sys, "stdin", io.StringIO(stdin)),
        mock.patch.dict(os.environ),  # a program sets HYDRA_FULL_ERROR
        pytest.raises(SystemExit) as end,
    ):
        main()  # type: ignore[operator]
    return int(end.value.code or 0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat")
    file = write_records(folder / "c.jsonl", [record(seed) for seed in range(30)])
    settings = (*SMALL, "model.max_seq_len=96", "ffn=swiglu", "trainer.max_steps=2", "dataset.too_long=drop")
    assert train(*settings, "dataset=chat", f"dataset.path={file}", f"run.dir={folder / 'run'}") == 0
    return folder / "run"


def test_chat_answers_messages_until_quit(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    asked = (f"run={run}", "max_new_tokens=6", "decode_kernels=false", "device=cpu")
    typed = "what is the sum\n\n/nothing\n/reset\nwhat is the sum\n/quit\nno\n"
    assert cli(tinyllm.chat.main, *asked, stdin=typed) == 0
    out, err = capfd.readouterr()
    answers = out.splitlines()
    assert len(out) > 1 and out[: len(out) // 2] == out[len(out) // 2 :], "after /reset, the same again"
    assert answers and "unknown command /nothing: /reset or /quit" in err


def test_chat_for_programs_gives_a_line_of_json_per_message(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    asked = (f"run={run}", "max_new_tokens=6", "decode_kernels=false", "device=cpu", "--json")
    assert cli(tinyllm.chat.main, *asked, stdin=f"what is the sum\n{'x' * 200}\nand then\n") == 0
    out, err = capfd.readouterr()
    first, too_long, then = map(json.loads, out.splitlines())
    assert first["prompt"] == "what is the sum" and first["messages"] == [
        {"role": "assistant", "content": first["answer"]}
    ]
    assert first["notes"] == ["cut off after 6 tokens"] and "a message of" in too_long["error"]
    assert then["answer"] and not err, "the conversation goes on, and nothing else is said"


def test_ctrl_c_ends_an_answer_and_keeps_the_conversation(
    run: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[list[str]] = []
    answer = Conversing._generate

    def interrupted(self: Conversing, ids: list[int], limit: int) -> Iterator[tuple[int, str]]:
        heard.append([message.content for message in self.messages])
        for count, token in enumerate(answer(self, ids, limit)):
            if len(heard) == 1 and count == 3:
                raise KeyboardInterrupt
            if len(heard) == 2:
                raise KeyboardInterrupt
            yield token

    monkeypatch.setattr(Conversing, "_generate", interrupted)
    asked = (f"run={run}", "max_new_tokens=6", "decode_kernels=false", "device=cpu")
    assert cli(tinyllm.chat.main, *asked, stdin="what is the sum\nred apples\nand then\n") == 0
    assert capfd.readouterr().err.count("stopped") == 2
    said = heard[1][1]
    assert said and heard == [
        ["what is the sum"],
        ["what is the sum", said, "red apples"],
        [heard[0][0], said, "and then"],
    ]


def test_chat_needs_a_model_of_conversations(run: Path, tiny_run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for arguments, what in (
        ((f"run={tiny_run}",), "the model has no chat template"),
        ((f"run={run}", "temperature=0", "top_k=3"), "temperature=0"),
        ((f"run={run}", "tools=calculater"), "tools"),
    ):
        assert cli(tinyllm.chat.main, *arguments) == 2
        err = capfd.readouterr().err
        assert err.startswith("error: ") and what in err and len(err.splitlines()) == 1


@pytest.mark.slow
def test_weights_keep_their_template(run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    settings = (*SMALL, "model.max_seq_len=96", "ffn=swiglu", "trainer.max_steps=1", "dataset.too_long=drop")
    data = ("dataset=chat", f"dataset.path={run.parent / 'c.jsonl'}", "tokenizer=pretrained")
    later = (*settings, *data, f"tokenizer.path={run}", f"init_from={run}", f"run.dir={tmp_path / 'later'}")
    assert train(*later, "chat_template=chatml") == 2
    err = capfd.readouterr().err
    assert "the chat template differs from the one that the weights of init_from were trained with" in err
    assert not (tmp_path / "later").exists()
    stored = open_saved(run).path / "chat_template.jinja"
    assert train(*later, "chat_template=file", f"chat_template.path={stored}") == 0


@pytest.mark.slow
def test_describe_shows_what_the_model_sees(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = run.parent / "c.jsonl"
    assert cli(tinyllm.describe.main, f"conversations={file}", "chat_template=chatml") == 0
    out = capfd.readouterr().out
    assert out.count("of them targets, marked") == 3 and "<|im_start|>assistant\n⟦" in out and "<|im_end|>⟧" in out
    assert cli(tinyllm.describe.main, f"conversations={file}", "--json") == 0
    shown = json.loads(capfd.readouterr().out)
    template = saved_template(open_saved(run))
    for seed, entry in enumerate(shown):
        assert entry["text"].replace("⟦", "").replace("⟧", "") == template.text(conversation(seed))
        assert len(entry["ids"]) == len(entry["targets"]) and 0 < sum(entry["targets"]) < len(entry["ids"])
    assert cli(tinyllm.describe.main, f"conversations={file}", "vs=attn=gqa") == 2
    assert "the key has no effect here (vs=attn=gqa)" in capfd.readouterr().err


@pytest.mark.slow
def test_an_export_gives_transformers_our_ids_and_mask(run: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, GenerationConfig

    assert cli(tinyllm.export.main, f"run={run}", f"out={tmp_path / 'hf'}") == 0
    theirs = AutoTokenizer.from_pretrained(tmp_path / "hf")
    saved = open_saved(run)
    template = saved_template(saved)
    for seed in range(5):
        entry = record(seed)
        expected = theirs.apply_chat_template(
            entry["messages"], tools=entry.get("tools"), return_dict=True, return_assistant_tokens_mask=True
        )
        ours = template.render(conversation(seed), saved.tokenizer)
        assert ours.ids.tolist() == expected["input_ids"]
        assert ours.is_target.tolist() == [bool(i) for i in expected["assistant_masks"]]
    ends = GenerationConfig.from_pretrained(tmp_path / "hf").eos_token_id
    assert set(ends) == template.stop_ids(saved.tokenizer) | saved.tokenizer.end_ids
    imported = open_saved(tmp_path / "hf")
    assert saved_template(imported).source == template.source
    assert imported.tokenizer.special == saved.tokenizer.special

"""Conversations of data sets in the layout of the Hugging Face hub: from a copy, and by name from a server."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.chats import record
from tests.support.hub_server import COMMIT, serving
from tests.support.hub_sets import write_readme, write_split
from tinyllm.data.chat.corpus import ConversationCorpus, key_of
from tinyllm.data.chat.messages import parse_conversation
from tinyllm.data.chat.template import Roles
from tinyllm.data.preferences.corpus import PreferenceCorpus
from tinyllm.data.prompt_data import PromptCorpus
from tinyllm.errors import UserError
from tinyllm.tokenizers.byte import ByteTrainer

pytestmark = pytest.mark.slow  # the library takes seconds to import
TRAIN, VAL = [record(seed, tools=False) for seed in range(30)], [record(seed, tools=False) for seed in range(30, 36)]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two configurations: conversations in two shards, and texts."""
    root = tmp_path_factory.mktemp("hub") / "chats"
    write_split(root / "all", "train_sft", TRAIN, shards=2)
    write_split(root / "all", "test_sft", VAL, shards=1)
    write_split(root / "texts", "train_sft", [{"text": "a"}] * 3, shards=1)
    write_readme(root, {"all": ["train_sft", "test_sft"], "texts": ["train_sft"]})
    return root


def corpus(path: Path | None, **settings: Any) -> ConversationCorpus:
    given = {"val_path": None, "val_fraction": 0.1, "too_long": "error", "chat_template": Roles()} | settings
    return ConversationCorpus(path=None if path is None else str(path), **given)


def keys(records: list[dict[str, Any]]) -> list[str]:
    return [key_of(parse_conversation(each)) for each in records]


def test_the_named_splits_of_a_copy_are_training_and_validation(copy: Path) -> None:
    chats = corpus(copy, config="all", split="train_sft", val_split="test_sft")
    chats.check()
    train, val, _ = chats.split()
    assert [key_of(each) for each in val] == keys(VAL)
    assert [key_of(each) for each in train] == [key for key in keys(TRAIN) if key not in keys(VAL)]
    assert chats.revision is None


def test_without_a_split_of_validation_some_prompts_are_held_out(copy: Path) -> None:
    train, val, _ = corpus(copy, config="all", split="train_sft").split()
    assert len(train) + len(val) == 30 and 1 <= len(val) <= 5


@pytest.mark.parametrize(
    "settings, what",
    [
        ({"config": "al"}, "no such configuration (dataset.config=al): one of all, texts; did you mean all?"),
        ({"config": "all"}, "no such split (dataset.split=train): there are"),
        ({"config": "all", "split": "train_sft", "val_split": "val"}, "no such split (dataset.val_split=val)"),
        ({"config": "texts", "split": "train_sft"}, "no field `messages`"),
        ({"config": "all", "split": "train_sft", "val_split": "test_sft", "val_path": "x"}, "two validations"),
    ],
)
def test_what_is_no_set_of_conversations_is_refused(settings: dict[str, Any], what: str, copy: Path) -> None:
    with pytest.raises(UserError) as caught:
        corpus(copy, **settings).check()
    said = str(caught.value).replace(f", {copy})", ")")
    assert what in said, said


def test_files_have_no_splits_and_something_must_be_named(copy: Path) -> None:
    file = next((copy / "all").glob("train_sft-00000*"))
    with pytest.raises(UserError, match=r"the key has no effect here \(dataset.val_split=test\)"):
        corpus(file, val_split="test")
    with pytest.raises(UserError, match=r"no conversations are named .*dataset.name=user/set"):
        corpus(None)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs of answers, whose prompts have an answer each."""
    root = tmp_path_factory.mktemp("hub") / "pairs"
    for split, numbers in (("train", range(20)), ("test", range(18, 24))):
        rows = [{"prompt": f"{n}?", "chosen": f"{n}", "rejected": "no", "answer": f"{n}"} for n in numbers]
        write_split(root / "default", split, rows, shards=2)
    write_readme(root, {"default": ["train", "test"]})
    return root


def test_preferences_and_prompts_are_read_as_conversations_are(pairs: Path) -> None:
    given: dict[str, Any] = {"path": str(pairs), "val_path": None, "val_fraction": 0.1, "val_split": "test"}
    preferences = PreferenceCorpus(**given, too_long="error")
    preferences.check()
    data = preferences.prepare(ByteTrainer(special_tokens="auto", match_special=False))
    assert (data.train.n_pairs, data.val.n_pairs) == (18, 6)
    prompts = PromptCorpus(**given, chat_template=Roles())
    prompts.check()
    train, val = prompts.prompt_splits()
    assert [prompt.answer for prompt in val] == [str(n) for n in range(18, 24)] and len(train) == 18
    for kind, more in ((PreferenceCorpus, {"too_long": "error"}), (PromptCorpus, {"chat_template": Roles()})):
        with pytest.raises(UserError, match=r"no such split \(dataset.val_split=val"):
            kind(**given | more | {"val_split": "val"}).check()
        with pytest.raises(UserError, match=r"no (preferences|prompts) are named .*dataset.name=user/set"):
            kind(**given | more | {"path": None})


@pytest.mark.exhaustive
def test_preferences_by_name_stay_those_of_their_commit(pairs: Path, tmp_path: Path) -> None:
    with serving({"user/pairs": pairs}) as server:
        environ = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "hf")}

        def call(program: str, *settings: str) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-m", f"tinyllm.{program}", *settings]
            return subprocess.run(command, env={**os.environ, **environ}, capture_output=True, text=True, timeout=900)

        data = ("dataset=preferences", "dataset.name=user/pairs", "dataset.val_split=test", "tokenizer=byte")
        run = f"run.dir={tmp_path / 'run'}"
        shape = ("objective=simpo", "model=pico", "trainer.max_steps=4", "trainer.stop_after_steps=2")
        first = call("train", *data, *shape, run)
        assert first.returncode == 0, first.stderr
        assert COMMIT in next((tmp_path / "run" / "checkpoints").glob("step-*/manifest.json")).read_text()
        for program, settings in (("train", [f"resume={tmp_path / 'run'}"]), ("evaluate", [f"run={tmp_path / 'run'}"])):
            done = call(program, *settings)
            assert done.returncode == 0, done.stderr


@pytest.mark.exhaustive
def test_by_name_with_its_commit_and_without_the_network(copy: Path, tmp_path: Path) -> None:
    with serving({"user/chats": copy}) as server:
        environ = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "hf"), "TINYLLM_CACHE": str(tmp_path / "cache")}
        settings = "dataset=chat dataset.name=user/chats dataset.config=all dataset.split=train_sft --stats --json"
        command = [sys.executable, "-m", "tinyllm.prepare", "tokenizer=byte", *settings.split()]

        def prepared(*more: str, **others: str) -> subprocess.CompletedProcess[str]:
            given = {**os.environ, **environ, **others}
            return subprocess.run([*command, *more], env=given, capture_output=True, text=True, timeout=300)

        first = prepared("dataset.val_split=test_sft")
        assert first.returncode == 0, first.stderr
        told = json.loads(first.stdout)["stats"]
        assert (told["train"]["documents"], told["val"]["documents"]) == (30, 6)
        assert "downloading train_sft of user/chats: 2 files" in first.stderr
        assert COMMIT in next((tmp_path / "hf" / "tinyllm").rglob("*.json")).read_text()
        offline = prepared("dataset.val_split=test_sft", HF_HUB_OFFLINE="1")
        assert json.loads(offline.stdout)["stats"] == told and "downloading" not in offline.stderr

"""A reward model as a reward: its scores, in GRPO, in pairs, and in evaluations; and a run against another one."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.support.chats import WORDS, record, write_records
from tests.support.fixtures import Call
from tests.support.training_runs import SMALL, digest, logged, train
from tinyllm.data.chat.messages import ASSISTANT, TOOL, USER, Conversation, Message, ToolCall
from tinyllm.data.chat.template import Roles
from tinyllm.data.prompts import Prompt
from tinyllm.errors import UserError
from tinyllm.inference.rewards.base import Completion
from tinyllm.programs.load_model import model_of, open_saved
from tinyllm.programs.reward_model import Model
from tinyllm.runs.checkpoint import find
from tinyllm.tokenizers.byte import ByteTokenizer

pytestmark = pytest.mark.slow
SIZE = (*SMALL, "model.max_seq_len=128", "trainer.seq_len=128")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run on conversations, one on a few more steps, and a reward model that prefers short answers."""
    folder = tmp_path_factory.mktemp("runs")
    chats = write_records(folder / "c.jsonl", [record(seed, tools=False) for seed in range(30)])
    data = ("dataset=chat", f"dataset.path={chats}", "dataset.too_long=drop")
    chat, other, scores = folder / "chat", folder / "other", folder / "reward"
    assert train(*SIZE, *data, "trainer.max_steps=2", f"run.dir={chat}") == 0
    assert train(*SIZE, *data, "trainer.max_steps=3", "seed=2", f"run.dir={other}") == 0
    pairs = []
    for number in range(40):
        asked = [{"role": "user", "content": f"{WORDS[number % 11]} {WORDS[number // 11]} of"}]
        short, long = WORDS[number % 7], " ".join(WORDS[: 3 + number % 4])
        pairs.append({"prompt": asked, "chosen": short, "rejected": long})
    preferences = write_records(folder / "pairs.jsonl", pairs)
    of_reward = ("objective=reward", "dataset=preferences", f"dataset.path={preferences}", f"init_from={chat}")
    assert train(*SIZE, *of_reward, "trainer.max_steps=40", "optimizer.lr=3e-3", f"run.dir={scores}") == 0
    assert logged(scores, "pref/accuracy")[-1] == 1
    prompts = [{"prompt": pair["prompt"][0]["content"]} for pair in pairs]
    return SimpleNamespace(
        folder=folder, chat=chat, other=other, reward=scores, prompts=write_records(folder / "p.jsonl", prompts)
    )


def test_scores_are_those_of_each_answer_alone(runs: Any) -> None:
    """Prompt and answer as the template renders them, with calls of tools, and no stop token after a cut."""
    reward = Model(weight=1.0, run=str(runs.reward), checkpoint="best")
    asked = Prompt(conversation=Conversation((Message(USER, "the sum of"),)), name="here:1")
    call = (Message(ASSISTANT, "", (ToolCall("is", "12+30"),)), Message(TOOL, "no"), Message(ASSISTANT, "apples"))
    completions = [
        Completion(text="red", tokens=4, ended=True),
        Completion(text="apples", tokens=9, ended=True, calls=1, messages=call),
        Completion(text="what is the sum of red apples", tokens=30, ended=True),
        Completion(text="red", tokens=3, ended=False),
    ]
    scores = reward.scores([asked] * 4, completions)
    saved = open_saved(runs.reward)
    model = model_of(saved, scores=True)
    for completion, score in zip(completions, scores, strict=True):
        messages = completion.messages or (Message(ASSISTANT, completion.text),)
        ids = Roles().render(Conversation((*asked.conversation.messages, *messages)), saved.tokenizer).ids
        ids = ids if completion.ended else ids[:-1]
        with torch.no_grad():
            expected = F.linear(model(torch.from_numpy(ids)[None])[0, -1], model.score.weight).item()
        assert score == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert scores[0] > scores[2], "it has learned to prefer short answers"
    with pytest.raises(UserError, match=r"cannot read an answer.*here:1"):
        reward.scores([asked], [Completion(text="Z", tokens=1, ended=True)])
    with pytest.raises(UserError, match=r"too long for the reward model.*here:1"):
        reward.scores([asked], [Completion(text="apples " * 30, tokens=99, ended=True)])
    reward.check([asked], tokenizer=saved.tokenizer, max_new_tokens=100)
    with pytest.raises(UserError, match=r"do not fit into the reward model .*its context 128, and 120 new tokens"):
        reward.check([asked], tokenizer=saved.tokenizer, max_new_tokens=120)
    reward.check([asked], tokenizer=ByteTokenizer(), max_new_tokens=120)  # which may take fewer of its own
    strange = Prompt(conversation=Conversation((Message(USER, "Z"),)), name="here:2")
    with pytest.raises(UserError, match=r"cannot read a prompt.*here:2"):
        reward.check([asked, strange], tokenizer=saved.tokenizer, max_new_tokens=1)
    for run, what in ((runs.chat, "the run is no reward model"), (runs.folder / "none", "no such directory")):
        with pytest.raises(UserError, match=f"{what} .reward.model.run="):
            Model(weight=1.0, run=str(run), checkpoint="best")


def test_grpo_with_a_reward_model_resumes_with_that_one_only(runs: Any, tmp_path: Path, call: Call) -> None:
    copy = tmp_path / "reward"
    shutil.copytree(runs.reward, copy)
    settings = (
        *SIZE,
        "objective=grpo",
        "objective.max_new_tokens=12",
        "objective.group_size=4",
        "trainer.batch_size=2",
    )
    settings += ("dataset=prompts", f"dataset.path={runs.prompts}", "reward=[model,length]", f"reward.model.run={copy}")
    settings += (f"init_from={runs.chat}", "trainer.max_steps=4")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(*settings, f"run.dir={whole}") == 0
    assert train(*settings, f"run.dir={parts}", "trainer.stop_after_steps=2") == 0
    assert len(set(logged(whole, "rl/reward_model"))) > 1
    checkpoint = find(parts)
    assert "score.weight" not in checkpoint.tensors().names(), "the reward model is no part of the run"
    assert set(checkpoint.manifest["rewards"]) == {"model"}
    moved = tmp_path / "moved"
    copy.rename(moved)
    assert train(f"resume={parts}", f"reward.model.run={moved}") == 0, "the same weights elsewhere"
    assert digest(parts) == digest(whole)
    other = tmp_path / "other"
    data = ("objective=reward", "dataset=preferences", f"dataset.path={runs.folder / 'pairs.jsonl'}")
    assert train(*SIZE, *data, f"init_from={runs.chat}", "trainer.max_steps=1", f"run.dir={other}") == 0
    refused = call("train", f"resume={whole}", "trainer.max_steps=8", f"reward.model.run={other}")
    assert refused.code == 2 and "the reward model differs from the run's" in refused.err, refused.err
    longer = ("model.max_seq_len=256", "objective.max_new_tokens=125", f"reward.model.run={moved}")
    refused = call("train", *settings, *longer, f"run.dir={tmp_path / 'longer'}")
    assert refused.code == 2 and "do not fit into the reward model (reward.model.run=" in refused.err, refused.err
    assert refused.made == []


def test_a_win_rate_is_of_what_is_generated_and_not_of_pairs(runs: Any, tmp_path: Path, call: Call) -> None:
    """A step so small that all pairs are ranked right, and not one answer becomes another."""
    run = tmp_path / "run"
    data = ("objective=dpo", "dataset=preferences", f"dataset.path={runs.folder / 'pairs.jsonl'}")
    small = ("optimizer.lr=1e-6", "schedule=constant", "trainer.max_steps=6")
    assert train(*SIZE, *data, *small, f"init_from={runs.chat}", f"run.dir={run}") == 0
    assert logged(run, "pref/accuracy")[0] == 0.5 and logged(run, "pref/accuracy")[-1] == 1
    asked = ("dataset=prompts", f"dataset.path={runs.prompts}", "answers.max_new_tokens=20", "tools=none")
    scored = ("reward=[length]", "reward.length.target=1")
    done = call("evaluate", f"run={run}", "checkpoint=last", f"versus={runs.chat}", *asked, *scored, "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert result["win/rate"] == 0.5 and result["win/ties"] == result["prompts"] > 0


def test_pairs_and_evaluations_by_a_reward_model(runs: Any, tmp_path: Path, call: Call) -> None:
    scored = ("reward=[model]", f"reward.model.run={runs.reward}", "tools=none")
    prompts = ("dataset=prompts", f"dataset.path={runs.prompts}")
    file = tmp_path / "pairs.jsonl"
    short = ("max_new_tokens=20", "n_samples=16", "n_pairs=5")
    done = call("pairs", f"run={runs.chat}", *scored, *prompts, *short, f"out={file}", "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert told["pairs"] == 5 and told["chosen_reward"] > told["reward"] > told["rejected_reward"]
    answers = ("answers.n_samples=4", "answers.temperature=1", "answers.max_new_tokens=20")
    done = call("evaluate", f"run={runs.chat}", *scored, *prompts, *answers, "--json")
    assert done.code == 0 and json.loads(done.out)["val/reward_model"] == json.loads(done.out)["val/reward"], done.err
    same = call("evaluate", f"run={runs.chat}", f"versus={runs.chat}", *scored, *prompts, *answers, "--json")
    assert same.code == 0, same.err
    result = json.loads(same.out)
    assert result["win/rate"] == 0.5 and result["win/ties"] == 4 * result["prompts"]
    assert result["reward"] == result["versus/reward"]
    one, other = (
        json.loads(call("evaluate", f"run={a}", f"versus={b}", *scored, *prompts, *answers, "--json").out)
        for a, b in ((runs.chat, runs.other), (runs.other, runs.chat))
    )
    assert one["win/wins"] == other["win/losses"] > 0 and one["win/rate"] == pytest.approx(1 - other["win/rate"])
    assert one["win/low"] < one["win/rate"] < one["win/high"]
    shown = call("evaluate", f"run={runs.chat}", f"versus={runs.other}", *scored, *prompts, *answers)
    assert shown.code == 0 and "win rate" in shown.out and "95%" in shown.out
    for arguments, where, hint in (
        ((f"versus={runs.other}", *prompts), "reward=[]", "choose at least one"),
        ((f"versus={runs.reward}", *scored, *prompts), "reward model", "writes no text"),
        ((f"versus={runs.other}", *scored, *prompts, "seq_len=8"), "seq_len=8", "leave it out"),
        ((f"versus={runs.other}", *scored, "dataset=pydocs"), "dataset=", "choose dataset=tasks"),
        ((f"versus={runs.folder / 'none'}", *scored, *prompts), "versus=", "a run directory"),
        (("reward=[length]", "dataset=pydocs"), "reward", "choose dataset=tasks"),
    ):
        done = call("evaluate", f"run={runs.chat}", *arguments)
        assert done.code == 2 and where in done.err and hint in done.err, done.err

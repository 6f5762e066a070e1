"""The program pairs: preferences from a run's own answers, through the entry point."""

import json
from pathlib import Path

import pytest

from tests.support.chats import record, write_records
from tests.support.fixtures import Call
from tests.support.training_runs import SMALL, train
from tinyllm.data.preferences.records import ChatPreference, parse_preference
from tinyllm.data.tasks.problem import side_of
from tinyllm.data.tasks.task_set import TaskSet
from tinyllm.programs.prompt_sources import in_random_order

SHORT = ("reward=[length]", "reward.length.target=1", "max_new_tokens=30", "n_samples=24", "tools=none")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps on conversations, whose answers are random characters that often end."""
    folder = tmp_path_factory.mktemp("pairs")
    file = write_records(folder / "c.jsonl", [record(seed, tools=False) for seed in range(40)])
    settings = (*SMALL, "model.max_seq_len=192", "trainer.max_steps=2", "dataset.too_long=drop")
    assert train(*settings, "dataset=chat", f"dataset.path={file}", f"run.dir={folder / 'run'}") == 0
    return folder / "run"


@pytest.mark.slow
def test_pairs_of_a_run_are_preferences_to_train_on(run: Path, call: Call, tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    done = call("pairs", f"run={run}", *SHORT, "n_pairs=6", f"out={file}", "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    pairs = [parse_preference(json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]
    assert told["pairs"] == len(pairs) == 6 and told["answers"] == 24 * told["prompts"]
    assert told["chosen_reward"] > told["rejected_reward"] and told["chosen_length"] < told["rejected_length"]
    assert told["reward"] == pytest.approx(told["reward_length"] * 0.1) and told["reward"] < told["chosen_reward"]
    for pair in pairs:
        assert isinstance(pair, ChatPreference)
        assert len(pair.chosen.messages[-1].content) < len(pair.rejected.messages[-1].content)
    fewer = call("pairs", f"run={run}", *SHORT, "n_pairs=2", f"out={tmp_path / 'fewer.jsonl'}")
    assert fewer.code == 0 and "pairs" in fewer.out
    assert file.read_text(encoding="utf-8").startswith((tmp_path / "fewer.jsonl").read_text(encoding="utf-8"))
    other = ("objective=simpo", "dataset=preferences", f"dataset.path={file}", f"init_from={run}")
    settings = (*SMALL, "model.max_seq_len=192", "trainer.max_steps=1", f"run.dir={tmp_path / 'simpo'}")
    assert train(*settings, *other, "dataset.val_fraction=0.3") == 0


@pytest.mark.slow
def test_other_prompts_and_what_is_refused(run: Path, call: Call, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    asked = [{"prompt": f"the sum of {'apples ' * n}", "answer": "12"} for n in range(20)] + [{"prompt": "is " * 80}]
    prompts.write_text("".join(json.dumps(each) + "\n" for each in asked), encoding="utf-8")
    here = ("dataset=prompts", f"dataset.path={prompts}", f"out={tmp_path / 'p.jsonl'}")
    done = call("pairs", f"run={run}", *SHORT, *here, "split=train", "n_pairs=100", "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert told["too_long"] <= 1 and told["prompts"] + told["too_long"] < len(asked), "validation is left out"
    assert told["pairs"] + told["ties"] == told["prompts"]
    prompts.with_name("unknown.jsonl").write_text('{"prompt": "7"}\n{"prompt": "8"}\n', encoding="utf-8")
    unknown = ("dataset=prompts", f"dataset.path={prompts.with_name('unknown.jsonl')}", "dataset.val_fraction=0.5")
    for arguments, where, hint in (
        ((*SHORT, *unknown), "unknown.jsonl:", "tokenizer=byte"),
        ((*SHORT, *here), "out=", "name another file"),
        ((*SHORT, "out=x.jsonl", "dataset=pydocs"), "dataset=", "choose dataset=tasks"),
        ((*SHORT, "out=x.jsonl", "split=test"), "split=test", "use val or train"),
        ((*SHORT, "out=x.jsonl", "dataset=tasks", "dataset.packing=rows"), "dataset.packing=rows", "one by one"),
        ((*SHORT, "out=x.jsonl", "max_new_tokens=192"), "max_new_tokens=192", "at most 1"),
        (("reward=[exact]", "out=x.jsonl", "max_new_tokens=2", "n_prompts=4"), "reward=[exact]", "were cut off"),
    ):
        done = call("pairs", f"run={run}", *arguments)
        assert done.code == 2 and done.made == [], done
        assert where in done.err and hint in done.err and len(done.err.splitlines()) == 1, done.err


def test_training_prompts_of_tasks_are_training_problems() -> None:
    """The order is a permutation, and every problem belongs to the side that was asked for."""
    assert sorted(in_random_order(100, seed=3)) == list(range(100))
    first = [list(in_random_order(100, seed=seed))[:10] for seed in (3, 3, 4)]
    assert first[0] == first[1] != first[2]
    tasks = TaskSet(families=["arithmetic", "words"], seed=0, tool=None, tool_share=0, short_share=0)
    for side in ("train", "val"):
        problems = [tasks.prompt(side, number).problem for number in range(50)]
        assert all(problem is not None and side_of(problem.key) == side for problem in problems)

"""``compare`` over objectives: any metric with its direction, logged or evaluated afterwards."""

import json
from pathlib import Path

import pytest

from tests.studies.compare.test_compare import started  # noqa: F401 - a fixture
from tests.support.fixtures import Call
from tests.support.training_runs import SMALL, train

SIZES = ("model.max_seq_len=192", "trainer.batch_size=4")
TINY = (*(one for one in SMALL if not one.startswith("trainer.eval_every")), *SIZES)
STUDY = Path(__file__).parents[3] / "experiments" / "preference_study"
TASKS = ("dataset=tasks", "dataset.n_train=64", "dataset.n_val=6")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on tasks, and pairs of answers beside it."""
    folder = tmp_path_factory.mktemp("base")
    assert train(*TINY, *TASKS, "tokenizer=byte", "trainer.max_steps=2", f"run.dir={folder / 'run'}") == 0
    pair = {"chosen": [{"role": "assistant", "content": "7"}], "rejected": [{"role": "assistant", "content": "33"}]}
    asked = ({"prompt": [{"role": "user", "content": f"What is {n}?"}], **pair} for n in range(60))
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, asked)), encoding="utf-8")
    return folder


@pytest.mark.slow
@pytest.mark.usefixtures("started")
def test_rewards_of_reinforced_arms(base: Path, tmp_path: Path, call: Call) -> None:
    grpo = ("objective=grpo", "reward=length", "reward.length.target=3", "objective.max_new_tokens=6")
    arms = ("objective.normaliser=fixed,targets", "objective.group_size=2", "trainer.max_steps=2", "seeds=2")
    out = tmp_path / "out"
    done = call("compare", *TINY, *TASKS, *grpo, *arms, f"init_from={base / 'run'}", f"out={out}")
    assert done.code == 0, done
    study = json.loads((out / "study.json").read_text())
    assert (study["metric"], study["lower_is_better"], study["effect"]) == ("val/reward", False, 0.05)
    assert study["question"].endswith("has the highest val/reward?")
    arm = study["arms"][0]
    assert arm["max_steps"] == 2, "equal arms get equal steps"
    generated = 4 * 2 * 6 * arm["account"]["decode_flops_per_token"]
    assert arm["flops"] == arm["tokens"] * arm["account"]["flops_per_token"] + 2 * generated
    assert "higher val/reward is better" in (out / "report.md").read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("started")
def test_the_study_of_preferences(base: Path, tmp_path: Path, call: Call) -> None:
    """The file of experiments/, at a size that takes seconds."""
    out = tmp_path / "out"
    given = (f"init_from={base / 'run'}", f"dataset.path={base / 'pairs.jsonl'}", f"out={out}")
    short = ("trainer.max_steps=2", "seeds=2", "validation=dataset=tasks dataset.n_val=4 answers.max_new_tokens=4")
    done = call("compare", f"study={STUDY}", *TINY, *given, *short)
    assert done.code == 0, done
    study = json.loads((out / "study.json").read_text())
    assert study["metric"] == "task/exact" and study["reference"] == "none" and not study["lower_is_better"]
    assert [run["value"] for run in study["runs"]] == [0.0] * 12
    assert study["evaluation"] == "dataset=tasks dataset.n_val=4 answers.max_new_tokens=4"


@pytest.mark.slow
@pytest.mark.usefixtures("started")
def test_ranks_of_adapters_by_their_win_rate(base: Path, tmp_path: Path, call: Call) -> None:
    out = tmp_path / "out"
    given = (
        "objective=dpo",
        "dataset=preferences",
        f"dataset.path={base / 'pairs.jsonl'}",
        f"init_from={base / 'run'}",
    )
    arms = ("lora=lora", "lora.rank=1,4", "optimizer.lr=1e-2", "trainer.max_steps=2", "seeds=2")
    answers = "answers.max_new_tokens=6 answers.temperature=1"
    judged = f"versus={base / 'run'} dataset=tasks dataset.n_val=6 reward=[length] reward.length.target=3 {answers}"
    done = call("compare", *TINY, *given, *arms, "metric=win/rate", f"validation={judged}", f"out={out}")
    assert done.code == 0, done
    study = json.loads((out / "study.json").read_text())
    assert (study["metric"], study["lower_is_better"], study["evaluation"]) == ("win/rate", False, judged)
    assert len(study["runs"]) == 4
    for run in study["runs"]:
        told = call("evaluate", f"run={out / run['path']}", "checkpoint=last", *judged.split(), "--json")
        assert json.loads(told.out)["win/rate"] == run["value"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((), "the losses or rewards of the arms are not comparable (metric=null)"),
        (("metric=task/words/tokens",), "nothing is known about the metric (metric=task/words/tokens)"),
        (("direction=lower",), "the key has no effect here (direction=lower)"),
        (("metric=val/pref/accuracy", "validation=dataset=tasks"), "the key has no effect here (validation="),
        (("metric=task/exact", "validation=dataset=taskz"), "no such option (validation=dataset=taskz)"),
    ],
)
def test_what_is_refused(base: Path, call: Call, settings: tuple[str, ...], message: str) -> None:
    given = (
        "objective=dpo",
        "dataset=preferences",
        f"dataset.path={base / 'pairs.jsonl'}",
        f"init_from={base / 'run'}",
    )
    done = call("compare", *TINY, *given, "objective.beta=0.1,0.5", "trainer.max_steps=2", *settings)
    assert done.code == 2 and message in done.err, done

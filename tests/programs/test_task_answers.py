"""``dataset=tasks`` and ``evaluate dataset=tasks``, through the entry points."""

import json
from pathlib import Path

import pytest

from tests.support.fixtures import Call
from tests.support.training_runs import SMALL, logged, train

TASKS = ("dataset=tasks", "tokenizer=byte", "dataset.n_train=64", "dataset.n_val=6")
CONTEXT = ("model.max_seq_len=208", "trainer.seq_len=128")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few steps on tasks."""
    path = tmp_path_factory.mktemp("tasks") / "run"
    assert train(*SMALL, *TASKS, *CONTEXT, "trainer.max_steps=3", f"run.dir={path}") == 0
    return path


@pytest.mark.slow
def test_answers_are_evaluated(run: Path, call: Call) -> None:
    assert len(logged(run, "train/loss")) == 3
    done = call("evaluate", f"run={run}", "dataset=tasks", "dataset.n_val=6", "answers.max_new_tokens=8", "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert result["task/words/exact"] == 0 and result["task/arithmetic/tokens"] <= 8
    assert result["tools"] == "PythonExpression" and result["val/loss"] > 0
    sampled = ("answers.n_samples=2", "answers.temperature=1", "answers.max_new_tokens=4", "split=test", "tools=none")
    done = call("evaluate", f"run={run}", "dataset=tasks", "dataset.n_val=2", *sampled, "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert result["task/pass@2"] == 0 and result["tools"] is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "where", "hint"),
    [
        (("dataset=pydocs", "answers.temperature=1"), "answers.temperature", "choose dataset=tasks"),
        (("dataset=pydocs", "tools=none"), "tools", "choose dataset=tasks"),
        (("dataset=tasks", "answers.n_samples=4"), "answers.n_samples=4", "answers.temperature above 0"),
        (("dataset=tasks", "answers.max_new_tokens=200"), "answers.max_new_tokens=200", "at most 1"),
        (("dataset=tasks", "tools=calculator", "tools.max_calls=0"), "tools.max_calls=0", "tools=none"),
        (("dataset=tasks", "dataset.families=[sums]"), "dataset.families", "arithmetic, words"),
    ],
)
def test_what_is_refused(run: Path, call: Call, arguments: tuple[str, ...], where: str, hint: str) -> None:
    done = call("evaluate", f"run={run}", *arguments)
    assert done.code == 2
    (line,) = [line for line in done.err.splitlines() if line.startswith("error")]
    assert where in line and hint in line, line

"""``hydra/sweeper=search`` from the command line."""

import csv
import sys
from pathlib import Path

import pytest

from tests.support.fixtures import Call
from tests.support.training_runs import SMALL, write_corpus

SEARCH = ("-m", "hydra/sweeper=search", *SMALL, "trainer.max_steps=1", "trainer.eval_every=1")
SPACE = ("optimizer.lr=tag(log,interval(1e-4,1e-1))", "model.d_ff=range(16,65,16)")


@pytest.fixture
def corpus(tmp_path: Path) -> list[str]:
    return ["dataset=text", f"dataset.path={write_corpus(tmp_path / 'words.txt', n_words=400)}"]


def rows(directory: str) -> list[dict[str, str]]:
    with Path(directory, "sweep.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def drawn(directory: str) -> list[tuple[str, str]]:
    return [(row["optimizer.lr"], row["model.d_ff"]) for row in rows(directory)]


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_continued_search_equals_an_uninterrupted_one(call: Call, corpus: list[str]) -> None:
    command = (*SEARCH, *corpus, *SPACE)
    whole = call("train", *command, "hydra.sweep.dir=whole", "hydra.sweeper.n_trials=4")
    assert whole.code == 0, whole.err
    assert call("train", *command, "hydra.sweep.dir=parts", "hydra.sweeper.n_trials=2").code == 0
    assert call("train", *command, "hydra.sweep.dir=parts", "hydra.sweeper.n_trials=4").code == 0
    assert drawn("parts") == drawn("whole")
    assert len(set(drawn("whole"))) == 4
    assert all(1e-4 <= float(lr) <= 1e-1 and int(d_ff) in (16, 32, 48, 64) for lr, d_ff in drawn("whole"))
    assert [row["status"] for row in rows("parts")] == ["skipped", "skipped", "finished", "finished"]
    best = min(rows("whole"), key=lambda row: float(row["val_loss"]))
    [line] = [line for line in whole.out.splitlines() if line.startswith("best: ")]
    assert line.startswith(f"best: job {best['job']} (") and line.endswith(f": {best['run_dir']}")

    other = call("train", *command, "hydra.sweep.dir=other", "hydra.sweeper.n_trials=2", "hydra.sweeper.seed=2")
    assert other.code == 0
    assert set(drawn("other")).isdisjoint(drawn("whole"))


@pytest.mark.slow
def test_a_failed_job_does_not_end_the_search(call: Call, corpus: list[str]) -> None:
    command = (*SEARCH, *corpus, "model.d_model=choice(33,35)", "hydra.sweep.dir=swept")
    answer = call("train", *command, "hydra.sweeper.n_trials=3")
    assert answer.code == 2
    assert {row["status"] for row in rows("swept")} == {"failed"}
    again = call("train", *command, "hydra.sweeper.n_trials=3")
    assert not [line for line in again.out.splitlines() if line.startswith("job ") and "again" in line]


@pytest.mark.slow
def test_stopped_jobs_are_continued_before_new_ones_start(call: Call, corpus: list[str]) -> None:
    import optuna

    from tinyllm.studies.sweep.search import open_study

    command = (*SEARCH, *corpus, *SPACE, "hydra.sweep.dir=swept")
    assert call("train", *command, "hydra.sweeper.n_trials=1").code == 0
    study = open_study(Path("swept/search.db"), direction="minimize")
    first = study.trials[0]
    study.ask(first.distributions)  # as after a kill: proposed, not run
    study.ask({"optimizer.lr": first.distributions["optimizer.lr"]})  # killed while being proposed
    assert call("train", *command, "hydra.sweeper.n_trials=3").code == 0
    states = [trial.state.name for trial in open_study(Path("swept/search.db"), direction="minimize").trials]
    assert states == ["COMPLETE", "COMPLETE", "FAIL"]
    assert first.value == pytest.approx(float(rows("swept")[0]["val_loss"]))
    assert optuna.logging.get_verbosity() == optuna.logging.ERROR


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("seed=1,2 hydra.sweeper.n_trials=0", "(hydra.sweeper.n_trials=0): a whole number, at least 1"),
        ("seed=1,2 hydra.sweeper.n_trials=many", "(hydra.sweeper.n_trials=many): a whole number"),
        ("seed=1,2 hydra.sweeper.n_jobs=0", "(hydra.sweeper.n_jobs=0): a whole number, at least 1"),
        ("seed=1,2 hydra.sweeper.seed=-1", "(hydra.sweeper.seed=-1): a whole number, at least 0"),
        ("seed=1,2 hydra.sweeper.sampler=gp", "(hydra.sweeper.sampler=gp): one of tpe, random"),
        ("seed=1,2 hydra.sweeper.direction=down", "(hydra.sweeper.direction=down): one of minimize, maximize"),
        ("seed=1,2 hydra.sweeper.n_trails=3", "did you mean hydra.sweeper.n_trials?"),
        ("seed=1", "nothing to search for (hydra/sweeper=search): give a key several values, e.g."),
        ("seed=interval(5,1)", "not an interval (seed=interval(5,1))"),
        ("trainer.eval_every=0 seed=1,2", "a search needs evaluations (trainer.eval_every=0)"),
        ("trainer.max_step=1,2", "unknown key (trainer.max_step=1): did you mean trainer.max_steps?"),
        ("seed=1,2 run.dir=x", "not allowed in a multirun (run.dir=x)"),
    ],
)
@pytest.mark.every(4)
def test_an_invalid_search_is_one_line_and_creates_nothing(
    call: Call, corpus: list[str], arguments: str, line: str
) -> None:
    answer = call("train", *SEARCH, *corpus, *arguments.split())
    assert answer.code == 2
    [first] = answer.err.splitlines()
    assert line in first
    assert answer.made == []


def test_a_damaged_study_is_one_line(call: Call, corpus: list[str]) -> None:
    Path("swept/jobs").mkdir(parents=True)
    Path("swept/search.db").write_bytes(b"not a database, but long enough to look like one" * 100)
    answer = call("train", *SEARCH, *corpus, *SPACE, "hydra.sweep.dir=swept")
    assert answer.code == 2
    [line] = answer.err.splitlines()
    assert line.startswith("error: the study cannot be read (swept/search.db): ")


@pytest.mark.slow
def test_a_directory_with_another_search_is_an_error(call: Call, corpus: list[str]) -> None:
    command = (*SEARCH, *corpus, "hydra.sweep.dir=swept", "hydra.sweeper.n_trials=1")
    assert call("train", *command, *SPACE).code == 0
    for changed in ((*SPACE, "seed=7"), (SPACE[0],), (*SPACE, "hydra.sweeper.direction=maximize")):
        answer = call("train", *command, *changed)
        assert answer.code == 2
        assert "the directory holds a different search (hydra.sweep.dir=swept): its " in answer.err


def test_a_search_without_optuna_names_the_extra(
    call: Call, corpus: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    answer = call("train", *SEARCH, *corpus, *SPACE)
    [line] = answer.err.splitlines()
    assert "optuna" in line and line.endswith("(hydra/sweeper=search): pip install 'tinyllm[sweep]'")
    assert answer.made == []

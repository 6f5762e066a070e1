"""Jobs of a sweep: what they start from, which keys identify them, and what they do not share."""

import csv
from pathlib import Path
from typing import Any

import pytest

from tests.support.elsewhere import train_copy
from tests.support.fixtures import Call
from tests.support.training_runs import SMALL, digest, metrics, train, write_corpus
from tinyllm.loggers import wandb

SWEEP = "hydra.sweep.dir=swept"
TINY = (*SMALL, "trainer.max_steps=2", "schedule.warmup_steps=0")


@pytest.fixture
def corpus(tmp_path: Path) -> tuple[str, ...]:
    return ("dataset=text", f"dataset.path={write_corpus(tmp_path / 'words.txt', n_words=400)}")


def rows() -> list[dict[str, str]]:
    with Path("swept", "sweep.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.slow
def test_init_from_counts_at_the_first_start_only(call: Call, corpus: tuple[str, ...], tmp_path: Path) -> None:
    before, same = tmp_path / "before", (*corpus, *TINY)
    assert call("train", *same, f"run.dir={before}").code == 0
    command = (*same, f"init_from={before}", "run.dir=new", "resume=auto", "optimizer.lr=0")
    assert call("train", *command, "trainer.stop_after_steps=1").code == 0
    assert digest_of_weights(Path("new")) == digest_of_weights(before)
    assert call("train", *command).code == 0
    assert [record["step"] for record in metrics(Path("new"))] == [1, 2]
    refused = call("describe", "resume=new", f"init_from={before}")
    assert refused.code == 2 and "the key has no effect here" in refused.err and "resume=new" in refused.err


def digest_of_weights(run: Path) -> bytes:
    [*_, last] = sorted(run.glob("checkpoints/step-*"))
    return (last / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_killed_sweep_that_fine_tunes_ends_with_the_right_jobs(
    call: Call, corpus: tuple[str, ...], tmp_path: Path
) -> None:
    before, steps = tmp_path / "before", "trainer.max_steps=4"
    assert train(*corpus, *SMALL, steps, f"run.dir={before}") == 0
    start = (*corpus, *SMALL, steps, f"init_from={before}", "trainer.checkpoint_every=2")
    grid = ("-m", *start, "optimizer.lr=1e-4,1e-3", "seed=1,2", SWEEP)
    for fault in ("kill@step=3", "kill@save:mid_write:2"):  # in the first job, then in a later one
        assert train_copy(*grid, fault=fault).code == -9
    assert call("train", *grid).code == 0
    assert [(row["optimizer.lr"], row["seed"]) for row in rows()] == [
        ("0.0001", "1"),
        ("0.0001", "2"),
        ("0.001", "1"),
        ("0.001", "2"),
    ]
    assert {row["status"] for row in rows()} <= {"finished", "skipped"}
    for number, row in enumerate(rows()):
        alone = tmp_path / f"alone{number}"
        assert train(*start, f"optimizer.lr={row['optimizer.lr']}", f"seed={row['seed']}", f"run.dir={alone}") == 0
        assert digest(Path(row["run_dir"])) == digest(alone)
        assert metrics(Path(row["run_dir"])) == metrics(alone)
    other = call("train", *grid, "init_from=somewhere")
    assert other.code == 2 and "init_from" in other.err  # other weights are other jobs


@pytest.mark.slow
@pytest.mark.parametrize(
    ("swept", "steps"),
    [
        ("trainer.stop_after_steps=1,2", ["1", "2"]),
        pytest.param("trainer.max_minutes=5,6", ["2", "2"], marks=pytest.mark.slow),
        pytest.param("debug=true,false", ["2", "2"], marks=pytest.mark.slow),
    ],
)
def test_every_swept_value_is_a_job(call: Call, corpus: tuple[str, ...], swept: str, steps: list[str]) -> None:
    """Also for keys that otherwise belong to one start of the program."""
    answer = call("train", "-m", *corpus, *TINY, swept, SWEEP)
    assert answer.code == 0
    key, _, values = swept.partition("=")
    assert [row[key].lower() for row in rows()] == values.split(",")
    assert [row["step"] for row in rows()] == steps
    assert len({row["run_dir"] for row in rows()}) == 2


@pytest.mark.exhaustive
@pytest.mark.slow
def test_swept_and_fixed_values_of_a_key_are_told_apart(call: Call, corpus: tuple[str, ...]) -> None:
    base = ("-m", *corpus, *SMALL, "trainer.max_steps=4", "schedule.warmup_steps=0", SWEEP)
    assert call("train", *base, "seed=1,2", "trainer.stop_after_steps=1").code == 0
    assert call("train", *base, "seed=1", "trainer.stop_after_steps=2,3").code == 0
    assert [row["step"] for row in rows()] == ["1", "1", "2", "3"]
    assert call("train", *base, "seed=1,2", "trainer.stop_after_steps=2").code == 0  # continues the first two
    assert [row["step"] for row in rows()] == ["2", "2", "2", "3"]


@pytest.mark.slow
@pytest.mark.parametrize("sweeper", ["basic", "grid"])
def test_other_sweepers_tell_jobs_apart_too(call: Call, corpus: tuple[str, ...], sweeper: str) -> None:
    values = "trainer.stop_after_steps=1,2"
    assert call("train", "-m", *corpus, *TINY, values, SWEEP, f"hydra/sweeper={sweeper}").code == 0
    made = sorted(Path("swept").glob("*/metrics.jsonl"))
    assert [len(file.read_text().splitlines()) for file in made] == [1, 2]


@pytest.mark.parametrize("sweeper", ["grid", "basic"])
@pytest.mark.parametrize("setting", ["run.name=a", "run.name=a,b", "run.dir=a,b", "+run.dir=x"])
def test_keys_that_the_sweep_sets_are_refused(call: Call, setting: str, sweeper: str) -> None:
    answer = call("train", "-m", "seed=1,2", setting, f"hydra/sweeper={sweeper}")
    [line] = answer.err.splitlines()
    assert line.startswith(f"error: not allowed in a multirun ({setting.lstrip('+')}): ") and "job" in line
    assert answer.made == []


@pytest.mark.slow
def test_an_experiment_may_name_its_runs(call: Call, corpus: tuple[str, ...], tmp_path: Path) -> None:
    """A sweep ignores the name without an error: the user did not type it."""
    own = tmp_path / "own" / "experiment"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text("# @package _global_\n# Mine.\nrun:\n  name: mine\n", encoding="utf-8")
    flags = ("--config-dir", str(own.parent), "experiment=mine")
    answer = call("train", "-m", *corpus, *TINY, *flags, "seed=1", SWEEP)
    assert (answer.code, answer.err) == (0, "")


@pytest.mark.exhaustive
@pytest.mark.slow
def test_each_job_is_a_separate_wandb_run(call: Call, corpus: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[dict[str, Any]] = []

    class Process:
        dropped = 0

        def send(self, message: dict[str, Any]) -> None:
            opened.extend([message["init"]] if "init" in message else [])

        def received(self) -> list[Any]:
            return []

        def ended(self) -> None:
            return None

        def finish(self, timeout: float) -> bool:
            return True

    monkeypatch.setattr(wandb, "start", lambda directory, *, report, without: Process())
    shared = ("logger=wandb", "logger.mode=offline", *corpus, *TINY)
    environ = {"WANDB_RUN_ID": "abc123", "WANDB_NAME": "mine"}
    assert call("train", "-m", *shared, "seed=1,2", SWEEP, **environ).code == 0
    assert len({run["id"] for run in opened}) == 2
    assert "abc123" not in {run["id"] for run in opened}
    assert [run["name"] for run in opened] == ["000_seed-1", "001_seed-2"]
    assert call("train", *shared, "run.dir=one", **environ).code == 0
    assert (opened[-1]["id"], opened[-1]["name"]) == ("abc123", "mine")

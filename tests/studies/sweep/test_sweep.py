"""Sweeps from the command line: run directories, the table, sweep.csv, continuing."""

import csv
import json
from pathlib import Path

import pytest

from tests.support.fixtures import Call
from tests.support.training_runs import SMALL, digest, train, write_corpus

QUICK = (*SMALL, "trainer.max_steps=2", "trainer.eval_every=2", "hydra.sweep.dir=swept")


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    return f"dataset=text dataset.path={write_corpus(tmp_path / 'words.txt', n_words=400)}"


def rows(directory: Path = Path("swept")) -> list[dict[str, str]]:
    with (directory / "sweep.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def written_at(directory: Path = Path("swept")) -> dict[str, int]:
    """When each run last wrote its ``run.json``."""
    return {file.parent.name: file.stat().st_mtime_ns for file in directory.glob("*/run.json")}


@pytest.mark.slow
def test_one_of_six_fails_and_only_that_one_runs_again(call: Call, corpus: str) -> None:
    command = ("-m", *corpus.split(), *QUICK, "model.d_model=8,16,24,32,33,40")
    first = call("train", *command)
    assert first.code == 2
    assert [row["status"] for row in rows()] == ["finished"] * 4 + ["failed", "finished"]
    assert [row["model.d_model"] for row in rows()] == ["8", "16", "24", "32", "33", "40"]
    failed = rows()[4]
    assert failed["error"].startswith("error: value not allowed (model.d_model=33)")
    assert failed["run_dir"] == ""
    finished = rows()[0]
    assert (
        float(finished["val_loss"])
        == json.loads(Path(finished["run_dir"], "run.json").read_text())["result"]["best_val_loss"]
    )
    assert float(finished["val_bpb"]) > 0 and float(finished["tokens_per_s"]) > 0 and finished["step"] == "2"
    lines = first.out.splitlines()
    table = lines[lines.index("job  overrides         status    val loss     bpb  tokens/s") :]
    assert table[5].split() == ["4", "model.d_model=33", "failed"]
    assert table[6].split()[:3] == ["5", "model.d_model=40", "finished"]
    assert first.err.splitlines() == [failed["error"], "job 4 (model.d_model=33): failed"]

    before = written_at()
    again = call("train", *command)
    assert again.code == 2
    assert next(line for line in again.out.splitlines() if line.startswith("job ")) == (
        "job 4: model.d_model=33 again (failed before)"
    )
    assert written_at() == before
    assert [row["status"] for row in rows()] == ["skipped"] * 4 + ["failed", "skipped"]
    assert rows()[0]["val_loss"] == finished["val_loss"]


@pytest.mark.slow
def test_a_failed_job_runs_again_once_its_cause_is_fixed(call: Call, corpus: str, tmp_path: Path) -> None:
    late = tmp_path / "late.txt"
    command = ("-m", *corpus.split(), *QUICK, f"dataset.path={tmp_path / 'words.txt'},{late}")
    assert call("train", *command).code == 2
    write_corpus(late, n_words=300)
    assert call("train", *command).code == 0
    assert [row["status"] for row in rows()] == ["skipped", "finished"]


@pytest.mark.slow
def test_half_done_jobs_go_on_from_their_checkpoints(call: Call, corpus: str, tmp_path: Path) -> None:
    command = ("-m", *corpus.split(), *SMALL, "trainer.max_steps=4", "hydra.sweep.dir=swept", "seed=1,2")
    assert call("train", *command, "trainer.stop_after_steps=2").code == 0
    assert [(row["status"], row["step"]) for row in rows()] == [("interrupted", "2")] * 2
    assert call("train", *command).code == 0
    assert [(row["status"], row["step"]) for row in rows()] == [("finished", "4")] * 2
    assert train(*corpus.split(), *SMALL, "trainer.max_steps=4", "seed=2", f"run.dir={tmp_path / 'whole'}") == 0
    assert digest(Path("swept", "001_seed-2")) == digest(tmp_path / "whole")


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_larger_grid_adds_jobs(call: Call, corpus: str) -> None:
    command = ("-m", *corpus.split(), *QUICK, "attn=mha,gqa")
    assert call("train", *command, "seed=1").code == 0
    assert call("train", *command, "seed=1,2").code == 0
    assert [(row["status"], row["attn"], row["seed"]) for row in rows()] == [
        ("skipped", "mha", ""),
        ("skipped", "gqa", ""),
        ("finished", "mha", "2"),
        ("finished", "gqa", "2"),
    ]


@pytest.mark.slow
def test_other_settings_for_the_same_jobs_are_an_error(call: Call, corpus: str) -> None:
    command = ("-m", *corpus.split(), *QUICK, "seed=1,2")
    assert call("train", *command).code == 0
    before = written_at()
    answer = call("train", *command, "optimizer.lr=1e-2")
    assert answer.code == 2
    assert answer.err == (
        "error: the jobs in this directory have different settings (hydra.sweep.dir=swept): 000_seed-1 has "
        "optimizer.lr=0.0003, this command has optimizer.lr=0.01; choose a different directory\n"
    )
    assert written_at() == before


@pytest.mark.slow
def test_a_run_with_other_settings_is_not_continued(call: Call, corpus: str) -> None:
    command = ("-m", *corpus.split(), *SMALL, "trainer.max_steps=4", "hydra.sweep.dir=swept", "seed=1,2")
    assert call("train", *command, "trainer.stop_after_steps=2").code == 0
    for file in Path("swept/000_seed-1").glob("checkpoints/step-*/overrides.yaml"):
        file.write_text(file.read_text(encoding="utf-8").replace("seed=1", "seed=7"), encoding="utf-8")
    answer = call("train", *command)
    assert answer.code != 0
    assert [row["status"] for row in rows()] == ["failed", "finished"]
    assert "overrides.yaml" in rows()[0]["error"] or "seed=7" in rows()[0]["error"]


@pytest.mark.exhaustive
@pytest.mark.slow
def test_each_sweep_gets_a_directory_of_its_own_by_default(call: Call, corpus: str) -> None:
    command = ("-m", *corpus.split(), *QUICK[:-1], "trainer.max_steps=1", "seed=1,2")
    for _ in range(2):
        assert call("train", *command).code == 0
    assert len(list(Path("outputs/sweeps").glob("*/*/sweep.csv"))) == 2


@pytest.mark.slow
def test_a_job_that_does_not_compose_fails_alone(call: Call, corpus: str) -> None:
    answer = call("train", "-m", *corpus.split(), *QUICK, "optimizer=adamw,lion", "optimizer.eps=1e-7,1e-6")
    assert [row["status"] for row in rows()] == ["finished", "finished", "failed", "failed"]
    assert "unknown key (optimizer.eps=1e-07)" in answer.err
    assert answer.code == 2


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("seed=1,2 run.dir=x", "not allowed in a multirun (run.dir=x): each job has its own directory"),
        ("seed=1,2 resume=x", "resume cannot be combined with -m (resume=x): leave out -m"),
        ("seed=1,2 hydra.sweep.dir=FILE", "cannot create the sweep directory (hydra.sweep.dir=FILE): it is a file"),
        ("seed=1,2 hydra.sweep.dir=FILE/below", "cannot create the sweep directory (hydra.sweep.dir=FILE/below): "),
        ("seed=1,2 hydra.sweep.dir=/proc/nope", "cannot create the sweep directory (hydra.sweep.dir=/proc/nope): "),
        ("seed=1,2 hydra.sweep.dir=", "empty path (hydra.sweep.dir="),
        ("seed=1,2 hydra.sweeper.max_batch_size=0", "(hydra.sweeper.max_batch_size=0): at least 1"),
        ("seed=1,2 hydra.sweeper.max_batches=1", "hydra.sweeper.max_batches"),
        ("seed=choice(1", "value not understood (seed=choice(1)"),
        (
            "seed=interval(1,2)",
            "a grid cannot enumerate a continuous range (seed=interval(1,2)): list the values",
        ),
        ("trainer.max_step=5,6", "unknown key (trainer.max_step=5): did you mean trainer.max_steps?"),
        ("seed=1,2 strategy=ddp strategy.gpus_per_job=1", "not enough GPUs for a job (strategy.gpus_per_job=1)"),
        (
            "seed=1,2 strategy=ddp strategy.gpus_per_job=1 strategy.nproc_per_node=2",
            "more processes than GPUs (strategy.nproc_per_node=2): at most strategy.gpus_per_job=1",
        ),
    ],
)
@pytest.mark.every(4)
def test_an_invalid_sweep_is_one_line_and_creates_nothing(
    call: Call, corpus: str, tmp_path: Path, arguments: str, line: str
) -> None:
    file = str(tmp_path / "words.txt")
    answer = call("train", "-m", *corpus.split(), *SMALL, *arguments.replace("FILE", file).split())
    assert answer.code == 2
    [first] = answer.err.splitlines()
    assert line.replace("FILE", file) in first
    assert answer.made == []


@pytest.mark.parametrize("setting", ["hydra.sweep.dir=x", "hydra/sweeper=search", "hydra/launcher=basic"])
def test_sweep_settings_without_m_are_an_error(call: Call, corpus: str, setting: str) -> None:
    answer = call("train", *corpus.split(), *SMALL, setting)
    assert answer.code == 2
    assert "only has an effect in a multirun" in answer.err and "add -m" in answer.err
    assert answer.made == []


def test_a_missing_launcher_is_named_with_its_extra(call: Call, corpus: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = call("train", "-m", *corpus.split(), *SMALL, "seed=1,2", "hydra/launcher=jobs")
    assert "no such option (hydra/launcher=jobs)" in answer.err
    from hydra.errors import MissingConfigException

    from tinyllm.config.hydra_errors import explained

    error = MissingConfigException("", missing_cfg_file="hydra/launcher/joblib", options=["basic"])
    assert str(explained(error, [])) == ("not installed (hydra/launcher=joblib): pip install 'tinyllm[sweep]'")

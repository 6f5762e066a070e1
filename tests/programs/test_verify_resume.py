"""verify_resume finds runs that a resume changes, and only those."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from typing import ClassVar

import pytest

from tests.support.fixtures import Call
from tests.support.training_runs import SMALL, train, write_corpus
from tinyllm.config.cli.arguments import read
from tinyllm.config.quoting import quote_literals, unquoted
from tinyllm.programs.training_process import KillTime, TrainingProcess, descendants
from tinyllm.programs.verify_resume import (
    ATTEMPTS,
    Kill,
    compare_runs,
    kill_times,
    train_twice,
    training_settings,
    verdict,
)

KILL = Kill(step=1, checkpoint=1, again=0, saving=False)
SIZE = [one for one in SMALL if not one.startswith("trainer.") or "batch_size" in one or "precision" in one]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"dataset.path={write_corpus(tmp_path_factory.mktemp('corpus') / 'words.txt')}"


def test_training_gets_the_typed_settings_and_a_short_horizon(tmp_path: Path) -> None:
    """The short horizon only if none is given; without the keys of verify_resume itself."""
    import tinyllm
    from tinyllm.config.cli.main import Invocation
    from tinyllm.config.grammar import key_of

    def arguments(*typed: str) -> list[str]:
        cfg = tinyllm.compose(*typed, program="verify_resume")
        line = read(list(typed))
        return training_settings(
            cfg, Invocation(overrides=line.settings, typed=frozenset(map(key_of, line.settings)), config_dir="mine")
        )

    assert arguments("kills=3", "out=x", "optimizer=lion", "dataset=text", "dataset.path=a, b") == [
        "--config-dir", "mine", "optimizer=lion", "dataset=text", "dataset.path=a, b", "trainer.log_every=1",
        "trainer.eval_every=10", "trainer.sample_every=0", "trainer.checkpoint_every=5", "trainer.max_steps=20",
        "trainer.max_tokens=null", "trainer.max_epochs=null",
    ]  # fmt: skip
    assert [
        one for one in arguments("trainer.max_epochs=2", "trainer.eval_every=3") if "max" in one or "eval" in one
    ] == [
        "trainer.max_epochs=2",
        "trainer.eval_every=3",
    ]


@pytest.mark.parametrize("text", ["a b", "a, [b] {c}", 'it\'s "so"', "${a}", "\\${a}", "=", "null", "ž\\"])
def test_unquoted_settings_are_the_typed_ones(text: str) -> None:
    typed = [f"prompt={text}", "optimizer.betas=[0.9,0.95]", "+prompt=1"]
    assert unquoted(quote_literals(typed)) == typed


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("run.dir=x",), "not a setting of this program (run.dir): out=<directory>"),
        (("resume=x",), "not a setting of this program (resume)"),
        (("trainer.max_minutes=1",), "(trainer.max_minutes): both runs go to the same step"),
        (("out=.",), "the directory exists (out=.): choose a different one"),
        (("kills=-1",), "(kills=-1): at least 0"),
        (
            ("trainer.log_every=0", "trainer.checkpoint_every=0"),
            "the kills are timed by log or checkpoint records, and both are off (trainer.log_every=0)",
        ),
    ],
)
@pytest.mark.every(3)
def test_wrong_settings_are_one_line(settings: tuple[str, ...], message: str, call: Call) -> None:
    answer = call("verify_resume", *settings)
    assert answer.code == 2 and message in answer.err and len(answer.err.splitlines()) == 1
    assert answer.made == []


def test_moments_lie_between_the_first_step_and_the_last_but_one() -> None:
    arrivals = {1: 10.0, 2: 11.0, 3: 21.0, 5: 22.0, 6: 30.0}
    chosen = kill_times(arrivals, 200, Random(1))
    assert chosen == kill_times(arrivals, 200, Random(1)) != kill_times(arrivals, 200, Random(2))
    assert {kill_time.latest for kill_time in chosen} == {5}
    times = [arrivals[kill_time.step] + kill_time.delay for kill_time in chosen]
    assert times == sorted(times) and times[0] >= 10 and times[-1] <= 22
    assert sum(kill_time.step == 2 for kill_time in chosen) > 100  # the longest step
    assert kill_times({1: 0.0}, 3, Random(0)) == []


@pytest.mark.slow
def test_compare_runs_names_the_sections_that_differ(corpus: str, tmp_path: Path) -> None:
    shared = ("dataset=text", corpus, *SMALL, "trainer.max_steps=3")
    for name, more in {"one": (), "same": (), "other": ("optimizer.weight_decay=0.2",), "short": ()}.items():
        assert train(*shared, *more, f"run.dir={tmp_path / name}") == 0
    assert all(section.equal for section in compare_runs(tmp_path / "one", tmp_path / "same"))
    different = {section.name: section for section in compare_runs(tmp_path / "one", tmp_path / "other")}
    assert not different["weights"].equal and not different["optimizer"].equal and different["counters"].equal
    assert any("values differ, by at most" in sentence for sentence in different["weights"].differences)
    (tmp_path / "short" / "metrics.jsonl").write_text("")
    (tmp_path / "short" / "checkpoints" / "last").unlink()
    unequal = {section.name for section in compare_runs(tmp_path / "one", tmp_path / "short") if not section.equal}
    assert unequal == {"metrics", "checkpoints"}


def test_verdicts() -> None:
    assert verdict(True, 1, 0) == "verdict: bitwise equal after 1 kill"
    assert "not equal after 2 kills; kills=0 tells" in verdict(False, 2, 0)
    assert "training is not deterministic" in verdict(False, 0, 0)
    assert "open: the run ended before 1 of the kills" in verdict(True, 1, 1)


def test_kill_reaches_processes_in_other_sessions(tmp_path: Path) -> None:
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(99)'])"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}], start_new_session=True)"
    process = subprocess.Popen([sys.executable, "-c", parent])
    while len(descendants(process.pid)) < 2:
        time.sleep(0.01)
    pids = descendants(process.pid)
    training = object.__new__(TrainingProcess)
    training.process, training.run_dir = process, tmp_path / "none"
    training.kill()
    end = time.monotonic() + 10
    while any(is_alive(pid) for pid in pids):
        assert time.monotonic() < end
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    shown = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(shown.strip()) and not shown.startswith("Z")


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        ("optimizer=muon", "moe=aux_free", "schedule=wsd", "dataloader.workers=2"),
        pytest.param(
            ("optimizer=adamw8bit", "ema.enabled=true", "trainer.grad_accum_steps=2", "kill_seed=5"),
            marks=pytest.mark.exhaustive,
        ),
        pytest.param(
            ("optimizer=lion", "schedule=constant", "trainer.precision=fp16", "checkpoint.asynchronous=true"),
            marks=pytest.mark.exhaustive,
        ),
        pytest.param(
            ("strategy=ddp", "strategy.nproc_per_node=2", "curriculum.enabled=true", "curriculum.start_seq_len=8"),
            marks=pytest.mark.exhaustive,
        ),
        pytest.param(
            ("strategy=fsdp", "strategy.nproc_per_node=2", "optimizer=muon", "optimizer.normalize_neurons=true"),
            marks=pytest.mark.exhaustive,
        ),
    ],
)
def test_killed_and_resumed_runs_are_bitwise_equal(settings: tuple[str, ...], corpus: str, call: Call) -> None:
    named = dict(one.split("=") for one in [*SIZE, *settings])
    answer = call("verify_resume", "dataset=text", corpus, *(f"{k}={v}" for k, v in named.items()), "kills=2", "--json")
    assert answer.code == 0, answer
    report = json.loads(answer.out)
    assert report["equal"] and len(report["kills"]) == 2
    assert {section["name"] for section in report["sections"]} >= {"weights", "optimizer", "rng", "metrics", "counters"}
    assert sum(section["values"] for section in report["sections"]) > 60


@pytest.mark.slow
def test_a_run_that_a_resume_changes_is_not_equal(
    corpus: str,
    tmp_path: Path,
    call: Call,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a user's schedule that counts its calls and so forgets them at a kill."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "forgetful.py").write_text(
        "from tinyllm.optim.schedules import Schedule\n"
        "class Forgetful(Schedule):\n"
        "    def __init__(self, *, n_steps: int, lr: float) -> None:\n"
        "        super().__init__(lr=lr, n_steps=n_steps, warmup_steps=0, min_lr=None)\n"
        "        self.calls = 0\n"
        "    def after_warmup(self, x: float) -> float:\n"
        "        return self.lr\n"
        "    def __call__(self, step: int) -> float:\n"
        "        self.calls += 1\n"
        "        return self.lr / self.calls\n"
    )
    (tmp_path / "conf" / "schedule").mkdir(parents=True)
    option = "# @package schedule\n_target_: forgetful.Forgetful\n_partial_: true\n"
    (tmp_path / "conf" / "schedule" / "forgetful.yaml").write_text(option)
    mine = ("--config-dir", str(tmp_path / "conf"), "schedule=forgetful", f"out={tmp_path / 'out'}")
    answer = call("verify_resume", *mine, "dataset=text", corpus, *SIZE, PYTHONPATH=f"{tmp_path}:{os.getcwd()}")
    assert answer.code == 1, answer
    assert "verdict: not equal after 1 kill" in answer.out and "train/lr of step" in answer.out
    assert (tmp_path / "out" / "whole" / "metrics.jsonl").exists()


@pytest.mark.slow
def test_an_error_of_the_training_is_reported(corpus: str, call: Call) -> None:
    answer = call("verify_resume", "dataset=text", corpus, *SIZE, "schedule.warmup_steps=30")
    assert answer.code == 2
    assert answer.err == (
        "error: value not allowed (schedule.warmup_steps=30): warmup_steps=30 leaves no steps after warmup: it must be"
        " below the horizon of 20 steps\n"
    )
    assert answer.made == []


def test_a_run_is_killed_only_when_due(tmp_path: Path) -> None:
    """The metrics of the process before do not count; records that appear together arrive when they are seen."""
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"step": 9}\n')
    training = object.__new__(TrainingProcess)
    training.run_dir, training.arrivals, training._old_metrics = tmp_path, {}, metrics.stat().st_ino
    assert training.newest_step() == 0
    (tmp_path / "new").write_text('{"step": 3}\n{"step": 4}\n{"st')
    os.replace(tmp_path / "new", metrics)
    assert training.newest_step() == 4
    training.arrivals = {3: 5.0, 6: 8.0}
    kill_time = KillTime(step=4, delay=1.0, latest=9)
    assert not training._is_due(kill_time, step=3, now=99.0) and not training._is_due(kill_time, step=8, now=8.9)
    assert training._is_due(kill_time, step=8, now=9.0) and training._is_due(kill_time, step=9, now=8.0)


@pytest.mark.parametrize("ended_early", [1, 2, 99])
def test_a_run_that_ends_before_its_kill_is_started_over(
    ended_early: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs of four steps; the first ``ended_early`` runs end before their kill."""
    killed: list[KillTime] = []

    class Quick:
        arrivals: ClassVar[dict[int, float]] = {1: 0.0, 2: 1.0, 3: 2.0, 4: 3.0}

        def __init__(self, settings: list[str], *, run_dir: Path, log: Path) -> None:
            run_dir.mkdir(exist_ok=True)
            assert (run_dir / "mark").exists() == ((run_dir.name, log.stem) == ("killed", "killed-2"))
            (run_dir / "mark").touch()

        def __enter__(self) -> "Quick":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def follow(self, kill_at: KillTime | None = None) -> int | None:
            if kill_at is None:
                return 0
            killed.append(kill_at)
            return 0 if len(killed) <= ended_early else None

        def check(self, code: int | None) -> None:
            assert not code

    monkeypatch.setattr("tinyllm.programs.verify_resume.TrainingProcess", Quick)
    monkeypatch.setattr("tinyllm.programs.verify_resume.traces_of_kill", lambda run: KILL)
    said: list[str] = []
    hits = train_twice([], tmp_path, kills=1, seed=0, report=said.append)
    assert len(hits) == (1 if ended_early < ATTEMPTS else 0)
    assert len(killed) == min(ended_early + 1, ATTEMPTS) == len(set(killed))
    assert sum("starting over with different kill times" in line for line in said) == len(killed) - 1

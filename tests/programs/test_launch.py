"""A run in several processes that ``tinyllm.train`` starts by itself."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests.support.training_runs import SMALL, digest, logged, train, write_corpus
from tinyllm.config.cli.main import ERROR_FILE, Invocation
from tinyllm.errors import UserError
from tinyllm.programs import launch, torchrun

RANKS = ("strategy=ddp", "strategy.nproc_per_node=2")


def node(nproc: int | None, per_job: int | None = None) -> OmegaConf:
    strategy = {"nproc_per_node": nproc, "gpus_per_job": per_job}
    return OmegaConf.create({"strategy": strategy, "run": {"dir": "sweep/000_seed-1"}, "resume": "auto"})


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], int]]:
    """Command lines and process counts that would be started."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    calls: list[tuple[list[str], int]] = []

    def note(arguments: list[str], *, nproc: int) -> int:
        calls.append((list(arguments), nproc))
        return 7

    monkeypatch.setattr(launch, "train_in_processes", note)
    return calls


def test_the_processes_get_the_command_line_as_typed(started: list[tuple[list[str], int]]) -> None:
    typed = ["--config-dir", "mine", "dataset.path=a, b", *RANKS]
    assert launch.launched(node(2), Invocation(arguments=typed, overrides=["dataset.path='a, b'"])) == 7
    assert started == [(typed, 2)]


def test_a_job_of_a_sweep_gets_its_own_settings_and_directory(started: list[tuple[list[str], int]]) -> None:
    typed = ["-m", "seed=1,2", *RANKS]
    overrides = ["seed=1", "dataset.path='a, b'"]
    invocation = Invocation(arguments=typed, overrides=overrides, config_dir="mine", is_job=True)
    assert launch.launched(node(3), invocation) == 7
    settings = ["seed=1", "dataset.path=a, b", "run.dir=sweep/000_seed-1", "resume=auto"]
    assert started == [(["--config-dir", "mine", *settings], 3)]


def test_no_processes_are_started_unless_asked_for_or_by_a_rank(
    started: list[tuple[list[str], int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert launch.launched(node(None), Invocation()) is None
    assert launch.launched(OmegaConf.create({"strategy": {}}), Invocation()) is None
    with pytest.raises(UserError, match=r"only has an effect in a sweep \(strategy.gpus_per_job=2\)"):
        launch.launched(node(2, 2), Invocation())
    for nproc in (0, -1, 100_000):
        with pytest.raises(UserError, match=rf"value out of range \(strategy.nproc_per_node={nproc}\): between 1 and"):
            launch.launched(node(nproc), Invocation())
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert launch.launched(node(2, 2), Invocation()) is None
    assert started == []


class Killed:
    """torchrun's report of a rank that a signal killed."""

    exitcode, pid = -signal.SIGKILL, 4711


class Refused:
    """torchrun's report of a rank that exited with an error."""

    exitcode, pid = 2, 4711


def test_a_failed_rank_gives_the_exit_code_and_a_killed_rank_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ERROR_FILE, str(tmp_path / "error"))
    assert torchrun.exit_code(0, Refused()) == 2
    assert capsys.readouterr().err == ""
    assert torchrun.exit_code(1, Killed()) == 1
    line = "error: a rank was lost (rank 1): SIGKILL ended it; the last checkpoint is intact, resume from it\n"
    assert capsys.readouterr().err == line
    assert (tmp_path / "error").read_text() == line


@pytest.fixture
def corpus(tmp_path: Path) -> list[str]:
    return ["dataset=text", f"dataset.path={write_corpus(tmp_path / 'words, some.txt')}"]


@pytest.mark.slow
def test_two_processes_train_the_same_bits_as_under_torchrun(corpus: list[str], tmp_path: Path) -> None:
    settings = [*SMALL, *corpus, "trainer.max_steps=6"]
    assert train(*settings, *RANKS, f"run.dir={tmp_path / 'ours'}") == 0
    command = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "tinyllm.train", *settings]
    subprocess.run([sys.executable, "-m", *command, f"run.dir={tmp_path / 'theirs'}"], check=True)
    assert digest(tmp_path / "ours") == digest(tmp_path / "theirs")


def started_alone(*settings: str, **environ: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "tinyllm.train", *settings, *RANKS]
    clean = {key: value for key, value in os.environ.items() if key not in ("HYDRA_FULL_ERROR", "WORLD_SIZE")}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=clean | environ, start_new_session=True
    )


@pytest.mark.slow
def test_an_error_of_the_ranks_is_shown_once(corpus: list[str], tmp_path: Path) -> None:
    running = started_alone(*SMALL, "dataset=text", "dataset.path=/nope", **{ERROR_FILE: str(tmp_path / "error")})
    out, err = running.communicate(timeout=300)
    assert (running.returncode, out) == (2, "")
    assert err.startswith("error: no such file or folder (dataset.path=/nope)")
    assert "Traceback" not in err and "elastic" not in err
    assert (tmp_path / "error").read_text() == err.splitlines()[0] + "\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, *(pytest.param(one, marks=pytest.mark.exhaustive) for one in (signal.SIGINT, signal.SIGUSR1))],
)
def test_a_signal_saves_and_the_next_start_resumes(corpus: list[str], tmp_path: Path, number: signal.Signals) -> None:
    settings = [*SMALL, *corpus, "trainer.max_steps=100000", f"run.dir={tmp_path / 'run'}", "resume=auto"]
    running = started_alone(*settings)
    while not logged(tmp_path / "run", "train/loss"):
        assert running.poll() is None
        time.sleep(0.2)
    running.send_signal(number)
    _, err = running.communicate(timeout=300)
    assert running.returncode == 128 + number
    assert err == ""
    [saved] = (tmp_path / "run" / "checkpoints").glob("step-*")
    done = int(saved.name.removeprefix("step-"))
    again = started_alone(*settings[:-3], f"trainer.max_steps={done + 2}", *settings[-2:])
    out, err = again.communicate(timeout=300)
    assert again.returncode == 0, err
    assert f"finished at step {done + 2}" in out

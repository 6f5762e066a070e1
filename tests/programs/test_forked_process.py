"""Runs forked from a server: the bits, the environment and the end of a fresh process."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.programs.test_verify_resume import is_alive
from tests.support.training_runs import SMALL
from tinyllm.programs.fork_server import can_fork, start_server
from tinyllm.programs.forked_process import ForkedProcess
from tinyllm.programs.training_process import TrainingProcess, descendants
from tinyllm.programs.verify_resume import compare_runs

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not can_fork(), reason="no fork here")]
OPTIONS = ("optimizer=muon", "ema.enabled=true", "dataloader.workers=1", "model.dropout=0.1")


def started(run: Path, corpus: str, *settings: str, fork: bool = True, **environ: str) -> TrainingProcess:
    arguments = ["dataset=text", corpus, *SMALL, *settings, f"run.dir={run}"]
    return TrainingProcess(arguments, run_dir=run, log=run.with_suffix(".log"), environ=environ, fork=fork)


def test_forked_runs_have_the_bits_of_fresh_ones(corpus: str, tmp_path: Path) -> None:
    """The second fork too: nothing of a run stays in the server, which is shared by all of them."""
    for name, settings, fork in [
        ("fresh", OPTIONS, False),
        ("other", ("optimizer=lion", "seed=7", "trainer.precision=bf16"), True),
        ("forked", OPTIONS, True),
    ]:
        process = started(tmp_path / name, corpus, "trainer.max_steps=4", *settings, fork=fork)
        assert isinstance(process.process, ForkedProcess) == fork
        process.check(process.wait())
    assert all(section.equal for section in compare_runs(tmp_path / "fresh", tmp_path / "forked"))


def test_a_server_that_was_started_ahead_forks_the_runs(corpus: str, tmp_path: Path) -> None:
    start_server()
    ahead = set(descendants(os.getpid()))
    with started(tmp_path / "run", corpus, "trainer.max_steps=1") as process:
        stat = subprocess.run(["ps", "-o", "ppid=", "-p", str(process.process.pid)], capture_output=True, text=True)
        assert int(stat.stdout) in ahead
        assert process.wait() == 0


def test_the_environment_belongs_to_one_run(corpus: str, tmp_path: Path) -> None:
    """OpenMP has read the number of threads in the server; the run sets its own."""
    for name, environ, threads in [("one", {"OMP_NUM_THREADS": "1"}, "1 thread"), ("two", {}, "2 threads")]:
        process = started(tmp_path / name, corpus, "trainer.max_steps=1", **{"OMP_NUM_THREADS": "2"} | environ)
        process.check(process.wait())
        assert threads in (tmp_path / f"{name}.log").read_text()


def test_a_forked_run_saves_on_sigterm_and_reports_errors(corpus: str, tmp_path: Path) -> None:
    process = started(tmp_path / "run", corpus, "trainer.max_steps=100000")
    while not process.newest_step():
        assert process.poll() is None
        time.sleep(0.01)
    assert process.stop() == 143
    assert (tmp_path / "run" / "checkpoints" / "last").is_file()
    wrong = started(tmp_path / "wrong", corpus, "optimizer.lr=-1")
    assert wrong.wait() == 2
    assert "lr" in wrong.reason(2) and not (tmp_path / "wrong").exists()


def test_a_forked_run_stops_when_its_parent_is_killed(corpus: str, tmp_path: Path) -> None:
    arguments = ["dataset=text", corpus, *SMALL, "trainer.max_steps=100000", f"run.dir={tmp_path}/run"]
    code = (
        "import sys, time; from pathlib import Path; from tinyllm.programs.training_process import TrainingProcess\n"
        f"process = TrainingProcess({arguments!r}, log=Path({str(tmp_path / 'log')!r}), fork=True)\n"
        "print(process.process.pid, flush=True); time.sleep(1000)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        pid = int(parent.stdout.readline())
        while not (tmp_path / "run" / "metrics.jsonl").is_file():
            assert is_alive(pid)
            time.sleep(0.01)
        parent.kill()
    end = time.monotonic() + 60
    while is_alive(pid):
        assert time.monotonic() < end
        time.sleep(0.05)
    assert (tmp_path / "run" / "checkpoints" / "last").is_file()


def test_a_ctrl_c_does_not_end_the_imports_of_the_server() -> None:
    """The keys of a terminal send the signal to all of its processes."""
    code = (
        "import os, signal, sys, time; from tinyllm.programs import fork_server\n"
        "signal.signal(signal.SIGINT, lambda number, frame: None); fork_server.PRELOADED = ('hydra.main',)\n"
        "fork_server.start_server(); os.killpg(0, signal.SIGINT)\n"
        "process = fork_server.server_context().Process(target=time.sleep, args=(0,))\n"
        "process.start(); process.join(); sys.exit(process.exitcode)"
    )
    command = [sys.executable, "-c", code]
    ended = subprocess.run(command, capture_output=True, text=True, start_new_session=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_forked_run_stops_at_a_sigint(corpus: str, tmp_path: Path) -> None:
    """The signal is blocked in the server."""
    process = started(tmp_path / "run", corpus, "trainer.max_steps=100000")
    while not process.newest_step():
        assert process.poll() is None
        time.sleep(0.01)
    process.process.send_signal(signal.SIGINT)
    assert process.wait() == 130
    assert (tmp_path / "run" / "checkpoints" / "last").is_file()

"""Programs are started as processes of their own, known to every studio of the same outputs, and stopped once."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest

from tests.support.studio import PATIENCE_S, folder
from tests.support.training_runs import SMALL, write_corpus
from tinyllm.errors import UserError
from tinyllm.runs.facts import read_run_json
from tinyllm.runs.listing import ListedRun
from tinyllm.runs.metrics_log import read_metrics
from tinyllm.studio.processes import Processes, Start, log_of


def wait_until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


@pytest.fixture
def python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Lets a shell script stand for the program that is started."""

    def be(script: str) -> None:
        stand_in = tmp_path / "python"
        stand_in.write_text(f"#!/bin/sh\n{script}\n")
        stand_in.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(stand_in))

    monkeypatch.setenv("TINYLLM_STUDIO_PASSWORD", "secret password")
    return be


def test_a_program_outlives_the_studio_that_started_it(tmp_path: Path, python: Callable[[str], None]) -> None:
    may_end = tmp_path / "may end"
    saving = f"until [ -e '{may_end}' ]; do sleep 0.02; done; kill $!; echo saved; exit 143"
    python(f'sleep 600 & trap "{saving}" TERM; echo "$@ [$TINYLLM_STUDIO_PASSWORD]"; wait')
    processes = Processes(folder(tmp_path))
    start = processes.train(["model=pico", "run.name=a b"], name="a b")
    path = Path(start.path)
    assert path.parent.parent == tmp_path / "outputs" and "a-b" in path.name
    try:
        assert os.getsid(start.pid) == start.pid  # no signal of this terminal reaches it
        wait_until(lambda: log_of(path).read_text())
        assert log_of(path).read_text() == f"-m tinyllm.train model=pico run.name=a b run.dir={path} []\n"
        later = Processes(folder(tmp_path))  # of a studio that has not started it
        assert later.starts() == [start] and later.start_of(path) == start
        assert later.outcome(start).alive and processes.outcome(start).alive
        # Asked once, whoever asks: a second signal would end a run without a checkpoint.
        assert later.stop(path) and not later.stop(path) and not processes.stop(path)
        may_end.touch()
        wait_until(lambda: not processes.outcome(start).alive)
        assert processes.outcome(start).code == 143 and processes.outcome(start).error == ""
        assert not later.outcome(start).alive
        assert log_of(path).read_text().endswith("\nsaved\n")
        with pytest.raises(UserError, match="the run is not running"):
            later.stop(path)
    finally:
        if processes.outcome(start).alive:
            os.killpg(start.pid, signal.SIGKILL)


def test_a_program_that_dies_at_its_start_shows_its_error(tmp_path: Path, python: Callable[[str], None]) -> None:
    python('echo "error: no such key (x=1): did you mean y?" | tee "$TINYLLM_ERROR_FILE"; exit 2')
    processes = Processes(folder(tmp_path))
    start = processes.train([], name="x")
    wait_until(lambda: not processes.outcome(start).alive)
    for knows in (processes, Processes(folder(tmp_path))):
        assert knows.outcome(start).error == "no such key (x=1): did you mean y?"
    assert processes.outcome(start).code == 2


def test_what_is_not_allowed_is_not_started(tmp_path: Path) -> None:
    processes = Processes(folder(tmp_path))
    for program, argument, path in (
        ("train", "--config-dir=/tmp", tmp_path / "x"),
        ("train", "model._target_=os.system", tmp_path / "x"),
        ("train", "seed=1", Path("/etc/x")),
        ("serve", "seed=1", tmp_path / "x"),
    ):
        with mock.patch("subprocess.Popen", side_effect=AssertionError), pytest.raises(UserError):
            processes.start(program, [argument], path=path)
    assert processes.starts() == [] and not (tmp_path / "outputs").exists()


def test_a_record_that_no_studio_wrote_is_passed_over(tmp_path: Path) -> None:
    processes = Processes(folder(tmp_path))
    records = tmp_path / "outputs" / ".studio" / "starts"
    records.mkdir(parents=True)
    for number, text in enumerate(("{", "[]", '{"id": 1}', '{"id":"a","program":"b","arguments":1,"path":"","pid":1}')):
        (records / f"{number}.json").write_text(text)
    assert processes.starts() == []


@pytest.mark.slow
def test_a_run_is_stopped_with_a_checkpoint_and_goes_on_further(tmp_path: Path) -> None:
    """Started by one studio, stopped by another, resumed and extended by a third."""
    text = write_corpus(tmp_path / "words.txt")
    settings = [*SMALL, "dataset=text", f"dataset.path={text}", "trainer.max_steps=100000", "trainer.log_every=1"]
    first = Processes(folder(tmp_path))
    start = first.train(settings, name="long")
    run = Path(start.path)
    log = run / "metrics.jsonl"
    wait_until(lambda: log.is_file() and log.stat().st_size)
    second = Processes(folder(tmp_path))
    assert ListedRun(run).get("status") == "running" and second.stop(run)
    wait_until(lambda: not first.outcome(start).alive)
    assert first.outcome(start).code == 143
    stopped = ListedRun(run)
    assert stopped.get("status") == "interrupted"
    steps = stopped.get("step")
    third = Processes(folder(tmp_path))
    again = third.resume(run, [f"trainer.max_steps={steps + 5}"])
    assert isinstance(again, Start) and again.path == start.path
    wait_until(lambda: not third.outcome(again).alive)
    assert third.outcome(again).code == 0 and read_run_json(run)["status"] == "finished"
    assert [record["step"] for record in read_metrics(log)][-1] == steps + 5

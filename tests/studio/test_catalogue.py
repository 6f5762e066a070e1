"""The catalogue of runs: true statuses, ETA, waiting jobs, and no work for runs that did not change."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from tests.support.run_folders import record, run_folder
from tests.support.training_runs import SMALL, write_corpus
from tinyllm.runs.directory import LockedRunDir
from tinyllm.studies.sweep.directory import SweepDir
from tinyllm.studies.sweep.job_record import JobRecord
from tinyllm.studio import catalogue
from tinyllm.studio.catalogue import Catalogue
from tinyllm.utils.locks import try_lock


@pytest.fixture(autouse=True)
def no_cache() -> Any:
    with mock.patch.object(catalogue, "FRESH_S", 0.0):
        yield


def statuses(runs: Catalogue) -> dict[str, str]:
    return {row.id: row.status for row in runs.rows()}


def test_statuses_are_those_of_the_process_and_its_lock(tmp_path: Path) -> None:
    runs = Catalogue(tmp_path / "outputs")
    assert runs.rows() == []
    for name, status in (("a", "finished"), ("b/c", "interrupted"), ("b/d", "failed"), ("e", "running")):
        run_folder(tmp_path / "outputs" / name, status=status, records=3, reason="why")
    run_folder(tmp_path / "outputs" / ".studio" / "hidden")
    assert statuses(runs) == {"a": "finished", "b/c": "stopped", "b/d": "failed", "e": "lost"}
    row = runs.row("b/c")
    assert row is not None and (row.name, row.folder, row.note, row.step, row.loss) == ("c", "b", "why", 3, 1.97)
    with LockedRunDirs(tmp_path / "outputs" / "e"):
        assert statuses(runs)["e"] == "running"
        row = runs.row("e")
        # 10,000 planned tokens, 300 trained, 50 tokens a second.
        assert row is not None and row.eta_s == (10_000 - 300) / 50
    resumed = {"max_steps": 20, "planned_tokens": 9, "rows_vary": True, "start_step": 6, "start_tokens": 400}
    run_folder(tmp_path / "outputs" / "f", status="running", records=10, info=resumed)
    with LockedRunDirs(tmp_path / "outputs" / "f"):
        row = runs.row("f")
        # 600 tokens in the 4 steps since the resume, so 150 in each of the other 10.
        assert row is not None and row.eta_s == 10 * 150 / 50
    assert statuses(runs)["e"] == "lost"
    with LockedRunDirs(tmp_path / "outputs" / "b" / "c"):  # saved, but its process has not ended: it cannot be resumed
        row = runs.row("b/c")
        assert row is not None and (row.status, row.eta_s) == ("running", None)
    assert statuses(runs)["b/c"] == "stopped"
    run_folder(tmp_path / "outputs" / "g", status="interrupted", reason="SIGTERM")
    row = runs.row("g")
    assert row is not None and row.note == "on request (SIGTERM)"
    (tmp_path / "outputs" / "a" / "run.json").write_text("[")
    assert statuses(runs)["a"] == "damaged"


class LockedRunDirs:
    """Holds the lock of a run, as its process does."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        self.run_dir = LockedRunDir(self.path, new=False)

    def __exit__(self, *error: object) -> None:
        self.run_dir.close()


def test_only_runs_that_changed_are_read_again(tmp_path: Path) -> None:
    for number in range(5):
        run_folder(tmp_path / f"run-{number}", records=4)
    runs = Catalogue(tmp_path)
    with mock.patch.object(catalogue, "ListedRun", wraps=catalogue.ListedRun) as read:
        runs.rows()
        assert read.call_count == 5
        with (tmp_path / "run-3" / "metrics.jsonl").open("a") as file:
            file.write(record(5, **{"val/loss": 0.5, "val/bpb": 0.7}))
        row = runs.row("run-3")
        assert row is not None and (row.step, row.val_loss, row.bpb) == (4, 0.5, 0.7) and read.call_count == 6
        runs.rows()
        assert read.call_count == 6


def test_metrics_of_a_run_are_parsed_once(tmp_path: Path) -> None:
    path = run_folder(tmp_path / "run", records=50) / "metrics.jsonl"
    runs = Catalogue(tmp_path)
    for _ in range(3):
        tail = runs.metrics("run")
        assert tail is not None and tail.parsed == path.stat().st_size and tail.rows == 50
    assert runs.metrics("none") is None


def test_jobs_of_a_sweep_wait_until_they_start_or_it_ends(tmp_path: Path) -> None:
    sweep = SweepDir(tmp_path / "sweep")
    for number in range(2):
        sweep.records_dir.mkdir(parents=True, exist_ok=True)
        sweep.write(
            JobRecord(number=number, name=f"00{number}_lr", overrides=["optimizer.lr=1"], swept=["optimizer.lr=1"])
        )
    (sweep.records_dir / "broken.json").write_text("{}")
    run_folder(tmp_path / "sweep" / "000_lr")
    runs = Catalogue(tmp_path)
    assert statuses(runs) == {"sweep/000_lr": "finished"}
    lock = try_lock(sweep.records_dir / ".lock")
    assert lock is not None
    assert statuses(runs) == {"sweep/001_lr": "waiting", "sweep/000_lr": "finished"}
    os.close(lock)


def test_names_are_shown_as_text_whatever_they_hold(tmp_path: Path) -> None:
    name = b"<img src=x onerror=alert(1)>\xff\x1b[31m{{ 7 * 7 }}\n\xe2\x80\xae"
    run_folder(tmp_path / os.fsdecode(name))
    (row,) = Catalogue(tmp_path).rows()
    assert row.id == "<img src=x onerror=alert(1)>\\xff\\x1b[31m{{ 7 * 7 }}\\n\\u202e" and row.path.is_dir()


@pytest.mark.slow
def test_a_run_killed_with_9_is_seen_to_be_lost(tmp_path: Path) -> None:
    data = ("dataset=text", f"dataset.path={write_corpus(tmp_path / 'words.txt')}")
    settings = [*SMALL, *data, "trainer.max_steps=1000000", f"run.dir={tmp_path / 'outputs' / 'run'}"]
    process = subprocess.Popen([sys.executable, "-m", "tinyllm.train", *settings], stdout=subprocess.DEVNULL)
    runs = Catalogue(tmp_path / "outputs")
    try:
        while (row := runs.row("run")) is None or row.step < 5:
            assert process.poll() is None
            time.sleep(0.05)
        assert row.status == "running" and row.loss is not None
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    # No sooner is the process gone than its lock is: the first look afterwards shows it.
    assert statuses(runs) == {"run": "lost"}

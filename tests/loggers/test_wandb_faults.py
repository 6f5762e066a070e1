"""Whatever happens to wandb, the run continues, one message says what happened, and metrics.jsonl is complete."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from tests.support.recorded_callbacks import play, record
from tests.support.wandb_keys import logger
from tinyllm.runs.metrics_log import read_metrics

Calls = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Calls:
    """Replace wandb by the stub; returns the calls that it received."""
    (tmp_path / "stub").mkdir()
    shutil.copy(Path(__file__).parents[1] / "support" / "stub_wandb.py", tmp_path / "stub" / "wandb.py")
    log = tmp_path / "calls.jsonl"
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "stub"))
    monkeypatch.setenv("STUB_LOG", str(log))
    return lambda: [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def named(calls: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [call for call in calls if call["call"] == name]


FAULTS = {
    "import": "wandb: ImportError: wandb is broken; metrics.jsonl has every record",
    "disk full": "wandb: OSError: [Errno 28] No space left on device; metrics.jsonl has every record",
    "log raises": "wandb: ConnectionResetError: Connection lost and more; metrics.jsonl has every record",
    "killed": "wandb died (exit code -9); metrics.jsonl has every record",
    "init hangs": "wandb was still busy after 1 s and was stopped; wandb sync uploads what it wrote",
    "log hangs": "wandb was still busy after 1 s and was stopped; wandb sync uploads what it wrote",
    "finish hangs": "wandb was still busy after 1 s and was stopped; wandb sync uploads what it wrote",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_run_continues_after_a_fault(fault: str, calls: Calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUB_FAULT", fault)
    _, messages = play(logger(finish_timeout=1.0), tmp_path / "run", until=7)
    assert messages[-1] == FAULTS[fault]
    assert [message for message in messages[:-1] if "offline" not in message] == []
    assert read_metrics(tmp_path / "run" / "metrics.jsonl") == [record(step) for step in range(1, 8)]


def test_hanging_wandb_does_not_block_training(calls: Calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More records than the pipe and the queue hold: a logger that waited for room would hang here."""
    monkeypatch.setenv("STUB_FAULT", "init hangs")
    _, messages = play(logger(finish_timeout=0.5), tmp_path / "run", until=11_000)
    assert messages[0].startswith("wandb was still busy after 0.5 s")
    assert messages[1].startswith("wandb fell behind") and "records; metrics.jsonl has every record" in messages[1]


@pytest.mark.parametrize("mode", ["online", "auto"])
def test_refusing_server_leaves_an_offline_run(
    mode: str, calls: Calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUB_FAULT", "refused")
    _, messages = play(logger(mode=mode), tmp_path / "run", until=3)
    assert messages == [
        "wandb is offline (the server refused); its files: stub/offline-run-1"
        " (wandb leet shows them, wandb sync uploads them)"
    ]
    first, second = named(calls(), "init")
    assert (first["mode"], second["mode"]) == ("online", "offline") and first["id"] == second["id"]
    assert [call["row"] for call in named(calls(), "log")] == [record(step) for step in (1, 2, 3)]


def test_dead_wandb_service_is_replaced(calls: Calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUB_FAULT", "service dies")
    _, messages = play(logger(mode="online"), tmp_path / "run", until=4)
    assert messages[0] == "wandb: https://example.invalid/run"
    assert messages[1].startswith("wandb is offline (Connection lost); its files: stub/")
    assert [call["row"]["step"] for call in named(calls(), "log")] == [1, 2, 3, 4]


def test_full_disk_is_reported_once(calls: Calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """wandb itself would lose records silently."""
    monkeypatch.setenv("STUB_FAULT", "no space")
    _, messages = play(logger(), tmp_path / "run", until=4)
    full = f"wandb: no space is left in {tmp_path / 'run'}; metrics.jsonl has every record"
    assert [message for message in messages if "offline" not in message] == [full]


def test_missing_wandb_is_reported_with_the_install_command(tmp_path: Path) -> None:
    with mock.patch("importlib.util.find_spec", return_value=None):
        saved, messages = play(logger(), tmp_path / "run", until=3)
    install = "wandb is not installed, so the run continues without it: pip install 'tinyllm[wandb]'"
    assert messages == [install] and saved == {}


KILLED = """
import os, pathlib, signal, sys, time
from tests.support.recorded_callbacks import play
from tests.support.wandb_keys import logger

run_logger, calls = logger(), pathlib.Path(os.environ["STUB_LOG"])

def end(outcome):
    while not calls.exists() or calls.read_text().count('"call": "log"') < 6:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)

run_logger.on_end = end
play(run_logger, pathlib.Path(sys.argv[1]), until=6)
"""


def test_killed_program_leaves_a_closed_run(calls: Calls, tmp_path: Path) -> None:
    """After kill -9 the wandb process sees the end of its input and closes the run."""
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "run")], check=False, timeout=60)
    assert killed.returncode == -9
    for _ in range(200):
        if ends := named(calls(), "finish"):
            break
        time.sleep(0.05)
    assert (ends[0]["summary"], ends[0]["exit_code"]) == ({"status": "killed"}, 1)


def test_environment_variables_fill_unset_options(
    calls: Calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    monkeypatch.setenv("WANDB_MODE", "dryrun")
    monkeypatch.setenv("WANDB_NAME", "their name")
    for number, keys in enumerate([{"mode": "auto"}, {"mode": "online", "project": "ours", "name": "our name"}]):
        play(logger(**keys), tmp_path / f"run{number}", until=1)
    theirs, ours = named(calls(), "init")
    assert (theirs["mode"], theirs["project"], theirs["name"]) == ("offline", "theirs", "their name")
    assert (ours["mode"], ours["project"], ours["name"]) == ("online", "ours", "our name")
    assert theirs["environ"]["WANDB_ERROR_REPORTING"] == "false"
    assert "WANDB_ERROR_REPORTING" not in os.environ


def test_disabled_starts_no_process(calls: Calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert play(logger(mode="disabled"), tmp_path / "a", until=1) == ({}, [])
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert play(logger(mode="auto"), tmp_path / "b", until=1) == ({}, [])
    assert calls() == []


def test_run_resumed_in_another_directory_is_a_new_wandb_run(calls: Calls, tmp_path: Path) -> None:
    saved, _ = play(logger(), tmp_path / "a", until=2)
    same, _ = play(logger(), tmp_path / "a", start=2, until=4, state=saved)
    other, _ = play(logger(), tmp_path / "b", start=2, until=4, state=saved)
    assert same["wandb"]["id"] == saved["wandb"]["id"] != other["wandb"]["id"]

"""A run recorded offline by wandb itself and read back from its file."""

from pathlib import Path
from typing import Any

import pytest

from tests.support.recorded_callbacks import CONFIG, play
from tests.support.wandb_file import WandbRun
from tests.support.wandb_keys import logger
from tinyllm.runs.metrics_log import read_metrics


def recorded(directory: Path) -> list[WandbRun]:
    """The offline runs below a directory, one for each start, oldest first."""
    return [WandbRun(path) for path in sorted((directory / "wandb").glob("offline-run-*"))]


@pytest.mark.slow
def test_offline_run_and_its_resumption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed at step 9 and resumed from step 6: the same wandb run, with every record of the second start."""
    monkeypatch.setattr("tinyllm.loggers.wandb.STOP_TIMEOUT", 300.0)  # even on a busy machine
    keys: dict[str, Any] = {"project": "mine", "name": "small", "group": "sweep 1"}
    keys |= {"tags": ["a", "b"], "notes": "a note", "finish_timeout": 300.0}
    saved, messages = play(logger(**keys), tmp_path, until=9, status="failed")
    before = read_metrics(tmp_path / "metrics.jsonl")
    play(logger(**keys), tmp_path, start=6, until=12, state=saved)
    first, second = recorded(tmp_path)
    assert first.run.run_id == second.run.run_id == saved["wandb"]["id"]
    assert first.metrics() == before
    assert first.metrics()[:6] + second.metrics() == read_metrics(tmp_path / "metrics.jsonl")
    assert (first.run.project, first.run.display_name, first.run.run_group) == ("mine", "small", "sweep 1")
    assert (list(first.run.tags), first.run.notes) == (["a", "b"], "a note")
    assert {key: first.config[key] for key in CONFIG} == CONFIG
    assert first.config["info"]["parameters"] == 804_480 and "torch" in first.config["provenance"]["versions"]
    assert first.axes == {"tokens"}
    assert (first.summary["status"], first.summary["best_val_loss"], first.exit_code) == ("failed", 1.25, 1)
    assert (second.summary["status"], second.exit_code) == ("finished", 0)
    assert second.samples() == [[10, "sample 10:\n  two <b>lines</b>"]]
    (message,) = messages
    assert message.startswith("wandb is offline; its files: ") and "wandb sync" in message

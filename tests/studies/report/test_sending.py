"""A comparison as a wandb run of its own, next to the runs of its arms."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support import made_study as made
from tests.support.wandb_file import WandbRun
from tests.support.wandb_keys import KEYS
from tinyllm.loggers.wandb import Wandb
from tinyllm.studies.report import send, sending
from tinyllm.studies.report.csv_files import arm_rows

LOGGER: dict[str, Any] = {"_target_": sending.TARGET, **KEYS}


@pytest.fixture
def no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*arguments: Any, **named: Any) -> None:
        raise OSError("no more processes")

    monkeypatch.setattr("tinyllm.loggers.wandb_client.Background", start)


def test_target_is_the_wandb_logger() -> None:
    assert f"{Wandb.__module__}.{Wandb.__qualname__}" == sending.TARGET


@pytest.mark.parametrize(
    "logger", [{}, {"_target_": "tinyllm.loggers.tensorboard.TensorBoard"}, LOGGER | {"mode": "disabled"}]
)
def test_nothing_is_sent_without_the_wandb_logger(logger: dict[str, Any], no_process: None, tmp_path: Path) -> None:
    messages: list[str] = []
    send(made.study(arms=2), tmp_path, logger, say=messages.append)
    assert messages == []


def test_wandb_that_does_not_start_is_reported(no_process: None, tmp_path: Path) -> None:
    messages: list[str] = []
    send(made.study(arms=2), tmp_path, LOGGER, say=messages.append)
    assert messages == ["wandb cannot be started, so the comparison is not sent: no more processes"]


@pytest.mark.slow
def test_offline_run_holds_the_tables_and_the_page(tmp_path: Path) -> None:
    study = made.study(arms=3)
    (tmp_path / "report.html").write_text("<p>the page ±</p>", encoding="utf-8")
    messages: list[str] = []
    send(study, tmp_path, LOGGER | {"project": "mine", "tags": ["a"], "finish_timeout": 120.0}, say=messages.append)
    assert len(messages) == 1 and messages[0].startswith("wandb is offline; its files: ")
    [directory] = (tmp_path / "wandb").glob("offline-run-*")
    run = WandbRun(directory)
    assert (run.run.project, run.run.run_group, run.run.job_type) == ("mine", tmp_path.name, "comparison")
    assert run.exit_code == 0 and run.summary["verdicts"] == study.verdicts
    assert run.config["reference"] == "mha"
    [row] = [row for row in run.history if "arms.path" in row]
    files = directory / "files"
    table = json.loads((files / row["arms.path"]).read_text(encoding="utf-8"))
    expected = arm_rows(study)
    assert table["columns"] == list(expected[0])
    assert table["data"] == [list(row.values()) for row in expected]
    assert len(json.loads((files / row["differences.path"]).read_text(encoding="utf-8"))["data"]) == 2
    assert "the page ±" in (files / row["report.path"]).read_text(encoding="utf-8")


@pytest.mark.slow
def test_missing_page_does_not_fail_the_study(tmp_path: Path) -> None:
    messages: list[str] = []
    send(made.study(arms=2), tmp_path, LOGGER | {"finish_timeout": 120.0}, say=messages.append)
    assert any("FileNotFoundError" in text and text.endswith(sending.BACKUP) for text in messages)

"""Stub of wandb for its process: logs calls to ``STUB_LOG`` and fails as ``STUB_FAULT`` says."""

import json
import os
import shutil
import time
from types import SimpleNamespace
from typing import Any

FAULT = os.environ.get("STUB_FAULT", "")
calls: dict[str, int] = {}


class CommError(Exception):
    pass


def note(call: str, **content: Any) -> int:
    """Log a call; returns how often it has been made."""
    calls[call] = calls.get(call, 0) + 1
    with open(os.environ["STUB_LOG"], "a", encoding="utf-8") as file:
        file.write(json.dumps({"call": call, **content}, default=str) + "\n")
    return calls[call]


class Settings:
    init_timeout = 90.0


class Table:
    def __init__(self, columns: list[str], log_mode: str) -> None:
        self.rows: list[Any] = []

    def add_data(self, *row: Any) -> None:
        self.rows.append(row)


class Run:
    url, dir = "https://example.invalid/run", "stub/offline-run-1/files"

    def __init__(self) -> None:
        self.summary: dict[str, Any] = {}

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        note("define_metric", name=name, step_metric=step_metric)

    def log(self, row: dict[str, Any]) -> None:
        time.sleep(60 if FAULT == "log hangs" else 0)
        dies = FAULT == "service dies" and calls["init"] == 1 and calls.get("log") == 2
        if dies or FAULT == "log raises":
            raise ConnectionResetError("Connection lost\nand more")
        if note("log", row={key: value for key, value in row.items() if key != "samples"}) == 3 and FAULT == "killed":
            os.kill(os.getpid(), 9)

    def finish(self, exit_code: int) -> None:
        time.sleep(60 if FAULT == "finish hangs" else 0)
        note("finish", exit_code=exit_code, summary=self.summary)


def init(*, mode: str, config: dict[str, Any], settings: Settings, **keys: Any) -> Run:
    print("noise of wandb")
    environ = {name: value for name, value in os.environ.items() if name.startswith("WANDB_")}
    note("init", mode=mode, init_timeout=settings.init_timeout, environ=environ, **keys)
    time.sleep(60 if FAULT == "init hangs" else 0)
    if FAULT == "refused" and mode == "online":
        raise CommError("the server refused\nwhile retrying: and so on")
    if FAULT == "disk full":
        raise OSError(28, "No space left on device")
    return Run()


def teardown() -> None:
    if FAULT == "service dies" and note("teardown") == 1:
        raise ConnectionResetError("Connection lost")


if FAULT == "no space":
    shutil.disk_usage = lambda path: SimpleNamespace(free=0)  # type: ignore[assignment]
if FAULT == "import":
    raise ImportError("wandb is broken")

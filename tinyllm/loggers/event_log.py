"""``events.jsonl``: what a run reports besides its metrics, such as samples, evaluations, checkpoints and notes."""

import json
import os
import time
from pathlib import Path
from typing import Any

from tinyllm.loggers.summary_rows import start_rows
from tinyllm.training.callbacks import Callback, Outcome, RunInfo
from tinyllm.utils.files import open_append

LONGEST_TEXT = 1 << 16
"""Characters of a text that are kept."""


class EventLog(Callback):
    """Appends one JSON object per event: its kind, time, step and text. A resumed run continues the file.

    Args:
        path: the file, ``events.jsonl`` in the run directory.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._step = 0

    def on_start(self, info: RunInfo) -> None:
        self._step = info.start_step
        text = "\n".join(f"{name}: {text}".removeprefix(": ") for name, text in start_rows(info))
        self._write("start", text, pid=os.getpid())

    def on_log(self, step: int, metrics: dict[str, float]) -> None:
        self._step = step

    def on_evaluate(self, step: int, metrics: dict[str, float], is_best: bool) -> None:
        self._step = step
        figures = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        self._write("evaluation", f"{figures}{', best so far' if is_best else ''}")

    def on_sample(self, step: int, text: str) -> None:
        self._step = step
        self._write("sample", text)

    def on_checkpoint(self, step: int, path: Path, reason: str) -> None:
        # It may be that of an earlier step: checkpoints are written in the background.
        self._write("checkpoint", f"{path.name} ({reason})", step=step)

    def on_message(self, text: str) -> None:
        self._write("note", text)

    def on_end(self, outcome: Outcome) -> None:
        self._step = outcome.step
        self._write("end", f"{outcome.status}{f': {outcome.reason}' if outcome.reason else ''}")

    def _write(self, kind: str, text: str, **more: Any) -> None:
        event = {"event": kind, "time": round(time.time(), 3), "step": self._step, "text": text[:LONGEST_TEXT], **more}
        # Opened for each event: they are rare, and a file that was moved or removed meanwhile costs nothing.
        with open_append(self._path) as file:
            file.write(json.dumps(event).encode() + b"\n")

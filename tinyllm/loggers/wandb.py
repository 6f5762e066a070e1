"""Weights & Biases. It runs in its own process, so that no failure of it or of the network can stop training."""

import os
import secrets
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tinyllm.loggers.wandb_client import PROJECT, Background, Mode, finish, messages, resolve_mode, start
from tinyllm.runs.layout import METRICS
from tinyllm.runs.metrics_log import read_metrics
from tinyllm.runs.provenance import provenance
from tinyllm.training.callbacks import Axis, Callback, Outcome, RunInfo

STOP_TIMEOUT = 10.0
"""Seconds that wandb gets to finish after a signal or an error: a scheduler may kill the run soon."""
BACKUP = f"{METRICS} has every record"
"""Ends every message about records that wandb lost."""


class Wandb(Callback):
    """Logs the records of ``metrics.jsonl``, the samples and the outcome as a wandb run.

    Args:
        project: wandb project; None: ``WANDB_PROJECT``, else ``tinyllm``.
        entity: user or team; None: wandb's default.
        name: display name; None: the run directory's name.
        group: wandb shows runs of one group together.
        tags: labels to filter runs by.
        notes: free text.
        mode: auto: ``WANDB_MODE``, else online if an API key is configured, else offline.
        x_axis: x axis of the curves.
        dir: directory in which wandb creates its ``wandb`` folder; None: the run directory.
        init_timeout: seconds to wait for the server before the run is recorded offline.
        finish_timeout: seconds to wait at the end for records that are not written or uploaded yet.

    Raises:
        ValueError: a timeout is not above 0.
    """

    def __init__(
        self,
        *,
        project: str | None,
        entity: str | None,
        name: str | None,
        group: str | None,
        tags: list[str],
        notes: str | None,
        mode: Mode,
        x_axis: Axis,
        dir: str | None,
        init_timeout: float,
        finish_timeout: float,
    ) -> None:
        for key, seconds in (("init_timeout", init_timeout), ("finish_timeout", finish_timeout)):
            if seconds <= 0:
                raise ValueError(f"{key}={seconds} must be above 0")
        self._project, self._dir, self._mode, self._x_axis = project, dir, mode, x_axis
        self._labels = {"entity": entity, "name": name, "group": group, "tags": list(tags) or None, "notes": notes}
        self._timeouts = {"init_timeout": init_timeout, "finish_timeout": finish_timeout}
        self._saved: dict[str, Any] = {}
        self._process: Background | None = None
        self._samples: list[tuple[int, str]] = []

    def on_start(self, info: RunInfo) -> None:
        mode = resolve_mode(self._mode)
        if mode == "disabled":
            return
        directory = (Path(self._dir) if self._dir else info.run_dir).absolute()
        self._process = start(directory, report=self.report, without="the run continues without it")
        if self._process is None:
            return
        if info.start_step and not read_metrics(info.run_dir / METRICS):
            self._saved = {}  # resumed into a different directory: that is a new wandb run
        self._saved = {
            "id": self._saved.get("id") or os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4),
            "project": self._project or self._saved.get("project") or os.environ.get("WANDB_PROJECT") or PROJECT,
        }
        name = self._labels["name"] or os.environ.get("WANDB_NAME") or info.run_dir.resolve().name
        summary = {key: value for key, value in asdict(info).items() if key != "config"}
        self._process.send(
            {
                "mode": mode,
                "init": self._saved | self._labels | {"name": name, "dir": str(directory)},
                "config": {**info.config, "info": summary, "provenance": provenance()},
                "x_axis": self._x_axis,
                "pid": os.getpid(),
                **self._timeouts,
            }
        )

    def on_sample(self, step: int, text: str) -> None:
        self._samples.append((step, text))

    def on_record(self, record: dict[str, float]) -> None:
        if self._process is None:
            return
        self._process.send({"record": record, "samples": self._samples})
        self._samples = []
        if self._process.ended() is None:
            for text in messages(self._process, backup=BACKUP):
                self.report(text)
        else:
            self._finish(self._process, timeout=1.0)

    def on_end(self, outcome: Outcome) -> None:
        if self._process is None:
            return
        names = ("status", "reason", "step", "tokens", "seconds", "best_step", "best_val_loss")
        summary = {name: getattr(outcome, name) for name in names}
        self._process.send({"end": summary, "samples": self._samples})
        timeout = self._timeouts["finish_timeout"]
        if outcome.status != "finished":
            timeout = min(STOP_TIMEOUT, timeout)
        self._finish(self._process, timeout=timeout)

    def state_dict(self) -> dict[str, Any]:
        return {"wandb": self._saved} if self._saved else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._saved = dict(state.get("wandb", {}))

    def _finish(self, process: Background, *, timeout: float) -> None:
        self._process = None
        for text in finish(process, timeout, backup=BACKUP):
            self.report(text)

"""Weights & Biases, in a process of its own: whatever happens to it or to the network, training goes on."""

import os
import secrets
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tinyllm.loggers.wandb_client import PROJECT, Background, Mode, asked_mode, is_installed, sentences, start
from tinyllm.runs.layout import METRICS
from tinyllm.runs.metrics_log import read_metrics
from tinyllm.runs.provenance import provenance
from tinyllm.training.callbacks import Axis, Callback, Outcome, RunInfo

HASTE = 10.0
"""Seconds to finish after a signal or an error, where whoever stopped the run may not wait long."""
ABSENT = "wandb is not installed, so the run goes on without it: pip install 'tinyllm[wandb]'"
KEPT = f"{METRICS} has every record"


class Wandb(Callback):
    """Records what stands in ``metrics.jsonl``, the samples and the outcome as a run of wandb.

    Args:
        project: None: ``WANDB_PROJECT``, else ``tinyllm``.
        entity: user or team; None: wandb's own choice.
        name: None: the run directory's name.
        group: runs of one group are shown together.
        tags: words to find the run by.
        notes: a remark.
        mode: auto: ``WANDB_MODE``, else online if an API key is configured, else offline.
        x_axis: what the curves are drawn over.
        dir: where wandb's files go, below ``wandb``; None: the run directory.
        init_timeout: seconds the server has to answer before the run is recorded offline.
        finish_timeout: seconds to wait at the end for what is not written or uploaded yet.

    Raises:
        ValueError: a time is not above 0.
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
        self._facts = {"entity": entity, "name": name, "group": group, "tags": list(tags) or None, "notes": notes}
        self._timeouts = {"init_timeout": init_timeout, "finish_timeout": finish_timeout}
        self._saved: dict[str, Any] = {}
        self._process: Background | None = None
        self._samples: list[tuple[int, str]] = []

    def on_start(self, info: RunInfo) -> None:
        mode = asked_mode(self._mode)
        if mode == "disabled":
            return
        if not is_installed():
            self.report(ABSENT)
            return
        if info.start_step and not read_metrics(info.run_dir / METRICS):
            self._saved = {}  # continued in another directory: a run of its own
        self._saved = {
            "id": self._saved.get("id") or os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4),
            "project": self._project or self._saved.get("project") or os.environ.get("WANDB_PROJECT") or PROJECT,
        }
        name = self._facts["name"] or os.environ.get("WANDB_NAME") or info.run_dir.resolve().name
        directory = (Path(self._dir) if self._dir else info.run_dir).absolute()
        facts = {key: value for key, value in asdict(info).items() if key != "config"}
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._process = start()
        except OSError as error:
            self.report(f"wandb cannot be started, so the run goes on without it: {error}")
            return
        self._process.send(
            {
                "mode": mode,
                "init": self._saved | self._facts | {"name": name, "dir": str(directory)},
                "config": {**info.config, "info": facts, "provenance": provenance()},
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
            self._show(self._process)
        else:
            self._finish(self._process, patience=1.0)

    def on_end(self, outcome: Outcome) -> None:
        if self._process is None:
            return
        names = ("status", "reason", "step", "tokens", "seconds", "best_step", "best_val_loss")
        summary = {name: getattr(outcome, name) for name in names}
        self._process.send({"end": summary, "samples": self._samples})
        patience = self._timeouts["finish_timeout"]
        self._finish(self._process, patience=patience if outcome.status == "finished" else min(HASTE, patience))

    def state_dict(self) -> dict[str, Any]:
        return {"wandb": self._saved} if self._saved else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._saved = dict(state.get("wandb", {}))

    def _finish(self, process: Background, *, patience: float) -> None:
        """Let the process end, show what it said, and say what became of the records."""
        self._process = None
        in_time = process.finish(patience)
        self._show(process)
        if not in_time:
            self.report(f"wandb was not done after {patience:g} s and was stopped; wandb sync uploads what it wrote")
        elif process.ended():
            self.report(f"wandb has died (exit code {process.ended()}); {METRICS} has every record")
        if process.dropped:
            self.report(f"wandb did not take {process.dropped} records; {METRICS} has them")

    def _show(self, process: Background) -> None:
        for text in sentences(process, kept=KEPT):
            self.report(text)

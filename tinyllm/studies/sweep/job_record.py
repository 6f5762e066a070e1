"""The record of a sweep's job: its settings, status and results, one JSON file per job."""

import math
import os
import socket
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from tinyllm.config.targets import type_problem
from tinyllm.errors import UserError
from tinyllm.runs.layout import METRICS, RUN_JSON
from tinyllm.runs.metric_kinds import metric_kind
from tinyllm.runs.metrics_log import Speed, read_metrics
from tinyllm.studies.sweep.job import Job, short_setting
from tinyllm.utils.files import read_json
from tinyllm.utils.platforms import signals
from tinyllm.utils.signatures import annotations_of

LOSS = "val/loss"
WAITING, RUNNING = "waiting", "running"
FINISHED, FAILED, INTERRUPTED, SKIPPED = "finished", "failed", "interrupted", "skipped"
NOT_STARTED = "not started"
"""Shown for a job that is still waiting when the sweep has ended."""
STOPPED = tuple(128 + number for number in signals("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP"))
"""Exit codes of a run that was stopped by a signal."""


@dataclass(kw_only=True)
class JobRecord:
    """Settings, status and results of one job."""

    number: int
    name: str
    """Name of the run directory and of this record's file."""
    overrides: list[str]
    """All settings of the job, in Hydra's grammar."""
    swept: list[str]
    """The settings that varied in the command that added the job."""
    status: str = WAITING
    """waiting, running, finished, failed or interrupted."""
    code: int = 0
    """Exit code of the run."""
    error: str = ""
    """First line of the error."""
    metric: str | None = None
    """What jobs are compared by: chosen by the search, else what the objective of the run selects by."""
    val_loss: float | None = None
    """Best value of that metric in the run, as a rule the lowest validation loss."""
    val_bpb: float | None = None
    """Bits per byte at the last evaluation."""
    tokens_per_s: float | None = None
    """Training speed, without evaluation and saving."""
    step: int | None = None
    seconds: float | None = None
    pid: int | None = None
    host: str = ""

    @property
    def job(self) -> Job:
        """The job as a command line describes it."""
        return Job(overrides=self.overrides, swept=self.swept)

    @property
    def label(self) -> str:
        """The settings that varied, for display."""
        return " ".join(map(short_setting, self.swept or self.overrides)) or "defaults"

    def reset(self) -> None:
        """Clear status and results, before the job runs again."""
        identity = {"number": self.number, "name": self.name, "overrides": self.overrides, "swept": self.swept}
        fresh = JobRecord(**identity, metric=self.metric)  # type: ignore[arg-type]
        self.__dict__.update(asdict(fresh))

    def begin(self) -> None:
        """Mark the job as running in this process."""
        self.reset()
        self.status, self.pid, self.host = RUNNING, os.getpid(), socket.gethostname()

    @property
    def lower_is_better(self) -> bool:
        """Whether smaller values of the metric are better; of an unknown one they are taken to be."""
        kind = metric_kind(self.metric or LOSS)
        return kind is None or kind.lower_is_better

    @property
    def metric_label(self) -> str:
        """The metric for display."""
        kind = metric_kind(self.metric or LOSS)
        return str(self.metric) if kind is None else kind.label

    def shown_status(self, skipped: Iterable[str] = ()) -> str:
        """The status for display after the sweep.

        Args:
            skipped: names of the jobs that had finished before this sweep started.
        """
        if self.status == FINISHED and self.name in skipped:
            return SKIPPED
        return {WAITING: NOT_STARTED, RUNNING: INTERRUPTED}.get(self.status, self.status)

    def take_results(self, run_dir: Path) -> None:
        """Fill in the results from the run directory, and the status from these and the exit code."""
        file = run_dir / RUN_JSON
        run = read_json(file) if file.is_file() else {}
        result = run.get("result") or {}
        self.metric = self.metric or result.get("best_metric") or LOSS
        values, speed = [], Speed()
        for metrics in read_metrics(run_dir / METRICS):
            speed.add(metrics)
            self.step = metrics["step"]
            value = metrics.get(self.metric)
            if value is not None and math.isfinite(value):
                values.append(value)
                self.val_bpb = metrics.get("val/bpb")
        self.val_loss = (min if self.lower_is_better else max)(values, default=None)
        self.tokens_per_s = round(speed.mean, 1) if speed.mean else None
        if result:
            self.step, self.seconds = result["step"], round(result["seconds"], 3)
        if self.code in STOPPED:
            self.status = INTERRUPTED
        elif self.code:
            self.status = FAILED
            self.error = self.error or str(run.get("reason", "")) or f"exit code {self.code}"
        else:  # trainer.max_minutes and trainer.stop_after_steps interrupt a run with exit code 0
            self.status = INTERRUPTED if run.get("status") == INTERRUPTED else FINISHED


def read_record(file: Path) -> JobRecord:
    """Read a record, checking types, status and name.

    Raises:
        UserError: not a valid record. Its name must be the file's: it decides which run directory is used.
    """
    try:
        record = JobRecord(**read_json(file))
        for key, annotation in annotations_of(JobRecord).items():
            if key in vars(record) and (allowed := type_problem(getattr(record, key), annotation)):
                raise TypeError(f"{key} must be {allowed}")
        if record.name != file.stem:
            raise TypeError(f"its name is {record.name}")
        if record.status not in (WAITING, RUNNING, FINISHED, FAILED, INTERRUPTED):
            raise TypeError(f"unknown status {record.status}")
    except (UserError, TypeError) as error:
        hint = f"{error}; delete the file to start the job again"
        raise UserError("invalid job record", file=file, hint=hint) from error
    return record

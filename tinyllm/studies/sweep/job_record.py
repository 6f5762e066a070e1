"""What is known of one job of a sweep."""

import contextlib
import math
import os
import socket
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tinyllm.config.targets import type_problem
from tinyllm.errors import UserError
from tinyllm.runs.layout import RUN_JSON
from tinyllm.runs.metrics_log import Speed, read_metrics
from tinyllm.utils.files import read_json, write_json
from tinyllm.utils.platforms import signals
from tinyllm.utils.signatures import annotations_of

WAITING, RUNNING = "waiting", "running"
FINISHED, FAILED, INTERRUPTED, SKIPPED = "finished", "failed", "interrupted", "skipped"
NOT_STARTED = "not started"
"""How a job that waits is shown once the sweep is over."""
LONGEST_NUMBER = 8
STOPPED = tuple(128 + number for number in signals("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP"))
"""Exit codes of a run that somebody stopped."""


@dataclass(kw_only=True)
class Record:
    """One job: what tells it from the others, how it stands, and what came out. Kept in a file of its own."""

    number: int
    name: str
    """The name of the run's directory and of this record's file."""
    overrides: list[str]
    """All settings of the job, in Hydra's grammar."""
    swept: list[str]
    """Those of them that differ between the jobs of the command that made it."""
    status: str = WAITING
    """waiting, running, finished, failed or interrupted."""
    code: int = 0
    """The exit code of the run."""
    error: str = ""
    """The first line of what went wrong."""
    val_loss: float | None = None
    """The lowest of the run."""
    val_bpb: float | None = None
    """Of the last evaluation."""
    tokens_per_s: float | None = None
    """In training, evaluation and saving left out."""
    step: int | None = None
    seconds: float | None = None
    pid: int | None = None
    host: str = ""

    @property
    def label(self) -> str:
        """The job in a few words."""
        return " ".join(map(shortened, self.swept or self.overrides)) or "defaults"

    def reset(self) -> None:
        """As before it ran."""
        fresh = Record(number=self.number, name=self.name, overrides=self.overrides, swept=self.swept)
        self.__dict__.update(asdict(fresh))

    def begin(self) -> None:
        """Running, in this process."""
        self.reset()
        self.status, self.pid, self.host = RUNNING, os.getpid(), socket.gethostname()

    def write(self, directory: Path) -> None:
        """Put it into its file, whole or not at all."""
        write_json(directory / f"{self.name}.json", asdict(self))


def read(file: Path) -> Record:
    """The record in a file.

    Raises:
        UserError: it is not one; its name, which says where the job's run lies, is not the file's.
    """
    try:
        record = Record(**read_json(file))
        for key, annotation in annotations_of(Record).items():
            if key in vars(record) and (allowed := type_problem(getattr(record, key), annotation)):
                raise TypeError(f"{key} must be {allowed}")
        if record.name != file.stem:
            raise TypeError(f"it belongs to {record.name}")
        if record.status not in (WAITING, RUNNING, FINISHED, FAILED, INTERRUPTED):
            raise TypeError(f"there is no status {record.status}")
    except (UserError, TypeError) as error:
        hint = f"{error}; without the file the job is started anew"
        raise UserError("not the record of a job", file=file, hint=hint) from error
    return record


def shortened(setting: str) -> str:
    """A setting with a long number rounded, for people."""
    key, equals, value = setting.partition("=")
    with contextlib.suppress(ValueError):
        if len(value) > LONGEST_NUMBER:
            value = f"{float(value):.4g}"
    return f"{key}{equals}{value}"


def status_of(record: Record, skipped: Iterable[str]) -> str:
    """The status as it is shown.

    Args:
        skipped: names of jobs that were finished before this start of the sweep.
    """
    if record.status == FINISHED and record.name in skipped:
        return SKIPPED
    return {WAITING: NOT_STARTED, RUNNING: INTERRUPTED}.get(record.status, record.status)


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job as the command line asks for it."""

    overrides: Sequence[str]
    swept: Sequence[str]


def take_results(record: Record, run_dir: Path) -> None:
    """Fill in what the run left in its directory, and the status that follows from it and the exit code."""
    file = run_dir / RUN_JSON
    known = read_json(file) if file.is_file() else {}
    losses, speed = [], Speed()
    for metrics in read_metrics(run_dir / "metrics.jsonl"):
        speed.add(metrics)
        record.step = metrics["step"]
        loss = metrics.get("val/loss")
        if loss is not None and math.isfinite(loss):
            losses.append(loss)
            record.val_bpb = metrics.get("val/bpb")
    record.val_loss = min(losses, default=None)
    record.tokens_per_s = round(speed.mean, 1) if speed.mean else None
    if result := known.get("result"):
        record.step, record.seconds = result["step"], round(result["seconds"], 3)
    if record.code in STOPPED:
        record.status = INTERRUPTED
    elif record.code:
        record.status = FAILED
        record.error = record.error or str(known.get("reason", "")) or f"exit code {record.code}"
    else:
        record.status = INTERRUPTED if known.get("status") == INTERRUPTED else FINISHED

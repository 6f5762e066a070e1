"""The runs below a folder with their status as of now, kept up to date at the cost of what changed."""

import os
import statistics
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyllm.errors import UserError
from tinyllm.runs.layout import FAILED, FINISHED, INTERRUPTED, LOCK, METRICS, RUN_JSON, RUNNING
from tinyllm.runs.listing import EVALUATED, ListedRun, folders_below
from tinyllm.runs.metrics_log import tokens_left
from tinyllm.runs.metrics_tail import MetricsTail
from tinyllm.studies.sweep.directory import LOCK as SWEEP_LOCK
from tinyllm.studies.sweep.directory import RECORDS
from tinyllm.studies.sweep.job_record import WAITING, read_record
from tinyllm.utils.locks import is_held
from tinyllm.utils.text import escape_control

LOST, STOPPED = "lost", "stopped"
"""Statuses of runs that were killed, and of runs that saved a checkpoint before they ended early."""
FRESH_S = 0.5
"""Seconds for which a look at the folder serves all pages."""
MOST_AHEAD = 128 << 20
"""Bytes of metrics that are parsed before anybody asked for their curves."""
RECENT = 20
"""Latest speeds whose median gives the ETA, as in the console."""


@dataclass(frozen=True, kw_only=True)
class RunRow:
    """What the table shows of a run."""

    id: str
    """Its path below the folder, safe to show."""
    path: Path
    status: str
    """running, waiting, finished, stopped, lost, failed or damaged."""
    note: str = ""
    step: int = 0
    max_steps: int | None = None
    loss: float | None = None
    val_loss: float | None = None
    """Of the last evaluation."""
    bpb: float | None = None
    best: float | None = None
    tokens_per_s: float | None = None
    eta_s: float | None = None
    parameters: int | None = None
    dataset: str = ""
    updated: float = 0.0
    """When it last wrote something, in seconds since 1970."""

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.id.rpartition("/")[2]

    @property
    def folder(self) -> str:
        """Where it lies below the folder of all runs; "" at the top."""
        return self.id.rpartition("/")[0]


@dataclass(kw_only=True)
class _Known:
    """A run as it was when its files last changed."""

    signature: tuple[Any, ...]
    """Of its files and its lock."""
    listed: ListedRun
    row: RunRow


class Catalogue:
    """All runs below a folder. May be used from several threads.

    Args:
        folder: the folder; it need not exist yet.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[str, _Known] = {}
        self._tails: dict[str, MetricsTail] = {}
        self._rows: list[RunRow] = []
        self._numbers: dict[str, int] = {}
        self._looked = float("-inf")
        self._lock = threading.Lock()

    def rows(self) -> list[RunRow]:
        """Every run, newest first. Looks at the folder at most every ``FRESH_S`` seconds."""
        with self._lock:
            if time.monotonic() >= self._looked + FRESH_S:
                self._look()
                self._looked = time.monotonic()
            return self._rows

    def row(self, run: str) -> RunRow | None:
        """The run with this id."""
        return next((row for row in self.rows() if row.id == run), None)

    def metrics(self, run: str) -> MetricsTail | None:
        """The metrics of a run as of now; None: there is no such run."""
        row = self.row(run)
        if row is None:
            return None
        tail = self._tail(row.id, row.path)
        tail.poll()
        return tail

    def read_ahead(self, runs: Iterable[str]) -> None:
        """Parse the metrics of runs that are likely to be drawn next, so that drawing them does not wait for it."""
        size = 0
        for run in runs:
            tail = self.metrics(run)
            size += 0 if tail is None else tail.parsed
            if size > MOST_AHEAD:
                return

    def number(self, run: str) -> int:
        """A number that a run keeps, for its color: whatever else is shown, in every browser of this studio."""
        with self._lock:
            return self._numbers.setdefault(run, len(self._numbers))

    def listed(self, run: str) -> ListedRun | None:
        """What the files of a run say, settings included; None: there is no such run, or it has not started."""
        with self._lock:
            known = self._known.get(run)
        return None if known is None else known.listed

    def _look(self) -> None:
        known: dict[str, _Known] = {}
        sweeps = []
        for path, is_run in folders_below(self.folder):
            if not is_run:
                sweeps += [path] * (path.name == RECORDS)
                continue
            run = identifier(path, self.folder)
            before = self._known.get(run)
            is_locked = is_held(path / LOCK)
            signature = (_stat(path / RUN_JSON), _stat(path / METRICS), is_locked)
            if before is not None and before.signature == signature:
                known[run] = before
            else:
                known[run] = self._read(run, path, signature, is_locked=is_locked)
        self._known = known
        for run in self._tails.keys() - known.keys():
            del self._tails[run]
        waiting = [row for row in waiting_jobs(sweeps, self.folder) if row.id not in known]
        rows = [*(each.row for each in known.values()), *waiting]
        self._rows = sorted(rows, key=lambda row: (row.status != WAITING, row.updated, row.id), reverse=True)

    def _tail(self, run: str, path: Path) -> MetricsTail:
        return self._tails.setdefault(run, MetricsTail(path / METRICS))

    def _read(self, run: str, path: Path, signature: tuple[Any, ...], *, is_locked: bool) -> _Known:
        tail = self._tail(run, path)

        def lowest() -> float | None:
            tail.poll()
            return tail.lowest(EVALUATED)

        listed = ListedRun(path, lowest=lowest)
        values, status = listed.values, str(listed.values["status"])
        status = LOST if listed.is_lost else STOPPED if status == INTERRUPTED else status
        if is_locked and status in (STOPPED, FINISHED, FAILED):
            status = RUNNING  # its process has not ended yet, or the next one is about to begin: it cannot be resumed
        row = RunRow(
            id=run,
            path=path,
            status=status,
            note="" if status == RUNNING else note_of(values, status),
            step=_whole(values.get("step")) or 0,
            max_steps=_whole(values.get("max_steps")),
            loss=_number(values.get("train/loss")),
            val_loss=_number(values.get(EVALUATED)),
            bpb=_number(values.get("val/bpb")),
            best=_number(values.get("best_val_loss")),
            tokens_per_s=_number(values.get("tokens/s")),
            eta_s=remaining(tail, values) if values["status"] == status == RUNNING else None,
            parameters=_whole(values.get("parameters")),
            dataset=escape_control(str(values.get("dataset") or "")),
            updated=time.time() - age if (age := _number(values.get("age"))) is not None else _stat(path)[1] / 1e9,
        )
        return _Known(signature=signature, listed=listed, row=row)


def note_of(values: dict[str, Any], status: str) -> str:
    """Why a run is as it is, in a few words."""
    text = escape_control(str(values.get("note") or values.get("reason") or ""))
    return f"on request ({text})" if status == STOPPED and text.startswith("SIG") else text


def remaining(tail: MetricsTail, values: dict[str, Any]) -> float | None:
    """Seconds until a running run has trained on all its tokens, at the median of its latest speeds."""
    tail.poll()
    planned, max_steps = _number(values.get("planned_tokens")), _number(values.get("max_steps"))
    step, trained = _number(values.get("step")), tail.last("train/tokens")
    _, speeds = tail.series("speed/tokens_per_s")
    if len(speeds) > 1:
        speeds = speeds[1:]  # the first interval includes warm-up
    usable = [speed for speed in speeds[-RECENT:].tolist() if speed > 0]
    if planned is None or max_steps is None or step is None or trained is None or not usable:
        return None
    left = tokens_left(
        planned=planned,
        rows_vary=values.get("rows_vary") is True,
        start_step=_number(values.get("start_step")) or 0.0,
        start_tokens=_number(values.get("start_tokens")) or 0.0,
        max_steps=max_steps,
        step=step,
        trained=trained,
    )
    return left / statistics.median(usable)


def waiting_jobs(sweeps: Iterable[Path], folder: Path) -> Iterator[RunRow]:
    """The jobs that sweeps still have to start; those of a sweep that is over will never start.

    Args:
        sweeps: the folders of their records.
    """
    for records in sweeps:
        if not is_held(records / SWEEP_LOCK):
            continue
        for file in sorted(records.glob("*.json")):
            try:
                record = read_record(file)
            except (UserError, OSError):
                continue
            if record.status == WAITING:
                path = records.parent / record.name
                note = escape_control(record.label)
                run = identifier(path, folder)
                yield RunRow(id=run, path=path, status=WAITING, note=note, updated=_stat(file)[1] / 1e9)


def identifier(path: Path, folder: Path) -> str:
    """The path of a run below the folder as text that can be shown; file names may hold any bytes."""
    return escape_control(os.fsencode(path.relative_to(folder)).decode(errors="backslashreplace")).replace("\n", "\\n")


def _stat(path: Path) -> tuple[int, int, int]:
    """Inode, time of the last change in nanoseconds, and size; zeros without the file."""
    try:
        status = path.stat()
    except OSError:
        return (0, 0, 0)
    return status.st_ino, status.st_mtime_ns, status.st_size


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _whole(value: Any) -> int | None:
    return value if type(value) is int else None

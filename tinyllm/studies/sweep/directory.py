"""The directory of a sweep: a directory per job, the records of the jobs, sweep.csv."""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from tinyllm.config.grammar import key_of
from tinyllm.config.start_keys import START_KEYS
from tinyllm.errors import UserError
from tinyllm.studies.sweep.job_record import (
    INTERRUPTED,
    NOT_STARTED,
    RUNNING,
    WAITING,
    Job,
    Record,
    read,
    shortened,
    status_of,
)
from tinyllm.utils.files import renewed, write_text
from tinyllm.utils.locks import try_lock
from tinyllm.utils.nested import is_within
from tinyllm.utils.tables import csv_text

CSV = "sweep.csv"
RECORDS = "jobs"
LOCK = ".lock"
STOP = "stop"
LONGEST_NAME = 80
"""Characters of a run directory's name that tell what the job is."""
FIGURES = ("val_loss", "val_bpb", "tokens_per_s", "step", "seconds")


class SweepDir:
    """Where a sweep keeps what it makes.

    ``jobs/<name>.json`` is the record of a job, ``jobs/<name>.log`` what it printed where several run at once,
    ``<name>/`` its run directory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def records(self) -> Path:
        """The folder of records."""
        return self.path / RECORDS

    def make(self) -> int:
        """Create what is missing and take hold of it; returns the descriptor that holds it until it is closed.

        Raises:
            UserError: it cannot be made, or another sweep runs in it.
        """
        hint = ""
        if self.path.exists() and not self.path.is_dir():
            hint = "it is a file; choose another place"
        try:
            if not hint:
                self.records.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            hint = f"{error.strerror}; choose another place"
        if hint:
            raise UserError("the sweep's directory cannot be made", key="hydra.sweep.dir", value=self.path, hint=hint)
        handle = try_lock(self.records / LOCK)
        if handle is None:
            hint = "wait for it, stop it, or choose another directory"
            raise UserError("another sweep runs in there", key="hydra.sweep.dir", value=self.path, hint=hint)
        self.stop_file.unlink(missing_ok=True)
        return handle

    @property
    def is_ours(self) -> bool:
        """Whether a sweeper of tinyllm works in here, which looks at the records."""
        return (self.records / LOCK).exists()

    @property
    def stop_file(self) -> Path:
        """It exists when the sweep is to end; the jobs look for it."""
        return self.records / STOP

    @property
    def stopping(self) -> bool:
        """Whether the sweep is to end."""
        return self.stop_file.exists()

    def stop(self) -> None:
        """Ask for the end of the sweep."""
        renewed(self.stop_file).close()

    def run_dir(self, record: Record) -> Path:
        """Where a job's run lies."""
        return self.path / record.name

    def log(self, record: Record) -> Path:
        """Where a job's output goes if it runs beside others."""
        return self.records / f"{record.name}.log"

    def all(self) -> list[Record]:
        """The records in the order of their numbers."""
        found = [read(file) for file in self.records.glob("*.json")]
        return sorted(found, key=lambda record: record.number)

    def write(self, record: Record) -> None:
        """Keep a record."""
        record.write(self.records)

    def named(self, name: str) -> Record | None:
        """The record of this name."""
        file = self.records / f"{name}.json"
        return read(file) if file.is_file() else None

    def find(self, job: Job) -> Record | None:
        """The record of a job."""
        wanted = identity(job)
        return next((record for record in self.all() if identity(record) == wanted), None)

    def enlist(self, jobs: Sequence[Job]) -> list[Record]:
        """The records of jobs in their order; jobs that were not here before are added.

        Raises:
            UserError: a job was here with other settings.
        """
        known = self.all()
        by_identity = {identity(record): record for record in known}
        number = max((record.number for record in known), default=-1) + 1
        found, changed = [], []
        for job in jobs:
            record = by_identity.get(identity(job))
            if record is None:
                self._refuse_changed(job, known)
                name = "_".join(filter(None, (f"{number:03d}", short_name(job.swept))))
                record = Record(number=number, name=name, overrides=list(job.overrides), swept=list(job.swept))
                changed.append(record)
                by_identity[identity(job)] = record
                number += 1
            elif record.overrides != list(job.overrides):  # in another order, or with another trainer.max_minutes
                record.overrides = list(job.overrides)
                changed.append(record)
            found.append(record)
        assert len({record.name for record in found}) == len(jobs), "two jobs would share a run directory"
        for record in changed:
            self.write(record)
        return found

    def _refuse_changed(self, job: Job, known: Sequence[Record]) -> None:
        for record in known:
            if set(record.swept) == set(job.swept):
                before, now = identity(record), identity(job)
                there, here = " ".join(sorted(before - now)), " ".join(sorted(now - before))
                differences = [f"{record.name} has {there}"] * bool(there) + [f"asked for is {here}"] * bool(here)
                raise UserError(
                    "the jobs in there were started with other settings",
                    key="hydra.sweep.dir",
                    value=self.path,
                    hint=f"{', '.join(differences)}; choose another directory",
                )

    def write_csv(self, skipped: Iterable[str], *, ended: bool) -> None:
        """Write ``sweep.csv``: a row for each job that came to an end.

        Args:
            skipped: names of jobs that were finished before this start of the sweep.
            ended: the sweep is over, so that jobs which have not begun are interrupted ones.
        """
        skipped = set(skipped)
        begun = [record for record in self.all() if ended or record.status not in (WAITING, RUNNING)]
        keys = dict.fromkeys(setting.partition("=")[0] for record in begun for setting in record.swept)
        rows: list[list[object]] = []
        for record in begun:
            values = dict(setting.split("=", 1) for setting in record.swept)
            status = status_of(record, skipped)
            error = record.error
            if status == NOT_STARTED:
                status, error = INTERRUPTED, NOT_STARTED
            figures = [getattr(record, name) for name in FIGURES]
            run_dir = self.run_dir(record)
            place = str(run_dir) if run_dir.exists() else ""
            settings = " ".join(record.overrides)
            row = [record.number, status, *(values.get(key) for key in keys), *figures]
            rows.append([*row, place, error, settings])
        names = ["job", "status", *keys, *FIGURES, "run_dir", "error", "overrides"]
        write_text(self.path / CSV, csv_text(names, rows))


def identity(job: Job | Record) -> frozenset[str]:
    """What makes two jobs the same: their settings in any order.

    A key that belongs to one start of the program (``START_KEYS``) counts only where it is swept: a time limit given
    once may change from start to start, two of them on one command line are two jobs.
    """
    return fixed_identity(job.overrides) | frozenset(job.swept)


def fixed_identity(overrides: Iterable[str]) -> frozenset[str]:
    """Settings in any order, without those of one start of the program."""
    return frozenset(one for one in overrides if not is_within(key_of(one), START_KEYS))


def short_name(swept: Iterable[str]) -> str:
    """Settings as a part of a file name: ``attn-mha_lr-0.001``."""
    parts = []
    for setting in swept:
        key, _, value = shortened(setting).partition("=")
        parts.append(f"{key.lstrip('+').rpartition('.')[2]}-{os.path.basename(value.rstrip('/'))}")
    safe = "_".join(re.sub(r"[^\w.+-]+", "-", part).strip("-") for part in parts)
    return safe[:LONGEST_NAME].rstrip("-_.")

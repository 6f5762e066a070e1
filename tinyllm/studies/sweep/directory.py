"""The directory of a sweep: a run directory and a record per job, and sweep.csv."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from tinyllm.errors import UserError
from tinyllm.studies.sweep.job import Job, short_name
from tinyllm.studies.sweep.job_record import INTERRUPTED, NOT_STARTED, RUNNING, WAITING, JobRecord, read_record
from tinyllm.utils.files import recreate, write_json, write_text
from tinyllm.utils.locks import try_lock
from tinyllm.utils.tables import csv_text

CSV = "sweep.csv"
RECORDS = "jobs"
LOCK = ".lock"
STOP = "stop"
FIGURES = ("val_loss", "val_bpb", "tokens_per_s", "step", "seconds")


class SweepDir:
    """The files of a sweep.

    ``<name>/`` is the run directory of a job, ``jobs/<name>.json`` its record, and ``jobs/<name>.log`` its output
    where jobs run in parallel.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records_dir = path / RECORDS
        self.stop_file = self.records_dir / STOP
        """Exists once the sweep is asked to end; jobs in other processes poll it."""

    def lock(self) -> int:
        """Create the directory and lock it; returns the descriptor that holds the lock until it is closed.

        Raises:
            UserError: the directory cannot be created, or another sweep has locked it.
        """
        hint = ""
        if self.path.exists() and not self.path.is_dir():
            hint = "it is a file; choose a different directory"
        try:
            if not hint:
                self.records_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            hint = f"{error.strerror}; choose a different directory"
        if hint:
            raise UserError("cannot create the sweep directory", key="hydra.sweep.dir", value=self.path, hint=hint)
        handle = try_lock(self.records_dir / LOCK)
        if handle is None:
            hint = "wait for it, stop it, or choose a different directory"
            raise UserError("another sweep uses this directory", key="hydra.sweep.dir", value=self.path, hint=hint)
        self.stop_file.unlink(missing_ok=True)  # left by a sweep that was killed while stopping
        return handle

    @property
    def has_our_sweeper(self) -> bool:
        """Whether a sweeper of tinyllm uses this directory; a third-party one takes no lock and reads no records."""
        return (self.records_dir / LOCK).exists()

    @property
    def stop_requested(self) -> bool:
        """Whether the sweep was asked to end."""
        return self.stop_file.exists()

    def request_stop(self) -> None:
        """Ask the sweep and all its jobs to end."""
        recreate(self.stop_file).close()

    def run_dir(self, record: JobRecord) -> Path:
        """The run directory of a job."""
        return self.path / record.name

    def log(self, record: JobRecord) -> Path:
        """The output file of a job that runs in a process of its own."""
        return self.records_dir / f"{record.name}.log"

    def records(self) -> list[JobRecord]:
        """All records, by number."""
        return sorted(map(read_record, self.records_dir.glob("*.json")), key=lambda record: record.number)

    def write(self, record: JobRecord) -> None:
        """Write a record to its file, atomically."""
        write_json(self.records_dir / f"{record.name}.json", asdict(record))

    def get(self, name: str) -> JobRecord | None:
        """The record with this name; None if there is none."""
        file = self.records_dir / f"{name}.json"
        return read_record(file) if file.is_file() else None

    def find(self, job: Job) -> JobRecord | None:
        """The record of a job; None if it was never registered."""
        return next((record for record in self.records() if record.job.identity == job.identity), None)

    def register(self, jobs: Sequence[Job]) -> list[JobRecord]:
        """The records of the jobs, in their order. New jobs get one.

        Raises:
            UserError: a job is registered with different settings.
        """
        known = self.records()
        by_identity = {record.job.identity: record for record in known}
        number = max((record.number for record in known), default=-1) + 1
        records, changed = [], []
        for job in jobs:
            record = by_identity.get(job.identity)
            if record is None:
                self._check_settings(job, known)
                name = "_".join(filter(None, (f"{number:03d}", short_name(job.swept))))
                record = JobRecord(number=number, name=name, overrides=list(job.overrides), swept=list(job.swept))
                changed.append(record)
                by_identity[job.identity] = record
                number += 1
            elif record.overrides != list(job.overrides):  # a different order, or a different trainer.max_minutes
                record.overrides = list(job.overrides)
                changed.append(record)
            records.append(record)
        assert len({record.name for record in records}) == len(jobs), "two jobs would share a run directory"
        for record in changed:
            self.write(record)
        return records

    def _check_settings(self, job: Job, known: Sequence[JobRecord]) -> None:
        """Refuse a job with the swept values of a known one but otherwise different settings, likely a mistake."""
        for record in known:
            if set(record.swept) == set(job.swept):
                before, now = record.job.identity, job.identity
                was, given = " ".join(sorted(before - now)), " ".join(sorted(now - before))
                differences = [f"{record.name} has {was}"] * bool(was) + [f"this command has {given}"] * bool(given)
                raise UserError(
                    "the jobs in this directory have different settings",
                    key="hydra.sweep.dir",
                    value=self.path,
                    hint=f"{', '.join(differences)}; choose a different directory",
                )

    def write_csv(self, skipped: Iterable[str], *, ended: bool) -> None:
        """Write ``sweep.csv``: one row per job that has ended.

        Args:
            skipped: names of the jobs that had finished before this sweep started.
            ended: the sweep is over; jobs that never started are listed as interrupted.
        """
        skipped = set(skipped)
        listed = [record for record in self.records() if ended or record.status not in (WAITING, RUNNING)]
        keys = dict.fromkeys(setting.partition("=")[0] for record in listed for setting in record.swept)
        rows: list[list[object]] = []
        for record in listed:
            values = dict(setting.split("=", 1) for setting in record.swept)
            status, error = record.shown_status(skipped), record.error
            if status == NOT_STARTED:
                status, error = INTERRUPTED, NOT_STARTED
            run_dir = self.run_dir(record)
            row = [record.number, status, *map(values.get, keys), *(getattr(record, name) for name in FIGURES)]
            rows.append([*row, str(run_dir) if run_dir.exists() else "", error, " ".join(record.overrides)])
        names = ["job", "status", *keys, *FIGURES, "run_dir", "error", "overrides"]
        write_text(self.path / CSV, csv_text(names, rows))

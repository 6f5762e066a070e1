"""A sweep while it runs: what is told of its jobs, and how it ends."""

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from tinyllm.studies.sweep.directory import CSV, SweepDir
from tinyllm.studies.sweep.job_record import FAILED, FINISHED, RUNNING, STOPPED, WAITING, Job, Record
from tinyllm.studies.sweep.table import show_table
from tinyllm.utils.environment import shows
from tinyllm.utils.platforms import signals
from tinyllm.utils.stop_signal import unless_nohup
from tinyllm.utils.text import plain

LOOK_EVERY_S = 0.5
SIGNALLED = 128
"""Exit codes above it say which signal ended the program."""
_here: list["Sweep"] = []
_ended: list[int] = []


def running_here() -> "Sweep | None":
    """The sweep whose main process this is."""
    return _here[-1] if _here else None


def exit_code() -> int:
    """The exit code of the sweep that ended in this process last; 0: there was none."""
    return _ended[-1] if _ended else 0


class Sweep:
    """The main process's part in a sweep.

    Args:
        directory: where it happens.
        in_process: the jobs run in this process, one after the other.
        maximize: the best job is that with the highest validation loss.
    """

    def __init__(self, directory: SweepDir, *, in_process: bool, maximize: bool = False) -> None:
        self.directory, self.in_process, self.maximize = directory, in_process, maximize
        self.records: list[Record] = []
        self.skipped: set[str] = set()
        self.signal: int | None = None
        self._told: dict[str, str] = {}
        self._looking = threading.Lock()

    @contextmanager
    def running(self) -> Iterator[None]:
        """The context of the sweep; at its end stand the table and ``sweep.csv``.

        Raises:
            UserError: the directory cannot be made, or another sweep runs in it.
        """
        handle = self.directory.make()
        ending = unless_nohup(signals("SIGINT", "SIGTERM", "SIGHUP"))
        before = {number: signal.signal(number, self._receive) for number in ending}
        _here.append(self)
        try:
            yield
        except KeyboardInterrupt:
            self.directory.stop()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self._finish()
            _here.remove(self)
            os.close(handle)

    def add(self, jobs: Sequence[Job]) -> list[Record]:
        """Take jobs in; returns those that are still to be run.

        Raises:
            UserError: a job was here with other settings.
        """
        added = {record.name: record for record in self.directory.enlist(jobs)}
        known = {record.name for record in self.records}
        self.records += [record for name, record in added.items() if name not in known]
        self.skipped |= {name for name, record in added.items() if record.status == FINISHED and name not in known}
        for record in added.values():
            self._told.setdefault(record.name, record.status)
        return [record for record in added.values() if record.status != FINISHED]

    def best(self) -> Record | None:
        """The finished job with the best validation loss."""
        finished = [one for one in self.records if one.status == FINISHED and one.val_loss is not None]
        sign = -1 if self.maximize else 1
        return min(finished, key=lambda one: sign * (one.val_loss or 0.0), default=None)

    def tell_start(self, record: Record) -> None:
        """Say that a job begins."""
        self._told[record.name] = RUNNING
        again = "" if record.status == WAITING else f" again ({record.status} before)"
        if shows("INFO"):
            print(f"job {record.number}: {plain(record.label)}{again}", flush=True)

    def look(self) -> None:
        """Read what became of the jobs, say what is new, and bring ``sweep.csv`` up to date."""
        with self._looking:
            now = {record.name: record for record in self.directory.all()}
            self.records = [now.get(record.name, record) for record in self.records]
            for record in self.records:
                before, self._told[record.name] = self._told[record.name], record.status
                if record.status != before and record.status != WAITING:
                    self._tell(record)
            self.directory.write_csv(self.skipped, ended=False)

    def _tell(self, record: Record) -> None:
        parts = [record.status if record.status != RUNNING else "started"]
        if record.val_loss is not None:
            parts.append(f"val loss {record.val_loss:.4f}")
        if record.status == FAILED and not self.in_process:  # else the job has just said it here
            parts.append(record.error)
        stream = sys.stderr if record.status == FAILED else sys.stdout
        if record.status != FAILED and not shows("INFO"):
            return
        print(plain(f"job {record.number} ({record.label}): {', '.join(parts)}"), file=stream, flush=True)

    def tell_jobs(self, total: int) -> None:
        """Say how many jobs there are to be, and where to look."""
        before = f"{len(self.skipped)} of them finished before"
        logs = "" if self.in_process else f"; what they print goes to {self.directory.records}/*.log"
        if shows("INFO"):
            print(f"{total} jobs in {self.directory.path}, {before}{logs}", flush=True)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look at the jobs now and then while they run in other processes."""
        done = threading.Event()

        def watch() -> None:
            while not done.wait(LOOK_EVERY_S):
                self.look()

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()
            self.look()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        """The first signal ends the sweep after the checkpoints of the jobs, the second one ends it at once."""
        if self.signal is not None:
            os._exit(SIGNALLED + number)
        self.signal = number
        self.directory.stop()
        if self.in_process:
            raise KeyboardInterrupt
        print("stopping: jobs that run save a checkpoint first", file=sys.stderr, flush=True)

    def _code(self) -> int:
        """That of the signal which ended the sweep, else that of the first job which did not go well."""
        if self.signal is not None:
            return SIGNALLED + self.signal
        codes = [one.code for one in self.records if one.code]
        stops = [code for code in codes if code in STOPPED] if self.directory.stopping else []
        return next(iter(stops + codes), 0)

    def _finish(self) -> None:
        if not self.records:
            return self.directory.stop_file.unlink(missing_ok=True)
        self.look()
        self.directory.write_csv(self.skipped, ended=True)
        stopped = self.directory.stopping
        _ended.append(self._code())
        self.directory.stop_file.unlink(missing_ok=True)
        best = self.best()
        show_table(self.records, self.skipped, best=best)
        for record in self.records:
            if record.status == FAILED:
                print(plain(f"job {record.number} failed: {record.error}"))
        if best is not None:
            place = self.directory.run_dir(best)
            print(plain(f"best: job {best.number} ({best.label}), val loss {best.val_loss:.4f}: {place}"))
        print(f"table: {self.directory.path / CSV}")
        rest = sum(record.status not in (FINISHED, FAILED) for record in self.records)
        failed = sum(record.status == FAILED for record in self.records)
        if stopped or rest or failed:
            hint = f"the same command with hydra.sweep.dir={self.directory.path} runs what is not finished"
            print(f"{len(self.records)} jobs, {failed} failed, {rest} not finished: {hint}")

"""A sweep in progress, as its main process sees it: signals, progress lines, the table and the exit code."""

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from tinyllm.errors import SIGNALLED
from tinyllm.studies.sweep.directory import CSV, SweepDir
from tinyllm.studies.sweep.job import Job
from tinyllm.studies.sweep.job_record import FAILED, FINISHED, RUNNING, STOPPED, WAITING, JobRecord
from tinyllm.studies.sweep.table import sweep_table
from tinyllm.utils.environment import shows
from tinyllm.utils.platforms import signals
from tinyllm.utils.stop_signal import unless_nohup
from tinyllm.utils.text import escape_control

POLL_S = 0.5


@dataclass
class ThisProcess:
    """The sweep of this process and its exit code.

    Hydra creates the sweeper itself, discards what it returns, and calls a job without naming its sweep. So the two
    ends that need each other meet here: the sweeper enters the running sweep, the jobs of this process look it up, and
    the command line reads the exit code at the end.
    """

    sweep: "Sweep | None" = None
    """The sweep in progress; None in the processes that only run its jobs."""
    exit_code: int = 0
    """Exit code of the last sweep."""


THIS_PROCESS = ThisProcess()


class Sweep:
    """A sweep in progress.

    Args:
        directory: where its jobs are.
        in_process: the jobs run in this process, one after the other.
        maximize: the best job has the highest value of its metric; None: as is known of the metric.
        metric: what jobs are compared by; None: what their objective selects by.
    """

    def __init__(
        self, directory: SweepDir, *, in_process: bool, maximize: bool | None = None, metric: str | None = None
    ) -> None:
        self.directory, self.in_process, self.maximize, self.metric = directory, in_process, maximize, metric
        self.records: list[JobRecord] = []
        self.skipped: set[str] = set()
        """Names of the jobs that had finished before this sweep started."""
        self.signal: int | None = None
        """The first signal received."""
        self._reported: dict[str, str] = {}
        """The last status shown of each job, by name."""
        self._refreshing = threading.Lock()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Hold the directory and handle signals; on leaving, print the table and write ``sweep.csv``.

        Raises:
            UserError: the directory cannot be created, or another sweep uses it.
        """
        handle = self.directory.lock()
        handled = unless_nohup(signals("SIGINT", "SIGTERM", "SIGHUP"))
        before = {number: signal.signal(number, self._receive) for number in handled}
        THIS_PROCESS.sweep = self
        try:
            yield
        except KeyboardInterrupt:
            self.directory.request_stop()
        finally:
            # Restored first: a second Ctrl-C may then interrupt a slow report.
            for number, handler in before.items():
                signal.signal(number, handler)
            self._finish()
            THIS_PROCESS.sweep = None
            os.close(handle)

    def add(self, jobs: Sequence[Job]) -> list[JobRecord]:
        """Add jobs to the sweep; returns the records of those that have not finished.

        Raises:
            UserError: a job is registered with different settings.
        """
        added = {record.name: record for record in self.directory.register(jobs)}
        for record in added.values() if self.metric is not None else ():
            if record.metric is None:
                record.metric = self.metric
                self.directory.write(record)
        known = {record.name for record in self.records}
        self.records += [record for name, record in added.items() if name not in known]
        self.skipped |= {name for name, record in added.items() if record.status == FINISHED and name not in known}
        for record in added.values():
            self._reported.setdefault(record.name, record.status)
        return [record for record in added.values() if record.status != FINISHED]

    def best(self) -> JobRecord | None:
        """The finished job with the best value of its metric, as a rule the lowest validation loss."""
        finished = [record for record in self.records if record.status == FINISHED and record.val_loss is not None]
        if not finished or len({record.metric for record in finished}) > 1:
            return None  # losses and rewards cannot be compared
        maximize = not finished[0].lower_is_better if self.maximize is None else self.maximize
        return min(finished, key=lambda record: (record.val_loss or 0.0) * (-1 if maximize else 1))

    def report_start(self, record: JobRecord) -> None:
        """Print that a job starts in this process."""
        self._reported[record.name] = RUNNING
        again = "" if record.status == WAITING else f" again ({record.status} before)"
        if shows("INFO"):
            print(f"job {record.number}: {escape_control(record.label)}{again}", flush=True)

    def report_total(self, total: int) -> None:
        """Print how many jobs the sweep has, and where their output goes."""
        logs = "" if self.in_process else f"; output in {self.directory.records_dir}/*.log"
        if shows("INFO"):
            print(f"{total} jobs in {self.directory.path}, {len(self.skipped)} already finished{logs}", flush=True)

    def refresh(self) -> None:
        """Read the records, print every change of status, and update ``sweep.csv``."""
        with self._refreshing:
            now = {record.name: record for record in self.directory.records()}
            self.records = [now.get(record.name, record) for record in self.records]
            for record in self.records:
                before, self._reported[record.name] = self._reported[record.name], record.status
                if record.status not in (before, WAITING):
                    self._report(record)
            self.directory.write_csv(self.skipped, ended=False)

    def _report(self, record: JobRecord) -> None:
        parts = [record.status if record.status != RUNNING else "started"]
        if record.val_loss is not None:
            parts.append(f"{record.metric_label} {record.val_loss:.4f}")
        if record.status == FAILED and not self.in_process:  # in this process, the job has just printed its error
            parts.append(record.error)
        stream = sys.stderr if record.status == FAILED else sys.stdout
        if record.status == FAILED or shows("INFO"):
            print(escape_control(f"job {record.number} ({record.label}): {', '.join(parts)}"), file=stream, flush=True)

    @contextmanager
    def polling(self) -> Iterator[None]:
        """Refresh in the background while the jobs run in other processes."""
        done = threading.Event()
        poller = threading.Thread(target=self._poll, args=[done], daemon=True)
        poller.start()
        try:
            yield
        finally:
            done.set()
            poller.join()
            self.refresh()

    def _poll(self, done: threading.Event) -> None:
        while not done.wait(POLL_S):
            self.refresh()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        """The first signal ends the sweep once its jobs have saved a checkpoint, the second one at once."""
        if self.signal is not None:
            os._exit(SIGNALLED + number)  # an exception could not unwind a run that hangs
        self.signal = number
        self.directory.request_stop()
        if self.in_process:
            raise KeyboardInterrupt
        print("stopping: running jobs save a checkpoint first", file=sys.stderr, flush=True)

    def _exit_code(self) -> int:
        """128 + the signal that ended the sweep, else the first exit code of a job that is not 0."""
        if self.signal is not None:
            return SIGNALLED + self.signal
        codes = [record.code for record in self.records if record.code]
        # A job that was stopped on request explains the end better than an earlier failure.
        stops = [code for code in codes if code in STOPPED] if self.directory.stop_requested else []
        return next(iter(stops + codes), 0)

    def _finish(self) -> None:
        """Print the table and what to do next; record the exit code."""
        if not self.records:
            return self.directory.stop_file.unlink(missing_ok=True)
        self.refresh()
        self.directory.write_csv(self.skipped, ended=True)
        stopped = self.directory.stop_requested
        THIS_PROCESS.exit_code = self._exit_code()
        self.directory.stop_file.unlink(missing_ok=True)
        best = self.best()
        sweep_table(self.records, self.skipped, best=best).show()
        for record in self.records:
            if record.status == FAILED:
                print(escape_control(f"job {record.number} failed: {record.error}"))
        if best is not None:
            run_dir = self.directory.run_dir(best)
            value = f"{best.metric_label} {best.val_loss:.4f}"
            print(escape_control(f"best: job {best.number} ({best.label}), {value}: {run_dir}"))
        print(f"table: {self.directory.path / CSV}")
        unfinished = sum(record.status not in (FINISHED, FAILED) for record in self.records)
        failed = sum(record.status == FAILED for record in self.records)
        if stopped or unfinished or failed:
            hint = f"continue with the same command and hydra.sweep.dir={self.directory.path}"
            print(f"{len(self.records)} jobs, {failed} failed, {unfinished} not finished: {hint}")

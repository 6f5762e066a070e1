"""Running one job of a sweep, in the main process or in one of a launcher."""

import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType

from omegaconf import DictConfig

from tinyllm.config.cli.main import ERROR_FILE, Jobs
from tinyllm.config.grammar import as_given
from tinyllm.errors import SIGNALLED, UserError
from tinyllm.studies.sweep.directory import SweepDir
from tinyllm.studies.sweep.job import Job
from tinyllm.studies.sweep.job_record import FINISHED, STOPPED, JobRecord
from tinyllm.studies.sweep.sweep_runner import THIS_PROCESS
from tinyllm.utils.files import open_append
from tinyllm.utils.platforms import signals

POLL_S = 0.5


def sweep_jobs() -> Jobs:
    """For the command line: how the jobs of a multirun are run, and the exit code of the sweep."""
    THIS_PROCESS.exit_code = 0
    return Jobs(run=partial(run_job, main_pid=os.getpid()), exit_code=_exit_code)


def _exit_code() -> int:
    return THIS_PROCESS.exit_code


def run_job(cfg: DictConfig, hydra_node: DictConfig, run: Callable[[], int], *, main_pid: int) -> float | None:
    """Run one job in its run directory, from its checkpoint if it has one; returns its lowest validation loss.

    Args:
        cfg: the job's configuration; ``run.dir`` and ``resume`` are filled in.
        hydra_node: Hydra's own configuration.
        run: does the work and returns the exit code; it prints errors, it does not raise them.
        main_pid: the process that the user started.
    """
    directory = SweepDir(Path(hydra_node.sweep.dir))
    overrides = as_given(hydra_node.overrides.task)
    record = directory.get(str(hydra_node.job.name))
    if record is None:  # third-party sweepers do not register jobs, nor say which keys are swept
        directory.records_dir.mkdir(parents=True, exist_ok=True)
        [record] = directory.register([Job(overrides=overrides, swept=overrides)])
    if record.status == FINISHED or directory.stop_requested:
        return record.val_loss
    cfg.run.dir, cfg.resume = str(directory.run_dir(record)), "auto"
    sweep = THIS_PROCESS.sweep
    if sweep is not None:
        sweep.report_start(record)
        run_recorded(directory, record, partial(_run_with_error_file, run))
        if record.code in STOPPED:  # a signal in this process means the whole sweep
            directory.request_stop()
        sweep.refresh()
        return record.val_loss
    if os.getpid() == main_pid:
        run_recorded(directory, record, partial(_run_with_error_file, run))
    else:
        worker = Worker(directory, record)
        run_recorded(directory, record, partial(worker.run, run))
        worker.requeue()
        if worker.is_orphan:
            os._exit(record.code)  # no parent is left to take the result or to end this process
    if record.code and not directory.has_our_sweeper:  # a third-party sweeper learns of the failure by an exception
        raise UserError(f"job {record.number} {record.status}", file=directory.run_dir(record), hint=record.error)
    return record.val_loss


def run_recorded(directory: SweepDir, record: JobRecord, run: Callable[[Path], int]) -> None:
    """Run a job and write its outcome to its record.

    Args:
        run: takes the file for the first error line; returns the exit code.
    """
    record.begin()
    directory.write(record)
    error_file = directory.records_dir / f"{record.name}.error"
    error_file.unlink(missing_ok=True)
    try:
        record.code = run(error_file)
    except KeyboardInterrupt:
        record.code = SIGNALLED + signal.SIGINT
    gc.collect()  # the objects of a run form cycles and would stay in memory beside the next job's
    if error_file.is_file():
        record.error = error_file.read_text(encoding="utf-8").strip()
        error_file.unlink()
    record.take_results(directory.run_dir(record))
    directory.write(record)


def _run_with_error_file(run: Callable[[], int], error_file: Path) -> int:
    os.environ[ERROR_FILE] = str(error_file)
    try:
        return run()
    finally:
        del os.environ[ERROR_FILE]


class Worker:
    """A process of a launcher while it runs a job: output goes to the job's log, the job ends with the sweep.

    It leaves the terminal's process group, so that Ctrl-C reaches the sweep alone, which asks the jobs to stop.
    """

    def __init__(self, directory: SweepDir, record: JobRecord) -> None:
        self.directory, self.record = directory, record
        self._parent = os.getppid()
        self._requeue: Callable[[], object] | None = None

    @property
    def is_orphan(self) -> bool:
        """Whether the process that started this one has ended."""
        return os.getppid() != self._parent

    def requeue(self) -> None:
        """Put the job back into the cluster's queue, if its time was almost over."""
        if self._requeue is not None:
            self._requeue()

    def run(self, run: Callable[[], int], error_file: Path) -> int:
        """Run the job; see :func:`run_recorded`."""
        if hasattr(os, "setpgid") and os.getpgrp() != os.getpid():
            os.setpgid(0, 0)
        with self._signals(), self._polling(), _output_to(self.directory.log(self.record)):
            return _run_with_error_file(run, error_file)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        handlers = dict.fromkeys([signal.SIGTERM], self._interrupt)
        # submitit sends SIGUSR2 shortly before the job's time limit; its own handler requeues the job.
        handlers |= dict.fromkeys(signals("SIGUSR2"), self._stop_and_requeue)
        self._before = {number: signal.getsignal(number) for number in handlers}
        for number, handler in handlers.items():
            signal.signal(number, handler)
        try:
            yield
        finally:
            for number, before in self._before.items():
                signal.signal(number, before)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt  # before training starts; a training run installs a handler of its own

    def _stop_and_requeue(self, number: int, frame: FrameType | None) -> None:
        """Stop with a checkpoint first: requeueing ends the process."""
        handler = self._before[signal.Signals(number)]
        if callable(handler):
            self._requeue = partial(handler, number, None)
        os.kill(os.getpid(), signal.SIGTERM)

    @contextmanager
    def _polling(self) -> Iterator[None]:
        done = threading.Event()
        poller = threading.Thread(target=self._poll, args=[done], daemon=True)
        poller.start()
        try:
            yield
        finally:
            done.set()
            poller.join()

    def _poll(self, done: threading.Event) -> None:
        """Stop the job once the sweep is asked to end, or is gone."""
        while not done.wait(POLL_S):
            if self.directory.stop_requested or self.is_orphan:
                os.kill(os.getpid(), signal.SIGTERM)
                return


@contextmanager
def _output_to(file: Path) -> Iterator[None]:
    """Redirect standard output and error to a file, those of child processes included."""
    # Child processes and C libraries write to the descriptors, not to sys.stdout.
    sys.stdout.flush()
    originals = {descriptor: os.dup(descriptor) for descriptor in (1, 2)}
    with open_append(file) as stream:
        for descriptor in originals:
            os.dup2(stream.fileno(), descriptor)
    try:
        yield
    finally:
        sys.stdout.flush()
        for descriptor, original in originals.items():
            os.dup2(original, descriptor)
            os.close(original)

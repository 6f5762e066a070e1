"""One job of a sweep, in whichever process it runs."""

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

from tinyllm.config.cli.main import ERROR_FILE
from tinyllm.config.grammar import as_given
from tinyllm.errors import UserError
from tinyllm.studies.sweep.directory import SweepDir
from tinyllm.studies.sweep.job_record import FINISHED, STOPPED, Job, Record, take_results
from tinyllm.studies.sweep.sweep_runner import running_here
from tinyllm.utils.files import open_append
from tinyllm.utils.platforms import signals

WATCH_EVERY_S = 0.5


def run_job(cfg: DictConfig, hydra_node: DictConfig, run: Callable[[], int], *, in_main: bool) -> float | None:
    """Run one job in its own directory, from its checkpoint if there is one; returns its lowest validation loss.

    Args:
        cfg: the job's configuration; where it runs and from what it continues is filled in.
        hydra_node: Hydra's part of the configuration.
        run: does the work and returns the exit code; errors are told, not raised.
        in_main: this is the process that a person started.
    """
    directory = SweepDir(Path(hydra_node.sweep.dir))
    overrides = as_given(hydra_node.overrides.task)
    record = directory.named(str(hydra_node.job.name))
    if record is None:  # third-party sweepers do not register jobs, nor say which keys are swept
        directory.records.mkdir(parents=True, exist_ok=True)
        [record] = directory.enlist([Job(overrides=overrides, swept=overrides)])
    if record.status == FINISHED or directory.stopping:
        return record.val_loss
    cfg.run.dir, cfg.resume = str(directory.run_dir(record)), "auto"
    sweep = running_here()
    afterwards: list[Callable[[], object]] = []

    def run_told(error_file: Path) -> int:
        os.environ[ERROR_FILE] = str(error_file)
        try:
            return run()
        finally:
            del os.environ[ERROR_FILE]

    def run_apart(error_file: Path) -> int:
        with apart(directory, record, afterwards):
            return run_told(error_file)

    if sweep is None:
        parent = os.getppid()
        carry_out(directory, record, run_told if in_main else run_apart)
        for action in afterwards:
            action()
        if os.getppid() != parent:
            os._exit(record.code)  # nobody is left to take the result, or to end this process
        if record.code and not directory.is_ours:
            # That sweeper learns of failures so.
            raise UserError(f"job {record.number} {record.status}", file=directory.run_dir(record), hint=record.error)
        return record.val_loss
    sweep.tell_start(record)
    carry_out(directory, record, run_told)
    if record.code in STOPPED:  # whoever stops a job in this process means the sweep
        directory.stop()
    sweep.look()
    return record.val_loss


def carry_out(directory: SweepDir, record: Record, run: Callable[[Path], int]) -> None:
    """Run a job and keep what became of it.

    Args:
        run: gets the file for the first line of what goes wrong; returns the exit code.
    """
    record.begin()
    directory.write(record)
    error_file = directory.records / f"{record.name}.error"
    error_file.unlink(missing_ok=True)
    try:
        record.code = run(error_file)
    except KeyboardInterrupt:
        record.code = 128 + signal.SIGINT
    gc.collect()  # the parts of a run know each other, and would else stay beside those of the next one
    if error_file.is_file():
        record.error = error_file.read_text(encoding="utf-8").strip()
        error_file.unlink()
    take_results(record, directory.run_dir(record))
    directory.write(record)


@contextmanager
def apart(directory: SweepDir, record: Record, afterwards: list[Callable[[], object]]) -> Iterator[None]:
    """The context of a job in a process beside others: output into a file, an end when the sweep is to end.

    The process leaves the terminal's group, so that Ctrl-C reaches the sweep alone, which then asks the jobs to stop.

    Args:
        afterwards: gets what is to be done once the job's outcome is written down.
    """
    if hasattr(os, "setpgid") and os.getpgrp() != os.getpid():
        os.setpgid(0, 0)
    parent, done = os.getppid(), threading.Event()

    def watch() -> None:
        while not done.wait(WATCH_EVERY_S):
            if directory.stopping or os.getppid() != parent:
                os.kill(os.getpid(), signal.SIGTERM)
                return

    def leave(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt  # before training; a training run has a handler of its own

    def stop_first(number: int, frame: FrameType | None) -> None:
        if callable(requeue):
            afterwards.append(partial(requeue, number, None))
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, leave)
    # By SIGUSR2 submitit learns that the job's time is almost over: it puts the job into the queue again.
    almost_over = next(iter(signals("SIGUSR2")), None)
    requeue = None if almost_over is None else signal.signal(almost_over, stop_first)
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        with _output_into(directory.log(record)):
            yield
    finally:
        done.set()
        watcher.join()
        signal.signal(signal.SIGTERM, before)
        if almost_over is not None:
            signal.signal(almost_over, requeue)


@contextmanager
def _output_into(file: Path) -> Iterator[None]:
    """Standard output and errors of this process, and of those it starts, go to a file."""
    sys.stdout.flush()
    kept = {descriptor: os.dup(descriptor) for descriptor in (1, 2)}
    with open_append(file) as stream:
        for descriptor in kept:
            os.dup2(stream.fileno(), descriptor)
    try:
        yield
    finally:
        sys.stdout.flush()
        for descriptor, copy in kept.items():
            os.dup2(copy, descriptor)
            os.close(copy)

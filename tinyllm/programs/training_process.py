"""``python -m tinyllm.train`` as a child process: started, watched through its metrics, stopped or killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from tinyllm.config.cli.main import ERROR_FILE
from tinyllm.errors import SIGNALLED, UserError
from tinyllm.programs.fork_server import can_fork
from tinyllm.programs.forked_process import ForkedProcess
from tinyllm.runs.layout import LOCK, METRICS
from tinyllm.runs.metrics_log import last_record
from tinyllm.utils.environment import without_run_names
from tinyllm.utils.files import open_append, recreate
from tinyllm.utils.locks import try_lock
from tinyllm.utils.platforms import kill_process
from tinyllm.utils.stop_signal import PARENT

POLL_S = 0.002
"""Seconds between two reads of the metrics of a run that is to be killed at a given time."""
LOCK_RELEASE_S = 20.0
"""Seconds in which the processes of a killed run release its directory."""


class TrainingFailed(Exception):
    """A training process exited with an error.

    Args:
        code: its exit code.
        reason: its error in one line.
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


@dataclass(frozen=True, kw_only=True)
class KillTime:
    """When to kill a run: ``delay`` seconds after the record of ``step``, at the latest with that of ``latest``."""

    step: int
    delay: float
    latest: int


class TrainingProcess:
    """A child process that runs ``python -m tinyllm.train <arguments>``. Leaving its ``with`` block kills it.

    It leads a session of its own, so Ctrl-C in the terminal reaches the parent alone, and it stops on its own when the
    parent ends.

    Args:
        arguments: flags and settings as typed in a shell.
        run_dir: the directory of the run, for :meth:`follow` and :meth:`kill`.
        log: file for standard output and standard error. None: the child is this process's own run in several ranks;
            it inherits output, standard input and the whole environment.
        append: add to ``log`` instead of replacing it.
        error_file: file for the first error line; default: ``log`` with the extension ``.error``.
        nproc: number of ranks to start; None: the child trains itself.
        environ: variables added to the environment.
        fork: fork the process where the platform can (:mod:`tinyllm.programs.forked_process`), for one of many runs:
            it starts 1.5 s sooner. Only with ``log`` and without ``nproc``.
        program: another program to run instead, e.g. one that uses a run.
        output: file for standard output, which is replaced; default: ``log``. Only with ``log``.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        run_dir: Path | None = None,
        log: Path | None = None,
        append: bool = False,
        error_file: Path | None = None,
        nproc: int | None = None,
        environ: Mapping[str, str] | None = None,
        fork: bool = False,
        program: str = "train",
        output: Path | None = None,
    ) -> None:
        self.process: subprocess.Popen[bytes] | ForkedProcess
        self.run_dir, self.log = run_dir, log
        self.arrivals: dict[int, float] = {}
        """When :meth:`follow` saw the record of each step, by :func:`time.perf_counter`."""
        self._old_metrics = self._metrics_id()
        module = [f"tinyllm.{program}"] if nproc is None else ["tinyllm.programs.torchrun", str(nproc)]
        command = [sys.executable, "-m", *module, *arguments]
        if log is None:
            self.process = subprocess.Popen(command, env={**os.environ, **(environ or {})}, start_new_session=True)
            return
        self.error_file = error_file or log.with_suffix(".error")
        self.error_file.unlink(missing_ok=True)
        environment = {**without_run_names(os.environ), ERROR_FILE: str(self.error_file), **(environ or {})}
        if nproc is None:  # the launcher watches its parent in any case, and would hand the variable down to the ranks
            environment[PARENT] = str(os.getpid())
        with ExitStack() as files:
            errors = files.enter_context(open_append(log) if append else recreate(log))
            out = errors if output is None else files.enter_context(recreate(output))
            if fork and nproc is None and can_fork():
                self.process = ForkedProcess(program, arguments, environ=environment, log=log, output=output or log)
                return
            self.process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=errors,
                start_new_session=True,
            )

    def __enter__(self) -> "TrainingProcess":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.poll() is None:
            self.kill()

    def poll(self) -> int | None:
        """The exit code as in :meth:`wait`; None while the process runs."""
        code = self.process.poll()
        return None if code is None else shell_code(code)

    def wait(self) -> int:
        """Wait for the end; the exit code, 128 + the signal's number if a signal ended it."""
        return shell_code(self.process.wait())

    def ends_within(self, seconds: float) -> bool:
        """Wait for the end, at most this long; returns whether the process has ended."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def stop(self, *, grace_s: float | None = None) -> int:
        """Send SIGTERM, so that the run saves and ends, and wait; after ``grace_s`` seconds kill it."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(grace_s)
            except subprocess.TimeoutExpired:
                self.kill()
        return self.wait()

    def kill(self) -> None:
        """SIGKILL every process of the run, and wait until its directory is unlocked.

        Raises:
            UserError: a process still holds the directory.
        """
        # List first, then kill: the children of a dead process can no longer be found.
        for pid in [*descendants(self.process.pid), self.process.pid]:
            kill_process(pid)
        self.process.wait()
        deadline = time.perf_counter() + LOCK_RELEASE_S
        while self.run_dir is not None and self.run_dir.is_dir():
            descriptor = try_lock(self.run_dir / LOCK)
            if descriptor is not None:
                os.close(descriptor)
                return
            if time.perf_counter() > deadline:
                raise UserError("a process of the killed run still holds the lock on its directory", file=self.run_dir)
            time.sleep(POLL_S)

    def reason(self, code: int) -> str:
        """Why the process failed with ``code``, in one line; see :func:`failure_reason`."""
        assert self.log is not None
        return failure_reason(code, log=self.log, error_file=self.error_file)

    def check(self, code: int | None) -> None:
        """Turn an exit code other than 0 into an exception; None, the outcome of a kill, passes.

        Raises:
            TrainingFailed: the process exited with an error.
        """
        if code:
            raise TrainingFailed(code, self.reason(code))

    def follow(self, kill_at: KillTime | None = None) -> int | None:
        """Note in :attr:`arrivals` when records appear, until the process ends or is killed at ``kill_at``.

        Returns:
            The exit code; None after the kill.
        """
        while (code := self.poll()) is None:
            now = time.perf_counter()
            step = self.newest_step()
            if step:
                self.arrivals.setdefault(step, now)
            if kill_at is not None and self._is_due(kill_at, step, now):
                self.kill()
                return None
            time.sleep(POLL_S)
        return code

    def newest_step(self) -> int:
        """The step of the last record in the metrics; 0 until this process has written them."""
        identity = self._metrics_id()
        if identity is None or identity == self._old_metrics:  # a resumed run replaces the file when it starts
            return 0
        assert self.run_dir is not None
        record = last_record(self.run_dir / METRICS)
        return 0 if record is None else int(record["step"])

    def _is_due(self, kill_time: KillTime, step: int, now: float) -> bool:
        if step < kill_time.step:
            return False
        seen = min(arrival for arrived, arrival in self.arrivals.items() if arrived >= kill_time.step)
        return step >= kill_time.latest or now >= seen + kill_time.delay

    def _metrics_id(self) -> int | None:
        """The inode of the metrics file, which tells a replaced file from the old one; None: there is no file."""
        try:
            return None if self.run_dir is None else (self.run_dir / METRICS).stat().st_ino
        except FileNotFoundError:
            return None


def shell_code(returned: int) -> int:
    """A return code of ``Popen`` as a shell reports it: 128 + the number of the signal that ended the process."""
    return returned if returned >= 0 else SIGNALLED - returned


def failure_reason(code: int, *, log: Path, error_file: Path) -> str:
    """Why a training run failed: its first error line, the signal that ended it, or the last line of its log."""
    if error_file.is_file():
        return error_file.read_text(encoding="utf-8", errors="replace").strip().removeprefix("error: ")
    if code - SIGNALLED in signal.valid_signals():
        return f"{signal.Signals(code - SIGNALLED).name} ended it"
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.is_file() else []
    return lines[-1] if lines else f"exit code {code}"


def descendants(pid: int) -> list[int]:
    """The living child processes of a process, their children, and so on.

    Its process group is not enough: torchrun starts each worker in a group of its own.
    """
    listing = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    children: dict[int, list[int]] = {}
    for line in listing.splitlines():
        child, parent = map(int, line.split())
        children.setdefault(parent, []).append(child)
    family = [pid]
    for member in family:
        family += children.get(member, [])
    return family[1:]

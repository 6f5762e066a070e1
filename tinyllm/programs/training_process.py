"""A training as processes of its own, watched by what it writes and killed from outside."""

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tinyllm.errors import UserError
from tinyllm.runs.directory import LOCK, METRICS
from tinyllm.runs.metrics_log import record_of
from tinyllm.utils.environment import for_several
from tinyllm.utils.files import renewed
from tinyllm.utils.locks import try_lock
from tinyllm.utils.platforms import end_now

LOOK_EVERY = 0.002
"""Seconds between looks at the metrics."""
GONE_WITHIN = 20.0
"""Seconds after a SIGKILL in which the processes of a run have let go of its directory."""


@dataclass(frozen=True, kw_only=True)
class Moment:
    """A moment of a run."""

    step: int
    """The last record in the metrics is of this step or a later one."""
    delay: float
    """Seconds since that record was seen."""
    latest: int
    """The step whose record ends the delay."""


class TrainingProcess:
    """``python -m tinyllm.train``, started now.

    Args:
        settings: the command line.
        run_dir: where the run writes; its metrics tell how far it is.
        log: gets standard output, and standard error under the same name with ``.err``.
        environ: what differs in the environment.
    """

    def __init__(
        self, settings: Sequence[str], *, run_dir: Path, log: Path, environ: Mapping[str, str] | None = None
    ) -> None:
        self.run_dir = run_dir
        self.arrivals: dict[int, float] = {}
        """When the record of each step was seen, by the clock of :func:`time.perf_counter`."""
        self._errors = log.with_suffix(".err")
        self._old = _identity(self._metrics)
        inherited = {name: value for name, value in for_several(os.environ).items() if name != "HYDRA_FULL_ERROR"}
        with renewed(log) as out, renewed(self._errors) as err:
            command = [sys.executable, "-m", "tinyllm.train", *settings]
            self.process = subprocess.Popen(
                command, stdout=out, stderr=err, env=inherited | dict(environ or {}), start_new_session=True
            )

    @property
    def _metrics(self) -> Path:
        return self.run_dir / METRICS

    @property
    def error(self) -> str:
        """The first line that says what went wrong, if any does; else the last line of standard error."""
        lines = self._errors.read_text(encoding="utf-8", errors="replace").splitlines()
        return next((line for line in lines if line.startswith("error:")), lines[-1] if lines else "no message")

    def follow(self, until: Moment | None = None) -> int | None:
        """Wait for the end, or kill every process of the run at ``until``; the exit code, None after a kill."""
        try:
            while (code := self.process.poll()) is None:
                now = time.perf_counter()
                step = self.newest_step()
                if step:
                    self.arrivals.setdefault(step, now)
                if until is not None and self._has_come(until, step, now):
                    self.kill()
                    return None
                time.sleep(LOOK_EVERY)
            return code
        finally:
            if self.process.poll() is None:
                self.kill()

    def _has_come(self, moment: Moment, step: int, now: float) -> bool:
        return step >= moment.latest or (step >= moment.step and now >= self._since(moment.step) + moment.delay)

    def _since(self, step: int) -> float:
        return min(seen for arrived, seen in self.arrivals.items() if arrived >= step)

    def newest_step(self) -> int:
        """The step of the last record that this process, or the run before it, has written whole; 0: none yet."""
        if _identity(self._metrics) in (None, self._old):
            return 0  # not yet there, or still that of the process before: a resume begins with a new file
        with self._metrics.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 8192))
            lines = file.read().split(b"\n")[:-1]
        found = [record["step"] for record in map(record_of, lines[-1:]) if record is not None]
        return int(found[0]) if found else 0

    def kill(self) -> None:
        """SIGKILL to every process of the run, and wait until they have let go of its directory.

        Raises:
            UserError: one of them still holds it.
        """
        for pid in [*descendants(self.process.pid), self.process.pid]:
            end_now(pid)
        self.process.wait()
        end = time.perf_counter() + GONE_WITHIN
        while self.run_dir.is_dir():
            handle = try_lock(self.run_dir / LOCK)
            if handle is not None:
                os.close(handle)
                return
            if time.perf_counter() > end:
                raise UserError("a killed run still holds its directory", file=self.run_dir)
            time.sleep(LOOK_EVERY)


def _identity(path: Path) -> int | None:
    """Which file stands there: a replaced one is another."""
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None


def descendants(pid: int) -> list[int]:
    """The living children of a process, theirs, and so on; torchrun's workers are no part of its process group."""
    shown = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    children: dict[int, list[int]] = {}
    for line in shown.splitlines():
        child, parent = map(int, line.split())
        children.setdefault(parent, []).append(child)
    found = [pid]
    for one in found:
        found += children.get(one, [])
    return found[1:]

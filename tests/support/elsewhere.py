"""A training in a copy of this process: as quick as one in it, and it may be killed, stopped or put under limits."""

import contextlib
import os
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from unittest import mock

from tests.support.training_runs import train
from tinyllm.utils.fault_injection import VARIABLE


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a training in a copy of this process left."""

    code: int
    """Exit code; of a process that a signal ended, minus the signal's number."""
    out: str
    err: str


class Elsewhere:
    """A training that was started in a copy of this process.

    Args:
        overrides: of ``python -m tinyllm.train``.
        fault: value of ``TINYLLM_FAULT``.
        first: called before the training, in the copy.
    """

    def __init__(self, *overrides: str, fault: str = "", first: Callable[[], object] = lambda: None) -> None:
        self._files: list[IO[str]] = [tempfile.TemporaryFile("w+", encoding="utf-8") for _ in range(2)]  # noqa: SIM115
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons do not like to copy threads' processes
            self.pid = os.fork()
        if not self.pid:
            os._exit(self._run(overrides, fault, first))

    def _run(self, overrides: tuple[str, ...], fault: str, first: Callable[[], object]) -> int:
        os.setsid()
        try:
            with (
                contextlib.redirect_stdout(self._files[0]),
                contextlib.redirect_stderr(self._files[1]),
                mock.patch.dict(os.environ, {VARIABLE: fault}),
            ):
                try:
                    first()
                    return train(*overrides)
                except BaseException:
                    traceback.print_exc()
                    return 99
                finally:
                    sys.stdout.flush()
                    sys.stderr.flush()
        except BaseException:
            return 98

    @property
    def stopped(self) -> bool:
        """Whether SIGSTOP holds it; asked until it does or it has ended."""
        _, status = os.waitpid(self.pid, os.WUNTRACED)
        return os.WIFSTOPPED(status)

    def signal(self, *numbers: signal.Signals) -> None:
        """Send signals."""
        for number in numbers:
            os.kill(self.pid, number)

    def answer(self) -> Answer:
        """Wait for the end."""
        _, status = os.waitpid(self.pid, 0)
        shown = []
        for file in self._files:
            file.seek(0)
            shown.append(file.read())
            file.close()
        return Answer(code=os.waitstatus_to_exitcode(status), out=shown[0], err=shown[1])


def train_copy(*overrides: str, fault: str = "", first: Callable[[], object] = lambda: None) -> Answer:
    """Train in a copy of this process, to its end."""
    return Elsewhere(*overrides, fault=fault, first=first).answer()


def wait_for(condition: Callable[[], object], *, seconds: float = 60.0) -> None:
    """Return when ``condition`` holds; an error after a time that is long on a machine that is not busy."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def tree(place: Path) -> dict[str, tuple[int, bytes]]:
    """Every file below a directory: when it was last changed, and its content."""
    found = (path for path in sorted(place.rglob("*")) if path.is_file())
    return {str(path.relative_to(place)): (path.stat().st_mtime_ns, path.read_bytes()) for path in found}

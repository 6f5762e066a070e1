"""A program forked from a server (``fork_server.py``) that has already imported everything a training run needs.

Importing takes longer than all the rest of a start. A fork begins with the modules and nothing else: the server runs no
code of a run, and torch has not started a thread in it. So a forked run computes the bits of a fresh process.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from tinyllm.config.targets import work_named
from tinyllm.programs.fork_server import server_context, start_server
from tinyllm.utils.files import open_append
from tinyllm.utils.platforms import start_session, unblock_signals
from tinyllm.utils.stop_signal import PARENT, end_after


class ForkedProcess:
    """``python -m tinyllm.<program> <arguments>`` in a forked process, with the interface of ``subprocess.Popen``.

    Args:
        arguments: flags and settings as typed in a shell.
        environ: the whole environment.
        log: existing file that standard error is appended to.
        output: existing file that standard output is appended to; may be the same.
    """

    def __init__(
        self, program: str, arguments: Sequence[str], *, environ: Mapping[str, str], log: Path, output: Path
    ) -> None:
        start_server()
        self._process = server_context().Process(
            target=_run,
            args=(program, list(arguments), dict(environ), str(log), str(output), os.getcwd()),
            name=program,
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """The exit code, negative if a signal ended the process; None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; the exit code as in :meth:`poll`.

        Raises:
            subprocess.TimeoutExpired: the process still runs after ``timeout`` seconds.
        """
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout or 0)
        return code

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()

    def send_signal(self, number: int) -> None:
        """Send a signal to the process, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)


def _run(program: str, arguments: list[str], environ: dict[str, str], log: str, output: str, directory: str) -> None:
    """The forked process: take on the environment that a fresh one would have, and run the program."""
    start_session()
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environ)
    caller = multiprocessing.parent_process()  # not os.getppid(), which is the server
    if os.environ.pop(PARENT, None) and caller is not None:
        end_after(caller.join)
    if environ.get("OMP_NUM_THREADS", "").isdecimal():  # OpenMP has read the server's
        torch.set_num_threads(int(environ["OMP_NUM_THREADS"]))
    with open(os.devnull, "rb") as nothing, open_append(Path(output)) as out, open_append(Path(log)) as errors:
        os.dup2(nothing.fileno(), 0)
        os.dup2(out.fileno(), 1)
        os.dup2(errors.fileno(), 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    unblock_signals((signal.SIGINT,))  # blocked in the server
    sys.argv = [f"tinyllm.{program}", *arguments]
    work_named(f"tinyllm.{program}:main")()

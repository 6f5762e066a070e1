"""Ordinary programs, started as processes of their own: the studio may end, and they go on.

What was started is recorded in ``<outputs>/.studio/starts``, one file each, so that a later studio knows it, too.
Beside what a program makes (a run directory) lie its output, ``<name>.log``, and its first error line,
``<name>.error``, as ``compare`` and sweeps arrange it. A started process inherits a locked file: as long as the lock is
held, it is alive, whoever asks, and no other process that got its number is taken for it.
"""

import contextlib
import hashlib
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tinyllm.config.cli.main import ERROR_FILE
from tinyllm.errors import UserError
from tinyllm.programs.training_process import failure_reason, shell_code
from tinyllm.runs.directory import auto_path
from tinyllm.runs.layout import LOCK
from tinyllm.studio.guard import PROGRAMS, check_arguments, check_path
from tinyllm.studio.program import PASSWORD, Settings
from tinyllm.utils.environment import without_run_names
from tinyllm.utils.files import open_append, read_json, read_text, write_json, write_text
from tinyllm.utils.locks import is_held, try_lock
from tinyllm.utils.stop_signal import PARENT

FOLDER = ".studio"
"""In the outputs; listings of runs skip hidden folders."""
_HOLDER = re.compile(r"pid (\d+) on host (.+)")
LONGEST_HOLDER = 1000


@dataclass(frozen=True, kw_only=True)
class Start:
    """A program that was started."""

    id: str
    program: str
    """``train``, ``compare``, ``export``, …"""
    arguments: list[str]
    """As typed in a shell."""
    path: str
    """What it makes: the run directory of ``train``."""
    pid: int
    time: float
    """When it was started, in seconds since 1970."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a started program stands."""

    alive: bool
    code: int | None = None
    """Its exit code, 128 + the signal's number if one ended it; None while it runs, or if an earlier studio started
    it."""
    error: str = ""
    """Why it failed, in one line; "" if it runs, or ended well."""


class Processes:
    """The programs that the studios of one outputs folder have started.

    Args:
        settings: of this studio.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.folder = settings.outputs / FOLDER
        self._own: dict[str, subprocess.Popen[bytes]] = {}
        self._read: dict[Path, Start] = {}
        """Records of starts; none is ever changed."""

    def new_path(self, name: str) -> Path:
        """A free path below the outputs for what a program makes, named as ``train`` names its run directories."""
        return self.settings.outputs / auto_path(name).relative_to("outputs")

    def start(self, program: str, arguments: Sequence[str], *, path: Path) -> Start:
        """Start ``python -m tinyllm.<program> <arguments>`` in a session of its own.

        Args:
            arguments: settings as typed in a shell; ``--config-dir`` is added if the studio has one.
            path: what the program makes; names the log, to which is added.

        Raises:
            UserError: the arguments are not allowed here (:mod:`tinyllm.studio.guard`), or the log cannot be written.
        """
        if program not in PROGRAMS:
            raise UserError("not a program of the studio", file=program, hint=f"one of {', '.join(PROGRAMS)}")
        arguments = list(arguments)
        check_arguments(arguments, self.settings)
        check_path(str(path), self.settings, key="path")
        if self.settings.config_dir is not None:
            arguments = ["--config-dir", str(self.settings.config_dir), *arguments]
        identity = f"{time.time_ns()}-{secrets.token_hex(2)}"
        log, error_file = log_of(path), error_file_of(path)
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            error_file.unlink(missing_ok=True)
            stream = open_append(log)
        except OSError as error:
            raise UserError("the log cannot be written", file=log, hint=str(error.strerror)) from error
        removed = (PASSWORD, PARENT)  # the process must not know the one, and must outlive this one
        environ = {name: value for name, value in without_run_names(os.environ).items() if name not in removed}
        lock = try_lock(self._file(identity, "lock"))
        inherited = () if lock is None or os.name != "posix" else (lock,)
        try:
            with stream:
                process = subprocess.Popen(
                    [sys.executable, "-m", f"tinyllm.{program}", *arguments],
                    env={**environ, ERROR_FILE: str(error_file.absolute())},
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    pass_fds=inherited,
                )
        finally:
            if lock is not None:
                os.close(lock)
        start = Start(
            id=identity, program=program, arguments=arguments, path=str(path), pid=process.pid, time=time.time()
        )
        self._own[identity] = process
        write_json(self._file(identity, "json"), asdict(start))
        return start

    def train(self, settings: Sequence[str], *, name: str) -> Start:
        """Start a training run in a new directory; :func:`new_path` names it."""
        path = self.new_path(name)
        return self.start("train", [*settings, f"run.dir={path}"], path=path)

    def resume(self, run: Path, settings: Sequence[str] = ()) -> Start:
        """Continue a run from its last checkpoint; with ``trainer.max_steps=…`` among the settings, further than it
        was planned."""
        return self.start("train", [f"resume={run}", *settings], path=run)

    def starts(self) -> list[Start]:
        """Everything that was started, the newest first."""
        files = sorted(self._files(), reverse=True)
        for file in files:
            if file not in self._read and (start := _read_start(file)) is not None:
                self._read[file] = start
        return [self._read[file] for file in files if file in self._read]

    def start_of(self, path: Path) -> Start | None:
        """The newest start that makes ``path``."""
        return next((start for start in self.starts() if _same(start.path, path)), None)

    def newest(self, program: str, argument: str) -> Start | None:
        """The newest start of a program with this among its arguments."""
        return next(
            (start for start in self.starts() if start.program == program and argument in start.arguments), None
        )

    def outcome(self, start: Start) -> Outcome:
        """Whether a started program runs, and how it ended."""
        process = self._own.get(start.id)
        code = None if process is None else process.poll()  # also buries it
        if code is None and (process is not None or any(map(is_held, self._locks(start)))):
            return Outcome(alive=True)
        path, code = Path(start.path), None if code is None else shell_code(code)
        failed = error_file_of(path).is_file() if code is None else code not in (0, 130, 143)
        error = failure_reason(code or 1, log=log_of(path), error_file=error_file_of(path)) if failed else ""
        return Outcome(alive=False, code=code, error=error)

    def stop(self, run: Path) -> bool:
        """Ask a run to stop after its current step, with a checkpoint, wherever on this machine it was started.

        It is asked once: a second signal would end it without a checkpoint.

        Returns:
            Whether it was asked now; False if it had been asked before.

        Raises:
            UserError: it does not run, or not on this machine.
        """
        pid = self._pid_of(run)
        asked = self.folder / "stops" / hashlib.sha256(str(run.resolve()).encode()).hexdigest()[:32]
        if asked.is_file() and read_text(asked, largest=LONGEST_HOLDER) == str(pid):
            return False
        asked.parent.mkdir(parents=True, exist_ok=True)
        write_text(asked, str(pid))
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.kill(pid, signal.SIGTERM)
        return True

    def is_stopping(self, run: Path) -> bool:
        """Whether a run that is alive was asked to stop."""
        asked = self.folder / "stops" / hashlib.sha256(str(run.resolve()).encode()).hexdigest()[:32]
        try:
            return asked.is_file() and read_text(asked, largest=LONGEST_HOLDER) == str(self._pid_of(run))
        except UserError:
            return False

    def _pid_of(self, run: Path) -> int:
        """The process to signal: the one started here, which passes the signal on to its ranks, else the run's own."""
        start = self.start_of(run)
        if start is not None and self.outcome(start).alive:
            return start.pid
        if not is_held(run / LOCK):
            raise UserError("the run is not running", file=run, hint="resume continues it")
        holder = _HOLDER.match(read_text(run / LOCK, largest=LONGEST_HOLDER))
        if holder is None or holder[2].strip() != socket.gethostname():
            where = "elsewhere" if holder is None else f"on {holder[2].strip()}"
            raise UserError(f"the run is running {where}", file=run, hint="stop it there")
        return int(holder[1])

    def _file(self, identity: str, kind: str) -> Path:
        return self.folder / "starts" / f"{identity}.{kind}"

    def _locks(self, start: Start) -> list[Path]:
        """The files that are locked while a program is alive."""
        # Windows lets no process inherit a lock: there the program's own one, of its run or comparison, has to do.
        own = [] if os.name == "posix" else [Path(start.path) / LOCK]
        return [self._file(start.id, "lock"), *own]

    def _files(self) -> list[Path]:
        return list((self.folder / "starts").glob("*.json"))


def log_of(path: Path) -> Path:
    """The output of the program that makes ``path``, beside it."""
    return path.with_name(f"{path.name}.log")


def error_file_of(path: Path) -> Path:
    """The first error line of the program that makes ``path``, beside it."""
    return path.with_name(f"{path.name}.error")


def _same(path: str, other: Path) -> bool:
    return Path(path).absolute() == other.absolute()


def _read_start(file: Path) -> Start | None:
    """None for a file that no studio has written."""
    try:
        content = read_json(file)
        start = Start(**content)
    except (UserError, TypeError):
        return None
    typed = isinstance(start.arguments, list) and type(start.pid) is int and isinstance(start.time, float)
    return start if typed and isinstance(start.path, str) and isinstance(start.program, str) else None

"""A process that prepares data while this one trains on what is there already (``dataset.start_early``).

It ends when its standard input does, so it never outlives the training, even if that is killed. What it has finished by
then is used by the next one.
"""

import json
import os
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from tinyllm.data.cache_use import preparing
from tinyllm.errors import UserError
from tinyllm.utils.files import parse_json
from tinyllm.utils.locks import is_held

MOST_KILLS = 3
"""Times that the process may be killed without having finished anything new."""
OTHERS_WAIT_S = 10.0
"""Seconds for which ranks other than the first of a machine leave it to that one to start the process."""


class PreparationProcess:
    """Sees to it that a process prepares a cache: starts one unless there is one, and again if it is killed.

    Args:
        command: the program. It reads ``task`` as a line of JSON from standard input and ends with that input, and
            writes lines of JSON: ``{"stage": [name, bytes done, bytes in total]}``, and at the end an ``{"error": …}``
            with the arguments of a :class:`UserError`, if there is one.
        task: what to prepare.
        root: the folder of the token caches.
        key: the cache.

    Attributes:
        stage: what the process is doing, for the display of progress.
    """

    def __init__(self, command: Sequence[str], task: Mapping[str, Any], *, root: Path, key: str) -> None:
        self.stage = ("waiting for the process that prepares the data", 0, 0)
        self._command, self._task = list(command), json.dumps(task).encode() + b"\n"
        self._lock = preparing(root, key)
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        self._error: UserError | None = None
        self._kills, self._finished = 0, -1
        is_first = os.environ.get("LOCAL_RANK", "0") == "0"
        self._not_before = 0.0 if is_first else time.monotonic() + OTHERS_WAIT_S

    @property
    def pid(self) -> int | None:
        """The process id; None if this object has no process."""
        return None if self._process is None else self._process.pid

    def ensure(self, finished: int) -> None:
        """Start the process if nobody is preparing the cache.

        Args:
            finished: how much of it is finished; a number that grows.

        Raises:
            UserError: the data cannot be prepared, or the process was killed several times in a row.
        """
        if self._process is not None:
            if (code := self._process.poll()) is None:
                return
            self._end()
            if self._error is not None:
                raise self._error
            if code:
                self._kills = 1 if finished > self._finished else self._kills + 1
                self._finished = finished
            if self._kills >= MOST_KILLS:
                hint = f"{self._kills} times in a row; it may have run out of memory; run the command again"
                raise UserError("the process that prepares the data was killed", key="dataset.start_early", hint=hint)
        if time.monotonic() >= self._not_before and not is_held(self._lock):
            self._start()

    def close(self) -> None:
        """End the process if it still runs; what it has finished stays."""
        if self._process is not None:
            self._process.kill()
            self._end()

    def _start(self) -> None:
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(OSError):  # it was killed already
            self._process.stdin.write(self._task)
            self._process.stdin.flush()
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
        self._reader.start()

    def _end(self) -> None:
        assert self._process is not None
        assert self._reader is not None
        self._reader.join()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                if stream is not None:
                    stream.close()
        self._process = None

    def _read(self, lines: IO[bytes]) -> None:
        """Take in what the process says, until it ends."""
        with suppress(OSError, ValueError):
            for line in lines:
                said = parse_json(line)
                if "stage" in said:
                    stage, done, total = said["stage"]
                    self.stage = (stage, done, total)
                else:
                    self._error = UserError(**said["error"])

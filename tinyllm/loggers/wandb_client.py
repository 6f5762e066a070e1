"""The training side of the wandb process: it sends messages without ever blocking on wandb."""

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from tinyllm.errors import one_line
from tinyllm.utils.files import parse_json
from tinyllm.utils.late_imports import is_installed
from tinyllm.utils.platforms import kill_process
from tinyllm.utils.text import shown_path


class Background:
    """A Python script in its own process that exchanges JSON lines with this one.

    Messages go through a bounded queue and a thread, so :meth:`send` never blocks. The process has its own session:
    Ctrl-C in the terminal does not reach it. When this process dies, the script sees the end of its input.

    Args:
        script: the Python file; its directory is not on its import path.
        environ: environment of the process.
        capacity: messages that may queue up; further ones are dropped and counted.

    Raises:
        OSError: the process cannot be started.
    """

    def __init__(self, script: Path, *, environ: Mapping[str, str], capacity: int = 10_000) -> None:
        self.dropped = 0
        self._outbox: queue.Queue[bytes | None] = queue.Queue(capacity)
        self._inbox: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environ,
            start_new_session=True,
        )
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._feed, self._listen)]
        for thread in self._threads:
            thread.start()

    def send(self, message: Mapping[str, Any]) -> None:
        """Queue a message for the process; returns at once."""
        try:
            self._outbox.put_nowait(json.dumps(message, default=str).encode() + b"\n")
        except queue.Full:
            self.dropped += 1

    def received(self) -> list[dict[str, Any]]:
        """Messages from the process since the last call."""
        received = []
        with contextlib.suppress(queue.Empty):
            while True:
                received.append(self._inbox.get_nowait())
        return received

    def ended(self) -> int | None:
        """Exit code of the process, negative if a signal killed it; None while it runs."""
        return self._process.poll()

    def finish(self, timeout: float) -> bool:
        """Wait up to ``timeout`` seconds for the process to end, then kill it. Returns whether it ended by itself."""
        until = time.monotonic() + timeout
        try:
            self._outbox.put(None, timeout=timeout)
            self._process.wait(max(0.0, until - time.monotonic()))
            by_itself = True
        except (queue.Full, subprocess.TimeoutExpired):
            kill_process(self._process.pid)
            self._process.wait()
            by_itself = False
        for thread in self._threads:
            thread.join(timeout=1)
        return by_itself

    def _feed(self) -> None:
        """Thread: write queued messages to the process until the end marker or a broken pipe."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError), self._process.stdin as stdin:
            for line in iter(self._outbox.get, None):
                stdin.write(line)
                stdin.flush()

    def _listen(self) -> None:
        """Thread: collect messages from the process until it ends; lines that are not JSON are ignored."""
        assert self._process.stdout is not None
        with self._process.stdout as stdout:
            for line in stdout:
                with contextlib.suppress(ValueError):
                    self._inbox.put(parse_json(line))


PROJECT = "tinyllm"
"""Default project, where neither the configuration nor ``WANDB_PROJECT`` sets one."""
Mode = Literal["auto", "online", "offline", "disabled"]


def resolve_mode(mode: Mode) -> str:
    """Resolve ``auto`` by ``WANDB_MODE``; if that is not set, wandb goes online if it finds an API key."""
    variable = os.environ.get("WANDB_MODE") if mode == "auto" else None
    return {"dryrun": "offline", "run": "online"}.get(variable or "", variable) or mode


def start(directory: Path, *, report: Callable[[str], None], without: str) -> Background | None:
    """Start the wandb process; None, and a message to ``report``, if that is not possible.

    Args:
        directory: where wandb's files go; created if it is missing.
        without: what happens without wandb: ``the run continues without it``.
    """
    if not is_installed("wandb"):
        report(f"wandb is not installed, so {without}: pip install 'tinyllm[wandb]'")
        return None
    # Error reports to wandb's developers are opt-in here; wandb's own console output would disturb the display.
    environ = {"WANDB_ERROR_REPORTING": "false"} | os.environ | {"WANDB_SILENT": "true"}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        return Background(Path(__file__).with_name("wandb_process.py"), environ=environ)
    except OSError as error:
        report(f"wandb cannot be started, so {without}: {error}")
        return None


def finish(process: Background, timeout: float, *, backup: str) -> Iterator[str]:
    """End the process; its last messages, and one about anything that was lost.

    Args:
        backup: as for :func:`messages`.
    """
    in_time = process.finish(timeout)
    yield from messages(process, backup=backup)
    if not in_time:
        yield f"wandb was still busy after {timeout:g} s and was stopped; wandb sync uploads what it wrote"
    elif process.ended():
        yield f"wandb died (exit code {process.ended()}); {backup}"
    if process.dropped:
        yield f"wandb fell behind and missed {process.dropped} records; {backup}"


def messages(process: Background, *, backup: str) -> Iterator[str]:
    """Messages of the process since the last call, as sentences.

    Args:
        backup: where data that wandb loses can be found: ``metrics.jsonl has every record``.
    """
    for message in process.received():
        match message:
            case {"url": str(url)}:
                yield f"wandb: {url}"
            case {"offline": str(directory), "reason": reason}:
                path = shown_path(Path(directory))
                state = f"wandb is offline ({one_line(reason)})" if reason else "wandb is offline"
                yield f"{state}; its files: {path} (wandb leet shows them, wandb sync uploads them)"
            case {"problem": str(text)}:
                yield f"wandb: {one_line(text)}; {backup}"

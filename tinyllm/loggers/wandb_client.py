"""A process that is fed and never waited for: whatever happens in it cannot hold up whoever feeds it."""

import contextlib
import importlib.util
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from tinyllm.errors import one_line
from tinyllm.utils.files import parse_json
from tinyllm.utils.platforms import end_now
from tinyllm.utils.text import shown_path


class Background:
    """Runs a Python file in a process of its own and exchanges JSON lines with it.

    The process has its own session, so Ctrl-C in the terminal does not reach it. When the process that feeds it
    dies, its input ends.

    Args:
        script: the file, which imports nothing of its own directory.
        environ: the environment it gets.
        capacity: lines that may wait for it; further ones are dropped and counted.

    Raises:
        OSError: the process cannot be started.
    """

    def __init__(self, script: Path, *, environ: Mapping[str, str], capacity: int = 10_000) -> None:
        self.dropped = 0
        self._lines: queue.Queue[bytes | None] = queue.Queue(capacity)
        self._heard: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
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
        """Let the process have a message when it gets to it; returns at once."""
        try:
            self._lines.put_nowait(json.dumps(message, default=str).encode() + b"\n")
        except queue.Full:
            self.dropped += 1

    def heard(self) -> list[dict[str, Any]]:
        """What the process has said since the last call."""
        messages = []
        with contextlib.suppress(queue.Empty):
            while True:
                messages.append(self._heard.get_nowait())
        return messages

    def ended(self) -> int | None:
        """The exit code of a process that has ended (negative: a signal's number); None while it runs."""
        return self._process.poll()

    def finish(self, timeout: float) -> bool:
        """Let the process end, at most ``timeout`` seconds; then it is killed. Returns whether it ended by itself."""
        until = time.monotonic() + timeout
        try:
            self._lines.put(None, timeout=timeout)
            self._process.wait(max(0.0, until - time.monotonic()))
            by_itself = True
        except (queue.Full, subprocess.TimeoutExpired):
            end_now(self._process.pid)
            self._process.wait()
            by_itself = False
        for thread in self._threads:
            thread.join(timeout=1)
        return by_itself

    def _feed(self) -> None:
        """Write the lines as they come, until there are no more or nobody reads them."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError), self._process.stdin as stdin:
            for line in iter(self._lines.get, None):
                stdin.write(line)
                stdin.flush()

    def _listen(self) -> None:
        """Collect what the process says, until it ends."""
        assert self._process.stdout is not None
        with self._process.stdout as stdout:
            for line in stdout:
                with contextlib.suppress(ValueError):
                    self._heard.put(parse_json(line))


PROJECT = "tinyllm"
"""Where runs go if neither the configuration nor ``WANDB_PROJECT`` says so."""
Mode = Literal["auto", "online", "offline", "disabled"]


def asked_mode(mode: Mode) -> str:
    """The mode, with ``auto`` as ``WANDB_MODE`` has it; still auto: online if there is an API key, else offline."""
    asked = os.environ.get("WANDB_MODE") if mode == "auto" else None
    return {"dryrun": "offline", "run": "online"}.get(asked or "", asked) or mode


def is_installed() -> bool:
    """Whether the package is there; a folder of that name, such as wandb leaves, is no package."""
    spec = importlib.util.find_spec("wandb")
    return spec is not None and spec.origin is not None


def start() -> Background:
    """Start wandb's process.

    Raises:
        OSError: it cannot be started.
    """
    quiet = {"WANDB_ERROR_REPORTING": "false"} | os.environ | {"WANDB_SILENT": "true"}
    return Background(Path(__file__).with_name("wandb_process.py"), environ=quiet)


def sentences(process: Background, *, kept: str) -> Iterator[str]:
    """What the process has said since the last call, for a person.

    Args:
        kept: where what wandb loses is to be found: ``metrics.jsonl has every record``.
    """
    for said in process.heard():
        match said:
            case {"url": str(url)}:
                yield f"wandb: {url}"
            case {"offline": str(directory), "reason": reason}:
                path = shown_path(Path(directory))
                why = f"wandb is offline ({one_line(reason)})" if reason else "wandb is offline"
                yield f"{why}; its files: {path} (wandb leet shows them, wandb sync uploads them)"
            case {"problem": str(text)}:
                yield f"wandb: {one_line(text)}; {kept}"

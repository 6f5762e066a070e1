"""What a comparison shows while it runs: lines, and in a terminal how far the runs are that go on."""

import threading
from pathlib import Path

from rich.console import Console
from rich.status import Status

from tinyllm.runs.layout import METRICS
from tinyllm.runs.metrics_log import last_record
from tinyllm.utils.environment import shows


class Screen:
    """Lines for a person.

    Args:
        quiet: show nothing, because standard output is for a program.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet or not shows("INFO")
        self.console = Console(highlight=False, soft_wrap=True)
        self._lock = threading.Lock()
        self._running: dict[str, str] = {}
        self._status: Status | None = None

    def say(self, line: str) -> None:
        """Show a line."""
        if not self.quiet:
            self.console.print(line, markup=False)
            self.console.file.flush()

    def look(self, label: str, path: Path) -> None:
        """Show how far the run in a directory is."""
        if self.quiet or not self.console.is_terminal:
            return
        with self._lock:
            self._running[label] = f"{label}: {progress_of(path)}"
            self._show()

    def ended(self, label: str) -> None:
        """A run goes on no longer."""
        with self._lock:
            self._running.pop(label, None)
            self._show()

    def clear(self) -> None:
        """No run goes on."""
        with self._lock:
            self._running.clear()
            self._show()

    def _show(self) -> None:
        if not self._running:
            if self._status is not None:
                self._status.stop()
                self._status = None
            return
        if self._status is None:
            self._status = self.console.status("", spinner="dots")
            self._status.start()
        self._status.update(" | ".join(self._running.values()))


def progress_of(path: Path) -> str:
    """How far a run is, in a few words."""
    record = last_record(path / METRICS)
    if record is None:
        return "starting"
    parts = [f"step {record['step']:,}"]
    if record.get("train/loss") is not None:
        parts.append(f"loss {record['train/loss']:.4f}")
    if record.get("speed/tokens_per_s"):
        parts.append(f"{record['speed/tokens_per_s']:,.0f} tokens/s")
    return ", ".join(parts)

"""The progress of a study in the terminal: lines, and a status line with the step and loss of each running run."""

import threading
from pathlib import Path

from rich.console import Console
from rich.status import Status

from tinyllm.runs.layout import METRICS
from tinyllm.runs.metrics_log import last_record
from tinyllm.utils.environment import shows


class Screen:
    """Prints lines; in a terminal, a status line as well.

    Args:
        quiet: print nothing, because standard output holds JSON.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet or not shows("INFO")
        self.console = Console(highlight=False, soft_wrap=True)
        self._lock = threading.Lock()
        self._running: dict[str, str] = {}
        """The state of each running run, by label."""
        self._status: Status | None = None

    def say(self, line: str) -> None:
        """Print a line."""
        if not self.quiet:
            self.console.print(line, markup=False)
            self.console.file.flush()

    def watch(self, label: str, path: Path) -> None:
        """Show the state of the run in a directory."""
        if self.quiet or not self.console.is_terminal:
            return
        with self._lock:
            self._running[label] = f"{label}: {state_of(path)}"
            self._show()

    def ended(self, label: str) -> None:
        """Remove a run that has ended."""
        with self._lock:
            self._running.pop(label, None)
            self._show()

    def clear(self) -> None:
        """Remove all runs."""
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


def state_of(path: Path) -> str:
    """The step, loss and speed of a run."""
    record = last_record(path / METRICS)
    if record is None:
        return "starting"
    parts = [f"step {record['step']:,}"]
    if record.get("train/loss") is not None:
        parts.append(f"loss {record['train/loss']:.4f}")
    if record.get("speed/tokens_per_s"):
        parts.append(f"{record['speed/tokens_per_s']:,.0f} tokens/s")
    return ", ".join(parts)

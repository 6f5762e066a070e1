"""Progress of data preparation: a bar on standard error in a terminal, else a line per stage on standard output.

Without a terminal, standard error is for the error line alone.
"""

import sys
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from tinyllm.utils.environment import shows


class PreparationProgress:
    """Progress display; a context manager to be called with (stage, done, total).

    Args:
        lines: without a terminal, print a line per stage. False when standard output holds JSON.
    """

    def __init__(self, *, lines: bool = True) -> None:
        self._lines, self._shown = lines, shows("INFO")
        self._console = Console(file=sys.stderr, highlight=False)
        self._bar: Progress | None = None
        self._stage = ""

    def __enter__(self) -> "PreparationProgress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` bytes (0: unknown) of a stage are processed."""
        if not self._shown:
            return
        if not self._console.is_terminal:
            if stage != self._stage and self._lines:
                print(f"{stage} …", flush=True)
        else:
            self._show(stage, done, total)
        self._stage = stage

    def _show(self, stage: str, done: int, total: int) -> None:
        if self._bar is None:
            columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._bar.start()
        if stage != self._stage:
            for task in self._bar.task_ids:
                self._bar.remove_task(task)
            self._bar.add_task(stage, total=total or None)
        self._bar.update(self._bar.task_ids[-1], completed=done, total=total or None)

"""Console output of a run: a live display in a terminal, plain lines everywhere else."""

import os
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tinyllm.loggers.summary_rows import Rows, end_rows, next_commands, start_rows
from tinyllm.runs.metrics_log import Speed, source_keys
from tinyllm.training.callbacks import Callback, Outcome, RunInfo
from tinyllm.utils.environment import shows
from tinyllm.utils.text import duration, escape_control, quantity, shown_path

_STYLES = {"finished": "green", "interrupted": "yellow", "failed": "red"}
_EXPECTED = ("periodic", "best", "last")
"""Checkpoint reasons that the live display does not report."""
_SPARKS = "▁▂▃▄▅▆▇█"


def console_for(
    stream: TextIO | None = None, *, flags: Sequence[str] = (), environ: Mapping[str, str] = os.environ
) -> Callback:
    """Pick a display for the stream (None: stdout): live in a terminal, plain lines in a file, pipe or CI.

    Args:
        flags: flags to repeat in the commands shown at the end, such as ``--config-dir my_conf``.
    """
    stream = stream or sys.stdout
    if not shows("INFO"):
        return NotesOnly(stream, flags=flags) if shows("WARNING") else Callback()
    is_terminal = stream.isatty() and environ.get("TERM", "") not in ("", "dumb")
    # Box characters and sampled text may be anything, so the live display needs a UTF-8 terminal.
    is_terminal = is_terminal and (stream.encoding or "").lower().replace("-", "") == "utf8"
    if is_terminal and environ.get("CI", "").lower() in ("", "0", "false"):
        return TerminalConsole(Console(file=stream, highlight=False), flags=flags)
    return PlainConsole(stream, flags=flags)


SCORES = {
    "val/loss": "val loss {:.4f}",
    "val/ppl": "perplexity {:.4g}",
    "val/bpb": "{:.4f} bits per byte",
    "val/reward": "val reward {:.4f}",
    "val/ended": "ended {:.1%}",
    "val/pref/accuracy": "pairs ranked right {:.1%}",
    "val/pref/margin": "margin {:.3g}",
}
"""The metrics of an evaluation that are shown, the most important first."""


def seconds_left(info: RunInfo | None, speed: Speed, *, step: int) -> float | None:
    """Seconds from a step until the end of the run, at its recent speed; None: no speed is known yet."""
    return None if info is None else speed.remaining(info.tokens_left(step=step, trained=speed.trained))


class PlainConsole(Callback):
    """Prints one line per event, flushed and free of control characters. A broken stream does not end the run."""

    def __init__(self, stream: TextIO, *, flags: Sequence[str] = ()) -> None:
        self._stream, self._flags = stream, flags
        self._max_steps, self._writes_text = 0, True
        self._info: RunInfo | None = None
        self._speed = Speed()
        self._best_bpb: float | None = None

    def on_start(self, info: RunInfo) -> None:
        self._max_steps, self._writes_text = info.max_steps, info.writes_text
        self._info = info
        self._speed.start(info.start_tokens)
        self._rows(start_rows(info))

    def on_log(self, step: int, metrics: dict[str, float]) -> None:
        self._speed.add(metrics)
        parts = [f"step {step}/{self._max_steps}", *_metric_texts(metrics)]
        left = seconds_left(self._info, self._speed, step=step)
        if left is not None:
            parts.append(f"ETA {duration(left)}")
        self._line(" | ".join(parts))

    def on_evaluate(self, step: int, metrics: dict[str, float], is_best: bool) -> None:
        if is_best:
            self._best_bpb = metrics.get("val/bpb")
        self._line(" | ".join([f"step {step}/{self._max_steps}", *_scores(metrics), *(["best"] * is_best)]))

    def on_sample(self, step: int, text: str) -> None:
        for line in text.split("\n"):
            self._line(f"sample at step {step} | {line}")

    def on_checkpoint(self, step: int, path: Path, reason: str) -> None:
        self._line(f"checkpoint at step {step} ({reason}): {shown_path(path)}")

    def on_message(self, text: str) -> None:
        self._line(f"note: {escape_control(text)}")

    def on_end(self, outcome: Outcome) -> None:
        self._line(f"{outcome.status} at step {outcome.step}")
        rows = end_rows(outcome, max_steps=self._max_steps, tokens_per_s=self._speed.mean, best_bpb=self._best_bpb)
        commands = next_commands(outcome, max_steps=self._max_steps, flags=self._flags, writes_text=self._writes_text)
        self._rows(rows + commands)

    def _rows(self, rows: Rows) -> None:
        label = ""
        for name, text in rows:
            label = name or label
            self._line(f"{label}: {text}")

    def _line(self, text: str) -> None:
        """Write one line: control characters spelled out, characters outside the stream's encoding replaced."""
        encoding = self._stream.encoding or "utf-8"
        line = (
            escape_control(text).replace("\n", "\\n").replace("\t", "\\t").encode(encoding, "replace").decode(encoding)
        )
        try:
            self._stream.write(line + "\n")
            self._stream.flush()
        except BrokenPipeError:
            # The reader is gone (`… | head`), but the run continues. Without this, Python's flush at exit would fail.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
        except OSError:
            pass  # a full disk costs a line of output, never the run


class NotesOnly(Callback):
    """Prints notes only, no metrics (``LOG_LEVEL=WARNING``)."""

    def __init__(self, stream: TextIO, *, flags: Sequence[str] = ()) -> None:
        self._plain = PlainConsole(stream, flags=flags)

    def on_message(self, text: str) -> None:
        self._plain.on_message(text)


class TerminalConsole(Callback):
    """Live display: a summary, then a progress bar and metrics pinned below the scrolling evaluations and samples."""

    def __init__(self, console: Console, *, flags: Sequence[str] = ()) -> None:
        self._console, self._flags = console, flags
        self._live: Live | None = None
        self._info: RunInfo | None = None
        self._step = 0
        self._metrics: dict[str, float] = {}
        self._losses: deque[float] = deque(maxlen=12)
        self._best: float | None = None
        self._best_bpb: float | None = None
        self._speed = Speed()
        self._drawn = 0.0

    def on_start(self, info: RunInfo) -> None:
        self._info, self._step = info, info.start_step
        self._speed.start(info.start_tokens)
        self._console.print(_panel("tinyllm", start_rows(info), style="cyan"))
        self._live = Live(
            get_renderable=self._progress,
            console=self._console,
            refresh_per_second=1,
            transient=True,
            redirect_stderr=sys.stderr.isatty(),
        )
        self._live.start()
        self._console.show_cursor(True)  # a killed process must not leave the terminal without a cursor

    def on_log(self, step: int, metrics: dict[str, float]) -> None:
        self._speed.add(metrics)
        if "train/loss" in metrics:
            self._losses.append(metrics["train/loss"])
        self._show(step, metrics)

    def on_evaluate(self, step: int, metrics: dict[str, float], is_best: bool) -> None:
        self._show(step, metrics)
        if is_best:
            self._best, self._best_bpb = metrics.get("val/loss"), metrics.get("val/bpb")
        line = Text.assemble((f"step {step:>7,}", "bold"), "   ", "   ".join(_scores(metrics)))
        self._console.print(line.append("   ● best", "green") if is_best else line)

    def on_sample(self, step: int, text: str) -> None:
        self._console.print(Text.assemble((f"step {step:>7,}", "bold"), "   sample"))
        self._console.print(Padding(Text(escape_control(text.expandtabs(4)).strip("\n"), "italic cyan"), (0, 4, 1, 4)))

    def on_checkpoint(self, step: int, path: Path, reason: str) -> None:
        if reason not in _EXPECTED:
            self._console.print(Text(f"checkpoint at step {step:,} ({reason}): {shown_path(path)}", "yellow"))

    def on_message(self, text: str) -> None:
        self._console.print(Text(f"note: {escape_control(text)}", "yellow"))

    def on_end(self, outcome: Outcome) -> None:
        if self._live:
            self._live.stop()
            self._live = None
        max_steps = self._info.max_steps if self._info else outcome.step
        rows = end_rows(outcome, max_steps=max_steps, tokens_per_s=self._speed.mean, best_bpb=self._best_bpb)
        self._console.print(_panel(outcome.status, rows, style=_STYLES.get(outcome.status, "cyan")))
        writes_text = self._info is None or self._info.writes_text
        for name, command in next_commands(outcome, max_steps=max_steps, flags=self._flags, writes_text=writes_text):
            # Outside the panel and unwrapped, so that selecting it with the mouse copies exactly the command.
            self._console.print(Text(f"{name + ':':<10} ", "bold"), Text(command), sep="", soft_wrap=True)

    def _show(self, step: int, metrics: dict[str, float]) -> None:
        """Update the metrics and redraw, at most four times a second."""
        self._step = step
        self._metrics |= metrics
        if self._live and time.monotonic() - self._drawn > 0.25:
            self._drawn = time.monotonic()
            self._live.refresh()

    def _progress(self) -> RenderableType:
        """The two pinned lines: progress bar and metrics."""
        if self._info is None:
            return ""
        total = self._info.max_steps
        left = seconds_left(self._info, self._speed, step=self._step)
        bar = Table.grid(expand=True, padding=(0, 1))
        bar.add_column(ratio=1)
        bar.add_column(no_wrap=True, justify="right")
        bar.add_row(
            ProgressBar(total=total, completed=self._step, complete_style="cyan", finished_style="green"),
            f"{self._step:,}/{total:,}  {self._step / total:4.0%}  ETA {'-' if left is None else duration(left)}",
        )
        texts = _metric_texts(self._metrics, best=self._best)
        texts[1:1] = [sparkline(list(self._losses))] * bool(self._losses)
        return Group("", bar, Text("   ".join(texts), no_wrap=True, overflow="ellipsis"))


def sparkline(values: list[float]) -> str:
    """Sparkline of the finite values, scaled from the lowest to the highest."""
    finite = [value for value in values if abs(value) < float("inf")]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    scale = (len(_SPARKS) - 1) / (high - low) if high > low else 0.0
    return "".join(_SPARKS[round((value - low) * scale)] for value in finite)


def _panel(title: str, rows: Rows, *, style: str) -> Panel:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in rows:
        table.add_row(Text(name), Text(escape_control(text), "yellow" if name == "note" else ""))
    return Panel(table, title=title, title_align="left", border_style=style, expand=False)


def _metric_texts(metrics: dict[str, float], *, best: float | None = None) -> list[str]:
    """Text of the metrics a record has, the most important first."""
    parts = []
    if "train/loss" in metrics:
        parts.append(f"loss {metrics['train/loss']:.4f}")
    if "train/targets" in metrics:
        parts.append(f"{metrics['train/targets']:,.0f} targets")
    if best is not None:
        last = metrics["val/loss"]
        parts.append(f"val {last:.4f} (best{'' if last == best else f' {best:.4f}'})")
    if "speed/tokens_per_s" in metrics:
        parts.append(f"{metrics['speed/tokens_per_s']:,.0f} tokens/s")
    if "speed/mfu" in metrics:
        parts.append(f"MFU {metrics['speed/mfu']:.1%}")
    if "train/lr" in metrics:
        parts.append(f"lr {metrics['train/lr']:.2e}")
    if "train/grad_norm" in metrics:
        parts.append(f"grad {metrics['train/grad_norm']:.2f}")
    if "memory/peak_bytes" in metrics:
        parts.append(quantity(metrics["memory/peak_bytes"], "B"))
    return parts


def _scores(metrics: dict[str, float]) -> list[str]:
    """Text of the metrics of one evaluation."""
    parts = [text.format(metrics[name]) for name, text in SCORES.items() if name in metrics]
    sources = [f"{source} {metrics[key]:.4f}" for source, key in source_keys(metrics, "val", "loss").items()]
    return parts + [", ".join(sources)] * bool(sources)

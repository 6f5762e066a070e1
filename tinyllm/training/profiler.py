"""Profiler: time and memory of a few steps, written to ``profile/`` in the run directory."""

import bisect
import csv
import gzip
import io
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from tinyllm.utils.files import parse_json, remove, replace, temporary, write_text

WARM_UP = 3
"""Steps before recording; the first steps allocate memory and choose kernels."""
OPERATORS = 20
"""Rows of the table of operators."""
NAMED = 3
"""Operators named in the message at the end."""
HISTORY = 1_000_000
"""Most allocations in a snapshot of GPU memory."""


class NoProfiler:
    """The interface of :class:`Profiler`; records nothing."""

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def step(self) -> None:
        """Note the end of an optimizer step, with its evaluation and checkpoint."""


class Profiler(NoProfiler):
    """Records optimizer steps with torch's profiler. An error in profiling is reported and does not end the run.

    Writes ``trace.json.gz``, ``operators.txt`` and, with ``memory``, ``memory.csv`` or, on CUDA, ``memory.pickle``.

    Args:
        directory: where to write; created when there is something to write.
        steps: number of steps to record, after :data:`WARM_UP` steps.
        memory: record allocations too.
        device: training device.
        report: shows a sentence to the user.
        prefix: prefix of the file names, different for each rank.
    """

    def __init__(
        self,
        directory: Path,
        *,
        steps: int,
        memory: bool,
        device: torch.device,
        report: Callable[[str], None],
        prefix: str = "",
    ) -> None:
        self._directory, self._steps, self._memory, self._device = directory, steps, memory, device
        self._report, self._prefix = report, prefix
        self._done = 0
        self._profile: Any = None

    def __enter__(self) -> None:
        with self._guarded():
            on_gpu = self._device.type == "cuda"
            kinds = torch.profiler.ProfilerActivity
            with quiet():
                self._profile = torch.profiler.profile(
                    activities=[kinds.CPU, kinds.CUDA] if on_gpu else [kinds.CPU],
                    schedule=torch.profiler.schedule(wait=WARM_UP - 1, warmup=1, active=self._steps, repeat=1),
                    record_shapes=True,
                    profile_memory=self._memory,
                    acc_events=True,
                )
                self._profile.start()

    def step(self) -> None:
        if self._profile is None:
            return
        self._done += 1
        with self._guarded():
            if self._done == WARM_UP and self._memory and self._device.type == "cuda":
                torch.cuda.memory._record_memory_history(max_entries=HISTORY)
            if self._done == WARM_UP + self._steps:
                self._finish()
            else:
                with quiet():
                    self._profile.step()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._profile is not None:
            with self._guarded():
                self._finish()

    def _finish(self) -> None:
        """Stop recording and write the files."""
        profile, self._profile = self._profile, None
        recorded = self._done - WARM_UP
        with quiet():
            profile.stop()
        if recorded <= 0:
            self._report(f"no profile: the run took {self._done} steps, and the first {WARM_UP} are not recorded")
            return
        self._directory.mkdir(exist_ok=True)
        if self._memory and self._device.type == "cuda":
            torch.cuda.memory._dump_snapshot(str(self._path("memory.pickle")))
            torch.cuda.memory._record_memory_history(enabled=None)
        trace = self._write_trace(profile)
        if self._memory and self._device.type != "cuda":
            write_memory(parse_json(trace, finite=False, most=len(trace)), self._path("memory.csv"))
        averages = profile.key_averages()
        order = "self_device_time_total" if self._device.type == "cuda" else "self_cpu_time_total"
        table = averages.table(sort_by=order, row_limit=OPERATORS, max_name_column_width=60)
        write_text(self._path("operators.txt"), table)
        times = {average.key: getattr(average, order) for average in averages}
        total = sum(times.values()) or 1
        operators = [name for name in times if not name.startswith("ProfilerStep")]  # their self time is Python's
        slowest = sorted(operators, key=lambda name: -times[name])[:NAMED]
        shares = ", ".join(f"{name} {times[name] / total:.0%}" for name in slowest)
        fewer = "" if recorded == self._steps else f" of the {self._steps} requested"
        self._report(f"profile of {recorded} steps{fewer} in {self._directory}; most time in {shares}")

    def _write_trace(self, profile: Any) -> bytes:
        """Write the compressed trace; returns its JSON text.

        Raises:
            OSError: it cannot be written.
        """
        folder = temporary(self._path("trace"))
        folder.mkdir()  # a new folder, because torch would follow a link planted under the name of its file
        plain = folder / "trace.json"
        try:
            with quiet():
                profile.export_chrome_trace(str(plain))
            text = plain.read_bytes() if plain.exists() else b""
            if not text.rstrip().endswith(b"}"):  # torch does not report a full disk
                raise OSError("the trace could not be written")
            replace(self._path("trace.json.gz"), lambda stream: stream.write(gzip.compress(text)))
        finally:
            remove(folder)
        return text

    def _path(self, name: str) -> Path:
        return self._directory / f"{self._prefix}{name}"

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Turn an exception into a message and stop profiling; the run continues."""
        try:
            yield
        except Exception as error:
            self._profile = None
            why = " ".join(f"{type(error).__name__}: {error}".split())
            free = shutil.disk_usage(self._directory.parent).free
            self._report(f"no profile: {why} ({free / 1e6:.0f} MB free there)")


def write_memory(trace: dict[str, Any], path: Path) -> None:
    """Write every allocation (bytes > 0) and release (bytes < 0) of a trace as a CSV table.

    Columns: microseconds since the first event; step, counted from 0; innermost operator, empty if none was running;
    bytes; net bytes allocated since recording began.

    Args:
        trace: trace exported by torch's profiler, recorded with ``profile_memory``.
    """
    events = trace["traceEvents"]
    allocations = sorted((event for event in events if event.get("name") == "[memory]"), key=lambda event: event["ts"])
    steps = [event for event in events if event.get("ph") == "X" and str(event["name"]).startswith("ProfilerStep#")]
    starts = sorted(event["ts"] for event in steps)
    operators = Operators([event for event in events if event.get("cat") == "cpu_op"])
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(["us", "step", "operator", "bytes", "allocated"])
    for event in allocations:
        step = bisect.bisect_right(starts, event["ts"]) - 1
        facts = event["args"]
        us = f"{event['ts'] - allocations[0]['ts']:.1f}"
        table.writerow([us, step, operators.at(event["tid"], event["ts"]), facts["Bytes"], facts["Total Allocated"]])
    write_text(path, text.getvalue())


class Operators:
    """The operator that a thread was running at a given time; queries must be in ascending order of time."""

    def __init__(self, events: list[dict[str, Any]]) -> None:
        self._waiting: dict[Any, list[dict[str, Any]]] = {}
        self._open: dict[Any, list[dict[str, Any]]] = {}
        # Reversed, so that pop() returns the earliest.
        for event in sorted(events, key=lambda event: (-event["ts"], event["dur"])):
            self._waiting.setdefault(event["tid"], []).append(event)

    def at(self, thread: Any, moment: float) -> str:
        """Name of the innermost operator; "" if none was running."""
        waiting, running = self._waiting.get(thread, []), self._open.setdefault(thread, [])
        while waiting and waiting[-1]["ts"] <= moment:
            event = waiting.pop()
            drop_finished(running, event["ts"])
            running.append(event)
        drop_finished(running, moment)
        return str(running[-1]["name"]) if running else ""


def drop_finished(running: list[dict[str, Any]], moment: float) -> None:
    """Pop the innermost events that ended before ``moment``."""
    while running and running[-1]["ts"] + running[-1]["dur"] < moment:
        running.pop()


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the lines that Kineto, torch's tracing library, writes to standard error when it starts and stops."""
    name, above_every_level = "KINETO_LOG_LEVEL", "6"
    before = os.environ.get(name)
    os.environ.setdefault(name, above_every_level)
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]

"""Where the time and the memory of a few steps go, into the run's directory ``profile``."""

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
"""Steps before the profile; the first ones allocate memory and choose kernels."""
OPERATORS = 20
"""Rows of the table."""
NAMED = 3
"""Operators that the message names."""
HISTORY = 1_000_000
"""Allocations that a snapshot of a GPU's memory can hold."""


class NoProfiler:
    """Records nothing."""

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def step(self) -> None:
        """An optimizer step, with all that belongs to it, is over."""


class Profiler(NoProfiler):
    """Records some optimizer steps with torch's profiler; a profile that fails never ends the run.

    Writes ``trace.json.gz``, ``operators.txt`` and, if asked, ``memory.csv`` or, on CUDA, ``memory.pickle``.

    Args:
        directory: where the files go; made when there is something to write.
        steps: steps to record, after :data:`WARM_UP` others.
        memory: also record what is allocated and freed.
        device: the device that trains.
        report: takes a sentence for the person.
        prefix: begins the names of the files, where several ranks write into one directory.
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
        """Stop recording and write what there is."""
        profile, self._profile = self._profile, None
        recorded = self._done - WARM_UP
        with quiet():
            profile.stop()
        if recorded <= 0:
            self._report(f"no profile: {self._done} steps were made, and the first {WARM_UP} are not recorded")
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
        times = {one.key: getattr(one, order) for one in averages}
        total = sum(times.values()) or 1
        operators = [name for name in times if not name.startswith("ProfilerStep")]  # whose own time is Python's
        most = sorted(operators, key=lambda name: -times[name])[:NAMED]
        shares = ", ".join(f"{name} {times[name] / total:.0%}" for name in most)
        fewer = "" if recorded == self._steps else f" of the {self._steps} asked for"
        self._report(f"profile of {recorded} steps{fewer} in {self._directory}; most time in {shares}")

    def _write_trace(self, profile: Any) -> bytes:
        """Write the trace compressed; returns its text.

        Raises:
            OSError: it cannot be written.
        """
        folder = temporary(self._path("trace"))
        folder.mkdir()  # torch opens what it finds under the name that it is given
        plain = folder / "trace.json"
        try:
            with quiet():
                profile.export_chrome_trace(str(plain))
            text = plain.read_bytes() if plain.exists() else b""
            if not text.rstrip().endswith(b"}"):  # torch does not say when it could not write all of it
                raise OSError("the trace could not be written")
            replace(self._path("trace.json.gz"), lambda stream: stream.write(gzip.compress(text)))
        finally:
            remove(folder)
        return text

    def _path(self, name: str) -> Path:
        return self._directory / f"{self._prefix}{name}"

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Whatever goes wrong ends the profile, with a sentence, and not the run."""
        try:
            yield
        except Exception as error:
            self._profile = None
            why = " ".join(f"{type(error).__name__}: {error}".split())
            free = shutil.disk_usage(self._directory.parent).free
            self._report(f"no profile: {why} ({free / 1e6:.0f} MB are free there)")


def write_memory(trace: dict[str, Any], path: Path) -> None:
    """Write every allocation (bytes > 0) and release (bytes < 0) of a trace as a table.

    Columns: microseconds since the first; the step, counted from 0; the innermost operator at that moment, empty
    outside of all; bytes; bytes allocated since the recording began, less those freed.

    Args:
        trace: what torch's profiler exports, recorded with ``profile_memory``.
    """
    events = trace["traceEvents"]
    moments = sorted((one for one in events if one.get("name") == "[memory]"), key=lambda one: one["ts"])
    steps = [one for one in events if one.get("ph") == "X" and str(one["name"]).startswith("ProfilerStep#")]
    starts = sorted(one["ts"] for one in steps)
    operators = Operators([one for one in events if one.get("cat") == "cpu_op"])
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(["us", "step", "operator", "bytes", "allocated"])
    for one in moments:
        step = bisect.bisect_right(starts, one["ts"]) - 1
        facts = one["args"]
        us = f"{one['ts'] - moments[0]['ts']:.1f}"
        table.writerow([us, step, operators.at(one["tid"], one["ts"]), facts["Bytes"], facts["Total Allocated"]])
    write_text(path, text.getvalue())


class Operators:
    """Which operator a thread was in, asked for in the order of time."""

    def __init__(self, events: list[dict[str, Any]]) -> None:
        self._waiting: dict[Any, list[dict[str, Any]]] = {}
        self._open: dict[Any, list[dict[str, Any]]] = {}
        for one in sorted(events, key=lambda one: (-one["ts"], one["dur"])):  # taken from the end
            self._waiting.setdefault(one["tid"], []).append(one)

    def at(self, thread: Any, moment: float) -> str:
        """The innermost operator of a thread; "" outside of all."""
        waiting, inside = self._waiting.get(thread, []), self._open.setdefault(thread, [])
        while waiting and waiting[-1]["ts"] <= moment:
            begins = waiting.pop()
            leave(inside, begins["ts"])
            inside.append(begins)
        leave(inside, moment)
        return str(inside[-1]["name"]) if inside else ""


def leave(inside: list[dict[str, Any]], moment: float) -> None:
    """Take away the innermost events that were over by then."""
    while inside and inside[-1]["ts"] + inside[-1]["dur"] < moment:
        inside.pop()


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the lines away that Kineto, torch's tracing library, writes to standard error when it starts and stops."""
    name, above_all = "KINETO_LOG_LEVEL", "6"
    before = os.environ.get(name)
    os.environ.setdefault(name, above_all)
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]

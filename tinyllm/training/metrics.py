"""metrics.jsonl: one JSON object per line, the source of every curve and table."""

import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tinyllm.utils.files import open_append, parse_json, translated, write_text

Record = dict[str, Any]


class Log:
    """Takes records and keeps none, as on the ranks that do not write."""

    def write(self, record: Record) -> None:
        """Take one record."""

    def sync(self) -> None:
        """Make the records durable."""

    def close(self) -> None:
        """Take no more."""


class MetricsLog(Log):
    """Appends records to a file that stays consistent after a rewind.

    Args:
        path: the file; records after ``step`` are dropped, and so is a half-written last line.
        step: the step training continues from.
    """

    def __init__(self, path: Path, *, step: int) -> None:
        kept = [record for record in read_metrics(path) if record["step"] <= step]
        lines = "".join(_line(record) for record in kept)
        write_text(path, lines)
        self.path = path
        self._file = open_append(path)

    def write(self, record: Record) -> None:
        """Append one record; it is in the file when this returns.

        Raises:
            UserError: the disk is full.
        """
        with translated(self.path):
            self._file.write(_line(record).encode())
            self._file.flush()

    def sync(self) -> None:
        """Force the records onto the disk, so that a checkpoint never outlives them."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_metrics(path: Path) -> list[Record]:
    """The whole records of a ``metrics.jsonl``; [] when there is none."""
    if not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = parse_json(line)
        except ValueError:
            break  # the line a killed process was writing; nothing stands after it
        records.append(record)
    return records


def _line(record: Record) -> str:
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
    return json.dumps(finite) + "\n"


class Stopwatch:
    """Seconds of training, with evaluation, sampling and saving taken out for the speed.

    Args:
        before: seconds the run had taken before this process.
    """

    def __init__(self, before: float) -> None:
        self._before, self._start = before, time.perf_counter()
        self._paused = 0.0
        self._mark = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Wall seconds of the run so far, everything included."""
        return self._before + self.of_this_start

    @property
    def of_this_start(self) -> float:
        """Wall seconds since this process began to train."""
        return time.perf_counter() - self._start

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Take the block out of the speed."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._paused += time.perf_counter() - begin

    def lap(self) -> float:
        """Seconds of training since the last lap, pauses excluded."""
        now = time.perf_counter()
        lap = now - self._mark - self._paused
        self._mark, self._paused = now, 0.0
        return max(lap, 1e-9)

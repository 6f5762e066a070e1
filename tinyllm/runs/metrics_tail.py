"""A ``metrics.jsonl`` that may still grow, as columns: only bytes that are new are read and parsed."""

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyllm.runs.metrics_log import Record, RecordParser
from tinyllm.utils.files import open_read

Array = NDArray[np.float64]
AXES = ("step", "tokens", "flops", "seconds")
"""What a curve can be drawn over; every record has them."""
PIECE = 1 << 20
"""Bytes read at once."""
ANCHOR = 64
"""Bytes before the read position that must not have changed, or the file is another one."""


class MetricsTail:
    """The metrics of a run by name, kept up to date with :meth:`poll`. May be used from several threads.

    Args:
        path: the file; it may appear, grow, be replaced by a resumed run, and vanish.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.parsed = 0
        """Bytes parsed so far, for tests and benchmarks."""
        self.rows = 0
        """Number of records."""
        self._lock = threading.Lock()
        self._forget()

    def _forget(self) -> None:
        self.rows = 0
        self._identity: tuple[int, int] | None = None
        self._offset = 0
        self._anchor = b""
        self._parser = RecordParser()
        self._columns: dict[str, list[tuple[NDArray[np.int64], Array]]] = {}

    @property
    def version(self) -> tuple[Any, ...]:
        """Equal for equal content."""
        with self._lock:
            return self._identity, self._offset, self.rows

    @property
    def names(self) -> list[str]:
        """The metrics that records hold, without the axes, in order of their first appearance."""
        with self._lock:
            return [name for name in self._columns if name not in AXES]

    def poll(self) -> bool:
        """Read what was appended since the last call; returns whether anything changed.

        A resumed run replaces the file by one without the records of the steps that it trains again; then everything
        is read anew.
        """
        with self._lock:
            before = (self._identity, self._offset)
            try:
                with open_read(self.path) as file:
                    status = os.fstat(file.fileno())
                    identity = (status.st_dev, status.st_ino)
                    if (
                        identity != self._identity
                        or status.st_size < self._offset
                        or not self._continues(file.fileno())
                    ):
                        self._forget()
                        self._identity = identity
                    file.seek(self._offset)
                    while piece := file.read(PIECE):
                        self._add(self._parser.feed(piece))
                        self._anchor = (self._anchor + piece)[-ANCHOR:]
                        self._offset += len(piece)
                        self.parsed += len(piece)
                    self._add(self._parser.rest())
            except OSError:
                self._forget()
            return before != (self._identity, self._offset)

    def _continues(self, descriptor: int) -> bool:
        """Whether the bytes before the read position are still those that were read: inode numbers are used again."""
        os.lseek(descriptor, self._offset - len(self._anchor), os.SEEK_SET)
        return os.read(descriptor, len(self._anchor)) == self._anchor

    def _add(self, records: Sequence[Record]) -> None:
        """Append records to the columns. Records with the same names, nearly all of them, are converted together."""
        alike: dict[tuple[str, ...], list[int]] = {}
        for number, record in enumerate(records):
            alike.setdefault(tuple(record), []).append(number)
        for names, numbers in alike.items():
            rows = np.array(numbers, dtype=np.int64) + self.rows
            try:
                table = np.array([[*records[number].values()] for number in numbers], dtype=np.float64)
            except OverflowError:  # a whole number beyond any float
                table = np.array([[_as_float(value) for value in records[number].values()] for number in numbers])
            for name, values in zip(names, table.T, strict=True):
                self._columns.setdefault(name, []).append((rows, values))
        self.rows += len(records)

    def last(self, name: str) -> float | None:
        """The newest finite value of a metric."""
        _, values = self._column(name)
        finite = values[np.isfinite(values)]
        return float(finite[-1]) if len(finite) else None

    def lowest(self, name: str) -> float | None:
        """The lowest finite value of a metric."""
        _, values = self._column(name)
        finite = values[np.isfinite(values)]
        return float(finite.min()) if len(finite) else None

    def series(self, name: str, axis: str = "step") -> tuple[Array, Array]:
        """A metric over an axis: positions in ascending order, and values, NaN where a record holds no finite value.

        Records without the metric are no points. A record without a position takes that of the previous one, as in
        runs of versions whose evaluations had no token counts.
        """
        rows, values = self._column(name)
        if not len(rows):
            return np.empty(0), np.empty(0)
        at, positions = self._column(axis)
        dense = np.full(self.rows, np.nan)
        dense[at] = positions
        known = np.maximum.accumulate(np.where(np.isfinite(dense), np.arange(self.rows), -1))[rows]
        rows, values, known = rows[known >= 0], values[known >= 0], known[known >= 0]
        x = dense[known]
        order = np.argsort(x, kind="stable")
        return x[order], values[order]

    def _column(self, name: str) -> tuple[NDArray[np.int64], Array]:
        with self._lock:
            parts = self._columns.get(name)
            if not parts:
                return np.empty(0, dtype=np.int64), np.empty(0)
            if len(parts) > 1:
                rows, values = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
                order = np.argsort(rows, kind="stable")
                parts[:] = [(rows[order], values[order])]
            return parts[0]


def _as_float(value: float | None) -> float:
    try:
        return np.nan if value is None else float(value)
    except OverflowError:
        return np.nan

"""Writes and reads ``metrics.jsonl``, one JSON object per line, the source of every curve and table."""

import contextlib
import json
import math
import os
import statistics
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tinyllm.utils.files import open_append, parse_json, sync_open, write_text
from tinyllm.utils.write_errors import readable_write_errors

Record = dict[str, Any]
LONGEST_LINE = 1 << 20
"""Bytes in a line; a record has a few hundred."""
BLOCK = 1 << 16
"""Bytes read at once from the end of a file."""


class Log:
    """Discards records, for ranks that do not write."""

    def write(self, record: Record) -> None:
        """Write one record."""

    def sync(self) -> None:
        """Make the records durable."""

    def close(self) -> None:
        """Close the log."""


class MetricsLog(Log):
    """Appends records to the file of a run that may have been resumed.

    Args:
        path: the file. Records after ``step`` are dropped, because those steps are trained again.
        step: the step from which training continues.
        tell: called with a sentence if lines are damaged; the damaged file is kept under a different name.
    """

    def __init__(self, path: Path, *, step: int, tell: Callable[[str], None] = lambda text: None) -> None:
        records, damaged = scan(path)
        if damaged:
            lines = f"{damaged} line{'s' * (damaged > 1)} of {path.name}"
            were = "were" if damaged > 1 else "was"
            tell(f"{lines} could not be read and {were} left out; the original file: {_set_aside(path)}")
        # Always a new file, so that a process that watches it can tell it from the previous process's log.
        write_text(path, "".join(_line(record) for record in records if record["step"] <= step))
        self.path = path
        self._file = open_append(path)

    def write(self, record: Record) -> None:
        """Append one record, unbuffered: it survives a kill of the process.

        Raises:
            UserError: the disk is full.
        """
        with readable_write_errors(self.path):
            self._file.write(_line(record).encode())
            self._file.flush()

    def sync(self) -> None:
        """Flush the records to disk, so that no checkpoint survives a power cut without its records.

        Raises:
            UserError: the disk is full or fails.
        """
        with readable_write_errors(self.path):
            self._file.flush()
            sync_open(self._file.fileno())

    def close(self) -> None:
        """Close the file, ignoring errors of the disk."""
        with contextlib.suppress(OSError):
            self._file.close()


def read_metrics(path: Path) -> list[Record]:
    """Every record of a ``metrics.jsonl``, in file order; [] when there is no file."""
    return scan(path)[0]


def read_backwards(path: Path) -> Iterator[Record]:
    """The records of a ``metrics.jsonl``, newest first, reading only as far back as the caller asks for."""
    if path.is_file():
        yield from filter(None, map(record_of, lines_backwards(path)))


def last_record(path: Path) -> Record | None:
    """The newest record; None if there are no records."""
    return next(read_backwards(path), None)


def scan(path: Path) -> tuple[list[Record], int]:
    """Every record of a file, and the number of damaged lines.

    A torn last line, left by a killed process, does not count as damaged. After a power cut, a file may have a block
    of zeros with records after it.
    """
    if not path.is_file():
        return [], 0
    records, parser = [], RecordParser()
    with path.open("rb") as file:
        while piece := file.read(LONGEST_LINE):
            records += parser.feed(piece)
    return records + parser.rest(), parser.damaged


class RecordParser:
    """Parses the bytes of a ``metrics.jsonl``, given in pieces of any size: the one rule for torn and damaged lines."""

    def __init__(self) -> None:
        self.damaged = 0
        """Complete lines without a record so far, and lines longer than any record."""
        self._rest = b""
        self._too_long = False
        """The bytes until the next line break belong to a line that counts as damaged already."""

    def feed(self, piece: bytes) -> list[Record]:
        """The records of all lines that are complete now."""
        if self._too_long:
            _, line_break, piece = piece.partition(b"\n")
            self._too_long = not line_break
        complete, _, self._rest = (self._rest + piece).rpartition(b"\n")
        if len(self._rest) >= LONGEST_LINE:  # after a power cut a line of zeros may be huge
            self.damaged += 1
            self._rest, self._too_long = b"", True
        lines = [line for line in complete.split(b"\n") if line and not line.isspace()]
        records = _records_at_once(lines)
        if records is None:
            parsed = [None if len(line) >= LONGEST_LINE else record_of(line) for line in lines]
            records = [record for record in parsed if record is not None]
            self.damaged += len(lines) - len(records)
        return records

    def rest(self) -> list[Record]:
        """The record after the last line break, if it is whole; a torn one stays, to be completed by later pieces."""
        record = record_of(self._rest)
        if record is None:
            return []
        self._rest = b""
        return [record]


def _records_at_once(lines: Sequence[bytes]) -> list[Record] | None:
    """The records of complete lines, parsed together, which takes half the time; None if a line has no record.

    That every line is one object of numbers shows in the whole as well: a raw line break cannot stand in a string,
    what continues an object does not begin with a brace, and a list is no number.
    """
    if not all(line.startswith(b"{") and line.endswith(b"}") and len(line) < LONGEST_LINE for line in lines):
        return None
    try:
        records = parse_json(b"[" + b",\n".join(lines) + b"]", finite=False)
        if len(records) != len(lines):
            return None
        for number, record in enumerate(records):
            values = record.values()
            if not _KINDS.issuperset(map(type, values)) or type(record.get("step")) is not int:
                return None
            if not math.isfinite(sum(filter(None, values))):
                records[number] = finite(record)
    except (ValueError, AttributeError, OverflowError):  # an item that is no object; a whole number beyond any float
        return None
    return list(records)


_KINDS = {int, float, bool, type(None)}


def record_of(line: bytes) -> Record | None:
    """The record in a line: numbers by name, ``step`` among them, NaN and infinity as None.

    None for a line that holds no record. A torn line never does: its closing brace is missing.
    """
    try:
        record = parse_json(line, finite=False)
    except ValueError:
        return None
    if not isinstance(record, dict) or type(record.get("step")) is not int:
        return None
    if not all(value is None or isinstance(value, int | float) for value in record.values()):
        return None
    return finite(record)


def lines_backwards(file: Path) -> Iterator[bytes]:
    """The non-empty lines of a file, last one first; lines longer than any record are skipped."""
    with file.open("rb") as stream:
        position, rest, too_long = stream.seek(0, os.SEEK_END), b"", False
        while position:
            size = min(BLOCK, position)
            position -= size
            stream.seek(position)
            rest, *lines = (stream.read(size) + rest).split(b"\n")
            if lines and too_long:  # the beginning of the long line
                lines.pop()
                too_long = False
            yield from filter(None, reversed(lines))
            too_long = too_long or len(rest) > LONGEST_LINE
            rest = b"" if too_long else rest
    if rest:
        yield rest


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _set_aside(path: Path) -> Path:
    """Keep a damaged file under a new name, and return the name."""
    number = 1
    while (backup := path.with_name(f"{path.stem}.damaged-{number}{path.suffix}")).is_symlink() or backup.exists():
        number += 1
    try:
        os.link(path, backup)
    except OSError:  # a file system without hard links
        os.replace(path, backup)
    return backup


def source_keys(names: Iterable[str], split: str, metric: str) -> dict[str, str]:
    """The metric of each source of a mixture, ``val/prose/loss``, by source, among the names of a record.

    An objective on pairs logs ``val/pref/loss``, too; beside ``val/pref/accuracy``, ``pref`` is no source.
    """
    names = list(names)
    parts = ((name, name.split("/")) for name in names)
    found = {part[1]: name for name, part in parts if len(part) == 3 and (part[0], part[2]) == (split, metric)}
    if f"{split}/pref/accuracy" in names:
        found.pop("pref", None)
    return found


def finite(record: Mapping[str, Any]) -> Record:
    """The record with NaN and infinity, which JSON lacks, replaced by None."""
    return {name: _finite(value) for name, value in record.items()}


def _line(record: Record) -> str:
    return json.dumps(finite(record)) + "\n"


def tokens_left(
    *,
    planned: float,
    rows_vary: bool,
    start_step: float,
    start_tokens: float,
    max_steps: float,
    step: float,
    trained: float,
) -> float:
    """Training tokens from a step until the end of a run.

    Args:
        planned: tokens of the whole run; a guess if ``rows_vary``, since padding and answers are not known before.
        start_step, start_tokens: where the current process took over; 0 unless it resumed.
        step, trained: the current step, and the tokens until then.
    """
    if rows_vary and step > start_step:  # as many a step as this process has trained on so far
        return (trained - start_tokens) / (step - start_step) * (max_steps - step)
    return max(0.0, planned - trained)


@dataclass
class Speed:
    """Training speed in tokens per second, from the records of a run. Evaluation and saving do not count."""

    tokens: float = 0.0
    seconds: float = 0.0
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=20))
    """Tokens per second of the latest intervals."""
    trained: float = 0.0
    """Tokens trained since the start of the run."""
    _intervals: int = 0

    def start(self, tokens: float) -> None:
        """Set the number of tokens trained before this process."""
        self.trained = tokens

    def add(self, metrics: Mapping[str, float]) -> None:
        """Add the record of one interval; records without a speed are ignored."""
        rate, total = metrics.get("speed/tokens_per_s"), metrics.get("train/tokens")
        if not rate or total is None or not math.isfinite(rate) or total <= self.trained:
            return
        if self._intervals == 1:
            self.recent.clear()  # the first interval includes warm-up and would skew the estimate
        self._intervals += 1
        self.recent.append(rate)
        self.seconds += (total - self.trained) / rate
        self.tokens += total - self.trained
        self.trained = total

    @property
    def mean(self) -> float | None:
        """Tokens per second over the whole run."""
        return self.tokens / self.seconds if self.seconds else None

    def remaining(self, tokens: float) -> float | None:
        """Seconds left for this many tokens, at the median recent speed, which ignores hiccups."""
        return tokens / statistics.median(self.recent) if self.recent else None

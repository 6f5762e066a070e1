"""Reads ``events.jsonl``, what a run reported besides its metrics: samples, evaluations, checkpoints, notes."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tinyllm.runs.metrics_log import lines_backwards
from tinyllm.utils.files import parse_json

SAMPLE, START = "sample", "start"


@dataclass(frozen=True, kw_only=True)
class Event:
    """One event of a run."""

    kind: str
    """start, evaluation, sample, checkpoint, note or end."""
    time: float
    """Seconds since 1970."""
    step: int
    text: str


def newest_events(path: Path, *, most: int, kind: str | None = None) -> list[Event]:
    """The newest events of a run, newest first; [] without the file. Damaged lines are skipped.

    Args:
        most: maximum number of events.
        kind: only events of this kind. Samples of steps that a resumed run trained again are left out.
    """
    events = _backwards(path)
    return list(islice((event for event in _kept(events) if event.kind == kind) if kind else events, most))


def _backwards(path: Path) -> Iterator[Event]:
    if path.is_file() and not path.is_symlink():
        yield from filter(None, map(_event, lines_backwards(path)))


def _kept(events: Iterator[Event]) -> Iterator[Event]:
    """The events, newest first, without those of steps that a later start went back behind."""
    resumed_at: float = float("inf")
    for event in events:
        if event.step <= resumed_at:
            yield event
        if event.kind == START:
            resumed_at = min(resumed_at, event.step)


def _event(line: bytes) -> Event | None:
    try:
        content: Any = parse_json(line)
    except ValueError:
        return None
    if not isinstance(content, dict):
        return None
    kind, time, step, text = (content.get(name) for name in ("event", "time", "step", "text"))
    if not (isinstance(kind, str) and type(step) is int and isinstance(text, str)):
        return None
    if not isinstance(time, int | float):
        return None
    return Event(kind=kind, time=float(time), step=step, text=text)

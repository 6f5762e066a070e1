"""What the tabs of a run's page show, read from its directory as text."""

import datetime
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyllm.programs.runs import differences
from tinyllm.runs.checkpoint import read_hint, steps_in
from tinyllm.runs.events import SAMPLE, newest_events
from tinyllm.runs.layout import CHECKPOINTS, EVENTS
from tinyllm.runs.listing import ListedRun
from tinyllm.studies.sweep.directory import RECORDS
from tinyllm.utils.files import open_read
from tinyllm.utils.nested import flatten
from tinyllm.utils.text import escape_control, quantity

MOST_SAMPLES, MOST_EVENTS = 50, 300
LOG_BYTES = 1 << 16
"""Bytes of a program's output that are shown, from its end."""
Row = dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Text:
    """A text of a run with a heading, both safe to show."""

    heading: str
    text: str


def samples(path: Path) -> list[Text]:
    """The samples of a run, newest first."""
    events = newest_events(path / EVENTS, most=MOST_SAMPLES, kind=SAMPLE)
    return [
        Text(heading=f"Step {event.step:,} · {clock(event.time)}", text=escape_control(event.text)) for event in events
    ]


def log(path: Path) -> list[Text]:
    """What a run reported, newest first, and the end of its program's output where that was kept."""
    events = newest_events(path / EVENTS, most=MOST_EVENTS)
    shown = [
        Text(
            heading=f"{clock(event.time)} · step {event.step:,} · {escape_control(event.kind)}",
            text=escape_control(event.text),
        )
        for event in events
        if event.kind != SAMPLE
    ]
    for file in (path.with_name(f"{path.name}.log"), path.parent / RECORDS / f"{path.name}.log"):
        if output := end_of(file):
            shown.append(Text(heading=f"Output of the program ({escape_control(file.name)})", text=output))
    return shown


def end_of(file: Path) -> str:
    """The end of a text file, safe to show; "" if there is none."""
    try:
        with open_read(file) as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - LOG_BYTES))
            content = stream.read(LOG_BYTES)
    except OSError:
        return ""
    text = content.decode(errors="replace").strip("\n")
    return ("…\n" if size > LOG_BYTES else "") + escape_control(text.replace("\r\n", "\n"))


def settings(listed: ListedRun, other: ListedRun | None) -> list[Row]:
    """The settings of a run; with another run, what differs between the two: settings, origins and metrics."""
    if other is None:
        return [{"key": escape_control(key), "value": shown(value)} for key, value in listed.config.items()]
    return [
        {"key": escape_control(key), "value": shown(mine), "other": shown(its), "section": section}
        for section, rows in differences(listed, other).items()
        for key, (mine, its) in rows.items()
        if mine != its
    ]


def machine(listed: ListedRun) -> list[Row]:
    """Where and with what a run was made: machine, versions, code, data, and each of its starts."""
    facts = dict(listed.facts)
    starts = facts.get("starts") or []
    names = ("host", "machine", "instructions", "threads", "versions", "commit", "code", "facts", "compile")
    kept: dict[str, Any] = {name: facts[name] for name in names if facts.get(name) is not None}
    info = facts.get("info") or {}
    of_info = ("device", "precision", "attention_kernel", "world_size", "peak_flops", "memory_bytes")
    kept |= {name: info[name] for name in of_info if info.get(name) is not None}
    rows = [{"key": escape_control(key), "value": shown(value)} for key, value in flatten(kept)]
    for number, start in enumerate(starts, 1):
        where = start.get("host", "")
        version = start.get("versions") or {}
        text = f"step {start['step']:,}, {start['world_size']} ranks, {start['threads']} threads, {where}"
        text += "".join(f", {name} {value}" for name, value in version.items()) if isinstance(version, dict) else ""
        rows.append({"key": f"start {number}", "value": escape_control(text)})
    return rows


def checkpoints(path: Path) -> list[Row]:
    """The checkpoints of a run, newest first: step, size, when, and whether it is the best or the last."""
    folder = path / CHECKPOINTS
    hints = {hint: read_hint(folder, hint) for hint in ("best", "last")}
    rows = []
    for step, checkpoint in reversed(steps_in(folder).items()):
        try:
            files = [file.stat() for file in checkpoint.rglob("*") if file.is_file() and not file.is_symlink()]
            written = checkpoint.stat().st_mtime
        except OSError:  # removed meanwhile, for a newer one
            continue
        size = quantity(sum(file.st_size for file in files), "B")
        mark = ", ".join(hint for hint, named in hints.items() if named == checkpoint)
        rows.append({"key": f"{step:,}", "value": size, "when": clock(written), "mark": mark})
    return rows


def shown(value: Any) -> str:
    """A value as text."""
    if isinstance(value, Mapping | list):
        value = str(value)
    text = "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
    return escape_control(text)


def clock(seconds: float) -> str:
    """A time; "?" for one that no clock shows."""
    try:
        return f"{datetime.datetime.fromtimestamp(seconds):%Y-%m-%d %H:%M:%S}"
    except (ValueError, OverflowError, OSError):
        return "?"

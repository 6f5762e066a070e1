"""Compares two runs bit by bit: every tensor, counter and metrics record, and names what differs.

Values that depend on the clock (seconds, speeds, memory) are left out.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tinyllm.runs.checkpoint import Checkpoint
from tinyllm.runs.metrics_log import read_metrics

CLOCK = ("speed/", "memory/", "seconds")
"""Prefixes of the names of values that depend on the clock."""
NOT_COMPARED = (*CLOCK, "loggers")
"""Prefixes of the parts of a checkpoint that differ even between equal runs; loggers store the name of their run."""
COUNTERS = "counters"
SHOWN = 5
"""Differences printed for each section."""
Contents = dict[str, Any]
"""Tensors and plain values by path, e.g. ``optimizer/head.weight/exp_avg``."""


@dataclass(kw_only=True)
class StateDiff:
    """One section of the comparison of two runs."""

    name: str
    values: int = 0
    """How many tensors, counters or records were compared."""
    differences: list[str] = field(default_factory=list)
    """One sentence for each difference, beginning with the name of the value."""

    @property
    def equal(self) -> bool:
        """Whether nothing differs."""
        return not self.differences


def contents(checkpoint: Checkpoint) -> Contents:
    """Everything in a checkpoint that a resumed run depends on, by path; single numbers under ``counters``."""
    values = dict(leaves(checkpoint.weights(), "weights"))
    for name, value in checkpoint.state().items():
        if not name.startswith(NOT_COMPARED):
            values |= leaves(value, name if isinstance(value, dict | list) else f"{COUNTERS}/{name}")
    return values


def leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The tensors and plain values in nested containers, with their paths. A list of numbers is one value."""
    if isinstance(value, Mapping):
        for key in sorted(value, key=str):
            yield from leaves(value[key], f"{path}/{key}")
    elif isinstance(value, list | tuple) and any(isinstance(item, Tensor | Mapping | list | tuple) for item in value):
        for index, item in enumerate(value):
            yield from leaves(item, f"{path}/{index}")
    else:
        yield path, value


def digest(values: Contents) -> str:
    """sha256 over names, dtypes, shapes and bytes."""
    total = hashlib.sha256()
    for path in sorted(values):
        value = values[path]
        total.update(path.encode())
        total.update(f"{value.dtype}{tuple(value.shape)}".encode() if isinstance(value, Tensor) else b"")
        total.update(raw(value).numpy().tobytes() if isinstance(value, Tensor) else repr(value).encode())
    return total.hexdigest()


def raw(tensor: Tensor) -> Tensor:
    """The bytes of a tensor, (n_bytes,) in uint8. Comparing them tells 0.0 from -0.0, and equal NaNs are equal."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8)


def compare(first: Contents, second: Contents) -> list[StateDiff]:
    """Compare two checkpoints by section; a section is the first component of a key's path in the state."""
    sections: dict[str, StateDiff] = {}
    for path in dict.fromkeys([*first, *second]):
        name = path.partition("/")[0]
        section = sections.setdefault(name, StateDiff(name=name))
        section.values += 1
        if path not in first or path not in second:
            section.differences.append(f"{path}: only in the {'first' if path in first else 'second'} run")
        elif sentence := difference(first[path], second[path]):
            section.differences.append(f"{path}: {sentence}")
    return list(sections.values())


def difference(first: Any, second: Any) -> str:
    """How two values differ; "" if they have the same bits."""
    if not (isinstance(first, Tensor) and isinstance(second, Tensor)):
        if type(first) is type(second) and repr(first) == repr(second):
            return ""
        return f"{_short(first)} and {_short(second)}"
    kinds = [f"{tensor.dtype} {tuple(tensor.shape)}" for tensor in (first, second)]
    if kinds[0] != kinds[1]:
        return " and ".join(kinds)
    if torch.equal(raw(first), raw(second)):
        return ""
    gaps = (first.double() - second.double()).abs()
    return f"{int((gaps != 0).sum())} of {gaps.numel()} values differ, by at most {float(gaps.max()):.3g}"


def comparable_records(metrics: Path) -> list[dict[str, Any]]:
    """The records of a ``metrics.jsonl`` without the values that depend on the clock."""
    return [{k: v for k, v in record.items() if not k.startswith(CLOCK)} for record in read_metrics(metrics)]


def compare_records(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> StateDiff:
    """Compare the records of two runs in order. If the steps differ, only those are reported."""
    section = StateDiff(name="metrics", values=max(len(first), len(second)))
    steps = [[record["step"] for record in run] for run in (first, second)]
    if steps[0] != steps[1]:
        section.differences.append(f"steps: {_short(steps[0])} and {_short(steps[1])}")
        return section
    for record, counterpart in zip(first, second, strict=True):
        for key in dict.fromkeys([*record, *counterpart]):
            if sentence := difference(record.get(key), counterpart.get(key)):
                section.differences.append(f"{key} of step {record['step']}: {sentence}")
    return section


def table(sections: list[StateDiff]) -> list[str]:
    """Lines of text: what was compared, and the first differences of each section."""
    width = max(len(section.name) for section in sections)
    lines = []
    for section in sections:
        count = f"{section.values} compared"
        outcome = "bitwise equal" if section.equal else f"{len(section.differences)} different"
        lines.append(f"{section.name:<{width}}  {count:>14}  {outcome}")
        lines += [f"{'':<{width}}  {difference}" for difference in section.differences[:SHOWN]]
    return lines


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"

"""Whether two runs are the same run: every tensor, counter and record of theirs, bit by bit, and what differs.

What the clock decides is left out: seconds, speeds, sizes of memory.
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
"""How the names of values begin that no two runs share."""
OF_ONE_RUN = (*CLOCK, "loggers")
"""And of the parts of a checkpoint: a logger keeps the name under which it knows the run."""
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
    """How many were compared: tensors, counters or records."""
    differences: list[str] = field(default_factory=list)
    """A sentence for each that is not the same, beginning with its name."""

    @property
    def equal(self) -> bool:
        """Whether nothing differs."""
        return not self.differences


def contents(checkpoint: Checkpoint) -> Contents:
    """Everything of a checkpoint that a resume depends on, by path; single numbers stand below ``counters``."""
    found = dict(leaves(checkpoint.weights(), "weights"))
    for name, value in checkpoint.state().items():
        if not name.startswith(OF_ONE_RUN):
            found |= leaves(value, name if isinstance(value, dict | list) else f"{COUNTERS}/{name}")
    return found


def leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The tensors and plain values inside nested containers, with their paths."""
    if isinstance(value, Mapping):
        for key in sorted(value, key=str):
            yield from leaves(value[key], f"{path}/{key}")
    elif isinstance(value, list | tuple) and any(isinstance(one, Tensor | Mapping | list | tuple) for one in value):
        for index, one in enumerate(value):
            yield from leaves(one, f"{path}/{index}")
    else:
        yield path, value


def digest(found: Contents) -> str:
    """sha256 over names, types, shapes and bytes."""
    total = hashlib.sha256()
    for path in sorted(found):
        value = found[path]
        total.update(path.encode())
        total.update(f"{value.dtype}{tuple(value.shape)}".encode() if isinstance(value, Tensor) else b"")
        total.update(raw(value).numpy().tobytes() if isinstance(value, Tensor) else repr(value).encode())
    return total.hexdigest()


def raw(tensor: Tensor) -> Tensor:
    """The tensor's bytes."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8)


def compare(one: Contents, other: Contents) -> list[StateDiff]:
    """Section by section, in the order in which they come; a section is the first part of a path."""
    sections: dict[str, StateDiff] = {}
    for path in dict.fromkeys([*one, *other]):
        name = path.partition("/")[0]
        section = sections.setdefault(name, StateDiff(name=name))
        section.values += 1
        if path not in one or path not in other:
            section.differences.append(f"{path}: only in the {'first' if path in one else 'second'} run")
        elif sentence := difference(one[path], other[path]):
            section.differences.append(f"{path}: {sentence}")
    return list(sections.values())


def difference(one: Any, other: Any) -> str:
    """In what two values differ; "" when they have the same bits."""
    if not (isinstance(one, Tensor) and isinstance(other, Tensor)):
        return "" if type(one) is type(other) and repr(one) == repr(other) else f"{_short(one)} and {_short(other)}"
    kinds = [f"{tensor.dtype} {tuple(tensor.shape)}" for tensor in (one, other)]
    if kinds[0] != kinds[1]:
        return " and ".join(kinds)
    if torch.equal(raw(one), raw(other)):
        return ""
    apart = (one.double() - other.double()).abs()
    return f"{int((apart != 0).sum())} of {apart.numel()} values differ, by at most {float(apart.max()):.3g}"


def comparable_records(metrics: Path) -> list[dict[str, Any]]:
    """The records of a ``metrics.jsonl`` without what depends on the clock."""
    return [{k: v for k, v in record.items() if not k.startswith(CLOCK)} for record in read_metrics(metrics)]


def compare_records(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> StateDiff:
    """The records of two runs in their order; a step that is missing, there twice or different is named."""
    section = StateDiff(name="metrics", values=max(len(one), len(other)))
    steps = [[record["step"] for record in run] for run in (one, other)]
    if steps[0] != steps[1]:
        section.differences.append(f"steps: {_short(steps[0])} and {_short(steps[1])}")
        return section
    for first, second in zip(one, other, strict=True):
        for key in dict.fromkeys([*first, *second]):
            if sentence := difference(first.get(key), second.get(key)):
                section.differences.append(f"{key} of step {first['step']}: {sentence}")
    return section


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


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

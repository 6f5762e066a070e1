"""What is known about a metric by its name: its unit, whether less of it is better, and what difference matters."""

import re
from dataclasses import dataclass, replace
from typing import Literal

from tinyllm.errors import UserError

Direction = Literal["lower", "higher"]


@dataclass(frozen=True, kw_only=True)
class MetricKind:
    """A metric that runs can be compared by.

    Attributes:
        name: as it is logged or reported.
        label, unit: for axes and tables.
        short_unit: for sentences.
        lower_is_better: whether smaller values are better.
        effect: the smallest difference worth detecting, unless the user says otherwise.
    """

    name: str
    label: str
    unit: str
    short_unit: str
    lower_is_better: bool
    effect: float


_RULES: tuple[tuple[str, str, str, bool, float], ...] = (
    (r"(val|validation|train|test)/(\S+/)?bpb", "bits per byte", "bpb", True, 0.01),
    (r"(val|train|test)/(\S+/)?(loss|eval_loss)", "nats per token", "nats per token", True, 0.01),
    (r"(val|train|test)/(\S+/)?(ppl|word_ppl)", "perplexity", "of perplexity", True, 0.1),
    (r"((val|test)/|rl/)reward(_\S+)?", "reward", "of reward", False, 0.05),
    (r"(val/)?pref/accuracy", "share of pairs", "of pair accuracy", False, 0.02),
    (r"(val/)?pref/margin", "nats", "nats of margin", False, 0.1),
    (r"task/(\S+/)?(exact|ended|pass@\d+)", "share of answers", "in {name}", False, 0.02),
    (r"win/rate", "share of answers", "of win rate", False, 0.05),
    (r"speed/\S+", "", "in {name}", False, 1.0),
    (r"rl/(kl|truncated|tool_errors)", "", "in {name}", True, 0.01),
    (r"(val|rl)/ended", "share of answers", "in {name}", False, 0.02),
)
"""Pattern of the name, unit, unit in sentences, whether lower is better, effect."""
LABELS = {"val/bpb": "val bpb", "validation/bpb": "bpb on the shared text", "val/loss": "val loss"}


def metric_kind(name: str) -> MetricKind | None:
    """What is known about a metric; None: nothing."""
    for pattern, unit, short, lower, effect in _RULES:
        if re.fullmatch(pattern, name):
            label = LABELS.get(name, name)
            short = short.format(name=name)
            return MetricKind(name=name, label=label, unit=unit, short_unit=short, lower_is_better=lower, effect=effect)
    return None


def chosen_metric(name: str, *, direction: Direction | None) -> MetricKind:
    """The metric with the direction that the user gives, or else the known one.

    Raises:
        UserError: neither is known.
    """
    kind = metric_kind(name)
    if kind is None and direction is None:
        hint = "set direction=lower or direction=higher, which is better"
        raise UserError("nothing is known about the metric", key="metric", value=name, hint=hint)
    if kind is None:
        kind = MetricKind(name=name, label=name, unit="", short_unit=f"in {name}", lower_is_better=True, effect=0.01)
    return kind if direction is None else replace(kind, lower_is_better=direction == "lower")

"""Number formats of a report."""

from collections.abc import Callable
from typing import Any

from tinyllm.errors import one_line
from tinyllm.runs.metric_kinds import metric_kind
from tinyllm.studies.compare.results import Difference
from tinyllm.studies.compare.verdicts import p_value
from tinyllm.utils.text import quantity, short

MISSING = "–"
"""Shown for a number that is not known."""


def or_missing(number: Any, shown: Callable[[Any], str]) -> str:
    """``shown(number)``, or a dash for None."""
    return MISSING if number is None else shown(number)


def metric_name(metric: str) -> str:
    """Display name: ``val bpb`` for ``val/bpb``."""
    kind = metric_kind(metric)
    return metric if kind is None else kind.label


def metric_axis(metric: str) -> str:
    """Axis label: the metric with its unit."""
    kind = metric_kind(metric)
    return f"{kind.label} ({kind.unit})" if kind is not None and kind.unit else metric_name(metric)


def whole(number: int) -> str:
    """All digits of a count: 1043584 is ``1,043,584``."""
    return f"{number:,}"


def brief(number: float | None) -> str:
    """Three digits and a unit; a dash for None."""
    return or_missing(number, short)


def size(number: int) -> str:
    """Bytes with a decimal prefix."""
    return quantity(number, "B")


def rate(number: float) -> str:
    """Tokens per second: whole numbers from 100 on, else three digits."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def value(number: float | None) -> str:
    """A metric to four decimals; a dash for None."""
    return or_missing(number, "{:.4f}".format)


def with_sd(mean: float | None, sd: float | None) -> str:
    """``mean ± sd`` to four decimals."""
    return value(mean) if sd is None else f"{value(mean)} ± {sd:.4f}"


def signed(number: float | None) -> str:
    """A difference to four decimals with its sign; a dash for None."""
    return or_missing(number, "{:+.4f}".format).replace("-", "−")


def interval(difference: Difference | None) -> str:
    """A mean difference ``±`` half the width of its 95 % interval."""
    if difference is None or not difference.seeds:
        return MISSING
    if difference.low is None or difference.high is None:
        return signed(difference.mean)
    return f"{signed(difference.mean)} ± {(difference.high - difference.low) / 2:.4f}"


def probability(p: float | None) -> str:
    """A p-value, with enough digits to tell on which side of the significance level it lies; a dash for None."""
    return or_missing(p, p_value).removeprefix("= ")


def percent(share: float) -> str:
    """A relative difference in percent, with its sign."""
    return f"{100 * share:+.2f} %".replace("-", "−")


def accuracy(share: float) -> str:
    """A share in percent, to one decimal."""
    return f"{100 * share:.1f} %"


def plain_number(number: object) -> str:
    """A setting's value as typed on the command line; floats to six digits."""
    return f"{number:g}" if isinstance(number, float) else one_line(str(number))

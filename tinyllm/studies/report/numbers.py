"""Figures of a comparison as a reader wants them."""

from tinyllm.studies.compare.results import Difference
from tinyllm.studies.compare.verdicts import p_value
from tinyllm.utils.text import duration, plain, quantity, short

MISSING = "–"
"""Stands where there is no figure."""
_METRICS = {
    "val/bpb": ("val bpb", "bits per byte"),
    "val/loss": ("val loss", "nats per token"),
}


def metric_name(metric: str) -> str:
    """``val/bpb`` as one says it."""
    return _METRICS.get(metric, (metric, ""))[0]


def metric_axis(metric: str) -> str:
    """The metric with its unit, for an axis."""
    name, unit = _METRICS.get(metric, (metric, ""))
    return f"{name} ({unit})" if unit else name


def line(text: str) -> str:
    """Text of anywhere as one line without control characters."""
    return plain(" ".join(text.split()))


def whole(number: int | None) -> str:
    """A count, digit by digit: 1043584 is ``1,043,584``."""
    return MISSING if number is None else f"{number:,}"


def brief(number: float | None) -> str:
    """Three digits and a unit."""
    return MISSING if number is None else short(number)


def size(number: int | None) -> str:
    """Bytes with a decimal prefix."""
    return MISSING if number is None else quantity(number, "B")


def rate(number: float | None) -> str:
    """Tokens per second: whole ones, but digits where there are few."""
    if number is None:
        return MISSING
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def clock(seconds: float | None) -> str:
    """A duration."""
    return MISSING if seconds is None else duration(seconds)


def value(number: float | None) -> str:
    """A metric, to four places."""
    return MISSING if number is None else f"{number:.4f}"


def with_sd(mean: float | None, sd: float | None) -> str:
    """``mean ± sd``, to four places."""
    return value(mean) if sd is None else f"{value(mean)} ± {sd:.4f}"


def signed(number: float | None) -> str:
    """A difference, to four places, always with its sign."""
    return MISSING if number is None else f"{number:+.4f}".replace("-", "−")


def interval(one: Difference | None) -> str:
    """A mean difference ``±`` half of its 95 % interval."""
    if one is None or not one.seeds:
        return MISSING
    if one.low is None or one.high is None:
        return signed(one.mean)
    return f"{signed(one.mean)} ± {(one.high - one.low) / 2:.4f}"


def probability(p: float | None) -> str:
    """A p-value, with as many digits as tell on which side of the level it is."""
    return MISSING if p is None else p_value(p).removeprefix("= ")


def percent(share: float | None) -> str:
    """A relative difference, always with its sign."""
    return MISSING if share is None else f"{100 * share:+.2f} %".replace("-", "−")


def plain_number(number: object) -> str:
    """A setting's value as one types it; floats to six digits."""
    return f"{number:g}" if isinstance(number, float) else line(str(number))

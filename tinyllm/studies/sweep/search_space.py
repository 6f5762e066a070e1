"""The search space: the distribution of each key that has several values or an interval on the command line."""

import math
from collections.abc import Iterable
from typing import Any

from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from tinyllm.errors import UserError

GRAMMAR = "e.g. optimizer.lr=tag(log,interval(1e-4,1e-2)), attn=choice(mha,gqa), model.n_layers=range(2,9)"


def space_of(overrides: Iterable[Override]) -> dict[str, BaseDistribution]:
    """The distribution of each key to search over.

    Raises:
        UserError: there is no such key, or a distribution is invalid.
    """
    space = {
        override.get_key_element(): distribution(override) for override in overrides if override.is_sweep_override()
    }
    if not space:
        hint = f"give a key several values, {GRAMMAR}"
        raise UserError("nothing to search for", file="hydra/sweeper=search", hint=hint)
    return space


def distribution(override: Override) -> BaseDistribution:
    """The distribution of one key.

    ``interval`` draws real numbers and ``int(interval(…))`` integers, log-uniform with ``tag(log, …)``; ``range``
    draws from equally spaced numbers; ``choice`` and ``a,b`` draw from unordered categories.

    Raises:
        UserError: an empty or non-finite range, a logarithmic scale where none is possible, an unknown tag.
    """
    sweep: Any = override.value()
    tags = set(getattr(sweep, "tags", ()))
    log = "log" in tags
    if unknown := tags - {"log"}:
        raise _invalid(override, f"unknown tag {min(unknown)}", "the only tag is log")
    if isinstance(sweep, IntervalSweep):
        low, high = sweep.start, sweep.end
        if low is None or high is None or not low < high or not math.isfinite(high - low):
            raise _invalid(override, "not an interval", "give the lower end, then the higher end")
        if log and low <= 0:
            raise _invalid(override, "a logarithmic scale cannot start at 0 or below", "the lower end must be positive")
        if isinstance(low, int) and isinstance(high, int):
            return IntDistribution(low, high, log=log)
        return FloatDistribution(float(low), float(high), log=log)
    if log:
        raise _invalid(override, "a list of values has no logarithmic scale", "tag(log, …) is for interval(…)")
    if isinstance(sweep, RangeSweep):
        values = sorted(sweep.range())
        if not values:
            raise _invalid(override, "an empty range", "range(start, end, step) does not include the end")
        step = abs(sweep.step)
        if all(isinstance(value, int) for value in values):
            return IntDistribution(values[0], values[-1], step=int(step))
        return FloatDistribution(values[0], values[0] + step * (len(values) - 1), step=step)
    if isinstance(sweep, ChoiceSweep):
        return CategoricalDistribution(list(dict.fromkeys(override.sweep_string_iterator())))
    raise _invalid(override, "a search cannot draw from this", GRAMMAR)


def _invalid(override: Override, what: str, hint: str) -> UserError:
    value = str(override.input_line).partition("=")[2]
    return UserError(what, key=override.get_key_element(), value=value, hint=hint)

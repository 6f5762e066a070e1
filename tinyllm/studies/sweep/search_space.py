"""What a search may choose from, in Hydra's grammar on the command line."""

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep

from tinyllm.errors import UserError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

GRAMMAR = "e.g. optimizer.lr=tag(log,interval(1e-4,1e-2)), attn=choice(mha,gqa), model.n_layers=range(2,9)"


def space_of(overrides: Iterable[Override]) -> dict[str, "BaseDistribution"]:
    """The distribution of each key that has several values or an interval.

    Raises:
        UserError: there is none, or one that makes no sense.
    """
    space = {one.get_key_element(): distribution(one) for one in overrides if one.is_sweep_override()}
    if not space:
        raise UserError(
            "nothing to search for", file="hydra/sweeper=search", hint=f"give a key several values, {GRAMMAR}"
        )
    return space


def distribution(override: Override) -> "BaseDistribution":
    """What one key is drawn from.

    ``interval`` is a range of real numbers, ``int(interval(…))`` one of whole numbers, both evenly on a logarithmic
    scale with ``tag(log, …)``; ``range`` is a row of numbers, ``choice`` and ``a,b`` are names without an order.

    Raises:
        UserError: it makes no sense.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    sweep: Any = override.value()
    log = "log" in getattr(sweep, "tags", ())
    unknown = set(getattr(sweep, "tags", ())) - {"log"}
    if unknown:
        raise _senseless(override, f"unknown tag {min(unknown)}", "the one tag is log")
    if isinstance(sweep, IntervalSweep):
        low, high = sweep.start, sweep.end
        if low is None or high is None or not low < high or not math.isfinite(high - low):
            raise _senseless(override, "an interval without numbers in it", "the lower end, then the higher one")
        if log and low <= 0:
            raise _senseless(override, "a logarithmic scale from 0 or below", "the lower end has to be above 0")
        if isinstance(low, int) and isinstance(high, int):
            return IntDistribution(low, high, log=log)
        return FloatDistribution(float(low), float(high), log=log)
    if log:
        raise _senseless(override, "a logarithmic scale of single values", "tag(log, …) is for interval(…)")
    if isinstance(sweep, RangeSweep):
        values = sorted(sweep.range())
        if not values:
            raise _senseless(override, "a range without numbers in it", "range(start, end, step), the end not included")
        step = abs(sweep.step)
        if all(isinstance(value, int) for value in values):
            return IntDistribution(values[0], values[-1], step=int(step))
        return FloatDistribution(values[0], values[0] + step * (len(values) - 1), step=step)
    if isinstance(sweep, ChoiceSweep):
        return CategoricalDistribution(list(dict.fromkeys(override.sweep_string_iterator())))
    raise _senseless(override, "nothing a search can draw from", GRAMMAR)


def _senseless(override: Override, what: str, hint: str) -> UserError:
    typed = str(override.input_line).partition("=")[2]
    return UserError(what, key=override.get_key_element(), value=typed, hint=hint)

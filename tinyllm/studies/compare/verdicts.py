"""Verdicts: one sentence per arm that claims no more than the statistics support."""

import math
from collections.abc import Sequence

from tinyllm.runs.metric_kinds import metric_kind
from tinyllm.studies.compare.results import Difference
from tinyllm.studies.compare.statistics import LEVEL, POWER


def unit_of(metric: str) -> str:
    """The unit of a metric in a sentence; an unknown metric is named instead."""
    kind = metric_kind(metric)
    return metric if kind is None else kind.short_unit


def verdicts(
    differences: Sequence[Difference],
    *,
    reference: str,
    metric: str,
    effect: float,
    arms: Sequence[str] = (),
    level: float | None = None,
    lower_is_better: bool = True,
) -> list[str]:
    """One sentence per arm other than the reference, then one that explains ± and p.

    An arm is called better or worse only if its corrected p-value is below ``LEVEL``.

    Args:
        differences: the differences of the arms that share finished seeds with the reference.
        reference: name of the reference arm.
        metric: the compared metric.
        effect: the smallest difference worth detecting.
        arms: names of all arms, in order, to report those without a shared seed.
        level: the reference's own value. No arm can be better by more, so a larger detectable difference is noise.
            Not where higher is better.
        lower_is_better: of the metric.
    """
    unit = unit_of(metric)
    level = level if lower_is_better else None
    sentences = {diff.arm: _sentence(diff, reference, unit, effect, level, lower_is_better) for diff in differences}
    others = [arm for arm in dict.fromkeys([*arms, *sentences]) if arm != reference]
    if others and not sentences:
        return [f"no verdict: no other arm shares a finished seed with {reference}"]
    listed = [sentences.get(arm, f"{arm} against {reference}: no seed has finished in both") for arm in others]
    return [*listed, *_legend(differences)]


def _legend(differences: Sequence[Difference]) -> list[str]:
    tested = sum(diff.p is not None for diff in differences)
    if not tested:
        return []
    corrected = f", corrected for {tested} comparisons (Holm)" if tested > 1 else ""
    return [f"± is half the width of the 95 % interval of a difference; p is of a two-sided paired t test{corrected}"]


def _sentence(
    diff: Difference, reference: str, unit: str, effect: float, level: float | None, lower_is_better: bool
) -> str:
    n, pair = len(diff.seeds), f"{diff.arm} against {reference}"
    if diff.sd is None or diff.low is None or diff.high is None:
        return (
            f"{pair}: {_signed(diff.mean, abs(diff.mean))} {unit} with the only shared seed; "
            "one seed does not measure the noise"
        )
    half = (diff.high - diff.low) / 2
    if diff.sd == 0:
        return _without_spread(diff, pair, unit)
    if diff.p is None or diff.p_corrected is None or diff.detectable is None or diff.seeds_needed is None:
        raise ValueError(f"the differences of {diff.arm} spread but have no test")
    if diff.p_corrected < LEVEL:
        word = "better" if (diff.mean < 0) == lower_is_better else "worse"
        rest = f"; less than {effect:g}, the smallest difference worth detecting" if abs(diff.mean) < effect else ""
        size = f"{rounded(abs(diff.mean), half)} ± {rounded(half, half)}"
        return f"{diff.arm} is {word} than {reference} by {size} {unit} (n = {n}, p {p_value(diff.p_corrected)}){rest}"
    measured = f"measured {_signed(diff.mean, half)} ± {rounded(half, half)}, p {p_value(diff.p_corrected)}"
    detectable = rounded(diff.detectable, diff.detectable)
    if level is not None and diff.detectable > level:
        return (
            f"{pair}: inconclusive with {n} seeds: the smallest detectable difference exceeds the reference's own value"
            f" ({measured})"
        )
    start = f"{pair}: no difference above {detectable} {unit} can be detected with {n} seeds ({measured})"
    return f"{start}; {_outlook(diff, n, half, effect)}"


def _outlook(diff: Difference, n: int, half: float, effect: float) -> str:
    """What more seeds would achieve where no difference was detected."""
    assert diff.low is not None and diff.high is not None and diff.seeds_needed is not None and diff.p is not None
    if -effect < diff.low and diff.high < effect:
        return f"a difference of {effect:g} is outside the 95 % interval"
    if diff.seeds_needed <= n:
        return f"a difference of {effect:g} would have been detected with a probability of {POWER:g}"
    wide = f" (the interval of ± {rounded(half, half)} is wider than that)" if half > effect else ""
    alone = "; significant on its own, but not among this many comparisons" if diff.p < LEVEL else ""
    return f"{diff.seeds_needed} seeds would be needed to detect {effect:g}{wide}{alone}"


def _without_spread(diff: Difference, pair: str, unit: str) -> str:
    n = len(diff.seeds)
    if diff.p is not None:
        return f"{pair}: identical in all {n} seeds"
    size = _signed(diff.mean, abs(diff.mean))
    return f"{pair}: {size} {unit} in each of {n} seeds; they do not vary, so there is no noise to test against"


def rounded(value: float, uncertainty: float) -> str:
    """A value rounded to the first digit of the uncertainty, or to two digits if the first is 1 or 2."""
    if not math.isfinite(value) or uncertainty <= 0:
        return f"{value:.3g}"
    digits = -math.floor(math.log10(uncertainty))
    if round(uncertainty * 10 ** (digits + 1)) < 30:
        digits += 1
    return f"{round(value, digits):.{max(0, digits)}f}"


def _signed(value: float, uncertainty: float) -> str:
    return ("−" if value < 0 else "+") + rounded(abs(value), uncertainty)


def p_value(p: float) -> str:
    """``= 0.012`` or ``< 0.001``, with enough digits to tell on which side of ``LEVEL`` it lies."""
    if p < 0.0005:
        return "< 0.001"
    digits = 3
    while (round(p, digits) < LEVEL) != (p < LEVEL):
        digits += 1
    return f"= {p:.{digits}f}"

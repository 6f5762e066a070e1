"""What a comparison allows to say, in sentences that say no more than the figures do."""

import math
from collections.abc import Sequence

from tinyllm.studies.compare.results import Difference
from tinyllm.studies.compare.statistics import LEVEL, POWER

UNITS = {"val/bpb": "bpb", "val/loss": "nats per token"}
"""By metric; another one is its own unit."""


def verdicts(
    differences: Sequence[Difference],
    *,
    reference: str,
    metric: str,
    effect: float,
    arms: Sequence[str] = (),
    level: float | None = None,
) -> list[str]:
    """One sentence for each arm but the reference, then what all of them mean.

    An arm is better or worse only where the corrected p-value is below ``LEVEL``.

    Args:
        differences: of the arms that share finished seeds with the reference.
        reference: its name.
        metric: what differs; less is better.
        effect: the difference that is worth seeing.
        arms: names of all arms, in order, so that those without such a seed are told.
        level: the reference's own figure. No arm can be better by more, so a difference above it is none to look for.
    """
    unit = UNITS.get(metric, metric)
    told = {one.arm: _sentence(one, reference, unit, effect, level) for one in differences}
    others = [arm for arm in dict.fromkeys([*arms, *told]) if arm != reference]
    if others and not told:
        return [f"nothing can be said: no other arm has finished a seed that {reference} has finished as well"]
    sentences = [told.get(arm, f"{arm} against {reference}: no seed has finished in both") for arm in others]
    return [*sentences, *_meaning(differences)]


def _meaning(differences: Sequence[Difference]) -> list[str]:
    tested = sum(one.p is not None for one in differences)
    if not tested:
        return []
    corrected = f", corrected for {tested} comparisons (Holm)" if tested > 1 else ""
    return [
        f"± is half of the 95 % interval of one difference; p is of the two-sided paired t test over seeds{corrected}"
    ]


def _sentence(one: Difference, reference: str, unit: str, effect: float, level: float | None) -> str:
    n, pair = len(one.seeds), f"{one.arm} against {reference}"
    if one.sd is None or one.low is None or one.high is None:
        return (
            f"{pair}: {_signed(one.mean, abs(one.mean))} {unit} with the one seed that both have, "
            "and one seed says nothing about noise"
        )
    half = (one.high - one.low) / 2
    if one.sd == 0:
        return _without_spread(one, pair, unit)
    if one.p is None or one.p_corrected is None or one.detectable is None or one.seeds_needed is None:
        raise ValueError(f"differences of {one.arm} that spread have a test")
    if one.p_corrected < LEVEL:
        word = "better" if one.mean < 0 else "worse"
        rest = f"; that is less than {effect:g}, the least worth seeing" if abs(one.mean) < effect else ""
        size = f"{rounded(abs(one.mean), half)} ± {rounded(half, half)}"
        return f"{one.arm} is {word} than {reference} by {size} {unit} (n = {n}, p {p_value(one.p_corrected)}){rest}"
    measured = f"measured {_signed(one.mean, half)} ± {rounded(half, half)}, p {p_value(one.p_corrected)}"
    seen = rounded(one.detectable, one.detectable)
    if level is not None and one.detectable > level:
        return (
            f"{pair}: {n} seeds show nothing, their differences spread by more than the figures themselves ({measured})"
        )
    start = f"{pair}: no difference above {seen} {unit} can be seen with {n} seeds ({measured})"
    return f"{start}; {_outlook(one, n, half, effect)}"


def _outlook(one: Difference, n: int, half: float, effect: float) -> str:
    """What more seeds would bring to a difference that is not seen."""
    assert one.low is not None and one.high is not None and one.seeds_needed is not None and one.p is not None
    if -effect < one.low and one.high < effect:
        return f"one of {effect:g} is outside its 95 % interval"
    if one.seeds_needed <= n:
        return f"one of {effect:g} would have been seen with a probability of {POWER:g}"
    wide = f" (the interval of ± {rounded(half, half)} is wider than that)" if half > effect else ""
    alone = "; alone it would pass, among so many comparisons it does not" if one.p < LEVEL else ""
    return f"{one.seeds_needed} would be needed to see {effect:g}{wide}{alone}"


def _without_spread(one: Difference, pair: str, unit: str) -> str:
    n = len(one.seeds)
    if one.p is not None:
        return f"{pair}: the same to the last digit in all {n} seeds"
    size = _signed(one.mean, abs(one.mean))
    return f"{pair}: {size} {unit} in each of {n} seeds without any spread, so there is no noise to test it against"


def rounded(value: float, uncertainty: float) -> str:
    """A figure to the digits that its uncertainty leaves it: one digit of that, two if the first is 1 or 2."""
    if not math.isfinite(value) or uncertainty <= 0:
        return f"{value:.3g}"
    digits = -math.floor(math.log10(uncertainty))
    if round(uncertainty * 10 ** (digits + 1)) < 30:
        digits += 1
    return f"{round(value, digits):.{max(0, digits)}f}"


def _signed(value: float, uncertainty: float) -> str:
    return ("−" if value < 0 else "+") + rounded(abs(value), uncertainty)


def p_value(p: float) -> str:
    """``= 0.012`` or ``< 0.001``, with as many digits as tell on which side of ``LEVEL`` it is."""
    if p < 0.0005:
        return "< 0.001"
    digits = 3
    while (round(p, digits) < LEVEL) != (p < LEVEL):
        digits += 1
    return f"= {p:.{digits}f}"

"""What seeds say about the difference between two arms: paired tests, intervals and power, all by libraries.

Two runs of one seed share the order of the data and the random streams, so what the seed does to both cancels in their
difference. The tests are Student's on those differences; Holm's method keeps the probability of one false alarm
among all arms of a study at ``LEVEL`` (Holm 1979, A simple sequentially rejective multiple test procedure).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm, ttest_1samp
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from tinyllm.studies.compare.results import Difference

LEVEL = 0.05
"""Two-sided, for all arms of a study together."""
POWER = 0.8
"""Probability with which a difference that is there is to be seen."""
LARGEST = 1e100
"""Figures beyond it are left out like infinite ones: their squares, which a variance is made of, are infinite."""
RESOLUTION = 1e-12
"""Differences that spread less than this, relative to the figures, are equal but for rounding."""


def differences(
    values: Mapping[str, Mapping[int, float]], *, reference: str, effect: float, tests: int | None = None
) -> list[Difference]:
    """Every arm against the reference, paired by the seeds that both have; an arm without such a seed is left out.

    Where the differences of an arm do not spread at all there is no test: p is 1 if they are all zero, None if they
    are not.

    Args:
        values: the metric by arm and seed, of finished runs; what is not finite is left out.
        effect: the difference that is worth seeing.
        tests: comparisons that the power is planned for; None: the arms that are compared here.
    """
    values = {
        arm: {seed: value for seed, value in found.items() if abs(value) <= LARGEST} for arm, found in values.items()
    }
    base = values.get(reference, {})
    pairs = {
        arm: {seed: found[seed] - base[seed] for seed in sorted(found.keys() & base.keys())}
        for arm, found in values.items()
        if arm != reference
    }
    pairs = {arm: pair for arm, pair in pairs.items() if pair}
    largest = max((abs(value) for found in values.values() for value in found.values()), default=0.0)
    level = LEVEL / (tests or len(pairs) or 1)
    found = [_difference(arm, pair, largest * RESOLUTION, effect, level) for arm, pair in pairs.items()]
    return _with_corrected(found)


def _difference(arm: str, pair: Mapping[int, float], resolution: float, effect: float, level: float) -> Difference:
    mean, sd = mean_and_sd(list(pair.values()))
    low: float | None = None
    high: float | None = None
    p: float | None = None
    detectable: float | None = None
    needed: int | None = None
    if sd is not None and sd <= resolution:
        low, high, sd, detectable, needed = mean, mean, 0.0, 0.0, 2
        p = 1.0 if abs(mean) <= resolution else None
    elif sd is not None:
        low, high, p = interval_and_p(list(pair.values()))
        detectable = sd * detectable_ratio(len(pair), level)
        needed = seeds_needed(sd, effect=effect, level=level)
    return Difference(
        arm=arm,
        seeds=list(pair),
        mean=mean,
        sd=sd,
        low=low,
        high=high,
        p=p,
        p_corrected=None,
        detectable=detectable,
        seeds_needed=needed,
    )


def _with_corrected(found: Sequence[Difference]) -> list[Difference]:
    """The same with Holm's correction over those that have a p-value."""
    plain = [one.p for one in found if one.p is not None]
    corrected = iter(multipletests(plain, alpha=LEVEL, method="holm")[1] if plain else ())
    return [one if one.p is None else replace(one, p_corrected=float(next(corrected))) for one in found]


def mean_and_sd(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation (n - 1); None: fewer than two values."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def interval_and_p(values: Sequence[float]) -> tuple[float, float, float]:
    """The 95 % interval of the mean of two values or more that differ, and the p-value of its being zero."""
    test = ttest_1samp(values, 0.0)
    interval = test.confidence_interval(1 - LEVEL)
    return float(interval.low), float(interval.high), float(test.pvalue)


def power(ratio: float, n: int, level: float = LEVEL) -> float:
    """Probability that n pairs show a mean of ``ratio`` standard deviations, with its sign, at a two-sided level."""
    # the wrong side, which the two-sided form adds, is as good as never, and scipy gives nan for it now and then
    return float(TTestPower().power(ratio, n, level / 2, alternative="larger"))


@cache
def detectable_ratio(n: int, level: float = LEVEL) -> float:
    """The mean, in standard deviations of the differences, that n pairs show with a power of ``POWER``."""
    high = 1.0
    while power(high, n, level) < POWER:
        high *= 2
    return float(brentq(lambda ratio: power(ratio, n, level) - POWER, 0.0, high, xtol=1e-9))


def seeds_needed(sd: float, *, effect: float, level: float = LEVEL) -> int:
    """The fewest seeds, two at least, with which a paired t test shows ``effect`` with a power of ``POWER``.

    Args:
        sd: of the paired differences, taken as known: an estimate from a few seeds may be far off.
        effect: above zero.
        level: two-sided.
    """
    ratio = effect / sd
    n = max(2, round(((norm.isf(level / 2) + norm.ppf(POWER)) / ratio) ** 2))  # with sd known; a few more are needed
    while power(ratio, n, level) < POWER:
        n += 1
    while n > 2 and power(ratio, n - 1, level) >= POWER:
        n -= 1
    return n

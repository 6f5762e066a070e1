"""The statistics of a comparison: paired t tests, confidence intervals and power, computed by scipy and statsmodels.

Two runs with the same seed share the order of the data and the random streams, so the effect of the seed cancels in
their difference, and Student's t test is applied to the differences. Holm's method keeps the probability of any false
alarm among all arms of a study at ``LEVEL`` (Holm 1979, A simple sequentially rejective multiple test procedure).
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
"""Two-sided significance level, for all arms of a study together."""
POWER = 0.8
"""Probability of detecting a difference that exists, for which seeds are planned."""
OVERFLOW_LIMIT = 1e100
"""Larger values are left out like infinite ones: their squares overflow in the variance."""
RESOLUTION = 1e-12
"""Differences with a smaller standard deviation, relative to the values, are equal up to rounding."""


def differences(
    values: Mapping[str, Mapping[int, float]], *, reference: str, effect: float, tests: int | None = None
) -> list[Difference]:
    """Compare every arm with the reference, paired by seed; arms sharing no seed with the reference are skipped.

    Identical differences allow no t test: p is 1 if they are all zero, else None.

    Args:
        values: the metric of finished runs, by arm and seed; non-finite values are left out.
        effect: the smallest difference worth detecting.
        tests: number of comparisons to plan the power for; None: the arms compared here.
    """
    values = {
        arm: {seed: value for seed, value in by_seed.items() if abs(value) <= OVERFLOW_LIMIT}
        for arm, by_seed in values.items()
    }
    base = values.get(reference, {})
    paired = {
        arm: {seed: by_seed[seed] - base[seed] for seed in sorted(by_seed.keys() & base.keys())}
        for arm, by_seed in values.items()
        if arm != reference
    }
    paired = {arm: by_seed for arm, by_seed in paired.items() if by_seed}
    largest = max((abs(value) for by_seed in values.values() for value in by_seed.values()), default=0.0)
    level = LEVEL / (tests or len(paired) or 1)  # Holm's smallest level, so the power holds in the worst case
    return _with_holm(
        [_difference(arm, by_seed, largest * RESOLUTION, effect, level) for arm, by_seed in paired.items()]
    )


def _difference(arm: str, by_seed: Mapping[int, float], resolution: float, effect: float, level: float) -> Difference:
    mean, sd = mean_and_sd(list(by_seed.values()))
    low: float | None = None
    high: float | None = None
    p: float | None = None
    detectable: float | None = None
    needed: int | None = None
    if sd is not None and sd <= resolution:
        low, high, sd, detectable, needed = mean, mean, 0.0, 0.0, 2
        p = 1.0 if abs(mean) <= resolution else None
    elif sd is not None:
        low, high, p = interval_and_p(list(by_seed.values()))
        detectable = sd * detectable_ratio(len(by_seed), level)
        needed = seeds_needed(sd, effect=effect, level=level)
    return Difference(
        arm=arm,
        seeds=list(by_seed),
        mean=mean,
        sd=sd,
        low=low,
        high=high,
        p=p,
        p_corrected=None,
        detectable=detectable,
        seeds_needed=needed,
    )


def _with_holm(diffs: Sequence[Difference]) -> list[Difference]:
    """The differences with p-values corrected by Holm's method."""
    raw = [diff.p for diff in diffs if diff.p is not None]
    corrected = iter(multipletests(raw, alpha=LEVEL, method="holm")[1] if raw else ())
    return [diff if diff.p is None else replace(diff, p_corrected=float(next(corrected))) for diff in diffs]


def mean_and_sd(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation (n - 1); the latter is None for fewer than two values."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def interval_and_p(values: Sequence[float]) -> tuple[float, float, float]:
    """The 95 % interval of the mean, and the p-value of a mean of zero, for two or more values that differ."""
    test = ttest_1samp(values, 0.0)
    interval = test.confidence_interval(1 - LEVEL)
    return float(interval.low), float(interval.high), float(test.pvalue)


def power(ratio: float, n: int, level: float = LEVEL) -> float:
    """Probability that n pairs detect a mean of ``ratio`` standard deviations, with its sign, at a two-sided level."""
    # The two-sided form adds the probability of the wrong sign, which is negligible and which scipy sometimes returns
    # as nan.
    return float(TTestPower().power(ratio, n, level / 2, alternative="larger"))


@cache  # depends on n and level alone, and the root search is slow
def detectable_ratio(n: int, level: float = LEVEL) -> float:
    """The mean, in standard deviations of the differences, that n pairs detect with a power of ``POWER``."""
    high = 1.0
    while power(high, n, level) < POWER:
        high *= 2
    return float(brentq(lambda ratio: power(ratio, n, level) - POWER, 0.0, high, xtol=1e-9))


def seeds_needed(sd: float, *, effect: float, level: float = LEVEL) -> int:
    """The smallest number of seeds with which a paired t test detects ``effect`` with a power of ``POWER``; at least 2.

    Args:
        sd: standard deviation of the paired differences, taken as exact: an estimate from a few seeds may be far off.
        effect: the difference to detect, positive.
        level: two-sided significance level.
    """
    ratio = effect / sd
    normal = ((norm.isf(level / 2) + norm.ppf(POWER)) / ratio) ** 2  # a t test needs a few more
    n = max(2, round(normal))
    while power(ratio, n, level) < POWER:
        n += 1
    while n > 2 and power(ratio, n - 1, level) >= POWER:
        n -= 1
    return n

"""Win rate: how often the answers of one model are better than those of another, with an interval."""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

LEVEL = 0.95
"""Confidence level of the interval."""


class WinRate(NamedTuple):
    """Counts of comparisons, and the share of wins in which a tie counts half, with its interval."""

    wins: int
    ties: int
    losses: int
    rate: float
    low: float
    high: float


def win_rate(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]]) -> WinRate:
    """The win rate of the first model over the second.

    Args:
        first, second: by prompt, the rewards of each model's answers; answer k is compared with answer k.

    Returns:
        The interval is that of :func:`wilson` with the prompts as trials, whose outcome is the mean over their answers.
    """
    outcomes = [
        [(a > b) + (a == b) / 2 for a, b in zip(one, other, strict=True)]
        for one, other in zip(first, second, strict=True)
    ]
    every = [outcome for of_prompt in outcomes for outcome in of_prompt]
    rate = math.fsum(every) / len(every)
    low, high = wilson(rate, len(outcomes))
    return WinRate(every.count(1.0), every.count(0.5), every.count(0.0), rate, low, high)


def wilson(share: float, n: int, *, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's score interval of a share of ``n`` trials (Wilson 1927, doi:10.1080/01621459.1927.10502953).

    Where trials have outcomes between 0 and 1, such as ties, their variance is at most that of a coin with the same
    mean, so the interval is then rather too wide.
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)

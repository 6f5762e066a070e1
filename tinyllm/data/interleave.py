"""Interleaving sources by their shares: which source a sample comes from, as a function of its number.

The shares become whole numbers of windows in a period. Within a period, window t goes to the source with the earliest
deadline among those that may receive one: after every number of windows, each source has received its share, rounded
up or down (the chairman assignment problem: Tijdeman 1980, Discrete Mathematics 32, 323-330; the rule by deadlines is
that of Pfair scheduling: Baruah et al. 1996, Algorithmica 15, 600-625). The next period repeats it.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import gcd, lcm

import numpy as np

LONGEST_PERIOD = 2**16
"""Shares that need a longer period are rounded to multiples of its inverse."""


def period_counts(weights: Sequence[float]) -> list[int]:
    """Windows of each source in a period; each source with a positive weight has at least one.

    Decimal weights are taken as written, so that 0.7, 0.25 and 0.05 are 14, 5 and 1 of 20 windows.

    Args:
        weights: ≥ 0, not all 0.
    """
    exact = [Fraction(str(weight)) for weight in weights]
    total = sum(exact)
    shares = [weight / total for weight in exact]
    period = lcm(*(share.denominator for share in shares))
    if period <= LONGEST_PERIOD:
        return [int(share * period) for share in shares]
    counts = [max(int(share * LONGEST_PERIOD), int(share > 0)) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda i: (counts[i] - shares[i] * LONGEST_PERIOD, i))
    missing = LONGEST_PERIOD - sum(counts)
    if missing > 0:
        for i in by_remainder[:missing]:
            counts[i] += 1
    else:
        counts[max(range(len(counts)), key=counts.__getitem__)] += missing
    divisor = gcd(*counts)
    return [count // divisor for count in counts]


@dataclass(frozen=True)
class Interleaving:
    """An endless sequence of sources, repeated after ``sum(counts)`` windows.

    Attributes:
        counts: windows of each source in a period.
    """

    counts: tuple[int, ...]

    @property
    def period(self) -> int:
        """Windows in a period."""
        return sum(self.counts)

    @cached_property
    def sources(self) -> np.ndarray:
        """The source of each window of a period, int64 (period,)."""
        period = self.period
        # Window k of a source may come from slot floor(k / share) on, and has to be one of the slots before
        # ceil((k + 1) / share).
        released: list[tuple[int, int, int]] = []
        waiting = [(0, source, 0) for source, count in enumerate(self.counts) if count]
        heapq.heapify(waiting)
        order = np.empty(period, dtype=np.int64)
        for slot in range(period):
            while waiting and waiting[0][0] <= slot:
                _, source, k = heapq.heappop(waiting)
                heapq.heappush(released, (-(-(k + 1) * period // self.counts[source]), source, k))
            _, source, k = heapq.heappop(released)
            order[slot] = source
            if k + 1 < self.counts[source]:
                heapq.heappush(waiting, ((k + 1) * period // self.counts[source], source, k + 1))
        return order

    @cached_property
    def ranks(self) -> np.ndarray:
        """How many windows of the period before each one have the same source, int64 (period,)."""
        ranks = np.empty(self.period, dtype=np.int64)
        for source, count in enumerate(self.counts):
            ranks[self.sources == source] = np.arange(count)
        return ranks

    def at(self, windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The source of each window, and its number among the windows of that source."""
        periods, slots = np.divmod(windows, self.period)
        sources = self.sources[slots]
        return sources, periods * np.asarray(self.counts, dtype=np.int64)[sources] + self.ranks[slots]

    def totals(self, n: int) -> np.ndarray:
        """How many of the first ``n`` windows each source receives, int64."""
        periods, rest = divmod(n, self.period)
        in_rest = np.bincount(self.sources[:rest], minlength=len(self.counts))
        return periods * np.asarray(self.counts, dtype=np.int64) + in_rest

"""Interleaving sources by their shares: which source each sample comes from, as a function of its number.

The target of a source is the sum of its shares over the samples so far. After every number of samples, each source has
received its target, rounded up or down, also while the shares change. That such an order exists for any shares is a
result on the chairman assignment problem (Tijdeman 1980, Discrete Mathematics 32, 323-330). Earliest deadline first
finds one, as in Pfair scheduling (Baruah et al. 1996, Algorithmica 15, 600-625): the k-th sample of a source may come
as soon as its target exceeds k - 1, and must have come when the target reaches k.

While the shares are constant, the order soon repeats itself. So it is stored as a few patterns with numbers of
repetitions, and any sample is found without those before it.
"""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import numpy as np

LONGEST_PERIOD = 2**16
"""Shares that repeat only after more samples are rounded to multiples of its inverse."""


def period_counts(weights: Sequence[float]) -> list[int]:
    """Samples of each source in a period; each source with a positive weight has at least one.

    Decimal weights are taken as written, so that 0.7, 0.25 and 0.05 are 14, 5 and 1 of 20 samples.

    Args:
        weights: ≥ 0, not all 0.
    """
    exact = [Fraction(str(weight)) for weight in weights]
    total = sum(exact)
    shares = [weight / total for weight in exact]
    period = math.lcm(*(share.denominator for share in shares))
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
    divisor = math.gcd(*counts)
    return [count // divisor for count in counts]


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Constant shares from a sample on.

    Attributes:
        start: the first sample.
        counts: the shares, as samples of each source in a period of ``sum(counts)`` samples.
    """

    start: int
    counts: tuple[int, ...]

    @property
    def period(self) -> int:
        """Samples after which the targets of all sources have grown by whole numbers."""
        return sum(self.counts)


@dataclass(frozen=True, kw_only=True)
class _Pattern:
    """A stretch of the order, repeated up to the start of the next one.

    Attributes:
        start: its first sample.
        before: samples of each source before it, int64 (n_sources,).
        sources: the sources of its samples, int64 (length,).
        ranks: how many of the samples before have the same source, int64 (length,).
        counts: samples of each source, int64 (n_sources,).
    """

    start: int
    before: np.ndarray
    sources: np.ndarray
    ranks: np.ndarray
    counts: np.ndarray


class Interleaving:
    """An endless sequence of sources.

    Args:
        phases: the shares, by rising start; the first phase starts at 0.
    """

    def __init__(self, phases: Sequence[Phase]) -> None:
        self.phases = tuple(phases)
        self._taken = np.zeros(len(phases[0].counts), dtype=np.int64)
        self._patterns: list[_Pattern] = []
        targets = _Targets(phases)
        for number, phase in enumerate(phases):
            end = phases[number + 1].start if number + 1 < len(phases) else None
            self._arrange(targets, number, phase, end)
        self._starts = np.array([pattern.start for pattern in self._patterns], dtype=np.int64)

    def at(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The source of each sample, and its number among the samples of that source, int64."""
        samples = np.asarray(samples, dtype=np.int64)
        sources, numbers = np.empty_like(samples), np.empty_like(samples)
        places = np.searchsorted(self._starts, samples, side="right") - 1
        for place in sorted(set(places.tolist())):
            pattern, here = self._patterns[place], places == place
            rounds, slots = np.divmod(samples[here] - pattern.start, len(pattern.sources))
            chosen = pattern.sources[slots]
            sources[here] = chosen
            numbers[here] = pattern.before[chosen] + rounds * pattern.counts[chosen] + pattern.ranks[slots]
        return sources, numbers

    def totals(self, n: int) -> np.ndarray:
        """How many of the first ``n`` samples each source receives, int64 (n_sources,)."""
        pattern = self._patterns[int(np.searchsorted(self._starts, n, side="right")) - 1]
        rounds, rest = divmod(n - pattern.start, len(pattern.sources))
        in_rest = np.bincount(pattern.sources[:rest], minlength=len(pattern.counts))
        return pattern.before + rounds * pattern.counts + in_rest

    def _arrange(self, targets: "_Targets", number: int, phase: Phase, end: int | None) -> None:
        """Append the patterns of a phase, up to the sample ``end`` (None: there is none)."""
        queue = _Queue(targets, number, phase.start, self._taken.tolist())
        order, repeated = _until_repetition(queue, phase, end)
        first = len(order) - repeated
        self._append(order[:first])
        if not repeated:
            return
        # Deadlines are compared up to a period ahead; in the last one, some lie in the next phase.
        rounds = 1 if end is None else 1 + max(0, end - queue.sample - phase.period - 2) // repeated
        self._append(order[first:], rounds=rounds)
        if end is not None:
            queue = _Queue(targets, number, int(self._taken.sum()), self._taken.tolist())
            self._append([queue.next() for _ in range(end - queue.sample)])

    def _append(self, order: Sequence[int], *, rounds: int = 1) -> None:
        """Append a pattern that occurs ``rounds`` times."""
        if not order:
            return
        sources = np.array(order, dtype=np.int64)
        counts = np.bincount(sources, minlength=len(self._taken))
        ranks = np.empty_like(sources)
        for source, count in enumerate(counts.tolist()):
            ranks[sources == source] = np.arange(count)
        pattern = _Pattern(
            start=int(self._taken.sum()), before=self._taken.copy(), sources=sources, ranks=ranks, counts=counts
        )
        self._patterns.append(pattern)
        self._taken += rounds * counts


class _Targets:
    """The targets of the sources: piecewise linear functions of the number of samples, in exact fractions."""

    def __init__(self, phases: Sequence[Phase]) -> None:
        self._unit = math.lcm(*(phase.period for phase in phases))
        """Targets are stored as multiples of its inverse."""
        self._starts = [phase.start for phase in phases]
        self._rates = [[count * (self._unit // phase.period) for count in phase.counts] for phase in phases]
        self._bases = [[0] * len(phases[0].counts)]
        for phase, later in pairwise(range(len(phases))):
            length = self._starts[later] - self._starts[phase]
            grown = zip(self._bases[phase], self._rates[phase], strict=True)
            self._bases.append([base + length * rate for base, rate in grown])

    def reached(self, source: int, value: int, *, from_phase: int) -> float:
        """The number of samples, not before a phase, after which the target is at least ``value``; inf: never."""
        return self._first(source, value * self._unit, from_phase)

    def exceeded(self, source: int, value: int, *, from_phase: int) -> float:
        """The same for a target above ``value``."""
        return self._first(source, value * self._unit + 1, from_phase)

    def _first(self, source: int, value: int, from_phase: int) -> float:
        for phase in range(from_phase, len(self._starts)):
            start, missing, rate = self._starts[phase], value - self._bases[phase][source], self._rates[phase][source]
            if missing <= 0:
                return start
            found = start - (-missing // rate) if rate else math.inf
            if phase + 1 == len(self._starts) or found <= self._starts[phase + 1]:
                return found
        raise AssertionError("the last phase has no end")


class _Queue:
    """Earliest deadline first, from a sample of a phase on.

    Args:
        targets: of all phases.
        phase: the number of the phase.
        sample: the next sample.
        taken: samples of each source before it.
    """

    def __init__(self, targets: _Targets, phase: int, sample: int, taken: Sequence[int]) -> None:
        self.sample = sample
        self.taken = list(taken)
        self._targets, self._phase = targets, phase
        self._released: list[tuple[float, int]] = []  # deadline and source
        self._waiting: list[tuple[float, int]] = []  # the first sample that may be given, and source
        for source in range(len(taken)):
            self._wait(source)

    def next(self) -> int:
        """The source of the next sample."""
        while self._waiting and self._waiting[0][0] <= self.sample:
            source = heapq.heappop(self._waiting)[1]
            deadline = self._targets.reached(source, self.taken[source] + 1, from_phase=self._phase)
            heapq.heappush(self._released, (deadline, source))
        source = heapq.heappop(self._released)[1]
        self.sample += 1
        self.taken[source] += 1
        self._wait(source)
        return source

    def _wait(self, source: int) -> None:
        released = self._targets.exceeded(source, self.taken[source], from_phase=self._phase) - 1
        heapq.heappush(self._waiting, (released, source))


def _until_repetition(queue: _Queue, phase: Phase, end: int | None) -> tuple[list[int], int]:
    """The sources of a phase until they begin to repeat or the phase ends, and how many at the end will repeat.

    They repeat when, at two multiples of the period, each source has received the same number beyond its target.
    """
    order: list[int] = []
    seen: dict[tuple[int, ...], int] = {}
    while end is None or queue.sample < end:
        periods, within = divmod(queue.sample - phase.start, phase.period)
        if not within:
            lead = tuple(now - periods * count for now, count in zip(queue.taken, phase.counts, strict=True))
            if lead in seen:
                return order, queue.sample - seen[lead]
            seen[lead] = queue.sample
        order.append(queue.next())
    return order, 0

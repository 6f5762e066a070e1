"""The order of the sources: shares after every sample, random access, repetition."""

import math
import random
from fractions import Fraction

import numpy as np
import pytest

from tinyllm.data.interleave import LONGEST_PERIOD, Interleaving, Phase, period_counts


def targets(phases: list[Phase], n: int) -> list[list[Fraction]]:
    """Sum of the shares of each source over the first 0 … n samples, added up one by one."""
    sums = [[Fraction(0)] * len(phases[0].counts)]
    for sample in range(n):
        phase = [phase for phase in phases if phase.start <= sample][-1]
        sums.append([old + Fraction(count, phase.period) for old, count in zip(sums[-1], phase.counts, strict=True)])
    return sums


def check(phases: list[Phase], n: int) -> None:
    """Each source has its target, rounded up or down, after every sample; numbers and totals count its samples."""
    order = Interleaving(phases)
    sources, numbers = order.at(np.arange(n))
    given = [0] * len(phases[0].counts)
    for sample, sums in enumerate(targets(phases, n)[1:]):
        assert numbers[sample] == given[sources[sample]]
        given[sources[sample]] += 1
        for count, target in zip(given, sums, strict=True):
            assert math.floor(target) <= count <= math.ceil(target), (phases, sample)
    assert order.totals(n).tolist() == given


def test_each_source_has_its_target_rounded_up_or_down_after_every_sample() -> None:
    """For random shares, zeros among them, that change up to three times, at any sample."""
    rng = random.Random(0)
    for _ in range(120):
        n_sources = rng.randint(1, 6)
        starts = [0, *sorted(rng.sample(range(1, rng.choice([20, 60, 150])), rng.randint(0, 3)))]
        phases = []
        for start in starts:
            largest = rng.choice([2, 5, 12])
            counts = [rng.choice([0, rng.randint(0, largest), rng.randint(1, largest)]) for _ in range(n_sources)]
            counts[rng.randrange(n_sources)] += 1
            phases.append(Phase(start=start, counts=tuple(count // math.gcd(*counts) for count in counts)))
        check(phases, starts[-1] + 2 * phases[-1].period + 9)


def test_the_three_sources_of_the_contract() -> None:
    check([Phase(start=0, counts=tuple(period_counts([0.7, 0.25, 0.05])))], 300)


def test_decimal_weights_are_taken_as_written() -> None:
    assert period_counts([0.7, 0.25, 0.05]) == [14, 5, 1]
    assert period_counts([3, 0, 1]) == [3, 0, 1]
    assert period_counts([1e-1, 0.9]) == [1, 9]


@pytest.mark.parametrize("weights", [[12_345_677, 6_789_011, 345], [1, 1e-9], [1e-9] * 3 + [1, 0]])
def test_shares_of_a_longer_period_are_rounded_and_none_to_zero(weights: list[float]) -> None:
    counts = period_counts(weights)
    assert sum(counts) <= LONGEST_PERIOD
    for count, weight in zip(counts, weights, strict=True):
        assert (count > 0) == (weight > 0)
        assert abs(count / sum(counts) - weight / sum(weights)) < 4 / LONGEST_PERIOD


def test_any_sample_is_found_in_a_long_order_without_those_before_it() -> None:
    """Far beyond a change in the distance: the samples there continue the counts."""
    change = 10**12 + 7
    order = Interleaving([Phase(start=0, counts=(14, 5, 1)), Phase(start=change, counts=(0, 1, 2))])
    assert np.abs(order.totals(change) - np.array([0.7, 0.25, 0.05]) * change).max() < 1
    around = np.arange(change - 100, change + 100)
    sources, numbers = order.at(around)
    given = order.totals(int(around[0]))
    for source, number in zip(sources.tolist(), numbers.tolist(), strict=True):
        assert number == given[source]
        given[source] += 1
    assert given.tolist() == order.totals(int(around[-1]) + 1).tolist()

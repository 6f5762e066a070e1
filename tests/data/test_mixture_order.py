"""The order of a mixture: shares, random access, and windows of the right source."""

import random

import numpy as np
import torch

from tinyllm.data.batch import Batch
from tinyllm.data.interleave import Interleaving, period_counts
from tinyllm.data.mixture_order import MixtureOrder, Phase


class Numbered:
    """A source whose window k is filled with k + offset."""

    windows_per_epoch = 7

    def __init__(self, offset: int) -> None:
        self.offset = offset

    def batch(self, samples: np.ndarray) -> Batch:
        ids = torch.from_numpy(samples + self.offset)[:, None].repeat(1, 3)
        return Batch(inputs=ids, targets=ids + 1)


def test_decimal_weights_are_taken_as_written() -> None:
    assert period_counts([0.7, 0.25, 0.05]) == [14, 5, 1]
    assert period_counts([3, 0, 1]) == [3, 0, 1]


def test_each_source_is_within_one_window_of_its_share_after_every_window() -> None:
    rng = random.Random(0)
    for _ in range(60):
        n = rng.randint(2, 12)
        counts = period_counts([rng.choice([rng.randint(0, 9), rng.randint(1, 80)]) for _ in range(n)] + [1])
        order = Interleaving(tuple(counts))
        given = np.stack([(order.sources == source).cumsum() for source in range(n + 1)])
        shares = np.outer(counts, np.arange(1, order.period + 1)) / order.period
        assert np.abs(given - shares).max() < 1
        assert given[:, -1].tolist() == counts


def test_any_sample_is_found_without_those_before_it_also_across_a_change_of_weights() -> None:
    """Against a count from the beginning."""
    phases = [Phase(start=0, weights=(0.7, 0.25, 0.05)), Phase(start=333, weights=(0.0, 1.0, 1.0))]
    order = MixtureOrder([Numbered(0), Numbered(10_000), Numbered(20_000)], phases)
    sources, numbers = order.places(np.arange(1000))
    seen = [0, 0, 0]
    for source, number in zip(sources.tolist(), numbers.tolist(), strict=True):
        assert number == seen[source]
        seen[source] += 1
    assert order.totals(1000).tolist() == seen
    picked = np.array([999, 0, 332, 333, 500])
    found = order.batch(picked).inputs[:, 0].numpy()
    np.testing.assert_array_equal(found, sources[picked] * 10_000 + numbers[picked])

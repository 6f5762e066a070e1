"""The order of a mixture: each sample is the right window of the right source."""

import numpy as np
import torch

from tinyllm.data.batch import Batch
from tinyllm.data.interleave import Interleaving, Phase
from tinyllm.data.mixture_order import MixtureOrder


class Numbered:
    """A source whose window k is filled with k + offset."""

    windows_per_epoch = 7

    def __init__(self, offset: int) -> None:
        self.offset = offset

    def batch(self, samples: np.ndarray) -> Batch:
        ids = torch.from_numpy(samples + self.offset)[:, None].repeat(1, 3)
        return Batch(inputs=ids, targets=ids + 1, extra={"weight": ids[:, 0]})


def test_a_batch_has_the_windows_of_its_samples_in_their_order() -> None:
    interleaving = Interleaving([Phase(start=0, counts=(14, 5, 1)), Phase(start=333, counts=(0, 1, 1))])
    order = MixtureOrder([Numbered(0), Numbered(10_000), Numbered(20_000)], interleaving)
    samples = np.array([999, 0, 332, 333, 500, 1])
    sources, numbers = interleaving.at(samples)
    batch = order.batch(samples)
    np.testing.assert_array_equal(batch.inputs[:, 0].numpy(), sources * 10_000 + numbers)
    np.testing.assert_array_equal(batch.targets[:, 2].numpy(), sources * 10_000 + numbers + 1)
    np.testing.assert_array_equal(batch.extra["weight"].numpy(), batch.inputs[:, 0].numpy())
    assert order.windows_per_epoch == 21

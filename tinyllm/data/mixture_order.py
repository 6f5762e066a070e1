"""The order of a mixture: which window of which source each training sample is."""

from collections.abc import Sequence

import numpy as np
import torch

from tinyllm.data.batch import Batch, WindowSource
from tinyllm.data.interleave import Interleaving


class MixtureOrder:
    """Samples of several sources, interleaved by weight.

    A sample is a pure function of its number: the source follows from :class:`Interleaving`, and the window is the next
    one in that source's own order, which repeats a source that is used up.

    Args:
        sources: the orders of the sources.
        interleaving: the source of each sample.
    """

    def __init__(self, sources: Sequence[WindowSource], interleaving: Interleaving) -> None:
        self.sources = list(sources)
        self.interleaving = interleaving

    @property
    def windows_per_epoch(self) -> int:
        """Windows of all sources together."""
        return sum(source.windows_per_epoch for source in self.sources)

    def batch(self, samples: np.ndarray) -> Batch:
        """The windows of ``samples``, in their order."""
        sources, numbers = self.interleaving.at(samples)
        places, parts = [], []
        for source in sorted(set(sources.tolist())):
            here = np.flatnonzero(sources == source)
            places.append(here)
            parts.append(self.sources[source].batch(numbers[here]))
        back = torch.from_numpy(np.argsort(np.concatenate(places)))
        return joined(parts).taking(back)


def joined(parts: Sequence[Batch]) -> Batch:
    """Batches with sequences of one length, one after another."""
    first = parts[0]
    doc_ids = None
    if any(part.doc_ids is not None for part in parts):
        # In a source whose documents have no ends, a sequence is one document.
        found = [torch.zeros_like(part.inputs) if part.doc_ids is None else part.doc_ids for part in parts]
        doc_ids = torch.cat(found)
    return Batch(
        inputs=torch.cat([part.inputs for part in parts]),
        targets=torch.cat([part.targets for part in parts]),
        doc_ids=doc_ids,
        extra={name: torch.cat([part.extra[name] for part in parts]) for name in first.extra},
    )

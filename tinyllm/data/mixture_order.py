"""The order of a mixture: which window of which source each training sample is."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tinyllm.data.batch import Batch, WindowSource
from tinyllm.data.interleave import Interleaving, period_counts


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Weights of the sources from a sample on."""

    start: int
    weights: tuple[float, ...]


class MixtureOrder:
    """Samples of several sources, interleaved by weight.

    A sample is a pure function of its number: the source follows from :class:`Interleaving`, and the window is the next
    one in that source's own order, which repeats a source that is used up. After every number of samples since the
    start of a phase, each source has had its share of them, rounded up or down.

    Args:
        sources: the orders of the sources.
        phases: weights by sample, in rising order; the first starts at 0.
    """

    def __init__(self, sources: Sequence[WindowSource], phases: Sequence[Phase]) -> None:
        self.sources = list(sources)
        self.starts = np.array([phase.start for phase in phases], dtype=np.int64)
        self.phases = [Interleaving(tuple(period_counts(phase.weights))) for phase in phases]
        before = [np.zeros(len(sources), dtype=np.int64)]
        for phase, length in zip(self.phases, np.diff(self.starts).tolist(), strict=False):
            before.append(before[-1] + phase.totals(length))
        self._before = before

    @property
    def windows_per_epoch(self) -> int:
        """Windows of all sources together."""
        return sum(source.windows_per_epoch for source in self.sources)

    def totals(self, n: int) -> np.ndarray:
        """How many of the first ``n`` samples come from each source, int64."""
        phase = self._phase_of(n)
        return self._before[phase] + self.phases[phase].totals(n - int(self.starts[phase]))

    def places(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For each sample its source and its number in the order of that source, int64."""
        samples = np.asarray(samples, dtype=np.int64)
        sources, numbers = np.empty_like(samples), np.empty_like(samples)
        phases = np.searchsorted(self.starts, samples, side="right") - 1
        for phase in np.unique(phases).tolist():
            here = phases == phase
            sources[here], within = self.phases[phase].at(samples[here] - self.starts[phase])
            numbers[here] = self._before[phase][sources[here]] + within
        return sources, numbers

    def batch(self, samples: np.ndarray) -> Batch:
        """The windows of ``samples``, in their order."""
        sources, numbers = self.places(samples)
        places, parts = [], []
        for source in np.unique(sources).tolist():
            here = np.flatnonzero(sources == source)
            places.append(here)
            parts.append(self.sources[source].batch(numbers[here]))
        back = torch.from_numpy(np.argsort(np.concatenate(places)))
        return joined(parts).taking(back)

    def _phase_of(self, sample: int) -> int:
        return int(np.searchsorted(self.starts, sample, side="right")) - 1


def joined(parts: Sequence[Batch]) -> Batch:
    """Batches with sequences of one length, one after another."""
    first = parts[0]
    doc_ids = [part.doc_ids for part in parts if part.doc_ids is not None]
    return Batch(
        inputs=torch.cat([part.inputs for part in parts]),
        targets=torch.cat([part.targets for part in parts]),
        doc_ids=torch.cat(doc_ids) if doc_ids else None,
        extra={name: torch.cat([part.extra[name] for part in parts]) for name in first.extra},
    )

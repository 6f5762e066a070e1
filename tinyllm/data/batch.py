"""A batch: the tensors that one forward pass reads."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from tinyllm.nn.loss import IGNORE

TOKENS, PAIRS, PROMPTS = "tokens", "pairs", "prompts"
"""What a data set gives, and an objective reads: sequences with targets, pairs of answers, or prompts to answer."""
PAIR = "pair"
"""Name of the extra tensor (B,) that numbers the pairs of a batch within the data set; their rows are 2B."""
ALIGN = 8
"""Batches are padded to a multiple of this many tokens."""
SHAPES = 16
"""Lengths of rows, from 0 to a power of two, in equal steps."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Token ids and their targets, B sequences of T tokens.

    Attributes:
        inputs: (B, T) int64.
        targets: (B, T) int64; ``IGNORE`` where nothing is predicted.
        doc_ids: (B, T), the document of each token, so that attention can stay within documents; None: one document
            per sequence.
        extra: further tensors by name, for objectives that need them (rewards, reference log-probabilities, …). Those
            of shape (B, T, …) are per token and are shortened with the sequences.
        known_count: the value of ``counted``, where it is known: every target counts, or it was found before the batch
            moved to its device.
    """

    inputs: Tensor
    targets: Tensor
    doc_ids: Tensor | None = None
    extra: dict[str, Tensor] = field(default_factory=dict)
    known_count: int | None = None

    @property
    def sequences(self) -> int:
        """B."""
        return len(self.inputs)

    @property
    def counted(self) -> int:
        """Number of targets that count; waits for the device that holds them, unless it is known."""
        return int((self.targets != IGNORE).sum()) if self.known_count is None else self.known_count

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on a device; the copy of pinned memory to a GPU does not block."""
        moved = self._map(partial(Tensor.to, device=device, non_blocking=True))
        if moved.inputs.device == self.inputs.device:
            return moved
        # Counted here, on the host: a loss that needs the number would otherwise wait for the device to find it.
        return replace(moved, known_count=self.counted)

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory; a ``DataLoader`` with ``pin_memory=True`` calls this."""
        return self._map(Tensor.pin_memory)

    def shortened(self, length: int) -> "Batch":
        """The first ``length`` tokens of every sequence."""
        shape = self.inputs.shape
        if length >= shape[1]:
            return self
        short = self._map(lambda tensor: tensor[:, :length].contiguous() if tensor.shape[:2] == shape else tensor)
        return replace(short, known_count=None)

    def taking(self, sequences: Tensor) -> "Batch":
        """The sequences with these indices, int64 (n,), in this order."""
        return replace(self._map(lambda tensor: tensor[sequences]), known_count=None)

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        return replace(
            self,
            inputs=change(self.inputs),
            targets=change(self.targets),
            doc_ids=None if self.doc_ids is None else change(self.doc_ids),
            extra={name: change(tensor) for name, tensor in self.extra.items()},
        )


class WindowSource(Protocol):
    """Numbered training samples, in the order in which training reads them.

    The loader assigns sample numbers to ranks, micro-batches and workers; the next number is its only state, so a
    resumed run continues there. A source must therefore have no state: equal numbers give equal batches, in every
    process.
    """

    @property
    def windows_per_epoch(self) -> int:
        """Number of samples in one pass over the data."""

    def batch(self, samples: np.ndarray) -> Batch:
        """The samples of these numbers (int64 ≥ 0, unbounded), one sequence each, on the CPU."""


def row_length(length: int, most: int | None) -> int:
    """The tokens of the rows of a batch whose longest conversation or answer has ``length`` inputs.

    They are rounded up so that there are few different shapes, for which the allocator would keep memory each: to
    ``ALIGN``, and to an eighth of the power of two below.

    Args:
        most: a row is not longer; None: there is no limit.
    """
    step = max(ALIGN, (1 << (length - 1).bit_length()) // SHAPES)
    rounded = -(-length // step) * step
    return rounded if most is None else min(rounded, most)

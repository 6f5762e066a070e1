"""Sampler: the order of training, as a stateless function from sample numbers to windows of the data."""

from dataclasses import dataclass

import numpy as np
import torch

from tinyllm.data.batch import Batch
from tinyllm.data.documents import document_ids
from tinyllm.data.shuffle import draw, permuted
from tinyllm.data.token_data import Split
from tinyllm.errors import UserError

AHEAD = 1024
"""Samples whose order is computed at once: the calls take 0.2 ms, as long for two samples as for all of these."""


@dataclass(frozen=True)
class Grid:
    """Adjacent windows in a row of tokens.

    Attributes:
        windows: their number.
        offsets: number of positions at which the first one may start.
    """

    windows: int
    offsets: int

    @classmethod
    def of(cls, length: int, seq_len: int, *, shifts: bool = True) -> "Grid":
        """The windows of ``seq_len`` + 1 tokens, which share their ends, in ``length`` tokens.

        Args:
            shifts: leave out a window if that makes room for every offset.
        """
        windows = max(0, (length - 1) // seq_len)
        if shifts and windows > 1:
            windows = (length - seq_len) // seq_len
        return cls(windows, min(seq_len, length - windows * seq_len))


class Sampler:
    """Windows of seq_len+1 ids (inputs and, shifted by one, targets), each once per epoch in a new order.

    In every epoch the windows are adjacent and start at a new offset, so that over the epochs a token occurs at every
    position of a window. Sample i is a pure function of (split, seq_len, seed, i), so ranks, workers and resumed runs
    need no common state. If the split has rows, windows stay within rows.

    Args:
        split: the data.
        seq_len: inputs per window.
        seed: seed of the order.

    Attributes:
        windows_per_epoch: samples per epoch.

    Raises:
        UserError: the split is shorter than one window.
    """

    def __init__(self, split: Split, *, seq_len: int, seed: int) -> None:
        self.split = split
        self.seq_len = seq_len
        self.seed = seed
        length = split.row_length or split.n_tokens
        if length < seq_len + 1:
            what = "tokens per row" if split.row_length else "tokens"
            raise UserError(
                f"the {split.name} split has {length:,} {what}, but one window needs {seq_len + 1:,}",
                key="trainer.seq_len",
                value=seq_len,
                hint=f"use more data, or a seq_len of at most {length - 1}",
            )
        self._row_length = length
        self._grid = Grid.of(length, seq_len, shifts=split.row_length is None)
        self.windows_per_epoch = split.n_tokens // length * self._grid.windows
        self._ahead: tuple[int, np.ndarray] | None = None
        """The first of a block of samples, and where their windows start."""

    def starts(self, samples: np.ndarray) -> np.ndarray:
        """Position in the split where the window of each sample starts, int64."""
        samples = np.asarray(samples, dtype=np.int64)
        if not len(samples):
            return samples
        size = min(AHEAD, self.windows_per_epoch)  # so that a block is in two epochs at most
        first = int(samples[0]) // size * size
        if (samples < first).any() or (samples >= first + size).any():
            return self._starts(samples)
        if self._ahead is None or self._ahead[0] != first:
            self._ahead = first, self._starts(np.arange(first, first + size))
        return self._ahead[1][samples - first]

    def _starts(self, samples: np.ndarray) -> np.ndarray:
        epochs = samples // self.windows_per_epoch
        starts = np.empty_like(samples)
        for epoch in sorted(set(epochs.tolist())):  # np.unique would load numpy.ma, 0.1 s before the first step
            in_epoch = epochs == epoch
            key = draw(self.seed, epoch)
            offset = draw(key, ROLE_OFFSET) % self._grid.offsets
            window = permuted(samples[in_epoch] - epoch * self.windows_per_epoch, self.windows_per_epoch, key)
            row, column = np.divmod(window, self._grid.windows)
            starts[in_epoch] = row * self._row_length + offset + column * self.seq_len
        return starts

    def windows(self, samples: np.ndarray) -> np.ndarray:
        """The ids of the windows of ``samples``, int64 of shape (len(samples), seq_len+1)."""
        return read_windows(self.split, self.starts(samples), self.seq_len)

    def batch(self, samples: np.ndarray) -> Batch:
        """The windows of ``samples`` as inputs and, one token later, targets."""
        return batch_of(self.windows(samples), self.split.eot_id)


def read_windows(split: Split, starts: np.ndarray, seq_len: int) -> np.ndarray:
    """The ids of the windows that begin at ``starts``, int64 of shape (len(starts), seq_len+1)."""
    ids, length = split.ids, seq_len + 1
    out = np.empty((len(starts), length), dtype=np.int64)
    for row, start in zip(out, starts, strict=True):
        row[:] = ids[start : start + length]
    return out


def batch_of(windows: np.ndarray, eot_id: int | None) -> Batch:
    """Windows of (B, seq_len+1) ids as inputs and, one token later, targets."""
    ids = torch.from_numpy(windows)
    inputs = ids[:, :-1].contiguous()
    targets = ids[:, 1:].contiguous()
    return Batch(inputs=inputs, targets=targets, doc_ids=document_ids(inputs, eot_id), known_count=targets.numel())


ROLE_OFFSET = 2**32  # larger than any index of a Feistel round; the round keys are drawn from the same key

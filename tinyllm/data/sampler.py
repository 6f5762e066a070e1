"""Sampler: the order of training, as a stateless function from sample numbers to windows of the data."""

import numpy as np
import torch

from tinyllm.data.batch import Batch
from tinyllm.data.documents import document_ids
from tinyllm.data.shuffle import draw, permuted
from tinyllm.data.token_data import Split
from tinyllm.errors import UserError


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
        rows = split.n_tokens // length
        self._per_row = (length - 1) // seq_len
        if split.row_length is None and self._per_row > 1:
            self._per_row = (length - seq_len) // seq_len  # at most one fewer, which makes room for every offset
        self._offsets = min(seq_len, length - self._per_row * seq_len)
        self.windows_per_epoch = rows * self._per_row

    def starts(self, samples: np.ndarray) -> np.ndarray:
        """Position in the split where the window of each sample starts, int64."""
        samples = np.asarray(samples, dtype=np.int64)
        epochs = samples // self.windows_per_epoch
        starts = np.empty_like(samples)
        for epoch in sorted(set(epochs.tolist())):  # np.unique would load numpy.ma, 0.1 s before the first step
            in_epoch = epochs == epoch
            key = draw(self.seed, epoch)
            offset = draw(key, ROLE_OFFSET) % self._offsets
            window = permuted(samples[in_epoch] - epoch * self.windows_per_epoch, self.windows_per_epoch, key)
            row, column = np.divmod(window, self._per_row)
            starts[in_epoch] = row * self._row_length + offset + column * self.seq_len
        return starts

    def windows(self, samples: np.ndarray) -> np.ndarray:
        """The ids of the windows of ``samples``, int64 of shape (len(samples), seq_len+1)."""
        ids, length = self.split.ids, self.seq_len + 1
        out = np.empty((len(samples), length), dtype=np.int64)
        for row, start in zip(out, self.starts(samples), strict=True):
            row[:] = ids[start : start + length]
        return out

    def batch(self, samples: np.ndarray) -> Batch:
        """The windows of ``samples`` as inputs and, one token later, targets."""
        windows = torch.from_numpy(self.windows(samples))
        inputs = windows[:, :-1].contiguous()
        doc_ids = document_ids(inputs, self.split.eot_id)
        return Batch(inputs=inputs, targets=windows[:, 1:].contiguous(), doc_ids=doc_ids)


ROLE_OFFSET = 2**32  # larger than any index of a Feistel round; the round keys are drawn from the same key

"""ShardedSampler: the order of training on data of which only the beginning needs to be there (``start_early``)."""

import time

import numpy as np

from tinyllm.data.arrivals import POLL_S, GrowingSplit
from tinyllm.data.batch import Batch
from tinyllm.data.sampler import ROLE_OFFSET, Grid, batch_of, read_windows
from tinyllm.data.shuffle import draw, permuted
from tinyllm.data.token_data import Split
from tinyllm.errors import UserError


class ShardedSampler:
    """Windows of seq_len+1 ids, each once per epoch: shard by shard, in a new order within each.

    Shard s holds the tokens s·S … (s+1)·S − 1 with S = ``split.shard_tokens``; windows do not cross its ends. Within a
    shard they are adjacent and begin at an offset that is new in every epoch, as those of a ``Sampler`` do in the
    split. Sample i is a pure function of (split, seq_len, seed, i), and in the first epoch it depends on its own shard
    alone: it is the same whether the data are still being prepared or not.

    Args:
        split: the data.
        seq_len: inputs per window.
        seed: seed of the order.

    Raises:
        UserError: a shard, or the split, is shorter than one window.
    """

    def __init__(self, split: Split, *, seq_len: int, seed: int) -> None:
        assert split.shard_tokens is not None
        self.split, self.seq_len, self.seed = split, seq_len, seed
        self._shard_tokens = split.shard_tokens
        if self._shard_tokens <= seq_len:
            hint = f"at least {seq_len + 1}, a window of trainer.seq_len={seq_len} and the token after it"
            raise UserError(
                "less than one training window", key="dataset.shard_tokens", value=split.shard_tokens, hint=hint
            )
        self._grid = Grid.of(self._shard_tokens, seq_len)
        if self.windows_per_epoch == 0:
            raise UserError(
                f"the {split.name} split has {split.n_tokens:,} tokens, but one window needs {seq_len + 1:,}",
                key="trainer.seq_len",
                value=seq_len,
                hint=f"use more data, or a seq_len of at most {split.n_tokens - 1}",
            )

    @property
    def windows_per_epoch(self) -> int:
        """Samples per epoch; while the data are being prepared, those of the finished shards."""
        full, rest = divmod(self.split.n_tokens, self._shard_tokens)
        last = Grid.of(rest, self.seq_len).windows if self.has_all_data else 0
        return full * self._grid.windows + last

    @property
    def has_all_data(self) -> bool:
        """Whether the data are prepared to their end, as of the last :meth:`is_ready`."""
        return not isinstance(self.split, GrowingSplit) or self.split.is_complete

    def is_ready(self, sample: int) -> bool:
        """Whether the data of a sample and of all before it are prepared.

        Raises:
            UserError: they will never be: the preparation failed.
        """
        if sample < self.windows_per_epoch or self.has_all_data:
            return True
        assert isinstance(self.split, GrowingSplit)
        self.split.refresh()
        return sample < self.windows_per_epoch or self.split.is_complete

    def starts(self, samples: np.ndarray) -> np.ndarray:
        """Position in the split where the window of each sample starts, int64. Waits until their data are prepared."""
        samples = np.asarray(samples, dtype=np.int64)
        while len(samples) and not self.is_ready(int(samples.max())):
            time.sleep(POLL_S)
        per_epoch = self.windows_per_epoch
        epochs, numbers = np.divmod(samples, per_epoch)
        shards, windows = np.divmod(numbers, self._grid.windows)
        full = self.split.n_tokens // self._shard_tokens
        starts = np.empty_like(samples)
        for epoch, shard in sorted(set(zip(epochs.tolist(), shards.tolist(), strict=True))):
            chosen = (epochs == epoch) & (shards == shard)
            rest = self.split.n_tokens - shard * self._shard_tokens
            grid = self._grid if shard < full else Grid.of(rest, self.seq_len)
            key = draw(self.seed, epoch, shard)
            offset = draw(key, ROLE_OFFSET) % grid.offsets
            column = permuted(windows[chosen], grid.windows, key)
            starts[chosen] = shard * self._shard_tokens + offset + column * self.seq_len
        return starts

    def batch(self, samples: np.ndarray) -> Batch:
        """The windows of ``samples`` as inputs and, one token later, targets."""
        starts = self.starts(samples)  # waits, so that the ids are there afterwards
        return batch_of(read_windows(self.split, starts, self.seq_len), self.split.eot_id)

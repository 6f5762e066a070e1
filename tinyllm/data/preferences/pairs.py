"""Pairs of answers as token ids, and the order in which training reads them."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar, NamedTuple

import numpy as np
import torch

from tinyllm.data.batch import PAIR, Batch, WindowSource, row_length
from tinyllm.data.sample_span import SampleSpan
from tinyllm.data.shuffle import draw, permuted
from tinyllm.data.token_data import OneSource
from tinyllm.errors import UserError
from tinyllm.nn.loss import IGNORE
from tinyllm.tokenizers import Tokenizer


class Answered(NamedTuple):
    """A prompt with an answer.

    Attributes:
        ids: int64 (n,).
        is_target: bool (n,): whether the token belongs to the answer, its stop token included.
    """

    ids: np.ndarray
    is_target: np.ndarray


@dataclass(frozen=True)
class PairSplit:
    """The pairs of one split.

    Attributes:
        name: "train" or "val".
        ids, is_target: of all answered prompts in a row: of each pair first the chosen, then the rejected one.
        starts: (2·pairs + 1,): where each of them starts.
        drops_long: leave out pairs longer than a training sequence, instead of refusing them.
        first: number of its first pair within the data set.
        reads_last: rows hold the last token of an answer, too, whose state a reward model scores; without, it is only
            predicted.
    """

    name: str
    ids: np.ndarray
    is_target: np.ndarray
    starts: np.ndarray
    drops_long: bool
    first: int = 0
    reads_last: bool = False

    # What a split of tokens has besides.
    row_length: ClassVar[None] = None
    token_bytes: ClassVar[None] = None

    @classmethod
    def of(cls, name: str, pairs: list[tuple[Answered, Answered]], *, drops_long: bool, first: int) -> "PairSplit":
        """The split of these pairs."""
        rows = [row for pair in pairs for row in pair]
        lengths = np.array([len(row.ids) for row in rows], dtype=np.int64)
        return cls(
            name=name,
            ids=np.concatenate([row.ids for row in rows]).astype(np.uint32),
            is_target=np.concatenate([row.is_target for row in rows]),
            starts=np.concatenate([np.zeros(1, dtype=np.int64), lengths.cumsum()]),
            drops_long=drops_long,
            first=first,
        )

    @property
    def n_pairs(self) -> int:
        """Number of pairs."""
        return len(self.starts) // 2

    @property
    def n_tokens(self) -> int:
        """Tokens of all answered prompts."""
        return len(self.ids)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 (hex) of the content."""
        digest = hashlib.sha256()
        for part in (self.ids, self.is_target, self.starts):
            digest.update(np.ascontiguousarray(part).tobytes())
        return digest.hexdigest()

    @cached_property
    def longest(self) -> np.ndarray:
        """Tokens of the longer row of each pair, (pairs,)."""
        longest: np.ndarray = np.diff(self.starts).reshape(-1, 2).max(axis=1)
        return longest

    @property
    def inputs(self) -> np.ndarray:
        """Inputs of the longer row of each pair, (pairs,)."""
        return self.longest - (not self.reads_last)

    def fitting(self, seq_len: int) -> np.ndarray:
        """The pairs, by number within this split, that fit into sequences of ``seq_len`` inputs.

        Raises:
            UserError: a pair is too long, and long ones are not dropped; or all are.
        """
        too_long = self.inputs > seq_len
        if not too_long.any():
            return np.arange(self.n_pairs)
        count, most = int(too_long.sum()), int(self.longest.max())
        if too_long.all():
            hint = f"the longest of {self.n_pairs:,} has {most:,} tokens; raise it, up to model.max_seq_len"
            what = f"every pair of the {self.name} split is longer than a training sequence"
            raise UserError(what, key="trainer.seq_len", value=seq_len, hint=hint)
        if not self.drops_long:
            hint = (
                f"{count:,} of {self.n_pairs:,} pairs of the {self.name} split are longer; raise it, or leave them out"
            )
            raise UserError(
                f"a pair of {most:,} tokens",
                key="trainer.seq_len",
                value=seq_len,
                hint=f"{hint} with dataset.too_long=drop",
            )
        return np.flatnonzero(~too_long)

    def batch(self, pairs: np.ndarray, *, seq_len: int | None = None) -> Batch:
        """The rows of these pairs, padded to the longest of them (see :func:`tinyllm.data.batch.row_length`).

        Args:
            pairs: by number within this split.
            seq_len: inputs of the longest sequence, which no padding exceeds; None: there is no limit.
        """
        rows = np.stack([2 * pairs, 2 * pairs + 1], axis=1).ravel()
        shape = len(rows), row_length(int(self.inputs[pairs].max()), seq_len)
        inputs, targets = np.zeros(shape, dtype=np.int64), np.full(shape, IGNORE, dtype=np.int64)
        for place, row in enumerate(rows):
            span = slice(self.starts[row], self.starts[row + 1])
            ids, is_target = self.ids[span].astype(np.int64), self.is_target[span]
            read = ids if self.reads_last else ids[:-1]
            inputs[place, : len(read)] = read
            targets[place, : len(ids) - 1] = np.where(is_target[1:], ids[1:], IGNORE)
        extra = {PAIR: torch.from_numpy(pairs + self.first)}
        return Batch(inputs=torch.from_numpy(inputs), targets=torch.from_numpy(targets), extra=extra)

    def eval_batches(self, *, seq_len: int, batch_size: int, max_tokens: int | None = None) -> Iterator[Batch]:
        """The pairs that fit, in order.

        Args:
            max_tokens: end before the pair with which the inputs would be more than this many tokens, but not before
                the first; None: all pairs.
        """
        chosen = self.fitting(seq_len)
        if max_tokens is not None:
            read = np.diff(self.starts) - (not self.reads_last)
            total = np.add.reduceat(read, np.arange(0, 2 * self.n_pairs, 2))[chosen].cumsum()
            chosen = chosen[: max(1, int(np.searchsorted(total, max_tokens, side="right")))]
        for start in range(0, len(chosen), batch_size):
            yield self.batch(chosen[start : start + batch_size], seq_len=seq_len)


class PairSource:
    """The order of training: every pair once per epoch, each epoch in a new order.

    Sample i is a pure function of (split, seq_len, seed, i), as in :class:`tinyllm.data.sampler.Sampler`.

    Args:
        split: the data.
        seq_len: inputs of the longest sequence.
        seed: seed of the order.

    Raises:
        UserError: see :meth:`PairSplit.fitting`.
    """

    def __init__(self, split: PairSplit, *, seq_len: int, seed: int) -> None:
        self.split, self.seq_len, self.seed = split, seq_len, seed
        self._pairs = split.fitting(seq_len)
        self.windows_per_epoch = len(self._pairs)

    @property
    def mean_tokens(self) -> float:
        """Tokens that a pair costs on average, without the padding to longer ones beside it."""
        return 2 * float(self.split.inputs[self._pairs].mean())

    def pairs(self, samples: np.ndarray) -> np.ndarray:
        """The pair of each sample, by number within the split."""
        samples = np.asarray(samples, dtype=np.int64)
        epochs, pairs = samples // self.windows_per_epoch, np.empty_like(samples)
        for epoch in sorted(set(epochs.tolist())):
            chosen = epochs == epoch
            within = samples[chosen] - epoch * self.windows_per_epoch
            pairs[chosen] = self._pairs[permuted(within, self.windows_per_epoch, draw(self.seed, epoch))]
        return pairs

    def batch(self, samples: np.ndarray) -> Batch:
        """Two rows per sample."""
        return self.split.batch(self.pairs(samples), seq_len=self.seq_len)


@dataclass(frozen=True)
class PairData(OneSource[PairSplit]):
    """Preferences ready for training; see :class:`tinyllm.data.run_data.RunData`."""

    train: PairSplit
    val: PairSplit
    tokenizer: Tokenizer
    rules: int
    notes: list[str] = field(default_factory=list)

    @property
    def n_pairs(self) -> int:
        """Pairs of both splits; those of validation have the larger numbers."""
        return self.train.n_pairs + self.val.n_pairs

    def with_last_tokens(self) -> "PairData":
        """The same pairs for a reward model, which reads the last token of every answer."""
        return replace(self, train=replace(self.train, reads_last=True), val=replace(self.val, reads_last=True))

    def order_notes(self, sources: Mapping[str, WindowSource], span: SampleSpan) -> list[str]:
        """How many pairs are too long to be used."""
        left_out = self.train.n_pairs - sources[""].windows_per_epoch
        return [f"{left_out:,} pairs are longer than a training sequence and were left out"] if left_out else []

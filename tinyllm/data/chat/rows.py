"""Conversations as token ids with their targets, and the order in which training reads them."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch

from tinyllm.data.batch import Batch, WindowSource, row_length
from tinyllm.data.chat.messages import Conversation
from tinyllm.data.chat.template import ChatTemplate, Rendered
from tinyllm.data.sample_span import SampleSpan
from tinyllm.data.shuffle import draw, permuted
from tinyllm.data.token_data import OneSource
from tinyllm.errors import UserError
from tinyllm.nn.loss import IGNORE
from tinyllm.tokenizers import Tokenizer

BUNDLE = 32
"""Conversations of like length that follow each other, so that little of a batch is padding."""
POOL = 16 * BUNDLE
"""Conversations, in random order, that are sorted by length and cut into bundles."""
ROLE_BUNDLES = 2**33
"""Keys the order of the bundles; larger than any index of a Feistel round, as in the sampler."""


@dataclass(frozen=True)
class ConversationSplit:
    """The conversations of one split, each a row of its own.

    Attributes:
        name: "train" or "val".
        ids: of all conversations in a row.
        is_target: whether the assistant says each of them.
        starts: (conversations + 1,): where each of them starts.
        drops_long: leave out conversations longer than a training sequence, instead of refusing them.
        lengths_of_ids: UTF-8 bytes of each id, (vocab_size,).
        packing: how conversations fill training windows, "rows" or "best_fit".
        group_by_length: whether rows of like length follow each other in training.
    """

    name: str
    ids: np.ndarray
    is_target: np.ndarray
    starts: np.ndarray
    drops_long: bool
    lengths_of_ids: np.ndarray
    packing: str = "rows"
    group_by_length: bool = True

    # What a split of tokens has besides.
    row_length: ClassVar[None] = None

    @classmethod
    def of(
        cls,
        name: str,
        rows: Iterable[Rendered],
        *,
        drops_long: bool,
        tokenizer: Tokenizer,
        packing: str = "rows",
        group_by_length: bool = True,
    ) -> "ConversationSplit":
        """The split of these rendered conversations."""
        kept = [(row.ids.astype(np.uint32), row.is_target) for row in rows]
        lengths = np.array([len(ids) for ids, _ in kept], dtype=np.int64)
        return cls(
            name=name,
            ids=np.concatenate([ids for ids, _ in kept]),
            is_target=np.concatenate([is_target for _, is_target in kept]),
            starts=np.concatenate([np.zeros(1, dtype=np.int64), lengths.cumsum()]),
            drops_long=drops_long,
            lengths_of_ids=tokenizer.token_bytes(),
            packing=packing,
            group_by_length=group_by_length,
        )

    @property
    def n_conversations(self) -> int:
        """Number of conversations."""
        return len(self.starts) - 1

    @property
    def n_tokens(self) -> int:
        """Tokens of all conversations."""
        return len(self.ids)

    @property
    def token_bytes(self) -> np.ndarray:
        """UTF-8 bytes of each id; a split of text has it, too."""
        return self.lengths_of_ids

    @cached_property
    def fingerprint(self) -> str:
        """sha256 (hex) of ids, targets and boundaries."""
        digest = hashlib.sha256()
        for part in (self.ids, self.is_target, self.starts):
            digest.update(np.ascontiguousarray(part).tobytes())
        return digest.hexdigest()

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each conversation."""
        lengths: np.ndarray = np.diff(self.starts)
        return lengths

    @cached_property
    def targets(self) -> np.ndarray:
        """Targets of each conversation. Its first token is never predicted."""
        counted = self.is_target.copy()
        counted[self.starts[:-1]] = False
        counts: np.ndarray = np.add.reduceat(counted.astype(np.int64), self.starts[:-1])
        return counts

    def fitting(self, seq_len: int) -> np.ndarray:
        """The conversations, by number, that fit into sequences of ``seq_len`` inputs. None is ever cut.

        Raises:
            UserError: one is too long, and long ones are not dropped; or all are.
        """
        too_long = self.lengths > seq_len + 1  # the last token is a target only
        if not too_long.any():
            return np.arange(self.n_conversations)
        count, most, total = int(too_long.sum()), int(self.lengths.max()), self.n_conversations
        if too_long.all():
            hint = f"all {total:,} conversations of the {self.name} split are longer; raise it, up to model.max_seq_len"
        elif self.drops_long:
            return np.flatnonzero(~too_long)
        else:
            hint = f"{count:,} of {total:,} conversations of the {self.name} split are longer; raise it, or leave them"
            hint += " out with dataset.too_long=drop"
        raise UserError(f"a conversation of {most:,} tokens", key="trainer.seq_len", value=seq_len, hint=hint)

    def row(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and, shifted by one, targets of a conversation, int64; ``IGNORE`` where the assistant says nothing."""
        span = slice(self.starts[number], self.starts[number + 1])
        ids = self.ids[span].astype(np.int64)
        return ids[:-1], np.where(self.is_target[span][1:], ids[1:], IGNORE)

    def batch(self, rows: np.ndarray, *, seq_len: int) -> Batch:
        """These conversations, one a row, padded to the longest of them (see :func:`row_length`).

        Args:
            seq_len: inputs of the longest possible row.
        """
        shape = len(rows), row_length(int(self.lengths[rows].max()) - 1, seq_len)
        inputs, targets = np.zeros(shape, dtype=np.int64), np.full(shape, IGNORE, dtype=np.int64)
        for place, row in enumerate(rows):
            read, predicted = self.row(row)
            inputs[place, : len(read)], targets[place, : len(read)] = read, predicted
        return Batch(inputs=torch.from_numpy(inputs), targets=torch.from_numpy(targets))

    def to_evaluate(self, seq_len: int, max_tokens: int | None) -> np.ndarray:
        """The conversations to evaluate: those that fit, up to the one that reaches ``max_tokens`` targets."""
        chosen = self.fitting(seq_len)
        if max_tokens is None:
            return chosen
        return chosen[: 1 + int(np.searchsorted(self.targets[chosen].cumsum(), max_tokens))]

    def eval_batches(self, *, seq_len: int, batch_size: int, max_tokens: int | None = None) -> Iterator[Batch]:
        """The conversations to evaluate, those of like length together."""
        chosen = self.to_evaluate(seq_len, max_tokens)
        chosen = chosen[np.argsort(self.lengths[chosen], kind="stable")]
        for start in range(0, len(chosen), batch_size):
            yield self.batch(chosen[start : start + batch_size], seq_len=seq_len)

    def eval_bytes(self, *, seq_len: int, max_tokens: int | None = None) -> int:
        """UTF-8 bytes of the targets that :meth:`eval_batches` predicts; special tokens have none."""
        counted = np.zeros(self.n_tokens, dtype=bool)
        for row in self.to_evaluate(seq_len, max_tokens):
            span = slice(self.starts[row] + 1, self.starts[row + 1])
            counted[span] = self.is_target[span]
        return int(self.lengths_of_ids[self.ids[counted]].sum())


class ConversationSource:
    """The order of training: every conversation once per epoch, by default those of like length near each other.

    In each epoch the conversations are shuffled. With ``split.group_by_length`` they are then sorted by length within
    pools and cut into bundles, whose order is shuffled again: little of a batch is padding, but a step's loss is a mean
    over its targets, so that a target weighs more the shorter the answers around it are. Sample i is a pure function of
    (split, seq_len, seed, i).

    Args:
        split: the data.
        seq_len: inputs of the longest sequence.
        seed: seed of the order.

    Raises:
        UserError: see :meth:`ConversationSplit.fitting`.
    """

    def __init__(self, split: ConversationSplit, *, seq_len: int, seed: int) -> None:
        self.split, self.seq_len, self.seed = split, seq_len, seed
        self._rows = split.fitting(seq_len)
        self.windows_per_epoch = len(self._rows)
        self._orders: dict[int, np.ndarray] = {}

    @property
    def n_left_out(self) -> int:
        """Conversations that are too long to be used."""
        return self.split.n_conversations - len(self._rows)

    @property
    def mean_tokens(self) -> float:
        """Tokens that a sample costs on average, without the padding to longer ones beside it."""
        return float(self.split.lengths[self._rows].mean()) - 1

    def rows(self, samples: np.ndarray) -> np.ndarray:
        """The conversation of each sample, by number."""
        samples = np.asarray(samples, dtype=np.int64)
        epochs, rows = samples // self.windows_per_epoch, np.empty_like(samples)
        for epoch in sorted(set(epochs.tolist())):
            chosen = epochs == epoch
            rows[chosen] = self._order(epoch)[samples[chosen] - epoch * self.windows_per_epoch]
        return rows

    def batch(self, samples: np.ndarray) -> Batch:
        """A conversation per sample."""
        return self.split.batch(self.rows(samples), seq_len=self.seq_len)

    def _order(self, epoch: int) -> np.ndarray:
        """All conversations in the order of an epoch; that of the last two epochs is remembered."""
        if epoch not in self._orders:
            count, key = self.windows_per_epoch, draw(self.seed, epoch)
            shuffled = self._rows[permuted(np.arange(count), count, key)]
            if self.split.group_by_length:
                self._group(shuffled, key)
            self._orders = {old: order for old, order in self._orders.items() if old == epoch - 1} | {epoch: shuffled}
        return self._orders[epoch]

    def _group(self, shuffled: np.ndarray, key: int) -> None:
        """Bring conversations of like length together, in place."""
        count = len(shuffled)
        for start in range(0, count, POOL):
            pool = shuffled[start : start + POOL]
            shuffled[start : start + POOL] = pool[np.argsort(self.split.lengths[pool], kind="stable")]
        whole = count // BUNDLE  # the rest, less than a bundle, comes last
        if whole > 1:
            bundles = permuted(np.arange(whole), whole, draw(key, ROLE_BUNDLES))
            shuffled[: whole * BUNDLE] = shuffled[: whole * BUNDLE].reshape(whole, BUNDLE)[bundles].ravel()


@dataclass(frozen=True)
class ConversationData(OneSource[ConversationSplit]):
    """Conversations ready for training; see :class:`tinyllm.data.run_data.RunData`.

    Attributes:
        first_prompt: what precedes the first answer of validation, for samples during training.
    """

    train: ConversationSplit
    val: ConversationSplit
    tokenizer: Tokenizer
    rules: int
    chat_template: ChatTemplate
    first_prompt: Conversation
    notes: list[str] = field(default_factory=list)

    def order_notes(self, sources: Mapping[str, WindowSource], span: SampleSpan) -> list[str]:
        """How many conversations are too long to be used."""
        return [note] if (note := left_out_note(sources[""])) else []


def left_out_note(source: Any) -> str:
    """A remark on conversations that a source leaves out because they are too long; "": none."""
    if not (left_out := source.n_left_out):
        return ""
    longer = "1 conversation is longer than a training sequence and was"
    if left_out != 1:
        longer = f"{left_out:,} conversations are longer than a training sequence and were"
    return f"{longer} left out."

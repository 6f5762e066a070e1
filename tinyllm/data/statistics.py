"""Statistics of prepared data, from the token ids alone: one pass over them, 16 bytes of memory per document."""

import hashlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from tinyllm.data.chat.rows import ConversationData, ConversationSplit
from tinyllm.data.token_data import Split, TokenData
from tinyllm.tokenizers import Tokenizer

QUANTILES = (0, 5, 25, 50, 75, 95, 100)
"""Percentiles of document lengths."""
MOST_FREQUENT = 20
SAMPLES, SAMPLE_TOKENS = 3, 48
BLOCK = 2**20  # ids per step
SHORTEST = 128
"""The first length of training sequences for which conversations that are too long are counted."""


@dataclass(frozen=True)
class SplitStatistics:
    """Statistics of one split.

    Attributes:
        documents: number of documents, or of conversations; None if the tokenizer marks no ends.
        tokens: number of tokens, the ends of documents included.
        text_bytes: UTF-8 bytes of the text; None for data that are not text.
        unknown: tokens ``<unk>``; None if the tokenizer has none.
        targets: of conversations: tokens that are trained on; None for other data.
        turns: of conversations: stretches that the assistant says without interruption; None for other data.
    """

    documents: int | None
    tokens: int
    text_bytes: int | None
    unknown: int | None
    targets: int | None = None
    turns: int | None = None

    @property
    def bytes_per_token(self) -> float | None:
        """UTF-8 bytes per token."""
        return None if self.text_bytes is None else self.text_bytes / self.tokens


@dataclass(frozen=True)
class DataStatistics:
    """Statistics of both splits, and of the documents and tokens of the training split.

    Attributes:
        duplicates: share of the documents that are exact copies of an earlier one; None if ends are not marked.
        lengths: percentiles of document lengths in tokens, without the end-of-text; with the mean as "mean".
        histogram: number of documents of 2^(i−1) … 2^i − 1 tokens, by 2^i − 1; those without tokens by 0.
        frequent: the most frequent tokens: text and share of all tokens.
        samples: the tokens of three places, as text.
        left_out: of conversations: how many are too long for a ``trainer.seq_len``, by that length; else empty.
    """

    train: SplitStatistics
    val: SplitStatistics
    duplicates: float | None
    lengths: dict[str, float]
    histogram: dict[int, int]
    frequent: list[tuple[str, float]]
    samples: list[list[str]]
    left_out: dict[int, int] = field(default_factory=dict)


def statistics_of(data: TokenData | ConversationData) -> DataStatistics:
    """The statistics of prepared data."""
    tokenizer, split = data.tokenizer, data.train
    counts = _counts(split, tokenizer.vocab_size)
    lengths, digests = _documents(split, tokenizer.eot_id)
    filled = lengths[lengths > 0]
    duplicates = 1 - len(np.unique(digests[lengths > 0])) / len(filled) if len(filled) else None
    order = np.argsort(-counts, kind="stable")[:MOST_FREQUENT]
    return DataStatistics(
        train=_split_statistics(split, tokenizer, counts, len(lengths)),
        val=_split_statistics(
            data.val,
            tokenizer,
            val_counts := _counts(data.val, tokenizer.vocab_size),
            _number_of_documents(data.val, tokenizer.eot_id, val_counts),
        ),
        duplicates=duplicates,
        lengths=_summary(lengths),
        histogram=_histogram(lengths),
        frequent=[(shown_token(tokenizer, int(i)), int(counts[i]) / split.n_tokens) for i in order if counts[i]],
        samples=[
            [shown_token(tokenizer, int(i)) for i in split.ids[start : min(start + SAMPLE_TOKENS, split.n_tokens)]]
            for start in _samples(split)
        ],
        left_out=_left_out(split) if isinstance(split, ConversationSplit) else {},
    )


def _samples(split: Split | ConversationSplit) -> list[int]:
    """Where the samples begin."""
    if isinstance(split, ConversationSplit):
        return [int(split.starts[split.n_conversations * i // SAMPLES]) for i in range(SAMPLES)]
    return [split.n_tokens * i // SAMPLES for i in range(SAMPLES)]


def _left_out(split: ConversationSplit) -> dict[int, int]:
    """How many conversations are longer than training sequences of each power of two, up to one that holds all."""
    found, seq_len = {}, SHORTEST
    while True:
        found[seq_len] = int((split.lengths > seq_len + 1).sum())
        if not found[seq_len]:
            return found
        seq_len *= 2


def shown_token(tokenizer: Tokenizer, token: int) -> str:
    """The text of a token; the spelling of a special one, and the number of an id that is no text."""
    if tokenizer.content != "text":
        return str(token)
    spelled = {i: spelling for spelling, i in tokenizer.special.items()}
    if token in spelled or token in (tokenizer.eot_id, tokenizer.unk_id):
        return spelled.get(token, "<|endoftext|>" if token == tokenizer.eot_id else "<unk>")
    return tokenizer.bytes_of(token).decode("utf-8", "backslashreplace")


def _split_statistics(
    split: Split | ConversationSplit, tokenizer: Tokenizer, counts: np.ndarray, documents: int | None
) -> SplitStatistics:
    unknown = None if tokenizer.unk_id is None else int(counts[tokenizer.unk_id])
    if isinstance(split, ConversationSplit):
        begins = split.is_target.copy()
        begins[1:] &= ~split.is_target[:-1]
        begins[split.starts[:-1]] = split.is_target[split.starts[:-1]]
        return SplitStatistics(
            documents=documents,
            tokens=split.n_tokens,
            text_bytes=int(split.lengths_of_ids @ counts),
            unknown=unknown,
            targets=int(split.targets.sum()),
            turns=int(begins.sum()),
        )
    return SplitStatistics(
        documents=documents or None,
        tokens=split.n_tokens,
        text_bytes=split.byte_count(0, split.n_tokens),
        unknown=unknown,
    )


def _counts(split: Split | ConversationSplit, vocab_size: int) -> np.ndarray:
    """How often each id occurs, int64 (vocab_size,)."""
    counts = np.zeros(vocab_size, dtype=np.int64)
    for start in range(0, split.n_tokens, BLOCK):
        counts += np.bincount(split.ids[start : start + BLOCK], minlength=vocab_size)
    return counts


def _number_of_documents(split: Split | ConversationSplit, eot_id: int | None, counts: np.ndarray) -> int | None:
    if isinstance(split, ConversationSplit):
        return split.n_conversations
    if split.row_length is not None:
        return split.n_tokens // split.row_length
    return None if eot_id is None else int(counts[eot_id]) + int(split.ids[-1] != eot_id)


def _documents(split: Split | ConversationSplit, eot_id: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Length in tokens and a 64-bit digest of each document; empty if ends are not marked."""
    lengths, digests = array("q"), array("Q")
    for start, stop in _bounds(split, eot_id):
        digest = hashlib.blake2b(digest_size=8)
        for first in range(start, stop, BLOCK):
            digest.update(split.ids[first : min(first + BLOCK, stop)].tobytes())
        lengths.append(stop - start)
        digests.append(int.from_bytes(digest.digest(), "little"))
    return np.array(lengths, dtype=np.int64), np.array(digests, dtype=np.uint64)


def _bounds(split: Split | ConversationSplit, eot_id: int | None) -> Iterator[tuple[int, int]]:
    """First token and end of each document, without its end-of-text."""
    if isinstance(split, ConversationSplit):
        yield from pairwise(split.starts.tolist())
        return
    if split.row_length is not None:
        for start in range(0, split.n_tokens, split.row_length):
            yield start, start + split.row_length
        return
    if eot_id is None:
        return
    start = 0
    for first in range(0, split.n_tokens, BLOCK):
        for end in (np.flatnonzero(split.ids[first : first + BLOCK] == eot_id) + first).tolist():
            yield start, end
            start = end + 1
    if start < split.n_tokens:
        yield start, split.n_tokens


def _summary(lengths: np.ndarray) -> dict[str, float]:
    if not len(lengths):
        return {}
    values = np.percentile(lengths, QUANTILES, method="lower")
    names = [f"p{percent}" for percent in QUANTILES]
    return {name: int(value) for name, value in zip(names, values, strict=True)} | {"mean": float(lengths.mean())}


def _histogram(lengths: np.ndarray) -> dict[int, int]:
    _, exponents = np.frexp(lengths)  # the number of bits; exact below 2^53
    counts = np.bincount(exponents)
    return {2**bits - 1: int(count) for bits, count in enumerate(counts) if count}


def as_json(statistics: DataStatistics) -> dict[str, Any]:
    """The statistics as plain JSON types."""
    sides = {"train": statistics.train, "val": statistics.val}
    of_conversations = {} if statistics.left_out else dict.fromkeys(("targets", "turns"))
    left_out = {"left_out": [[length, count] for length, count in statistics.left_out.items()]}
    return {
        **{
            name: {key: value for key, value in vars(side).items() if key not in of_conversations}
            | {"bytes_per_token": side.bytes_per_token}
            for name, side in sides.items()
        },
        "duplicates": statistics.duplicates,
        "lengths": statistics.lengths,
        "histogram": [[longest, count] for longest, count in statistics.histogram.items()],
        "frequent": [[text, share] for text, share in statistics.frequent],
        "samples": statistics.samples,
        **(left_out if statistics.left_out else {}),
    }

"""A batch of text on its way to ids: what one call, possibly in a process of its own, encodes."""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from tinyllm.tokenizers import Tokenizer


@dataclass
class EncodingStats:
    """Statistics of the encoding.

    Attributes:
        characters, bytes: amount of text that is not in the tokenizer's vocabulary.
        longest: characters of the longest piece of text.
    """

    characters: int = 0
    bytes: int = 0
    longest: int = 0

    def add(self, other: "EncodingStats") -> None:
        """Include the statistics of more text."""
        self.characters += other.characters
        self.bytes += other.bytes
        self.longest = max(self.longest, other.longest)


class Position(NamedTuple):
    """A place between two pieces of a sequence of documents.

    Attributes:
        documents: whole documents before it, each with its end-of-text.
        pieces: pieces of the next one before it.
    """

    documents: int = 0
    pieces: int = 0


@dataclass
class TextBatch:
    """Pieces of documents in order.

    Attributes:
        texts: the pieces.
        slots: the index of the next piece, or None for an end-of-text.
        length: characters of all pieces.
        end: where the batch ends.
    """

    texts: list = field(default_factory=list)
    slots: list[int | None] = field(default_factory=list)
    length: int = 0
    end: Position = field(default_factory=Position)

    def add(self, text: object, length: int) -> None:
        """Append a piece."""
        self.slots.append(len(self.texts))
        self.texts.append(text)
        self.length += length


class EncodedBatch(NamedTuple):
    """The ids of a batch.

    Attributes:
        ids: unsigned integers (n,).
        lengths: UTF-8 bytes of the text that each token stands for; None: those of the tokenizer's table.
        pending: bytes of text of a batch that gave no token at all, e.g. blanks; they belong to the next token.
        stats: its statistics.
    """

    ids: np.ndarray
    lengths: np.ndarray | None
    pending: int
    stats: EncodingStats


def encode_batch(tokenizer: Tokenizer, batch: TextBatch) -> EncodedBatch:
    """The ids of ``batch``; text without tokens counts for the next token, at the end for the last one."""
    stats = EncodingStats()
    encoded = tokenizer.encode_measured(batch.texts)
    for text, encoding in zip(batch.texts, encoded, strict=True):
        stats.add(EncodingStats(*encoding.unknown, len(text)))
    end = np.array([] if tokenizer.eot_id is None else [tokenizer.eot_id], dtype=np.uint32), None
    usual = None
    if any(encoding.lengths is not None or not len(encoding.ids) for encoding in encoded):
        usual = tokenizer.token_bytes()
    parts, all_lengths, pending = [], [], 0
    for slot in batch.slots:
        ids, lengths = end if slot is None else encoded[slot][:2]
        if not len(ids):
            pending += _size(batch.texts[slot]) if slot is not None else 0
            continue
        parts.append(ids)
        if usual is None:
            continue
        lengths = usual[ids] if lengths is None else lengths
        if pending:
            lengths = lengths.copy()
            lengths[0] += pending
            pending = 0
        all_lengths.append(lengths)
    if not parts:
        return EncodedBatch(np.zeros(0, dtype=np.uint32), None, pending, stats)
    if usual is None:
        return EncodedBatch(np.concatenate(parts), None, 0, stats)
    joined = np.concatenate(all_lengths)
    joined[-1] += pending
    return EncodedBatch(np.concatenate(parts), joined, 0, stats)


def _size(text: object) -> int:
    return len(text.encode("utf-8", "surrogatepass")) if isinstance(text, str) else 0

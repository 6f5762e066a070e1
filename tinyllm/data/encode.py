"""Encoding documents into ids as a stream, in memory bounded by a batch of text."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from tinyllm.data.corpus import Document
from tinyllm.tokenizers import Tokenizer

PIECE = 2**16  # characters per piece, small enough to spread a batch evenly over two cores
BATCH = 2**21  # characters per batch, which bounds the memory

IdsAndLengths = tuple[np.ndarray, np.ndarray | None]


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


def encode_documents(
    tokenizer: Tokenizer,
    documents: Iterable[Document],
    *,
    piece: int = PIECE,
    batch: int = BATCH,
    stats: EncodingStats | None = None,
) -> Iterator[IdsAndLengths]:
    """The ids of all documents in order, each followed by an end-of-text, in arrays of about a batch.

    With the ids come the UTF-8 bytes of each token, or None if they are those of the tokenizer's table. They add up to
    the bytes of the documents.

    Args:
        stats: receives the statistics.
    """
    encoder = _Encoder(tokenizer, EncodingStats() if stats is None else stats)
    texts: list = []
    slots: list[int | None] = []  # the index of the next text; None: an end-of-text
    length = 0
    for document in documents:
        for text in tokenizer.pieces(document.chunks(), piece):
            slots.append(len(texts))
            texts.append(text)
            length += len(text)
            if length >= batch:
                yield encoder.encode(texts, slots)
                texts, slots, length = [], [], 0
        if tokenizer.eot_id is not None:
            slots.append(None)
    if slots:
        yield encoder.encode(texts, slots)


class _Encoder:
    def __init__(self, tokenizer: Tokenizer, stats: EncodingStats) -> None:
        self._tokenizer = tokenizer
        self._stats = stats
        self._end: IdsAndLengths = (np.array([tokenizer.eot_id if tokenizer.eot_id is not None else 0]), None)
        self._pending = 0  # bytes of text that produced no token, e.g. blanks; they are added to the next token

    def encode(self, texts: list, slots: list[int | None]) -> IdsAndLengths:
        """The ids of one batch, and their bytes."""
        encoded = self._tokenizer.encode_measured(texts)
        for text, encoding in zip(texts, encoded, strict=True):
            self._stats.longest = max(self._stats.longest, len(text))
            self._stats.characters += encoding.unknown[0]
            self._stats.bytes += encoding.unknown[1]
        usual = (
            self._tokenizer.token_bytes()
            if any(encoding.lengths is not None or not len(encoding.ids) for encoding in encoded)
            else None
        )
        parts = []
        for slot in slots:
            ids, lengths = self._end if slot is None else encoded[slot][:2]
            if not len(ids):
                self._pending += _size(texts[slot]) if slot is not None else 0
                continue
            if usual is not None and lengths is None:
                lengths = usual[ids]
            if self._pending and lengths is not None:
                lengths = lengths.copy()
                lengths[0] += self._pending
                self._pending = 0
            parts.append((ids, lengths))
        if not parts:
            return np.zeros(0, dtype=np.int64), None
        ids = np.concatenate([ids for ids, _ in parts])
        if usual is None:
            return ids, None
        lengths = np.concatenate([lengths for _, lengths in parts if lengths is not None])
        lengths[-1] += self._pending
        self._pending = 0
        return ids, lengths


def _size(text: object) -> int:
    return len(text.encode("utf-8", "surrogatepass")) if isinstance(text, str) else 0

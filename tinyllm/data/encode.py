"""Documents to ids, in a stream: memory is bounded by a batch, whatever the size of the corpus."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from tinyllm.data.corpus import Document
from tinyllm.tokenizers import Tokenizer

PIECE = 2**16  # characters per piece: small enough that two cores share a batch evenly
BATCH = 2**21  # characters per batch: what is in memory at a time

Encoded = tuple[np.ndarray, np.ndarray | None]


@dataclass
class Tally:
    """What there is to tell about the encoding.

    Attributes:
        characters, bytes: of the text that the tokenizer cannot express.
        longest: characters of the longest text that was encoded in one piece.
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
    tally: Tally | None = None,
) -> Iterator[Encoded]:
    """The ids of all documents in order, an end-of-text after each, in arrays of about a batch.

    Beside the ids come the UTF-8 bytes of each token, or None if they are the tokenizer's usual ones. Every byte of the
    documents is counted.

    Args:
        tally: added to.
    """
    encoder = _Encoder(tokenizer, Tally() if tally is None else tally)
    texts: list = []
    slots: list[int | None] = []  # which text comes next; None: an end-of-text
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
    def __init__(self, tokenizer: Tokenizer, tally: Tally) -> None:
        self._tokenizer = tokenizer
        self._tally = tally
        self._end: Encoded = (np.array([tokenizer.eot_id if tokenizer.eot_id is not None else 0]), None)
        self._pending = 0  # bytes of text that became no token, e.g. blanks: the next token stands for them

    def encode(self, texts: list, slots: list[int | None]) -> Encoded:
        """One batch."""
        encoded = self._tokenizer.encode_measured(texts)
        for text, one in zip(texts, encoded, strict=True):
            self._tally.longest = max(self._tally.longest, len(text))
            self._tally.characters += one.unknown[0]
            self._tally.bytes += one.unknown[1]
        usual = (
            self._tokenizer.token_bytes()
            if any(one.lengths is not None or not len(one.ids) for one in encoded)
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

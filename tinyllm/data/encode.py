"""Documents to ids, in a stream: memory is bounded by a batch, whatever the size of the corpus."""

from collections.abc import Iterable, Iterator

import numpy as np

from tinyllm.data.corpus import Document
from tinyllm.tokenizers import Tokenizer

PIECE = 2**16  # characters per piece: small enough that two cores share a batch evenly
BATCH = 2**21  # characters per batch: what is in memory at a time

Encoded = tuple[np.ndarray, np.ndarray | None]


def encode_documents(
    tokenizer: Tokenizer, documents: Iterable[Document], *, piece: int = PIECE, batch: int = BATCH
) -> Iterator[Encoded]:
    """The ids of all documents in order, an end-of-text after each, in arrays of about a batch.

    Beside the ids come the UTF-8 bytes of each token, or None if they are the tokenizer's usual ones.
    """
    end = None if tokenizer.eot_id is None else (np.array([tokenizer.eot_id]), None)
    texts: list = []
    slots: list[int | None] = []  # which text comes next; None: an end-of-text
    length = 0
    for document in documents:
        for text in tokenizer.pieces(document.chunks(), piece):
            slots.append(len(texts))
            texts.append(text)
            length += len(text)
            if length >= batch:
                yield _encode(tokenizer, texts, slots, end)
                texts, slots, length = [], [], 0
        if end is not None:
            slots.append(None)
    if slots:
        yield _encode(tokenizer, texts, slots, end)


def _encode(tokenizer: Tokenizer, texts: list, slots: list[int | None], end: Encoded | None) -> Encoded:
    encoded = tokenizer.encode_counted(texts)
    parts = [encoded[slot] if slot is not None else end for slot in slots]
    assert all(part is not None for part in parts)
    ids = np.concatenate([part[0] for part in parts if part is not None])
    if all(part is None or part[1] is None for part in parts):
        return ids, None
    usual = tokenizer.token_bytes()
    counted = [usual[part[0]] if part[1] is None else part[1] for part in parts if part is not None]
    return ids, np.concatenate(counted)

"""Encoding documents into ids as a stream, in memory bounded by a few batches of text, on all cores."""

from collections.abc import Generator, Iterable, Iterator
from itertools import chain

import numpy as np

from tinyllm.data.corpus import Document
from tinyllm.data.encoding_pool import EncodingPool
from tinyllm.data.text_batch import EncodedBatch, EncodingStats, TextBatch, encode_batch
from tinyllm.tokenizers import Tokenizer
from tinyllm.utils.platforms import usable_cpus

PIECE = 2**16  # characters per piece
BATCH = 2**21  # characters per batch, which bounds the memory
ALONE = 2**24
"""Characters that this process encodes by itself before it starts others, which takes them about a second."""
MOST_PROCESSES = 16
"""Beyond it, reading the documents in this process is slower than encoding them."""

IdsAndLengths = tuple[np.ndarray, np.ndarray | None]


def encode_documents(
    tokenizer: Tokenizer,
    documents: Iterable[Document],
    *,
    piece: int = PIECE,
    batch: int = BATCH,
    stats: EncodingStats | None = None,
) -> Generator[IdsAndLengths, None, None]:
    """The ids of all documents in order, each followed by an end-of-text, in arrays of about a batch.

    With the ids come the UTF-8 bytes of each token, or None if they are those of the tokenizer's table. They add up to
    the bytes of the documents.

    Args:
        stats: receives the statistics.
    """
    pending = 0  # bytes of text in batches without any token
    for encoded in _on_all_cores(tokenizer, _batches(tokenizer, documents, piece, batch)):
        if stats is not None:
            stats.add(encoded.stats)
        ids, lengths = encoded.ids, encoded.lengths
        pending += encoded.pending
        if pending and len(ids):
            lengths = tokenizer.token_bytes()[ids] if lengths is None else lengths
            lengths[0] += pending
            pending = 0
        yield ids, lengths


def _batches(tokenizer: Tokenizer, documents: Iterable[Document], piece: int, size: int) -> Iterator[TextBatch]:
    batch = TextBatch()
    for document in documents:
        for text in tokenizer.pieces(document.chunks(), piece):
            batch.add(text, len(text))
            if batch.length >= size:
                yield batch
                batch = TextBatch()
        if tokenizer.eot_id is not None:
            batch.slots.append(None)
    if batch.slots:
        yield batch


def _on_all_cores(tokenizer: Tokenizer, batches: Iterator[TextBatch]) -> Iterator[EncodedBatch]:
    processes = min(usable_cpus(), MOST_PROCESSES)
    done = 0
    for batch in batches:
        if tokenizer.is_slow and processes > 1 and done >= ALONE:
            with EncodingPool(tokenizer, processes) as pool:
                yield from pool.encode(chain([batch], batches))
            return
        done += batch.length
        yield encode_batch(tokenizer, batch)

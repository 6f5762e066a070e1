"""Encoding documents into ids as a stream, in memory bounded by a few batches of text, on all cores."""

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from itertools import chain, islice
from typing import NamedTuple

import numpy as np

from tinyllm.data.corpus import Document
from tinyllm.data.encoding_pool import EncodingPool
from tinyllm.data.text_batch import EncodedBatch, EncodingStats, Position, TextBatch, encode_batch
from tinyllm.tokenizers import Tokenizer
from tinyllm.utils.platforms import usable_cpus

PIECE = 2**16  # characters per piece
BATCH = 2**21  # characters per batch, which bounds the memory
ALONE = 2**24
"""Characters that this process encodes by itself before it starts others, which takes them about a second."""
MOST_PROCESSES = 16
"""Beyond it, reading the documents in this process is slower than encoding them."""
BEGINNING = Position()


class EncodedText(NamedTuple):
    """Ids of consecutive text.

    Attributes:
        ids: unsigned integers (n,).
        lengths: UTF-8 bytes of the text that each token stands for; None: those of the tokenizer's table.
        end: where the text ends; encoding can start anew from there. None: it cannot, because the last text gave no
            token and its bytes count for the next one.
    """

    ids: np.ndarray
    lengths: np.ndarray | None
    end: Position | None


def encode_documents(
    tokenizer: Tokenizer,
    documents: Iterable[Document],
    *,
    piece: int = PIECE,
    batch: int = BATCH,
    stats: EncodingStats | None = None,
    start: Position = BEGINNING,
) -> Generator[EncodedText, None, None]:
    """The ids of all documents in order, each followed by an end-of-text, in arrays of about a batch.

    With the ids come the UTF-8 bytes of each token, or None if they are those of the tokenizer's table. They add up to
    the bytes of the documents.

    Args:
        stats: receives the statistics.
        start: where to start; an ``end`` of an earlier call with the same documents and sizes. The arrays are then
            those that followed it.
    """
    pending = 0  # bytes of text in batches without any token
    ends: deque[Position] = deque()
    batches = _noting_ends(_batches(tokenizer, documents, piece, batch, start), ends)
    for encoded in _on_all_cores(tokenizer, batches):
        if stats is not None:
            stats.add(encoded.stats)
        ids, lengths = encoded.ids, encoded.lengths
        pending += encoded.pending
        if pending and len(ids):
            lengths = tokenizer.token_bytes()[ids] if lengths is None else lengths
            lengths[0] += pending
            pending = 0
        end = ends.popleft()
        yield EncodedText(ids, lengths, None if pending else end)


def _noting_ends(batches: Iterator[TextBatch], ends: deque[Position]) -> Iterator[TextBatch]:
    """``batches``, with the end of each appended to ``ends``; the encoded ones come in the same order."""
    for batch in batches:
        ends.append(batch.end)
        yield batch


def _batches(
    tokenizer: Tokenizer, documents: Iterable[Document], piece: int, size: int, start: Position
) -> Iterator[TextBatch]:
    batch, done, skipped = TextBatch(), start.documents, start.pieces
    for document in islice(documents, start.documents, None):
        n_pieces = skipped
        for text in islice(tokenizer.pieces(document.chunks(), piece), skipped, None):
            n_pieces += 1
            batch.add(text, len(text))
            if batch.length >= size:
                batch.end = Position(done, n_pieces)
                yield batch
                batch = TextBatch()
        done, skipped = done + 1, 0
        if tokenizer.eot_id is not None:
            batch.slots.append(None)
    if batch.slots:
        batch.end = Position(done)
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

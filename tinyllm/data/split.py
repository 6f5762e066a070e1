"""Which documents train and which validate: never the same text on both sides."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from tinyllm.data.corpus import Document, Source
from tinyllm.errors import UserError


@dataclass(frozen=True)
class Parts:
    """The two sides of a source. Each function reads its side; call it again to read again."""

    train: Callable[[], Iterator[Document]]
    val: Callable[[], Iterator[Document]]
    train_documents: int
    train_size: int
    notes: list[str] = field(default_factory=list)


def split(source: Source, val_fraction: float) -> Parts:
    """Splits by document; a single document is cut, and its tail is validation.

    Documents of the same content stay together. In the order of their hashes they fill validation as long as
    they fit into ``val_fraction`` of the bytes, so the choice depends on the documents alone; at least one,
    the smallest, goes there, and at least one stays.

    Raises:
        UserError: there is no text, or too little of it for two sides.
    """
    keys, sizes = _measure(source.documents())
    if source.validation is not None:
        return _given(source, source.validation, keys, sizes)
    if not len(keys):
        raise UserError("there is nothing in the data set", hint="choose another dataset.path")
    groups, inverse = np.unique(keys, return_inverse=True)
    if len(groups) == 1:
        return _cut(source, val_fraction, len(keys))
    group_sizes = np.bincount(inverse, weights=sizes)
    chosen = _fill(group_sizes, val_fraction * float(sizes.sum()))
    validating = groups[chosen]  # sorted, since groups is
    in_val = chosen[inverse]
    return Parts(
        train=partial(_choose, source.documents, validating, False),
        val=partial(_choose, source.documents, validating, True),
        train_documents=int((~in_val).sum()),
        train_size=int(sizes[~in_val].sum()),
    )


def _measure(documents: Iterable[Document]) -> tuple[np.ndarray, np.ndarray]:
    """The first 8 bytes of every digest, and the sizes: 16 bytes per document."""
    pairs = np.fromiter(
        ((_key(document), document.size) for document in documents),
        dtype=[("key", np.uint64), ("size", np.int64)],
    )
    return pairs["key"], pairs["size"]


def _key(document: Document) -> int:
    return int.from_bytes(document.digest[:8], "big")


def _fill(sizes: np.ndarray, target: float) -> np.ndarray:
    """Mask of the groups, in order, that fit one after the other into ``target``; the smallest if none does."""
    chosen = np.zeros(len(sizes), dtype=bool)
    smallest, free = float(sizes.min()), target
    for i, size in enumerate(sizes):
        if size <= free:
            chosen[i] = True
            free -= size
            if free < smallest:
                break
    if not chosen.any():
        chosen[int(sizes.argmin())] = True
    return chosen


def _choose(documents: Callable[[], Iterator[Document]], keys: np.ndarray, inside: bool) -> Iterator[Document]:
    """The documents whose key is in the sorted ``keys``, or is not."""
    for document in documents():
        key = np.uint64(_key(document))
        i = int(np.searchsorted(keys, key))
        if (i < len(keys) and keys[i] == key) == inside:
            yield document


def _given(source: Source, validation: Callable[[], Iterator[Document]], keys: np.ndarray, sizes: np.ndarray) -> Parts:
    val_keys = np.unique(_measure(validation())[0])
    both = np.isin(keys, val_keys)
    if both.all():
        raise UserError("all of the training data are in validation too", hint="give dataset.val_path other data")
    notes = []
    if both.any():
        notes.append(f"{int(both.sum()):,} training documents are also in validation and were left out of training.")
    return Parts(
        train=partial(_choose, source.documents, val_keys, False),
        val=validation,
        train_documents=int((~both).sum()),
        train_size=int(sizes[~both].sum()),
        notes=notes,
    )


def _cut(source: Source, val_fraction: float, copies: int) -> Parts:
    if source.rows:
        raise UserError("a single row cannot be split", hint="give more rows, or dataset.val_path")
    document = next(source.documents())
    length = sum(len(chunk) for chunk in document.chunks())
    head = int(length * (1 - val_fraction))
    notes = [] if copies == 1 else [f"All {copies:,} documents are the same text; it was used once."]
    return Parts(
        train=partial(_part, document, 0, head),
        val=partial(_part, document, head, length),
        train_documents=1,
        train_size=int(document.size * (1 - val_fraction)),
        notes=notes,
    )


def _part(document: Document, start: int, stop: int) -> Iterator[Document]:
    """Characters start … stop−1 of a document, as a document."""
    if stop > start:
        yield Document(document.digest, document.size, partial(_slice, document.chunks, start, stop))


def _slice(chunks: Callable[[], Iterator[Any]], start: int, stop: int) -> Iterator[Any]:
    position = 0
    for chunk in chunks():
        end = position + len(chunk)
        if end > start:
            yield chunk[max(0, start - position) : stop - position]
        if end >= stop:
            return
        position = end

"""Split of documents into training and validation, with no text in both."""

from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from tinyllm.data.corpus import Document, Source
from tinyllm.errors import UserError

RULES = 2
"""Version of the rules below. Under version 1, which early runs used, only documents with equal bytes counted as equal,
and validation consisted of whole documents, however far its size was from the requested one."""
TOLERANCE = 1.5
"""Factor by which the size of validation may be off before a document is cut."""
SHORTEST = 2
"""Fewest bytes of either part of a cut document, because prediction needs two tokens."""

IdentityOf = Callable[[Document], bytes]


@dataclass(frozen=True)
class Parts:
    """The training and validation documents of a source; each function reads them anew."""

    train: Callable[[], Iterator[Document]]
    val: Callable[[], Iterator[Document]]
    train_documents: int
    train_size: int
    notes: list[str] = field(default_factory=list)


def split(source: Source, val_fraction: float, *, rules: int = RULES) -> Parts:
    """Split by document; a single document is cut, and its tail is validation.

    Documents with the same text stay together. In the order of their hashes, documents that fit into ``val_fraction``
    of the bytes go to validation, at least one; so the choice depends on the documents alone and not on their order on
    disk. If that gives far more or less than requested (few documents, or a dominating one), the tail of the largest
    document completes validation.

    Raises:
        UserError: there is no text, or too little for two splits.
    """
    parts = _split(source, val_fraction, rules=rules)
    return parts if source.held_out is None else _without(parts, source.held_out(), _identity(rules), source)


def identities(documents: Iterable[Document], *, rules: int = RULES) -> np.ndarray:
    """What identifies each document, by its text, uint64; equal documents have equal identities."""
    identity = _identity(rules)
    return np.fromiter((_key(identity(document)) for document in documents), dtype=np.uint64)


def _split(source: Source, val_fraction: float, *, rules: int) -> Parts:
    identity = _identity(rules)
    documents = _Measured.of(source.documents(), identity)
    if source.validation is not None:
        return _given(source, source.validation, documents, identity)
    if not len(documents.keys):
        raise UserError("no documents", key="dataset.path", value=source.path, hint="use other data")
    groups, first, inverse = np.unique(documents.keys, return_index=True, return_inverse=True)
    if len(groups) == 1:
        return _cut_only(source, val_fraction, len(documents.keys))
    sizes = np.bincount(inverse, weights=documents.sizes)
    order = np.full(len(groups), np.iinfo(np.uint64).max, dtype=np.uint64)
    np.minimum.at(order, inverse, documents.order)
    total = float(documents.sizes.sum())
    chosen = _fill(sizes, order, val_fraction * total)
    share = float(sizes[chosen].sum()) / total
    if rules == 1 or share / TOLERANCE <= val_fraction <= share * TOLERANCE:
        return _whole(source, documents, groups, inverse, chosen, identity)
    if source.rows or min(val_fraction * total, float(documents.sizes.max()) / 2) < SHORTEST:
        reason = "rows are not cut" if source.rows else "there is too little text to cut a document"
        note = f"Validation is {share:.1%} of the data instead of {val_fraction:.1%}: {reason}."
        return _whole(source, documents, groups, inverse, chosen, identity, [note])
    return _cut_one(source, documents, val_fraction, (groups, first, inverse), chosen, share)


def _without(parts: Parts, held_out: np.ndarray, identity: IdentityOf, source: Source) -> Parts:
    """The parts without the training documents whose identity is in ``held_out``.

    Raises:
        UserError: nothing is left.
    """
    train = partial(_choose, parts.train, held_out, False, identity)
    sizes = [document.size for document in _choose(parts.train, held_out, True, identity)] if len(held_out) else []
    if not sizes:
        return parts
    if len(sizes) == parts.train_documents:
        hint = "leave one of the two sources out"
        what = "all training documents are in the validation part of another source"
        raise UserError(what, key="dataset.path", value=source.path, hint=hint)
    found = "1 training document is" if len(sizes) == 1 else f"{len(sizes):,} training documents are"
    note = f"{found} in the validation part of another source and {'was' if len(sizes) == 1 else 'were'} left out."
    return replace(
        parts,
        train=train,
        train_documents=parts.train_documents - len(sizes),
        train_size=max(0, parts.train_size - sum(sizes)),
        notes=[*parts.notes, note],
    )


def _identity(rules: int) -> IdentityOf:
    return _text_of if rules > 1 else _bytes_of


def _text_of(document: Document) -> bytes:
    return document.text_digest


def _bytes_of(document: Document) -> bytes:
    return document.digest


def _key(digest: bytes) -> int:
    return int.from_bytes(digest[:8], "big")


@dataclass(frozen=True)
class _Measured:
    """All documents as arrays, 24 bytes each: identity, order and size."""

    keys: np.ndarray
    order: np.ndarray
    sizes: np.ndarray

    @classmethod
    def of(cls, documents: Iterable[Document], identity: IdentityOf) -> "_Measured":
        rows = np.fromiter(
            ((_key(identity(document)), _key(document.digest), document.size) for document in documents),
            dtype=[("key", np.uint64), ("order", np.uint64), ("size", np.int64)],
        )
        return cls(rows["key"], rows["order"], rows["size"])


def _fill(sizes: np.ndarray, order: np.ndarray, target: float) -> np.ndarray:
    """Mask of the groups that fit into ``target``, taken in ``order``; the smallest group if none fits."""
    chosen = np.zeros(len(sizes), dtype=bool)
    smallest, free = float(sizes.min()), target
    ranks = np.argsort(order, kind="stable")
    for i in ranks:
        if sizes[i] <= free:
            chosen[i] = True
            free -= sizes[i]
            if free < smallest:
                break
    if not chosen.any():
        chosen[ranks[int(sizes[ranks].argmin())]] = True
    return chosen


def _whole(
    source: Source,
    documents: _Measured,
    groups: np.ndarray,
    inverse: np.ndarray,
    chosen: np.ndarray,
    identity: IdentityOf,
    notes: Iterable[str] = (),
) -> Parts:
    """Validation consists of the chosen groups, training of the rest."""
    validating = groups[chosen]  # sorted, since groups is
    in_val = chosen[inverse]
    return Parts(
        train=partial(_choose, source.documents, validating, False, identity),
        val=partial(_choose, source.documents, validating, True, identity),
        train_documents=int((~in_val).sum()),
        train_size=int(documents.sizes[~in_val].sum()),
        notes=list(notes),
    )


def _choose(
    documents: Callable[[], Iterator[Document]], keys: np.ndarray, inside: bool, identity: IdentityOf
) -> Iterator[Document]:
    """The documents whose key is in the sorted ``keys`` (``inside``) or is not."""
    known = _listed(keys)
    for document in documents():
        if _is_in(known, _key(identity(document))) == inside:
            yield document


def _listed(keys: np.ndarray) -> Sequence[int]:
    """The keys in the container in which the search for a single one is fastest, four times as fast as in NumPy's."""
    return array("Q", keys.astype(np.uint64).tobytes())


def _is_in(keys: Sequence[int], key: int) -> bool:
    i = bisect_left(keys, key)
    return i < len(keys) and keys[i] == key


def _cut_one(
    source: Source,
    documents: _Measured,
    val_fraction: float,
    grouped: tuple[np.ndarray, np.ndarray, np.ndarray],
    chosen: np.ndarray,
    share: float,
) -> Parts:
    """Validation consists of the tail of the largest document and, if they are too small, of the chosen groups."""
    groups, first, inverse = grouped
    total = float(documents.sizes.sum())
    if share > val_fraction:
        chosen = np.zeros_like(chosen)
    missing = val_fraction * total - float(documents.sizes[chosen[inverse]].sum())
    largest = int(np.where(chosen, -1, documents.sizes[first]).argmax())
    size = int(documents.sizes[first[largest]])
    tail = min(missing / size, 0.9)  # capped: a document with many copies may be smaller than what is missing
    of_largest = inverse == largest
    whole_train = ~chosen[inverse] & ~of_largest
    notes = [
        f"Split by whole documents, validation would be {share:.1%} of the data instead of {val_fraction:.1%}, so it"
        f" {'also includes' if chosen.any() else 'consists of'} the last {tail:.1%} of the largest one."
    ]
    if of_largest.sum() > 1:
        notes.append(f"The largest document occurs {int(of_largest.sum()):,} times and was used once.")
    sides = partial(_choose_or_cut, source.documents, groups[chosen], int(groups[largest]), tail)
    return Parts(
        train=partial(sides, False),
        val=partial(sides, True),
        train_documents=int(whole_train.sum()) + 1,
        train_size=int(documents.sizes[whole_train].sum()) + int(size * (1 - tail)),
        notes=notes,
    )


def _choose_or_cut(
    documents: Callable[[], Iterator[Document]], keys: np.ndarray, divided: int, tail: float, inside: bool
) -> Iterator[Document]:
    """The documents whose key is in the sorted ``keys`` (``inside``) or is not, and a part of the document ``divided``.

    Its copies are in neither split: with different line endings they would be cut at a different character.
    """
    done, known = False, _listed(keys)
    for document in documents():
        key = _key(document.text_digest)
        if key != divided:
            if _is_in(known, key) == inside:
                yield document
        elif not done:
            done = True
            yield from _side(document, tail, inside)


def _given(
    source: Source, validation: Callable[[], Iterator[Document]], documents: _Measured, identity: IdentityOf
) -> Parts:
    val_keys = np.unique(_Measured.of(validation(), identity).keys)
    both = np.isin(documents.keys, val_keys)
    if both.all():
        hint = "use other data, or omit dataset.val_path to split off a part"
        what = "all training documents are also in validation"
        raise UserError(what, key="dataset.val_path", value=source.val_path, hint=hint)
    notes = []
    if both.any():
        count = int(both.sum())
        found = "1 training document is" if count == 1 else f"{count:,} training documents are"
        notes.append(f"{found} also in validation and {'was' if count == 1 else 'were'} left out of training.")
    return Parts(
        train=partial(_choose, source.documents, val_keys, False, identity),
        val=validation,
        train_documents=int((~both).sum()),
        train_size=int(documents.sizes[~both].sum()),
        notes=notes,
    )


def _cut_only(source: Source, val_fraction: float, copies: int) -> Parts:
    """Both splits are parts of the only document."""
    if source.rows:
        hint = "use more rows, or set dataset.val_path"
        what = (
            "a single row cannot be split" if copies == 1 else f"all {copies:,} rows are identical and cannot be split"
        )
        raise UserError(what, key="dataset.path", value=source.path, hint=hint)
    document = next(source.documents())
    notes = [] if copies == 1 else [f"All {copies:,} documents are the same text; it was used once."]
    return Parts(
        train=partial(_side, document, val_fraction, False),
        val=partial(_side, document, val_fraction, True),
        train_documents=1,
        train_size=int(document.size * (1 - val_fraction)),
        notes=notes,
    )


def _side(document: Document, tail: float, inside: bool) -> Iterator[Document]:
    """The last fraction ``tail`` of a document's characters as a document (``inside``), or the part before it."""
    length = sum(len(chunk) for chunk in document.chunks())
    head = int(length * (1 - tail))
    start, stop = (head, length) if inside else (0, head)
    if stop > start:
        yield Document(
            document.digest, document.size, partial(_slice, document.chunks, start, stop), document.text_digest
        )


def _slice(chunks: Callable[[], Iterator[Any]], start: int, stop: int) -> Iterator[Any]:
    position = 0
    for chunk in chunks():
        end = position + len(chunk)
        if end > start:
            yield chunk[max(0, start - position) : stop - position]
        if end >= stop:
            return
        position = end

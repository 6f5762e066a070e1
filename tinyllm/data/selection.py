"""What becomes of a corpus' documents before they are split: cleaned, normalized, without copies, the first so many."""

import codecs
import hashlib
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np

from tinyllm.data.document import Document
from tinyllm.data.wikitext_cleaner import clean_article
from tinyllm.errors import UserError

CHUNK = 2**20  # bytes per string when a document is decoded
PIECE = 2**16  # characters per string when tokens are counted
Documents = Callable[[], Iterator[Document]]
Count = Callable[[Any], int]
"""The number of tokens of a text."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The documents of a corpus that are used, and their text.

    Attributes:
        clean: "wikitext": undo the tokenization of WikiText; "" for none.
        normalize: "nfc": Unicode normalization form C; "none".
        dedup: leave out documents whose text occurred before.
        max_documents, max_tokens: use the first so many; None: all. The last document is cut.
    """

    clean: str = ""
    normalize: str = "none"
    dedup: bool = False
    max_documents: int | None = None
    max_tokens: int | None = None

    @property
    def changes_text(self) -> bool:
        """Whether documents differ from what is stored."""
        return bool(self.clean) or self.normalize != "none"

    @property
    def uses_every_document(self) -> bool:
        """Whether no document is left out."""
        return not self.dedup and self.max_documents is None and self.max_tokens is None

    @property
    def is_all(self) -> bool:
        """Whether every document is used as it is stored."""
        return self == Selection()

    def settings(self) -> list[Any]:
        """Settings that the documents depend on, as JSON values; empty if every one is used as it is."""
        return [] if self.is_all else [self.clean, self.normalize, self.dedup, self.max_documents, self.max_tokens]

    def text_of(self, documents: Documents) -> Documents:
        """The documents with their text cleaned and normalized."""
        if not self.changes_text:
            return documents
        return lambda: map(self._changed, documents())

    def of(self, documents: Documents, *, count: Count, notes: list[str]) -> Documents:
        """The selected documents; the same at every call.

        Args:
            count: counts the tokens of a text, for ``max_tokens``.
            notes: receives what was left out, once it is known.
        """
        chosen = self.text_of(documents)
        if self.dedup:
            chosen = _Distinct(chosen, notes)
        if self.max_documents is not None or self.max_tokens is not None:
            chosen = _First(chosen, self.max_documents, self.max_tokens, count)
        return chosen

    def _changed(self, document: Document) -> Document:
        chunks = document.chunks
        if self.clean:  # its documents are articles, which fit in memory
            chunks = partial(iter, (clean_article("".join(chunks())),))
        if self.normalize != "none":
            chunks = partial(_normalized, chunks)
        digest, size = hashlib.sha256(), 0
        for chunk in chunks():
            data = chunk.encode()
            digest.update(data)
            size += len(data)
        return Document(document.digest, size, chunks, digest.digest())


def _normalized(chunks: Callable[[], Iterator[str]]) -> Iterator[str]:
    """Text in normalization form C, chunk by chunk: a chunk is cut only before a character that joins nothing before
    it."""
    held = ""
    for chunk in chunks():
        text = held + chunk
        cut = next((i for i in range(len(text) - 1, 0, -1) if _stands_alone(text[i])), 0)
        if cut:
            yield unicodedata.normalize("NFC", text[:cut])
        held = text[cut:]
    if held:
        yield unicodedata.normalize("NFC", held)


def _stands_alone(character: str) -> bool:
    """Whether normalization never joins a character with what precedes it: those before U+0300, kana and ideographs."""
    return character < "\u0300" or ("\u3000" <= character <= "\u9fff" and not unicodedata.combining(character))


class _Distinct:
    """The documents whose text did not occur before."""

    def __init__(self, documents: Documents, notes: list[str]) -> None:
        self._documents, self._notes = documents, notes
        self._note = ""
        self._read = 0

    def __call__(self) -> Iterator[Document]:
        seen, copies, size, number = SeenKeys(), 0, 0, 0
        try:
            for number, document in enumerate(self._documents(), start=1):  # noqa: B007 - used below
                if seen.add(int.from_bytes(document.text_digest[:8], "big")):
                    yield document
                else:
                    copies += 1
                    size += document.size
        finally:  # reached also where a reader stops early, as with max_tokens
            if number > self._read:
                self._read = number
                self._tell(copies, size)

    def _tell(self, copies: int, size: int) -> None:
        """Replace the note on what was left out with that of a pass that read more."""
        if self._note:
            self._notes.remove(self._note)
        noun, was = ("copy", "was") if copies == 1 else ("copies", "were")
        self._note = f"{copies:,} exact {noun} of earlier documents ({size:,} bytes) {was} left out."
        self._notes.append(self._note)


class SeenKeys:
    """A set of 64-bit integers in about 16 bytes each, where Python's own takes 60."""

    def __init__(self) -> None:
        self._recent: set[int] = set()
        self._sorted = np.zeros(0, dtype=np.uint64)

    def add(self, key: int) -> bool:
        """Add a key; returns whether it is new."""
        i = int(np.searchsorted(self._sorted, np.uint64(key)))
        if key in self._recent or (i < len(self._sorted) and int(self._sorted[i]) == key):
            return False
        self._recent.add(key)
        if len(self._recent) >= max(2**12, len(self._sorted) // 16):
            recent = np.fromiter(self._recent, dtype=np.uint64, count=len(self._recent))
            self._sorted = np.sort(np.concatenate([self._sorted, recent]))
            self._recent.clear()
        return True


class _First:
    """The first so many documents or tokens. The first complete pass counts, and later ones stop at the same place."""

    def __init__(self, documents: Documents, max_documents: int | None, max_tokens: int | None, count: Count) -> None:
        self._documents, self._count = documents, count
        self._max_documents, self._max_tokens = max_documents, max_tokens
        self._end: tuple[int, int | None] | None = None
        """Number of documents and, of the last one, the characters that are used."""

    def __call__(self) -> Iterator[Document]:
        if self._end is not None:
            number, length = self._end
            for i, document in enumerate(islice(self._documents(), number), start=1):
                yield document if i < number or length is None else _start_of(document, length)
            return
        number, tokens = 0, 0
        for document in islice(self._documents(), self._max_documents):
            number += 1
            if self._max_tokens is not None:
                length, more = _fitting(document, self._max_tokens - tokens, self._count)
                tokens += more
                if tokens >= self._max_tokens:
                    self._end = number, length
                    yield _start_of(document, length)
                    return
            yield document
        self._end = number, None


def _fitting(document: Document, tokens: int, count: Count) -> tuple[int, int]:
    """The beginning of a document that has at most so many tokens: its characters (or ids), and its tokens."""
    length, total = 0, 0
    for chunk in document.chunks():
        for start in range(0, len(chunk), PIECE):
            piece = chunk[start : start + PIECE]
            more = count(piece)
            if total + more >= tokens:
                return length + _position(piece, tokens - total, count), tokens
            total += more
            length += len(piece)
    return length, total


def _position(piece: Any, tokens: int, count: Count) -> int:
    """The shortest beginning of a piece that has so many tokens, by bisection."""
    low, high = 0, len(piece)
    while low < high:
        middle = (low + high) // 2
        if count(piece[:middle]) >= tokens:
            high = middle
        else:
            low = middle + 1
    return low


def _start_of(document: Document, length: int) -> Document:
    """The first ``length`` characters. It still counts as equal to copies of the whole, so that none gets into the
    other split."""
    chunks = partial(_up_to, document.chunks, length)
    size = sum(len(chunk.encode()) if isinstance(chunk, str) else chunk.nbytes for chunk in chunks())
    return document._replace(size=size, chunks=chunks)


def _up_to(chunks: Callable[[], Iterator[Any]], length: int) -> Iterator[Any]:
    for chunk in chunks():
        if length <= 0:
            return
        yield chunk[:length]
        length -= len(chunk)


def selection_of(
    *, clean: str | bool, normalize: str, dedup: str | bool, max_documents: int | None, max_tokens: int | None
) -> Selection:
    """The selection that the keys of a data set describe.

    Raises:
        UserError: a value that is not allowed.
    """
    for key, value, allowed in (
        ("clean", clean, (False, True, "wikitext")),
        ("normalize", normalize, ("none", "nfc")),
        ("dedup", dedup, (False, "exact")),
    ):
        if value not in allowed:
            words = [str(choice).lower() for choice in allowed if choice is not True]
            raise UserError("unknown value", key=f"dataset.{key}", value=value, hint=f"one of {', '.join(words)}")
    for key, number in (("max_documents", max_documents), ("max_tokens", max_tokens)):
        if number is not None and number < 1:
            raise UserError("value out of range", key=f"dataset.{key}", value=number, hint="at least 1; null for all")
    return Selection(
        clean="wikitext" if clean else "",
        normalize=normalize,
        dedup=dedup == "exact",
        max_documents=max_documents,
        max_tokens=max_tokens,
    )


def text_documents(texts: Iterable[bytes]) -> Iterator[Document]:
    """A document of each text, given in UTF-8; texts that differ in their line endings alone count as equal."""
    for data in texts:
        digest = same = hashlib.sha256(data).digest()
        if b"\r" in data:
            same = hashlib.sha256(data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")).digest()
        yield Document(digest, len(data), partial(_decoded, data), same)


def _decoded(data: bytes) -> Iterator[str]:
    """Decode UTF-8 in strings of about 1 MiB."""
    start = 0
    while start < len(data):
        text, used = codecs.utf_8_decode(data[start : start + CHUNK], "strict", False)
        yield text
        start += used

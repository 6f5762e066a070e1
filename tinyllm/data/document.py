"""Document: a text, or ids, of a corpus."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Document:
    """A document.

    Attributes:
        digest: sha256 of the stored bytes; decides its place in the order of the split.
        size: bytes; the shares of the split are measured in them.
        chunks: reads the document as consecutive texts (or arrays of numbers) of any length.
        text_digest: sha256 of the text, independent of line endings and byte order marks.
    """

    digest: bytes
    size: int
    chunks: Callable[[], Iterator[Any]]
    text_digest: bytes

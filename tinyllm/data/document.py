"""Document: a text, or ids, of a corpus."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple


class Document(NamedTuple):
    """A document. There may be millions, which a tuple is made for.

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

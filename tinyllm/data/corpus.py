"""What a data set is: documents, in a fixed order, and a fingerprint of everything they are made of."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from tinyllm.data.content_hashes import ContentHashes
from tinyllm.errors import UserError


@dataclass(frozen=True, slots=True)
class Document:
    """One document.

    Attributes:
        digest: sha256 of the content as it is stored, which decides the place in the order of the split.
        size: bytes, which the shares of the split are counted in.
        chunks: reads it: texts (or arrays of numbers) of any length that make up the document in order.
        text_digest: the same for the same text, also with other line ends or a byte order mark.
    """

    digest: bytes
    size: int
    chunks: Callable[[], Iterator[Any]]
    text_digest: bytes


@dataclass(frozen=True)
class Source:
    """A corpus as it is on disk now.

    Attributes:
        fingerprint: sha256 (hex) of the content and of every setting that decides the documents.
        documents: reads all documents; may be called again and gives the same.
        validation: the same for a validation set of its own; None: validation is split off.
        size: bytes to read, about; for progress.
        rows: documents are rows of one length, which are not cut and which no window reaches out of.
        notes: sentences for the user.
        path, val_path: where the documents and the validation set come from, for errors.
    """

    fingerprint: str
    documents: Callable[[], Iterator[Document]]
    validation: Callable[[], Iterator[Document]] | None = None
    size: int = 0
    rows: bool = False
    notes: list[str] = field(default_factory=list)
    path: str | None = None
    val_path: str | None = None


class Corpus(ABC):
    """A data set. Its constructor's arguments are the keys of its config file.

    Args:
        val_fraction: share of the bytes that becomes validation, by document; in (0, 1).
    """

    content: ClassVar[str] = "text"

    def __init__(self, *, val_fraction: float) -> None:
        if not 0 < val_fraction < 1:
            raise UserError(
                "not a share of the data",
                key="dataset.val_fraction",
                value=val_fraction,
                hint="between 0 and 1",
            )
        self.val_fraction = val_fraction

    @abstractmethod
    def check(self) -> None:
        """Refuses quickly, before a run exists, what cannot be read (UserError)."""

    @abstractmethod
    def open(self, hashes: ContentHashes) -> Source:
        """Looks at the content: reads files only if they changed since ``hashes`` remembers them."""


def fingerprint_of(*parts: Any) -> str:
    """sha256 (hex) of plain JSON values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

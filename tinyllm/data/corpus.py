"""Corpus: documents in a fixed order, with a fingerprint of everything that they depend on."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np

from tinyllm.data.batch import TOKENS
from tinyllm.data.content_hashes import ContentHashes
from tinyllm.data.document import Document
from tinyllm.data.selection import Count, Selection, selection_of
from tinyllm.errors import UserError

PACKINGS = ("concat", "best_fit")
SHARD_TOKENS = 2**26
"""Tokens of a shard by default."""


@dataclass(frozen=True)
class Source:
    """A corpus as it is on disk now.

    Attributes:
        fingerprint: sha256 (hex) of the content and of all settings that the documents depend on.
        documents: reads all documents; every call gives the same ones.
        validation: the same for a separate validation set; None: validation is split off.
        size: approximate bytes to read, for progress.
        rows: documents are rows of equal length, which are not cut and which windows do not cross.
        notes: remarks for the user.
        held_out: gives the identities of documents that must not be trained on, sorted, uint64; None: there are none.
        path, val_path: origin of the documents and of the validation set, for error messages.
    """

    fingerprint: str
    documents: Callable[[], Iterator[Document]]
    validation: Callable[[], Iterator[Document]] | None = None
    size: int = 0
    rows: bool = False
    notes: list[str] = field(default_factory=list)
    held_out: Callable[[], np.ndarray] | None = None
    path: str | None = None
    val_path: str | None = None


class Corpus(ABC):
    """A data set; the arguments of its constructor are the keys of its yaml file.

    Args:
        val_fraction: fraction of the bytes that becomes validation, by whole documents; in (0, 1).
        packing: how documents fill training windows: concat or best_fit, see :func:`tinyllm.data.run_data.make_source`.
        clean, normalize, dedup, max_documents, max_tokens: which documents are used, and how their text changes; see
            :class:`tinyllm.data.selection.Selection`. Validation that is not split off is used whole.
        start_early, shard_tokens: training reads shards of ``shard_tokens`` tokens one after the other, each shuffled,
            and starts once the first is prepared.

    Attributes:
        gives: the kind of data, which the objective must read.
        content: "text", or "numbers" for token ids.
        accepts_ready_ids: whether its numbers may be the ids of a text tokenizer that is not trained.
        count: counts the tokens of a text, for ``max_tokens``; ``prepare`` sets it to the tokenizer's.
        special_tokens: those that the tokenizer must have, in this order.
    """

    gives: ClassVar[str] = TOKENS
    content: ClassVar[str] = "text"
    accepts_ready_ids: ClassVar[bool] = False
    start_early: bool = False
    shard_tokens: int = SHARD_TOKENS
    special_tokens: Sequence[str] = ()

    def __init__(
        self,
        *,
        val_fraction: float,
        packing: str = "concat",
        clean: str | bool = False,
        normalize: str = "none",
        dedup: str | bool = False,
        max_documents: int | None = None,
        max_tokens: int | None = None,
        start_early: bool = False,
        shard_tokens: int = SHARD_TOKENS,
    ) -> None:
        if not 0 < val_fraction < 1:
            raise UserError(
                "not a fraction of the data",
                key="dataset.val_fraction",
                value=val_fraction,
                hint="between 0 and 1",
            )
        if packing not in PACKINGS:
            hint = f"one of {', '.join(PACKINGS)}"
            raise UserError("value not allowed", key="dataset.packing", value=packing, hint=hint)
        self.val_fraction, self.packing = val_fraction, packing
        self.selection: Selection = selection_of(
            clean=clean, normalize=normalize, dedup=dedup, max_documents=max_documents, max_tokens=max_tokens
        )
        self.count: Count = len
        if shard_tokens < 2:
            hint = "at least one training window"
            raise UserError("value out of range", key="dataset.shard_tokens", value=shard_tokens, hint=hint)
        self.start_early, self.shard_tokens = start_early, shard_tokens

    @property
    def eot_id(self) -> int | None:
        """The id that ends a document, where the data are ids; None: the tokenizer's."""
        return None

    @property
    def label(self) -> str:
        """The kind of data in one word, for lists: ``text``."""
        return type(self).__name__.removesuffix("Corpus").lower()

    @property
    def revision(self) -> str | None:
        """The version of the data at their origin, such as a commit; None: they have none."""
        return None

    def pin(self, revision: str | None) -> None:  # noqa: B027 - most data have no versions
        """Use the version that a run was trained on, unless the settings name one."""

    def for_test(self) -> Self:
        """The same data set with its test split as validation.

        Raises:
            UserError: it has none.
        """
        hint = "only data sets with dataset.test_split have one, e.g. dataset=wikitext; use val or train"
        raise UserError("the data set has no test split", key="split", value="test", hint=hint)

    def count_words(self, split: str, hashes: ContentHashes) -> int | None:
        """The words by which papers report the perplexity of a split; None: they report none."""
        return None

    def check_length(self, n_steps: int) -> None:  # noqa: B027 - most data are the same for runs of any length
        """Refuse settings that a run of so many steps would not reach (UserError)."""

    @abstractmethod
    def check(self) -> None:
        """Refuse unreadable data quickly, before a run exists.

        Raises:
            UserError: the data cannot be read or are empty.
        """

    @abstractmethod
    def open(self, hashes: ContentHashes) -> Source:
        """Fingerprint the content; reads only files that changed since ``hashes`` last saw them."""


def fingerprint_of(*parts: Any) -> str:
    """sha256 (hex) of JSON values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

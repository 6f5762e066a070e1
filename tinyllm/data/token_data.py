"""Prepared data: the token ids of the training and validation split on disk."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np

from tinyllm.data.batch import WindowSource
from tinyllm.data.cache_use import CacheUse
from tinyllm.data.sample_span import SampleSpan
from tinyllm.tokenizers import Tokenizer

BLOCK = 2**20  # ids per step when summing over a long range


@dataclass
class Split:
    """The ids of all documents in one memory-mapped array; pickles without its content.

    Attributes:
        name: "train" or "val".
        path: file of the ids.
        dtype: dtype of the file, "uint16" or "uint32".
        n_tokens: number of ids.
        row_length: ids per row, if the data are rows that windows must not cross; else None.
        fingerprint: sha256 (hex) of the ids.
        token_bytes: UTF-8 bytes of each id, (vocab_size,); None if the data are not text.
        exceptions: (2, n): sorted positions of the tokens whose bytes differ from ``token_bytes``, and these bytes.
        eot_id: id that ends a document; None: where documents end is unknown.
        packing: how documents fill training windows, "concat" or "best_fit".
        shard_tokens: tokens of a shard, if training reads one after the other (``dataset.start_early``); else None.
        use: keeps the cache from being removed as long as this split exists.
    """

    name: str
    path: Path
    dtype: str
    n_tokens: int
    row_length: int | None
    fingerprint: str
    token_bytes: np.ndarray | None
    exceptions: np.ndarray
    eot_id: int | None = None
    packing: str = "concat"
    shard_tokens: int | None = None
    use: CacheUse | None = field(default=None, repr=False, compare=False)
    _ids: np.ndarray | None = field(default=None, repr=False, compare=False)

    @property
    def ids(self) -> np.ndarray:
        """All ids, memory-mapped and read-only."""
        if self._ids is None:
            self._ids = np.asarray(np.memmap(self.path, dtype=self.dtype, mode="r", shape=(self.n_tokens,)))
        return self._ids

    def read(self, start: int, stop: int) -> np.ndarray:
        """A copy of ids start … stop−1 as int64.

        Raises:
            IndexError: the range is not within the split (a slice would be shorter without an error).
        """
        if not 0 <= start <= stop <= self.n_tokens:
            raise IndexError(f"tokens {start} to {stop} of a split of {self.n_tokens}")
        return self.ids[start:stop].astype(np.int64)

    def byte_count(self, start: int, stop: int) -> int | None:
        """UTF-8 bytes of the text of ids start … stop−1, counting the characters behind ``<unk>``; None if not text."""
        if self.token_bytes is None:
            return None
        total = sum(int(self.token_bytes[self.read(i, min(i + BLOCK, stop))].sum()) for i in range(start, stop, BLOCK))
        positions, lengths = self.exceptions
        first, last = np.searchsorted(positions, (start, stop))
        usual = self.token_bytes[self.ids[positions[first:last]]]
        return total + int((lengths[first:last] - usual).sum())

    def close(self) -> None:
        """Stop what prepares the split in the background, if anything does; what it has finished stays."""

    def __getstate__(self) -> dict[str, Any]:
        # Pickling a memory map would copy its content; the process that pickles keeps the cache in use.
        return self.__dict__ | {"_ids": None, "use": None}


class Identified(Protocol):
    """A split that knows what it holds."""

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of the content."""


S = TypeVar("S", bound=Identified)


class OneSource(Generic[S]):
    """What data that are no mixture answer as :class:`tinyllm.data.run_data.RunData`: they are their only source."""

    train: S
    val: S
    tokenizer: Tokenizer

    def fingerprints(self) -> dict[str, str]:
        """Fingerprints of both splits and of the tokenizer, as a checkpoint's manifest has them."""
        return {
            "train": self.train.fingerprint,
            "val": self.val.fingerprint,
            "tokenizer": self.tokenizer.fingerprint(),
        }

    @property
    def sources(self) -> Mapping[str, Self]:
        """Itself as the only source."""
        return {"": self}

    def splits(self, name: str) -> Mapping[str, S]:
        """The split ``train`` or ``val``, as the only source."""
        return {"": {"train": self.train, "val": self.val}[name]}

    def shares(self) -> Mapping[str, float]:
        """The weight of the only source."""
        return {"": 1.0}

    def changes(self, span: SampleSpan) -> list[int]:
        """None: the order stays the same."""
        return []

    def order(self, sources: Mapping[str, WindowSource], span: SampleSpan) -> WindowSource:
        """The order of the only source."""
        return sources[""]

    def order_notes(self, sources: Mapping[str, WindowSource], span: SampleSpan) -> list[str]:
        """None: the start of a run shows its epochs in any case."""
        return []


@dataclass(frozen=True)
class TokenData(OneSource[Split]):
    """A data set ready for training.

    Attributes:
        train, val: the two splits.
        tokenizer: the tokenizer of the ids.
        notes: remarks for the user.
        path: its folder in the token cache.
        fingerprint: sha256 (hex) of both splits and the tokenizer.
        rules: version of the rules that split the documents (``split.RULES``).
    """

    train: Split
    val: Split
    tokenizer: Tokenizer
    notes: list[str]
    path: Path
    fingerprint: str
    rules: int

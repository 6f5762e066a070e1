"""The data of a run: what planning, training and evaluation need, whether it is one data set or a mixture."""

from collections.abc import Mapping
from typing import Any, Protocol

from tinyllm.data.batch import WindowSource
from tinyllm.data.chat.rows import ConversationSource, ConversationSplit
from tinyllm.data.preferences.pairs import PairSource, PairSplit
from tinyllm.data.sampler import Sampler
from tinyllm.data.token_data import Split
from tinyllm.tokenizers import Tokenizer
from tinyllm.utils.seeds import derive_seed


class RunData(Protocol):
    """Prepared data that a run can be trained on: a :class:`TokenData`, or a mixture of them."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of all ids."""

    @property
    def notes(self) -> list[str]:
        """Remarks for the user."""

    @property
    def rules(self) -> int:
        """Version of the rules that split the documents (``split.RULES``)."""

    def fingerprints(self) -> dict[str, str]:
        """Fingerprints by name, as a checkpoint's manifest has them: ``train``, ``val``, ``tokenizer``, and those of
        the sources of a mixture."""

    def splits(self, name: str) -> Mapping[str, Split]:
        """The split ``train`` or ``val`` of each source; a data set that is no mixture has one source, named ""."""

    def shares(self) -> Mapping[str, float]:
        """Weight of each source in means over the sources; they sum to 1."""

    def order(self, sources: Mapping[str, WindowSource], *, n_samples: int, samples_per_step: int) -> WindowSource:
        """Training samples from those of the sources.

        Args:
            n_samples, samples_per_step: samples of the whole planned run and of one step, on which an order that
                changes during training depends.
        """

    def order_notes(self, sources: Mapping[str, WindowSource], *, n_samples: int, samples_per_step: int) -> list[str]:
        """Remarks on how often the planned run reads each source."""


def make_source(split: Split | PairSplit | ConversationSplit, *, seq_len: int, seed: int) -> WindowSource:
    """The order of one split. Every kind of :class:`WindowSource` is chosen here: plan, comparison and mixture use it.

    Raises:
        UserError: the split is shorter than one window.
    """
    if isinstance(split, PairSplit):
        return PairSource(split, seq_len=seq_len, seed=seed)
    if isinstance(split, ConversationSplit):
        return ConversationSource(split, seq_len=seq_len, seed=seed)
    return Sampler(split, seq_len=seq_len, seed=seed)


def train_sources(data: RunData, *, seq_len: int, seed: int) -> dict[str, WindowSource]:
    """The training order of each source; the sources of a mixture have independent orders.

    Raises:
        UserError: a split is shorter than one window.
    """
    return {
        name: make_source(split, seq_len=seq_len, seed=derive_seed(seed, f"source {name}") if name else seed)
        for name, split in data.splits("train").items()
    }


def windows_per_epoch(data: RunData, *, seq_len: int) -> int:
    """Training samples in one pass over all sources; it does not depend on a seed."""
    return sum(source.windows_per_epoch for source in train_sources(data, seq_len=seq_len, seed=0).values())


def n_tokens(data: RunData, name: str) -> int:
    """Tokens of a split, over all sources."""
    return sum(split.n_tokens for split in data.splits(name).values())


def has_bytes(data: RunData) -> bool:
    """Whether the bytes behind the validation tokens are known, as bits per byte need."""
    return all(split.token_bytes is not None for split in data.splits("val").values())


def validation_fingerprints(data: RunData) -> Any:
    """What identifies the validation tokens."""
    return tuple((name, split.fingerprint) for name, split in data.splits("val").items())

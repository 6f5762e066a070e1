"""The data of a run: what planning, training and evaluation need, whether it is one data set or a mixture."""

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import Any, Protocol

from tinyllm.data.batch import WindowSource
from tinyllm.data.build_cache import Show
from tinyllm.data.chat.packed import PackedConversations
from tinyllm.data.chat.rows import ConversationSource, ConversationSplit
from tinyllm.data.corpus import Corpus
from tinyllm.data.mixture import Mixture, naming
from tinyllm.data.packed_windows import BEST_FIT, PackedWindows
from tinyllm.data.preferences.pairs import PairSource, PairSplit
from tinyllm.data.prepare import cached, prepare
from tinyllm.data.prepare_mixture import cached_mixture, prepare_mixture
from tinyllm.data.prompt_data import PromptSource, PromptSplit
from tinyllm.data.sample_span import SampleSpan
from tinyllm.data.sampler import Sampler
from tinyllm.data.shards import ShardedSampler
from tinyllm.data.split import RULES
from tinyllm.data.token_data import Split
from tinyllm.tokenizers import Tokenizer, TokenizerTrainer
from tinyllm.utils.seeds import derive_seed


class RunData(Protocol):
    """Prepared data that a run can be trained on: those of a data set, or of a mixture."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of all ids."""

    @property
    def notes(self) -> list[str]:
        """Remarks for the user."""

    @property
    def rules(self) -> int:
        """Version of the rules that split the documents (``split.RULES``)."""

    @property
    def sources(self) -> Mapping[str, Any]:
        """The data of each source; a data set that is no mixture is one source, named ""."""

    def fingerprints(self) -> dict[str, str]:
        """Fingerprints by name, as a checkpoint's manifest has them: ``train``, ``val``, ``tokenizer``, and those of
        the sources of a mixture."""

    def splits(self, name: str) -> Mapping[str, Any]:
        """The split ``train`` or ``val`` of each source."""

    def shares(self) -> Mapping[str, float]:
        """Weight of each source in means over the sources; they sum to 1."""

    def changes(self, span: SampleSpan) -> list[int]:
        """The samples at which the order changes during training."""

    def order(self, sources: Mapping[str, WindowSource], span: SampleSpan) -> WindowSource:
        """The training samples of a run from those of the sources."""

    def order_notes(self, sources: Mapping[str, WindowSource], span: SampleSpan) -> list[str]:
        """Remarks on how often the planned run reads each source."""


def prepare_run_data(
    corpus: Corpus | Mixture,
    tokenizer_trainer: TokenizerTrainer,
    *,
    rules: int = RULES,
    progress: Show | None = None,
) -> RunData:
    """The tokens of a data set or of a mixture, from the token cache or prepared now.

    Raises:
        UserError: the data cannot be read or are too small, or the cache cannot be written.
    """
    if isinstance(corpus, Mixture):
        return prepare_mixture(corpus, tokenizer_trainer, rules=rules, progress=progress)
    return prepare(corpus, tokenizer_trainer, rules=rules, progress=progress)


def cached_run_data(corpus: Corpus | Mixture, tokenizer_trainer: TokenizerTrainer) -> RunData | None:
    """The same if it is in the token cache, intact; else None. Builds nothing."""
    if isinstance(corpus, Mixture):
        return cached_mixture(corpus, tokenizer_trainer)
    return cached(corpus, tokenizer_trainer)


def make_source(split: Split | PairSplit | PromptSplit | ConversationSplit, *, seq_len: int, seed: int) -> WindowSource:
    """The order of one split. Every kind of :class:`WindowSource` is chosen here: plan, comparison and mixture use it.

    Raises:
        UserError: the split is shorter than one window, or it is to be packed and has no documents.
    """
    if isinstance(split, PairSplit):
        return PairSource(split, seq_len=seq_len, seed=seed)
    if isinstance(split, PromptSplit):
        return PromptSource(split, seed=seed)
    if isinstance(split, ConversationSplit):
        kind = PackedConversations if split.packing == BEST_FIT else ConversationSource
        return kind(split, seq_len=seq_len, seed=seed)
    if split.packing == BEST_FIT:
        return PackedWindows(split, seq_len=seq_len, seed=seed)
    if split.shard_tokens is not None:
        return ShardedSampler(split, seq_len=seq_len, seed=seed)
    return Sampler(split, seq_len=seq_len, seed=seed)


def train_sources(data: RunData, *, seq_len: int, seed: int) -> dict[str, WindowSource]:
    """The training order of each source; the sources of a mixture have independent orders.

    Raises:
        UserError: a split is shorter than one window.
    """
    sources = {}
    for name, split in data.splits("train").items():
        with naming(name) if name else nullcontext():
            of_source = derive_seed(seed, f"source {name}") if name else seed
            sources[name] = make_source(split, seq_len=seq_len, seed=of_source)
    return sources


def whole_order(data: RunData, *, seq_len: int, seed: int) -> WindowSource:
    """The training samples of a run that reads all sources once, to measure documents in."""
    sources = train_sources(data, seq_len=seq_len, seed=seed)
    total = sum(source.windows_per_epoch for source in sources.values())
    return data.order(sources, SampleSpan(total=total, per_step=1))


def packing_notes(sources: Mapping[str, WindowSource]) -> list[str]:
    """Remarks on sources whose documents or conversations are packed."""
    kinds = PackedWindows | PackedConversations
    packed = {name: source for name, source in sources.items() if isinstance(source, kinds)}
    return [f"{name}: {source.note}" if name else source.note for name, source in packed.items()]


def windows_per_epoch(data: RunData, *, seq_len: int) -> int:
    """Training samples in one pass over all sources; it does not depend on a seed."""
    return sum(source.windows_per_epoch for source in train_sources(data, seq_len=seq_len, seed=0).values())


def mean_tokens(source: WindowSource, *, seq_len: int) -> float:
    """Tokens that a training sample costs on average: ``seq_len``, or less where rows have lengths of their own."""
    return source.mean_tokens if isinstance(source, ConversationSource | PairSource) else seq_len


def masks_targets(data: RunData) -> bool:
    """Whether a training token may be no target: in conversations, pairs and prompts, and in padded windows."""
    splits: Iterable[Any] = data.splits("train").values()
    return any(not isinstance(split, Split) or split.packing == BEST_FIT for split in splits)


def n_tokens(data: RunData, name: str) -> int:
    """Tokens of a split, over all sources."""
    return sum(split.n_tokens for split in data.splits(name).values())


def data_part(name: str) -> str:
    """A fingerprint's name in words: ``train.prose`` is the train split of the source prose."""
    side, _, source = name.partition(".")
    if name == "tokenizer":
        return name
    return f"{side} split of the source {source}" if source else f"{side} split"


def has_bytes(data: RunData) -> bool:
    """Whether the bytes behind the validation tokens are known, as bits per byte need."""
    return all(split.token_bytes is not None for split in data.splits("val").values())


def validation_fingerprints(data: RunData) -> Any:
    """What identifies the validation tokens."""
    return tuple((name, split.fingerprint) for name, split in data.splits("val").items())

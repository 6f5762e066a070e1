"""Preparing a mixture: one tokenizer for all sources, and no text of any validation part in training."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tinyllm.data.build_cache import Meter, Show
from tinyllm.data.chat.corpus import ConversationCorpus, Sides, key_of
from tinyllm.data.content_hashes import ContentHashes
from tinyllm.data.corpus import Corpus, Source, fingerprint_of
from tinyllm.data.mixture import Mixture, naming
from tinyllm.data.mixture_data import MixtureData, OfSource
from tinyllm.data.prepare import cache_root, cached, prepare
from tinyllm.data.split import RULES, Parts, identities, split
from tinyllm.errors import UserError
from tinyllm.tokenizers import Tokenizer, TokenizerTrainer

BLOCK = 2**16
"""Characters of a text that are learned from or left out together."""


def prepare_mixture(
    mixture: Mixture,
    tokenizer_trainer: TokenizerTrainer,
    *,
    cache_dir: str | Path | None = None,
    rules: int = RULES,
    progress: Show | None = None,
) -> MixtureData:
    """The token ids of all sources; see :func:`tinyllm.data.prepare.prepare`.

    The tokenizer is trained on the training parts of all sources, in the proportions of the weights. Training documents
    that are in the validation part of another source are left out, and so are conversations whose prompt is there.

    Raises:
        UserError: a source cannot be read or is too small, or the cache cannot be written.
    """
    show = progress or (lambda stage, done, total: None)
    shared = _Shared(mixture, tokenizer_trainer, cache_dir, rules, show)
    found: dict[str, OfSource] = {}
    for name, corpus in shared.corpora.items():
        with naming(name):
            found[name] = prepare(
                corpus, shared.trainer, cache_dir=cache_dir, rules=rules, progress=partial(_in_source, show, name)
            )
        shared.trainer.tokenizer = found[name].tokenizer
    for name, chat in shared.chats.items():
        show(f"{name}: rendering conversations", 0, 0)
        with naming(name):
            found[name] = chat.corpus.encoded(chat.sides, shared.trainer.train([]))
    return _data(mixture, tokenizer_trainer, {name: found[name] for name in mixture.sources})


def cached_mixture(
    mixture: Mixture, tokenizer_trainer: TokenizerTrainer, *, cache_dir: str | Path | None = None
) -> MixtureData | None:
    """The result of :func:`prepare_mixture` if all of it is in the cache, intact; else None. Builds nothing, and so
    gives nothing if a source is of conversations, which are not cached."""
    if mixture.chat_template is not None:
        return None
    shared = _Shared(mixture, tokenizer_trainer, cache_dir, RULES, lambda stage, done, total: None)
    found: dict[str, OfSource] = {}
    for name, corpus in shared.corpora.items():
        data = cached(corpus, shared.trainer, cache_dir=cache_dir)
        if data is None:
            return None
        found[name] = data
    return _data(mixture, tokenizer_trainer, found)


def _data(mixture: Mixture, trainer: TokenizerTrainer, found: Mapping[str, OfSource]) -> MixtureData:
    tokenizer = next(iter(found.values())).tokenizer
    if len({data.tokenizer.fingerprint() for data in found.values()}) > 1:
        raise RuntimeError("the sources of the mixture were encoded by different tokenizers")
    notes = [f"{name}: {note}" for name, data in found.items() for note in data.notes]
    return MixtureData(
        sources=found,
        tokenizer=tokenizer,
        weights=mixture.weights,
        schedule=mixture.schedule,
        notes=[*trainer.notes(tokenizer), *notes],
    )


def _in_source(show: Show, name: str, stage: str, done: int, total: int) -> None:
    show(f"{name}: {stage}", done, total)


class _Chat(NamedTuple):
    """A source of conversations, and its splits."""

    corpus: ConversationCorpus
    sides: Sides


class _Learned(NamedTuple):
    """What a tokenizer learns from a source.

    Attributes:
        texts: of training; every call reads them anew.
        size: their bytes.
        documents: that they are pieces of.
        validation: texts whose characters the tokenizer must have.
    """

    texts: Callable[[], Iterable[Any]]
    size: int
    documents: int
    validation: Callable[[], Iterable[Any]]


class _Shared:
    """What the sources have in common while they are prepared.

    Attributes:
        corpora: the sources of documents, each without the documents that others validate on.
        chats: the sources of conversations, each without the prompts that others validate on.
        trainer: gives all of them the same tokenizer.
    """

    def __init__(
        self,
        mixture: Mixture,
        trainer: TokenizerTrainer,
        cache_dir: str | Path | None,
        rules: int,
        show: Show,
    ) -> None:
        self._sources: dict[str, Corpus] = {n: c for n, c in mixture.sources.items() if isinstance(c, Corpus)}
        self.chats = _without_held_out_prompts(
            {name: corpus for name, corpus in mixture.sources.items() if isinstance(corpus, ConversationCorpus)}
        )
        self._weights = mixture.weights
        self._base, self._cache_dir, self._rules, self._show = trainer, cache_dir, rules, show
        self._hashes = ContentHashes(cache_root(cache_dir) / "sources")
        self._parts: dict[str, Parts] = {}
        self._opened: dict[str, Source] = {}
        for name, corpus in self._sources.items():
            corpus.count = trainer.count
            with naming(name):
                self._opened[name] = corpus.open(self._hashes)
        rendered = [(chat.sides.fingerprint(), chat.corpus.chat_template.source) for chat in self.chats.values()]
        identity = fingerprint_of(*(source.fingerprint for source in self._opened.values()), *rendered)
        self.corpora = {
            name: SourceOfMixture(corpus, identity, partial(self._held_out, name))
            for name, corpus in self._sources.items()
        }
        proportions = list((self._weights or {}).values()) if trainer.counts_text else []
        self.trainer = SharedTrainer(trainer, proportions, self._tokenizer)

    def _tokenizer(self) -> Tokenizer:
        """The tokenizer of the mixture: that of a source in the cache, else trained now."""
        for corpus in self.corpora.values():
            data = cached(corpus, self.trainer, cache_dir=self._cache_dir)
            if data is not None:
                return data.tokenizer
        try:
            return self._learned()
        finally:
            self._hashes.require_unchanged()

    def _learned(self) -> Tokenizer:
        parts = {name: self._without_held_out(name) for name in self._sources}
        meter = Meter("learning the vocabulary", sum(part.train_size for part in parts.values()), self._show)
        learned = {name: self._of_documents(name, part, meter) for name, part in parts.items()}
        learned |= {name: _of_conversations(chat) for name, chat in self.chats.items()}
        factors = {name: 1.0 for name in learned}
        if self._base.counts_text and self._weights is not None:
            factors = repetitions(self._weights, {name: source.size for name, source in learned.items()})
        tokenizer = self._base.train(
            (text for name, source in learned.items() for text in repeated(source.texts, factors[name])),
            n_documents=sum(source.documents for source in learned.values()),
            size=sum(source.size for source in learned.values()),
        )
        return tokenizer.covering(text for source in learned.values() for text in source.validation())

    def _of_documents(self, name: str, parts: Parts, meter: Meter) -> _Learned:
        def validation() -> Iterator[Any]:
            readable = self._sources[name].content == self._base.content
            return (chunk for document in parts.val() for chunk in document.chunks() if readable)

        texts = partial(self._training_texts, parts, meter)
        return _Learned(texts, parts.train_size, parts.train_documents, validation)

    def _training_texts(self, parts: Parts, meter: Meter) -> Iterator[Any]:
        for document in parts.train():
            yield from self._base.pieces(meter.chunks(document))

    def _without_held_out(self, name: str) -> Parts:
        with naming(name):
            held_out = partial(self._held_out, name)
            source = replace(self._opened[name], held_out=held_out)
            return split(source, self._sources[name].val_fraction, rules=self._rules)

    def _held_out(self, name: str) -> np.ndarray:
        """The identities of the validation documents of all sources but one, sorted, uint64."""
        found = [np.zeros(0, dtype=np.uint64)]
        for other, source in self._opened.items():
            if other != name:
                if other not in self._parts:
                    with naming(other):
                        self._parts[other] = split(source, self._sources[other].val_fraction, rules=self._rules)
                found.append(identities(self._parts[other].val(), rules=self._rules))
        return np.unique(np.concatenate(found))


def _without_held_out_prompts(corpora: Mapping[str, ConversationCorpus]) -> dict[str, _Chat]:
    """The splits of sources of conversations; no prompt is in the training of one and the validation of another.

    Raises:
        UserError: a record is no conversation, or a split is empty.
    """
    found = {}
    for name, corpus in corpora.items():
        with naming(name):
            found[name] = corpus.split()
    held_out = {name: set(map(key_of, sides.val)) for name, sides in found.items()}
    chats = {}
    for name, corpus in corpora.items():
        sides = found[name].without(set().union(*(keys for other, keys in held_out.items() if other != name)))
        if not sides.train:
            hint = "use other data, or leave one of the sources out"
            what = "all of its conversations are in the validation of other sources"
            raise UserError(what, key=f"dataset.sources.{name}", value=corpus.path, hint=hint)
        chats[name] = _Chat(corpus, sides)
    return chats


def _of_conversations(chat: _Chat) -> _Learned:
    texts = partial(chat.corpus.texts, chat.sides.train)
    size = sum(len(text.encode()) for text in texts())
    return _Learned(texts, size, len(chat.sides.train), partial(chat.corpus.texts, chat.sides.val))


class SourceOfMixture(Corpus):
    """A data set as a source of a mixture.

    Args:
        corpus: the data set.
        mixture: what identifies the documents of all sources.
        held_out: gives the identities of the documents that must not be trained on.
    """

    def __init__(self, corpus: Corpus, mixture: str, held_out: Callable[[], np.ndarray]) -> None:
        self.content = corpus.content  # type: ignore[misc]
        self.accepts_ready_ids = corpus.accepts_ready_ids  # type: ignore[misc]
        self.val_fraction, self.packing = corpus.val_fraction, corpus.packing
        self.special_tokens = corpus.special_tokens
        self.count = corpus.count
        self._corpus, self._mixture, self._held_out = corpus, mixture, held_out

    @property
    def label(self) -> str:
        return self._corpus.label

    @property
    def eot_id(self) -> int | None:
        return self._corpus.eot_id

    def check(self) -> None:
        self._corpus.check()

    def open(self, hashes: ContentHashes) -> Source:
        self._corpus.count = self.count
        source = self._corpus.open(hashes)
        fingerprint = fingerprint_of("mixture", source.fingerprint, self._mixture)
        return replace(source, fingerprint=fingerprint, held_out=self._held_out)


class SharedTrainer(TokenizerTrainer):
    """Gives every source the tokenizer of the mixture.

    Args:
        trainer: the trainer that the settings name.
        proportions: in which the sources are learned from, if that matters.
        learn: trains the tokenizer on all sources, or finds it.

    Attributes:
        tokenizer: the tokenizer; None: not known yet.
    """

    def __init__(self, trainer: TokenizerTrainer, proportions: Sequence[float], learn: Callable[[], Tokenizer]) -> None:
        self.tokenizer: Tokenizer | None = None
        self.content = trainer.content  # type: ignore[misc]
        self.is_fixed = trainer.is_fixed  # type: ignore[misc]
        self._trainer, self._learn = trainer, learn
        total = math.fsum(proportions)
        self._proportions = [round(weight / total, 12) for weight in proportions]

    def train(self, texts: Iterable[Any], *, n_documents: int | None = None, size: int | None = None) -> Tokenizer:
        if self.tokenizer is None:
            self.tokenizer = self._learn()
        return self.tokenizer

    def settings(self) -> dict[str, Any]:
        return {"trainer": self._trainer.fingerprint(), "proportions": self._proportions}

    @property
    def label(self) -> str:
        return self._trainer.label

    def count(self, text: Any) -> int:
        return self._trainer.count(text)


def repetitions(weights: Mapping[str, float], sizes: Mapping[str, int]) -> dict[str, float]:
    """How often to read each source so that the texts are in proportion to the weights, and as much as all together.

    Args:
        weights: of the sources, not all 0.
        sizes: bytes of the sources.
    """
    total, all_weights = sum(sizes.values()), math.fsum(weights.values())
    return {name: weights[name] / all_weights * total / max(1, sizes[name]) for name in sizes}


def repeated(texts: Callable[[], Iterable[Any]], times: float) -> Iterator[Any]:
    """The texts ``times`` over; the fraction is taken evenly from all of them."""
    for done in range(math.ceil(times)):
        share = times - done
        if share >= 1:
            yield from texts()
            continue
        seen = taken = 0
        for text in texts():
            for block in (text[start : start + BLOCK] for start in range(0, len(text), BLOCK)):
                seen += len(block)
                if taken < share * seen:
                    taken += len(block)
                    yield block

"""Preparing a mixture: one tokenizer for all sources, and no text of any validation part in training."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tinyllm.data.build_cache import Meter, Show
from tinyllm.data.content_hashes import ContentHashes
from tinyllm.data.corpus import Corpus, Source, fingerprint_of
from tinyllm.data.mixture import Mixture, naming
from tinyllm.data.mixture_data import MixtureData
from tinyllm.data.prepare import cache_root, cached, prepare
from tinyllm.data.split import RULES, Parts, identities, split
from tinyllm.data.token_data import TokenData
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
    that are in the validation part of another source are left out.

    Raises:
        UserError: a source cannot be read or is too small, or the cache cannot be written.
    """
    show = progress or (lambda stage, done, total: None)
    shared = _Shared(mixture, tokenizer_trainer, cache_dir, rules, show)
    found = {}
    for name, corpus in shared.corpora.items():
        with naming(name):
            found[name] = prepare(
                corpus, shared.trainer, cache_dir=cache_dir, rules=rules, progress=partial(_in_source, show, name)
            )
        shared.trainer.tokenizer = found[name].tokenizer
    return _data(mixture, tokenizer_trainer, found)


def cached_mixture(
    mixture: Mixture, tokenizer_trainer: TokenizerTrainer, *, cache_dir: str | Path | None = None
) -> MixtureData | None:
    """The result of :func:`prepare_mixture` if all of it is in the cache, intact; else None. Builds nothing."""
    shared = _Shared(mixture, tokenizer_trainer, cache_dir, RULES, lambda stage, done, total: None)
    found = {}
    for name, corpus in shared.corpora.items():
        data = cached(corpus, shared.trainer, cache_dir=cache_dir)
        if data is None:
            return None
        found[name] = data
    return _data(mixture, tokenizer_trainer, found)


def _data(mixture: Mixture, trainer: TokenizerTrainer, found: Mapping[str, TokenData]) -> MixtureData:
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


class _Shared:
    """What the sources have in common while they are prepared.

    Attributes:
        corpora: the sources, each without the documents that others validate on.
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
        self._sources = mixture.sources
        self._weights = mixture.weights
        self._base, self._cache_dir, self._rules, self._show = trainer, cache_dir, rules, show
        self._hashes = ContentHashes(cache_root(cache_dir) / "sources")
        self._parts: dict[str, Parts] = {}
        self._opened: dict[str, Source] = {}
        for name, corpus in self._sources.items():
            corpus.count = trainer.count
            with naming(name):
                self._opened[name] = corpus.open(self._hashes)
        identity = fingerprint_of(*(source.fingerprint for source in self._opened.values()))
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
        total = sum(part.train_size for part in parts.values())
        meter = Meter("learning the vocabulary", total, self._show)
        texts = {name: partial(self._training_texts, part, meter) for name, part in parts.items()}
        factors = {name: 1.0 for name in parts}
        if self._base.counts_text and self._weights is not None:
            factors = repetitions(self._weights, {name: part.train_size for name, part in parts.items()})
        tokenizer = self._base.train(
            (text for name in parts for text in repeated(texts[name], factors[name])),
            n_documents=sum(part.train_documents for part in parts.values()),
            size=total,
        )
        readable = [name for name, corpus in self._sources.items() if corpus.content == tokenizer.content]
        return tokenizer.covering(
            chunk for name in readable for document in parts[name].val() for chunk in document.chunks()
        )

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

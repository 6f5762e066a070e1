"""Byte-level BPE, trained on the training split."""

import math
import os
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from tinyllm.errors import UserError
from tinyllm.tokenizers.base import Tokenizer, TokenizerTrainer, cut_text
from tinyllm.tokenizers.cuts import plain_cuts
from tinyllm.tokenizers.huggingface import HuggingFaceTokenizer
from tinyllm.tokenizers.special_tokens import END, SpecialTokenMatcher, require_needed, require_special
from tinyllm.tokenizers.splitting import BoundedWords, bounded

LEARN_FROM_BYTES = 2**30
"""Larger corpora are subsampled evenly to this size: the library keeps counts of all distinct words in memory."""
SHORTEST, LONGEST = 16, 10_000
"""Range of ``max_word``."""
LEARN_PIECE = 2**20
"""Characters handed to the library at a time."""


class BPETrainer(TokenizerTrainer):
    """Trains byte-level BPE with GPT-2's splitting rule. All 256 bytes are in the vocabulary: nothing is unknown.

    Args:
        vocab_size: size of the vocabulary, including special tokens and the 256 bytes. A small text yields fewer.
        min_frequency: a pair of tokens is merged only if it occurs at least this often.
        special_tokens: additional entries. The first one with a common name (``<|endoftext|>``, ``</s>``, …) ends
            documents, else the first of the list. ``auto``: ``<|endoftext|>`` and those that the data need;
            ``standard``: ``<|endoftext|>`` and those of :data:`tinyllm.tokenizers.special_tokens.STANDARD`.
        match_special: whether special tokens spelled out in the text are encoded as such; false: they are text.
        max_word: longest word in characters; longer runs without a blank (DNA, Chinese, base64) are split. Otherwise
            training time would grow with the square of their length. None: no limit.
    """

    counts_text = True

    def __init__(
        self,
        *,
        vocab_size: int,
        min_frequency: int,
        special_tokens: str | Sequence[str],
        match_special: bool = False,
        max_word: int | None = 256,
    ) -> None:
        if max_word is not None and not SHORTEST <= max_word <= LONGEST:
            hint = f"give {SHORTEST} to {LONGEST}, or null for no limit"
            raise UserError("out of range", key="tokenizer.max_word", value=max_word, hint=hint)
        if min_frequency < 1:
            hint = "give a whole number ≥ 1"
            raise UserError("out of range", key="tokenizer.min_frequency", value=min_frequency, hint=hint)
        self._vocab_size = vocab_size
        self._min_frequency = min_frequency
        self._setting, self._match_special = special_tokens, match_special
        self._max_word = max_word
        self._use(require_special(special_tokens, match=match_special, always=[END]))

    def reserve(self, tokens: Sequence[str]) -> None:
        self._use(require_special(self._setting, match=self._match_special, always=[END], needed=tokens))
        require_needed(self._special_tokens, tokens)

    def _use(self, special: list[str]) -> None:
        if self._vocab_size < 256 + len(special):
            raise UserError(
                "vocabulary too small",
                key="tokenizer.vocab_size",
                value=self._vocab_size,
                hint=f"give at least {256 + len(special)}: 256 bytes and {len(special)} special tokens",
            )
        self._special_tokens = special
        self._matched = SpecialTokenMatcher(dict.fromkeys(special if self._match_special else (), 0))
        """Special tokens to find in the training text; nothing is learned from them."""
        self._words = None if self._max_word is None else BoundedWords(self._max_word, self._matched)

    def train(self, texts: Iterable[str], *, n_documents: int | None = None, size: int | None = None) -> Tokenizer:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
        backend = Backend(models.BPE())
        if self._max_word is None:
            backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        else:
            split = pre_tokenizers.Split(Regex(bounded(self._max_word)), "isolated")
            spelling = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
            backend.pre_tokenizer = pre_tokenizers.Sequence([split, spelling])
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=self._vocab_size,
            min_frequency=self._min_frequency,
            special_tokens=self._special_tokens,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),  # all 256 bytes
            show_progress=False,
        )
        every = max(1, math.ceil((size or 0) / LEARN_FROM_BYTES))
        backend.train_from_iterator(self._matched.plain(islice(texts, 0, None, every)), trainer)
        return HuggingFaceTokenizer(backend, match_special=self._match_special)

    def pieces(self, chunks: Iterable[str]) -> Iterable[str]:
        return cut_text(chunks, LEARN_PIECE, self._last_cut)

    def _last_cut(self, text: str) -> int:
        """The last position where the trained tokenizer would cut a training text; 0 if there is none."""
        rules = [plain_cuts().last] + ([self._words.last_cut] if self._words else [])
        cuts = (rule(text) for rule in rules)
        return next((cut for cut in cuts if cut and self._matched.may_cut(text, cut)), 0)

    def settings(self) -> dict[str, Any]:
        settings = {
            "vocab_size": self._vocab_size,
            "min_frequency": self._min_frequency,
            "special_tokens": self._special_tokens,
        }
        # Without effect they are absent, so that caches of earlier versions are still found.
        settings |= {"match_special": True} if self._match_special else {}
        return settings | ({"max_word": self._max_word} if self._max_word is not None else {})

    def notes(self, tokenizer: Tokenizer) -> list[str]:
        if tokenizer.vocab_size >= self._vocab_size:
            return []
        return [
            f"The training text yields {tokenizer.vocab_size:,} vocabulary entries, "
            f"fewer than the {self._vocab_size:,} requested."
        ]

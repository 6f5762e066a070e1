"""Byte-pair encoding learnt from the training split."""

import math
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

from tinyllm.errors import UserError
from tinyllm.tokenizers.base import Tokenizer, TokenizerTrainer, cut_text
from tinyllm.tokenizers.markers import require_special
from tinyllm.tokenizers.words import learning_cut

# The library counts every distinct word in memory, so of a larger text an even share of this size is looked
# at.
LEARN_FROM_BYTES = 2**30
SHORTEST, LONGEST = 16, 10_000  # of ``max_word``
LEARN_PIECE = 2**20  # characters handed to the library at a time


class BPETrainer(TokenizerTrainer):
    """Byte-level BPE.

    Args:
        vocab_size: entries asked for, special tokens and the 256 bytes included. A small text gives fewer.
        min_frequency: a pair of tokens is merged only if it occurs this often.
        special_tokens: entries beyond the bytes and merges. One ends documents: the first with a usual
            name (``<|endoftext|>``, ``</s>``, …), else the first of the list.
        match_special: whether a text that spells one is encoded to it; false: it stays text.
        max_word: longest word in characters. A run of letters without a blank (DNA, Chinese, base64) counts as several
            words, or the time to learn would grow with the square of its length. None: no limit.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        min_frequency: int,
        special_tokens: Sequence[str],
        match_special: bool = False,
        max_word: int | None = 256,
    ) -> None:
        special = require_special(special_tokens, match=match_special)
        if max_word is not None and not SHORTEST <= max_word <= LONGEST:
            hint = f"{SHORTEST} to {LONGEST}, or null for no limit"
            raise UserError("not a length of words", key="tokenizer.max_word", value=max_word, hint=hint)
        if vocab_size < 256 + len(special):
            raise UserError(
                "the vocabulary is too small",
                key="tokenizer.vocab_size",
                value=vocab_size,
                hint=f"at least {256 + len(special)}: 256 bytes and {len(special)} special tokens",
            )
        if min_frequency < 1:
            raise UserError("not a frequency", key="tokenizer.min_frequency", value=min_frequency, hint="at least 1")
        self._vocab_size = vocab_size
        self._min_frequency = min_frequency
        self._special_tokens = special
        self._match_special = match_special
        self._max_word = max_word

    def train(self, texts: Iterable[str], *, n_documents: int | None = None, size: int | None = None) -> Tokenizer:
        from tinyllm.tokenizers.huggingface import train_bpe

        every = max(1, math.ceil((size or 0) / LEARN_FROM_BYTES))
        return train_bpe(
            islice(texts, 0, None, every),
            vocab_size=self._vocab_size,
            min_frequency=self._min_frequency,
            special_tokens=self._special_tokens,
            match_special=self._match_special,
            max_word=self._max_word,
        )

    def pieces(self, chunks: Iterable[str]) -> Iterable[str]:
        matched = self._special_tokens if self._match_special else ()
        return cut_text(chunks, LEARN_PIECE, learning_cut(max_word=self._max_word, special_tokens=matched))

    def settings(self) -> dict[str, Any]:
        settings = {
            "vocab_size": self._vocab_size,
            "min_frequency": self._min_frequency,
            "special_tokens": self._special_tokens,
        }
        # Absent where they change nothing, so that what earlier versions cached is still found.
        settings |= {"match_special": True} if self._match_special else {}
        return settings | ({"max_word": self._max_word} if self._max_word is not None else {})

    def notes(self, tokenizer: Tokenizer) -> list[str]:
        if tokenizer.vocab_size >= self._vocab_size:
            return []
        return [
            f"The training text gives {tokenizer.vocab_size:,} vocabulary entries, "
            f"fewer than the {self._vocab_size:,} asked for."
        ]

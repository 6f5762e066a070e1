"""Byte-pair encoding learnt from the training split."""

import math
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

from tinyllm.errors import UserError
from tinyllm.tokenizers.base import Tokenizer, TokenizerTrainer, cut_text

# The library counts every distinct word in memory, so of a larger text an even share of this size is looked
# at.
LEARN_FROM_BYTES = 2**30
LEARN_PIECE = 2**20  # characters handed to the library at a time


class BPETrainer(TokenizerTrainer):
    """Byte-level BPE.

    Args:
        vocab_size: entries asked for, special tokens and the 256 bytes included. A small text gives fewer.
        min_frequency: a pair of tokens is merged only if it occurs this often.
        special_tokens: entries that no text is ever encoded to. One ends documents: the first with a usual
            name (``<|endoftext|>``, ``</s>``, …), else the first of the list.
    """

    def __init__(self, *, vocab_size: int, min_frequency: int, special_tokens: Sequence[str]) -> None:
        special = list(special_tokens)
        if any(not isinstance(token, str) or not token for token in special) or len(set(special)) != len(special):
            raise UserError(
                "special tokens must be different, non-empty texts",
                key="tokenizer.special_tokens",
                value=special,
            )
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

    def train(self, texts: Iterable[str], *, n_documents: int | None = None, size: int | None = None) -> Tokenizer:
        from tinyllm.tokenizers.huggingface import train_bpe

        every = max(1, math.ceil((size or 0) / LEARN_FROM_BYTES))
        return train_bpe(
            islice(texts, 0, None, every),
            vocab_size=self._vocab_size,
            min_frequency=self._min_frequency,
            special_tokens=self._special_tokens,
        )

    def pieces(self, chunks: Iterable[str]) -> Iterable[str]:
        from tinyllm.tokenizers.huggingface import last_cut

        return cut_text(chunks, LEARN_PIECE, last_cut)

    def settings(self) -> dict[str, Any]:
        return {
            "vocab_size": self._vocab_size,
            "min_frequency": self._min_frequency,
            "special_tokens": self._special_tokens,
        }

    def notes(self, tokenizer: Tokenizer) -> list[str]:
        if tokenizer.vocab_size >= self._vocab_size:
            return []
        return [
            f"The training text gives {tokenizer.vocab_size:,} vocabulary entries, "
            f"fewer than the {self._vocab_size:,} asked for."
        ]

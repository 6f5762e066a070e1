"""Byte-pair encoding learnt from the training split."""

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
from tinyllm.tokenizers.markers import Markers, require_special
from tinyllm.tokenizers.splitting import BoundedWords, bounded

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
        self._matched = Markers(dict.fromkeys(special if match_special else (), 0))
        """Special tokens that are found in the text, and that nothing is learnt from."""
        self._words = None if max_word is None else BoundedWords(max_word, self._matched)

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
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),  # all 256 bytes, so that nothing is ever unknown
            show_progress=False,
        )
        every = max(1, math.ceil((size or 0) / LEARN_FROM_BYTES))
        backend.train_from_iterator(self._matched.plain(islice(texts, 0, None, every)), trainer)
        return HuggingFaceTokenizer(backend, match_special=self._match_special)

    def pieces(self, chunks: Iterable[str]) -> Iterable[str]:
        return cut_text(chunks, LEARN_PIECE, self._last_cut)

    def _last_cut(self, text: str) -> int:
        """Where a text to learn from may be cut last: where the tokenizer that is learnt cuts; 0 if nowhere."""
        rules = [plain_cuts().last] + ([self._words.last_cut] if self._words else [])
        cuts = (rule(text) for rule in rules)
        return next((cut for cut in cuts if cut and self._matched.may_cut(text, cut)), 0)

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

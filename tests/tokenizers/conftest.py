"""Tokenizers shared by several test files."""

import pytest

from tinyllm.tokenizers import Tokenizer
from tinyllm.tokenizers.bpe import BPETrainer

ENGLISH = (
    "It's a truth universally acknowledged, that a single man in possession of a good fortune, must be in "
    "want of a wife.\n\n\tHowever little known the feelings or views of such a man may be — 1,234.5 times — "
    "they'll say: \"We're done!\"  Don't   they?\r\n"
)


@pytest.fixture(scope="session")
def bpe() -> Tokenizer:
    """A small byte-level BPE with merges of letters, blanks and digits."""
    return BPETrainer(vocab_size=400, min_frequency=1, special_tokens=["<|endoftext|>"]).train([ENGLISH] * 3)

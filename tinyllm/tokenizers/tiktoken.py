"""Encodings of the optional library ``tiktoken``, converted to tokenizer.json so that one class runs both formats."""

import json
import re
from itertools import pairwise
from types import ModuleType
from typing import Any

from tinyllm.errors import UserError
from tinyllm.tokenizers.decoders import CHAR_OF
from tinyllm.tokenizers.huggingface import BYTE_LEVEL, bpe_model, library_json
from tinyllm.utils.late_imports import is_installed, library

# In tiktoken's regex dialect ``{1,3}+`` is possessive. In the dialect of ``tokenizers`` it repeats a repetition, which
# would make 12345 one word.
POSSESSIVE = re.compile(r"((?:\\p\{\w+\}|\\.|\[[^\]]*\]|[^\\()\[\]{}|])\{\d+,\d*\})\+")


def names() -> list[str]:
    """The encodings that tiktoken offers; empty if it is not installed."""
    return sorted(_tiktoken().list_encoding_names()) if is_installed("tiktoken") else []


def tokenizer_json(name: str) -> str:
    """The encoding ``name`` as the text of a tokenizer.json.

    Raises:
        UserError: its vocabulary is not on this machine and cannot be downloaded.
    """
    try:
        return converted(_tiktoken().get_encoding(name))
    except OSError as error:  # requests' ConnectionError is one
        raise UserError(
            "the vocabulary of this tiktoken encoding is not on this machine and cannot be downloaded",
            key="tokenizer.path",
            value=name,
            hint=f"put it into TIKTOKEN_CACHE_DIR, or give a tokenizer.json ({type(error).__name__})",
        ) from None


def _tiktoken() -> ModuleType:
    return library("tiktoken", hint="pip install 'tinyllm[tiktoken]'")


def converted(encoding: Any) -> str:
    """A ``tiktoken.Encoding`` as tokenizer.json.

    tiktoken stores ranks of tokens instead of merges. A token's merge is found by merging its bytes with lower ranks
    until two parts remain.
    """
    ranks: dict[bytes, int] = encoding._mergeable_ranks

    def spelled(value: bytes) -> str:
        return "".join(CHAR_OF[b] for b in value)

    merges = []
    for value, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if len(value) > 1:
            parts = _split(ranks, value, rank)
            if len(parts) == 2:
                merges.append([spelled(parts[0]), spelled(parts[1])])
    special = dict(sorted(encoding._special_tokens.items(), key=lambda item: item[1]))
    pattern = {"Regex": POSSESSIVE.sub(r"(?>\1)", encoding._pat_str)}
    split = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    vocab = {spelled(value): rank for value, rank in ranks.items()}
    return json.dumps(
        library_json(
            bpe_model(vocab, merges, ignore_merges=True),  # tiktoken takes a word that is a token as it is, unmerged
            special=special,
            pre_tokenizer={"type": "Sequence", "pretokenizers": [split, BYTE_LEVEL]},
            decoder=BYTE_LEVEL | {"use_regex": True},
        )
    )


def _split(ranks: dict[bytes, int], token: bytes, below: int) -> list[bytes]:
    """The parts of ``token`` after all merges with a rank below ``below``."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 1:
        pairs = [ranks.get(a + b, below) for a, b in pairwise(parts)]
        best = min(range(len(pairs)), key=pairs.__getitem__)
        if pairs[best] >= below:
            break
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return parts

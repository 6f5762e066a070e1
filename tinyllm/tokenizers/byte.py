"""Byte tokenizer: one id per UTF-8 byte and an end-of-text. It needs no training, and nothing is unknown."""

from collections.abc import Iterable, Sequence
from typing import Any, Self

import numpy as np

from tinyllm.tokenizers.base import Encoded, Tokenizer, TokenizerTrainer
from tinyllm.tokenizers.special_tokens import (
    END,
    SpecialTokenMatcher,
    require_needed,
    require_special,
    special_settings,
)


class ByteTokenizer(Tokenizer):
    """Ids 0–255 are the bytes, 256 is the end-of-text, further special tokens follow.

    Args:
        special: spellings of special tokens; ``<|endoftext|>`` is always 256 and may be left out.
        match_special: whether special tokens spelled out in the text, the end-of-text included, are encoded as such.
    """

    kind = "byte"
    vocab_size = 257
    eot_id = 256

    def __init__(self, special: Sequence[str] = (), *, match_special: bool = False) -> None:
        further = [token for token in special if token != END]
        self.special = {END: 256} | {token: 257 + i for i, token in enumerate(further)}
        self.match_special = match_special
        self.vocab_size = 256 + len(self.special)
        self._special_matcher = SpecialTokenMatcher(self.special if match_special else {})

    def encode(self, text: str, *, strict: bool = False) -> np.ndarray:
        return self._encode(text).ids.astype(np.int64)

    def encode_measured(self, texts: Sequence[str]) -> list[Encoded]:
        return [self._encode(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        return b"".join(map(self.bytes_of, ids)).decode("utf-8", "replace")

    def bytes_of(self, token: int) -> bytes:
        return bytes((int(token),)) if token < 256 else b""

    def token_bytes(self) -> np.ndarray:
        return np.array([1] * 256 + [0] * len(self.special), dtype=np.int64)

    def last_cut(self, text: str) -> int:
        return self._special_matcher.last_cut(text)

    def matching(self, match_special: bool) -> "ByteTokenizer":
        return ByteTokenizer(list(self.special), match_special=match_special)

    def with_special_tokens(self, tokens: Sequence[str]) -> "ByteTokenizer":
        return ByteTokenizer(list(dict.fromkeys([*self.special, *tokens])), match_special=self.match_special)

    def to_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {"kind": self.kind}
        if len(self.special) > 1:
            state["special_tokens"] = list(self.special)
        return state | ({"match_special": True} if self.match_special else {})

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> Self:
        return cls(state.get("special_tokens", ()), match_special=state.get("match_special", False))

    def _encode(self, text: str) -> Encoded:
        return self._special_matcher.encode(
            text, lambda part: Encoded(_bytes(part).astype(np.uint16), None), lambda ids: np.ones(len(ids), np.int64)
        )


class ByteTrainer(TokenizerTrainer):
    """Creates a :class:`ByteTokenizer`; nothing is learned.

    Args:
        special_tokens: special tokens besides the end-of-text; ``auto``: those that the data need; ``standard``: those
            of :data:`tinyllm.tokenizers.special_tokens.STANDARD`.
        match_special: whether special tokens spelled out in the text are encoded as such; false: they are text.
    """

    def __init__(self, *, special_tokens: str | Sequence[str] = (), match_special: bool = False) -> None:
        self._setting, self._match = special_tokens, match_special
        self._special = require_special(special_tokens, match=match_special)

    def reserve(self, tokens: Sequence[str]) -> None:
        self._special = require_special(self._setting, match=self._match, needed=tokens)
        require_needed([END, *self._special], tokens)

    def train(self, texts: Iterable[str], *, n_documents: int | None = None, size: int | None = None) -> ByteTokenizer:
        return ByteTokenizer(self._special, match_special=self._match)

    def count(self, text: Any) -> int:
        return len(text.encode())

    def settings(self) -> dict[str, Any]:
        return special_settings(self._special, match=self._match)


def _bytes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-8", "surrogatepass"), dtype=np.uint8)

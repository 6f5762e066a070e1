"""One id per byte of UTF-8, and an end-of-text: 257 ids, no training, nothing unknown."""

from collections.abc import Iterable, Sequence
from typing import Any, Self

import numpy as np

from tinyllm.tokenizers.base import Tokenizer, TokenizerTrainer


class ByteTokenizer(Tokenizer):
    """Ids 0–255 are the bytes, 256 ends a document."""

    kind = "byte"
    vocab_size = 257
    eot_id = 256

    def encode(self, text: str, *, strict: bool = False) -> np.ndarray:
        return _bytes(text).astype(np.int64)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [_bytes(text).astype(np.uint16) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        return b"".join(map(self.bytes_of, ids)).decode("utf-8", "replace")

    def bytes_of(self, token: int) -> bytes:
        return bytes((int(token),)) if token < 256 else b""

    def token_bytes(self) -> np.ndarray:
        return np.array([1] * 256 + [0], dtype=np.int64)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind}

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> Self:
        return cls()


class ByteTrainer(TokenizerTrainer):
    """There is nothing to learn and nothing to set."""

    def __init__(self) -> None:
        pass

    def train(self, texts: Iterable[str], *, n_documents: int | None = None, size: int | None = None) -> ByteTokenizer:
        return ByteTokenizer()

    def settings(self) -> dict[str, Any]:
        return {}


def _bytes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-8", "surrogatepass"), dtype=np.uint8)

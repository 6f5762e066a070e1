"""The identity tokenizer, for data that already consists of token ids."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Self

import numpy as np

from tinyllm.errors import UserError
from tinyllm.tokenizers.base import Encoded, Tokenizer, TokenizerTrainer


class IdsTokenizer(Tokenizer):
    """Ids are the numbers themselves, written in decimal separated by spaces: ``"17 4 4"``.

    Args:
        vocab_size: numbers are 0 … vocab_size−1.
        may_grow: whether ``covering`` may raise vocab_size for larger numbers.
    """

    kind = "ids"
    content = "numbers"

    def __init__(self, *, vocab_size: int, may_grow: bool = False) -> None:
        self.vocab_size = vocab_size
        self._may_grow = may_grow

    def encode(self, text: str, *, strict: bool = False) -> np.ndarray:
        try:
            ids = np.array([int(word) for word in text.split()], dtype=np.int64)
        except ValueError:
            raise UserError(
                "the prompt must consist of token ids: this model was trained on token ids, not on text",
                hint="write them in decimal, separated by spaces",
            ) from None
        self._refuse_outside(ids)
        return ids

    def encode_measured(self, texts: Sequence[np.ndarray]) -> list[Encoded]:
        for ids in texts:
            self._refuse_outside(ids, key="tokenizer.vocab_size", value=self.vocab_size)
        return [Encoded(ids.astype(np.uint32), None) for ids in texts]

    def decode(self, ids: Iterable[int]) -> str:
        return " ".join(str(int(i)) for i in ids)

    def bytes_of(self, token: int) -> bytes:
        return f"{int(token)} ".encode()

    def token_bytes(self) -> np.ndarray:
        return np.zeros(self.vocab_size, dtype=np.int64)

    def pieces(self, chunks: Iterable[Any], size: int) -> Iterator[Any]:
        yield from chunks

    def covering(self, texts: Iterable[np.ndarray]) -> "IdsTokenizer":
        if not self._may_grow:
            return self
        return IdsTokenizer(vocab_size=max([self.vocab_size, *(int(ids.max()) + 1 for ids in texts)]))

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "vocab_size": self.vocab_size}

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> Self:
        return cls(vocab_size=state["vocab_size"])

    def _refuse_outside(self, ids: np.ndarray, **where: Any) -> None:
        if len(ids) and (ids.min() < 0 or ids.max() >= self.vocab_size):
            outside = int(ids.min()) if ids.min() < 0 else int(ids.max())
            raise UserError(
                f"the id {outside} is outside the vocabulary of {self.vocab_size:,} ids",
                **where,
                hint=f"allowed: 0 to {self.vocab_size - 1}",
            )


class IdsTrainer(TokenizerTrainer):
    """Creates an :class:`IdsTokenizer` for the ids in the data.

    Args:
        vocab_size: number of ids; None: the largest number in the data plus one.
    """

    content = "numbers"

    def __init__(self, *, vocab_size: int | None = None) -> None:
        if vocab_size is not None and vocab_size < 1:
            hint = "give a whole number ≥ 1"
            raise UserError("out of range", key="tokenizer.vocab_size", value=vocab_size, hint=hint)
        self._vocab_size = vocab_size

    def train(
        self, texts: Iterable[np.ndarray], *, n_documents: int | None = None, size: int | None = None
    ) -> IdsTokenizer:
        if self._vocab_size is not None:
            return IdsTokenizer(vocab_size=self._vocab_size)
        return IdsTokenizer(vocab_size=max(int(ids.max()) + 1 for ids in texts), may_grow=True)

    def count(self, text: Any) -> int:
        return len(text)

    def settings(self) -> dict[str, Any]:
        return {"vocab_size": self._vocab_size}


class ReadyIds(IdsTokenizer):
    """Passes on the ids of a text tokenizer, for data that it has encoded already, with all their special tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(vocab_size=tokenizer.vocab_size)
        self._token_bytes = tokenizer.token_bytes()

    def token_bytes(self) -> np.ndarray:
        return self._token_bytes

    def _refuse_outside(self, ids: np.ndarray, **where: Any) -> None:
        if len(ids) and int(ids.max()) >= self.vocab_size:
            raise UserError(
                f"the data have the id {ids.max()}, which the tokenizer has not",
                key="tokenizer",
                value="pretrained",
                hint=f"its ids end at {self.vocab_size - 1}; choose the tokenizer that made these ids",
            )

"""One id per character: the sorted alphabet of the training split."""

from collections.abc import Iterable, Sequence
from typing import Any, Self

import numpy as np

from tinyllm.errors import UserError
from tinyllm.tokenizers.base import Tokenizer, TokenizerTrainer

CODE_POINTS = 0x110000


class CharTokenizer(Tokenizer):
    """Ids are the positions of the characters in ``alphabet``, then the end-of-text, then ``<unk>``.

    Args:
        alphabet: every character once, in code point order.
        eot: whether there is an id that ends documents.
        unk: whether there is an id for characters outside the alphabet.
    """

    kind = "char"

    def __init__(self, alphabet: str, *, eot: bool = False, unk: bool = False) -> None:
        if sorted(set(alphabet)) != list(alphabet):
            raise ValueError("the alphabet must be sorted and hold every character once")
        self.alphabet = alphabet
        n = len(alphabet)
        self.eot_id = n if eot else None
        self._unknown = n + int(eot)  # what the table gives for a character outside, whether or not it is an id
        self.unk_id = self._unknown if unk else None
        self.vocab_size = self._unknown + int(unk)
        self._codes = code_points(alphabet)
        self._table = np.full(CODE_POINTS, self._unknown, dtype=np.uint16 if n + 2 <= 2**16 else np.uint32)
        self._table[self._codes] = np.arange(n)
        self._ascii_table = self._table[:128].copy()

    def encode(self, text: str, *, strict: bool = False) -> np.ndarray:
        ids = self._lookup(text)
        if strict or self.unk_id is None:
            self._refuse_unknown(text, ids)
        return ids.astype(np.int64)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [ids for ids, _ in self.encode_counted(texts)]

    def encode_counted(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray | None]]:
        counted: list[tuple[np.ndarray, np.ndarray | None]] = []
        for text in texts:
            ids = self._lookup(text)
            if self.unk_id is None:
                self._refuse_unknown(text, ids)
            some_unknown = self.unk_id is not None and bool((ids == self.unk_id).any())
            counted.append((ids, utf8_lengths(code_points(text)) if some_unknown else None))
        return counted

    def decode(self, ids: Iterable[int]) -> str:
        return "".join(self._text_of(int(i)) for i in ids)

    def token_bytes(self) -> np.ndarray:
        lengths = np.zeros(self.vocab_size, dtype=np.int64)
        lengths[: len(self.alphabet)] = utf8_lengths(self._codes)
        return lengths

    def covering(self, texts: Iterable[str]) -> "CharTokenizer":
        if self.unk_id is None and any((self._lookup(text) == self._unknown).any() for text in texts):
            return CharTokenizer(self.alphabet, eot=self.eot_id is not None, unk=True)
        return self

    def to_dict(self) -> dict[str, Any]:
        has_eot, has_unk = self.eot_id is not None, self.unk_id is not None
        return {"kind": self.kind, "alphabet": self.alphabet, "eot": has_eot, "unk": has_unk}

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> Self:
        return cls(state["alphabet"], eot=state["eot"], unk=state["unk"])

    def _lookup(self, text: str) -> np.ndarray:
        if text.isascii():
            return self._ascii_table.take(np.frombuffer(text.encode("ascii"), dtype=np.uint8))
        return self._table[code_points(text)]

    def _refuse_unknown(self, text: str, ids: np.ndarray) -> None:
        unknown = ids == self._unknown
        if unknown.any():
            char = text[int(unknown.argmax())]
            raise UserError(
                f"the character {char!r} (U+{ord(char):04X}) is not in the tokenizer's alphabet",
                hint="the training text never has it; leave it out, or train with tokenizer=byte or bpe",
            )

    def _text_of(self, token: int) -> str:
        if token < len(self.alphabet):
            return self.alphabet[token]
        return "\ufffd" if token == self.unk_id else ""


class CharTrainer(TokenizerTrainer):
    """Collects the alphabet. Documents get an end-of-text only if there is more than one to tell apart."""

    def __init__(self) -> None:
        pass

    def train(self, texts: Iterable[str], *, n_documents: int | None = None, size: int | None = None) -> CharTokenizer:
        seen = np.zeros(CODE_POINTS, dtype=bool)
        count = 0
        for text in texts:
            seen[code_points(text)] = True
            count += 1
        alphabet = "".join(map(chr, np.flatnonzero(seen)))
        return CharTokenizer(alphabet, eot=(count if n_documents is None else n_documents) > 1)

    def settings(self) -> dict[str, Any]:
        return {}


def code_points(text: str) -> np.ndarray:
    """The characters of ``text`` as numbers, uint8 or uint32 of shape (len(text),)."""
    if text.isascii():
        return np.frombuffer(text.encode("ascii"), dtype=np.uint8)
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def utf8_lengths(codes: np.ndarray) -> np.ndarray:
    """Bytes of each code point in UTF-8."""
    return 1 + (codes >= 0x80).astype(np.int64) + (codes >= 0x800) + (codes >= 0x10000)

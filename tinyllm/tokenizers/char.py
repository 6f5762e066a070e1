"""Character tokenizer: one id per character of the training split."""

from collections.abc import Iterable, Sequence
from typing import Any, Self

import numpy as np

from tinyllm.errors import UserError
from tinyllm.tokenizers.base import Encoded, Tokenizer, TokenizerTrainer, cut_text
from tinyllm.tokenizers.special_tokens import (
    END,
    UNKNOWN,
    SpecialTokenMatcher,
    require_needed,
    require_special,
    special_settings,
)

CODE_POINTS = 0x110000
"""Number of Unicode code points."""
LEARN_PIECE = 2**20
"""Characters searched at a time for special tokens, which must not be cut."""


class CharTokenizer(Tokenizer):
    """Ids are the characters of ``alphabet`` in order, then the end-of-text, ``<unk>`` and further special tokens.

    Args:
        alphabet: every character once, in code point order.
        eot: whether there is an end-of-text id.
        unk: whether there is an id for characters outside the alphabet.
        special: spellings of special tokens; ``<|endoftext|>`` and ``<unk>`` among them stand for the two above.
        match_special: whether special tokens spelled out in the text are encoded as such.
    """

    kind = "char"

    def __init__(
        self,
        alphabet: str,
        *,
        eot: bool = False,
        unk: bool = False,
        special: Sequence[str] = (),
        match_special: bool = False,
    ) -> None:
        if sorted(set(alphabet)) != list(alphabet):
            raise ValueError("the alphabet must be sorted and hold every character once")
        self.alphabet = alphabet
        n = len(alphabet)
        eot, unk = eot or END in special, unk or UNKNOWN in special
        self.eot_id = n if eot else None
        self._unknown = n + int(eot)  # the table's value outside the alphabet, an id or not
        self.unk_id = self._unknown if unk else None
        first = self._unknown + int(unk)
        self._others = [token for token in special if token not in (END, UNKNOWN)]
        named = {END: self.eot_id, UNKNOWN: self.unk_id}
        self.special = {token: i for token, i in named.items() if i is not None}
        self.special |= {token: first + i for i, token in enumerate(self._others)}
        self.match_special = match_special
        # <unk> is never matched in text: it stands for unknown characters, and its spelling consists of ordinary ones.
        matchable = {token: i for token, i in self.special.items() if token != UNKNOWN}
        self._special_matcher = SpecialTokenMatcher(matchable if match_special else {})
        self.vocab_size = first + len(self._others)
        self._codes = code_points(alphabet)
        self._table = np.full(CODE_POINTS, self._unknown, dtype=np.uint16 if n + 2 <= 2**16 else np.uint32)
        self._table[self._codes] = np.arange(n)
        self._ascii_table = self._table[:128].copy()

    def encode(self, text: str, *, strict: bool = False) -> np.ndarray:
        return self._encode(text, strict=strict).ids.astype(np.int64)

    def encode_measured(self, texts: Sequence[str]) -> list[Encoded]:
        return [self._encode(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        return "".join(self._text_of(int(i)) for i in ids)

    def token_bytes(self) -> np.ndarray:
        lengths = np.zeros(self.vocab_size, dtype=np.int64)
        lengths[: len(self.alphabet)] = utf8_lengths(self._codes)
        return lengths

    def covering(self, texts: Iterable[str]) -> "CharTokenizer":
        plain = self._special_matcher.plain(texts)
        if self.unk_id is None and any((self._lookup(text) == self._unknown).any() for text in plain):
            return self._changed(unk=True)
        return self

    def matching(self, match_special: bool) -> "CharTokenizer":
        return self._changed(match_special=match_special)

    def last_cut(self, text: str) -> int:
        return self._special_matcher.last_cut(text)

    def with_special_tokens(self, tokens: Sequence[str]) -> "CharTokenizer":
        missing = [token for token in tokens if token not in self.special]
        early = [token for token in missing if token in (END, UNKNOWN)]
        if early:
            what = f"{early[0]} cannot be added to a char tokenizer without changing other ids"
            hint = "train the first stage with tokenizer.special_tokens=standard, or with tokenizer=byte or bpe"
            raise UserError(what, key="tokenizer", value=self.kind, hint=hint)
        return self._changed(special=[*self._others, *missing])

    def to_dict(self) -> dict[str, Any]:
        has_eot, has_unk = self.eot_id is not None, self.unk_id is not None
        state = {"kind": self.kind, "alphabet": self.alphabet, "eot": has_eot, "unk": has_unk}
        return state | special_settings(self._others, match=self.match_special)

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> Self:
        special, match = state.get("special_tokens", ()), state.get("match_special", False)
        return cls(state["alphabet"], eot=state["eot"], unk=state["unk"], special=special, match_special=match)

    def _changed(
        self, *, unk: bool = False, match_special: bool | None = None, special: Sequence[str] | None = None
    ) -> "CharTokenizer":
        return CharTokenizer(
            self.alphabet,
            eot=self.eot_id is not None,
            unk=unk or self.unk_id is not None,
            special=self._others if special is None else special,
            match_special=self.match_special if match_special is None else match_special,
        )

    def _encode(self, text: str, *, strict: bool = False) -> Encoded:
        return self._special_matcher.encode(
            text, lambda part: self._plain(part, strict=strict), lambda ids: self.token_bytes()[ids]
        )

    def _plain(self, text: str, *, strict: bool) -> Encoded:
        ids = self._lookup(text)
        if strict or self.unk_id is None:
            self._refuse_unknown(text, ids)
        unknown = ids == self.unk_id if self.unk_id is not None else np.zeros(0, bool)
        if not unknown.any():
            return Encoded(ids, None)
        lengths = utf8_lengths(code_points(text))
        return Encoded(ids, lengths, (int(unknown.sum()), int(lengths[unknown].sum())))

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
                hint="it does not occur in the training text; leave it out, or train with tokenizer=byte or bpe",
            )

    def _text_of(self, token: int) -> str:
        if token < len(self.alphabet):
            return self.alphabet[token]
        return "\ufffd" if token == self.unk_id else ""


class CharTrainer(TokenizerTrainer):
    """Collects the alphabet of the training text. There is an end-of-text only if there are several documents.

    Args:
        special_tokens: entries beyond the alphabet. Naming ``<|endoftext|>`` or ``<unk>`` adds the end-of-text or the
            unknown token in any case. ``auto``: those that the data need; ``standard``: those of
            :data:`tinyllm.tokenizers.special_tokens.STANDARD`.
        match_special: whether special tokens spelled out in the text are encoded as such; false: they are text.
    """

    def __init__(self, *, special_tokens: str | Sequence[str] = (), match_special: bool = False) -> None:
        self._setting, self._match = special_tokens, match_special
        self._use(require_special(special_tokens, match=match_special))

    def reserve(self, tokens: Sequence[str]) -> None:
        self._use(require_special(self._setting, match=self._match, needed=tokens))
        require_needed(self._special, tokens)

    def _use(self, special: list[str]) -> None:
        self._special = special
        matched = [token for token in special if self._match and token != UNKNOWN]
        self._special_matcher = SpecialTokenMatcher(dict.fromkeys(matched, 0))

    def train(self, texts: Iterable[str], *, n_documents: int | None = None, size: int | None = None) -> CharTokenizer:
        seen = np.zeros(CODE_POINTS, dtype=bool)
        count = 0
        for text in texts:
            count += 1
            for part in self._special_matcher.plain([text]):
                seen[code_points(part)] = True
        alphabet = "".join(map(chr, np.flatnonzero(seen)))
        several = (count if n_documents is None else n_documents) > 1
        return CharTokenizer(alphabet, eot=several, special=self._special, match_special=self._match)

    def pieces(self, chunks: Iterable[str]) -> Iterable[str]:
        return cut_text(chunks, LEARN_PIECE, self._special_matcher.last_cut) if self._match else chunks

    def count(self, text: Any) -> int:
        return len(text)

    def settings(self) -> dict[str, Any]:
        return special_settings(self._special, match=self._match)


def code_points(text: str) -> np.ndarray:
    """The code points of ``text``, uint8 or uint32 of shape (len(text),)."""
    if text.isascii():
        return np.frombuffer(text.encode("ascii"), dtype=np.uint8)
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def utf8_lengths(codes: np.ndarray) -> np.ndarray:
    """Number of UTF-8 bytes of each code point."""
    return 1 + (codes >= 0x80).astype(np.int64) + (codes >= 0x800) + (codes >= 0x10000)

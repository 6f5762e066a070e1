"""The interfaces of tokenizers and tokenizer trainers, and streaming decoding."""

import codecs
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from tinyllm.errors import UserError
from tinyllm.utils.files import write_text


class Encoded(NamedTuple):
    """An encoded string.

    Attributes:
        ids: token ids, unsigned integers (n,).
        lengths: UTF-8 bytes of the text that each token stands for, (n,); None: ``token_bytes()[ids]``.
        unknown: how many characters the tokenizer cannot express, and how many UTF-8 bytes they have.
    """

    ids: np.ndarray
    lengths: np.ndarray | None
    unknown: tuple[int, int] = (0, 0)


class Tokenizer(ABC):
    """Encodes text as ids 0 … vocab_size−1 and decodes it. Immutable; safe to share between threads.

    Attributes:
        kind: name of the class in saved files.
        content: what it encodes, ``text`` or ``numbers``.
        vocab_size: number of ids.
        eot_id: id that ends a document, or None.
        unk_id: id of text that the tokenizer cannot express, or None.
        special: ids of the special tokens by spelling.
        match_special: whether special tokens spelled out in the text are encoded as such; false: they are text.
        bos_id: id that an imported model expects at the beginning of a text, or None.
        adds_bos: whether the imported tokenizer itself adds ``bos_id``.
        eos_ids: ids that end a text of an imported model; empty: only ``eot_id`` does.
        is_slow: encoding takes longer than handing the text to another process.
    """

    kind: ClassVar[str]
    content: ClassVar[str] = "text"
    vocab_size: int
    eot_id: int | None = None
    unk_id: int | None = None
    special: Mapping[str, int] = MappingProxyType({})
    match_special: bool = False
    bos_id: int | None = None
    adds_bos: bool = False
    eos_ids: frozenset[int] = frozenset()
    is_slow: ClassVar[bool] = False

    @abstractmethod
    def encode(self, text: str, *, strict: bool = False) -> np.ndarray:
        """The ids of ``text``, int64 of shape (n,), without an end-of-text token.

        Args:
            strict: refuse text that the tokenizer cannot express, instead of writing ``<unk>``; for prompts.

        Raises:
            UserError: a character is unknown, and ``strict`` is set or there is no ``<unk>``; the message names it.
        """

    def encode_batch(self, texts: Sequence[Any]) -> list[np.ndarray]:
        """The ids of each string as unsigned integers, encoded in parallel where that pays off."""
        return [encoded.ids for encoded in self.encode_measured(texts)]

    @abstractmethod
    def encode_measured(self, texts: Sequence[Any]) -> list[Encoded]:
        """Like ``encode_batch``, with the bytes that every token stands for and the number of unknown characters."""

    @abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """The text of ``ids``: special tokens are dropped, ``<unk>`` and invalid UTF-8 become U+FFFD."""

    @abstractmethod
    def token_bytes(self) -> np.ndarray:
        """Number of UTF-8 bytes that each id stands for, int64 of shape (vocab_size,); 0 for special ids."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """The tokenizer as plain JSON types, the input of ``from_dict``."""

    @classmethod
    @abstractmethod
    def from_dict(cls, state: dict[str, Any]) -> Self:
        """The tokenizer from the output of ``to_dict``."""

    def matching(self, match_special: bool) -> "Tokenizer":
        """The same tokenizer, matching special tokens in text or not.

        Raises:
            UserError: this kind of tokenizer has no special tokens to match.
        """
        if match_special == self.match_special:
            return self
        raise UserError(
            f"the {self.kind} tokenizer has no special tokens to match in text",
            key="tokenizer.match_special",
            value=match_special,
            hint="leave it at false",
        )

    def with_special_tokens(self, tokens: Sequence[str]) -> "Tokenizer":
        """This tokenizer with special tokens that it may lack, appended in this order; no id changes.

        Raises:
            UserError: this kind of tokenizer takes no further tokens.
        """
        if all(token in self.special for token in tokens):
            return self
        hint = "choose a tokenizer for text"
        raise UserError(
            f"the {self.kind} tokenizer takes no special tokens", key="tokenizer", value=self.kind, hint=hint
        )

    @property
    def end_ids(self) -> frozenset[int]:
        """The ids that end a generated text."""
        return self.eos_ids or frozenset([] if self.eot_id is None else [self.eot_id])

    @property
    def begin_id(self) -> int | None:
        """The id that precedes a document: begin-of-text, else the end-of-text of the previous document."""
        return self.eot_id if self.bos_id is None else self.bos_id

    def used_by(self, *, bos_id: int | None, adds_bos: bool, eos_ids: Iterable[int]) -> Self:
        """A copy with the begin and end tokens that an imported model expects."""
        changed = copy(self)
        changed.bos_id, changed.adds_bos, changed.eos_ids = bos_id, adds_bos, frozenset(eos_ids)
        return changed

    def stream(self) -> "TextStream":
        """A decoder for text that is generated id by id."""
        return TextStream(self.bytes_of)

    def bytes_of(self, token: int) -> bytes:
        """The UTF-8 bytes that ``token`` adds to the text, possibly only part of a character."""
        return self.decode([token]).encode("utf-8", "surrogatepass")

    def pieces(self, chunks: Iterable[str], size: int) -> Iterator[str]:
        """Cut one document, given in ``chunks`` of any length, into pieces of about ``size`` characters.

        Concatenating the ids of the pieces gives the ids of the whole document, for any ``size`` and any chunks. Where
        no cut has that property the piece grows, up to the whole document.
        """
        yield from cut_text(chunks, size, self.last_cut)

    def last_cut(self, text: str) -> int:
        """The last position where cutting ``text`` changes no id, whatever follows; 0 if there is none."""
        return len(text)

    def covering(self, texts: Iterable[Any]) -> "Tokenizer":
        """This tokenizer, extended by ``<unk>`` or by ids if ``texts`` need it; nothing else is learned from them."""
        return self

    def save(self, path: str | Path) -> None:
        """Write the file that ``tinyllm.tokenizers.load`` reads."""
        write_text(Path(path), self.to_json())

    def to_json(self) -> str:
        """``to_dict`` as canonical JSON, so that equal tokenizers give equal files."""
        return json.dumps(self.to_dict(), ensure_ascii=True, indent=1) + "\n"

    def fingerprint(self) -> str:
        """sha256 (hex) of :meth:`to_json`; tokenizers with the same fingerprint give the same ids."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


class TokenizerTrainer(ABC):
    """Trains a tokenizer on the training split. The constructor's arguments are the keys of its config file."""

    content: ClassVar[str] = "text"
    is_fixed: ClassVar[bool] = False
    """Whether the tokenizer exists already and learns nothing from the texts."""
    counts_text: ClassVar[bool] = False
    """Whether it matters how often a text occurs."""

    @abstractmethod
    def train(self, texts: Iterable[Any], *, n_documents: int | None = None, size: int | None = None) -> Tokenizer:
        """Train a tokenizer on ``texts``.

        Args:
            texts: the training split in order; read at most once.
            n_documents: number of documents that ``texts`` are pieces of; None: each text is a document.
            size: total bytes of the texts, if known.
        """

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """All settings that affect the result of ``train``, as plain JSON types; they identify cached data."""

    def fingerprint(self) -> str:
        """sha256 (hex) of the settings."""
        text = json.dumps([type(self).__name__, self.settings()], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def label(self) -> str:
        """Its kind in one word, for lists: ``bpe``."""
        return type(self).__name__.removesuffix("Trainer").lower()

    def reserve(self, tokens: Sequence[str]) -> None:
        """Give the tokenizer the special tokens that the data need, unless the settings list others.

        Raises:
            UserError: the listed tokens lack one, or this kind of tokenizer has none.
        """
        if tokens:
            hint = "choose tokenizer=char, byte, bpe or pretrained"
            what = f"the data need special tokens such as {tokens[0]}"
            raise UserError(what, key="tokenizer", value=self.label, hint=hint)

    def check(self) -> None:  # noqa: B027 - most trainers have nothing to check beyond their constructor
        """Refuse settings that cannot work, before anything is read or written (UserError)."""

    def count(self, text: Any) -> int:
        """The number of tokens of ``text``; estimated as one per 4 bytes while the tokenizer is yet to be trained."""
        return -(-len(text.encode()) // 4)

    def pieces(self, chunks: Iterable[Any]) -> Iterable[Any]:
        """The pieces of one document to pass to ``train``; the result must not depend on how it was chunked."""
        return chunks

    def notes(self, tokenizer: Tokenizer) -> list[str]:
        """Notes for the user where the tokenizer differs from the settings."""
        return []


class TextStream:
    """Decodes id by id; a character appears with its last byte.

    Concatenating every ``push`` and the final ``flush`` equals ``decode`` of all ids.
    """

    def __init__(self, bytes_of: Callable[[int], bytes]) -> None:
        self._bytes_of = bytes_of
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """The text that ``token`` completes, possibly empty."""
        return self._decoder.decode(self._bytes_of(int(token)))

    def flush(self) -> str:
        """The rest at the end, U+FFFD for an incomplete character. The stream can then be used again."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text


def cut_text(chunks: Iterable[str], size: int, last_cut: Callable[[str], int]) -> Iterator[str]:
    """Cut text as :meth:`Tokenizer.pieces` does, using ``last_cut``, which returns the last allowed cut."""
    pending: list[str] = []
    length, wanted = 0, size
    for chunk in chunks:
        pending.append(chunk)
        length += len(chunk)
        if length < wanted:
            continue
        text, start, end = "".join(pending), 0, size
        while end <= len(text):
            cut = last_cut(text[start:end])
            if cut:
                yield text[start : start + cut]
                start += cut
                end = start + size
            else:
                end += end - start  # no cut here: look at twice as much text, so the total time stays linear
        pending = [text[start:]]
        length = len(text) - start
        wanted = max(size, end - start)
    rest = "".join(pending)
    if rest:
        yield rest

"""What every tokenizer can do, and what trains one."""

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
    """What became of one text.

    Attributes:
        ids: unsigned integers (n,).
        lengths: UTF-8 bytes of the text that each token stands for, (n,); None: they are ``token_bytes()[ids]``.
        unknown: characters, and their UTF-8 bytes, that the tokenizer cannot express.
    """

    ids: np.ndarray
    lengths: np.ndarray | None
    unknown: tuple[int, int] = (0, 0)


class Tokenizer(ABC):
    """Turns text into ids 0 … vocab_size−1 and back. Immutable; safe to share between threads.

    Attributes:
        vocab_size: number of ids.
        eot_id: id that ends a document, or None when the tokenizer has none.
        unk_id: id that stands for what the tokenizer cannot express, or None when it can express everything.
        special: id of each special token, by its spelling.
        match_special: whether a text that spells a special token is encoded to it; else it stays text.
        bos_id: id that a model from elsewhere expects at the beginning of a text, or None.
        adds_bos: whether its tokenizer puts that id there by itself.
        eos_ids: ids with which such a model ends a text; empty: ``eot_id`` alone does.
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

    @abstractmethod
    def encode(self, text: str, *, strict: bool = False) -> np.ndarray:
        """The ids of ``text``, int64 of shape (n,), without an end-of-text.

        Args:
            strict: refuse text that the tokenizer cannot express instead of writing ``<unk>``. For prompts.

        Raises:
            UserError: a character is unknown, and ``strict`` is set or there is no ``<unk>``. It names the
            character.
        """

    @abstractmethod
    def encode_batch(self, texts: Sequence[Any]) -> list[np.ndarray]:
        """The ids of each text, as unsigned integers, in parallel where that helps."""

    def encode_counted(self, texts: Sequence[Any]) -> list[tuple[np.ndarray, np.ndarray | None]]:
        """Like ``encode_batch``, each with the UTF-8 bytes of the text every token stands for.

        None instead of the byte counts says that they are ``token_bytes()[ids]``.
        """
        return [(encoded.ids, encoded.lengths) for encoded in self.encode_measured(texts)]

    def encode_measured(self, texts: Sequence[Any]) -> list[Encoded]:
        """Like ``encode_counted``, each with what the tokenizer cannot express."""
        return [Encoded(ids, None) for ids in self.encode_batch(texts)]

    @abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """The text of ``ids``: special tokens give nothing, ``<unk>`` and broken UTF-8 give U+FFFD."""

    @abstractmethod
    def token_bytes(self) -> np.ndarray:
        """UTF-8 bytes that each id stands for, int64 of shape (vocab_size,); 0 for special ids."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """The whole tokenizer as plain JSON types; what ``from_dict`` takes."""

    @classmethod
    @abstractmethod
    def from_dict(cls, state: dict[str, Any]) -> Self:
        """The tokenizer that ``to_dict`` described."""

    def matching(self, match_special: bool) -> "Tokenizer":
        """The same tokenizer, with special tokens matched in text or not."""
        if match_special == self.match_special:
            return self
        raise UserError(
            f"a {self.kind} tokenizer has no special tokens to match in text",
            key="tokenizer.match_special",
            value=match_special,
            hint="leave it at false",
        )

    @property
    def end_ids(self) -> frozenset[int]:
        """Ids that end a generated text."""
        return self.eos_ids or frozenset([] if self.eot_id is None else [self.eot_id])

    @property
    def begin_id(self) -> int | None:
        """The id after which a text begins: begin-of-text, or else the end of the text before."""
        return self.eot_id if self.bos_id is None else self.bos_id

    def used_by(self, *, bos_id: int | None, adds_bos: bool, eos_ids: Iterable[int]) -> Self:
        """A copy that begins and ends texts as a model from elsewhere does."""
        mine = copy(self)
        mine.bos_id, mine.adds_bos, mine.eos_ids = bos_id, adds_bos, frozenset(eos_ids)
        return mine

    def stream(self) -> "TextStream":
        """A decoder that takes one id at a time, for text that appears as it is generated."""
        return TextStream(self.bytes_of)

    def bytes_of(self, token: int) -> bytes:
        """What ``token`` adds to the text, as UTF-8 bytes; may be a part of a character."""
        return self.decode([token]).encode("utf-8", "surrogatepass")

    def pieces(self, chunks: Iterable[str], size: int) -> Iterator[str]:
        """Cuts one document, which comes in ``chunks`` of any length, into pieces of about ``size`` characters.

        The ids of the pieces, one after the other, are the ids of the whole document, whatever ``size`` and
        however the document was chunked. Where no such cut exists the piece grows, up to the whole document.
        """
        yield from cut_text(chunks, size, self.last_cut)

    def last_cut(self, text: str) -> int:
        """The last place where ``text`` may be cut without changing an id, whatever follows it; 0 if there is none."""
        return len(text)

    def covering(self, texts: Iterable[Any]) -> "Tokenizer":
        """This tokenizer, or the same with an ``<unk>`` more if ``texts`` need it. Nothing is learnt from ``texts``."""
        return self

    def save(self, path: str | Path) -> None:
        """Writes the file that ``tinyllm.tokenizers.load`` reads."""
        write_text(Path(path), self.to_json())

    def to_json(self) -> str:
        """``to_dict`` as JSON with one spelling only, so that equal tokenizers give equal files."""
        return json.dumps(self.to_dict(), ensure_ascii=True, indent=1) + "\n"

    def fingerprint(self) -> str:
        """sha256 (hex) of the content; equal for tokenizers that give the same ids."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


class TokenizerTrainer(ABC):
    """Makes a tokenizer from the training split. Its constructor's arguments are the keys of its config file."""

    content: ClassVar[str] = "text"

    @abstractmethod
    def train(self, texts: Iterable[Any], *, n_documents: int | None = None, size: int | None = None) -> Tokenizer:
        """The tokenizer for ``texts``.

        Args:
            texts: the training split in order; read once, or not at all where nothing is learnt.
            n_documents: how many documents ``texts`` are the pieces of; None: each text is a document.
            size: bytes of all texts together, where known.
        """

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Everything that decides what ``train`` makes of a text, as plain JSON types."""

    def fingerprint(self) -> str:
        """sha256 (hex) of the settings."""
        text = json.dumps([type(self).__name__, self.settings()], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def check(self) -> None:  # noqa: B027 - most trainers have nothing to check beyond their constructor
        """Refuses, before anything is read or written, what cannot work (UserError)."""

    def pieces(self, chunks: Iterable[Any]) -> Iterable[Any]:
        """One document as ``train`` is to get it; what comes of it must not depend on how it was chunked."""
        return chunks

    def notes(self, tokenizer: Tokenizer) -> list[str]:
        """Sentences for the user about what came out differently from what was asked."""
        return []


class TextStream:
    """Decodes id by id: a character appears once its last byte is there.

    Concatenating every ``push`` and the final ``flush`` equals ``decode`` of all ids.
    """

    def __init__(self, bytes_of: Callable[[int], bytes]) -> None:
        self._bytes_of = bytes_of
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """The text that ``token`` completes; often one token's, sometimes empty."""
        return self._decoder.decode(self._bytes_of(int(token)))

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character that was never finished. The stream starts anew."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text


def cut_text(chunks: Iterable[str], size: int, last_cut: Callable[[str], int]) -> Iterator[str]:
    """What ``Tokenizer.pieces`` promises, for any rule where a text may be cut."""
    pending: list[str] = []
    length, enough = 0, size
    for chunk in chunks:
        pending.append(chunk)
        length += len(chunk)
        if length < enough:
            continue
        text, start, end = "".join(pending), 0, size
        while end <= len(text):
            cut = last_cut(text[start:end])
            if cut:
                yield text[start : start + cut]
                start += cut
                end = start + size
            else:
                end += end - start  # no cut in this stretch: look at one twice as long
        pending = [text[start:]]
        length = len(text) - start
        enough = max(size, end - start)
    rest = "".join(pending)
    if rest:
        yield rest

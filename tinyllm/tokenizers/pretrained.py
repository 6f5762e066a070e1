"""Loading tokenizers: saved ones, any tokenizer.json, and tiktoken encodings; and the trainers that return them."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tinyllm.errors import UserError
from tinyllm.tokenizers import tiktoken
from tinyllm.tokenizers.base import Tokenizer, TokenizerTrainer
from tinyllm.tokenizers.byte import ByteTokenizer
from tinyllm.tokenizers.char import CharTokenizer
from tinyllm.tokenizers.huggingface import HuggingFaceTokenizer
from tinyllm.tokenizers.ids import IdsTokenizer
from tinyllm.tokenizers.special_tokens import require_needed, require_special
from tinyllm.utils.files import expand_home, parse_json, read_text

LARGEST = 256 << 20
"""Size limit of a tokenizer file in bytes; the largest published files have 40 MB."""
CLASSES: tuple[type[Tokenizer], ...] = (CharTokenizer, ByteTokenizer, IdsTokenizer, HuggingFaceTokenizer)
KINDS = {cls.kind: cls for cls in CLASSES}


def load(path: str | Path) -> Tokenizer:
    """Load a tokenizer from a file that ``Tokenizer.save`` wrote, or from any Hugging Face ``tokenizer.json``.

    Raises:
        UserError: the file is missing, damaged, or not a tokenizer.
    """
    path = Path(path)
    try:
        return loads(read_text(path, largest=LARGEST))
    except FileNotFoundError:
        raise UserError("tokenizer file not found", file=path) from None
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise UserError(
            f"cannot read the tokenizer; the file is damaged or not a tokenizer: {error}", file=path
        ) from None


def loads(text: str) -> Tokenizer:
    """Load a tokenizer from the text of its file.

    Raises:
        ValueError, TypeError, LookupError, AttributeError: it is damaged, or not a tokenizer.
    """
    state = parse_json(text)
    if state.get("kind") in KINDS:
        return KINDS[state["kind"]].from_dict(state)
    return HuggingFaceTokenizer.from_json(text)  # not written by Tokenizer.save


class PretrainedTrainer(TokenizerTrainer):
    """Loads an existing tokenizer instead of training one.

    Args:
        path: a ``tokenizer.json`` (Hugging Face's or a run's), a directory that contains one, or the name of a tiktoken
            encoding (``gpt2``, ``cl100k_base``, …), which needs the package tiktoken and the encoding's file.
        match_special: whether special tokens spelled out in the text are encoded as such; false: they are text.
        special_tokens: tokens to append if the tokenizer lacks them; no other id changes. ``auto``: those that the data
            need; ``standard``: those of :data:`tinyllm.tokenizers.special_tokens.STANDARD`.
    """

    is_fixed = True

    def __init__(self, *, path: str, match_special: bool = False, special_tokens: str | Sequence[str] = ()) -> None:
        self._path = str(path)
        self._match_special = match_special
        self._setting = special_tokens
        self._added = require_special(special_tokens, match=False)
        self._tokenizer: Tokenizer | None = None

    def check(self) -> None:
        self._load()

    def train(self, texts: Iterable[str], *, n_documents: int | None = None, size: int | None = None) -> Tokenizer:
        return self._load()

    def count(self, text: Any) -> int:
        return _count(self._load(), text)

    def reserve(self, tokens: Sequence[str]) -> None:
        self._added = require_special(self._setting, match=False, needed=tokens)
        self._tokenizer = None
        require_needed([*self._load().special, *self._added], tokens)

    def settings(self) -> dict[str, Any]:
        match = {"match_special": True} if self._match_special else {}
        added = {"special_tokens": self._added} if self._added else {}
        return {"content": self._content()} | _counting(self._load()) | match | added

    def _file(self) -> Path:
        path = expand_home(self._path)
        return path / "tokenizer.json" if path.is_dir() else path

    def _content(self) -> str:
        """The identity of the tokenizer: the hash of its file, so a moved file is the same and an edited one is not."""
        file = self._file()
        if file.is_file():
            return hashlib.sha256(file.read_bytes()).hexdigest()
        return self._load().fingerprint()

    def _load(self) -> Tokenizer:
        if self._tokenizer is None:
            file = self._file()
            tokenizer = load(file) if file.is_file() else self._from_tiktoken()
            tokenizer = tokenizer.with_special_tokens(self._added) if self._added else tokenizer
            self._tokenizer = tokenizer.matching(True) if self._match_special else tokenizer
        return self._tokenizer

    def _from_tiktoken(self) -> Tokenizer:
        path = expand_home(self._path)
        if path.is_dir():
            raise UserError("the directory has no tokenizer.json", key="tokenizer.path", value=self._path)
        known = tiktoken.names()
        if self._path not in known:
            hint = "give a tokenizer.json, a directory with one, or the name of a tiktoken encoding"
            hint += f" ({', '.join(known)})" if known else ", which needs pip install 'tinyllm[tiktoken]'"
            raise UserError("no such tokenizer", key="tokenizer.path", value=self._path, hint=hint)
        return loads(tiktoken.tokenizer_json(self._path))


class FixedTrainer(TokenizerTrainer):
    """Returns a given tokenizer, for data that it was not trained on."""

    is_fixed = True

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    @property
    def content(self) -> str:  # type: ignore[override]
        return self._tokenizer.content

    def train(self, texts: Iterable[Any], *, n_documents: int | None = None, size: int | None = None) -> Tokenizer:
        return self._tokenizer

    def count(self, text: Any) -> int:
        return _count(self._tokenizer, text)

    def settings(self) -> dict[str, Any]:
        return {"content": self._tokenizer.fingerprint()} | _counting(self._tokenizer)


def _count(tokenizer: Tokenizer, text: Any) -> int:
    """The number of tokens of a text; of ids, how many they are."""
    return len(tokenizer.encode(text)) if isinstance(text, str) else len(text)


def _counting(tokenizer: Tokenizer) -> dict[str, Any]:
    """The version of byte counting, if ids alone do not give the counts: earlier versions counted differently, and
    their caches must not be used."""
    return {} if getattr(tokenizer, "counts_by_id", True) else {"counting": 2}

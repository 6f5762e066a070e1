"""The one file that uses the library ``tokenizers``: training byte-level BPE, and running any tokenizer.json."""

import json
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any, Self

import numpy as np

from tinyllm.tokenizers.base import TextStream, Tokenizer
from tinyllm.utils.files import parse_json

# What published models call "the document ends here", in the order in which the names are looked for.
END_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "<|eot|>", "</s>", "<eos>", "<|im_end|>", "[SEP]")

# Splitting rules under which no match crosses the place between a letter or digit and a following blank or
# common punctuation mark: there the text may be cut. GPT-2's is built into ByteLevel; these stand in the
# files of others.
_SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_MARKS = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SAFE_RULES = (
    _SUFFIX + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|" + _MARKS,  # Llama 3
    _SUFFIX + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|" + _MARKS,  # Qwen 2
)
CUT = re.compile("[A-Za-z0-9\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fa5\uac00-\ud7a3](?=[ \t\r\n.,;:!?\u3001\u3002])")


class HuggingFaceTokenizer(Tokenizer):
    """A ``tokenizers.Tokenizer``. Text that looks like a special token stays text.

    Args:
        backend: a ``tokenizers.Tokenizer``; its truncation, padding and special-token templates are not used.
    """

    kind = "huggingface"

    def __init__(self, backend: Any) -> None:
        # Said outright, or every forked loader worker prints a warning about threads it will never use.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True
        self._backend = backend
        self._state: dict[str, Any] = parse_json(backend.to_str())
        self.vocab_size = max(backend.get_vocab(with_added_tokens=True).values()) + 1
        added = [(token["content"], token["id"]) for token in self._state["added_tokens"] if token["special"]]
        self._special = {i for _, i in added}
        self._literal = {token["id"] for token in self._state["added_tokens"]}
        self.eot_id = find_end_of_text(added)
        unk = self._state["model"].get("unk_token")
        self.unk_id = None if unk is None else backend.token_to_id(unk)
        self._byte_level = _writes_bytes(self._state)
        self._exact = self._byte_level and self._state["normalizer"] is None and not _adds_space(self._state)
        self._cuttable = self._exact and _cuts_safely(self._state)
        self._bytes: list[bytes] | None = None

    @classmethod
    def from_json(cls, text: str) -> Self:
        """From the content of a tokenizer.json. Raises ValueError if it is not one."""
        from tokenizers import Tokenizer as Backend

        try:
            return cls(Backend.from_str(text))
        except Exception as error:  # the library raises bare Exception for every damaged file
            raise ValueError(str(error)) from None

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> Self:
        return cls.from_json(json.dumps(state))

    def to_dict(self) -> dict[str, Any]:
        return self._state

    def encode(self, text: str, *, strict: bool = False) -> np.ndarray:
        encoding = self._backend.encode(text, add_special_tokens=False)
        ids = np.array(encoding.ids, dtype=np.int64)
        if strict and self.unk_id is not None and (ids == self.unk_id).any():
            from tinyllm.errors import UserError

            start, end = encoding.offsets[int((ids == self.unk_id).argmax())]
            raise UserError(f"the tokenizer has no token for {text[start:end]!r}", hint="leave it out")
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.uint32) for encoding in encodings]

    def encode_counted(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray | None]]:
        if self._exact:
            return [(ids, None) for ids in self.encode_batch(texts)]
        encodings = self._backend.encode_batch(list(texts), add_special_tokens=False)
        return [
            (np.array(encoding.ids, dtype=np.uint32), _covered_bytes(text, encoding.offsets))
            for text, encoding in zip(texts, encodings, strict=True)
        ]

    def decode(self, ids: Iterable[int]) -> str:
        if self._byte_level:
            return b"".join(map(self.bytes_of, ids)).decode("utf-8", "replace")
        return self._backend.decode([int(i) for i in ids], skip_special_tokens=True)

    def stream(self) -> TextStream:
        return TextStream(self.bytes_of) if self._byte_level else _LibraryStream(self._backend)

    def bytes_of(self, token: int) -> bytes:
        if self._bytes is None:
            self._bytes = self._bytes_of_all()
        return self._bytes[int(token)]

    def token_bytes(self) -> np.ndarray:
        self.bytes_of(0)
        assert self._bytes is not None
        return np.array([len(value) for value in self._bytes], dtype=np.int64)

    def last_cut(self, text: str) -> int:
        return last_cut(text) if self._cuttable else 0

    def _bytes_of_all(self) -> list[bytes]:
        values = [b""] * self.vocab_size
        for token, i in self._backend.get_vocab(with_added_tokens=True).items():
            if i in self._special:
                continue
            if i in self._literal:
                values[i] = token.encode()
            elif self._byte_level:
                values[i] = bytes(BYTE_OF[c] for c in token)
            else:
                values[i] = self._backend.decode([i]).encode()
        return values


class _LibraryStream(TextStream):
    """Streaming for tokenizers whose text of a token depends on its neighbours (``▁`` for a space, ``##``)."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._ids: list[int] = []
        self._shown = ""

    def push(self, token: int) -> str:
        self._ids.append(int(token))
        text = self._backend.decode(self._ids, skip_special_tokens=True)
        if text.endswith("\ufffd"):  # the rest of the character may still come
            return ""
        return self._show(text)

    def flush(self) -> str:
        rest = self._show(self._backend.decode(self._ids, skip_special_tokens=True))
        self._ids, self._shown = [], ""
        return rest

    def _show(self, text: str) -> str:
        new, self._shown = text[len(self._shown) :], text
        return new


def last_cut(text: str) -> int:
    """The last place in ``text`` that no splitting rule known here looks across; 0 if there is none."""
    for window in (512, len(text)):
        cut = 0
        for match in CUT.finditer(text, max(0, len(text) - window)):
            cut = match.end()
        if cut:
            return cut
    return 0


def train_bpe(texts: Iterable[str], *, vocab_size: int, min_frequency: int, special_tokens: Sequence[str]) -> Any:
    """Byte-level BPE (GPT-2's splitting rule) over ``texts``; all 256 bytes are in it, so nothing is ever unknown."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, trainers

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=list(special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return HuggingFaceTokenizer(backend)


def find_end_of_text(special: Sequence[tuple[str, int]]) -> int | None:
    """The id of the first special token with a known name for it, else of the first special token."""
    by_name = dict(special)
    for name in END_OF_TEXT:
        if name in by_name:
            return by_name[name]
    return special[0][1] if special else None


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's spelling of bytes as printable characters (openai/gpt-2, encoder.py), from character to byte."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


BYTE_OF = _byte_alphabet()


def _parts(node: dict[str, Any] | None, name: str) -> list[dict[str, Any]]:
    """The single parts of a pre-tokenizer or decoder, a Sequence taken apart."""
    if node is None:
        return []
    return node[name] if node["type"] == "Sequence" else [node]


def _writes_bytes(state: dict[str, Any]) -> bool:
    return any(part["type"] == "ByteLevel" for part in _parts(state["decoder"], "decoders"))


def _adds_space(state: dict[str, Any]) -> bool:
    return any(part.get("add_prefix_space", False) for part in _parts(state["pre_tokenizer"], "pretokenizers"))


def _cuts_safely(state: dict[str, Any]) -> bool:
    if any(not token["special"] for token in state["added_tokens"]):
        return False  # these are searched in the text before it is split, and may hold blanks
    parts = _parts(state["pre_tokenizer"], "pretokenizers")
    if [part["type"] for part in parts] == ["ByteLevel"]:
        return parts[0]["use_regex"]
    if [part["type"] for part in parts] == ["Split", "ByteLevel"]:
        rule = parts[0]["pattern"].get("Regex")
        return rule in SAFE_RULES and parts[0]["behavior"] == "Isolated" and not parts[1]["use_regex"]
    return False


def _covered_bytes(text: str, offsets: Sequence[tuple[int, int]]) -> np.ndarray:
    """UTF-8 bytes from the end of the token before to the end of each token; the last takes what is left over."""
    lengths = np.zeros(len(offsets), dtype=np.int64)
    done = 0
    for i, (_, end) in enumerate(offsets):
        if end > done:
            lengths[i] = len(text[done:end].encode("utf-8", "surrogatepass"))
            done = end
    if len(offsets):
        lengths[-1] += len(text[done:].encode("utf-8", "surrogatepass"))
    return lengths

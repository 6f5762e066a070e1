"""Tokenizers in the tokenizer.json format, run by the library ``tokenizers``."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Self

import numpy as np
from tokenizers import Tokenizer as Backend

from tinyllm.errors import UserError
from tinyllm.tokenizers.base import Encoded, TextStream, Tokenizer
from tinyllm.tokenizers.char import code_points, utf8_lengths
from tinyllm.tokenizers.checks import first_line, is_panic, library_errors, parts_of, require_harmless
from tinyllm.tokenizers.cuts import Cuts, find_cuts
from tinyllm.tokenizers.decoders import BYTE, BYTE_OF, CHAR_OF, ChainStream, Stage, spelled_bytes, stages
from tinyllm.tokenizers.special_tokens import SpecialTokenMatcher, find_end_of_text
from tinyllm.tokenizers.splitting import BoundedWords, bound_of
from tinyllm.tokenizers.word_cache import WordCache, word_cache
from tinyllm.utils.files import parse_json

GROUP = 2**16 * min(16, max(4, os.cpu_count() or 1))
"""Characters encoded at a time; the library's result takes more than 100 bytes per character."""
WORTH_A_CACHE = 2**15
"""Characters from which on the cache of words is used; building its pattern takes 0.1 s."""
KEEPS_TEXT = ("ByteLevel", "Digits", "Split", "Punctuation")
"""Pre-tokenizers that drop no text unless their behavior is Removed."""

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
"""The part of a tokenizer.json that spells bytes in GPT-2's alphabet."""


class DocumentPiece(str):
    """A piece of a document that knows the character before it."""

    before: str

    def __new__(cls, text: str, before: str) -> Self:
        piece = super().__new__(cls, text)
        piece.before = before
        return piece


class HuggingFaceTokenizer(Tokenizer):
    """A tokenizer of the library ``tokenizers``.

    Args:
        backend: the library's tokenizer; its truncation, padding and special-token templates are not used.
        match_special: whether special tokens spelled out in the text are encoded as such; false: they are text.
    """

    kind = "huggingface"
    is_slow = True

    def __init__(self, backend: Any, *, match_special: bool = False) -> None:
        # Without this, every forked loader worker prints a warning about threads that it never uses.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = not match_special
        self._backend = backend
        self._state: dict[str, Any] = parse_json(backend.to_str())
        self.match_special = match_special
        vocab = backend.get_vocab(with_added_tokens=True)
        if not vocab:
            raise ValueError("its vocabulary is empty")
        self.vocab_size = max(vocab.values()) + 1
        added = self._state["added_tokens"]
        self.special = {token["content"]: token["id"] for token in added if token["special"]}
        self._special = set(self.special.values())
        # Added tokens are spelled literally, unless the model has them too: there é may stand for the byte 0xE9.
        in_model = set(backend.get_vocab(with_added_tokens=False).values())
        self._literal = {token["id"] for token in added} - in_model
        self._searched = [token for token in added if match_special or not token["special"]]
        self.eot_id = find_end_of_text(list(self.special.items()))
        self.unk_id = _unknown_id(self._state["model"], backend)
        self._decoders = parts_of(self._state["decoder"], "decoders")
        self._byte_level = {part["type"] for part in self._decoders} == {"ByteLevel"}
        # Whether every token stands for exactly its own bytes.
        self._exact = (
            self._byte_level
            and self._state["normalizer"] is None
            and _spells_all_bytes(self._state, vocab)
            and not any(token["lstrip"] or token["rstrip"] for token in self._searched)
            and all(
                token["id"] in self._literal
                or spelled_bytes(backend.id_to_token(token["id"])) == token["content"].encode()
                for token in self._searched
            )
        )
        self._bytes: list[bytes] | None = None
        self._leads: dict[str, int] = {}
        self._dropped: dict[str, bool] = {}

    @classmethod
    def from_json(cls, text: str, *, match_special: bool = False) -> Self:
        """The tokenizer from the content of a tokenizer.json.

        Raises:
            ValueError: it is damaged, or harmful to the library.
        """
        require_harmless(text)
        try:
            return cls(Backend.from_str(text), match_special=match_special)
        except BaseException as error:  # the library raises bare Exception for a damaged file, or panics
            if is_panic(error) or isinstance(error, Exception):
                raise ValueError(first_line(error)) from None
            raise

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> Self:
        if state.get("kind") == cls.kind:
            return cls.from_json(json.dumps(state["tokenizer"]), match_special=state["match_special"])
        return cls.from_json(json.dumps(state))

    def to_dict(self) -> dict[str, Any]:
        if self.match_special:  # the library has no entry for it
            return {"kind": self.kind, "match_special": True, "tokenizer": self._state}
        return self._state

    def library_state(self) -> dict[str, Any]:
        """The content of the tokenizer.json. The library itself always matches special tokens in text."""
        return self._state

    def added_first_id(self) -> int | None:
        """The id that the library's post-processor puts in front of every text; None: it adds none."""
        plain, processed = (self._backend.encode("a", add_special_tokens=add).ids for add in (False, True))
        return int(processed[0]) if processed[:1] != plain[:1] else None

    def matching(self, match_special: bool) -> "HuggingFaceTokenizer":
        return HuggingFaceTokenizer.from_json(json.dumps(self._state), match_special=match_special)

    def with_special_tokens(self, tokens: Sequence[str]) -> "HuggingFaceTokenizer":
        missing = [token for token in tokens if token not in self.special]
        if not missing:
            return self
        backend = Backend.from_str(json.dumps(self._state))
        backend.add_special_tokens(missing)
        extended = HuggingFaceTokenizer(backend, match_special=self.match_special)
        return extended.used_by(bos_id=self.bos_id, adds_bos=self.adds_bos, eos_ids=self.eos_ids)

    @property
    def counts_by_id(self) -> bool:
        """Whether ``token_bytes()`` of its ids gives the bytes of any text without special tokens."""
        return self._exact

    def encode(self, text: str, *, strict: bool = False) -> np.ndarray:
        before = getattr(text, "before", "")
        with library_errors():
            encoding = self._backend.encode(before + text, add_special_tokens=False)
        if strict:
            self._refuse_unknown(before + text, encoding)
        return np.array(encoding.ids[self._lead(before) :], dtype=np.int64)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        by_word = self._by_word(texts)
        rest = iter(self._by_library([text for text, ids in zip(texts, by_word, strict=True) if ids is None]))
        return [next(rest) if ids is None else ids for ids in by_word]

    def _by_word(self, texts: Sequence[str]) -> Sequence[np.ndarray | None]:
        """The ids of each text from the cache of words; None for texts that it does not support."""
        if self._word_cache is None or sum(map(len, texts)) < WORTH_A_CACHE:
            return [None] * len(texts)
        plain = [not any(token["content"] in text for token in self._searched) for text in texts]
        found = iter(self._word_cache.encode([text for text, is_plain in zip(texts, plain, strict=True) if is_plain]))
        return [next(found) if is_plain else None for is_plain in plain]

    def _by_library(self, texts: Sequence[str]) -> list[np.ndarray]:
        batch = self._backend.encode_batch_fast
        return [np.array(encoding.ids[lead:], dtype=np.uint32) for _, encoding, lead in self._encodings(texts, batch)]

    def encode_measured(self, texts: Sequence[str]) -> list[Encoded]:
        if self._exact:
            return [Encoded(ids, self._with_special(ids)) for ids in self.encode_batch(texts)]
        return [
            self._measured(text, encoding, lead)
            for text, encoding, lead in self._encodings(texts, self._backend.encode_batch)
        ]

    def decode(self, ids: Iterable[int]) -> str:
        if self._byte_level:
            return b"".join(map(self.bytes_of, ids)).decode("utf-8", "replace")
        stream = self.stream()
        return "".join([*map(stream.push, ids), stream.flush()])

    def stream(self) -> TextStream:
        return TextStream(self.bytes_of) if self._byte_level else ChainStream(self._spellings, self._stages())

    def bytes_of(self, token: int) -> bytes:
        if not self._byte_level:
            return super().bytes_of(token)
        if self._bytes is None:
            self._bytes = [b""] * self.vocab_size
            for i, spelling in self._spellings.items():
                self._bytes[i] = spelling.encode() if i in self._literal else spelled_bytes(spelling)
        return self._bytes[int(token)]

    def token_bytes(self) -> np.ndarray:
        return self._lengths.copy()

    @cached_property
    def _lengths(self) -> np.ndarray:
        lengths = np.zeros(self.vocab_size, dtype=np.int64)
        fallback = any(part["type"] == "ByteFallback" for part in self._decoders)
        chain = ChainStream({}, [] if self._byte_level else self._stages())
        for i, spelling in self._spellings.items():
            if self._byte_level:
                lengths[i] = len(self.bytes_of(i))
            elif fallback and BYTE.fullmatch(spelling):
                lengths[i] = 1
            else:  # measured after another token: at the beginning of a text many tokens lose a blank
                lengths[i] = len(chain.text_of(["x", spelling]).encode()) - len(chain.text_of(["x"]).encode())
        return np.maximum(lengths, 0)

    def pieces(self, chunks: Iterable[str], size: int) -> Iterator[str]:
        alone, before = self._is_unaffected_by_neighbors, ""
        for text in super().pieces(chunks, size):
            yield text if alone else DocumentPiece(text, before)
            before = text[-1]

    @property
    def _is_unaffected_by_neighbors(self) -> bool:
        """Whether a piece of a document has the same ids without the character before it."""
        return self._exact and not any(token["single_word"] for token in self._searched)

    def last_cut(self, text: str) -> int:
        return self._cuts.last(text) or (self._words.last_cut(text) if self._words else 0)

    @cached_property
    def _word_cache(self) -> WordCache | None:
        return word_cache(self._state, self._backend) if self._is_unaffected_by_neighbors else None

    @property
    def cuts_documents(self) -> bool:
        """Whether documents can be encoded in pieces; otherwise each is encoded as a whole, whatever its size."""
        return bool(self._cuts)

    @cached_property
    def _cuts(self) -> Cuts:
        normalizer = self._backend.normalizer
        with library_errors():
            return find_cuts(self._state, str if normalizer is None else normalizer.normalize_str)

    @cached_property
    def _words(self) -> BoundedWords | None:
        parts = parts_of(self._state["pre_tokenizer"], "pretokenizers")
        if not self._exact or [part["type"] for part in parts] != ["Split", "ByteLevel"] or parts[1]["use_regex"]:
            return None
        limit = bound_of(parts[0]["pattern"].get("Regex", ""))
        if limit is None or parts[0]["behavior"] != "Isolated" or any(t["single_word"] for t in self._searched):
            return None
        return BoundedWords(limit, SpecialTokenMatcher({token["content"]: token["id"] for token in self._searched}))

    @cached_property
    def _spellings(self) -> Mapping[int, str]:
        """The token of every id but the special ones."""
        ids = set(self._backend.get_vocab(with_added_tokens=True).values()) - self._special
        return {i: self._backend.id_to_token(i) for i in ids}  # by id: an added token may share one with the model

    def _stages(self) -> list[Stage]:
        decoder = self._backend.decoder
        parts = None if self._state["decoder"] is None else self._decoders
        return stages(parts, decode_all=lambda tokens: _decoded(decoder, tokens))

    def _lead(self, before: str) -> int:
        """Number of ids of the character before a piece."""
        if not before:
            return 0
        if before not in self._leads:
            self._leads[before] = len(self._backend.encode(before, add_special_tokens=False).ids)
        return self._leads[before]

    def _encodings(self, texts: Sequence[str], batch: Any) -> Iterator[tuple[str, Any, int]]:
        """Yields each text, its encoding, and how many of its tokens belong to the character before it."""
        start = 0
        while start < len(texts):
            stop, size = start, 0
            while stop < len(texts) and (stop == start or size + len(texts[stop]) <= GROUP):
                size += len(texts[stop])
                stop += 1
            group = texts[start:stop]
            leads = [getattr(text, "before", "") for text in group]
            with library_errors():
                encodings = batch(
                    [lead + text for lead, text in zip(leads, group, strict=True)], add_special_tokens=False
                )
            yield from zip(group, encodings, map(self._lead, leads), strict=True)
            start = stop

    def _with_special(self, ids: np.ndarray) -> np.ndarray | None:
        """The text bytes of each token if there are special tokens among them; None: ``token_bytes()[ids]``."""
        if not self.match_special or not np.isin(ids, list(self._special)).any():
            return None
        lengths = self.token_bytes()
        for content, i in self.special.items():
            lengths[i] = len(content.encode())
        return lengths[ids]

    def _measured(self, text: str, encoding: Any, lead: int) -> Encoded:
        """An encoded text with byte counts from the library's offsets.

        Every byte of the text is counted exactly once, for the first token that ends after it; bytes at the end that no
        token covers, for the last one.
        """
        ids = np.array(encoding.ids[lead:], dtype=np.uint32)
        shift = len(getattr(text, "before", ""))
        spans = np.array(encoding.offsets[lead:], dtype=np.int64).reshape(-1, 2) - shift
        starts, ends = np.maximum(spans, 0).T
        total = np.concatenate([[0], np.cumsum(utf8_lengths(code_points(text)))])
        reached = np.maximum.accumulate(total[ends]) if len(ids) else total[:0]
        if len(ids):
            reached[-1] = total[-1]
        missing = self._missing(text) if self._drops else np.zeros((0, 2), dtype=np.int64)
        if self.unk_id is not None:
            missing = np.stack([starts, ends], axis=1)[ids == self.unk_id]
        characters = int((missing[:, 1] - missing[:, 0]).sum())
        size = int((total[missing[:, 1]] - total[missing[:, 0]]).sum())
        return Encoded(ids, np.diff(reached, prepend=0), (characters, size))

    @property
    def _drops(self) -> bool:
        """Whether the model silently drops unknown characters."""
        model = self._state["model"]
        return model["type"] == "BPE" and self.unk_id is None and not model["byte_fallback"]

    def _missing(self, text: str) -> np.ndarray:
        """The spans (n, 2) of characters that the model drops; the library's offsets do not show them."""
        dropped = {char for char in set(text) if not char.isspace() and self._is_dropped(char)}
        places = [i for i, char in enumerate(text) if char in dropped] if dropped else []
        return np.array([(i, i + 1) for i in places], dtype=np.int64).reshape(-1, 2)

    def _is_dropped(self, char: str) -> bool:
        """Whether the normalized character has a part that is not in the vocabulary."""
        if char not in self._dropped:
            normalizer, vocab = self._backend.normalizer, self._state["model"]["vocab"]
            symbols = char if normalizer is None else normalizer.normalize_str(char)
            parts = parts_of(self._state["pre_tokenizer"], "pretokenizers")
            if any(part["type"] == "ByteLevel" for part in parts):
                symbols = "".join(map(CHAR_OF.__getitem__, symbols.encode("utf-8", "replace")))
            in_added = any(char in token["content"] for token in self._searched)
            self._dropped[char] = not in_added and any(c not in vocab and not c.isspace() for c in symbols)
        return self._dropped[char]

    def _refuse_unknown(self, text: str, encoding: Any) -> None:
        spans = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
        unknown = self._missing(text) if self._drops else spans[:0]
        if self.unk_id is not None:
            unknown = spans[np.array(encoding.ids, dtype=np.int64) == self.unk_id]
        if len(unknown):
            start, end = unknown[0]
            raise UserError(f"the tokenizer has no token for {text[start:end]!r}", hint="leave it out")


def library_json(model: dict[str, Any], *, special: Mapping[str, int], **parts: Any) -> dict[str, Any]:
    """The content of a tokenizer.json with the given special tokens, and pre-tokenizer and decoder in ``parts``."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [{"id": i, "content": content, **flags} for content, i in special.items()]
    empty = dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder"))
    return {"version": "1.0", **empty, "added_tokens": added, **parts, "model": model}


def bpe_model(vocab: Mapping[str, int], merges: Sequence[Sequence[str]], **more: Any) -> dict[str, Any]:
    """The BPE model of a tokenizer.json; ``more`` are further entries."""
    off = dict.fromkeys(("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"))
    return {"type": "BPE", **off, "fuse_unk": False, "byte_fallback": False, **more, "vocab": vocab, "merges": merges}


def _spells_all_bytes(state: Mapping[str, Any], vocab: Mapping[str, int]) -> bool:
    """Whether every byte of a text becomes one symbol of the model's vocabulary, none added and none dropped."""
    parts = parts_of(state["pre_tokenizer"], "pretokenizers")
    spelled = any(part["type"] == "ByteLevel" for part in parts)
    kept = all(part["type"] in KEEPS_TEXT and part.get("behavior") != "Removed" for part in parts)
    added = any(part.get("add_prefix_space", False) for part in parts)
    return spelled and kept and not added and state["model"]["type"] == "BPE" and BYTE_OF.keys() <= vocab.keys()


def _unknown_id(model: Mapping[str, Any], backend: Any) -> int | None:
    if model["type"] == "Unigram":
        unknown: int | None = model["unk_id"]
        return unknown
    token = model.get("unk_token")
    return None if token is None else backend.token_to_id(token)


def _decoded(decoder: Any, tokens: list[str]) -> str:
    with library_errors():
        text: str = decoder.decode(tokens)
        return text

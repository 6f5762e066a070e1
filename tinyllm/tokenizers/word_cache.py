"""Byte-level BPE by word: each distinct word is encoded once, by the library, and then looked up.

The library applies the merges within each word of its splitting rule, so the ids of a text are those of its words. In
most text few words are distinct. Finding words with Python's ``re`` and gathering their ids with NumPy is three to five
times as fast as the library, which tracks the offset of every character.

The character classes of the two engines differ (their versions of Unicode do). So the classes in the Python pattern are
lists of the characters that match in the library's engine.
"""

import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from threading import Lock
from typing import Any

import numpy as np
from tokenizers import Regex, pre_tokenizers

from tinyllm.tokenizers.checks import parts_of
from tinyllm.tokenizers.decoders import CHAR_OF
from tinyllm.tokenizers.splitting import GPT2, RULES, bound_of

MOST_WORDS = 2**17
MOST_CHARACTERS = 2**22
"""Bounds on what is remembered, in words and in characters of words: about 40 MB of memory."""
BEYOND_BMP = re.compile("[\ud800-\udfff\U00010000-\U0010ffff]")
"""Characters that are not in the classes of the pattern, and surrogates, which are no characters."""
SYNTAX = re.compile(r"\\p\{\w+\}|\\.|\(\?i:|\(|\)|\[\^?|\]|[a-z]|.")
REPEATED_COUNT = re.compile(r"\d\}\+")
"""``{1,3}+`` is possessive in Python's dialect and repeats a repetition in the library's."""
SPELLED = {byte: ord(char) for byte, char in CHAR_OF.items()}
"""For ``str.translate``: the letter that stands for each byte, by the Latin-1 character of that byte."""


def word_cache(state: Mapping[str, Any], backend: Any) -> "WordCache | None":
    """The cache for a tokenizer that splits text by a known rule into words of bytes; None for any other.

    Args:
        state: the content of the tokenizer.json, which must have no normalizer.
        backend: the library's tokenizer.
    """
    parts = parts_of(state["pre_tokenizer"], "pretokenizers")
    kinds = [part["type"] for part in parts]
    rule = None
    if kinds == ["ByteLevel"] and parts[0]["use_regex"]:
        rule = GPT2
    elif kinds == ["Split", "ByteLevel"] and not parts[1]["use_regex"] and parts[0]["behavior"] == "Isolated":
        rule = parts[0]["pattern"].get("Regex", "")
    if not rule or REPEATED_COUNT.search(rule) or (rule not in RULES and bound_of(rule) is None):
        return None
    return None if state["model"].get("dropout") else WordCache(rule, backend.model)


class WordCache:
    """Encodes texts by looking up their words. Safe to share between threads.

    Args:
        rule: the library's rule that splits a text into words, one of ``splitting.RULES`` or ``splitting.bounded``.
        model: the library's model, which encodes a word spelled in GPT-2's alphabet of bytes.
    """

    def __init__(self, rule: str, model: Any) -> None:
        self._pattern, self._classes = _translated(rule)
        self._words = _Words(model)
        self._lock = Lock()
        self._in_class: dict[str, bool] = {}

    def encode(self, texts: Sequence[str]) -> list[np.ndarray | None]:
        """The ids of each text, uint32; None for a text with characters that only the library can classify."""
        fits = [not (rare := BEYOND_BMP.findall(text)) or self._in_no_class(rare) for text in texts]
        words: list[str] = []
        ends = []
        for text, fit in zip(texts, fits, strict=True):
            if fit:
                words += self._pattern.findall(text)
                ends.append(len(words))
        with self._lock, self._words.dropped_on_error():
            ids, counts = self._words.ids_of(words)
        reached = np.concatenate([[0], np.cumsum(counts)])[ends[:-1]]
        parts = iter(np.split(ids, reached) if ends else [])
        return [next(parts) if fit else None for fit in fits]

    def _in_no_class(self, chars: Sequence[str]) -> bool:
        """Whether no character is in a class of the rule, as emoji are: the pattern then treats them correctly."""
        for char in set(chars):
            if char not in self._in_class:
                self._in_class[char] = "\ud800" <= char <= "\udfff" or char not in _without(self._classes, char)
            if self._in_class[char]:
                return False
        return True


class _Words(dict[str, int]):
    """The number of each word; a word that is not known yet is encoded and gets the next number."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self._model = model
        self._reset()

    def _reset(self) -> None:
        self.clear()
        self._ids, self._ends, self._characters = array("I"), array("Q", [0]), 0

    @contextmanager
    def dropped_on_error(self) -> Iterator[None]:
        """Forget everything after an error: Ctrl-C may leave a word without its end."""
        try:
            yield
        except BaseException:
            self._reset()
            raise

    def __missing__(self, word: str) -> int:
        spelled = word.encode().decode("latin-1").translate(SPELLED)
        self._ids.extend([token.id for token in self._model.tokenize(spelled)])
        number = len(self._ends) - 1
        self._ends.append(len(self._ids))
        self._characters += len(word)
        self[word] = number
        return number

    def ids_of(self, words: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The ids of all words in order, and how many each has."""
        if len(self) > MOST_WORDS or self._characters > MOST_CHARACTERS:
            self._reset()
        numbers = np.fromiter(map(self.__getitem__, words), dtype=np.int64, count=len(words))
        ids, ends = np.frombuffer(self._ids, dtype=np.uint32), np.frombuffer(self._ends, dtype=np.uint64)
        counts = np.diff(ends).astype(np.int64)[numbers]
        shift = ends.astype(np.int64)[numbers] - (np.cumsum(counts) - counts)
        return ids[np.repeat(shift, counts) + np.arange(int(counts.sum()))], counts


@cache
def _translated(rule: str) -> tuple[re.Pattern[str], str]:
    """``rule`` in the dialect of Python, and its character classes as a regular expression of the library."""
    names: set[str] = set()
    out: list[str] = []
    in_set, depth, folded_from = False, 0, None

    def members(name: str) -> str:
        names.add(name)
        return _members(name) if in_set else f"[{_members(name)}]"

    for part in SYNTAX.findall(rule):
        if part.startswith(r"\p") or part == r"\s":
            out.append(members(part))
        elif part == r"\S":
            out.append(f"[^{_members(chr(92) + 's')}]")
        elif part.isalpha() and folded_from is not None:
            out.append(members(f"(?i:{part})"))
        elif part == "(?i:":
            folded_from, depth = depth, depth + 1
            out.append("(?:")
        else:
            in_set = part.startswith("[") or (in_set and part != "]")
            depth += (part == "(") - (part == ")")
            folded_from = None if folded_from == depth else folded_from
            out.append(part)
    return re.compile("".join(out)), "|".join(sorted(names))


@cache
def _members(name: str) -> str:
    """The characters below U+10000 that the library's engine matches with ``name``, as ranges in a Python set."""
    every = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x10000)]))
    split = pre_tokenizers.Split(Regex(f"(?:{name})+"), "removed")
    bounds = [0, *(bound for _, span in split.pre_tokenize_str(every) for bound in span), len(every)]
    runs = [(every[a], every[b - 1]) for a, b in zip(bounds[::2], bounds[1::2], strict=True) if b > a]
    return "".join(f"\\u{ord(first):04x}-\\u{ord(last):04x}" for first, last in runs)


def _without(classes: str, text: str) -> str:
    """``text`` without the characters that the library's engine matches with ``classes``."""
    split = pre_tokenizers.Split(Regex(classes), "removed")
    return "".join(kept for kept, _ in split.pre_tokenize_str(text))

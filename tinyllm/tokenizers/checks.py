"""Protection from harmful tokenizer.json files and from panics of the library ``tokenizers``.

A tokenizer.json may be untrusted, but the library trusts it. Some files make the library panic, abort the process, or
use unbounded time or memory, which Python can neither catch nor stop. They are refused before the library reads them.
"""

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tinyllm.errors import UserError
from tinyllm.utils.files import parse_json

MOST_IDS = 2**22
"""Limit of ids: arrays are as long as the largest id. The largest published vocabularies have 2**18 entries."""
MOST_PARTS = 64
MOST_GROWTH = 100
"""Limit of the characters that the normalizer or the decoder may make of one."""
LONGEST_PATTERN = 20_000
LONGEST_WORD = 10_000
"""Limit for WordPiece, whose time grows with the square of a word's length; published files have 100."""
KINDS = ("model", "normalizer", "pre_tokenizer", "post_processor", "decoder")
LISTS = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "decoder": "decoders"}


def require_harmless(text: str) -> None:
    """Refuse a tokenizer.json that would make the library panic, abort, or use unbounded time or memory.

    Raises:
        ValueError: the message names the entry and what is wrong with it.
    """
    state = parse_json(text)
    if not isinstance(state, dict) or not isinstance(state.get("model"), dict):
        raise ValueError("it has no model")
    for kind in KINDS:
        if not isinstance(state.get(kind), dict | None):
            raise ValueError(f"{kind} is not an object")
    try:
        _check_ids(state)
        _check_model(state["model"])
        for kind, name in LISTS.items():
            parts = list(parts_of(state.get(kind), name))
            if len(parts) > MOST_PARTS:
                raise ValueError(f"{kind} has {len(parts)} parts, more than {MOST_PARTS}")
            _check_growth(kind, parts)
            for part in parts:
                _check_part(kind, part)
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"an entry is missing or has the wrong type ({type(error).__name__}: {error})") from None


def parts_of(node: Mapping[str, Any] | None, name: str) -> list[Mapping[str, Any]]:
    """The parts of a normalizer, pre-tokenizer or decoder, with nested Sequences flattened."""
    if node is None:
        return []
    if node["type"] != "Sequence":
        return [node]
    return [part for inner in node[name] for part in parts_of(inner, name)]


def _check_ids(state: Mapping[str, Any]) -> None:
    vocab = state["model"].get("vocab") or {}
    ids = list(vocab.values()) if isinstance(vocab, dict) else list(range(len(vocab)))
    ids += [token["id"] for token in state.get("added_tokens") or []]
    wrong = next((i for i in ids if not isinstance(i, int) or not 0 <= i < MOST_IDS), None)
    if wrong is not None:
        raise ValueError(f"a token has the id {wrong}; ids must be whole numbers from 0 to {MOST_IDS - 1:,}")


def _check_model(model: Mapping[str, Any]) -> None:
    kind, vocab = model.get("type"), model.get("vocab") or {}
    if kind == "Unigram" or isinstance(vocab, list):
        if not all(isinstance(score, int | float) and math.isfinite(score) for _, score in vocab):
            raise ValueError("a score of the vocabulary is not a finite number")
        return
    longest = model.get("max_input_chars_per_word")
    if longest is not None and longest > LONGEST_WORD:
        raise ValueError(f"model.max_input_chars_per_word is {longest}, more than {LONGEST_WORD:,}")
    prefix = model.get("continuing_subword_prefix") or ""
    for merge in model.get("merges") or []:
        left, right = merge if isinstance(merge, list) else merge.split(" ")
        if not left or not right or not right.startswith(prefix):
            raise ValueError(f"the merge {merge!r:.100} has an empty part or lacks the prefix {prefix!r:.20}")
        if left + right[len(prefix) :] not in vocab:
            raise ValueError(f"the merge {merge!r:.100} makes a token that is not in the vocabulary")


def _check_growth(kind: str, parts: list[Mapping[str, Any]]) -> None:
    growth = 1
    for part in parts:
        if part["type"] == "Replace":
            searched, content = part["pattern"].get("String"), part["content"]
            # A regular expression may match the empty string between any two characters.
            growth *= max(1, -(-len(content) // len(searched)) if searched else len(content) + 1)
        elif part["type"] == "Prepend":
            growth *= max(1, len(part["prepend"]))
    if growth > MOST_GROWTH:
        raise ValueError(f"{kind} turns one character into up to {growth:,}, more than {MOST_GROWTH}")


def _check_part(kind: str, part: Mapping[str, Any]) -> None:
    pattern = part.get("pattern")
    rule = pattern.get("Regex") if isinstance(pattern, dict) else None
    if rule is not None:
        if len(rule) > LONGEST_PATTERN:
            raise ValueError(f"{kind} has a regex of {len(rule):,} characters, more than {LONGEST_PATTERN:,}")
        if repeats_within_repetition(rule):
            shown = rule if len(rule) <= 60 else rule[:60] + "…"
            raise ValueError(
                f"the regex {shown} in {kind} repeats a group that itself repeats or has alternatives: "
                "on some inputs its run time doubles with every character"
            )
    if part["type"] == "FixedLength" and part["length"] < 1:
        raise ValueError(f"{kind} has a length of {part['length']}")


UNBOUNDED = re.compile(r"[*+]|\{\d*,\}|\{\d*,?\d{3,}\}|\{\d{3,}")
ELEMENT = re.compile(r"\\[pP]\{[^}]*\}|\\x\{[^}]*\}|\\.|[^\\]", re.DOTALL)


def repeats_within_repetition(rule: str) -> bool:
    """Whether a regex repeats, without bound, a group that contains an unbounded repetition, alternative or reference.

    Backtracking takes exponential time on ``(a+)+$`` and ``(a|aa)*$``. No published splitting rule has that form.
    """
    risky = [False]  # for each open group: whether it contains one of these so far
    for element, rest in _elements(rule):
        if element == "(":
            risky.append(False)
        elif element == ")" and len(risky) > 1:
            inner = risky.pop()
            if inner and UNBOUNDED.match(rule, rest):
                return True
            risky[-1] |= inner
        elif element == "|" or re.fullmatch(r"\\[1-9kg]", element) or UNBOUNDED.match(rule, rest):
            risky[-1] = True
        if element == ")" and UNBOUNDED.match(rule, rest):
            risky[-1] = True
    return False


def _elements(rule: str) -> Iterator[tuple[str, int]]:
    """Yields the elements of a regex (a character class is one element) and the position after each."""
    place = 0
    while place < len(rule):
        if rule[place] == "[":
            depth, end = 1, place + 1
            end += rule.startswith("^", end)
            end += rule.startswith("]", end)
            while depth and end < len(rule):
                if rule[end] == "\\":
                    end += 1
                depth += {"[": 1, "]": -1}.get(rule[end : end + 1], 0)
                end += 1
            yield "[]", end
        else:
            element = ELEMENT.match(rule, place)
            end = element.end() if element else len(rule)
            yield rule[place:end], end
        place = end


@contextmanager
def library_errors() -> Iterator[None]:
    """Turn errors and panics of the library into a :class:`UserError`."""
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        if not is_panic(error) and not isinstance(error, Exception):
            raise
        hint = f"{first_line(error)}; use a different tokenizer, or leave out the text it fails on"
        raise UserError("the tokenizer failed on this text", hint=hint) from None


def is_panic(error: BaseException) -> bool:
    """Whether an error is a panic of the library's Rust code."""
    return type(error).__name__ == "PanicException"  # pyo3 gives no name to import


def first_line(error: BaseException) -> str:
    """The first line of an error's message, at most 300 characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]

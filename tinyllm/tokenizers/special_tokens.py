"""Special tokens in text: finding them, and never cutting through them."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tinyllm.errors import UserError
from tinyllm.tokenizers.base import Encoded

END = "<|endoftext|>"
"""Spelling of the end-of-text in byte and character tokenizers."""
UNKNOWN = "<unk>"
STANDARD = (
    *("<pad>", UNKNOWN, "<bos>", "<eos>", "<sep>", "<tool_call>", "</tool_call>", "<tool_result>", "</tool_result>"),
    *("<system>", "<user>", "<assistant>", "### Language:", "### Code:", "### End"),
)
"""Special tokens of conversations, of the chat templates ``roles`` and ``seed`` among others. ``standard`` reserves all
of them, so that later stages of training need no new ones."""
AUTO, ALL = "auto", "standard"
"""Words that stand for a list: the tokens that the data need, and ``STANDARD``."""
END_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "<|eot|>", "</s>", "<eos>", "<|im_end|>", "[SEP]")
"""Names of the end-of-text token in published models, in order of preference."""
OTHER_MEANING = re.compile(
    r"begin|start|bos|pad|unk|mask|cls|^<s>$|^\[INST|header|image|audio|tool|user|system", re.IGNORECASE
)
"""Names of special tokens that do not end documents."""


class SpecialTokenMatcher:
    """Finds special tokens in text: leftmost first, and the longest of several at one position, as ``tokenizers`` does.

    Args:
        ids: the id of each spelling.
    """

    def __init__(self, ids: Mapping[str, int]) -> None:
        self.ids = dict(ids)
        longest_first = sorted(self.ids, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._longest = max(map(len, self.ids), default=0)
        self._beginnings = frozenset(text[:n] for text in self.ids for n in range(1, len(text)))

    def split(self, text: str) -> Iterator[tuple[str, int | None]]:
        """Yields the parts of ``text`` in order: (spelling, id) for special tokens, (text, None) between them."""
        start = 0
        for match in self._pattern.finditer(text):
            if match.start() > start:
                yield text[start : match.start()], None
            yield match.group(), self.ids[match.group()]
            start = match.end()
        if start < len(text):
            yield text[start:], None

    def plain(self, texts: Iterable[str]) -> Iterator[str]:
        """The parts of ``texts`` between special tokens."""
        return (part for text in texts for part, special_id in self.split(text) if special_id is None)

    def encode(
        self, text: str, plain: Callable[[str], Encoded], byte_counts: Callable[[np.ndarray], np.ndarray]
    ) -> Encoded:
        """Encode ``text`` including its special tokens; each counts as the UTF-8 bytes of its spelling.

        Args:
            plain: encodes the text between special tokens.
            byte_counts: returns the byte count of each id, used if ``plain`` returns no lengths.
        """
        parts = list(self.split(text)) if self.ids else []
        if all(special_id is None for _, special_id in parts):
            return plain(text)
        encoded = []
        for part, special_id in parts:
            if special_id is None:
                between = plain(part)
                lengths = byte_counts(between.ids) if between.lengths is None else between.lengths
                encoded.append(between._replace(lengths=lengths))
            else:
                encoded.append(Encoded(np.array([special_id]), np.array([len(part.encode("utf-8", "surrogatepass"))])))
        return joined(encoded)

    def last_end(self, text: str) -> int:
        """The end of the last special token in ``text``; 0 if it has no special token."""
        return max((match.end() for match in self._pattern.finditer(text)), default=0)

    def last_cut(self, text: str) -> int:
        """The last position in ``text`` that no special token can span, whatever follows; 0 if there is none."""
        end = len(text)
        while begun := self._begun(text, end):
            end -= begun
        return end

    def may_cut(self, text: str, place: int) -> bool:
        """Whether no special token can span ``place``, whatever follows ``text``."""
        return not self._begun(text, place)

    def _begun(self, text: str, end: int) -> int:
        """Length of the longest proper prefix of a special token that ends at ``end``."""
        lengths = range(min(self._longest - 1, end), 0, -1)
        return next((n for n in lengths if text[end - n : end] in self._beginnings), 0)


def joined(encoded: Sequence[Encoded]) -> Encoded:
    """Concatenate encoded texts, all of which have lengths."""
    lengths = np.concatenate([part.lengths for part in encoded if part.lengths is not None])
    unknown = sum(part.unknown[0] for part in encoded), sum(part.unknown[1] for part in encoded)
    return Encoded(np.concatenate([part.ids.astype(np.uint32) for part in encoded]), lengths, unknown)


def special_settings(special: Sequence[str], *, match: bool) -> dict[str, Any]:
    """The settings of special tokens; empty if there are none, so that caches of earlier versions are still found."""
    return ({"special_tokens": list(special)} if special else {}) | ({"match_special": True} if match else {})


def find_end_of_text(special: Sequence[tuple[str, int]]) -> int | None:
    """The id of the end-of-text: the first token with a known name, else the first not in ``OTHER_MEANING``."""
    by_name = dict(special)
    for name in END_OF_TEXT:
        if name in by_name:
            return by_name[name]
    return next((i for name, i in special if not OTHER_MEANING.search(name)), None)


def require_needed(special: Sequence[str], needed: Sequence[str]) -> None:
    """Refuse a list of special tokens that lacks one that the data need.

    Raises:
        UserError: names the first.
    """
    missing = [token for token in needed if token not in special]
    if missing:
        hint = f"use {AUTO}, or include {', '.join(missing)} in the list"
        what = f"the chat template writes {missing[0]}, which is no special token of the tokenizer"
        raise UserError(what, key="tokenizer.special_tokens", value=list(special), hint=hint)


def require_special(
    tokens: str | Sequence[Any], *, match: bool, always: Sequence[str] = (), needed: Sequence[str] = ()
) -> list[str]:
    """The special tokens of a configuration as a list.

    Args:
        tokens: a list, ``auto`` or ``standard``.
        match: whether they are matched in text.
        always: tokens that ``auto`` and ``standard`` begin with.
        needed: tokens that the data need, which ``auto`` includes.

    Raises:
        UserError: a token is not a string, empty or repeated, or ``match`` is set without tokens.
    """
    if tokens == AUTO:
        special = [*always, *(token for token in needed if token not in always)]
    elif tokens == ALL:
        special = [*always, *STANDARD, *(token for token in needed if token not in (*always, *STANDARD))]
    elif isinstance(tokens, str):
        hint = f"{AUTO}, {ALL}, or a list such as ['<user>','<eos>']"
        raise UserError("not a list of tokens", key="tokenizer.special_tokens", value=tokens, hint=hint)
    else:
        special = list(tokens)
    if any(not isinstance(token, str) or not token for token in special) or len(set(special)) != len(special):
        raise UserError(
            "special tokens must be distinct, non-empty strings", key="tokenizer.special_tokens", value=special
        )
    if match and not special:
        hint = "name them, e.g. tokenizer.special_tokens=['<user>','<end>'], or leave match_special=false"
        raise UserError("no special tokens to match", key="tokenizer.match_special", value=True, hint=hint)
    return special

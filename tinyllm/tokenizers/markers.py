"""Special tokens in text: found by their spelling, and never cut through."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tinyllm.errors import UserError
from tinyllm.tokenizers.base import Encoded

END = "<|endoftext|>"
"""How the tokens that end a document are spelled where a tokenizer has no spelling of its own for them."""
UNKNOWN = "<unk>"


class Markers:
    """Finds special tokens in text: the leftmost, of those that begin together the longest, as ``tokenizers`` does.

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
        """The parts of ``text`` in order: (spelling, its id) for a special token, (text, None) between them."""
        start = 0
        for match in self._pattern.finditer(text):
            if match.start() > start:
                yield text[start : match.start()], None
            yield match.group(), self.ids[match.group()]
            start = match.end()
        if start < len(text):
            yield text[start:], None

    def plain(self, texts: Iterable[str]) -> Iterator[str]:
        """What of ``texts`` is no special token."""
        return (part for text in texts for part, marker in self.split(text) if marker is None)

    def encode(self, text: str, plain: Callable[[str], Encoded], usual: Callable[[np.ndarray], np.ndarray]) -> Encoded:
        """``text`` with its special tokens; a special token stands for the bytes of its spelling.

        Args:
            plain: encodes what is between them.
            usual: the bytes of ids where ``plain`` gives none.
        """
        parts = list(self.split(text)) if self.ids else []
        if all(marker is None for _, marker in parts):
            return plain(text)
        encoded = []
        for part, marker in parts:
            if marker is None:
                between = plain(part)
                lengths = usual(between.ids) if between.lengths is None else between.lengths
                encoded.append(between._replace(lengths=lengths))
            else:
                encoded.append(Encoded(np.array([marker]), np.array([len(part.encode("utf-8", "surrogatepass"))])))
        return joined(encoded)

    def last_end(self, text: str) -> int:
        """Where the last special token of ``text`` ends; 0 if there is none."""
        return max((match.end() for match in self._pattern.finditer(text)), default=0)

    def last_cut(self, text: str) -> int:
        """The last place of ``text`` that no special token spans, whatever follows; 0 if there is none."""
        end = len(text)
        while begun := self._begun(text, end):
            end -= begun
        return end

    def may_cut(self, text: str, place: int) -> bool:
        """Whether no special token spans ``place``, whatever follows ``text``."""
        return not self._begun(text, place)

    def _begun(self, text: str, end: int) -> int:
        """Length of the longest beginning of a special token that ends at ``end``."""
        lengths = range(min(self._longest - 1, end), 0, -1)
        return next((n for n in lengths if text[end - n : end] in self._beginnings), 0)


def joined(encoded: Sequence[Encoded]) -> Encoded:
    """Texts one after the other; each has its lengths."""
    lengths = np.concatenate([one.lengths for one in encoded if one.lengths is not None])
    unknown = sum(one.unknown[0] for one in encoded), sum(one.unknown[1] for one in encoded)
    return Encoded(np.concatenate([one.ids.astype(np.uint32) for one in encoded]), lengths, unknown)


def special_settings(special: Sequence[str], *, match: bool) -> dict[str, Any]:
    """What decides about special tokens; nothing where there are none, as in versions that had none."""
    return ({"special_tokens": list(special)} if special else {}) | ({"match_special": True} if match else {})


def require_special(tokens: Sequence[Any], *, match: bool) -> list[str]:
    """The special tokens of a configuration as a list.

    Raises:
        UserError: one is no text, empty or there twice, or they are to be matched and there are none.
    """
    special = list(tokens)
    if any(not isinstance(token, str) or not token for token in special) or len(set(special)) != len(special):
        raise UserError(
            "special tokens must be different, non-empty texts", key="tokenizer.special_tokens", value=special
        )
    if match and not special:
        hint = "name them, e.g. tokenizer.special_tokens=['<user>','<end>'], or leave match_special=false"
        raise UserError("there is no special token to match", key="tokenizer.match_special", value=True, hint=hint)
    return special

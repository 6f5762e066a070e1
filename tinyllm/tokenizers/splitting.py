"""Rules that split text into words before BPE: those of published models, and one with words of bounded length."""

import re

from tokenizers import Regex, pre_tokenizers

from tinyllm.tokenizers.special_tokens import SpecialTokenMatcher

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_MARKS = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
RULES = (
    GPT2,
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",  # the same, as tiktoken 0.5 has it
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",  # and later versions
    _SUFFIX + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|" + _MARKS,  # GPT-4 (cl100k), Llama 3
    *(
        rf"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{{L}}\p{{N}}]?+\p{{L}}++|{digits}| ?[^\s\p{{L}}\p{{N}}]++[\r\n]*+|\s++$"
        r"|\s*[\r\n]|\s+(?!\S)|\s"
        for digits in (r"\p{N}{1,3}+", r"(?>\p{N}{1,3})")  # cl100k in later versions of tiktoken, and as we write it
    ),
    _SUFFIX + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|" + _MARKS,  # Qwen 2
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_SUFFIX}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_SUFFIX}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",  # GPT-4o (o200k)
)
"""Published splitting rules in which a word of letters or digits ends before a blank or mark.

No match continues from a letter or digit across one, and none looks back. ``(?!\\S)`` and ``$`` look ahead only from
blanks, and no piece ends in a blank."""
DIGITS = (r"\p{N}", r"\p{N}{1,3}", r"\d", r"[0-9]", r"\p{Nd}", r"\d{1,3}")
"""Rules that match digits only and leave the text between to the next pre-tokenizer."""


def bounded(limit: int) -> str:
    """GPT-2's rule with words of at most ``limit`` characters plus a blank; it splits text without blanks too."""
    most = f"{{1,{limit}}}"
    return (
        rf"'s|'t|'re|'ve|'m|'ll|'d| ?\p{{L}}{most}| ?\p{{N}}{most}| ?[^\s\p{{L}}\p{{N}}]{most}"
        rf"|\s{most}(?!\S)|\s{most}"
    )


def bound_of(rule: str) -> int | None:
    """The limit if ``rule`` is ``bounded(limit)``."""
    limit = re.search(r"\{1,(\d{1,6})\}", rule)
    return int(limit[1]) if limit and rule == bounded(int(limit[1])) else None


class BoundedWords:
    """Cuts between the words of the rule :func:`bounded`.

    A match looks at most at ``limit`` + 2 characters, so words that end earlier in a text do not depend on what
    follows it.
    """

    def __init__(self, limit: int, matcher: SpecialTokenMatcher) -> None:
        self._split = pre_tokenizers.Split(Regex(bounded(limit)), "isolated")
        self._reach = limit + 2
        self._special_matcher = matcher

    def last_cut(self, text: str) -> int:
        """The last position where ``text``, which must begin with a word, can be cut; 0 if there is none."""
        start = self._special_matcher.last_end(text)
        certain = len(text) - self._reach
        for _, (begin, _) in reversed(self._split.pre_tokenize_str(text[start:])):
            place = start + begin
            if 0 < place <= certain and self._special_matcher.may_cut(text, place) and _same_at_end(text, place):
                return place
        return 0


def _same_at_end(text: str, place: int) -> bool:
    """Whether a word ends at ``place`` even if the text ends there; after blanks the rule looks at what follows."""
    return not text[place - 1].isspace() or text[place - 1] == text[place]

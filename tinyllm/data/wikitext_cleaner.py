"""WikiText: its articles, and its text as people write it.

WikiText (Merity et al., https://arxiv.org/abs/1609.07843) separates punctuation by spaces, writes ``@-@`` for a hyphen
within a word and ``@,@ @.@`` for the separators within a number, and marks headings by ``=``.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from tinyllm.errors import UserError

TITLE = re.compile(r"\s*= (?!= )(.*[^= ].*?)(?<! =) =\s*")
"""The heading of an article; ``= = Section = =`` belongs to an article."""
WITHIN_WORD = {"@-@": "-", "@,@": ",", "@.@": "."}
"""Marks that join both neighbors, and what they stand for."""
SUFFIXES = frozenset(("'s", "'t", "'re", "'ve", "'ll", "'d", "'m"))
CLOSING = SUFFIXES | frozenset(",.;:!?)]")
"""Words that join the word before them. Marks count only where they stand alone: ``.22`` and ``:)`` are words."""
OPENING = frozenset("([")
"""Words that join the word after them."""


def articles(lines: Iterable[str]) -> Iterator[str]:
    """The articles in the lines of WikiText; each begins with its heading, ``= Title =``.

    Lines before the first heading that are not blank are an article, too.

    Args:
        lines: with or without their line ends; the articles have them.
    """
    article: list[str] = []
    for line in lines:
        if is_title(line) and any(not earlier.isspace() for earlier in article):
            yield "".join(article)
            article = []
        article.append(line if line.endswith("\n") else f"{line}\n")
    if any(not line.isspace() for line in article):
        yield "".join(article)


def is_title(line: str) -> bool:
    """Whether a line is the heading of an article."""
    return "=" in line and TITLE.fullmatch(line) is not None


def require_title(lines: Iterable[str], file: str | Path) -> None:
    """Refuse a text without the heading of an article, which is not WikiText.

    Raises:
        UserError: no line is such a heading.
    """
    if not any(map(is_title, lines)):
        hint = "WikiText has lines such as = Title =; give dataset.clean=false for any other text"
        raise UserError("no article begins in this text", file=file, hint=hint)


def clean_article(text: str) -> str:
    """The text of an article without the marks of its tokenization; only white space and these marks change.

    ``role @-@ playing`` becomes ``role-playing``, ``1 @,@ 000`` becomes ``1,000``, ``( a , b )`` becomes ``(a, b)``,
    ``" a "`` becomes ``"a"``, ``Tom 's`` becomes ``Tom's``, and ``= Title =`` becomes ``Title``. Cleaning a clean text
    changes nothing.
    """
    return "\n".join(map(_clean_line, text.split("\n")))


def _clean_line(line: str) -> str:
    while True:
        words = [word for word in line.split(" ") if word]
        if words and words[0] == "=":
            words = _without_heading_marks(words)
        cleaned = _joined(words)
        # What was a heading may begin with another mark of a heading, and joining may complete a "@-@".
        if cleaned == line or not (cleaned.startswith("=") or "@" in cleaned):
            return cleaned
        line = cleaned


def _without_heading_marks(words: list[str]) -> list[str]:
    """The words of a heading, which has equally many ``=`` at both ends; other lines are returned as they are."""
    level = next((i for i, word in enumerate(words) if word != "="), len(words))
    end = next((i for i, word in enumerate(reversed(words)) if word != "="), len(words))
    return words[level:-end] if level == end < len(words) else words


def _joined(words: list[str]) -> str:
    """The words of a line with spaces, except where a mark joins its neighbor."""
    words = _with_suffixes(words)
    joins_left, joins_right = _quotes(words)
    text, glued = "", True
    for i, word in enumerate(words):
        mark = WITHIN_WORD.get(word)
        left = mark is not None or word in CLOSING or i in joins_left
        text += (mark or word) if glued or left else f" {mark or word}"
        glued = mark is not None or word in OPENING or i in joins_right
    return text


def _with_suffixes(words: list[str]) -> list[str]:
    """``' s`` as one word: an apostrophe and what it begins."""
    if "'" not in words:
        return words
    joined: list[str] = []
    for word in words:
        if joined and joined[-1] == "'" and f"'{word}" in SUFFIXES:
            joined[-1] += word
        else:
            joined.append(word)
    return joined


def _quotes(words: list[str]) -> tuple[set[int], set[int]]:
    """The places of the quotation marks that join the word to their left, and of those that join the word to their
    right.

    They open and close in turn. What has no pair joins the word before it: a last ``"``, and every ``'`` if their
    number is odd, since then they are apostrophes (``players ' union``).
    """
    left, right = set[int](), set[int]()
    for quote in "\"'":
        if quote not in words:
            continue
        places = [i for i, word in enumerate(words) if word == quote]
        paired = len(places) // 2 * 2 if quote == '"' or len(places) % 2 == 0 else 0
        for number, place in enumerate(places):
            opens = number % 2 == 0 if number < paired else place == 0
            (right if opens else left).add(place)
    return left, right

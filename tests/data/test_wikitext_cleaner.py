"""The cleaner of WikiText: cases, and what holds for every text."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyllm.data.wikitext_cleaner import WITHIN_WORD, articles, clean_article, is_title

CASES = {
    # marks within words and numbers
    "a role @-@ playing game": "a role-playing game",
    "up @-@ to @-@ date": "up-to-date",
    "1 @,@ 000 @,@ 000 men": "1,000,000 men",
    "3 @.@ 14": "3.14",
    "2 @.@ 5 @-@ inch": "2.5-inch",
    "@-@ 5 degrees": "-5 degrees",
    "a @ b": "a @ b",
    "mail @home": "mail @home",
    # punctuation
    "one , two": "one, two",
    "It ended .": "It ended.",
    "first ; second": "first; second",
    "so : this": "so: this",
    "Go !": "Go!",
    "Why ?": "Why?",
    "What ? !": "What?!",
    "and so on , etc . , they said .": "and so on, etc., they said.",
    "a .22 rifle": "a .22 rifle",
    "smile :) now": "smile :) now",
    "wait ... what": "wait ... what",
    ", he said": ", he said",
    # brackets
    "a ( b ) c": "a (b) c",
    "a ( b , c ) .": "a (b, c).",
    "[ note ]": "[note]",
    "f ( [ x ] )": "f ([x])",
    "( )": "()",
    "( Japanese : 戦場 , lit . Valkyria )": "(Japanese: 戦場, lit. Valkyria)",
    # quotes
    'He said " go " .': 'He said "go".',
    '" a " and " b "': '"a" and "b"',
    '" Stop ! " he cried': '"Stop!" he cried',
    'the ( " old " ) one': 'the ("old") one',
    'a 5 " disk': 'a 5" disk',
    '"': '"',
    "called ' Foo ' now": "called 'Foo' now",
    # apostrophes
    "Tom 's dog": "Tom's dog",
    "he didn 't": "he didn't",
    "they 're , we 've , I 'll , she 'd , I 'm": "they're, we've, I'll, she'd, I'm",
    "Tom ' s dog": "Tom's dog",
    "the players ' union": "the players' union",
    "' Til Death": "'Til Death",
    "rock 'n roll": "rock 'n roll",
    # headings
    " = Valkyria Chronicles III = ": "Valkyria Chronicles III",
    " = = Game @-@ play = = ": "Game-play",
    " = = = = Deep = = = = ": "Deep",
    " = A = B = ": "A = B",
    "x = 5": "x = 5",
    "= 5": "= 5",
    "= = uneven =": "= = uneven =",
    "= = =": "= = =",
    # lines and spaces
    "": "",
    " ": "",
    "two  spaces": "two spaces",
    " = T = \n \n text , more \n": "T\n\ntext, more\n",
}


@pytest.mark.parametrize("text", CASES)
def test_case(text: str) -> None:
    assert clean_article(text) == CASES[text]


def test_there_are_enough_cases() -> None:
    assert len(CASES) >= 40


def skeleton(text: str) -> str:
    """A text without white space and without the marks that cleaning may remove."""
    for mark, meaning in WITHIN_WORD.items():
        while mark in text:
            text = text.replace(mark, meaning)
    return "".join(text.split()).replace("=", "").replace("@", "")


WORDS = st.sampled_from(
    [*"=@-,.;:!?)](['\"", "@-@", "@,@", "@.@", "'s", "s", "t", "a", "Wort", "é", ".22", "", "\n", "\t", "\u00a0", "= ="]
)


@given(st.one_of(st.lists(WORDS, max_size=14).map(" ".join), st.text(alphabet="=@-,.' \"()\nsa", max_size=20)))
@settings(max_examples=300, deadline=None)
def test_cleaning_twice_changes_nothing_and_only_white_space_and_marks_change(text: str) -> None:
    clean = clean_article(text)
    assert clean_article(clean) == clean
    assert skeleton(clean) == skeleton(text)
    assert clean.count("\n") == text.count("\n")


def test_articles_begin_at_titles() -> None:
    lines = ["", " = One = \n", "", " text \n", " = = Section = = \n", "more", " = Two = ", "x"]
    assert list(articles(lines)) == ["\n = One = \n\n text \n = = Section = = \nmore\n", " = Two = \nx\n"]
    assert "".join(articles(lines)).split() == " ".join(lines).split()
    assert list(articles(["preface", " = One = "])) == ["preface\n", " = One = \n"]
    assert list(articles(["", " \n"])) == []


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (" = Title = \n", True),
        ("= A = B =", True),
        (" = = Section = = ", False),
        (" = = = Deep = = = ", False),
        ("x = y", False),
        ("= =", False),
        ("a = b =", False),
        ("", False),
    ],
)
def test_titles(line: str, expected: bool) -> None:
    assert is_title(line) is expected
